pub mod helper;
pub mod options;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};

use self::options::MountWishes;
use crate::context::{Context, load_config};
use crate::error::{Failure, Result};
use crate::local::mounts;
use crate::local::process::log_tail;
use crate::role;

/// Mount the cluster on a directory
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs mount /mnt\n  dfs mount -f -o ro,allow_other /mnt\n  dfs umount /mnt",
    after_help = "For mount(8) and fstab, as root:\n  ln -s /path/to/dfs /sbin/mount.dfs\n  \
                  ln -s /path/to/dfs /sbin/mount.fuse.dfs\n  \
                  echo '/etc/dfs/cluster.toml /mnt dfs _netdev 0 0' >>/etc/fstab\n  mount /mnt"
)]
pub struct Args {
    /// Stay in the foreground until SIGTERM, Ctrl-C or an unmount
    #[arg(short = 'f', long)]
    foreground: bool,
    /// ro, cluster=FILE, subdir=DIR, allow_other, root_squash, all_squash, anonuid=N, anongid=N, hard, soft,
    /// noatime, writebehind, deadline=TIME, suid, dev, noexec, fsname=NAME, threads=N, remount; those of fstab are
    /// accepted
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// Where to write the number of the process that serves the mount
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Started by another `dfs mount` that goes away: leave its terminal
    #[arg(long, hide = true)]
    detached: bool,
    dir: PathBuf,
}

/// The cluster may be in an election, and the mount waits for it.
const START_DEADLINE: Duration = Duration::from_secs(45);

const POLL: Duration = Duration::from_millis(20);

impl Args {
    pub fn is_role(&self) -> bool {
        self.foreground
    }
}

pub async fn run(context: &Context, mut args: Args) -> Result {
    let wishes = MountWishes::parse(&args.options)?;
    if let Some(remount) = wishes.remount {
        return mounts::remount(&mounts::resolve(&args.dir)?, |now| remount.flags(now)).await;
    }
    // Absolute, because the process that serves leaves this folder.
    let cluster = absolute(wishes.cluster.as_deref().unwrap_or(&context.global.cluster))?;
    args.pid_file = args.pid_file.as_deref().map(absolute).transpose()?;
    // Before anything else: what is wrong with the cluster file is told here and not in a log.
    let config = load_config(&cluster)?;
    if !args.foreground {
        return start_in_background(context, &args, &cluster).await;
    }
    if args.detached {
        // Fails if we lead a process group already, and then nothing holds us to a terminal either.
        let _ = rustix::process::setsid();
        // So that whatever file system it was called in can be unmounted.
        std::env::set_current_dir("/").map_err(|error| Failure::local(Path::new("/"), &error))?;
    }
    let stop = role::stop_signal()?;
    let options = Options {
        op_deadline: wishes.deadline.unwrap_or(Options::default().op_deadline),
        hard: wishes.hard,
        remember: wishes.remember(),
        write_behind: wishes.write_behind(),
        atime: wishes.atime(),
        description: format!("mount {} of process {}", args.dir.display(), std::process::id()),
        ..Options::default()
    };
    let mount_options = wishes.for_mount(&args.dir, &cluster, &options);
    let dfs = Dfs::connect(&config, options).await?;
    dfs.ready().await.map_err(|error| Failure::from(error).at("the cluster does not answer"))?;
    if let Some(path) = &args.pid_file {
        fs::write(path, format!("{}\n", std::process::id())).map_err(|error| Failure::local(path, &error))?;
    }
    let served = dfs_fuse::run(dfs, mount_options, || {}, stop).await;
    if let Some(path) = &args.pid_file {
        // Best effort: a file that stays names a process that is gone, which readers check.
        let _ = fs::remove_file(path);
    }
    served.map_err(|error| role::failed(&format!("the mount on {} ended", args.dir.display()), &error))
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Failure::local(path, &error))
}

/// Starts the process that serves the mount and waits until the mount answers.
async fn start_in_background(context: &Context, args: &Args, cluster: &Path) -> Result {
    let dir = mounts::resolve(&args.dir)
        .map_err(|failure| failure.hint(format!("make the mount point first: mkdir -p {}", args.dir.display())))?;
    if mounts::answers(&dir, Duration::from_secs(5)).await {
        return Err(Failure::failed(format!("{} is mounted already", dir.display()))
            .hint(format!("dfs umount {}", dir.display())));
    }
    let (log_path, log) = make_log()?;
    let mut child = spawn(context, args, cluster, &dir, log)?;
    let deadline = Instant::now() + START_DEADLINE;
    loop {
        if mounts::answers(&dir, Duration::from_secs(5)).await {
            context.out.note(format!(
                "{} is mounted, process {}, log {}",
                dir.display(),
                child.id(),
                log_path.display()
            ));
            return Ok(());
        }
        let ended = child.try_wait().map_err(|error| Failure::io("cannot watch the mount's process", &error))?;
        if ended.is_some() || Instant::now() >= deadline {
            let failure = reason(&log_path, &dir, ended.and_then(|status| status.code()));
            if ended.is_none() {
                // It would mount at some later time, when nobody expects it.
                let _ = child.kill();
                let _ = child.wait();
            }
            let _ = fs::remove_file(&log_path);
            return Err(failure);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn spawn(context: &Context, args: &Args, cluster: &Path, dir: &Path, log: fs::File) -> Result<Child> {
    let program = std::env::current_exe().map_err(|error| Failure::io("cannot find this program", &error))?;
    let mut command = Command::new(program);
    command.arg("--cluster").arg(cluster);
    if let Some(filter) = &context.global.log {
        command.arg("--log").arg(filter);
    }
    command.args(["mount", "-f", "--detached"]);
    if !args.options.is_empty() {
        command.arg("-o").arg(args.options.join(","));
    }
    if let Some(path) = &args.pid_file {
        command.arg("--pid-file").arg(path);
    }
    command.arg("--").arg(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().map_err(|error| Failure::io("cannot start the mount's process", &error))
}

/// A log of its own for each mount, made anew so that nobody else's file is written to.
fn make_log() -> Result<(PathBuf, fs::File)> {
    let mut number = std::process::id();
    loop {
        let path = std::env::temp_dir().join(format!("dfs-mount-{number}.log"));
        match fs::File::create_new(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number = number.wrapping_add(1 << 22),
            Err(error) => return Err(Failure::local(&path, &error)),
        }
    }
}

/// What the process said when it could not mount, with its exit code where there is one.
fn reason(log: &Path, dir: &Path, code: Option<i32>) -> Failure {
    let lines = log_tail(log);
    let message = lines.iter().find_map(|line| line.strip_prefix("error: "));
    let message = message.map_or(format!("{} could not be mounted", dir.display()), str::to_owned);
    let mut failure = match code {
        Some(2) => Failure::usage(message),
        None | Some(5) => Failure::temporary(message),
        Some(_) => Failure::failed(message),
    };
    let told = lines.iter().any(|line| line.starts_with("error: "));
    for line in &lines {
        if let Some(hint) = line.strip_prefix("hint: ") {
            failure = failure.hint(hint);
        } else if let Some(cause) = line.strip_prefix("cause: ") {
            failure = failure.cause(cause);
        } else if !told {
            failure = failure.cause(line.as_str());
        }
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    #[test]
    fn the_reason_of_the_process_is_told_as_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        fs::write(&log, "2026-11-21 INFO x\nerror: /mnt is in use\ncause: by others\nhint: umount /mnt\n").unwrap();
        let failure = reason(&log, Path::new("/mnt"), Some(1));
        assert_eq!(failure.render(false), "error: /mnt is in use\ncause: by others\nhint: umount /mnt\n");
        fs::write(&log, "panicked\n").unwrap();
        let failure = reason(&log, Path::new("/mnt"), None);
        assert_eq!(failure.exit, Exit::Temporary);
        assert_eq!(failure.render(false), "error: /mnt could not be mounted\ncause: panicked\n");
    }
}

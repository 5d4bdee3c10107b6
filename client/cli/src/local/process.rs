//! Processes that scripts have started and pid files name. A number in a file proves nothing, since the
//! kernel gives it to others later: a process is ours if its command line names the folder that is its own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dfs_client::ClusterConfig;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::layout::{Kind, Layout, Member};
use super::mounts;
use crate::error::{Failure, Result};

/// How much of a log is shown when its process did not do what was waited for.
const LOG_TAIL_LINES: usize = 8;
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// A mount's process ends within 35 s of the unmount, or mounts within 30 s of its start.
const UNMOUNTED_DEADLINE: Duration = Duration::from_secs(45);
const UNMOUNTED_POLL: Duration = Duration::from_millis(50);

/// From the moment at which a start script has forked, for its child to become the program.
const BECOMING_DEADLINE: Duration = Duration::from_secs(2);
const BECOMING_POLL: Duration = Duration::from_millis(5);

/// A running process of the cluster. The descriptor stays with this very process, whoever gets its number.
pub struct Process {
    pub pid: i32,
    fd: OwnedFd,
}

impl Process {
    /// The process of `member`, if it runs.
    pub fn find(layout: &Layout, member: Member) -> Option<Process> {
        running(&layout.pid(member), &layout.folder(member), &layout.start(member))
    }

    pub fn signal(&self, signal: Signal) -> Result {
        match pidfd_send_signal(self.fd.as_fd(), signal) {
            // It ended by itself.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Failure::io(format!("cannot stop process {}", self.pid), &error.into())),
        }
    }

    /// Waits for the end; `false` if the deadline passes first.
    pub async fn ended(&self, deadline: Duration) -> bool {
        let Ok(fd) = self.fd.try_clone() else { return false };
        tokio::task::spawn_blocking(move || wait_readable(&fd, deadline)).await.unwrap_or(false)
    }
}

/// A pidfd becomes readable when its process ends.
fn wait_readable(fd: &OwnedFd, deadline: Duration) -> bool {
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// The process that `pid_file` names, if its command line names something in `folder`.
fn running(pid_file: &Path, folder: &Path, script: &Path) -> Option<Process> {
    let pid: i32 = fs::read_to_string(pid_file).ok()?.trim().parse().ok().filter(|pid| *pid > 0)?;
    let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let becoming_by = Instant::now() + BECOMING_DEADLINE;
    loop {
        // Read after the descriptor was opened: it is the same process.
        let command_line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        if names(&command_line, folder) {
            return Some(Process { pid, fd });
        }
        // A zombie has no arguments either, but its descriptor is readable.
        if !may_become(&command_line, script) || Instant::now() >= becoming_by || wait_readable(&fd, BECOMING_POLL) {
            return None;
        }
    }
}

/// Whether a process with these arguments may be on its way from a start script to the program: between fork and exec it
/// is still the script, and in the middle of exec it has no arguments at all.
fn may_become(command_line: &[u8], script: &Path) -> bool {
    let script = script.as_os_str().as_encoded_bytes();
    command_line.is_empty() || command_line.split(|byte| *byte == 0).any(|argument| argument == script)
}

/// Whether one of the arguments is a path in `folder`. A zombie has no arguments.
fn names(command_line: &[u8], folder: &Path) -> bool {
    let mut prefix = folder.as_os_str().as_encoded_bytes().to_vec();
    prefix.push(b'/');
    command_line.split(|byte| *byte == 0).any(|argument| argument.starts_with(&prefix))
}

/// Runs a start script, which returns when the process has been started.
pub fn start(layout: &Layout, member: Member) -> Result {
    let script = layout.start(member);
    let output = Command::new(&script).stdin(Stdio::null()).output();
    let output = output.map_err(|error| Failure::local(&script, &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let failure = Failure::failed(format!("{} could not be started", member.name()));
    Err(said.lines().fold(failure, |failure, line| failure.cause(line)).hint(script.display().to_string()))
}

/// A mount that was taken down still flushes what it has, which takes a while if its cluster was away.
/// Until then its process runs and serves nobody: waits for its end, so that it can be started again.
pub async fn wait_for_ending_mounts(layout: &Layout, config: &ClusterConfig) -> Result {
    let members = Member::all(Kind::Mount, config.mounts.len());
    for (member, mount) in members.into_iter().zip(&config.mounts) {
        let deadline = Instant::now() + UNMOUNTED_DEADLINE;
        while let Some(process) = Process::find(layout, member) {
            if matches!(mounts::mounted_at(&mount.dir), Ok(Some(kind)) if kind == mounts::FUSE_TYPE) {
                break;
            }
            if process.ended(UNMOUNTED_POLL).await {
                break;
            }
            if Instant::now() >= deadline {
                let failure =
                    Failure::temporary(format!("{} neither serves {} nor ends", mount.name, mount.dir.display()));
                return Err(with_log(failure, layout, member));
            }
        }
    }
    Ok(())
}

/// The end of a log, for the causes of a failure.
pub fn log_tail(path: &Path) -> Vec<String> {
    let read = || -> io::Result<String> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = fs::File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].iter().map(|line| line.to_string()).collect()
}

/// A failure about a member, with the end of its log.
pub fn with_log(failure: Failure, layout: &Layout, member: Member) -> Failure {
    let log: PathBuf = layout.log(member);
    let name = member.name();
    let failure = log_tail(&log).into_iter().fold(failure, |failure, line| failure.cause(format!("{name}: {line}")));
    failure.hint(format!("the whole log is {}", log.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_the_folder_on_its_command_line() {
        let folder = Path::new("/data/nn1");
        assert!(names(b"/bin/dfs\0namenode\0--config\0/data/nn1/namenode.toml\0", folder));
        assert!(!names(b"/bin/dfs\0namenode\0--config\0/data/nn10/namenode.toml\0", folder));
        assert!(!names(b"/bin/dfs\0namenode\0--config\0/other/data/nn1/namenode.toml\0", folder));
        assert!(!names(b"", folder));
    }

    #[tokio::test]
    async fn a_pid_file_that_names_somebody_else_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let (pid_file, script) = (dir.path().join("nn1.pid"), dir.path().join("nn1.start"));
        assert!(running(&pid_file, dir.path(), &script).is_none());
        for text in ["", "x", "-1", "0", "999999999"] {
            fs::write(&pid_file, text).unwrap();
            assert!(running(&pid_file, dir.path(), &script).is_none(), "{text}");
        }
        // This test's own process is alive, and its command line does not name the folder.
        fs::write(&pid_file, std::process::id().to_string()).unwrap();
        assert!(running(&pid_file, dir.path(), &script).is_none());
    }

    #[test]
    fn a_script_may_become_its_program_and_nobody_else_may() {
        let script = Path::new("/data/nn1.start");
        assert!(may_become(b"/bin/sh\0/data/nn1.start\0", script));
        assert!(may_become(b"", script));
        assert!(!may_become(b"/bin/sh\0/data/nn10.start\0", script));
        assert!(!may_become(b"/bin/dfs\0namenode\0--config\0/data/nn10/namenode.toml\0", script));
    }

    #[tokio::test]
    async fn a_process_is_found_signalled_and_seen_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("nn1");
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo; read x"]).arg(folder.join("x")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        // `spawn` may return while the kernel is still putting the new program in place, and until then the
        // command line is empty.
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        let (pid_file, script) = (dir.path().join("nn1.pid"), dir.path().join("nn1.start"));
        fs::write(&pid_file, child.id().to_string()).unwrap();
        let process = running(&pid_file, &folder, &script).unwrap();
        assert!(!process.ended(Duration::ZERO).await);
        process.signal(Signal::KILL).unwrap();
        assert!(process.ended(Duration::from_secs(10)).await);
        assert!(running(&pid_file, &folder, &script).is_none(), "a zombie does not run");
        child.wait().unwrap();
        process.signal(Signal::TERM).unwrap();
    }

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("nn1.log");
        assert!(log_tail(&log).is_empty());
        fs::write(&log, (0..100).map(|n| format!("line {n}\n")).collect::<String>()).unwrap();
        assert_eq!(log_tail(&log).last().unwrap(), "line 99");
        assert_eq!(log_tail(&log).len(), LOG_TAIL_LINES);
    }
}

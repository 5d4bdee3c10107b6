//! MooseFS from Debian's packages on this machine: one master, chunk servers, goal 3, and a mount.
//!
//! It refuses loopback addresses, so it lives in a network namespace of its own with addresses on that one's loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::must;

const MASTER: &str = "10.77.0.1";

/// How long its parts get to find each other.
const START: Duration = Duration::from_secs(60);

/// A running MooseFS. Dropped, it is stopped and its namespace removed; its folder stays.
pub struct MooseFs {
    namespace: String,
    dir: PathBuf,
    mount: PathBuf,
    parts: Vec<Child>,
}

impl MooseFs {
    /// Starts one with its data below `dir` and mounts it on `mount`.
    pub fn start(dir: &Path, mount: &Path, chunk_servers: usize) -> Result<MooseFs> {
        fs::create_dir_all(dir)?;
        fs::create_dir_all(mount)?;
        let namespace = format!("moosefs-{}", std::process::id());
        must(Command::new("ip").args(["netns", "add", &namespace]))?;
        let mut moosefs = MooseFs { namespace, dir: dir.to_owned(), mount: mount.to_owned(), parts: Vec::new() };
        must(moosefs.inside("ip").args(["link", "set", "lo", "up"]))?;
        for last in [1].into_iter().chain((0..chunk_servers).map(|n| 11 + n)) {
            must(moosefs.inside("ip").args(["addr", "add", &format!("10.77.0.{last}/24"), "dev", "lo"]))?;
        }
        moosefs.start_master()?;
        for number in 0..chunk_servers {
            moosefs.start_chunk_server(number)?;
        }
        // A mount that finds no master ends.
        moosefs.wait("connect its chunk servers", || Ok(moosefs.has_chunk_servers(chunk_servers)))?;
        moosefs.start_mount()?;
        moosefs.wait("take writes", || moosefs.takes_writes())?;
        Ok(moosefs)
    }

    /// A command in its namespace. Not by `ip netns exec`, which hides mounts.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.namespace)).arg(program);
        command
    }

    fn start_master(&mut self) -> Result<()> {
        let data = self.dir.join("master");
        fs::create_dir(&data)?;
        fs::copy("/var/lib/mfs/metadata.mfs.empty", data.join("metadata.mfs")).context("an empty MooseFS")?;
        fs::write(data.join("exports.cfg"), "* / rw,alldirs,admin,maproot=0:0\n")?;
        let data_path = data.display();
        let config = format!(
            "DATA_PATH = {data_path}\nEXPORTS_FILENAME = {data_path}/exports.cfg\nWORKING_USER = root\n\
             WORKING_GROUP = root\nMATOML_LISTEN_HOST = {MASTER}\nMATOCS_LISTEN_HOST = {MASTER}\n\
             MATOCL_LISTEN_HOST = {MASTER}\n"
        );
        fs::write(data.join("master.cfg"), config)?;
        let mut command = self.inside("mfsmaster");
        command.arg("-f").arg("-c").arg(data.join("master.cfg")).arg("start");
        self.spawn(command, "master.log")
    }

    fn start_chunk_server(&mut self, number: usize) -> Result<()> {
        let data = self.dir.join(format!("chunks{number}"));
        let disk = data.join("disk");
        fs::create_dir_all(&disk)?;
        fs::write(data.join("hdd.cfg"), format!("{}\n", disk.display()))?;
        let (data_path, addr) = (data.display(), format!("10.77.0.{}", 11 + number));
        let config = format!(
            "DATA_PATH = {data_path}\nHDD_CONF_FILENAME = {data_path}/hdd.cfg\nWORKING_USER = root\n\
             WORKING_GROUP = root\nMASTER_HOST = {MASTER}\nBIND_HOST = {addr}\nCSSERV_LISTEN_HOST = {addr}\n\
             HDD_LEAVE_SPACE_DEFAULT = 1GiB\n"
        );
        fs::write(data.join("chunks.cfg"), config)?;
        let mut command = self.inside("mfschunkserver");
        command.arg("-f").arg("-c").arg(data.join("chunks.cfg")).arg("start");
        self.spawn(command, &format!("chunks{number}.log"))
    }

    fn start_mount(&mut self) -> Result<()> {
        let mut command = self.inside("mfsmount");
        command.arg(&self.mount).args(["-H", MASTER, "-f"]);
        self.spawn(command, "mount.log")
    }

    fn spawn(&mut self, mut command: Command, log: &str) -> Result<()> {
        let log = fs::File::create(self.dir.join(log))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.parts.push(child.with_context(|| format!("{command:?}"))?);
        Ok(())
    }

    fn has_chunk_servers(&self, chunk_servers: usize) -> bool {
        let listed = self.inside("mfscli").args(["-H", MASTER, "-SCS", "-s", "|"]).output();
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        (0..chunk_servers).all(|number| listed.contains(&format!("10.77.0.{}", 11 + number)))
    }

    /// Whether three copies of a file can be written.
    fn takes_writes(&self) -> Result<bool> {
        let settings = |program: &str, args: &[&str]| -> Result<bool> {
            let mut command = self.inside(program);
            Ok(command.args(args).arg(&self.mount).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
        };
        let probe = self.mount.join("probe");
        let written = settings("mfssetgoal", &["-r", "3"])?
            && settings("mfssettrashtime", &["-r", "0"])?
            && fs::write(&probe, "probe").is_ok();
        if written {
            fs::remove_file(probe)?;
        }
        Ok(written)
    }

    /// Of the chunks of a file, how many copies the one has that has the fewest.
    pub fn fewest_copies(&self, file: &Path) -> Result<u64> {
        let output = self.inside("mfsfileinfo").arg("-q").arg(file).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        // "chunks with 2 copies:   16", a line for each number that occurs.
        let counts = said.lines().filter_map(|line| {
            let (copies, chunks) = line.trim().strip_prefix("chunks with ")?.split_once(':')?;
            let copies = copies.split_whitespace().next()?.parse().ok()?;
            (chunks.trim().parse::<u64>().ok()? > 0).then_some(copies)
        });
        counts.min().with_context(|| format!("mfsfileinfo says `{said}`"))
    }

    pub fn kill_chunk_server(&mut self, number: usize) -> Result<()> {
        // Behind the master, in order.
        let part = self.parts.get_mut(1 + number).context("there are not so many")?;
        part.kill()?;
        part.wait()?;
        Ok(())
    }

    fn wait(&self, what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + START;
        while !done()? {
            if Instant::now() > end {
                bail!("MooseFS did not {what} within {} s; its logs are in {}", START.as_secs(), self.dir.display());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }
}

impl Drop for MooseFs {
    fn drop(&mut self) {
        // Best effort, each on its own: what does not stop in order is killed.
        let _ = Command::new("umount").arg(&self.mount).status();
        for part in self.parts.iter_mut().rev() {
            let _ = part.kill();
            let _ = part.wait();
        }
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.mount).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

use crate::fault::poll_until;
use crate::launcher::Launcher;
use crate::ledger::Names;

/// `dfs down` kills what has not stopped after 20 s.
const STOP_DEADLINE: Duration = Duration::from_secs(60);

/// A mount waits for the operation deadline while the cluster is away.
const MOUNT_DEADLINE: Duration = Duration::from_secs(60);

/// What `dfs up` is asked for.
#[derive(Clone, Debug)]
pub struct Layout {
    pub namenodes: usize,
    pub datanodes: usize,
    pub replication: usize,
    /// Mount points, made if absent.
    pub mounts: Vec<PathBuf>,
    /// Of the mounts, as `dfs mount -o` takes them.
    pub mount_options: Vec<String>,
    /// Further arguments of `dfs up`.
    pub extra: Vec<String>,
}

impl Default for Layout {
    fn default() -> Self {
        Layout {
            namenodes: 3,
            datanodes: 4,
            replication: 3,
            mounts: Vec::new(),
            mount_options: Vec::new(),
            extra: Vec::new(),
        }
    }
}

/// A running local cluster. Dropped, it is stopped.
pub struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    layout: Layout,
    launcher: Arc<Launcher>,
}

impl Cluster {
    /// Starts one in `dir` with the program at `program`; its messages go to our stderr.
    pub fn up(program: &Path, dir: &Path, layout: Layout) -> Result<Cluster> {
        for mount in &layout.mounts {
            std::fs::create_dir_all(mount)?;
        }
        let launcher = Arc::new(Launcher::new()?);
        let cluster = Cluster { program: program.to_owned(), dir: dir.to_owned(), layout, launcher };
        cluster.start_all()?;
        Ok(cluster)
    }

    /// `dfs up` on the same folder: starts whatever does not run.
    pub fn start_all(&self) -> Result<()> {
        self.start_all_with(&self.program)
    }

    /// As `start_all`, with another program: what does not run is started with that one, the rest runs on.
    pub fn start_all_with(&self, program: &Path) -> Result<()> {
        let mut command = self.up_command(program);
        let status = command.stdin(Stdio::null()).stdout(Stdio::from(std::io::stderr())).status()?;
        ensure!(status.success(), "`{} up` ended with {status}", program.display());
        Ok(())
    }

    /// As `start_all`, where it may not succeed: `dfs up` is killed when the deadline passes.
    pub fn start_all_within(&self, deadline: Duration) -> Result<Output> {
        output_within(&mut self.up_command(&self.program), deadline).context("dfs up")
    }

    fn up_command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.arg("up").arg("--dir").arg(&self.dir);
        command.args(["--namenodes", &self.namenodes().len().to_string()]);
        command.args(["--datanodes", &self.datanodes().len().to_string()]);
        command.args(["--replication", &self.layout.replication.to_string()]);
        for mount in &self.layout.mounts {
            command.arg("--mount").arg(mount);
        }
        command.args(self.layout.mount_options.iter().flat_map(|option| ["-o", option]));
        command.args(&self.layout.extra);
        command
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn launcher(&self) -> Arc<Launcher> {
        self.launcher.clone()
    }

    pub fn config(&self) -> PathBuf {
        self.dir.join("cluster.toml")
    }

    pub fn mount(&self, index: usize) -> &Path {
        &self.layout.mounts[index]
    }

    /// What its mounts promise about names.
    pub fn names(&self) -> Names {
        match self.layout.mount_options.iter().any(|option| option == "writebehind") {
            true => Names::WrittenBehind,
            false => Names::Committed,
        }
    }

    pub fn mounts(&self) -> &[PathBuf] {
        &self.layout.mounts
    }

    /// A `dfs` command for this cluster.
    pub fn dfs<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).env("DFS_CLUSTER", self.config()).stdin(Stdio::null());
        command
    }

    /// Runs a `dfs` command to its end and returns what it printed; an exit code other than 0 is an error.
    pub fn run<const N: usize>(&self, args: [&str; N]) -> Result<String> {
        let output = self.output(args)?;
        if !output.status.success() {
            let said = [&output.stdout[..], &output.stderr[..]].concat();
            bail!("dfs {}: {}: {}", args.join(" "), output.status, String::from_utf8_lossy(&said));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn output<const N: usize>(&self, args: [&str; N]) -> Result<Output> {
        self.dfs(args).output().with_context(|| format!("dfs {}", args.join(" ")))
    }

    /// As `output`, for a command that may have nobody to answer it: see the function of that name.
    pub fn output_within<const N: usize>(&self, args: [&str; N], deadline: Duration) -> Result<Output> {
        output_within(&mut self.dfs(args), deadline).with_context(|| format!("dfs {}", args.join(" ")))
    }

    /// `dfs status --json`.
    pub fn status(&self) -> Result<Value> {
        let output = self.output(["status", "--json"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("status: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
    }

    /// The name of the namenode that leads (`nn1`, ...), waited for until `deadline` passes.
    pub fn leader(&self, deadline: Duration) -> Result<String> {
        let end = Instant::now() + deadline;
        loop {
            let output = self.output(["namenode", "leader"])?;
            let text = String::from_utf8_lossy(&output.stdout);
            if let (true, Some(name)) = (output.status.success(), text.split_whitespace().next()) {
                return Ok(name.to_owned());
            }
            if Instant::now() > end {
                bail!("no leader: {}", String::from_utf8_lossy(&output.stderr));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Returns once every chunk has its verified replicas and every namenode has caught up.
    pub fn wait_healthy(&self, deadline: Duration) -> Result<Duration> {
        let start = Instant::now();
        let output = self.output(["wait-healthy", "--quiet", "--timeout", &deadline.as_secs().to_string()])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("not healthy after {deadline:?}: `dfs wait-healthy` ended with {}: {said}", output.status);
        }
        Ok(start.elapsed())
    }

    /// Returns once a leader answers and every namenode has applied all that was in the leader's log.
    pub fn wait_caught_up(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            let status = self.status();
            let caught_up = status.as_ref().is_ok_and(|status| {
                let nodes = status["namenodes"].as_array().cloned().unwrap_or_default();
                let newest = nodes.iter().filter_map(|node| node["last_log_index"].as_u64()).max().unwrap_or(0);
                // Work goes on meanwhile: what is under way may differ.
                let close = |node: &Value| node["matched_index"].as_u64().is_some_and(|index| index + 50 >= newest);
                nodes.len() == self.namenodes().len()
                    && !status["leader"].is_null()
                    && nodes.iter().all(|node| node["reachable"] == true && (node["leader"] == true || close(node)))
            });
            if caught_up {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("the namenodes do not agree after {deadline:?}: {status:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The UDP ports of every node, as its config file has them.
    pub fn ports(&self) -> Result<Vec<u16>> {
        Ok(self.addresses()?.iter().map(SocketAddr::port).collect())
    }

    /// Where every node listens, by its config file; a namenode does so twice.
    pub fn addresses(&self) -> Result<Vec<SocketAddr>> {
        let mut addresses = Vec::new();
        for (name, file) in [(self.namenodes(), "namenode.toml"), (self.datanodes(), "datanode.toml")] {
            for node in name {
                let path = self.dir.join(node).join(file);
                let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let listens = text.lines().filter(|line| line.starts_with("listen") || line.starts_with("raft_listen"));
                for line in listens {
                    let address = line.split('"').nth(1);
                    addresses.push(address.and_then(|text| text.parse().ok()).with_context(|| line.to_owned())?);
                }
            }
        }
        Ok(addresses)
    }

    /// Bytes of memory that a node or mount occupies.
    pub fn resident_bytes(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.pid(name)?.as_raw_nonzero());
        let text = std::fs::read_to_string(&path).with_context(|| format!("{name}: {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
        Ok(1024 * kib.with_context(|| format!("{name} has ended"))?)
    }

    /// The process of a node or mount, from its pid file.
    pub fn pid(&self, name: &str) -> Result<Pid> {
        let path = self.dir.join(format!("{name}.pid"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Pid::from_raw(text.trim().parse()?).context("a pid is above 0")
    }

    pub fn is_running(&self, name: &str) -> bool {
        self.pid(name).is_ok_and(is_alive)
    }

    /// Whether its process runs no more. A tracer may still hold threads of it, and with them its files.
    pub fn has_died(&self, name: &str) -> bool {
        let stat =
            self.pid(name).and_then(|pid| Ok(std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?));
        stat.map_or(true, |stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
    }

    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        Ok(kill_process(self.pid(name)?, signal)?)
    }

    /// SIGKILL, and waits until the process is gone. One that has ended already is as good.
    pub fn kill(&self, name: &str) -> Result<()> {
        if self.is_running(name) {
            // It may end between the two.
            let _ = self.signal(name, Signal::KILL);
        }
        let end = Instant::now() + Duration::from_secs(20);
        while self.is_running(name) {
            if Instant::now() > end {
                bail!("{name} does not die");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// SIGTERM, and waits until the process has ended, as it does in order. A mount goes with its process.
    pub fn stop(&self, name: &str) -> Result<()> {
        self.signal(name, Signal::TERM)?;
        let end = Instant::now() + STOP_DEADLINE;
        while self.is_running(name) {
            ensure!(Instant::now() < end, "{name} was told to stop and runs on after {STOP_DEADLINE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The program that a node or mount runs.
    pub fn program_of(&self, name: &str) -> Result<PathBuf> {
        let link = format!("/proc/{}/exe", self.pid(name)?.as_raw_nonzero());
        std::fs::read_link(&link).with_context(|| format!("{name}: {link}"))
    }

    /// Starts a node or mount again exactly as before, by its `NAME.start`. A mount is there when this returns: what is
    /// written to its folder before that goes to the disk below.
    pub fn start(&self, name: &str) -> Result<()> {
        let script = self.dir.join(format!("{name}.start"));
        self.launcher.run(&[script.to_str().context("the cluster's folder is not text")?])?;
        let number = name.strip_prefix('m').and_then(|number| number.parse::<usize>().ok());
        let Some(mount) = number.and_then(|number| self.mounts().get(number.checked_sub(1)?)) else { return Ok(()) };
        let below = std::fs::metadata(mount.parent().context("a mount is in a folder")?)?.dev();
        poll_until(MOUNT_DEADLINE, &format!("{} is mounted", mount.display()), || {
            // Whoever was mounted there before is an error.
            Ok(std::fs::metadata(mount).is_ok_and(|top| top.dev() != below))
        })
    }

    /// Those that the cluster file names: their number and their names change with the group.
    pub fn namenodes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.config()).unwrap_or_default();
        match names_in(&text, "namenodes") {
            names if names.is_empty() => (1..=self.layout.namenodes).map(|i| format!("nn{i}")).collect(),
            names => names,
        }
    }

    /// As `namenodes`.
    pub fn datanodes(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.config()).unwrap_or_default();
        match names_in(&text, "datanodes") {
            names if names.is_empty() => (1..=self.layout.datanodes).map(|i| format!("dn{i}")).collect(),
            names => names,
        }
    }

    /// Every namenode and datanode.
    pub fn nodes(&self) -> Vec<String> {
        [self.namenodes(), self.datanodes()].concat()
    }

    /// How long a node's log is, to read later what has come since.
    pub fn log_len(&self, name: &str) -> usize {
        std::fs::metadata(self.log(name)).map_or(0, |metadata| metadata.len() as usize)
    }

    /// What a node has logged since its log was so long.
    pub fn log_since(&self, name: &str, len: usize) -> String {
        let bytes = std::fs::read(self.log(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes[len.min(bytes.len())..]).into_owned()
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// The end of a node's log, for error messages.
    pub fn log_tail(&self, name: &str, lines: usize) -> String {
        let text = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// `dfs down`.
    pub fn down(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["down", "--quiet", "--dir"]).arg(&self.dir).stdin(Stdio::null());
        let status = command.stdout(Stdio::from(std::io::stderr())).status()?;
        if !status.success() {
            bail!("`dfs down` ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.dir.exists()
            && let Err(error) = self.down()
        {
            eprintln!("stopping the cluster in {}: {error:#}", self.dir.display());
        }
    }
}

/// Runs a command, and kills it when the deadline passes, so that it has no exit code. What it prints has to fit into a
/// pipe.
pub fn output_within(command: &mut Command, deadline: Duration) -> Result<Output> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let end = Instant::now() + deadline;
    while child.try_wait()?.is_none() {
        if Instant::now() >= end {
            // It may end between the two.
            let _ = child.kill();
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(child.wait_with_output()?)
}

/// The names of the nodes of a kind in the text of a cluster file, which `dfs up` writes.
pub(crate) fn names_in(text: &str, kind: &str) -> Vec<String> {
    let title = format!("[[{kind}]]");
    let tables = text.split(&title).skip(1).map(|rest| rest.split("\n[").next().unwrap_or(rest));
    let name = |table: &str| {
        let value = table.lines().find_map(|line| line.trim().strip_prefix("name = \""))?;
        Some(value.trim_end_matches('"').to_owned())
    };
    tables.filter_map(name).collect()
}

/// Whether any thread of the process is left: the first one may be a zombie already while others still hold its files.
pub fn is_alive(pid: Pid) -> bool {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    // Readable when all of it has ended, though nobody may have noticed yet.
    poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&at_once)) == Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_those_of_the_cluster_file_whatever_their_numbers() {
        let text = "replication = 3\n\n[tls]\nca = \"x\"\n\n[[namenodes]]\nid = 1\nname = \"nn1\"\naddr = \"a\"\n\n\
                    [[namenodes]]\nid = 4\nname = \"nn4\"\n\n[[datanodes]]\nid = 101\nname = \"dn1\"\n";
        assert_eq!(names_in(text, "namenodes"), ["nn1", "nn4"]);
        assert_eq!(names_in(text, "datanodes"), ["dn1"]);
        assert!(names_in("", "namenodes").is_empty());
    }
}

//! Data folders that were written by the program as it was at some time, kept in `deploy/fixtures`. Whatever is
//! changed on disk or in a message later, they must open, and hold what their lists say.
//!
//! A fixture is a folder of `dfs up` after an orderly `dfs down`, packed, and a list of what must be found in it. What
//! belongs to the machine on which it was made is left out (logs, start scripts, RocksDB's own logs) or is rewritten
//! when it is opened, as an administrator does who moves a cluster: the ports, and the place of the mount. Paths in
//! configurations are relative to them, and the certificates are valid until the year 4096.

mod contents;
mod manifest;

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::fault::{poll_until, tool};
use crate::local::{Cluster, Layout};
pub use manifest::Manifest;

/// Nodes of every fixture.
pub const NAMENODES: usize = 3;
pub const DATANODES: usize = 3;

const ARCHIVE: &str = "data.tar.gz";
const LIST: &str = "manifest.jsonl";

/// What stands for the mount point while a fixture is packed: where it really was is no part of it.
const NO_MOUNT: &str = "/nonexistent/mount";

/// Passing it means "never".
const DEADLINE: Duration = Duration::from_secs(180);

/// Ports of one cluster lie in a block of so many, below those that the kernel gives to anybody.
const PORTS_STEP: u16 = 100;
const PORTS_END: u16 = 32_000;

pub struct Fixture {
    folder: PathBuf,
}

impl Fixture {
    /// Every fixture there is, the oldest name first.
    pub fn all() -> Result<Vec<Fixture>> {
        let entries = fs::read_dir(folder()).with_context(|| folder().display().to_string())?;
        let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<BTreeSet<PathBuf>>>()?;
        Ok(paths.into_iter().filter(|path| path.is_dir()).map(|folder| Fixture { folder }).collect())
    }

    /// Has the program at `program` write a new one. `scratch` is an empty folder, on a file system that keeps extended
    /// attributes and lists.
    pub fn make(program: &Path, name: &str, scratch: &Path) -> Result<Fixture> {
        let fixture = Fixture { folder: folder().join(name) };
        ensure!(!fixture.folder.exists(), "{} is there already, and is never changed", fixture.folder.display());
        let (data, mount, local) = (scratch.join("data"), scratch.join("mount"), scratch.join("local"));
        let cluster = Cluster::up(program, &data, layout(std::slice::from_ref(&mount)))?;
        fs::create_dir(&local)?;
        for (number, step) in contents::STEPS.into_iter().enumerate() {
            step(&local).context("on a file system of the machine")?;
            step(&mount).context("on the cluster")?;
            if number == 1 {
                history(&cluster)?;
            }
        }
        for root in [&local, &mount] {
            contents::level_times(root)?;
        }
        cluster.wait_healthy(DEADLINE)?;
        expect_fsck_clean(&cluster)?;
        let manifest = Manifest::of(&local)?;
        manifest.expect_in(&Manifest::of(&mount)?).context("the cluster differs from a local file system")?;
        cluster.down()?;
        rewrite(&data, |text| Ok(text.replace(path_text(&mount)?, NO_MOUNT)))?;
        fs::create_dir_all(&fixture.folder)?;
        pack(&data, &fixture.folder.join(ARCHIVE))?;
        fs::write(fixture.folder.join(LIST), manifest.to_text())?;
        Ok(fixture)
    }

    pub fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Bytes of its archive.
    pub fn len_bytes(&self) -> Result<u64> {
        Ok(fs::metadata(self.folder.join(ARCHIVE))?.len())
    }

    pub fn manifest(&self) -> Result<Manifest> {
        let path = self.folder.join(LIST);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Manifest::from_text(&text).with_context(|| path.display().to_string())
    }

    /// Unpacks it into `dir`, moves it to ports that are free now, and starts it with the program at `program` and these
    /// mounts, of which there is one at least.
    pub fn open(&self, program: &Path, dir: &Path, mounts: &[PathBuf], extra: &[&str]) -> Result<Cluster> {
        fs::create_dir_all(dir)?;
        let archive = self.folder.join(ARCHIVE);
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--sparse", "--preserve-permissions", "--no-same-owner", "--file"]).arg(archive);
        tool(tar.arg("--directory").arg(dir))?;
        let first = mounts.first().context("one mount at least")?;
        let shift = free_shift(&ports(dir)?)?;
        rewrite(dir, |text| Ok(moved(text, shift).replace(NO_MOUNT, path_text(first)?)))?;
        tell_namenodes(program, dir)?;
        let extra = extra.iter().map(|arg| (*arg).to_owned()).collect();
        Cluster::up(program, dir, Layout { extra, ..layout(mounts) })
    }
}

/// `dfs fsck /` finds nothing.
pub fn expect_fsck_clean(cluster: &Cluster) -> Result<()> {
    let said = cluster.run(["fsck", "/"])?;
    ensure!(said.contains("is HEALTHY"), "{said}");
    Ok(())
}

fn folder() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.with_file_name("fixtures")
}

fn layout(mounts: &[PathBuf]) -> Layout {
    Layout { namenodes: NAMENODES, datanodes: DATANODES, mounts: mounts.to_vec(), ..Layout::default() }
}

/// What a cluster has behind it after a while: a snapshot, a log that begins after it, several terms, a file with fewer copies.
fn history(cluster: &Cluster) -> Result<()> {
    cluster.run(["setrep", "2", "/one-byte"])?;
    cluster.run(["namenode", "snapshot"])?;
    let leader = cluster.leader(DEADLINE)?;
    let next = cluster.namenodes().into_iter().find(|name| *name != leader).context("there are others")?;
    cluster.run(["namenode", "transfer-leader", &next])?;
    cluster.wait_caught_up(DEADLINE)
}

/// Packs what belongs to a cluster, without what belongs to the machine it ran on.
fn pack(data: &Path, archive: &Path) -> Result<()> {
    for path in files(data)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let of_the_machine = path.parent() == Some(data)
            && (name == "up.lock" || [".log", ".start", ".pid"].iter().any(|end| name.ends_with(end)));
        // RocksDB's own: what it did, in words.
        if of_the_machine || name == "LOG" || name.starts_with("LOG.old") {
            fs::remove_file(&path)?;
        }
    }
    let mut tar = Command::new("tar");
    tar.args(["--create", "--gzip", "--sparse", "--sort=name", "--numeric-owner", "--owner=0", "--group=0", "--file"]);
    tool(tar.arg(archive).arg("--directory").arg(data).arg("."))
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    Ok(files)
}

/// Configurations, and what datanodes have learnt about the namenodes, which they keep in the same way.
fn settings(data: &Path) -> Result<Vec<PathBuf>> {
    Ok(files(data)?.into_iter().filter(|path| path.extension().is_some_and(|end| end == "toml")).collect())
}

fn rewrite(data: &Path, change: impl Fn(&str) -> Result<String>) -> Result<()> {
    for path in settings(data)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        fs::write(&path, change(&text)?)?;
    }
    Ok(())
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))
}

/// In front of every port of a local cluster.
const HOST: &str = "127.0.0.1:";

/// The ports that a text names, and the rest of the text behind each.
fn ports_in(text: &str) -> impl Iterator<Item = (u16, &str)> {
    text.split(HOST).skip(1).filter_map(|rest| {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some((rest[..digits].parse().ok()?, &rest[digits..]))
    })
}

/// The same text with every port so much higher.
fn moved(text: &str, shift: u16) -> String {
    let front = text.split(HOST).next().unwrap_or_default().to_owned();
    ports_in(text).fold(front, |text, (port, rest)| format!("{text}{HOST}{}{rest}", port + shift))
}

/// The ports of all settings.
fn ports(data: &Path) -> Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for path in settings(data)? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        ports.extend(ports_in(&text).map(|(port, _)| port));
    }
    Ok(ports)
}

/// By how much these ports can be raised so that all of them are free. `dfs up` looks for free ones from below; this
/// looks from above, so that the two do not meet.
fn free_shift(ports: &BTreeSet<u16>) -> Result<u16> {
    let highest = *ports.last().context("a cluster has ports")?;
    let shifts = (1..).map(|step| step * PORTS_STEP).take_while(|shift| highest + shift < PORTS_END);
    let is_free = |port: u16| UdpSocket::bind(("127.0.0.1", port)).is_ok();
    let found =
        shifts.collect::<Vec<_>>().into_iter().rev().find(|shift| ports.iter().all(|port| is_free(port + shift)));
    found.with_context(|| format!("no free UDP ports for {ports:?}"))
}

/// Runs the namenodes alone until the group knows where each of them is reached now.
///
/// `dfs up` would start the datanodes at the same time. They ask the group who the namenodes are, would be told the old
/// addresses, believe those more than their configuration, and never find anybody again.
fn tell_namenodes(program: &Path, data: &Path) -> Result<()> {
    let ports = ports(data)?;
    let mut namenodes = Namenodes::default();
    (1..=NAMENODES).try_for_each(|number| namenodes.start(program, data, number))?;
    poll_until(DEADLINE, "the namenodes know where they are reached", || {
        for namenode in &mut namenodes.0 {
            let ended = namenode.try_wait()?;
            ensure!(ended.is_none(), "a namenode has ended with {ended:?}; its log is in {}", data.display());
        }
        let mut list = Command::new(program);
        list.args(["namenode", "list", "--json"]).env("DFS_CLUSTER", data.join("cluster.toml")).stdin(Stdio::null());
        let Ok(group) = serde_json::from_slice::<Value>(&list.output()?.stdout) else { return Ok(false) };
        let members = group["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let here = |addr: &Value| ports_in(addr.as_str().unwrap_or_default()).any(|(port, _)| ports.contains(&port));
        Ok(members.len() == NAMENODES
            && members.iter().all(|member| here(&member["addr"]) && here(&member["raft_addr"])))
    })
}

/// Namenodes without `dfs up`. Dropped, they are stopped in order.
#[derive(Default)]
struct Namenodes(Vec<Child>);

impl Namenodes {
    fn start(&mut self, program: &Path, data: &Path, number: usize) -> Result<()> {
        let log = fs::File::create(data.join(format!("nn{number}.log")))?;
        let mut command = Command::new(program);
        command.args(["namenode", "--config"]).arg(data.join(format!("nn{number}/namenode.toml")));
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.0.push(child.with_context(|| program.display().to_string())?);
        Ok(())
    }
}

impl Drop for Namenodes {
    fn drop(&mut self) {
        for pid in self.0.iter().filter_map(|child| Pid::from_raw(child.id().cast_signed())) {
            // It may have ended by itself; until it is waited for, nobody else has its number.
            let _ = kill_process(pid, Signal::TERM);
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_of_a_text_moves_and_nothing_else_does() {
        let text = "listen = \"127.0.0.1:8020\"\nnode = 8020\n[[peers]]\naddr = \"127.0.0.1:8031\"\n";
        assert_eq!(ports_in(text).map(|(port, _)| port).collect::<Vec<_>>(), [8020, 8031]);
        assert_eq!(
            moved(text, 1000),
            "listen = \"127.0.0.1:9020\"\nnode = 8020\n[[peers]]\naddr = \"127.0.0.1:9031\"\n"
        );
        assert_eq!(moved("name = \"nn1\"\n", 1000), "name = \"nn1\"\n");
    }
}

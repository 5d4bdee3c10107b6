//! `cargo xtask programs`: programs and test suites that know nothing of us, on a real mount.
//!
//! The mount is made as an administrator makes it: by `mount -t dfs`, with options as in fstab.

mod everyday;
mod load;
mod python;
mod run;
mod sqlite;
mod suites;
mod tools;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dfs_cluster::{Cluster, Layout, MountHelper};

use crate::{prerequisites, run::program};

pub use python::PYTHON;

#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// A dfs program that is built already
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Options of the mount, besides those that it has anyway
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    mount_options: Vec<String>,
    /// Run only these, by their names; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Operations of fsx for each of its seeds
    #[arg(long, value_name = "N", default_value_t = suites::FSX_OPERATIONS)]
    fsx_operations: u64,
    /// Kill the datanodes in turn while fsx runs, one every 5 s, and start them again
    #[arg(long)]
    kill_datanodes: bool,
}

/// Where a program runs, and what it may use.
struct Place<'a> {
    /// A fresh folder on the mount.
    dir: PathBuf,
    /// A fresh folder on a local disk.
    local: PathBuf,
    /// Where outputs go.
    logs: PathBuf,
    cluster: &'a Cluster,
    options: &'a Options,
}

/// Fails, or returns what there is to say.
type Check = fn(&Place) -> Result<String>;

/// In this order. The last one leaves a namenode dead.
const CHECKS: [(&str, Check); 17] = [
    ("git", everyday::git),
    ("cargo", everyday::cargo_build),
    ("tar", everyday::tar),
    ("rsync", everyday::rsync),
    ("cp-sparse", everyday::copy_sparse),
    ("dpkg-deb", everyday::dpkg_deb),
    ("mv", everyday::mv),
    ("sqlite-delete", sqlite::rollback_journal),
    ("sqlite-wal", sqlite::write_ahead_log),
    ("fio", load::fio),
    ("stress-ng", load::stress_ng),
    ("dbench", load::dbench),
    ("fsx", suites::fsx),
    ("python", python::own_tests),
    ("pjdfstest", suites::pjdfstest),
    ("fsck", fsck),
    // pjdfstest again; a short name, because it becomes part of the paths of sockets, which have 108 bytes.
    ("degraded", suites::pjdfstest_with_a_namenode_down),
];

pub fn run(options: &Options) -> Result<()> {
    prerequisites::install()?;
    run_on(&program(options.program.as_deref())?, options)
}

/// As `cargo xtask test` does it.
pub fn run_all(program: &Path) -> Result<()> {
    let fsx_operations = suites::FSX_OPERATIONS;
    let (mount_options, only) = (Vec::new(), Vec::new());
    run_on(program, &Options { program: None, mount_options, only, fsx_operations, kill_datanodes: false })
}

fn run_on(program: &Path, options: &Options) -> Result<()> {
    if let Some(name) = options.only.iter().find(|only| CHECKS.iter().all(|(name, _)| name != only)) {
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        bail!("there is no {name}; there are {}", names.join(", "));
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: these need root, to mount by mount(8) and to act as other users");
        return Ok(());
    }
    prerequisites::install_for_programs()?;
    let dir = std::env::temp_dir().join(format!("dfs-programs-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let result = on_a_mount(program, options, &dir);
    // With the cluster stopped; on a failure the logs stay for whoever looks.
    match &result {
        Ok(()) => fs::remove_dir_all(&dir)?,
        Err(_) => eprintln!("the logs are in {}", dir.display()),
    }
    result
}

fn on_a_mount(program: &Path, options: &Options, dir: &Path) -> Result<()> {
    let (mount, logs) = (dir.join("mount"), dir.join("logs"));
    fs::create_dir_all(&mount)?;
    fs::create_dir_all(&logs)?;
    let cluster = Cluster::up(program, &dir.join("data"), Layout::default()).context("start the cluster")?;
    let _helper = MountHelper::install(program)?;
    let mounted = Mounted::new(&cluster, mount, &options.mount_options, &logs)?;
    for (name, check) in CHECKS {
        if !options.only.is_empty() && options.only.iter().all(|only| only != name) {
            continue;
        }
        let place = Place {
            dir: mounted.0.join(name),
            local: dir.join("local").join(name),
            logs: logs.clone(),
            cluster: &cluster,
            options,
        };
        fs::create_dir(&place.dir)?;
        fs::create_dir_all(&place.local)?;
        let start = Instant::now();
        let said = check(&place).with_context(|| format!("{name} on the mount"))?;
        eprintln!("   {name:<24} {:>6.1} s  {said}", start.elapsed().as_secs_f64());
    }
    mounted.unmount()
}

/// A mount made by mount(8). Dropped, it is detached: a failed check may have left something that uses it.
struct Mounted(PathBuf);

impl Mounted {
    fn new(cluster: &Cluster, dir: PathBuf, options: &[String], logs: &Path) -> Result<Mounted> {
        let mut mount = Command::new("mount");
        // What fstab lines carry for others must be no obstacle. Programs and devices are as on a local disk.
        mount.args(["-t", "dfs", "-o", "suid,dev,_netdev,x-systemd.automount"]);
        mount.args(options.iter().flat_map(|option| ["-o", option])).arg(cluster.config()).arg(&dir);
        run::run("mount", logs, &mut mount, Duration::from_secs(60))?;
        let mounted = Mounted(dir);
        let table = fs::read_to_string("/proc/self/mounts")?;
        let line = format!("{} {} fuse.dfs rw,", cluster.config().display(), mounted.0.display());
        ensure!(table.contains(&line), "the mount table does not say `{line}`:\n{table}");
        Ok(mounted)
    }

    fn unmount(self) -> Result<()> {
        let status = Command::new("umount").arg(&self.0).status()?;
        ensure!(status.success(), "umount: {status}");
        Ok(())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let is_mounted = fs::read_to_string("/proc/self/mounts")
            .is_ok_and(|table| table.contains(&format!(" {} fuse.dfs ", self.0.display())));
        if is_mounted && let Err(error) = Command::new("umount").arg("-l").arg(&self.0).status() {
            eprintln!("umount -l {}: {error}", self.0.display());
        }
    }
}

/// After all that: every file has its bytes, and nothing lies about.
fn fsck(place: &Place) -> Result<String> {
    let said = place.cluster.run(["fsck", "/"])?;
    Ok(said.lines().last().unwrap_or_default().to_owned())
}

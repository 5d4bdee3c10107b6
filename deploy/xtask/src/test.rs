//! `cargo xtask test`: what must pass before a change lands.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dfs_cluster::{Cluster, Layout};

use crate::run::{built_dfs, cargo, must};
use crate::{prerequisites, programs, torture};

#[derive(clap::Args)]
pub struct Options {
    /// Leave out the tests that start clusters and mounts
    #[arg(long)]
    quick: bool,
}

pub fn run(options: &Options) -> Result<()> {
    let mut steps = Steps::default();
    steps.step("prerequisites", || {
        prerequisites::install()?;
        // All of it now: the mount tests run some of the programs, too.
        if !options.quick {
            prerequisites::install_for_programs()?;
            prerequisites::install_for_torture()?;
        }
        Ok(())
    })?;
    steps.step("format", || must(&mut cargo(["fmt", "--all", "--check"])))?;
    steps.step("lints", || {
        must(cargo(["clippy", "--release", "--workspace", "--all-targets"]).args(["--", "--deny", "warnings"]))
    })?;
    // All targets at once: built apart, program and tests would differ in the features of what they share,
    // and half of the packages would be compiled twice.
    steps.step("build", || must(&mut cargo(["build", "--release", "--workspace", "--all-targets"])))?;
    let program = built_dfs()?;
    steps.step("unit and property tests", || {
        must(cargo(["test", "--release", "--workspace"]).args(["--exclude", "dfs-cluster"]))
    })?;
    if !options.quick {
        steps.step("cluster tests", || {
            let mut tests = cargo(["test", "--release", "--package", "dfs-cluster"]);
            // One cluster at a time: eight processes each are enough for two cores.
            tests.args(["--", "--test-threads=1", "--nocapture"]).env("DFS_TEST_PROGRAM", &program);
            must(&mut tests)
        })?;
        steps.step("mount tests", || mount_tests(&program))?;
        steps.step("programs on the mount", || programs::run_all(&program))?;
        steps.step("torture, a short part", || torture::run_short(&program))?;
    }
    steps.summary();
    Ok(())
}

pub fn fix() -> Result<()> {
    must(cargo(["clippy", "--release", "--workspace", "--all-targets"]).args([
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ]))?;
    must(&mut cargo(["fmt", "--all"]))
}

/// The promises of `fuse/SEMANTICS.md`, checked on two mounts of a real cluster; and again where the first writes names
/// behind.
fn mount_tests(program: &Path) -> Result<()> {
    let dir = std::env::temp_dir().join(format!("dfs-mount-tests-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let mounts = vec![dir.join("mount1"), dir.join("mount2")];
    let result = Cluster::up(program, &dir.join("data"), Layout { mounts, ..Layout::default() })
        .context("start the cluster")
        .and_then(|cluster| {
            mount_tests_on(cluster.mount(0), cluster.mount(1))?;
            let behind = dir.join("writebehind");
            std::fs::create_dir(&behind)?;
            let on = behind.to_str().context("a folder with a name in UTF-8")?;
            cluster.run(["mount", "-o", "writebehind", on])?;
            let tested = mount_tests_on(&behind, cluster.mount(1));
            let unmounted = cluster.run(["umount", on]);
            tested.and(unmounted.map(|_| ()))
        });
    // With the cluster stopped; on a failure its logs stay for whoever looks.
    match &result {
        Ok(()) => std::fs::remove_dir_all(&dir)?,
        Err(_) => eprintln!("the cluster's logs are in {}", dir.display()),
    }
    result
}

fn mount_tests_on(first: &Path, second: &Path) -> Result<()> {
    // Of the whole workspace, as they were built.
    let mut tests = cargo(["test", "--release", "--workspace", "--test", "mount"]);
    must(tests.env("DFS_TEST_MOUNT", first).env("DFS_TEST_MOUNT2", second))
}

#[derive(Default)]
struct Steps(Vec<(&'static str, Duration)>);

impl Steps {
    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("== {name}");
        let start = Instant::now();
        let result = work().with_context(|| format!("{name} failed"));
        self.0.push((name, start.elapsed()));
        result
    }

    fn summary(&self) {
        for (name, time) in &self.0 {
            eprintln!("{name:<26} {:>7.1} s", time.as_secs_f64());
        }
    }
}

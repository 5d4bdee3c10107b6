//! Python's own tests of what it does with files: of `os`, `shutil`, `tempfile` and others.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Place;
use super::run::run;
use crate::prerequisites;

/// Debian's, which its tests are packaged for; there may be others in the path.
pub const PYTHON: &str = "/usr/bin/python3";

const RUNNER: &str = include_str!("python_tests.py");

/// Those that are about files, without what takes long for other reasons.
const TESTS: [&str; 9] = [
    "test.test_os",
    "test.test_posix",
    "test.test_shutil",
    "test.test_tempfile",
    "test.test_glob",
    "test.test_mailbox",
    "test.test_fileio",
    "test.test_mmap",
    "test.test_fcntl",
];

/// Left out, because they go 30 directories deep with 100 readers at a time: the kernel asks the mount process about each
/// part of each path, a quarter of a million times. They pass, and take most of a minute.
const LEFT_OUT: [&str; 2] = ["-test_walk_many_open_files", "-test_glob_many_open_files"];

/// Several times what they take on two busy cores.
const DEADLINE: Duration = Duration::from_secs(600);

/// What became of the tests.
struct Outcome {
    ran: usize,
    failed: BTreeSet<String>,
    skipped: BTreeSet<String>,
}

/// On a local disk and on the mount: what fails or is skipped there may do so here, and nothing else.
pub fn own_tests(place: &Place) -> Result<String> {
    prerequisites::install_python_tests()?;
    let local = run_in(place, &place.local, "python-local")?;
    let here = run_in(place, &place.dir, "python")?;
    let worse: Vec<&String> = here.failed.difference(&local.failed).collect();
    ensure!(worse.is_empty(), "these fail here and not on a local disk: {worse:?}; python.log says why");
    let left_out: Vec<&String> = here.skipped.difference(&local.skipped).collect();
    ensure!(left_out.is_empty(), "these are skipped here and not on a local disk: {left_out:?}; python.log says why");
    ensure!(here.ran == local.ran, "{} tests ran here, {} on a local disk", here.ran, local.ran);
    Ok(format!(
        "{} tests, {} skipped and {} failed as on a local disk",
        here.ran,
        here.skipped.len(),
        here.failed.len()
    ))
}

fn run_in(place: &Place, dir: &Path, log: &str) -> Result<Outcome> {
    let (runner, work) = (place.local.join("python_tests.py"), dir.join("python"));
    fs::write(&runner, RUNNER)?;
    fs::create_dir(&work)?;
    let mut python = Command::new(PYTHON);
    // Both make their files in the working directory and in TMPDIR.
    python.arg(&runner).args(TESTS).args(LEFT_OUT).current_dir(&work).env("TMPDIR", &work);
    let said = run(log, &place.logs, &mut python, DEADLINE)?;
    let named = |verdict: &str| -> BTreeSet<String> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(verdict));
        lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
    };
    let ran = said.lines().rev().find_map(|line| line.strip_prefix("ran ")).context("it did not say how many ran")?;
    Ok(Outcome { ran: ran.parse()?, failed: named("failed "), skipped: named("skipped ") })
}

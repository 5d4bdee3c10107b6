//! Suites that others wrote for file systems: pjdfstest and fsx.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfs_cluster::{Cluster, fault};

use super::Place;
use super::run::{Running, run};
use super::tools::{FSX, PJDFSTEST};

/// A small part of what is worth running now and then: `cargo xtask programs --only fsx --fsx-operations 200000`.
pub const FSX_OPERATIONS: u64 = 5000;

const FSX_SEEDS: [u64; 4] = [1, 2, 3, 4];

/// For one operation, on average; an operation is a few ms on two busy cores.
const FSX_OPERATION: Duration = Duration::from_millis(100);

/// From one datanode's death to the next one's, and for how long it is away: long enough to be missed by every chunk
/// that is open, and short enough that nothing is copied elsewhere for it.
const KILL_EVERY: Duration = Duration::from_secs(5);
const AWAY: Duration = Duration::from_secs(2);

/// For every replica of what was written meanwhile to be whole again.
const HEALING: Duration = Duration::from_secs(180);

/// Not in longer runs: once in 65,536 times this fsx asks for no bytes, which every file system refuses, and then it ends
/// and says that the call is not supported (seed 4 at operation 27,713, on ext4 as well).
const POSIX_FALLOCATE: u32 = 5;

/// Holes are made in what was written before and filled again.
const PUNCH_HOLE: u32 = 5;

/// Within the file: what is copied shares its extents with the original until one of them is written.
const COPY_FILE_RANGE: u32 = 5;

/// On one file for each seed, all at the same time: reads, writes, maps, truncations, allocations, syncs, reopening.
pub fn fsx(place: &Place) -> Result<String> {
    let (operations, kill_datanodes) = (place.options.fsx_operations, place.options.kill_datanodes);
    let program = FSX.program()?;
    let config = place.local.join("fsx.toml");
    let posix_fallocate = if operations > FSX_OPERATIONS { 0 } else { POSIX_FALLOCATE };
    let text = format!(
        "flen = 1048576\nopsize = {{ max = 65536 }}\nweights = {{ read = 10, write = 10, mapread = 10, mapwrite = 10, \
         truncate = 10, punch_hole = {PUNCH_HOLE}, posix_fallocate = {posix_fallocate}, copy_file_range = {COPY_FILE_RANGE}, \
         fsync = 5, fdatasync = 5, close_open = 1, invalidate = 1 }}\n"
    );
    fs::write(&config, text)?;
    let mut deadline = Duration::from_secs(60) + FSX_OPERATION * u32::try_from(operations).context("too many")?;
    if kill_datanodes {
        deadline *= 2;
    }
    let start = |seed: &u64| {
        let mut fsx = Command::new(&program);
        fsx.arg("-f").arg(&config).args(["-S", &seed.to_string(), "-N", &operations.to_string(), "-P"]);
        fsx.arg(&place.local).arg(place.dir.join(format!("seed{seed}")));
        Running::start(&format!("fsx-{seed}"), &place.logs, &mut fsx, deadline)
    };
    let began = Instant::now();
    let mut running: Vec<Running> = FSX_SEEDS.iter().map(start).collect::<Result<_>>()?;
    let killed = match kill_datanodes {
        true => kill_in_turn(place.cluster, &mut running),
        false => Ok(0),
    };
    // All of them are waited for, whatever the first one says.
    let ended: Vec<Result<String>> = running.into_iter().map(Running::finish).collect();
    for said in ended {
        let said = said?;
        ensure!(said.contains("All operations completed A-OK!"), "fsx says:\n{said}");
    }
    let rate = (operations * FSX_SEEDS.len() as u64) as f64 / began.elapsed().as_secs_f64();
    let mut said = format!("seeds {FSX_SEEDS:?}, {operations} operations each, {rate:.0}/s");
    if kill_datanodes {
        said += &format!(", {} datanodes killed", killed?);
        let healed = place.cluster.wait_healthy(HEALING)?;
        said += &format!(", healthy {:.0} s later", healed.as_secs_f64());
    }
    Ok(said)
}

/// SIGKILL to one datanode after the other, of which never more than one is away, until every program has ended. Returns
/// how many were killed.
fn kill_in_turn(cluster: &Cluster, running: &mut [Running]) -> Result<usize> {
    let mut wait = |time: Duration| -> Result<bool> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let ended = running.iter_mut().map(Running::has_ended).collect::<Result<Vec<bool>>>()?;
            if ended.iter().all(|ended| *ended) {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(false)
    };
    let nodes = cluster.datanodes();
    let mut killed = 0;
    loop {
        killed += 1;
        let fault = fault::process::kill(cluster, &nodes[killed % nodes.len()..][..1])?;
        let ended = wait(AWAY)?;
        fault.undo()?;
        if ended || wait(KILL_EVERY - AWAY)? {
            return Ok(killed);
        }
    }
}

/// What pjdfstest does not try here, by a part of the names, and why. Anything else that it skips is an error.
const SKIPPED: [(&str, &str); 2] = [
    ("link::link_count_max", "pathconf of a FUSE mount does not tell how many names a file may have"),
    (
        "::erofs_",
        "run by themselves: before them the suite leaves a removed file open, and then nothing can be remounted",
    ),
];

/// Tests that remount as read-only.
const REMOUNTING: &str = "erofs";

/// It takes a minute and a half on two cores that have nothing else to do.
const PJDFSTEST_DEADLINE: Duration = Duration::from_secs(900);

pub fn pjdfstest(place: &Place) -> Result<String> {
    run_pjdfstest(place, "pjdfstest")
}

/// The same without a majority to spare: what is promised does not depend on it.
pub fn pjdfstest_with_a_namenode_down(place: &Place) -> Result<String> {
    let leader = place.cluster.leader(Duration::from_secs(30))?;
    place.cluster.kill(&leader)?;
    let said = run_pjdfstest(place, "pjdfstest-degraded");
    place.cluster.start(&leader)?;
    Ok(format!("{} without {leader}", said?))
}

fn run_pjdfstest(place: &Place, log: &str) -> Result<String> {
    let program = PJDFSTEST.program()?;
    let other = place.local.join("other-file-system");
    fs::create_dir(&other)?;
    let run_part = |part: Option<&str>| -> Result<(String, String)> {
        let log = format!("{log}{}", part.map(|part| format!("-{part}")).unwrap_or_default());
        let config = place.local.join(format!("{log}.toml"));
        // Two users of every Debian. Times are nanoseconds apart, and the longest pause between two calls is what counts.
        let text = format!(
            "features = {{ posix_fallocate = {{}}, utime_now = {{}}, utimensat = {{}}, rename_ctime = {{}}, \
             secondary_fs = \"{}\" }}\n\
             settings = {{ naptime = 0.02, expected_failures = [], allow_remount = {} }}\n\
             dummy_auth = {{ entries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]] }}\n",
            other.display(),
            part == Some(REMOUNTING),
        );
        fs::write(&config, text)?;
        let mut suite = Command::new(&program);
        suite.arg("-c").arg(&config).arg("-p").arg(&place.dir).args(part);
        let said = run(&log, &place.logs, &mut suite, PJDFSTEST_DEADLINE)?;
        let summary = said.lines().find_map(|line| line.strip_prefix("Summary: ")).context("it printed no summary")?;
        ensure!(summary.starts_with("0 failed,"), "{summary}");
        Ok((summary.to_owned(), said.clone()))
    };
    let (summary, said) = run_part(None)?;
    let (remounting, said_of_these) = run_part(Some(REMOUNTING))?;
    let skipped = |said: &str| -> Vec<String> {
        said.lines().filter_map(|line| Some(line.strip_suffix("skipped")?.trim().to_owned())).collect()
    };
    for name in skipped(&said) {
        ensure!(
            SKIPPED.iter().any(|(known, _)| name.contains(known)),
            "{name} was skipped, and nobody said why it may be"
        );
    }
    ensure!(skipped(&said_of_these).is_empty(), "tests that remount were skipped: {remounting}");
    let why: Vec<String> = SKIPPED.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    Ok(format!("{summary}; remounting: {remounting} ({})", why.join("; ")))
}

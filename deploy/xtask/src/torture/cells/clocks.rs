//! M14: clocks that jump, that stand elsewhere, and that run at another rate. Nothing is decided by what a wall clock
//! says, and no two nodes compare what their monotonic ones do: so no application notices, nobody stands for election,
//! and stamps never go back.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfs_cluster::fault::clock::{Clocks, Leftovers};
use dfs_cluster::{Invariant, OnError};

use crate::torture::cells::kills::with_everybody_at_work;
use crate::torture::plan::{Kind, Planned, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait};

/// Elections that a round may have for other reasons: a machine that is shared stops for a second now and then.
const ELECTIONS_MAX: u64 = 3;

/// A clock that drifts is seen when it is off by so much.
const DRIFT_SEEN_S: i64 = 2;

pub fn that_jump(run: &mut Run) -> Result<()> {
    wrong_clocks(run, Kind::Clocks)
}

pub fn at_another_rate(run: &mut Run) -> Result<()> {
    wrong_clocks(run, Kind::ClockRates)
}

fn wrong_clocks(run: &mut Run, kind: Kind) -> Result<()> {
    // Before the cluster, so that it is dropped after it.
    let _leftovers = Leftovers::watch();
    let bed = run.plain_bed("clocks", &[])?;
    let clocks = Clocks::install(&bed.cluster, &bed.all_names(), &run.dir)?;
    bed.start_all()?;
    let (mut elections, mut seen) = (0, 0);
    for (part, turn) in plan(kind, run.seed, run.rounds, SHAPE).into_iter().enumerate() {
        if !run.goes_on() {
            break;
        }
        with_everybody_at_work(run, &bed, part, OnError::Stop, |run, work| {
            work.go_on(turn.after_steps.min(60))?;
            let mut stamps = vec![stamp(&bed, part, "before")?];
            let term = term(&bed)?;
            let WasWrong { node, measured, caused } = wrong_clock(&bed, &clocks, &turn, || {
                stamps.push(stamp(&bed, part, "during")?);
                run.verdict.hold(Invariant::CallsEnd, work.go_on(20))
            })?;
            seen += u64::from(measured);
            stamps.push(stamp(&bed, part, "after")?);
            run.verdict.hold(Invariant::CallsEnd, work.go_on(20))?;
            let stood = self::term(&bed)? - term;
            elections += stood;
            run.verdict.hold(Invariant::OneLeader, no_storm(&node, stood.saturating_sub(caused)))?;
            run.verdict.hold(Invariant::Linearizable, only_forward(&stamps))?;
            run.done.rounds += 1;
            let ahead = Duration::from_nanos(stamps[1].abs_diff(stamps[0]) as u64).as_secs();
            run.say(run.done.rounds, &turn.fault, format!("{node}: {stood} elections, stamps {ahead} s on"));
            Ok(())
        })?;
    }
    run.done.figures.push(format!("{elections} elections; in {seen} rounds the datanodes' skew showed it"));
    Ok(())
}

fn no_storm(node: &str, elections: u64) -> Result<()> {
    ensure!(elections <= ELECTIONS_MAX, "{elections} elections while the clock of {node} was wrong");
    Ok(())
}

fn only_forward(stamps: &[i128]) -> Result<()> {
    ensure!(stamps.is_sorted(), "stamps of files made one after the other go back: {stamps:?}");
    Ok(())
}

struct WasWrong {
    node: String,
    /// The cluster has seen how wrong.
    measured: bool,
    /// Elections that were asked for, or that followed when a leader was killed to be started anew.
    caused: u64,
}

/// Does `meanwhile` with the clock wrong.
fn wrong_clock(bed: &Bed, clocks: &Clocks, turn: &Turn, meanwhile: impl FnOnce() -> Result<()>) -> Result<WasWrong> {
    match &turn.fault {
        Planned::ClockJump { target, seconds } => {
            let node = bed.node(target)?;
            let wrong = clocks.jump(&node, *seconds)?;
            let begun = Instant::now();
            // What can be measured is the difference between a datanode and the leader.
            let measurable = *target == Target::Leader || bed.cluster.datanodes().contains(&node);
            if measurable {
                wait(&format!("the clock of {node} is seen to be wrong"), DEADLINE, || skewed(bed, *seconds))?;
            }
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(turn.hold_ms).saturating_sub(begun.elapsed()));
            wrong.undo()?;
            Ok(WasWrong { node, measured: measurable, caused: 0 })
        }
        Planned::ClockRate { target, percent } => {
            let node = bed.node(target)?;
            let wrong = clocks.start_at_rate(&bed.cluster, &node, *percent)?;
            let begun = Instant::now();
            bed.cluster.wait_caught_up(DEADLINE)?;
            let leads = *target == Target::Leader;
            if leads && bed.cluster.leader(DEADLINE)? != node {
                // It was killed for it, and leads no more.
                bed.cluster.run(["namenode", "transfer-leader", &node])?;
            }
            // What can be measured is the difference between a datanode and the leader.
            let measurable = leads || bed.cluster.datanodes().contains(&node);
            if measurable {
                wait(&format!("the clock of {node} is seen to drift"), DEADLINE, || skewed(bed, DRIFT_SEEN_S))?;
            }
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(turn.hold_ms).saturating_sub(begun.elapsed()));
            wrong.undo()?;
            bed.cluster.wait_caught_up(DEADLINE)?;
            Ok(WasWrong { node, measured: measurable, caused: if leads { 3 } else { 0 } })
        }
        Planned::ClocksAhead { target, seconds } => {
            let node = bed.node(target)?;
            let ahead = clocks.start_ahead(&bed.cluster, &node, *seconds)?;
            bed.cluster.wait_caught_up(DEADLINE)?;
            ensure!(uptime_differs(bed, &node, *seconds)?, "{node} has the clocks of everybody");
            meanwhile()?;
            std::thread::sleep(Duration::from_millis(turn.hold_ms));
            ahead.undo()?;
            bed.cluster.wait_caught_up(DEADLINE)?;
            Ok(WasWrong { node, measured: false, caused: 0 })
        }
        _ => unreachable!("plans of clocks"),
    }
}

/// Whether a datanode's clock and the leader's differ by most of that.
fn skewed(bed: &Bed, seconds: i64) -> Result<bool> {
    let Ok(status) = bed.cluster.status() else { return Ok(false) };
    let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    let skews = nodes.iter().filter_map(|node| node["skew_ms"].as_i64());
    Ok(skews.map(i64::unsigned_abs).any(|ms| ms > 900 * seconds.unsigned_abs()))
}

/// Whether the process is in a time namespace with that offset.
fn uptime_differs(bed: &Bed, node: &str, seconds: u64) -> Result<bool> {
    let path = format!("/proc/{}/timens_offsets", bed.cluster.pid(node)?.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let offset = |line: &str| line.split_whitespace().nth(1).and_then(|offset| offset.parse::<u64>().ok());
    Ok(text.lines().filter_map(offset).filter(|offset| *offset == seconds).count() == 2)
}

/// The term, as the leader has it.
fn term(bed: &Bed) -> Result<u64> {
    bed.cluster.leader(DEADLINE)?;
    bed.cluster.status()?["term"].as_u64().context("a status has a term")
}

/// When a new file was made, in nanoseconds, as its inode says.
fn stamp(bed: &Bed, part: usize, when: &str) -> Result<i128> {
    let name = format!("stamp{part}-{when}");
    File::create_new(bed.mounts[0].join(&name))?;
    let metadata = fs::metadata(bed.mounts[1].join(&name))?;
    fs::remove_file(bed.mounts[0].join(&name))?;
    Ok(i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()))
}

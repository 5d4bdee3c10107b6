//! M7 and M21: disks that fail to sync, and disks that are slow to.

use std::time::{Duration, Instant};

use anyhow::Result;
use dfs_cluster::fault::{calls, power};
use dfs_cluster::{Invariant, OnError};

use crate::torture::plan::{Kind, Planned, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait};

/// After a failed sync nobody believes that disk again, so each round has a cluster of its own.
pub fn sync_fails(run: &mut Run) -> Result<()> {
    for (number, turn) in (1..).zip(plan(Kind::FailingSyncs, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let bed = run.bed(&format!("round{number}"), &[])?;
        one_failing_sync(run, &bed, number, &turn)?;
        run.done.rounds += 1;
    }
    Ok(())
}

fn one_failing_sync(run: &mut Run, bed: &Bed, number: u64, turn: &Turn) -> Result<()> {
    let Planned::SyncFails { target, nth, for_ever } = &turn.fault else { unreachable!("plans of failing syncs") };
    let ledger = bed.ledger("ledger", run.seed.wrapping_add(number), OnError::Stop)?;
    bed.work(&ledger, turn)?;
    let node = bed.node(target)?;
    let begun = Instant::now();
    let failing = calls::sync_fails(&bed.cluster, &node, *nth, *for_ever)?;
    let noticed = match target {
        Target::Node(_) => wait("the datanode gives up its volume", DEADLINE, || volume_has_failed(bed, &node)),
        _ => wait("the namenode stops", DEADLINE, || Ok(!bed.cluster.is_running(&node))),
    };
    run.verdict.hold(Invariant::AcknowledgedSurvives, noticed)?;
    let noticed = begun.elapsed();
    failing.undo()?;
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(50, DEADLINE))?;
    let report = ledger.abandon()?;
    run.expect_no_errors(&report.errors);
    // Whatever was acknowledged on the word of the failed disk would be gone now.
    let mut nodes = bed.cluster.nodes();
    if matches!(target, Target::Node(_)) {
        // It stays away until an operator has replaced its disk.
        nodes.retain(|name| *name != node);
        bed.cluster.kill(&node)?;
    }
    power::cut(&bed.cluster, &nodes)?.undo()?;
    bed.cluster.wait_caught_up(DEADLINE)?;
    bed.cluster.wait_healthy(DEADLINE)?;
    run.done.acknowledged += report.steps;
    report.check(&bed.mounts[1].join("ledger"), &mut run.verdict);
    run.say(number, &turn.fault, format!("{node} gave up after {:.1} s", noticed.as_secs_f64()));
    Ok(())
}

fn volume_has_failed(bed: &Bed, node: &str) -> Result<bool> {
    if !bed.cluster.is_running(node) {
        return Ok(true);
    }
    let status = bed.cluster.status()?;
    let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
    let volumes = nodes.iter().filter(|found| found["name"] == node).flat_map(|found| found["volumes"].as_array());
    Ok(volumes.flatten().any(|volume| !volume["failed"].is_null()))
}

/// How long what is measured is run.
const MEASURED_STEPS: u64 = 300;

pub fn slow_syncs(run: &mut Run) -> Result<()> {
    let bed = run.bed("slow", &[])?;
    for (number, turn) in (1..).zip(plan(Kind::SlowSyncs, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let Planned::SlowSync { target, delay_ms } = &turn.fault else { unreachable!("plans of slow syncs") };
        let healthy = measure(run, &bed, &format!("healthy{number}"))?;
        let node = bed.node(target)?;
        let slow = calls::sync_is_slow(&bed.cluster, &node, Duration::from_millis(*delay_ms))?;
        let slowed = measure(run, &bed, &format!("slow{number}"));
        slow.undo()?;
        let slowed = slowed?;
        let line = format!(
            "p99 of calls {:.0} ms healthy, {:.0} ms with {node} slow",
            healthy.as_secs_f64() * 1e3,
            slowed.as_secs_f64() * 1e3
        );
        run.say(number, &turn.fault, &line);
        run.done.figures.push(line);
        run.done.rounds += 1;
    }
    Ok(())
}

/// The time within which 99 of 100 calls return.
fn measure(run: &mut Run, bed: &Bed, name: &str) -> Result<Duration> {
    let ledger = bed.ledger(name, run.seed, OnError::Stop)?;
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(MEASURED_STEPS, DEADLINE))?;
    let report = ledger.abandon()?;
    run.expect_no_errors(&report.errors);
    run.done.acknowledged += report.steps;
    report.check(&bed.mounts[1].join(name), &mut run.verdict);
    bed.clear(name)?;
    Ok(report.within(990))
}

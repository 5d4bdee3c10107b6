//! M15: disks that are full, and have room again later.

use std::time::Duration;

use anyhow::Result;
use dfs_cluster::fault::{Fault, disk};
use dfs_cluster::{Invariant, OnError};
use rustix::io::Errno;

use crate::torture::plan::{Kind, Planned, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE};

pub fn full_disks(run: &mut Run) -> Result<()> {
    for (number, turn) in (1..).zip(plan(Kind::FullDisks, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let bed = run.bed(&format!("round{number}"), &[])?;
        one_full(run, &bed, number, &turn)?;
        run.done.rounds += 1;
    }
    Ok(())
}

fn one_full(run: &mut Run, bed: &Bed, number: u64, turn: &Turn) -> Result<()> {
    let Planned::FullDisk(targets) = &turn.fault else { unreachable!("plans of full disks") };
    let ledger = bed.ledger("ledger", run.seed.wrapping_add(number), OnError::GoOn)?;
    bed.work(&ledger, turn)?;
    let nodes = targets.iter().map(|target| bed.node(target)).collect::<Result<Vec<String>>>()?;
    let full = nodes.iter().map(|node| disk::fill(&bed.cluster, node)).collect::<Result<Vec<Fault>>>()?;
    // Namenodes have room for tens of megabytes of log set aside. A snapshot needs new room at once; that it fails is
    // no surprise.
    let snapshot = bed.cluster.output(["namenode", "snapshot"])?;
    std::thread::sleep(Duration::from_millis(5 * turn.hold_ms));
    full.into_iter().try_for_each(Fault::undo)?;
    for node in bed.cluster.nodes() {
        if !bed.cluster.is_running(&node) {
            let text = format!("{node} ended because a disk was full: {}", bed.cluster.log_tail(&node, 3));
            run.verdict.broken(Invariant::CallsEnd, text);
        }
    }
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(50, DEADLINE))?;
    let report = ledger.abandon()?;
    let no_space = Some(Errno::NOSPC.raw_os_error());
    let others: Vec<&str> =
        report.errors.iter().filter(|error| error.errno != no_space).map(|error| error.text.as_str()).collect();
    run.expect_no_errors(&others);
    run.settle(bed, &report)?;
    let snapshot = if snapshot.status.success() { "made" } else { "refused" };
    let outcome = format!("{} steps, {} refused, snapshot {snapshot}", report.steps, report.errors.len());
    run.say(number, &turn.fault, outcome);
    Ok(())
}

//! M6: a node dies at the k-th call that changes its disk.

use std::time::Duration;

use anyhow::Result;
use dfs_cluster::fault::calls::crash_at;
use dfs_cluster::{Invariant, OnError};

use crate::torture::plan::{Kind, Planned, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE};

const CRASHES_BETWEEN_CHECKS: usize = 10;

/// Calls come with the work: a number that is not reached by then is not reached by this kind of node.
const STRIKE_DEADLINE: Duration = Duration::from_secs(4);

pub fn at_calls(run: &mut Run) -> Result<()> {
    let bed = run.bed("crashes", &[])?;
    let turns = plan(Kind::CrashPoints, run.seed, run.rounds, SHAPE);
    let mut struck = [0u64; 3];
    for (part, turns) in turns.chunks(CRASHES_BETWEEN_CHECKS).enumerate() {
        if !run.goes_on() {
            break;
        }
        let name = format!("part{part}");
        let ledger = bed.ledger(&name, run.seed.wrapping_add(part as u64), OnError::Stop)?;
        ledger.go_on(20, DEADLINE)?;
        for turn in turns {
            let outcome = one_crash(&bed, turn, &ledger);
            let (hit, role) = run.verdict.hold(Invariant::CallsEnd, outcome)?;
            struck[role] += u64::from(hit);
            run.done.rounds += 1;
            run.say(run.done.rounds, &turn.fault, if hit { "struck" } else { "not reached" });
        }
        let report = ledger.abandon()?;
        run.expect_no_errors(&report.errors);
        let at_rest = run.settle(&bed, &report)?;
        run.say(run.done.rounds, "all checked", format!("{} steps, {} chunks", report.steps, at_rest.chunks));
        bed.clear(&name)?;
    }
    let [leader, follower, datanode] = struck;
    run.done.figures.push(format!("crash points struck: {leader} leader, {follower} follower, {datanode} datanode"));
    Ok(())
}

/// Whether it struck, and which role: leader, follower, datanode.
fn one_crash(bed: &Bed, turn: &Turn, ledger: &dfs_cluster::Ledger) -> Result<(bool, usize)> {
    let Planned::Crash { target, calls, k, snapshot } = &turn.fault else { unreachable!("plans of crash points") };
    let node = bed.node(target)?;
    let crash = crash_at(&bed.cluster, &node, *calls, *k)?;
    if *snapshot {
        // It fails when the leader dies of it.
        let _ = bed.cluster.output(["namenode", "snapshot"])?;
    }
    let struck = crate::torture::run::wait("it strikes", STRIKE_DEADLINE, || Ok(crash.has_struck())).is_ok();
    crash.undo()?;
    bed.cluster.wait_caught_up(DEADLINE)?;
    ledger.go_on(10, DEADLINE)?;
    let role = match target {
        Target::Leader => 0,
        Target::Follower(_) => 1,
        Target::Node(_) => 2,
    };
    Ok((struck, role))
}

//! M4 and M5: the power goes, and with it everything that was not synced.

use std::time::{Duration, Instant};

use anyhow::Result;
use dfs_cluster::fault::{power, process};
use dfs_cluster::{Invariant, LedgerReport, OnError};

use crate::torture::plan::{Kind, Planned, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE};

pub fn of_all(run: &mut Run) -> Result<()> {
    cuts(run, Kind::PowerCutsOfAll)
}

pub fn of_some(run: &mut Run) -> Result<()> {
    cuts(run, Kind::PowerCuts)
}

fn cuts(run: &mut Run, kind: Kind) -> Result<()> {
    let bed = run.bed("power", &[])?;
    let mut longest = Duration::ZERO;
    for (number, turn) in (1..).zip(plan(kind, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        longest = longest.max(one_cut(run, &bed, number, &turn)?);
        run.done.rounds += 1;
    }
    run.done.figures.push(format!("serving at most {:.1} s after the restart", longest.as_secs_f64()));
    Ok(())
}

fn one_cut(run: &mut Run, bed: &Bed, number: u64, turn: &Turn) -> Result<Duration> {
    let Planned::PowerCut { nodes, mounts } = &turn.fault else { unreachable!("plans of power cuts") };
    let name = format!("round{number}");
    let ledger = bed.ledger(&name, run.seed.wrapping_add(number), OnError::GoOn)?;
    bed.work(&ledger, turn)?;
    let killed = if *mounts { Some(process::kill(&bed.cluster, &["m1".into(), "m2".into()])?) } else { None };
    let cut = power::cut(&bed.cluster, nodes)?;
    if let Some(killed) = killed {
        // With their machine dead, nothing is written any more: what was told so far counts.
        let report = ledger.abandon()?;
        let restarted = Instant::now();
        cut.undo()?;
        killed.undo()?;
        bed.start_all()?;
        return finish(run, bed, number, turn, &name, &report, restarted.elapsed());
    }
    let restarted = Instant::now();
    cut.undo()?;
    // The writers go on where they were, some of them with an operation that was cut off.
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(1, DEADLINE))?;
    let serving = restarted.elapsed();
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(turn.after_steps / 4, DEADLINE))?;
    let report = ledger.abandon()?;
    finish(run, bed, number, turn, &name, &report, serving)
}

fn finish(
    run: &mut Run,
    bed: &Bed,
    number: u64,
    turn: &Turn,
    name: &str,
    report: &LedgerReport,
    serving: Duration,
) -> Result<Duration> {
    run.settle(bed, report)?;
    let outcome = format!(
        "{} acknowledged, {} errors, serving {:.1} s",
        report.steps,
        report.errors.len(),
        serving.as_secs_f64()
    );
    run.say(number, &turn.fault, outcome);
    bed.clear(name)?;
    Ok(serving)
}

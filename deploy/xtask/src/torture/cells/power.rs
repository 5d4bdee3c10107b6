//! M4, M4C and M5: the power goes, and with it everything that was not synced.

use std::time::{Duration, Instant};

use anyhow::Result;
use dfs_cluster::fault::{power, process};
use dfs_cluster::{Invariant, LedgerReport, OnError, Unsynced, UnsyncedFound};

use crate::torture::plan::{Kind, Planned, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE};

pub fn of_all(run: &mut Run) -> Result<()> {
    cuts(run, Kind::PowerCutsOfAll)
}

/// And of the machines that the clients run on: what they have written and not synced is nowhere then.
pub fn of_everybody(run: &mut Run) -> Result<()> {
    cuts(run, Kind::PowerCutsOfEverybody)
}

pub fn of_some(run: &mut Run) -> Result<()> {
    cuts(run, Kind::PowerCuts)
}

fn cuts(run: &mut Run, kind: Kind) -> Result<()> {
    let bed = run.bed("power", &[])?;
    let mut longest = Duration::ZERO;
    let mut unsynced = UnsyncedFound::default();
    for (number, turn) in (1..).zip(plan(kind, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        longest = longest.max(one_cut(run, &bed, number, &turn, &mut unsynced)?);
        run.done.rounds += 1;
    }
    run.done.figures.push(format!("serving at most {:.1} s after the restart", longest.as_secs_f64()));
    if unsynced.bytes > 0 {
        let UnsyncedFound { bytes, lost, absent, longest } = unsynced;
        let longest = longest.as_secs_f64();
        let absent = if absent > 0 { format!(", and {absent} names") } else { String::new() };
        let figure = format!("{lost} of {bytes} bytes never synced are lost{absent}; longest read {longest:.1} s");
        run.done.figures.push(figure);
    }
    Ok(())
}

fn one_cut(run: &mut Run, bed: &Bed, number: u64, turn: &Turn, unsynced: &mut UnsyncedFound) -> Result<Duration> {
    let Planned::PowerCut { nodes, mounts } = &turn.fault else { unreachable!("plans of power cuts") };
    let name = format!("round{number}");
    let ledger = bed.ledger(&name, run.seed.wrapping_add(number), OnError::GoOn)?;
    // As long as its machine lives, a client sees to it that nothing it has closed is lost. By a mount of its own: a sync
    // of the ledger's would take along what shares a chunk with it.
    let loose = match mounts {
        true => {
            let folder = bed.mounts[1].join(format!("{name}-unsynced"));
            Some(Unsynced::start(&folder, run.seed.wrapping_add(number), bed.cluster.names())?)
        }
        false => None,
    };
    bed.work(&ledger, turn)?;
    // Killed first, which nobody notices at once: a process that is killed says nothing, and its connections end by their
    // timeouts only. The other way round a client would see the datanodes fail, one a moment before the other.
    let names = ["m1".to_owned(), "m2".to_owned()];
    let killed = if *mounts { Some(process::kill(&bed.cluster, &names)?) } else { None };
    let cut = power::cut(&bed.cluster, nodes)?;
    if let Some(killed) = killed {
        // With their machine dead, nothing is written any more: what was told so far counts.
        let report = ledger.abandon()?;
        let loose = loose.map(Unsynced::abandon).transpose()?;
        let restarted = Instant::now();
        cut.undo()?;
        killed.undo()?;
        bed.start_all()?;
        let serving = finish(run, bed, number, turn, &name, &report, restarted.elapsed())?;
        if let Some(loose) = loose {
            let folder = format!("{name}-unsynced");
            let found = loose.check(&bed.mounts[0].join(&folder), &mut run.verdict);
            let absent = if found.absent > 0 { format!(", {} files absent", found.absent) } else { String::new() };
            run.say(number, "", format!("{} of {} bytes never synced are lost{absent}", found.lost, found.bytes));
            unsynced.bytes += found.bytes;
            unsynced.lost += found.lost;
            unsynced.absent += found.absent;
            unsynced.longest = unsynced.longest.max(found.longest);
            bed.clear(&folder)?;
        }
        return Ok(serving);
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

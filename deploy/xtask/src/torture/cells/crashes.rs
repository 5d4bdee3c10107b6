//! M6: a namenode, a datanode and a mount die at the k-th call that changes a disk or tells somebody something, while
//! the cluster repairs, scrubs, makes snapshots, compacts, empties a datanode and deletes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use dfs_cluster::fault::calls::crash_at;
use dfs_cluster::fault::{Fault, process};
use dfs_cluster::{Invariant, Ledger, OnError};

use crate::torture::cells::changes::{duty, insist};
use crate::torture::cells::fronts;
use crate::torture::cells::kills::wait_until_live;
use crate::torture::plan::{CRASHES_BETWEEN_CHECKS, CRASHING_MOUNT, During, Kind, Planned, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait};

/// Calls come with the work: a number that is not reached by then is not reached by this kind of node.
const STRIKE_DEADLINE: Duration = Duration::from_millis(1500);

/// Deleted chunks leave the disk soon, and every replica has its turn to be verified.
const BUSY_DISKS: &str = "trash_delay_s = 1\nscrub_period_s = 60\n";

/// None leads for long.
const BUSY_LEADERS: &str = "[timers]\ncompaction_after_ms = 500\n";

/// Files whose chunks are compacted.
const FRONTS: &str = "fronts";

/// Writers on the mount that dies.
const WRITERS_ON_IT: usize = 2;

/// Crash points that were planned, and those that were reached.
#[derive(Default)]
struct Count {
    planned: u64,
    struck: u64,
}

/// By role, and by what the cluster did.
type Counts = BTreeMap<(&'static str, &'static str), Count>;

pub fn at_calls(run: &mut Run) -> Result<()> {
    // Whoever dies leaves open chunks, for which room is kept until its lease ends.
    let bed = run.roomy_bed("crashes", &[])?;
    bed.configure_datanodes(BUSY_DISKS)?;
    bed.configure_namenodes(BUSY_LEADERS)?;
    let mut counts = Counts::new();
    let mut left = None;
    for (part, turns) in plan(Kind::CrashPoints, run.seed, run.rounds, SHAPE).chunks(CRASHES_BETWEEN_CHECKS).enumerate()
    {
        if !run.goes_on() {
            break;
        }
        let name = format!("part{part}");
        one_part(run, &bed, &name, left.take(), turns, &mut counts)?;
        left = Some(name);
    }
    for role in ["leader", "follower", "datanode", "mount"] {
        let of_role = || counts.iter().filter(|((of, _), _)| *of == role);
        let struck: u64 = of_role().map(|(_, count)| count.struck).sum();
        let planned: u64 = of_role().map(|(_, count)| count.planned).sum();
        let during: Vec<String> = of_role().map(|((_, during), count)| format!("{} {during}", count.struck)).collect();
        run.done.figures.push(format!("{role}: {struck} of {planned} crash points struck ({})", during.join(", ")));
    }
    Ok(())
}

/// Turns during which the cluster has the same to do, with one ledger. What an earlier part has `left` is deleted
/// meanwhile.
fn one_part(
    run: &mut Run,
    bed: &Bed,
    name: &str,
    left: Option<String>,
    turns: &[Turn],
    counts: &mut Counts,
) -> Result<()> {
    let Some(Planned::Crashes { during, .. }) = turns.first().map(|turn| &turn.fault) else { return Ok(()) };
    let ledger = bed.ledger(name, run.seed.wrapping_add(run.done.rounds), OnError::Stop)?;
    ledger.go_on(20, DEADLINE)?;
    let before = run.done.rounds;
    let dead = begin(bed, during)?;
    std::thread::scope(|scope| {
        let deleted = scope.spawn(|| left.map_or(Ok(()), |left| bed.clear(&left)));
        for turn in turns {
            if !run.goes_on() {
                break;
            }
            one_turn(run, bed, turn, &ledger, counts)?;
        }
        let deleted = deleted.join().map_err(|_| anyhow!("the thread that deletes panicked"))?;
        run.verdict.hold(Invariant::CallsEnd, deleted)
    })?;
    end(bed, during, dead)?;
    if *during == During::Compaction {
        let numbers: Vec<u64> = (before + 1..=run.done.rounds).collect();
        fronts::check(&bed.mounts[1].join(FRONTS), &numbers, &mut run.verdict);
        let logs = bed.cluster.namenodes().into_iter().map(|node| bed.cluster.log_since(&node, 0));
        let done: usize = logs.map(|log| log.lines().filter(|line| line.contains("chunks compacted")).count()).sum();
        run.say(run.done.rounds, "compaction", format!("{done} chunks gathered and named so far"));
        bed.clear(FRONTS)?;
    }
    let report = ledger.abandon()?;
    run.expect_no_errors(&report.errors);
    let at_rest = run.settle(bed, &report)?;
    run.say(run.done.rounds, "all checked", format!("{} steps, {} chunks", report.steps, at_rest.chunks));
    Ok(())
}

/// Begins what takes as long as a part.
fn begin<'a>(bed: &'a Bed, during: &During) -> Result<Option<Fault<'a>>> {
    match during {
        During::Repair(node) => process::kill(&bed.cluster, std::slice::from_ref(node)).map(Some),
        During::Serving | During::Snapshots | During::Scrub | During::Compaction | During::Decommission(_) => Ok(None),
    }
}

/// Orders what has to be ordered again and again. It fails where the leader dies of its crash point.
fn order(bed: &Bed, during: &During, round: u64) -> Result<()> {
    let args = match during {
        During::Serving | During::Repair(_) => return Ok(()),
        During::Snapshots => vec!["namenode", "snapshot"],
        During::Scrub => vec!["scrub", "--now"],
        During::Compaction => return fronts::leave(&bed.mounts[0].join(FRONTS), round),
        During::Decommission(node) if round.is_multiple_of(2) => vec!["datanode", "decommission", node],
        During::Decommission(node) => vec!["datanode", "recommission", node],
    };
    let mut command = bed.cluster.dfs([]);
    command.args(args);
    dfs_cluster::output_within(&mut command, DEADLINE).map(drop)
}

fn end(bed: &Bed, during: &During, dead: Option<Fault>) -> Result<()> {
    if let Some(dead) = dead {
        dead.undo()?;
    }
    match during {
        During::Decommission(node) => {
            insist(bed, ["datanode", "recommission", node], || Ok(duty(bed, node)? == "serving")).map(drop)
        }
        During::Repair(node) => wait_until_live(bed, node),
        During::Serving | During::Snapshots | During::Scrub | During::Compaction => Ok(()),
    }
}

/// One process of each role dies, or does not come to its call; all are back at the end.
fn one_turn(run: &mut Run, bed: &Bed, turn: &Turn, ledger: &Ledger, counts: &mut Counts) -> Result<()> {
    let Planned::Crashes { points, during } = &turn.fault else { unreachable!("plans of crash points") };
    run.done.rounds += 1;
    let number = run.done.rounds;
    let on_it = bed.mounts[1].join(format!("on-it{number}"));
    let seed = run.seed.wrapping_add(number);
    let dying = Ledger::start_with(&on_it, WRITERS_ON_IT, seed, OnError::Stop, bed.cluster.names())?;
    let mut armed = Vec::new();
    for point in points {
        let node = bed.node(&point.target)?;
        armed.push((role(&point.target), crash_at(&bed.cluster, &node, point.calls, point.k)?, node));
    }
    order(bed, during, number)?;
    let all = || Ok(armed.iter().all(|(_, crash, _)| crash.has_struck()));
    // Those that have not struck by then are not counted.
    let _ = wait("they strike", STRIKE_DEADLINE, all);
    let mut outcome = Vec::new();
    for (role, crash, node) in armed {
        let struck = crash.has_struck();
        let count = counts.entry((role, during.name())).or_default();
        count.planned += 1;
        count.struck += u64::from(struck);
        outcome.push(if struck { role } else { "-" });
        crash.undo().with_context(|| format!("start {node} again"))?;
    }
    let back = bed.cluster.wait_caught_up(DEADLINE);
    run.verdict.hold(Invariant::CallsEnd, back)?;
    for point in points {
        if let Target::Node(node) = &point.target {
            wait_until_live(bed, node)?;
        }
    }
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(10, DEADLINE))?;
    // Its errors are those of a file system that was taken away.
    let report = dying.abandon()?;
    run.done.acknowledged += report.steps;
    let there = bed.mounts[0].join(format!("on-it{number}"));
    report.check(&there, &mut run.verdict);
    run.say(number, &turn.fault, outcome.join(" "));
    std::fs::remove_dir_all(&there).with_context(|| format!("remove {}", there.display()))
}

fn role(target: &Target) -> &'static str {
    match target {
        Target::Leader => "leader",
        Target::Follower(_) => "follower",
        Target::Newcomer => "newcomer",
        Target::Node(node) if node == CRASHING_MOUNT => "mount",
        Target::Node(_) => "datanode",
    }
}

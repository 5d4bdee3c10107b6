//! M16, M16N and M16B: what operators do to a cluster that serves (datanodes leave or may be away, namenodes come and go, the
//! lead is handed over) while nodes die, or while links are cut. No application notices, nothing is lost, and each change
//! ends or is taken back.

mod balanced;
mod partitioned;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dfs_cluster::fault::process;
use dfs_cluster::{Invariant, Ledger, OnError, Stream, StreamReport, fsck};
use serde_json::Value;

use crate::torture::plan::{Change, Kind, Planned, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait, within};

pub use balanced::under_kills as balanced_under_kills;
pub use partitioned::under_partitions;

/// MiB of each of the files that are there all the time, so that there is something to move.
const STANDING_MIB: u64 = 32;

/// Longer than a round: nothing but the operator ends it.
const MAINTENANCE: &str = "30m";

pub fn under_kills(run: &mut Run) -> Result<()> {
    let bed = run.plain_bed("changes", &[])?;
    let standing = standing(run, &bed)?;
    let mut figures = Figures::default();
    for (number, turn) in (1..).zip(plan(Kind::Changes, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let name = format!("round{number}");
        let ledger = bed.ledger(&name, run.seed.wrapping_add(number), OnError::Stop)?;
        bed.work(&ledger, &turn)?;
        let outcome = change(run, &bed, &turn, &ledger, &mut figures)?;
        run.verdict.hold(Invariant::CallsEnd, ledger.go_on(turn.after_steps.min(60), DEADLINE))?;
        let report = ledger.abandon()?;
        run.expect_no_errors(&report.errors);
        run.settle(&bed, &report)?;
        standing.check(&bed.mounts[1].join("standing"), &mut run.verdict);
        let Planned::Change { change, .. } = &turn.fault else { unreachable!("plans of changes") };
        end(run, &bed, change)?;
        run.done.rounds += 1;
        run.say(number, &turn.fault, format!("{outcome}, {} steps", report.steps));
        bed.clear(&name)?;
    }
    figures.tell(run);
    Ok(())
}

/// Files that are there all the time.
fn standing(run: &mut Run, bed: &Bed) -> Result<StreamReport> {
    let stream = Stream::start(&bed.mounts[0].join("standing"), STANDING_MIB, run.seed)?;
    stream.go_on(3 * STANDING_MIB, DEADLINE)?;
    let standing = stream.finish()?;
    run.expect_no_errors(&standing.errors);
    Ok(standing)
}

#[derive(Default)]
struct Figures {
    /// Kills, and those that came while the change was under way.
    kills: u64,
    in_mid_change: u64,
    /// How long decommissioning took, from the order to its end.
    drains: Vec<Duration>,
    members: u64,
    hand_overs: u64,
    hand_overs_failed: u64,
}

impl Figures {
    fn tell(&mut self, run: &mut Run) {
        let Figures { kills, in_mid_change, members, hand_overs, hand_overs_failed, .. } = self;
        let text = format!("{kills} kills, {in_mid_change} of them in the middle of a change");
        run.done.figures.push(text);
        run.done.figures.extend(drained(&mut self.drains));
        run.done.figures.push(format!(
            "{members} changes of members, {hand_overs} hand-overs, {hand_overs_failed} that a kill prevented"
        ));
    }
}

fn drained(drains: &mut [Duration]) -> Option<String> {
    let [half, longest] = [500, 1000].map(|part| within(drains, part).as_secs_f64());
    let count = drains.len();
    (count > 0).then(|| format!("{count} decommissioned: p50 {half:.1} s, longest {longest:.1} s"))
}

/// Orders the change, kills meanwhile, and waits for its end.
fn change(run: &mut Run, bed: &Bed, turn: &Turn, ledger: &Ledger, figures: &mut Figures) -> Result<String> {
    let Planned::Change { change, kills } = &turn.fault else { unreachable!("plans of changes") };
    match change {
        Change::Decommission(node) => {
            let begun = Instant::now();
            insist(bed, ["datanode", "decommission", node], || Ok(duty(bed, node)? != "serving"))?;
            let under_way = || Ok(duty(bed, node)? == "decommissioning");
            kill_each(bed, turn, kills, figures, under_way)?;
            let left = wait(&format!("{node} is decommissioned"), DEADLINE, || match duty(bed, node)?.as_str() {
                "decommissioned" => Ok(true),
                "decommissioning" => Ok(false),
                other => bail!("{node} is {other}, and was to be decommissioned"),
            });
            run.verdict.hold(Invariant::CallsEnd, left)?;
            let took = begun.elapsed();
            figures.drains.push(took);
            run.verdict.hold(Invariant::ReplicasAgree, nothing_counts_on(bed, node))?;
            Ok(format!("empty after {:.1} s", took.as_secs_f64()))
        }
        Change::DecommissionCancelled(node) => {
            insist(bed, ["datanode", "decommission", node], || Ok(duty(bed, node)? != "serving"))?;
            // Taken back at once, while the first one is dead: later there would be nothing left to take back.
            let (first, others) = kills.split_first().context("a change comes with a kill")?;
            let dies = bed.node(first)?;
            figures.in_mid_change += u64::from(duty(bed, node)? == "decommissioning");
            figures.kills += 1;
            let killed = process::kill(&bed.cluster, std::slice::from_ref(&dies))?;
            let was = duty(bed, node)?;
            let taken_back =
                insist(bed, ["datanode", "decommission", node, "--cancel"], || Ok(duty(bed, node)? == "serving"));
            run.verdict.hold(Invariant::CallsEnd, taken_back)?;
            killed.undo()?;
            bed.cluster.wait_caught_up(DEADLINE)?;
            wait_until_live(bed, &dies)?;
            kill_each(bed, turn, others, figures, || Ok(false))?;
            let now = duty(bed, node)?;
            ensure!(now == "serving", "{node} is {now}, and was put back into service");
            Ok(format!("taken back when {was}"))
        }
        Change::Maintenance(node) => {
            let order = ["datanode", "maintenance", node, "--for", MAINTENANCE];
            insist(bed, order, || Ok(duty(bed, node)? == "maintenance"))?;
            let away = process::kill(&bed.cluster, std::slice::from_ref(node))?;
            // It is dead already, and one at a time is what is promised.
            let others: Vec<Target> = kills.iter().filter(|target| **target != named(node)).cloned().collect();
            let killed = kill_each(bed, turn, &others, figures, || Ok(duty(bed, node)? == "maintenance"));
            ledger.go_on(10, DEADLINE)?;
            away.undo()?;
            killed?;
            wait_until_live(bed, node)?;
            let duty_now = duty(bed, node)?;
            ensure!(duty_now == "maintenance", "{node} is {duty_now}, and was to be in maintenance");
            let serves = insist(bed, ["datanode", "recommission", node], || Ok(duty(bed, node)? == "serving"));
            run.verdict.hold(Invariant::CallsEnd, serves)?;
            Ok("away and back".to_owned())
        }
        Change::OneMoreOneLess(target) => one_more_one_less(run, bed, turn, target, figures),
        Change::HandOver(times) => hand_over(run, bed, turn, *times, figures),
    }
}

/// What a change has left for the check goes: a node that was emptied serves again.
fn end(run: &mut Run, bed: &Bed, change: &Change) -> Result<()> {
    let Change::Decommission(node) = change else { return Ok(()) };
    let serves = insist(bed, ["datanode", "recommission", node], || Ok(duty(bed, node)? == "serving"));
    run.verdict.hold(Invariant::CallsEnd, serves).map(drop)
}

fn named(node: &str) -> Target {
    Target::Node(node.to_owned())
}

/// Kills one after the other, each back before the next one dies.
fn kill_each(
    bed: &Bed,
    turn: &Turn,
    kills: &[Target],
    figures: &mut Figures,
    under_way: impl Fn() -> Result<bool>,
) -> Result<()> {
    for target in kills {
        let node = bed.node(target)?;
        // A moment earlier, since a leader that is dead cannot be asked.
        figures.in_mid_change += u64::from(under_way()?);
        figures.kills += 1;
        let killed = process::kill(&bed.cluster, std::slice::from_ref(&node))?;
        std::thread::sleep(Duration::from_millis(turn.hold_ms));
        killed.undo()?;
        bed.cluster.wait_caught_up(DEADLINE)?;
        wait_until_live(bed, &node)?;
    }
    Ok(())
}

/// Repeats a command, as its own message says, until it has succeeded or what it is for is reached: the leader that is
/// asked may die before it answers. How often it failed.
pub fn insist<const N: usize>(bed: &Bed, args: [&str; N], reached: impl Fn() -> Result<bool>) -> Result<u64> {
    let (end, mut failures) = (Instant::now() + DEADLINE, 0);
    loop {
        let output = bed.cluster.output_within(args, DEADLINE)?;
        if output.status.success() {
            return Ok(failures);
        }
        failures += 1;
        // Without a leader nobody can say.
        if reached().unwrap_or(false) {
            return Ok(failures);
        }
        if Instant::now() >= end {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(anyhow!("dfs {}: {}: {said}", args.join(" "), output.status));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The datanode in the leader's status, waited for while there is no leader.
fn datanode(bed: &Bed, node: &str) -> Result<Value> {
    let mut found = Value::Null;
    wait(&format!("the leader knows {node}"), DEADLINE, || {
        let Ok(status) = bed.cluster.status() else { return Ok(false) };
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        found = nodes.into_iter().find(|found| found["name"] == node).unwrap_or_default();
        Ok(!found.is_null())
    })?;
    Ok(found)
}

pub fn duty(bed: &Bed, node: &str) -> Result<String> {
    Ok(datanode(bed, node)?["duty"].as_str().context("a datanode has a duty")?.to_owned())
}

/// Returns at once for a namenode: those are waited for otherwise.
fn wait_until_live(bed: &Bed, node: &str) -> Result<()> {
    if !bed.cluster.datanodes().iter().any(|name| name == node) {
        return Ok(());
    }
    wait(&format!("{node} is heard"), DEADLINE, || Ok(datanode(bed, node)?["state"] == "live")).map(drop)
}

/// A node that is decommissioned has nothing that anybody counts on.
fn nothing_counts_on(bed: &Bed, node: &str) -> Result<()> {
    let replicas = datanode(bed, node)?["replicas"].clone();
    ensure!(replicas == 0, "{node} is decommissioned, and has {replicas} replicas that count");
    for line in fsck(&bed.cluster)? {
        for chunk in line["chunks"].as_array().into_iter().flatten() {
            let holders = chunk["replicas"].as_array().into_iter().flatten();
            let counts = holders.clone().any(|replica| replica["name"] == node);
            ensure!(!counts, "{node} is decommissioned, and a chunk counts on it: {chunk}");
        }
    }
    Ok(())
}

/// Names of the voters; nobody else may be a member once a change has ended.
fn voters(bed: &Bed) -> Result<Vec<String>> {
    let listed: Value = serde_json::from_str(&bed.cluster.run(["namenode", "list", "--json"])?)?;
    ensure!(listed["change"].is_null(), "a change is under way: {}", listed["change"]);
    let members = listed["members"].as_array().context("a group has members")?;
    let name = |member: &Value| {
        ensure!(member["role"] == "voter", "{member} is no voter");
        Ok(member["name"].as_str().context("a member has a name")?.to_owned())
    };
    members.iter().map(name).collect()
}

fn one_more_one_less(run: &mut Run, bed: &Bed, turn: &Turn, target: &Target, figures: &mut Figures) -> Result<String> {
    let Planned::Change { kills, .. } = &turn.fault else { unreachable!("plans of changes") };
    // The first half of the kills come while there is one more, the others while there is one less.
    let (first, second) = kills.split_at(kills.len().div_ceil(2));
    let before = voters(bed)?;
    let grown = before.len() + 1;
    meanwhile(run, bed, turn, first, figures, &["namenode", "add"], || Ok(voters(bed)?.len() == grown))?;
    let after = voters(bed)?;
    let newcomer = after.iter().find(|name| !before.contains(name)).context("somebody came")?.clone();
    let goes = bed.node(target)?;
    let gone = || Ok(!voters(bed)?.contains(&goes));
    meanwhile(run, bed, turn, second, figures, &["namenode", "remove", &goes], gone)?;
    let left = voters(bed)?;
    ensure!(left.len() == SHAPE.namenodes && !left.contains(&goes), "{goes} was removed, and there are {left:?}");
    let ended = wait("the process of the removed one ends", DEADLINE, || Ok(!bed.cluster.is_running(&goes)));
    run.verdict.hold(Invariant::OneLeader, ended)?;
    let alike = bed.cluster.run(["namenode", "hash"]);
    run.verdict.hold(Invariant::NamenodesAgree, alike)?;
    figures.members += 2;
    Ok(format!("{newcomer} came, {goes} went"))
}

/// An operator's command goes on in the background while nodes are killed, until it has been reached.
fn meanwhile(
    run: &mut Run,
    bed: &Bed,
    turn: &Turn,
    kills: &[Target],
    figures: &mut Figures,
    command: &[&str],
    reached: impl Fn() -> Result<bool> + Sync,
) -> Result<()> {
    let outcome = std::thread::scope(|scope| {
        let operator = scope.spawn(|| match *command {
            [noun, verb] => insist(bed, [noun, verb], &reached),
            [noun, verb, name] => insist(bed, [noun, verb, name], &reached),
            _ => Err(anyhow!("{command:?} is no command of these")),
        });
        let killed = kill_each_now(bed, turn, kills, figures, || !operator.is_finished());
        let done = operator.join().map_err(|_| anyhow!("the operator's thread panicked"))?;
        done.and(killed)
    });
    run.verdict.hold(Invariant::CallsEnd, outcome)?;
    run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.wait_caught_up(DEADLINE))?;
    run.verdict.hold(Invariant::CallsEnd, wait("the change has ended", DEADLINE, || Ok(reached().unwrap_or(false))))?;
    Ok(())
}

/// As `kill_each`, in the middle of a change of members, when there may be no agreement on how many there are.
fn kill_each_now(
    bed: &Bed,
    turn: &Turn,
    kills: &[Target],
    figures: &mut Figures,
    under_way: impl Fn() -> bool,
) -> Result<()> {
    for target in kills {
        let node = bed.node(target)?;
        figures.in_mid_change += u64::from(under_way());
        figures.kills += 1;
        let killed = process::kill(&bed.cluster, std::slice::from_ref(&node))?;
        std::thread::sleep(Duration::from_millis(turn.hold_ms));
        killed.undo()?;
        bed.cluster.leader(DEADLINE)?;
        wait_until_live(bed, &node)?;
    }
    Ok(())
}

/// The lead goes round: first undisturbed, then while nodes are killed. A successor that dies does not lead, and then
/// the old leader or another one does.
fn hand_over(run: &mut Run, bed: &Bed, turn: &Turn, times: u64, figures: &mut Figures) -> Result<String> {
    let Planned::Change { kills, .. } = &turn.fault else { unreachable!("plans of changes") };
    let to = bed.node(&Target::Follower(0))?;
    let handed = bed.cluster.run(["namenode", "transfer-leader", &to]).and_then(|_| {
        let leads = bed.cluster.leader(DEADLINE)?;
        ensure!(leads == to, "{to} was handed the lead, and {leads} leads");
        Ok(())
    });
    run.verdict.hold(Invariant::OneLeader, handed)?;
    figures.hand_overs += 1;
    for turn_of in 1..times {
        let to = bed.node(&Target::Follower((turn_of % 2) as usize))?;
        let kill = &kills[turn_of as usize % kills.len()];
        let outcome = std::thread::scope(|scope| {
            let operator = scope.spawn(|| bed.cluster.output_within(["namenode", "transfer-leader", &to], DEADLINE));
            let killed = kill_each(bed, turn, std::slice::from_ref(kill), figures, || Ok(true));
            let output = operator.join().map_err(|_| anyhow!("the operator's thread panicked"))??;
            killed.map(|()| output)
        });
        let output = run.verdict.hold(Invariant::CallsEnd, outcome)?;
        if output.status.code().is_none() {
            run.verdict.broken(Invariant::CallsEnd, format!("transfer-leader {to} had not ended after {DEADLINE:?}"));
        }
        figures.hand_overs += u64::from(output.status.success());
        figures.hand_overs_failed += u64::from(!output.status.success());
        run.verdict.hold(Invariant::OneLeader, bed.cluster.leader(DEADLINE))?;
    }
    Ok(format!("{} leads", bed.cluster.leader(DEADLINE)?))
}

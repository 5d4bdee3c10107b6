//! M16N: changes that are ordered while links are cut. The operator reaches everybody, and insists.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dfs_cluster::fault::network::Network;
use dfs_cluster::fault::process;
use dfs_cluster::{Invariant, OnError};
use serde_json::Value;

use super::{MAINTENANCE, drained, duty, end, insist, nothing_counts_on, standing, voters};
use crate::torture::cells::kills::{Work, wait_until_live, with_everybody_at_work};
use crate::torture::cells::network::Cut;
use crate::torture::plan::{Change, Kind, Partition, Planned, PlannedCut, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait};

/// Only its own success shows that an order was carried out: it can be given twice, and who is asked may know of neither.
const NEVER: fn() -> Result<bool> = || Ok(false);

/// A leader that was cut off hears of its successor by then: until it does it answers an operator, with what was so.
const DEPOSED: Duration = Duration::from_secs(10);

pub fn under_partitions(run: &mut Run) -> Result<()> {
    let bed = run.plain_bed("partitioned", &["--netns"])?;
    let mut figures = Figures::default();
    let outcome = every_change(run, &bed, &mut figures);
    figures.tell(run);
    outcome
}

fn every_change(run: &mut Run, bed: &Bed, figures: &mut Figures) -> Result<()> {
    let mut network = Network::of(&bed.cluster)?;
    let standing = standing(run, bed)?;
    for (part, turn) in plan(Kind::PartitionedChanges, run.seed, run.rounds, SHAPE).into_iter().enumerate() {
        if !run.goes_on() {
            break;
        }
        let Turn { after_steps, fault, .. } = &turn;
        let Planned::PartitionedChange { change, cuts } = fault else { unreachable!("plans of changes") };
        with_everybody_at_work(run, bed, part, OnError::Stop, |run, work| {
            let outcome = Scene { run, bed, network: &mut network, work, figures }.play(change, cuts)?;
            run.verdict.hold(Invariant::CallsEnd, work.go_on((*after_steps).min(60)))?;
            run.done.rounds += 1;
            run.say(run.done.rounds, fault, outcome);
            Ok(())
        })?;
        standing.check(&bed.mounts[1].join("standing"), &mut run.verdict);
        end(run, bed, change)?;
        run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.run(["namenode", "hash"]))?;
    }
    Ok(())
}

#[derive(Default)]
struct Figures {
    /// Orders that were carried out, those of them that were so before the first link was cut, and those that were so
    /// before the first one worked again.
    orders: u64,
    before_the_cut: u64,
    under_the_cut: u64,
    /// Commands that had to be repeated.
    failures: u64,
    /// How long decommissioning took, from the order to its end.
    drains: Vec<Duration>,
    members: u64,
    hand_overs: u64,
    hand_overs_failed: u64,
}

impl Figures {
    fn carried_out(&mut self, ended: Ended) {
        self.orders += 1;
        self.before_the_cut += u64::from(ended == Ended::Before);
        self.under_the_cut += u64::from(ended == Ended::Under);
    }

    fn tell(&mut self, run: &mut Run) {
        let Figures { orders, before_the_cut, under_the_cut, failures, members, hand_overs, hand_overs_failed, .. } =
            self;
        run.done.figures.push(format!(
            "{orders} orders carried out: {before_the_cut} just before the cut, {under_the_cut} while it was on, {} after \
             it; {failures} commands failed and were repeated",
            *orders - *before_the_cut - *under_the_cut
        ));
        run.done.figures.extend(drained(&mut self.drains));
        run.done.figures.push(format!(
            "{members} changes of members, {hand_overs} hand-overs, {hand_overs_failed} that a cut prevented"
        ));
    }
}

/// A change under way, and all that it is done to.
struct Scene<'a> {
    run: &'a mut Run,
    bed: &'a Bed,
    network: &'a mut Network,
    work: &'a Work,
    figures: &'a mut Figures,
}

/// What came of an order.
struct Outcome<T> {
    value: T,
    took: Duration,
    ended: Ended,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// Before the first link was cut.
    Before,
    /// Before the first link worked again.
    Under,
    After,
}

impl<T> Outcome<T> {
    fn words(&self) -> String {
        let when = match self.ended {
            Ended::Before => "before the cut",
            Ended::Under => "under the cut",
            Ended::After => "after it",
        };
        format!("{:.1} s, {when}", self.took.as_secs_f64())
    }
}

impl Scene<'_> {
    fn play(&mut self, change: &Change, cuts: &[PlannedCut]) -> Result<String> {
        match (change, cuts) {
            (Change::Decommission(node), [cut]) => self.decommission(node, cut),
            (Change::DecommissionCancelled(node), [cut]) => self.decommission_and_cancel(node, cut),
            (Change::Maintenance(node), [away, back]) => self.maintain(node, away, back),
            (Change::OneMoreOneLess(target), [more, less]) => self.one_more_one_less(target, more, less),
            (Change::HandOver(_), cuts) => self.hand_over(cuts),
            _ => Err(anyhow!("{change} with {} cuts", cuts.len())),
        }
    }

    fn decommission(&mut self, node: &str, cut: &PlannedCut) -> Result<String> {
        let bed = self.bed;
        let empty = self.ordered(cut, None, || {
            let failures = insist(bed, ["datanode", "decommission", node], || Ok(duty(bed, node)? != "serving"))?;
            let what = format!("{node} is decommissioned");
            // Whoever led before the cut may be asked, and say what was so then: that it serves.
            wait(&what, DEADLINE, || Ok(duty(bed, node)? == "decommissioned"))?;
            Ok(failures)
        })?;
        self.figures.drains.push(empty.took);
        self.run.verdict.hold(Invariant::ReplicasAgree, nothing_counts_on(bed, node))?;
        Ok(format!("empty after {}", empty.words()))
    }

    fn decommission_and_cancel(&mut self, node: &str, cut: &PlannedCut) -> Result<String> {
        let bed = self.bed;
        let cancelled = self.ordered(cut, None, || {
            let ordered = insist(bed, ["datanode", "decommission", node], || Ok(duty(bed, node)? != "serving"))?;
            Ok(ordered + insist(bed, ["datanode", "decommission", node, "--cancel"], NEVER)?)
        })?;
        self.expect_duty(node, "serving")?;
        Ok(format!("taken back after {}", cancelled.words()))
    }

    fn maintain(&mut self, node: &str, away: &PlannedCut, back: &PlannedCut) -> Result<String> {
        let bed = self.bed;
        let ordered = self.ordered(away, None, || {
            let order = ["datanode", "maintenance", node, "--for", MAINTENANCE];
            insist(bed, order, || Ok(duty(bed, node)? == "maintenance"))
        })?;
        self.expect_duty(node, "maintenance")?;
        let killed = process::kill(&bed.cluster, &[node.to_owned()])?;
        let gone_on = self.work.go_on(10);
        killed.undo()?;
        self.run.verdict.hold(Invariant::CallsEnd, gone_on)?;
        wait_until_live(bed, node)?;
        let serves = self.ordered(back, None, || {
            insist(bed, ["datanode", "recommission", node], || Ok(duty(bed, node)? == "serving"))
        })?;
        self.expect_duty(node, "serving")?;
        Ok(format!("away after {}; back after {}", ordered.words(), serves.words()))
    }

    fn one_more_one_less(&mut self, target: &Target, more: &PlannedCut, less: &PlannedCut) -> Result<String> {
        let bed = self.bed;
        let before: BTreeSet<String> = voters(bed)?.into_iter().collect();
        let newcomer = make_newcomer(bed, self.network)?;
        let Newcomer { name, addr, raft_addr } = &newcomer;
        let came = self.ordered(more, Some(name), || {
            // By its addresses the same order may be given twice; without them it would be one for another namenode.
            insist(bed, ["namenode", "add", name, addr, raft_addr, "--id", number(name)], || {
                // Whom the group does not know when it is refused, the command stops.
                bed.cluster.start(name)?;
                Ok(false)
            })
        });
        if came.is_err() {
            // `dfs down` may not know it.
            bed.cluster.kill(name)?;
        }
        let came = came?;
        let mut expected = before;
        expected.insert(name.clone());
        self.expect_voters(&expected)?;

        let goes = bed.node(target)?;
        // Whoever cuts off the one that goes cuts off this one.
        let cut = match &less.shape {
            Partition::Alone(alone) if alone == target => Partition::Alone(Target::Node(goes.clone())),
            other => other.clone(),
        };
        let less = PlannedCut { shape: cut, ..less.clone() };
        // By its number, for the same reason: nobody has the name of one that is gone.
        let went = self.ordered(&less, None, || insist(bed, ["namenode", "remove", number(&goes)], NEVER))?;
        expected.remove(&goes);
        self.expect_voters(&expected)?;
        let ended = wait("the process of the removed one ends", DEADLINE, || Ok(!bed.cluster.is_running(&goes)));
        self.run.verdict.hold(Invariant::OneLeader, ended)?;
        self.network.unwire(&goes)?;
        self.figures.members += 2;
        Ok(format!("{name} came after {}; {goes} went after {}", came.words(), went.words()))
    }

    /// First undisturbed, which shows that nobody is left in doubt, then under each cut. A successor that is not reached
    /// does not lead, and then the old leader or another one does.
    fn hand_over(&mut self, cuts: &[PlannedCut]) -> Result<String> {
        let bed = self.bed;
        let to = bed.node(&Target::Follower(0))?;
        let handed = bed.cluster.run(["namenode", "transfer-leader", &to]).and_then(|_| {
            let leads = bed.cluster.leader(DEADLINE)?;
            ensure!(leads == to, "{to} was handed the lead, and {leads} leads");
            Ok(())
        });
        self.run.verdict.hold(Invariant::OneLeader, handed)?;
        self.figures.hand_overs += 1;
        let mut said = Vec::new();
        for (nth, cut) in cuts.iter().enumerate() {
            let to = bed.node(&Target::Follower(nth % 2))?;
            let order = ["namenode", "transfer-leader", &to];
            let handed = self.under(cut, None, || bed.cluster.output_within(order, DEADLINE))?;
            let status = handed.value.status;
            if status.code().is_none() {
                let text = format!("transfer-leader {to} had not ended after {DEADLINE:?}");
                self.run.verdict.broken(Invariant::CallsEnd, text);
            }
            if status.success() {
                self.figures.carried_out(handed.ended);
            }
            self.figures.hand_overs += u64::from(status.success());
            self.figures.hand_overs_failed += u64::from(!status.success());
            said.push(format!("{} {}", if status.success() { "handed" } else { "refused" }, handed.words()));
            self.is_whole()?;
        }
        Ok(said.join("; "))
    }

    /// An order that is carried out in the end, though a cut comes about when it is given.
    fn ordered(
        &mut self,
        cut: &PlannedCut,
        newcomer: Option<&str>,
        order: impl FnOnce() -> Result<u64> + Send,
    ) -> Result<Outcome<u64>> {
        let outcome = self.under(cut, newcomer, order);
        let outcome = self.run.verdict.hold(Invariant::CallsEnd, outcome)?;
        self.figures.carried_out(outcome.ended);
        self.figures.failures += outcome.value;
        self.is_whole()?;
        Ok(outcome)
    }

    /// Gives an order, cuts links a moment before or after that, mends them, and waits for the order's end.
    fn under<T: Send>(
        &mut self,
        cut: &PlannedCut,
        newcomer: Option<&str>,
        order: impl FnOnce() -> Result<T> + Send,
    ) -> Result<Outcome<T>> {
        // Who is meant is asked before: a moment after the order there may be nobody to ask.
        let shape = named(&cut.shape, &self.bed.cluster.namenodes(), newcomer)?;
        let links = Cut::of(self.bed, self.network, &shape)?;
        let ms = |ms: i64| Duration::from_millis(ms.max(0).unsigned_abs());
        let (order_waits, cut_waits) = (ms(-cut.begins_ms), ms(cut.begins_ms));
        std::thread::scope(|scope| {
            let operator = scope.spawn(move || {
                std::thread::sleep(order_waits);
                let begun = Instant::now();
                (order(), begun, Instant::now())
            });
            std::thread::sleep(cut_waits);
            let held = links.hold(self.network, Duration::from_millis(cut.hold_ms));
            let (done, begun, ended) = operator.join().map_err(|_| anyhow!("the operator's thread panicked"))?;
            let held = held?;
            let when = match ended {
                ended if ended < held.begins => Ended::Before,
                ended if ended < held.heals => Ended::Under,
                _ => Ended::After,
            };
            Ok(Outcome { value: done?, took: ended - begun, ended: when })
        })
    }

    /// What holds once all links work: everybody is there, and the namenodes agree on who leads.
    fn is_whole(&mut self) -> Result<()> {
        let bed = self.bed;
        let one = wait("one leader and no change under way", DEADLINE, || Ok(voters_of_one_leader(bed).is_ok()));
        self.run.verdict.hold(Invariant::OneLeader, one)?;
        let end = Instant::now() + DEPOSED;
        let mut run = all_run(bed);
        while run.is_err() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(200));
            run = all_run(bed);
        }
        self.run.verdict.hold(Invariant::NamenodesAgree, run)?;
        let agree = bed.cluster.wait_caught_up(DEADLINE);
        self.run.verdict.hold(Invariant::NamenodesAgree, agree)?;
        let live = bed.cluster.datanodes().iter().try_for_each(|node| wait_until_live(bed, node));
        self.run.verdict.hold(Invariant::CallsEnd, live)?;
        Ok(())
    }

    fn expect_duty(&mut self, node: &str, expected: &str) -> Result<()> {
        let duty = duty(self.bed, node)?;
        let is = if duty == expected { Ok(()) } else { Err(anyhow!("{node} is {duty}, and was to be {expected}")) };
        self.run.verdict.hold(Invariant::AcknowledgedSurvives, is)
    }

    /// These vote and nobody else, and all of them have the same state.
    fn expect_voters(&mut self, expected: &BTreeSet<String>) -> Result<()> {
        let bed = self.bed;
        let is = voters(bed).and_then(|voters| {
            let voters: BTreeSet<String> = voters.into_iter().collect();
            ensure!(voters == *expected, "{voters:?} vote, and {expected:?} were to");
            Ok(())
        });
        self.run.verdict.hold(Invariant::AcknowledgedSurvives, is)?;
        self.run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.run(["namenode", "hash"])).map(drop)
    }
}

/// A namenode that runs and is no member yet.
struct Newcomer {
    name: String,
    addr: String,
    raft_addr: String,
}

/// What an operator does who adds a machine. `dfs namenode add` makes folder, certificate and configuration, but knows
/// machines with this one's address only: under `--netns` it gives the newcomer one at which nobody else finds it, and is
/// refused before anything has changed. So it gets wires before that, and its own address after it.
fn make_newcomer(bed: &Bed, network: &mut Network) -> Result<Newcomer> {
    let listed: Value = serde_json::from_str(&bed.cluster.run(["namenode", "list", "--json"])?)?;
    let used = listed["used"].as_array().context("numbers have been used")?;
    let next = used.iter().filter_map(Value::as_u64).max().context("numbers have been used")? + 1;
    let name = format!("nn{next}");
    let own = network.wire_namenode(&name)?;
    let refused = bed.cluster.output_within(["namenode", "add", &name], DEADLINE)?;
    ensure!(!refused.status.success(), "{name} was added at an address that nobody reaches");
    let path = bed.cluster.dir().join(&name).join("namenode.toml");
    let said = || format!("{}: {}", path.display(), String::from_utf8_lossy(&refused.stderr));
    let text = std::fs::read_to_string(&path).with_context(said)?.replace("\"127.0.0.1:", &format!("\"{own}:"));
    std::fs::write(&path, &text)?;
    bed.cluster.kill(&name)?;
    bed.cluster.start(&name)?;
    let address = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map(|value| value.trim().trim_matches('"').to_owned()).with_context(|| format!("{name} has no {key}"))
    };
    Ok(Newcomer { addr: address("listen")?, raft_addr: address("raft_listen")?, name })
}

/// The number of a namenode, which is in its name.
fn number(name: &str) -> &str {
    name.trim_start_matches("nn")
}

/// Who votes, as one says that leads; an error while a change is under way.
fn voters_of_one_leader(bed: &Bed) -> Result<BTreeSet<String>> {
    let listed: Value = serde_json::from_str(&bed.cluster.run(["namenode", "list", "--json"])?)?;
    let members = listed["members"].as_array().context("a group has members")?;
    let leaders = members.iter().filter(|member| member["leader"] == true).count();
    ensure!(leaders == 1, "{leaders} of the members are said to lead");
    Ok(voters(bed)?.into_iter().collect())
}

/// Whoever votes runs, and is in the file that the next command goes by, and nobody else is.
fn all_run(bed: &Bed) -> Result<()> {
    let voters = voters_of_one_leader(bed)?;
    let named: BTreeSet<String> = bed.cluster.namenodes().into_iter().collect();
    let dead: Vec<&String> = voters.iter().filter(|name| !bed.cluster.is_running(name)).collect();
    ensure!(
        named == voters && dead.is_empty(),
        "{voters:?} vote, the cluster file names {named:?}, and these do not run: {dead:?}"
    );
    Ok(())
}

/// A plan knows the namenodes that there were in the beginning: it means those that are in their places. And it does not
/// know who is about to join.
fn named(shape: &Partition, namenodes: &[String], newcomer: Option<&str>) -> Result<Partition> {
    let planned = SHAPE.namenodes();
    let is = |name: &String| {
        let place = planned.iter().position(|planned| planned == name);
        place.and_then(|place| namenodes.get(place)).unwrap_or(name).clone()
    };
    Ok(match shape {
        Partition::Alone(Target::Newcomer) => {
            Partition::Alone(Target::Node(newcomer.context("nobody is about to join")?.to_owned()))
        }
        Partition::OneByOne(links, back) => {
            Partition::OneByOne(links.iter().map(|(from, to)| (is(from), is(to))).collect(), back.clone())
        }
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planned_names_are_those_of_whoever_is_in_that_place() {
        let namenodes = ["nn2", "nn4", "nn5"].map(str::to_owned);
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        let planned = Partition::OneByOne(vec![pair("nn1", "dn1"), pair("nn3", "nn2")], vec![1, 0]);
        let meant = Partition::OneByOne(vec![pair("nn2", "dn1"), pair("nn5", "nn4")], vec![1, 0]);
        assert_eq!(named(&planned, &namenodes, None).unwrap(), meant);
        let newcomer = Partition::Alone(Target::Newcomer);
        let alone = Partition::Alone(Target::Node("nn6".to_owned()));
        assert_eq!(named(&newcomer, &namenodes, Some("nn6")).unwrap(), alone);
        assert!(named(&newcomer, &namenodes, None).is_err());
        // Who leads is asked when the time has come.
        let leader = Partition::Alone(Target::Leader);
        assert_eq!(named(&leader, &namenodes, None).unwrap(), leader);
    }
}

//! M16B: a datanode is emptied and gets its share again, chunk by chunk, while nodes die: whoever orders the moves, whoever
//! receives or gives them, or anybody else.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use dfs_cluster::{Invariant, OnError, Stream, StreamReport, check_nothing_left_over};
use serde_json::Value;

use super::{datanode, duty, insist, wait_until_live};
use crate::torture::cells::kills::with_everybody_at_work;
use crate::torture::plan::{Kind, Planned, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait, within};

/// Of each node: small, so that little is much of it.
const FILE_SYSTEM: &str = "xfs:700M";

/// MiB that are there all the time, and of each of the files that they are in at most: many files have many chunks.
const STANDING_MIB: u64 = 208;
const FILE_MIB: u64 = 12;

/// Points of a hundred between an emptied datanode and the fullest one at least.
const UNEVEN: f64 = 25.0;

/// Points by which datanodes may differ in the end, but for what is smaller than a chunk.
const THRESHOLD: &str = "5";
const CHUNK_MAX: f64 = (64 << 20) as f64;

/// A leader that is new has looked at its datanodes by then.
const SETTLED: Duration = Duration::from_secs(4);

pub fn under_kills(run: &mut Run) -> Result<()> {
    let bed = run.bed_with("balanced", &["--fs", FILE_SYSTEM])?;
    let mut figures = Figures::default();
    let outcome = every_datanode(run, &bed, &mut figures);
    figures.tell(run);
    outcome
}

fn every_datanode(run: &mut Run, bed: &Bed, figures: &mut Figures) -> Result<()> {
    insist(bed, ["balance", "off"], || Ok(false))?;
    let standing = standing(run, bed)?;
    for (part, turn) in plan(Kind::Rebalances, run.seed, run.rounds, SHAPE).into_iter().enumerate() {
        if !run.goes_on() {
            break;
        }
        let Planned::Rebalance { emptied, kills } = &turn.fault else { unreachable!("plans of rebalancing") };
        with_everybody_at_work(run, bed, part, OnError::Stop, |run, work| {
            empty(run, bed, emptied, figures)?;
            let outcome = fill(run, bed, &turn, emptied, kills, figures)?;
            run.verdict.hold(Invariant::CallsEnd, work.go_on(turn.after_steps.min(60)))?;
            run.done.rounds += 1;
            run.say(run.done.rounds, &turn.fault, outcome);
            Ok(())
        })?;
        check_nothing_left_over(&bed.cluster, DEADLINE, &mut run.verdict)?;
        for (number, files) in (1..).zip(&standing) {
            files.check(&bed.mounts[1].join(folder(number)), &mut run.verdict);
        }
        run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.run(["namenode", "hash"]))?;
        mount_anew(bed)?;
    }
    Ok(())
}

/// A mount has chunk files open for a minute or longer after it has read them. Those have no part in how full a disk is
/// said to be once they are in the trash, and keep their room when they are deleted: a node that looks empty has none.
fn mount_anew(bed: &Bed) -> Result<()> {
    ["m1", "m2"].iter().try_for_each(|mount| {
        bed.cluster.stop(mount)?;
        bed.cluster.start(mount)
    })
}

fn folder(number: u64) -> String {
    format!("standing/{number}")
}

/// Files that are there all the time.
fn standing(run: &mut Run, bed: &Bed) -> Result<Vec<StreamReport>> {
    let (mut kept, mut all) = (0, Vec::new());
    while kept < STANDING_MIB {
        let number = all.len() as u64 + 1;
        let stream = Stream::start(&bed.mounts[0].join(folder(number)), FILE_MIB, run.seed.wrapping_add(number))?;
        stream.go_on(FILE_MIB, DEADLINE)?;
        let files = stream.finish()?;
        run.expect_no_errors(&files.errors);
        kept += files.kept_mib();
        all.push(files);
    }
    bed.cluster.wait_healthy(DEADLINE)?;
    Ok(all)
}

#[derive(Default)]
struct Figures {
    kills: super::Figures,
    /// The leader or the emptied datanode among those that died while a chunk was on its way.
    leaders: u64,
    emptied: u64,
    moved: Moved,
    /// Looks at all standing chunks while some were moved.
    looks: u64,
    /// From the order to move until all was even.
    even: Vec<Duration>,
    stuck: u64,
    most_apart: f64,
}

impl Figures {
    fn tell(&mut self, run: &mut Run) {
        let Figures { kills, leaders, emptied, looks, stuck, most_apart, .. } = self;
        let super::Figures { kills: died, in_mid_change, .. } = kills;
        run.done.figures.push(format!(
            "{died} kills, {in_mid_change} of them while a chunk was on its way: {leaders} of leaders, {emptied} of the empty \
             datanode"
        ));
        run.done.figures.extend(super::drained(&mut kills.drains));
        let (chunks, bytes) = self.moved.sum();
        // What a leader did in its last moments is known to nobody.
        run.done.figures.push(format!(
            "at least {chunks} chunks moved, {} MiB; {looks} looks at their replicas meanwhile",
            bytes >> 20
        ));
        let [half, longest] = [500, 1000].map(|part| within(&mut self.even, part).as_secs_f64());
        run.done.figures.push(format!(
            "even after p50 {half:.1} s, longest {longest:.1} s, of which the command waits 4 s; {most_apart:.1} points apart \
             at most, {stuck} times with nothing left that could be moved"
        ));
    }
}

/// Chunks and bytes that leaders say they have moved. Each counts from when it began to lead: by its term, the most of it.
#[derive(Default)]
struct Moved(BTreeMap<u64, (u64, u64)>);

impl Moved {
    fn note(&mut self, term: u64, chunks: u64, bytes: u64) {
        let known = self.0.entry(term).or_default();
        *known = (known.0.max(chunks), known.1.max(bytes));
    }

    fn sum(&self) -> (u64, u64) {
        self.0.values().fold((0, 0), |sum, moved| (sum.0 + moved.0, sum.1 + moved.1))
    }
}

/// How far a leader has come.
struct Balance {
    on: bool,
    moving: u64,
    left_bytes: u64,
    stuck: bool,
    apart: f64,
    moved: (u64, u64),
    term: u64,
}

impl Balance {
    /// `None` while nobody leads.
    fn of(bed: &Bed) -> Option<Balance> {
        let status = bed.cluster.status().ok()?;
        Balance::read(&status["balance"], status["term"].as_u64()?).ok()
    }

    fn read(found: &Value, term: u64) -> Result<Balance> {
        let number = |key: &str| found[key].as_u64().with_context(|| format!("{key} in {found}"));
        Ok(Balance {
            on: found["on"] == true,
            moving: number("moving")?,
            left_bytes: number("left_bytes")?,
            stuck: found["stuck"] == true,
            apart: found["apart_points"].as_f64().with_context(|| format!("apart_points in {found}"))?,
            moved: (number("moved_chunks")?, number("moved_bytes")?),
            term,
        })
    }

    fn rests(&self) -> bool {
        self.on && self.moving == 0 && (self.left_bytes == 0 || self.stuck)
    }
}

/// A datanode is emptied, and serves again with nothing on it.
fn empty(run: &mut Run, bed: &Bed, node: &str, figures: &mut Figures) -> Result<()> {
    insist(bed, ["balance", "off"], || Ok(false))?;
    let begun = Instant::now();
    insist(bed, ["datanode", "decommission", node], || Ok(duty(bed, node)? != "serving"))?;
    let left = wait(&format!("{node} is decommissioned"), DEADLINE, || Ok(duty(bed, node)? == "decommissioned"));
    run.verdict.hold(Invariant::CallsEnd, left)?;
    figures.kills.drains.push(begun.elapsed());
    insist(bed, ["datanode", "recommission", node], || Ok(duty(bed, node)? == "serving"))?;
    let uneven = wait(&format!("{node} is {UNEVEN} points emptier than others"), DEADLINE, || {
        Ok(Balance::of(bed).is_some_and(|balance| balance.apart >= UNEVEN))
    });
    uneven.map(drop).with_context(|| format!("{:?} apart", Balance::of(bed).map(|balance| balance.apart)))
}

/// The empty datanode gets its share while nodes die.
fn fill(
    run: &mut Run,
    bed: &Bed,
    turn: &Turn,
    emptied: &str,
    kills: &[Target],
    figures: &mut Figures,
) -> Result<String> {
    let before = figures.moved.sum();
    let stop = AtomicBool::new(false);
    let mut watched = Watched::default();
    let outcome = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(bed, &stop));
        let outcome = kill_and_wait(run, bed, turn, emptied, kills, figures);
        stop.store(true, Ordering::Relaxed);
        watched = watcher.join().map_err(|_| anyhow!("the watcher panicked"))?;
        outcome
    });
    for (term, (chunks, bytes)) in watched.moved.0 {
        figures.moved.note(term, chunks, bytes);
    }
    figures.looks += watched.looks;
    run.verdict.fine(Invariant::ReplicasAgree, watched.looks);
    if let Some(few) = watched.few.first() {
        let text = format!("{} times a chunk had too few replicas, the first: {few}", watched.few.len());
        run.verdict.broken(Invariant::ReplicasAgree, text);
    }
    let words = outcome?;
    let after = figures.moved.sum();
    ensure!(watched.looks > 0, "nobody could look at the chunks while they were moved");
    Ok(format!("{} chunks, {} MiB: {words}", after.0 - before.0, (after.1 - before.1) >> 20))
}

fn kill_and_wait(
    run: &mut Run,
    bed: &Bed,
    turn: &Turn,
    emptied: &str,
    kills: &[Target],
    figures: &mut Figures,
) -> Result<String> {
    let begun = Instant::now();
    insist(bed, ["balance", "on", "--threshold", THRESHOLD], || Ok(false))?;
    for target in kills {
        let among = figures.kills.in_mid_change;
        // It dies as soon as a move is seen.
        let killed =
            super::kill_each(bed, turn, std::slice::from_ref(target), &mut figures.kills, || wait_for_moves(bed));
        run.verdict.hold(Invariant::CallsEnd, killed)?;
        let among = figures.kills.in_mid_change - among;
        figures.leaders += if *target == Target::Leader { among } else { 0 };
        figures.emptied += if *target == Target::Node(emptied.to_owned()) { among } else { 0 };
    }
    let even = wait_until_even(bed);
    let even = run.verdict.hold(Invariant::CallsEnd, even)?;
    let took = begun.elapsed();
    figures.even.push(took);
    figures.stuck += u64::from(even.stuck);
    figures.most_apart = figures.most_apart.max(even.apart);
    run.verdict.hold(Invariant::CallsEnd, is_even(bed, emptied, &even))?;
    let stuck = if even.stuck { ", stuck" } else { "" };
    Ok(format!("{:.1} points apart{stuck} after {:.1} s", even.apart, took.as_secs_f64()))
}

/// Whether a chunk is on its way, as soon as one is; otherwise when nothing is left to be moved.
fn wait_for_moves(bed: &Bed) -> Result<bool> {
    let (end, mut rests_since) = (Instant::now() + DEADLINE, None::<Instant>);
    loop {
        let balance = Balance::of(bed);
        if balance.as_ref().is_some_and(|balance| balance.moving > 0) {
            return Ok(true);
        }
        if !balance.as_ref().is_some_and(Balance::rests) {
            rests_since = None;
        } else if rests_since.get_or_insert_with(Instant::now).elapsed() >= SETTLED {
            return Ok(false);
        }
        let apart = balance.map_or(f64::NAN, |balance| balance.apart);
        ensure!(Instant::now() < end, "no chunk moves after {DEADLINE:?}, {apart:.1} points apart");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the operator's command says in the end.
fn wait_until_even(bed: &Bed) -> Result<Balance> {
    let end = Instant::now() + DEADLINE;
    loop {
        let output = bed.cluster.output_within(["balance", "on", "--wait", "--json"], DEADLINE)?;
        if output.status.success() {
            let said: Value = serde_json::from_slice(&output.stdout)?;
            return Balance::read(&said["balance"], 0);
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code().is_some(), "balance on --wait had not ended after {DEADLINE:?}: {said}");
        if Instant::now() >= end {
            bail!("balance on --wait: {}: {said}", output.status);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The threshold and a chunk apart, unless nothing was left that could be moved; and not because there is nothing.
fn is_even(bed: &Bed, emptied: &str, even: &Balance) -> Result<()> {
    wait_until_live(bed, emptied)?;
    let found = datanode(bed, emptied)?;
    let total: u64 =
        found["volumes"].as_array().into_iter().flatten().filter_map(|disk| disk["total_bytes"].as_u64()).sum();
    let most = THRESHOLD.parse::<f64>()? + CHUNK_MAX * 100.0 / total as f64;
    let Balance { apart, stuck, .. } = even;
    ensure!(*stuck || *apart <= most, "{apart:.1} points apart, {most:.1} at most, and not stuck");
    ensure!(*apart < UNEVEN, "{apart:.1} points apart, as if nothing had moved");
    ensure!(found["replicas"].as_u64() > Some(0), "{emptied} has no replica: {found}");
    Ok(())
}

/// What was seen while chunks were moved.
#[derive(Default)]
struct Watched {
    moved: Moved,
    looks: u64,
    /// Chunks that had fewer replicas than wanted.
    few: Vec<Value>,
}

/// Asks who leads for how much was moved, and for the replicas of what is there all the time: dying takes none away for as
/// long as it lasts here.
fn watch(bed: &Bed, stop: &AtomicBool) -> Watched {
    let mut watched = Watched::default();
    while !stop.load(Ordering::Relaxed) {
        // Nobody answers while nobody leads.
        if let Some(Balance { term, moved: (chunks, bytes), .. }) = Balance::of(bed) {
            watched.moved.note(term, chunks, bytes);
        }
        if let Ok(chunks) = standing_chunks(bed) {
            watched.looks += u64::from(!chunks.is_empty());
            watched.few.extend(chunks.into_iter().filter(has_too_few));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    watched
}

fn standing_chunks(bed: &Bed) -> Result<Vec<Value>> {
    let output = bed.cluster.output(["fsck", "/standing", "--files", "--locations", "--json"])?;
    let mut chunks = Vec::new();
    for line in String::from_utf8(output.stdout)?.lines() {
        let line: Value = serde_json::from_str(line)?;
        let of_file = line["extents"].as_array().and(line["chunks"].as_array());
        chunks.extend(of_file.into_iter().flatten().filter(|chunk| chunk["sealed"] == true).cloned());
    }
    Ok(chunks)
}

fn has_too_few(chunk: &Value) -> bool {
    let replicas = chunk["replicas"].as_array().map_or(0, Vec::len) as u64;
    chunk["target"].as_u64().is_none_or(|target| replicas < target)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_moved_is_added_up_over_leaders_and_counted_once_of_each() {
        let mut moved = Moved::default();
        for (term, chunks, bytes) in [(3, 0, 0), (3, 2, 20), (3, 1, 10), (5, 1, 7), (3, 2, 20), (5, 4, 30)] {
            moved.note(term, chunks, bytes);
        }
        assert_eq!(moved.sum(), (6, 50));
    }

    #[test]
    fn a_chunk_with_fewer_replicas_than_wanted_has_too_few_and_one_with_more_has_not() {
        let chunk =
            |count: usize| json!({"target": 3, "replicas": vec![json!({"name": "dn1", "state": "dead"}); count]});
        assert_eq!([2, 3, 4].map(|count| has_too_few(&chunk(count))), [true, false, false]);
        assert!(has_too_few(&json!({})));
    }

    #[test]
    fn nothing_is_at_rest_while_it_is_off_or_something_is_left_or_on_its_way() {
        let read = |on: bool, moving: u64, left: u64, stuck: bool| {
            let found = json!({"on": on, "moving": moving, "left_bytes": left, "stuck": stuck, "apart_points": 3.5,
                "moved_chunks": 1, "moved_bytes": 2});
            Balance::read(&found, 1).unwrap().rests()
        };
        assert!(read(true, 0, 0, false) && read(true, 0, 9, true));
        assert!(!read(false, 0, 0, false) && !read(true, 1, 0, false) && !read(true, 0, 9, false));
    }
}

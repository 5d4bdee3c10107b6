//! M1, M2, M3, M11: processes die or stand still while a quorum and a replica live, and no application notices.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use dfs_cluster::fault::process;
use dfs_cluster::{Invariant, OnError, Registers, Renames, Stream};

use crate::torture::plan::{Kind, Planned, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait, within};

/// So many kills between two looks at everything.
const KILLS_BETWEEN_CHECKS: usize = 10;

/// MiB of a streamed file.
const STREAM_MIB: u64 = 48;

pub fn of_anybody(run: &mut Run) -> Result<()> {
    let bed = run.bed("kills", &[])?;
    let turns = plan(Kind::Kills, run.seed, run.rounds, SHAPE);
    for (part, turns) in turns.chunks(KILLS_BETWEEN_CHECKS).enumerate() {
        if !run.goes_on() {
            break;
        }
        with_everybody_at_work(run, &bed, part, OnError::Stop, |run, work| {
            for turn in turns {
                let Planned::Kill(target) = &turn.fault else { unreachable!("plans of kills") };
                let node = bed.node(target)?;
                let killed = process::kill(&bed.cluster, std::slice::from_ref(&node))?;
                std::thread::sleep(Duration::from_millis(turn.hold_ms));
                killed.undo()?;
                // The next one dies only when this one is back: more at once is no promise.
                bed.cluster.wait_caught_up(DEADLINE)?;
                wait_until_live(&bed, &node)?;
                run.verdict.hold(Invariant::CallsEnd, work.go_on(turn.after_steps.min(60)))?;
                run.done.rounds += 1;
                run.say(run.done.rounds, format!("kill -9 {node} for {} ms", turn.hold_ms), "");
            }
            Ok(())
        })?;
    }
    Ok(())
}

pub fn of_leaders(run: &mut Run) -> Result<()> {
    let bed = run.bed("leaders", &[])?;
    let turns = plan(Kind::LeaderKills, run.seed, run.rounds, SHAPE);
    let mut gaps = Vec::new();
    for (part, turns) in turns.chunks(KILLS_BETWEEN_CHECKS).enumerate() {
        if !run.goes_on() {
            break;
        }
        with_everybody_at_work(run, &bed, part, OnError::Stop, |run, work| {
            for turn in turns {
                work.go_on(turn.after_steps.min(60))?;
                let leader = bed.cluster.leader(DEADLINE)?;
                let killed = process::kill(&bed.cluster, std::slice::from_ref(&leader))?;
                let gap = write_gap(&bed, run.done.rounds)?;
                gaps.push(gap);
                let next = bed.cluster.leader(DEADLINE)?;
                ensure!(next != leader, "{leader} leads although it is dead");
                killed.undo()?;
                bed.cluster.wait_caught_up(DEADLINE)?;
                run.done.rounds += 1;
                let outcome = format!("write gap {:.2} s, {next} leads", gap.as_secs_f64());
                run.say(run.done.rounds, format!("kill -9 {leader}, which leads"), outcome);
            }
            Ok(())
        })?;
    }
    let [half, most, longest] = [500, 990, 1000].map(|part| within(&mut gaps, part).as_secs_f64());
    run.done.figures.push(format!("write gap: p50 {half:.2} s, p99 {most:.2} s, longest {longest:.2} s"));
    Ok(())
}

/// A stopped leader wakes and believes that no time has passed: whatever it answers then must not be old.
pub fn leader_pauses(run: &mut Run) -> Result<()> {
    let bed = run.bed("pauses", &[])?;
    for (part, turn) in plan(Kind::LeaderPauses, run.seed, run.rounds, SHAPE).into_iter().enumerate() {
        if !run.goes_on() {
            break;
        }
        with_everybody_at_work(run, &bed, part, OnError::Stop, |run, work| {
            let leader = bed.cluster.leader(DEADLINE)?;
            let paused = process::pause(&bed.cluster, &leader)?;
            std::thread::sleep(Duration::from_millis(turn.hold_ms));
            paused.undo()?;
            run.verdict.hold(Invariant::CallsEnd, work.go_on(turn.after_steps.min(60)))?;
            run.done.rounds += 1;
            run.say(run.done.rounds, format!("SIGSTOP {leader}, which leads, for {} ms", turn.hold_ms), "");
            Ok(())
        })?;
    }
    Ok(())
}

pub fn in_mid_stream(run: &mut Run) -> Result<()> {
    // A chunk that is deleted keeps its room for as long as the reader of the round before has it open: a minute.
    let bed = run.roomy_bed("streams", &[])?;
    let mut longest = Duration::ZERO;
    for (number, turn) in (1..).zip(plan(Kind::DatanodeKills, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let stall = stream_and_kill(run, &bed, number, &turn)?;
        longest = longest.max(stall);
        run.done.rounds += 1;
    }
    run.done.figures.push(format!("longest stall of the writer {:.2} s", longest.as_secs_f64()));
    Ok(())
}

fn stream_and_kill(run: &mut Run, bed: &Bed, number: u64, turn: &Turn) -> Result<Duration> {
    let Planned::Kill(target) = &turn.fault else { unreachable!("plans of kills") };
    let name = format!("stream{number}");
    let stream = Stream::start(&bed.mounts[0].join(&name), STREAM_MIB, run.seed.wrapping_add(number))?;
    stream.go_on(turn.after_steps % STREAM_MIB, DEADLINE)?;
    let node = bed.node(target)?;
    let killed = process::kill(&bed.cluster, std::slice::from_ref(&node))?;
    run.verdict.hold(Invariant::CallsEnd, stream.go_on(STREAM_MIB / 2, DEADLINE))?;
    killed.undo()?;
    let report = stream.finish()?;
    run.expect_no_errors(&report.errors);
    dfs_cluster::check_at_rest(&bed.cluster, DEADLINE, &mut run.verdict)?;
    report.check(&bed.mounts[1].join(&name), &mut run.verdict);
    let outcome = format!("{} MiB, stall {:.2} s", report.bytes >> 20, report.stall.as_secs_f64());
    run.say(number, &turn.fault, outcome);
    bed.clear(&name)?;
    Ok(report.stall)
}

/// Everything that runs on the mounts meanwhile.
pub struct Work {
    ledger: dfs_cluster::Ledger,
    registers: Registers,
    renames: Renames,
}

impl Work {
    pub fn go_on(&self, steps: u64) -> Result<()> {
        self.ledger.go_on(steps, DEADLINE)?;
        self.registers.go_on(steps, DEADLINE)
    }
}

/// Ledger, registers and renames run on two mounts while `faults` does its part; then all of it is judged. Errors are a
/// violation, unless the workers are to go on after them.
pub fn with_everybody_at_work(
    run: &mut Run,
    bed: &Bed,
    part: usize,
    on_error: OnError,
    faults: impl FnOnce(&mut Run, &Work) -> Result<()>,
) -> Result<()> {
    let [ledger, registers, moves] = ["ledger", "registers", "moves"].map(|what| format!("{what}{part}"));
    let seed = run.seed.wrapping_add(part as u64);
    let work = Work {
        ledger: bed.ledger(&ledger, seed, on_error)?,
        registers: Registers::start(&bed.mounts, &registers, seed)?,
        renames: Renames::start(&bed.mounts, &moves, seed)?,
    };
    work.go_on(20)?;
    let outcome = faults(run, &work);
    let (written, seen, moved) = (work.ledger.abandon()?, work.registers.finish()?, work.renames.finish()?);
    match on_error {
        OnError::Stop => {
            run.expect_no_errors(&written.errors);
            run.expect_no_errors(&seen.errors);
            run.expect_no_errors(&moved.errors);
        }
        OnError::GoOn => {
            let errors = written.errors.len() + seen.errors.len() + moved.errors.len();
            run.say(run.done.rounds, "calls of those who were cut off", format!("{errors} ended with an error"));
        }
    }
    outcome?;
    let at_rest = run.settle(bed, &written)?;
    seen.check(&mut run.verdict);
    moved.check(&bed.mounts[1], &mut run.verdict);
    run.say(
        run.done.rounds,
        "all checked",
        format!(
            "{} steps, {} register operations, {} moves, {} chunks",
            written.steps,
            seen.operations(),
            moved.moves,
            at_rest.chunks
        ),
    );
    if seen.outrun > 0 {
        run.done.figures.push(format!("{} reads of a link that was being replaced met ESTALE", seen.outrun));
    }
    [ledger, registers, moves].iter().try_for_each(|name| bed.clear(name))
}

/// How long an application waits that writes and syncs a new file just now.
fn write_gap(bed: &Bed, number: u64) -> Result<Duration> {
    let (path, begun) = (bed.mounts[0].join(format!("gap{number}")), Instant::now());
    let file = std::fs::File::create(&path)?;
    std::os::unix::fs::FileExt::write_all_at(&file, b"after the kill", 0)?;
    file.sync_all()?;
    Ok(begun.elapsed())
}

/// A datanode counts again when it has been heard.
pub fn wait_until_live(bed: &Bed, node: &str) -> Result<()> {
    let heard = wait(&format!("{node} is heard"), DEADLINE, || {
        let Ok(status) = bed.cluster.status() else { return Ok(false) };
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        Ok(nodes.iter().all(|found| found["name"] != node || found["state"] == "live"))
    });
    heard.map(drop)
}

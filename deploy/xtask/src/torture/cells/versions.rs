//! M19: data that earlier states of the program have written, and nodes that change their version one by one while
//! everybody works.
//!
//! With `--other-program` a cluster begins with that one, goes over to the program under test node by node, runs for a
//! while with mounts of both, and goes back. Without it there is one version only: then this shows that the old data is
//! opened, and that each node can be stopped in order and started again on it.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dfs_cluster::fixture::{self, Fixture, Manifest};
use dfs_cluster::{Invariant, OnError};

use crate::torture::cells::kills::{wait_until_live, with_everybody_at_work};
use crate::torture::plan::{Kind, Planned, Shape, plan};
use crate::torture::run::{Bed, DEADLINE, Run};

const SHAPE: Shape = Shape { namenodes: fixture::NAMENODES, datanodes: fixture::DATANODES };

pub fn mixed(run: &mut Run) -> Result<()> {
    let fixtures = Fixture::all()?;
    ensure!(!fixtures.is_empty(), "there is no fixture");
    let new = run.program.clone();
    let old = run.other_program.clone().unwrap_or_else(|| new.clone());
    let (mut changes, mut names) = (0, 0);
    // Each is taken in turn, and each round begins with what it was when it was packed.
    let turns = plan(Kind::Versions, run.seed, run.rounds, SHAPE);
    for ((number, turn), fixture) in (0..).zip(turns).zip(fixtures.iter().cycle()) {
        if !run.goes_on() {
            break;
        }
        let Planned::Versions { there, back } = &turn.fault else { unreachable!("plans of versions") };
        let begun = Instant::now();
        let bed = run.bed_of(&format!("versions{number}"), fixture, &old)?;
        bed.cluster.wait_healthy(DEADLINE)?;
        let expected = fixture.manifest()?;
        holds(run, &bed, &expected)?;
        names += expected.names();
        let parts = [(there, &new), (back, &old)];
        for (part, (order, program)) in parts.into_iter().enumerate() {
            with_everybody_at_work(run, &bed, part, OnError::Stop, |run, work| {
                for node in order {
                    change(&bed, node, program)?;
                    changes += 1;
                    run.verdict.hold(Invariant::CallsEnd, work.go_on(turn.after_steps.min(60)))?;
                }
                Ok(())
            })?;
            // Nobody works now: a mount takes everything that is open on it along. One of them keeps its version.
            change(&bed, "m2", program)?;
            alike(run, &bed)?;
            holds(run, &bed, &expected)?;
        }
        with_everybody_at_work(run, &bed, 2, OnError::Stop, |run, work| {
            run.verdict.hold(Invariant::CallsEnd, work.go_on(turn.after_steps.min(60)))
        })?;
        run.done.rounds += 1;
        let took = begun.elapsed().as_secs_f64();
        run.say(run.done.rounds, &turn.fault, format!("{} opened, {took:.0} s", fixture.name()));
    }
    let versions = if run.other_program.is_some() { "two versions" } else { "one version only" };
    run.done.figures.push(format!(
        "{} fixtures, {names} names compared; {changes} nodes stopped and started under load, {versions}",
        fixtures.len()
    ));
    Ok(())
}

/// Stops a node or mount in order, as an administrator does, and has it go on with this program.
fn change(bed: &Bed, name: &str, program: &Path) -> Result<()> {
    bed.cluster.stop(name)?;
    bed.cluster.start_all_with(program)?;
    let runs = bed.cluster.program_of(name)?;
    ensure!(runs == program, "{name} runs {}", runs.display());
    // The next one goes only when this one is back.
    bed.cluster.wait_caught_up(DEADLINE)?;
    wait_until_live(bed, name)
}

/// What the fixture's list says is there, on both mounts.
fn holds(run: &mut Run, bed: &Bed, expected: &Manifest) -> Result<()> {
    for mount in &bed.mounts {
        let found = Manifest::of(mount).context("read everything")?;
        run.verdict.fine(Invariant::AcknowledgedSurvives, expected.names() as u64);
        run.verdict.hold(Invariant::OnlyRightBytes, expected.expect_in(&found))?;
    }
    Ok(())
}

/// The states of all namenodes have the same hash.
fn alike(run: &mut Run, bed: &Bed) -> Result<()> {
    run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.run(["namenode", "hash"])).map(drop)
}

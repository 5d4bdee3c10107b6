//! A whole cluster in one process, over a network in memory, in time that passes only when nobody has anything to do: three
//! namenodes, four datanodes and three clients as they are, with faults and work that follow from a seed.
//!
//! * `bed`: the machines, their nodes and their clients.
//! * `faults`: what is done to them.
//! * `work`: what the clients do, and what they were promised.
//! * `checks`: what must hold in the end.
//! * `returning`, `moved`: courses of events that no seed need come upon.
//!
//! The seed decides what is cut, stopped and delayed for how long, and what each client does after how long a pause. It does
//! not decide how threads interleave, nor what the nodes draw by themselves (election timeouts, placement, keys): the same
//! seed gives the same faults at the same virtual moments, to a cluster that may be at another step.

mod bed;
mod checks;
mod faults;
mod moved;
mod returning;
mod work;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use dfs_cluster::{Invariant, Verdict};
use dfs_rpc::VirtualTime;

use bed::Bed;
use work::Work;

/// Those that always run: every shape of fault is in one of them.
const SEEDS: [u64; 3] = [1, 2, 4];

/// With everything mended clients may need that long to find each other again: a lease has to run out, and an election.
const GRACE: Duration = Duration::from_secs(20);
/// For so long afterwards nothing may fail.
const CALM: Duration = Duration::from_secs(15);

/// What a run came to.
struct Outcome {
    verdict: Verdict,
    figures: String,
}

#[test]
fn promises_are_kept_whatever_is_cut_off_and_stopped() {
    let seeds = seeds().unwrap_or_else(|error| panic!("{error:#}"));
    let failed: Vec<u64> = seeds.into_iter().filter(|seed| !holds(*seed)).collect();
    assert!(failed.is_empty(), "failed: seeds {failed:?}");
}

#[test]
fn a_leader_that_comes_back_by_a_snapshot_serves_when_it_leads_again() {
    in_virtual_time(returning::by_a_snapshot()).unwrap_or_else(|error| panic!("{error:?}"));
}

#[test]
fn whoever_has_a_file_open_finds_bytes_that_were_put_into_another_chunk() {
    in_virtual_time(moved::by_compaction()).unwrap_or_else(|error| panic!("{error:?}"));
}

/// `DFS_SIM_SEED`, and as many from there on as `DFS_SIM_SEEDS` says.
fn seeds() -> Result<Vec<u64>> {
    let number = |name: &str| match std::env::var(name) {
        Ok(text) => text.parse().map(Some).with_context(|| format!("{name} is no number: {text}")),
        Err(_) => Ok(None),
    };
    let (first, count) = (number("DFS_SIM_SEED")?, number("DFS_SIM_SEEDS")?);
    Ok(match (first, count) {
        (None, None) => SEEDS.to_vec(),
        (first, count) => (first.unwrap_or(1)..).take(count.unwrap_or(1) as usize).collect(),
    })
}

/// Runs one seed and says how it went.
fn holds(seed: u64) -> bool {
    let begun = Instant::now();
    println!("simulation of seed {seed}");
    let outcome = in_virtual_time(run(seed));
    let took = begun.elapsed().as_secs_f64();
    let fine = match &outcome {
        Ok(Outcome { verdict, figures }) => {
            let checked = verdict.checked.iter().map(|(invariant, count)| format!("I{} {count}", invariant.number()));
            println!("  {figures}; {took:.1} s of real time");
            println!("  checked: {}", checked.collect::<Vec<_>>().join(", "));
            verdict.violations.iter().take(10).for_each(|violation| println!("  VIOLATION {violation}"));
            verdict.is_clean()
        }
        Err(error) => {
            println!("  ENDED EARLY after {took:.1} s: {error:#}");
            false
        }
    };
    if !fine {
        println!("  again: cargo xtask torture --simulate --seed {seed}");
    }
    fine
}

/// Runs a future on a thread whose time passes only when nobody has anything to do.
fn in_virtual_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let clock: Arc<OnceLock<VirtualTime>> = Arc::default();
    let of_thread = clock.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .on_thread_start(move || of_thread.get_or_init(VirtualTime::start).install())
        .build();
    runtime.context("start a runtime")?.block_on(async {
        clock.get_or_init(VirtualTime::start).install();
        bed::log();
        work.await
    })
}

async fn run(seed: u64) -> Result<Outcome> {
    let mut verdict = Verdict::default();
    let mut bed = Bed::start(seed).await?;
    let work = Work::start(&bed, seed).await?;
    faults::inflict(&mut bed, seed).await;

    // Everything is whole again: it has to work as if nothing had been.
    bed.make_whole();
    tokio::time::sleep(GRACE).await;
    work.expect_no_error();
    tokio::time::sleep(CALM).await;
    let report = work.finish().await?;
    report.check(&mut verdict);
    let healthy = checks::at_rest(&bed, &report, &mut verdict).await;
    bed.check_nodes(&mut verdict);
    let compaction = bed.observer.status_any().await.map(|status| status.compaction).unwrap_or_default();
    let figures = format!(
        "{} faults, {} leaders, {} register operations, {} files synced, {} chunks compacted by the last leader, {} calls \
         failed, healthy after {:.0} s, {:.0} s of virtual time",
        bed.faults,
        bed.terms.len(),
        report.operations(),
        report.synced.len(),
        compaction.done,
        report.errors.len(),
        healthy.as_secs_f64(),
        bed.elapsed().as_secs_f64()
    );
    if !verdict.is_clean() {
        report.errors.iter().take(20).for_each(|error| println!("  error: {error}"));
    }
    let stopped = bed.stop().await;
    verdict.hold(Invariant::CallsEnd, stopped).ok();
    Ok(Outcome { verdict, figures })
}

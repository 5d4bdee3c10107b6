//! M18: a client dies with files open, bytes not synced and locks held.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfs_cluster::fault::process;
use dfs_cluster::{Invariant, check_at_rest};
use rustix::fs::{FlockOperation, flock};

use crate::torture::run::{Bed, DEADLINE, Run, wait};

/// The last of them is synced, and with it the names of all.
const FILES: usize = 99;
const BYTES: usize = 8192;

pub fn die(run: &mut Run) -> Result<()> {
    let bed = run.bed("clients", &[])?;
    let mut longest = Duration::ZERO;
    for number in 1..=run.rounds {
        if !run.goes_on() {
            break;
        }
        let freed = one_death(run, &bed, number)?;
        longest = longest.max(freed);
        run.done.rounds += 1;
        run.say(
            number,
            format!("kill -9 of a mount with {FILES} files open"),
            format!("free after {:.1} s", freed.as_secs_f64()),
        );
    }
    run.done.figures.push(format!("locks and chunks were free after {:.1} s at most", longest.as_secs_f64()));
    Ok(())
}

/// How long locks were held and chunks open after the client had died.
fn one_death(run: &mut Run, bed: &Bed, number: u64) -> Result<Duration> {
    let name = format!("round{number}");
    let (dies, lives) = (bed.mounts[1].join(&name), bed.mounts[0].join(&name));
    fs::create_dir(&dies)?;
    let mut open = Vec::new();
    for index in 0..FILES {
        let mut file = File::create_new(dies.join(index.to_string()))?;
        file.write_all(&[index as u8 + 1; BYTES])?;
        // Half of them are promised; of the others any front part may be there.
        if index % 2 == 0 {
            file.sync_all()?;
            run.done.acknowledged += 1;
        }
        open.push(file);
    }
    flock(&open[0], FlockOperation::LockExclusive)?;
    let killed = process::kill(&bed.cluster, &["m2".to_owned()])?;
    let begun = Instant::now();
    drop(open);
    let locked = OpenOptions::new().read(true).write(true).open(lives.join("0"))?;
    let free =
        wait("its lock is free", DEADLINE, || Ok(flock(&locked, FlockOperation::NonBlockingLockExclusive).is_ok()));
    run.verdict.hold(Invariant::CallsEnd, free)?;
    let closed = wait("its chunks are sealed", DEADLINE, || {
        let status = bed.cluster.status()?;
        Ok(status["chunks"]["open"] == 0)
    });
    run.verdict.hold(Invariant::NothingOrphaned, closed)?;
    let freed = begun.elapsed();
    drop(locked);
    for index in 0..FILES {
        let found = fs::read(lives.join(index.to_string())).with_context(|| format!("read file {index}"));
        let outcome = found.and_then(|bytes| {
            ensure!(bytes.iter().all(|byte| *byte == index as u8 + 1), "file {index} holds what nobody wrote");
            ensure!(index % 2 == 1 || bytes.len() == BYTES, "file {index} has {} bytes of {BYTES}", bytes.len());
            Ok(())
        });
        let _ = run.verdict.hold(Invariant::AcknowledgedSurvives, outcome);
    }
    killed.undo()?;
    bed.start_all()?;
    check_at_rest(&bed.cluster, DEADLINE, &mut run.verdict)?;
    bed.clear(&name)?;
    Ok(freed)
}

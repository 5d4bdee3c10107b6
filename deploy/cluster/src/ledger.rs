//! A ledger of acknowledged operations: what a program was told is safe, to be checked after a fault.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Writers that create, sync, rename and remove files in a folder, one operation after the other, and
/// write down each only after the system call has returned.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    /// System calls that have returned success so far, of all writers.
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<(Book, Result<()>)>>,
}

/// What one writer was told.
#[derive(Default)]
struct Book {
    /// Files that must exist with exactly these bytes.
    present: BTreeMap<PathBuf, Vec<u8>>,
    /// Names that must not exist.
    absent: Vec<PathBuf>,
    /// How long each system call took.
    calls: Vec<Duration>,
}

/// The whole of what was acknowledged.
#[derive(Debug)]
pub struct LedgerReport {
    /// How long each system call took, the longest last.
    pub calls: Vec<Duration>,
    present: BTreeMap<PathBuf, Vec<u8>>,
    absent: Vec<PathBuf>,
}

impl Ledger {
    /// Starts `writers` threads, each in a folder of its own below `dir`. Bytes come from `seed`.
    pub fn start(dir: &Path, writers: usize, seed: u64) -> Result<Ledger> {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let writers = (0..writers)
            .map(|writer| {
                let folder = dir.join(format!("writer{writer}"));
                fs::create_dir_all(&folder)?;
                let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
                let seed = seed.wrapping_add(writer as u64);
                Ok(std::thread::spawn(move || write_until(&folder, seed, &stop, &acknowledged)))
            })
            .collect::<Result<_>>()?;
        Ok(Ledger { stop, acknowledged, writers })
    }

    /// Whether a writer has ended, which it does by itself only on an error.
    pub fn has_failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished)
    }

    /// Waits until so many more system calls have returned success.
    ///
    /// # Errors
    /// When a writer has met an error, or it takes longer than `deadline`.
    pub fn go_on(&self, calls: u64, deadline: Duration) -> Result<()> {
        let (goal, end) = (self.acknowledged.load(Ordering::Relaxed) + calls, Instant::now() + deadline);
        while self.acknowledged.load(Ordering::Relaxed) < goal {
            if self.has_failed() {
                bail!("a writer met an error");
            }
            if Instant::now() >= end {
                bail!("the writers do not get on");
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends the writers. An error that any of them met is this error.
    pub fn finish(self) -> Result<LedgerReport> {
        let (report, outcomes) = self.close()?;
        outcomes.into_iter().collect::<Result<()>>()?;
        Ok(report)
    }

    /// Ends writers whose file system was taken away: an error only ends a writer, and what it had been
    /// told before that still counts.
    pub fn abandon(self) -> Result<LedgerReport> {
        Ok(self.close()?.0)
    }

    fn close(self) -> Result<(LedgerReport, Vec<Result<()>>)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut outcomes = Vec::new();
        let mut report = LedgerReport { calls: Vec::new(), present: BTreeMap::new(), absent: Vec::new() };
        for writer in self.writers {
            let (book, outcome) = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
            outcomes.push(outcome);
            report.calls.extend(book.calls);
            report.present.extend(book.present);
            report.absent.extend(book.absent);
        }
        report.calls.sort_unstable();
        Ok((report, outcomes))
    }
}

impl LedgerReport {
    /// The time that so many of a thousand calls did not exceed: 1000 for the longest stall.
    pub fn within(&self, thousandths: usize) -> Duration {
        let last = self.calls.len().saturating_sub(1);
        self.calls.get(last * thousandths.min(1000) / 1000).copied().unwrap_or_default()
    }

    /// Reads everything back. Fails with the first acknowledged operation that was lost.
    pub fn verify(&self) -> Result<()> {
        for (path, bytes) in &self.present {
            let found = fs::read(path).with_context(|| format!("acknowledged file {} is lost", path.display()))?;
            if &found != bytes {
                bail!("{} has {} bytes that differ from the {} acknowledged", path.display(), found.len(), bytes.len());
            }
        }
        for path in &self.absent {
            if !self.present.contains_key(path) && path.symlink_metadata().is_ok() {
                bail!("{} was removed, and is back", path.display());
            }
        }
        Ok(())
    }
}

/// Most files a writer keeps; beyond it the oldest is removed, so that unlink is part of the mix.
const FILES_KEPT: usize = 200;

fn write_until(folder: &Path, seed: u64, stop: &AtomicBool, acknowledged: &AtomicU64) -> (Book, Result<()>) {
    let mut book = Book::default();
    let outcome = write_into(&mut book, folder, seed, stop, acknowledged);
    (book, outcome)
}

fn write_into(book: &mut Book, folder: &Path, seed: u64, stop: &AtomicBool, acknowledged: &AtomicU64) -> Result<()> {
    let mut calls = Vec::new();
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut bytes = vec![0; (number as usize * 7919) % 60_000 + 1];
        blake3::Hasher::new().update(&seed.to_le_bytes()).update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let (temporary, path) = (folder.join(format!(".{number}.new")), folder.join(number.to_string()));
        let mut file = timed(&mut calls, "create", &temporary, || File::create(&temporary))?;
        timed(&mut calls, "write", &temporary, || file.write_all(&bytes))?;
        timed(&mut calls, "fsync", &temporary, || file.sync_all())?;
        drop(file);
        timed(&mut calls, "rename", &temporary, || fs::rename(&temporary, &path))?;
        book.present.insert(path, bytes);
        book.absent.push(temporary);
        if book.present.len() > FILES_KEPT {
            let oldest = folder.join((number - FILES_KEPT as u64).to_string());
            // An unlink whose answer is awaited may have happened or not: until then it is in neither list.
            book.present.remove(&oldest);
            timed(&mut calls, "unlink", &oldest, || fs::remove_file(&oldest))?;
            book.absent.push(oldest);
        }
        acknowledged.fetch_add(calls.len() as u64, Ordering::Relaxed);
        book.calls.append(&mut calls);
    }
    Ok(())
}

fn timed<T>(
    calls: &mut Vec<Duration>,
    what: &str,
    path: &Path,
    call: impl FnOnce() -> std::io::Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let done = call().with_context(|| format!("{what} {}", path.display()))?;
    calls.push(started.elapsed());
    Ok(done)
}

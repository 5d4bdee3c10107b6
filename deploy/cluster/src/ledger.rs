//! A ledger of acknowledged operations: what a program was told is safe, to be checked after a fault.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Writers that create, sync, rename and remove files in a folder, one operation after the other, and
/// write down each only after the system call has returned.
pub struct Ledger {
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<(Book, Result<()>)>>,
}

/// What one writer was told.
#[derive(Default)]
struct Book {
    /// Files that must exist with exactly these bytes.
    present: BTreeMap<PathBuf, Vec<u8>>,
    /// Names that must not exist.
    absent: Vec<PathBuf>,
    operations: u64,
    longest_stall: Duration,
}

/// The whole of what was acknowledged.
#[derive(Debug)]
pub struct LedgerReport {
    pub operations: u64,
    pub longest_stall: Duration,
    present: BTreeMap<PathBuf, Vec<u8>>,
    absent: Vec<PathBuf>,
}

impl Ledger {
    /// Starts `writers` threads, each in a folder of its own below `dir`. Bytes come from `seed`.
    pub fn start(dir: &Path, writers: usize, seed: u64) -> Result<Ledger> {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..writers)
            .map(|writer| {
                let folder = dir.join(format!("writer{writer}"));
                fs::create_dir_all(&folder)?;
                let stop = stop.clone();
                Ok(std::thread::spawn(move || write_until(&folder, seed.wrapping_add(writer as u64), &stop)))
            })
            .collect::<Result<_>>()?;
        Ok(Ledger { stop, writers })
    }

    /// Whether a writer has ended, which it does by itself only on an error.
    pub fn has_failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished)
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
        let mut report =
            LedgerReport { operations: 0, longest_stall: Duration::ZERO, present: BTreeMap::new(), absent: Vec::new() };
        for writer in self.writers {
            let (book, outcome) = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
            outcomes.push(outcome);
            report.operations += book.operations;
            report.longest_stall = report.longest_stall.max(book.longest_stall);
            report.present.extend(book.present);
            report.absent.extend(book.absent);
        }
        Ok((report, outcomes))
    }
}

impl LedgerReport {
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

fn write_until(folder: &Path, seed: u64, stop: &AtomicBool) -> (Book, Result<()>) {
    let mut book = Book::default();
    let outcome = write_into(&mut book, folder, seed, stop);
    (book, outcome)
}

fn write_into(book: &mut Book, folder: &Path, seed: u64, stop: &AtomicBool) -> Result<()> {
    for number in 0u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut bytes = vec![0; (number as usize * 7919) % 60_000 + 1];
        blake3::Hasher::new().update(&seed.to_le_bytes()).update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
        let (temporary, path) = (folder.join(format!(".{number}.new")), folder.join(number.to_string()));
        let started = Instant::now();
        let mut file = File::create(&temporary).with_context(|| format!("create {}", temporary.display()))?;
        file.write_all(&bytes).with_context(|| format!("write {}", temporary.display()))?;
        file.sync_all().with_context(|| format!("fsync {}", temporary.display()))?;
        drop(file);
        fs::rename(&temporary, &path).with_context(|| format!("rename to {}", path.display()))?;
        book.longest_stall = book.longest_stall.max(started.elapsed());
        book.operations += 3;
        book.present.insert(path, bytes);
        book.absent.push(temporary);
        if book.present.len() > FILES_KEPT {
            let oldest = folder.join((number - FILES_KEPT as u64).to_string());
            // An unlink whose answer is awaited may have happened or not: until then it is in neither list.
            book.present.remove(&oldest);
            fs::remove_file(&oldest).with_context(|| format!("unlink {}", oldest.display()))?;
            book.operations += 1;
            book.absent.push(oldest);
        }
    }
    Ok(())
}

//! A large file that is written piece by piece, and read back while and after it grows.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{Advice, fadvise};

use crate::verdict::{Invariant, Verdict};

const PIECE: usize = 1 << 20;

/// A writer that streams files of a given size, one after the other, each synced at its end.
pub struct Stream {
    stop: Arc<AtomicBool>,
    pieces: Arc<AtomicU64>,
    writer: Option<JoinHandle<StreamReport>>,
}

/// What was streamed.
#[derive(Default)]
pub struct StreamReport {
    dir: PathBuf,
    seed: u64,
    /// Files that were synced, with their pieces.
    files: Vec<(String, u64)>,
    /// The longest time between two pieces.
    pub stall: Duration,
    pub bytes: u64,
    pub elapsed: Duration,
    pub errors: Vec<String>,
}

impl Stream {
    /// Files of `pieces` MiB below `dir`, of which the last two are kept.
    pub fn start(dir: &Path, pieces: u64, seed: u64) -> Result<Stream> {
        std::fs::create_dir_all(dir)?;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut report = StreamReport { dir: dir.to_owned(), seed, ..StreamReport::default() };
        let (stopped, counter) = (stop.clone(), done.clone());
        let writer = std::thread::spawn(move || {
            let begun = Instant::now();
            for number in 0u64.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                if let Err(error) = report.write_file(number, pieces, &stopped, &counter) {
                    report.errors.push(format!("{error:#}"));
                    break;
                }
            }
            report.elapsed = begun.elapsed();
            report
        });
        Ok(Stream { stop, pieces: done, writer: Some(writer) })
    }

    /// Waits until so many more MiB are written.
    pub fn go_on(&self, pieces: u64, deadline: Duration) -> Result<()> {
        let goal = self.pieces.load(Ordering::Relaxed) + pieces;
        crate::fault::poll_until(deadline, "the stream goes on", || {
            ensure!(self.writer.as_ref().is_some_and(|writer| !writer.is_finished()), "the stream met an error");
            Ok(self.pieces.load(Ordering::Relaxed) >= goal)
        })
    }

    /// Ends it. The file under way is closed, synced and as long as it got.
    pub fn finish(mut self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let writer = self.writer.take().context("it runs")?;
        writer.join().map_err(|_| anyhow!("the stream's writer panicked"))
    }
}

impl Drop for Stream {
    /// The thread ends by itself after the call under way.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl StreamReport {
    fn write_file(&mut self, number: u64, pieces: u64, stop: &AtomicBool, done: &AtomicU64) -> Result<()> {
        let name = format!("stream{number}");
        let path = self.dir.join(&name);
        let mut file = OpenOptions::new().create_new(true).write(true).open(&path)?;
        let mut bytes = vec![0; PIECE];
        let mut written = 0;
        while written < pieces && !stop.load(Ordering::Relaxed) {
            fill(&mut bytes, self.seed, number, written);
            let begun = Instant::now();
            file.write_all(&bytes).with_context(|| format!("write {}", path.display()))?;
            self.stall = self.stall.max(begun.elapsed());
            written += 1;
            self.bytes += PIECE as u64;
            done.fetch_add(1, Ordering::Relaxed);
        }
        let begun = Instant::now();
        file.sync_all().with_context(|| format!("fsync {}", path.display()))?;
        self.stall = self.stall.max(begun.elapsed());
        self.files.push((name, written));
        if self.files.len() > 2 {
            let (oldest, _) = self.files.remove(0);
            std::fs::remove_file(self.dir.join(oldest))?;
        }
        Ok(())
    }

    /// MiB of what is kept.
    pub fn kept_mib(&self) -> u64 {
        self.files.iter().map(|(_, pieces)| pieces).sum()
    }

    /// Reads what was synced back below `dir`, which shows the same folder.
    pub fn check(&self, dir: &Path, verdict: &mut Verdict) {
        for (number, (name, pieces)) in self.numbered() {
            let outcome = compare(&dir.join(name), self.seed, number, pieces);
            match outcome {
                Ok(()) => {
                    verdict.fine(Invariant::AcknowledgedSurvives, 1);
                    verdict.fine(Invariant::OnlyRightBytes, pieces);
                }
                Err((invariant, why)) => verdict.broken(invariant, why),
            }
        }
    }

    fn numbered(&self) -> impl Iterator<Item = (u64, (&str, u64))> {
        self.files.iter().filter_map(|(name, pieces)| {
            let number = name.strip_prefix("stream")?.parse().ok()?;
            Some((number, (name.as_str(), *pieces)))
        })
    }
}

fn compare(path: &Path, seed: u64, number: u64, pieces: u64) -> Result<(), (Invariant, String)> {
    let lost = |error: std::io::Error| (Invariant::AcknowledgedSurvives, format!("{}: {error}", path.display()));
    let mut file = File::open(path).map_err(lost)?;
    fadvise(&file, 0, None, Advice::DontNeed).map_err(|errno| lost(errno.into()))?;
    let (mut found, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    for piece in 0..pieces {
        file.read_exact(&mut found).map_err(lost)?;
        fill(&mut expected, seed, number, piece);
        if found != expected {
            let at = found.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(0);
            let text = format!("{} differs at byte {} of MiB {piece}", path.display(), at);
            return Err((Invariant::OnlyRightBytes, text));
        }
    }
    Ok(())
}

fn fill(bytes: &mut [u8], seed: u64, file: u64, piece: u64) {
    let mut hasher = blake3::Hasher::new();
    for number in [seed, file, piece] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.finalize_xof().fill(bytes);
}

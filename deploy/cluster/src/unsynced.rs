//! Files that are written and closed and never synced: a power cut may take any of their bytes, but only for an error.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use rustix::io::Errno;

use crate::dice::Dice;
use crate::ledger::Names;
use crate::verdict::{Invariant, Verdict};

/// Files of up to so many bytes: several share a chunk, and most have several frames.
const FILE_MAX: u64 = 300_000;

/// The oldest is removed when there are more.
const FILES_KEPT: u64 = 60;

/// Bytes read in one call afterwards: what the kernel reads at least.
const PIECE: usize = 4096;

/// A writer of such files, one after the other, until it meets an error.
pub struct Unsynced {
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<UnsyncedReport>>,
}

/// What was written.
#[derive(Debug)]
pub struct UnsyncedReport {
    dir: PathBuf,
    seed: u64,
    names: Names,
    /// The first one that was not removed, and the first one that may not be complete.
    kept_from: u64,
    closed_to: u64,
    /// The first one that was not begun.
    next: u64,
}

/// What became of it.
#[derive(Clone, Copy, Default, Debug)]
pub struct UnsyncedFound {
    /// Bytes of files that were closed.
    pub bytes: u64,
    /// Of them: those that are gone, each with an error.
    pub lost: u64,
    /// Files that were closed and are not there, because their names were written behind.
    pub absent: u64,
    /// The longest read.
    pub longest: Duration,
}

impl Unsynced {
    /// Below `dir`, with bytes that come from `seed`.
    pub fn start(dir: &Path, seed: u64, names: Names) -> Result<Unsynced> {
        fs::create_dir_all(dir)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, dir) = (stop.clone(), dir.to_owned());
        let writer = std::thread::spawn(move || {
            let mut report = UnsyncedReport { dir, seed, names, kept_from: 0, closed_to: 0, next: 0 };
            while !stopped.load(Ordering::Relaxed) && report.write_next().is_ok() {}
            report
        });
        Ok(Unsynced { stop, writer: Some(writer) })
    }

    /// Ends the writer; what it had closed before counts.
    pub fn abandon(mut self) -> Result<UnsyncedReport> {
        self.stop.store(true, Ordering::Relaxed);
        let writer = self.writer.take().ok_or_else(|| anyhow!("the writer has ended before"))?;
        writer.join().map_err(|_| anyhow!("the writer panicked"))
    }
}

impl Drop for Unsynced {
    /// The thread ends by itself after the call under way.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl UnsyncedReport {
    /// Where it was written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn write_next(&mut self) -> std::io::Result<()> {
        if self.next - self.kept_from >= FILES_KEPT {
            // Before it is tried: it may be gone although the answer says otherwise.
            self.kept_from += 1;
            fs::remove_file(self.dir.join((self.kept_from - 1).to_string()))?;
        }
        let file = File::create(self.dir.join(self.next.to_string()))?;
        // An error of close(2) is not seen here. But a mount that still answers has closed the one before.
        self.closed_to = self.next;
        self.next += 1;
        file.write_all_at(&content(self.seed, self.next - 1), 0)
    }

    /// Reads everything back below `dir`, which shows the same files on a mount that has not written them.
    pub fn check(&self, dir: &Path, verdict: &mut Verdict) -> UnsyncedFound {
        let mut found = UnsyncedFound::default();
        for number in self.kept_from..self.next {
            let (path, bytes) = (dir.join(number.to_string()), content(self.seed, number));
            let closed = number < self.closed_to;
            match File::open(&path) {
                Ok(_) if found.absent > 0 => {
                    let text = format!("{} is there, and one that was made before it is not", path.display());
                    verdict.broken(Invariant::NamespaceSound, text);
                }
                Ok(file) => {
                    let whole = closed && self.names == Names::Committed;
                    check_file(&path, &file, &bytes, whole, &mut found, verdict);
                }
                Err(error) if error.kind() == ErrorKind::NotFound && !closed => {}
                Err(error) if error.kind() == ErrorKind::NotFound && self.names == Names::WrittenBehind => {
                    found.absent += 1;
                }
                Err(error) => {
                    verdict.broken(Invariant::AcknowledgedSurvives, format!("{} was closed: {error}", path.display()))
                }
            }
        }
        found
    }
}

/// Of a file that must be there as a `whole`, or of which any front part may be there.
fn check_file(path: &Path, file: &File, bytes: &[u8], whole: bool, found: &mut UnsyncedFound, verdict: &mut Verdict) {
    let len = match file.metadata() {
        Ok(meta) => meta.len(),
        Err(error) => return verdict.broken(Invariant::CallsEnd, format!("stat {}: {error}", path.display())),
    };
    if whole && len != bytes.len() as u64 || len > bytes.len() as u64 {
        let text = format!("{} has {len} bytes, and {} were written", path.display(), bytes.len());
        return verdict.broken(Invariant::AcknowledgedSurvives, text);
    }
    found.bytes += len;
    for (piece, written) in bytes[..len as usize].chunks(PIECE).enumerate() {
        let (at, mut read, begun) = (piece * PIECE, vec![0; written.len()], Instant::now());
        let outcome = file.read_exact_at(&mut read, at as u64);
        found.longest = found.longest.max(begun.elapsed());
        match outcome {
            Ok(()) if read == written => verdict.fine(Invariant::OnlyRightBytes, 1),
            Ok(()) => {
                let zeros = read.iter().filter(|byte| **byte == 0).count();
                let text = format!("{} from byte {at}: other bytes than written, {zeros} zeros", path.display());
                verdict.broken(Invariant::OnlyRightBytes, text);
            }
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => found.lost += written.len() as u64,
            Err(error) => {
                verdict.broken(Invariant::CallsEnd, format!("read {} at {at}: {error}", path.display()));
            }
        }
    }
}

fn content(seed: u64, number: u64) -> Vec<u8> {
    let mut dice = Dice::apart(seed, &format!("unsynced {number}"));
    let mut bytes = vec![0; dice.between(1, FILE_MAX) as usize];
    blake3::Hasher::new().update(&dice.throw().to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(change: impl FnOnce(&Path)) -> (UnsyncedFound, bool) {
        checked_where(Names::Committed, change)
    }

    fn checked_where(names: Names, change: impl FnOnce(&Path)) -> (UnsyncedFound, bool) {
        let dir = tempfile::tempdir().unwrap();
        let dir_path = dir.path().to_owned();
        let mut report = UnsyncedReport { dir: dir_path, seed: 7, names, kept_from: 0, closed_to: 0, next: 0 };
        (0..FILES_KEPT + 5).for_each(|_| report.write_next().unwrap());
        change(dir.path());
        let mut verdict = Verdict::default();
        (report.check(dir.path(), &mut verdict), verdict.is_clean())
    }

    #[test]
    fn what_is_there_as_written_is_fine_and_anything_else_is_not() {
        let (found, clean) = checked(|_| {});
        assert!(clean && found.lost == 0 && found.bytes > 0);
        let last = (FILES_KEPT + 3).to_string();
        assert!(!checked(|dir| fs::remove_file(dir.join(&last)).unwrap()).1);
        assert!(!checked(|dir| fs::write(dir.join(&last), b"").unwrap()).1);
        let remove = |numbers: &[u64], dir: &Path| {
            numbers.iter().for_each(|number| fs::remove_file(dir.join(number.to_string())).unwrap());
        };
        let (end, behind) = (FILES_KEPT + 5, Names::WrittenBehind);
        let (found, clean) = checked_where(behind, |dir| remove(&[end - 3, end - 2, end - 1], dir));
        assert!(clean && found.absent == 2, "the last was not closed: {found:?}");
        assert!(!checked_where(behind, |dir| remove(&[end - 3], dir)).1, "out of order");
        let zeros = |dir: &Path| {
            let len = fs::metadata(dir.join(&last)).unwrap().len();
            fs::write(dir.join(&last), vec![0; len as usize]).unwrap();
        };
        assert!(!checked(zeros).1);
        // The last one was under way, for all that is known: it may be there in part.
        let next = FILES_KEPT + 4;
        assert!(checked(|dir| fs::write(dir.join(next.to_string()), &content(7, next)[..1]).unwrap()).1);
        assert!(!checked(|dir| fs::write(dir.join(next.to_string()), b"x").unwrap()).1 || content(7, next)[0] == b'x');
    }
}

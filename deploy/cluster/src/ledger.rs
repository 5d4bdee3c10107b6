//! A ledger of acknowledged operations: what a program was told is safe, to be checked after a fault.

mod book;

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::fs::{Advice, OFlags, fadvise};

use crate::dice::Dice;
use crate::verdict::{Invariant, Verdict};
pub use book::Names;
use book::{Book, Finding, State, Step};

/// Writers that create, append, sync, rename and remove files in folders of their own, one step after the other,
/// and write down each only after it has been acknowledged.
pub struct Ledger {
    dir: PathBuf,
    /// Open from the beginning: a sync of it that succeeds has stored all that was done on this mount.
    folder: File,
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<Outcome>>,
}

/// What writers do about an error of the file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnError {
    /// End, where no error may show.
    Stop,
    /// Note that the step may have happened, and go on with another.
    GoOn,
}

struct Shared {
    stop: AtomicBool,
    /// Steps acknowledged so far, by all writers.
    acknowledged: AtomicU64,
    on_error: OnError,
}

/// What one writer has done.
struct Outcome {
    book: Book,
    calls: Vec<Duration>,
    steps: u64,
    errors: Vec<CallError>,
}

/// A system call that failed.
#[derive(Clone, Debug)]
pub struct CallError {
    /// Its `errno`.
    pub errno: Option<i32>,
    /// Which call it was, on which path.
    pub text: String,
    pub at: Instant,
}

/// The whole of what was acknowledged.
#[derive(Debug)]
pub struct LedgerReport {
    /// How long each system call took, the longest last.
    pub calls: Vec<Duration>,
    /// Steps that were acknowledged.
    pub steps: u64,
    pub errors: Vec<CallError>,
    dir: PathBuf,
    books: Vec<(String, Book)>,
}

impl Ledger {
    /// Starts `writers` threads that end at the first error, each in a folder of its own below `dir`. Bytes come
    /// from `seed`.
    pub fn start(dir: &Path, writers: usize, seed: u64) -> Result<Ledger> {
        Ledger::start_with(dir, writers, seed, OnError::Stop, Names::Committed)
    }

    pub fn start_with(dir: &Path, writers: usize, seed: u64, on_error: OnError, names: Names) -> Result<Ledger> {
        let folders = (0..writers).map(|writer| dir.join(folder_of(writer)));
        folders.clone().try_for_each(fs::create_dir_all)?;
        let folder = File::open(dir)?;
        folder.sync_all()?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), acknowledged: AtomicU64::new(0), on_error });
        let writers = folders.enumerate().map(|(number, folder)| {
            let shared = shared.clone();
            let writer = Writer::new(folder, Dice::apart(seed, &folder_of(number)), names);
            std::thread::spawn(move || writer.run(&shared))
        });
        let writers = writers.collect();
        Ok(Ledger { dir: dir.to_owned(), folder, shared, writers })
    }

    /// Whether a writer has ended, which it does by itself only on an error.
    pub fn has_failed(&self) -> bool {
        self.writers.iter().any(JoinHandle::is_finished)
    }

    /// Steps acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until so many more steps have been acknowledged.
    ///
    /// # Errors
    /// When a writer has met an error, or it takes longer than `deadline`.
    pub fn go_on(&self, steps: u64, deadline: Duration) -> Result<()> {
        let (goal, end) = (self.acknowledged() + steps, Instant::now() + deadline);
        while self.acknowledged() < goal {
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
        let report = self.abandon()?;
        match report.errors.first() {
            Some(error) => bail!("{}", error.text),
            None => Ok(report),
        }
    }

    /// Ends writers whose file system was taken away: an error only ends a writer, and what it had been
    /// told before that still counts.
    pub fn abandon(mut self) -> Result<LedgerReport> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let (dir, writers) = (std::mem::take(&mut self.dir), std::mem::take(&mut self.writers));
        let mut report = LedgerReport { calls: Vec::new(), steps: 0, errors: Vec::new(), dir, books: Vec::new() };
        for (number, writer) in writers.into_iter().enumerate() {
            let outcome = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
            report.calls.extend(outcome.calls);
            report.steps += outcome.steps;
            report.errors.extend(outcome.errors);
            report.books.push((folder_of(number), outcome.book));
        }
        // Fails on a mount that is dead, or that has lost something.
        if self.folder.sync_all().is_ok() {
            report.books.iter_mut().for_each(|(_, book)| book.synced());
        }
        report.calls.sort_unstable();
        Ok(report)
    }
}

impl Drop for Ledger {
    /// The threads end by themselves after the call under way.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn folder_of(writer: usize) -> String {
    format!("writer{writer}")
}

impl LedgerReport {
    /// Where it was written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The time that so many of a thousand calls did not exceed: 1000 for the longest stall.
    pub fn within(&self, thousandths: usize) -> Duration {
        let last = self.calls.len().saturating_sub(1);
        self.calls.get(last * thousandths.min(1000) / 1000).copied().unwrap_or_default()
    }

    /// Reads everything back where it was written. Fails with the first acknowledged operation that was lost.
    pub fn verify(&self) -> Result<()> {
        let mut verdict = Verdict::default();
        self.check(&self.dir, &mut verdict);
        match verdict.violations.first() {
            Some(violation) => bail!("{violation}"),
            None => Ok(()),
        }
    }

    /// Reads everything back below `dir`, which shows the same files as the folder they were written in, on
    /// another mount perhaps. The kernel's pages are not believed. How many steps that nobody was promised are lost.
    pub fn check(&self, dir: &Path, verdict: &mut Verdict) -> usize {
        let mut lost = 0;
        for (folder, book) in &self.books {
            let folder = dir.join(folder);
            let checked = book.check(|name, least| found(&folder.join(name), least));
            lost += checked.lost;
            verdict.fine(Invariant::AcknowledgedSurvives, book.names().count() as u64);
            verdict.fine(Invariant::OnlyRightBytes, book.present().count() as u64);
            for finding in checked.findings {
                let (invariant, text) = match finding {
                    Finding::Lost(text) | Finding::Back(text) => (Invariant::AcknowledgedSurvives, text),
                    Finding::Wrong(text) => (Invariant::OnlyRightBytes, text),
                };
                verdict.broken(invariant, format!("{}: {text}", folder.display()));
            }
            for name in strangers(book, &folder) {
                verdict.broken(Invariant::NamespaceSound, format!("{} was never made", folder.join(name).display()));
            }
        }
        lost
    }
}

/// Names in the writer's folders that it has not made.
fn strangers(book: &Book, folder: &Path) -> Vec<PathBuf> {
    let folders = book.present().filter(|(_, state)| **state == State::Folder).map(|(name, _)| name);
    let folders = std::iter::once(Path::new("")).chain(folders);
    let entries = folders.flat_map(|below| {
        let entries = fs::read_dir(folder.join(below)).into_iter().flatten().flatten();
        entries.map(move |entry| below.join(entry.file_name()))
    });
    entries.filter(|name| !book.knows(name)).collect()
}

/// What is under a name, read from the cluster and not from the kernel's pages. If the whole cannot be read, at
/// least the first `least` bytes are tried.
fn found(path: &Path, least: usize) -> State {
    let read = || -> io::Result<State> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(State::Absent),
            Err(error) => return Err(error),
            Ok(metadata) if metadata.is_dir() => return Ok(State::Folder),
            Ok(_) => {}
        }
        let mut file = File::open(path)?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(State::File(bytes))
    };
    read().or_else(|_| read_front(path, least)).unwrap_or_else(|error| State::Unreadable(error.to_string()))
}

/// Exactly so many bytes: the kernel would ask for whole pages.
fn read_front(path: &Path, least: usize) -> io::Result<State> {
    let direct = OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(direct).open(path)?;
    let mut front = vec![0; least];
    file.read_exact_at(&mut front, 0)?;
    Ok(State::Torn(front))
}

/// Most files a writer keeps; beyond it the oldest is removed, so that unlink is part of the mix.
const FILES_KEPT: usize = 100;

/// Bytes of an append at most: small files share a chunk, and several of them one frame.
const APPEND_MAX: u64 = 60_000;

/// A file that has become longer is not appended to any more.
const FILE_MAX: usize = 400_000;

/// So many steps may end with an error before a writer gives up.
const ERRORS_MAX: usize = 10_000;

/// Between a call that failed and the next one.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

struct Writer {
    folder: PathBuf,
    dice: Dice,
    outcome: Outcome,
}

/// Why a writer does not go on.
struct Ended;

impl Writer {
    fn new(folder: PathBuf, dice: Dice, names: Names) -> Writer {
        let (calls, errors) = (Vec::new(), Vec::new());
        Writer { folder, dice, outcome: Outcome { book: Book::new(names), calls, steps: 0, errors } }
    }

    fn run(mut self, shared: &Shared) -> Outcome {
        for number in 0u64.. {
            if shared.stop.load(Ordering::Relaxed) || self.round(number, shared).is_err() {
                break;
            }
        }
        self.outcome
    }

    /// A new file in a new or an old place, an append to an old one, and room for the next.
    fn round(&mut self, number: u64, shared: &Shared) -> Result<(), Ended> {
        let mut place = PathBuf::new();
        if self.dice.one_in(8) {
            place = format!("folder{number}").into();
            if !self.step(Step::MakeFolder(place.clone()), shared)? {
                place = PathBuf::new();
            }
        }
        let (new, name) = (place.join(format!(".{number}.new")), place.join(number.to_string()));
        let mut whole = self.step(Step::Create(new.clone()), shared)?;
        for _ in 0..self.dice.between(1, 3) {
            whole = whole && self.append(&new, shared)?;
        }
        if whole {
            // Now and then on top of another file.
            let target = if self.dice.one_in(4) { self.any_file() } else { None }.filter(|target| *target != new);
            self.step(Step::Rename(new, target.unwrap_or(name)), shared)?;
        }
        if self.dice.one_in(3)
            && let Some(name) = self.any_file()
        {
            self.append(&name, shared)?;
        }
        self.make_room(shared)
    }

    fn append(&mut self, name: &Path, shared: &Shared) -> Result<bool, Ended> {
        let mut bytes = vec![0; self.dice.between(1, APPEND_MAX) as usize];
        blake3::Hasher::new().update(&self.dice.throw().to_le_bytes()).finalize_xof().fill(&mut bytes);
        self.step(Step::Append(name.to_owned(), bytes), shared)
    }

    fn make_room(&mut self, shared: &Shared) -> Result<(), Ended> {
        let files = self.files();
        if files.len() > FILES_KEPT {
            let oldest = self.dice.pick(&files).clone();
            self.step(Step::Remove(oldest), shared)?;
        }
        let empty = self.outcome.book.present().find(|(name, state)| **state == State::Folder && self.is_empty(name));
        if let Some(folder) = empty.map(|(name, _)| name.to_owned()) {
            self.step(Step::RemoveFolder(folder), shared)?;
        }
        Ok(())
    }

    fn files(&self) -> Vec<PathBuf> {
        let files = self.outcome.book.present().filter(|(_, state)| matches!(state, State::File(_)));
        files.map(|(name, _)| name.to_owned()).collect()
    }

    /// One that may become longer.
    fn any_file(&mut self) -> Option<PathBuf> {
        let short = |state: &State| matches!(state, State::File(bytes) if bytes.len() < FILE_MAX);
        let names = self.outcome.book.present().filter(|(_, state)| short(state));
        let names: Vec<PathBuf> = names.map(|(name, _)| name.to_owned()).collect();
        (!names.is_empty()).then(|| self.dice.pick(&names).clone())
    }

    /// Nothing that is or may be in it.
    fn is_empty(&self, folder: &Path) -> bool {
        let book = &self.outcome.book;
        let mut inside = book.present().map(|(name, _)| name).filter(|name| name.parent() == Some(folder));
        inside.next().is_none() && !book.doubts_below(folder)
    }

    /// Whether it was acknowledged.
    fn step(&mut self, step: Step, shared: &Shared) -> Result<bool, Ended> {
        let outcome = &mut self.outcome;
        outcome.book.begin(step.clone());
        let known = |name: &Path| outcome.book.state(name);
        match carry_out(&self.folder, &step, known, &mut outcome.calls) {
            Ok(()) => {
                outcome.book.acknowledge();
                outcome.steps += 1;
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Err((what, error)) => {
                outcome.book.doubt();
                let text = format!("{what} {}: {error}", self.folder.join(step.names()[0]).display());
                outcome.errors.push(CallError { errno: error.raw_os_error(), text, at: Instant::now() });
                let mount_is_gone = matches!(error.kind(), ErrorKind::NotConnected | ErrorKind::ConnectionAborted);
                if shared.on_error == OnError::Stop || mount_is_gone || outcome.errors.len() >= ERRORS_MAX {
                    return Err(Ended);
                }
                std::thread::park_timeout(ERROR_PAUSE);
                Ok(false)
            }
        }
    }
}

type Failed = (&'static str, io::Error);

fn carry_out(
    folder: &Path,
    step: &Step,
    known: impl Fn(&Path) -> State,
    calls: &mut Vec<Duration>,
) -> Result<(), Failed> {
    let at = |name: &Path| folder.join(name);
    match step {
        Step::Create(name) => timed(calls, "create", || File::create_new(at(name))).map(drop),
        Step::Append(name, bytes) => {
            let State::File(before) = known(name) else { panic!("{} is no file", name.display()) };
            append(&at(name), before.len() as u64, bytes, calls)
        }
        Step::Rename(from, to) => timed(calls, "rename", || fs::rename(at(from), at(to))),
        Step::Remove(name) => timed(calls, "unlink", || fs::remove_file(at(name))),
        Step::MakeFolder(name) => timed(calls, "mkdir", || fs::create_dir(at(name))),
        Step::RemoveFolder(name) => timed(calls, "rmdir", || fs::remove_dir(at(name))),
    }
}

/// Both ways to write at the end: where this program knows it to be, and where the file system does.
fn append(path: &Path, end: u64, bytes: &[u8], calls: &mut Vec<Duration>) -> Result<(), Failed> {
    let by_flag = bytes.len().is_multiple_of(2);
    let mut options = OpenOptions::new();
    let options = if by_flag { options.append(true) } else { options.write(true) };
    let mut file = timed(calls, "open", || options.open(path))?;
    timed(calls, "write", || if by_flag { file.write_all(bytes) } else { file.write_all_at(bytes, end) })?;
    timed(calls, "fsync", || file.sync_all())
}

fn timed<T>(calls: &mut Vec<Duration>, what: &'static str, call: impl FnOnce() -> io::Result<T>) -> Result<T, Failed> {
    let started = Instant::now();
    let done = call();
    calls.push(started.elapsed());
    done.map_err(|error| (what, error))
}

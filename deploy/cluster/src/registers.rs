//! Registers that clients on several mounts write and read at the same time, and the question afterwards whether
//! anybody went back in time.
//!
//! Two kinds of register, after two promises of the mount. A *name* is a symbolic link that is replaced by a rename: a
//! namespace operation that has returned is seen by every other mount at its next look-up, so everybody writes and
//! everybody reads. *Bytes* are the content of a file: close-to-open, so that one mount writes, syncs and closes, and
//! the others open and read. (On the writing mount a write shows before it is acknowledged, which is promised as well
//! and is no register.)

pub mod history;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::dice::Dice;
use crate::verdict::{Invariant, Verdict};
use history::{Action, INITIAL, Operation};

/// Few, so that operations on one of them meet.
const NAMES: usize = 3;
const FILES_FOR_EACH_MOUNT: usize = 2;
const CLIENTS_FOR_EACH_MOUNT: usize = 4;

/// Between a call that failed and the next one.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

pub struct Registers {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Log>>,
}

/// What one client did and saw: the register, the operation.
#[derive(Default)]
struct Log {
    operations: Vec<(Register, Operation)>,
    errors: Vec<String>,
    outrun: u64,
    /// How long each acknowledged write took.
    writes: Vec<Duration>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Register {
    Name(usize),
    /// Number, and the mount that writes it.
    Bytes(usize, usize),
}

/// All that the clients did.
#[derive(Default)]
pub struct RegistersReport {
    operations: Vec<(Register, Operation)>,
    /// Calls that failed.
    pub errors: Vec<String>,
    /// Reads of a name that ended with ESTALE: the link had been replaced between the kernel's look-up and its read, and
    /// again when it tried once more. They say nothing about the value, and are counted apart from errors: a local
    /// file system does not do this, and SEMANTICS.md does not say that the mount may.
    pub outrun: u64,
    /// How long each acknowledged write took, the longest last.
    pub writes: Vec<Duration>,
}

impl Registers {
    /// Starts clients on all `mounts`, which show the same cluster. The registers lie in the folder `folder` there.
    pub fn start(mounts: &[PathBuf], folder: &str, seed: u64) -> Result<Registers> {
        let first = mounts.first().context("one mount at least")?.join(folder);
        fs::create_dir_all(&first)?;
        for register in all(mounts.len()) {
            match register {
                Register::Name(_) => symlink(INITIAL.to_string(), register.path(&first))?,
                Register::Bytes(..) => store(&register.path(&first), INITIAL)?,
            }
        }
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (epoch, values) = (Instant::now(), Arc::new(AtomicU64::new(INITIAL + 1)));
        let mut clients = Vec::new();
        for (mount, path) in mounts.iter().enumerate() {
            for number in 0..CLIENTS_FOR_EACH_MOUNT {
                let mut client = Client {
                    dir: path.join(folder),
                    mount,
                    mounts: mounts.len(),
                    // The first of a mount is the one that writes its files: one write of a file at a time.
                    writes_files: number == 0,
                    // Who writes soon waits in a write for a leader that cannot do it. Reads must not be old even so.
                    only_reads: number == CLIENTS_FOR_EACH_MOUNT - 1,
                    epoch,
                    values: values.clone(),
                    dice: Dice::apart(seed, &format!("client {mount} {number}")),
                    log: Log::default(),
                };
                let (stop, done) = (stop.clone(), done.clone());
                clients.push(std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        client.operate();
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    client.log
                }));
            }
        }
        Ok(Registers { stop, done, clients })
    }

    /// Operations tried so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Waits until so many more operations have ended.
    pub fn go_on(&self, operations: u64, deadline: Duration) -> Result<()> {
        let goal = self.done() + operations;
        crate::fault::poll_until(deadline, "register operations go on", || Ok(self.done() >= goal))
    }

    pub fn finish(mut self) -> Result<RegistersReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut report = RegistersReport::default();
        for client in std::mem::take(&mut self.clients) {
            let log = client.join().map_err(|_| anyhow!("a client of the registers panicked"))?;
            report.operations.extend(log.operations);
            report.errors.extend(log.errors);
            report.outrun += log.outrun;
            report.writes.extend(log.writes);
        }
        report.writes.sort_unstable();
        Ok(report)
    }
}

impl Drop for Registers {
    /// The threads end by themselves after the call under way.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Whether what was done to each register can be put in order.
pub fn judge<R: Copy + Ord + std::fmt::Debug>(operations: &[(R, Operation)], verdict: &mut Verdict) {
    let mut registers: Vec<R> = operations.iter().map(|(register, _)| *register).collect();
    registers.sort_unstable();
    registers.dedup();
    for register in registers {
        let of_register = operations.iter().filter(|(of, _)| *of == register);
        let history: Vec<Operation> = of_register.map(|(_, operation)| *operation).collect();
        verdict.fine(Invariant::Linearizable, history.len() as u64);
        if let Err(why) = history::check(&history) {
            verdict.broken(Invariant::Linearizable, format!("register {register:?}: {why}"));
        }
    }
}

impl RegistersReport {
    pub fn check(&self, verdict: &mut Verdict) {
        judge(&self.operations, verdict);
    }

    /// Operations that are known to have happened.
    pub fn operations(&self) -> usize {
        self.operations.iter().filter(|(_, operation)| operation.end.is_some()).count()
    }
}

impl Register {
    fn path(self, dir: &Path) -> PathBuf {
        match self {
            Register::Name(number) => dir.join(format!("name{number}")),
            Register::Bytes(number, mount) => dir.join(format!("bytes{number}-of-mount{mount}")),
        }
    }
}

fn all(mounts: usize) -> Vec<Register> {
    let files = (0..mounts).flat_map(|mount| (0..FILES_FOR_EACH_MOUNT).map(move |n| Register::Bytes(n, mount)));
    (0..NAMES).map(Register::Name).chain(files).collect()
}

struct Client {
    dir: PathBuf,
    mount: usize,
    mounts: usize,
    writes_files: bool,
    only_reads: bool,
    epoch: Instant,
    /// The next value that nobody has written yet.
    values: Arc<AtomicU64>,
    dice: Dice,
    log: Log,
}

impl Client {
    fn operate(&mut self) {
        let register = *self.dice.pick(&all(self.mounts));
        match register {
            Register::Bytes(_, mount) if mount == self.mount => {
                if self.writes_files {
                    self.write(register);
                }
            }
            Register::Bytes(..) => self.read(register),
            Register::Name(_) if !self.only_reads && self.dice.one_in(3) => self.write(register),
            Register::Name(_) => self.read(register),
        }
    }

    fn write(&mut self, register: Register) {
        let value = self.values.fetch_add(1, Ordering::Relaxed);
        let (path, begin) = (register.path(&self.dir), self.now());
        let outcome = match register {
            Register::Bytes(..) => store(&path, value).map_err(|error| ("write", error)),
            Register::Name(_) => self.replace_link(&path, value),
        };
        let end = match outcome {
            Ok(()) => Some(self.now()),
            Err((what, error)) => {
                self.failed(what, &path, &error);
                None
            }
        };
        self.log.writes.extend(end.map(|end| Duration::from_nanos(end - begin)));
        self.log.operations.push((register, Operation { action: Action::Write(value), begin, end }));
    }

    fn replace_link(&self, path: &Path, value: u64) -> Result<(), (&'static str, io::Error)> {
        let new = self.dir.join(format!(".{value}.new"));
        symlink(value.to_string(), &new).map_err(|error| ("make a new link for", error))?;
        fs::rename(&new, path).map_err(|error| ("rename a new link to", error))
    }

    fn read(&mut self, register: Register) {
        let (path, begin) = (register.path(&self.dir), self.now());
        let seen = match register {
            Register::Bytes(..) => load(&path),
            Register::Name(_) => fs::read_link(&path).and_then(|target| number(&target.to_string_lossy())),
        };
        match seen {
            Ok(value) => {
                let end = Some(self.now());
                self.log.operations.push((register, Operation { action: Action::Read(value), begin, end }));
            }
            Err(error) if matches!(register, Register::Name(_)) && is_stale(&error) => self.log.outrun += 1,
            Err(error) => self.failed("read", &path, &error),
        }
    }

    fn failed(&mut self, what: &str, path: &Path, error: &io::Error) {
        let at = Duration::from_nanos(self.now());
        self.log.errors.push(format!("{what} {} after {at:.1?}: {error}", path.display()));
        std::thread::park_timeout(ERROR_PAUSE);
    }

    fn now(&self) -> history::Nanos {
        // 500 years fit.
        self.epoch.elapsed().as_nanos() as history::Nanos
    }
}

/// The length of the text of a value, so that a write replaces all of the one before.
const DIGITS: usize = 20;

fn store(path: &Path, value: u64) -> io::Result<()> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    file.write_all_at(format!("{value:0DIGITS$}").as_bytes(), 0)?;
    file.sync_all()
    // Closed here, before it counts as written: a descriptor that is dropped tells of no error, and all is synced.
}

fn load(path: &Path) -> io::Result<u64> {
    let mut bytes = [0; DIGITS];
    File::open(path)?.read_exact_at(&mut bytes, 0)?;
    number(&String::from_utf8_lossy(&bytes))
}

fn is_stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::STALE.raw_os_error())
}

fn number(text: &str) -> io::Result<u64> {
    text.parse().map_err(|_| io::Error::other(format!("holds `{text}`, which nobody wrote")))
}

//! What the clients do while the faults come: registers, and files that are synced.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use dfs_client::{Dfs, Error, MakeOptions, OpenMode};
use dfs_cluster::history::{Action, INITIAL, Nanos, Operation};
use dfs_cluster::{Dice, Invariant, Verdict, judge};
use dfs_proto::msg::meta::{NewNode, RenameMode};
use dfs_proto::{Caller, ErrorKind, InodeId, Name};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::bed::Bed;

const ROOT: Caller = Caller::ROOT;
const FOLDER: InodeId = InodeId::ROOT;

/// Few, so that operations on one of them meet.
const NAMES: usize = 2;
/// The length of the text of a value.
const DIGITS: usize = 20;

/// Of each client. The first one writes its register, so that there is one write of it at a time; the last one only reads
/// names.
const TASKS: usize = 3;
/// Between two operations of one task, in milliseconds.
const PAUSE_MS: (u64, u64) = (10, 600);

/// An operation is a few calls, each with a deadline of 30 s.
const STUCK: Duration = Duration::from_secs(240);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Register {
    /// A symbolic link that is replaced by a rename: everybody writes, everybody reads.
    Name(usize),
    /// The content of a file: one client writes, syncs and closes, the others open and read.
    Bytes(usize),
}

impl Register {
    fn name(self) -> String {
        match self {
            Register::Name(number) => format!("name{number}"),
            Register::Bytes(client) => format!("bytes-of-client{client}"),
        }
    }
}

/// A file whose bytes were acknowledged as synced; they follow from its number.
#[derive(Clone)]
pub struct Synced {
    /// In the root, or in a folder of its own.
    path: String,
    number: u64,
    len: usize,
}

impl Synced {
    fn bytes(&self) -> Bytes {
        let mut dice = Dice::apart(self.number, "content");
        let mut bytes = Vec::with_capacity(self.len + 8);
        while bytes.len() < self.len {
            bytes.extend_from_slice(&dice.throw().to_le_bytes());
        }
        bytes.truncate(self.len);
        bytes.into()
    }
}

/// What everybody's tasks share.
struct Shared {
    epoch: Instant,
    clients: usize,
    /// The next value, or number of a file, that nobody has taken yet.
    next: AtomicU64,
    /// From when on nothing may fail that begins.
    calm: Mutex<Option<Instant>>,
    stop: CancellationToken,
    found: Mutex<Report>,
}

/// All that the clients did and saw.
#[derive(Default)]
pub struct Report {
    operations: Vec<(Register, Operation)>,
    pub synced: Vec<Synced>,
    /// Calls that failed when they might.
    pub errors: Vec<String>,
    broken: Vec<(Invariant, String)>,
    compared: u64,
    calm: u64,
}

pub struct Work {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

/// One task of one client.
struct Worker {
    shared: Arc<Shared>,
    dfs: Dfs,
    client: usize,
    task: usize,
    dice: Dice,
}

impl Work {
    pub async fn start(bed: &Bed, seed: u64) -> Result<Work> {
        let shared = Arc::new(Shared {
            epoch: Instant::now(),
            clients: bed.clients.len(),
            next: AtomicU64::new(INITIAL + 1),
            calm: Mutex::new(None),
            stop: CancellationToken::new(),
            found: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for client in 0..bed.clients.len() {
            for task in 0..TASKS {
                let worker = Worker {
                    shared: shared.clone(),
                    dfs: bed.clients[client].dfs.clone(),
                    client,
                    task,
                    dice: Dice::apart(seed, &format!("client {client} {task}")),
                };
                if client == 0 && task == 0 {
                    worker.make_registers().await.map_err(|error| anyhow!("make the registers: {error}"))?;
                }
                tasks.spawn(worker.run());
            }
        }
        Ok(Work { shared, tasks })
    }

    /// Whatever begins from here on has to succeed.
    pub fn expect_no_error(&self) {
        *self.shared.calm.lock() = Some(Instant::now());
    }

    pub async fn finish(mut self) -> Result<Report> {
        self.shared.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.context("a client panicked")?;
        }
        Ok(std::mem::take(&mut *self.shared.found.lock()))
    }
}

impl Report {
    /// Operations that are known to have happened.
    pub fn operations(&self) -> usize {
        self.operations.iter().filter(|(_, operation)| operation.end.is_some()).count()
    }

    pub fn check(&self, verdict: &mut Verdict) {
        judge(&self.operations, verdict);
        verdict.fine(Invariant::AcknowledgedSurvives, self.compared);
        verdict.fine(Invariant::CallsEnd, self.calm);
        for (invariant, evidence) in &self.broken {
            verdict.broken(*invariant, evidence.clone());
        }
    }

    /// Every file that was synced, as this client reads it now.
    pub async fn check_files(&self, dfs: &Dfs, verdict: &mut Verdict) {
        for file in &self.synced {
            match read_file(dfs, &file.path, file.len + 1).await {
                Ok(bytes) if bytes == file.bytes() => verdict.fine(Invariant::AcknowledgedSurvives, 1),
                Ok(bytes) => {
                    let why = format!("{}: other bytes than were synced, {} of {}", file.path, bytes.len(), file.len);
                    verdict.broken(Invariant::AcknowledgedSurvives, why);
                }
                Err(error) => verdict.broken(Invariant::AcknowledgedSurvives, format!("{}: {error}", file.path)),
            }
        }
    }
}

impl Worker {
    async fn make_registers(&self) -> Result<(), Error> {
        for number in 0..NAMES {
            let target = NewNode::Symlink(INITIAL.to_string().into_bytes());
            let name = name(&Register::Name(number).name());
            self.dfs.make(&ROOT, FOLDER, &name, target, 0o777, MakeOptions::default()).await?;
        }
        for client in 0..self.shared.clients {
            store(&self.dfs, &Register::Bytes(client).name(), INITIAL).await?;
        }
        Ok(())
    }

    async fn run(mut self) {
        let stop = self.shared.stop.clone();
        while !stop.is_cancelled() {
            let begun = Instant::now();
            let outcome = timeout(STUCK, self.operate()).await;
            self.note(begun, outcome);
            let pause = Duration::from_millis(self.dice.between(PAUSE_MS.0, PAUSE_MS.1));
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => {}
            }
        }
    }

    fn note(&self, begun: Instant, outcome: Result<Result<(), (String, Error)>, Elapsed>) {
        let mut found = self.shared.found.lock();
        let calm = self.shared.calm.lock().is_some_and(|calm| begun >= calm);
        found.calm += u64::from(calm);
        let who = format!("client {} at {:.1} s", self.client + 1, (begun - self.shared.epoch).as_secs_f64());
        match outcome {
            Ok(Ok(())) => {}
            Ok(Err((what, error))) => {
                let text = format!("{who}, after {:.1} s: {what}: {error}", begun.elapsed().as_secs_f64());
                if calm {
                    found.broken.push((Invariant::CallsEnd, text));
                } else {
                    found.errors.push(text);
                }
            }
            Err(_) => found.broken.push((Invariant::CallsEnd, format!("{who}: a call does not end"))),
        }
    }

    async fn operate(&mut self) -> Result<(), (String, Error)> {
        let first = self.task == 0;
        let what = self.dice.between(0, 9);
        match what {
            // Who writes, or reads bytes, soon waits for a leader or a datanode that cannot do it. Names must not be old
            // even so.
            _ if self.task == TASKS - 1 => {
                let register = self.any_name();
                self.read_register(register).await
            }
            0 => self.write_file().await,
            1 => self.compare_file().await,
            2 if first => self.write_register(Register::Bytes(self.client)).await,
            2..=4 => {
                let client = self.dice.between(0, self.shared.clients as u64 - 1) as usize;
                // On the client that writes it a write shows before it is acknowledged, which is promised as well.
                if client == self.client {
                    return Ok(());
                }
                self.read_register(Register::Bytes(client)).await
            }
            5 | 6 if first => {
                let register = self.any_name();
                self.write_register(register).await
            }
            _ => {
                let register = self.any_name();
                self.read_register(register).await
            }
        }
    }

    fn any_name(&mut self) -> Register {
        Register::Name(self.dice.between(0, NAMES as u64 - 1) as usize)
    }

    async fn write_register(&mut self, register: Register) -> Result<(), (String, Error)> {
        let (value, begin) = (self.shared.next.fetch_add(1, Ordering::Relaxed), self.now());
        // Noted before it begins: whoever gives it up half way leaves one that may have happened.
        let written = Written { shared: self.shared.clone(), register, value, begin, done: AtomicBool::new(false) };
        let outcome = match register {
            Register::Name(_) => self.replace_link(&register.name(), value).await,
            Register::Bytes(_) => store(&self.dfs, &register.name(), value).await,
        };
        written.done.store(outcome.is_ok(), Ordering::Relaxed);
        drop(written);
        outcome.map_err(|error| (format!("write {}", register.name()), error))
    }

    async fn replace_link(&self, register: &str, value: u64) -> Result<(), Error> {
        let new = name(&format!(".{value}.new"));
        let target = NewNode::Symlink(value.to_string().into_bytes());
        self.dfs.make(&ROOT, FOLDER, &new, target, 0o777, MakeOptions::default()).await?;
        self.dfs.rename(&ROOT, FOLDER, &new, FOLDER, &name(register), RenameMode::Replace).await.map(drop)
    }

    async fn read_register(&mut self, register: Register) -> Result<(), (String, Error)> {
        let begin = self.now();
        let seen = match register {
            Register::Name(_) => match self.read_link(&register.name()).await {
                Ok(None) => return Ok(()),
                Ok(Some(value)) => Ok(value),
                Err(error) => Err(error),
            },
            Register::Bytes(_) => load(&self.dfs, &register.name()).await,
        };
        let value = seen.map_err(|error| (format!("read {}", register.name()), error))?;
        let operation = Operation { action: Action::Read(value), begin, end: Some(self.now()) };
        self.shared.found.lock().operations.push((register, operation));
        Ok(())
    }

    /// `None` if the link was replaced between the look-up and the read, which says nothing.
    async fn read_link(&self, register: &str) -> Result<Option<u64>, Error> {
        let attr = self.dfs.lookup(&ROOT, FOLDER, &name(register)).await?;
        match self.dfs.readlink(&ROOT, attr.inode).await {
            Ok(target) => number(&target).map(Some),
            Err(error) if matches!(error.kind, ErrorKind::Stale | ErrorKind::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn write_file(&mut self) -> Result<(), (String, Error)> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        // Small ones, some of many frames, and a few of megabytes.
        let len = match self.dice.between(0, 9) {
            0 => self.dice.between(1 << 20, 4 << 20),
            1..=3 => self.dice.between(64 << 10, 512 << 10),
            _ => self.dice.between(1, 32 << 10),
        };
        // Of some large ones only the front stays: their chunks are mostly dead then, and what lives is copied elsewhere.
        let keep = match len >= 1 << 20 && self.dice.one_in(2) {
            true => self.dice.between(1, 64 << 10),
            false => len,
        };
        let path = if self.dice.one_in(3) { format!("folder{number}/file") } else { format!("file{number}") };
        let whole = Synced { path, number, len: len as usize };
        let file = Synced { len: keep as usize, ..whole.clone() };
        let written = write_file(&self.dfs, &file.path, whole.bytes(), keep).await;
        written.map_err(|error| (format!("write {}", file.path), error))?;
        self.shared.found.lock().synced.push(file);
        Ok(())
    }

    async fn compare_file(&mut self) -> Result<(), (String, Error)> {
        let file = {
            let found = self.shared.found.lock();
            if found.synced.is_empty() {
                return Ok(());
            }
            self.dice.pick(&found.synced).clone()
        };
        let read = read_file(&self.dfs, &file.path, file.len + 1).await;
        let mut found = self.shared.found.lock();
        found.compared += 1;
        match read {
            Ok(bytes) if bytes == file.bytes() => Ok(()),
            Ok(bytes) => {
                let why = format!("{}: other bytes than were synced, {} of {}", file.path, bytes.len(), file.len);
                found.broken.push((Invariant::OnlyRightBytes, why));
                Ok(())
            }
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Stale) => {
                found.broken.push((Invariant::AcknowledgedSurvives, format!("{}: {error}", file.path)));
                Ok(())
            }
            Err(error) => Err((format!("read {}", file.path), error)),
        }
    }

    fn now(&self) -> Nanos {
        self.shared.now()
    }
}

impl Shared {
    /// 500 years fit.
    fn now(&self) -> Nanos {
        self.epoch.elapsed().as_nanos() as Nanos
    }
}

/// A write that is under way; noted as acknowledged or not when it is dropped.
struct Written {
    shared: Arc<Shared>,
    register: Register,
    value: u64,
    begin: Nanos,
    done: AtomicBool,
}

impl Drop for Written {
    fn drop(&mut self) {
        let end = self.done.load(Ordering::Relaxed).then(|| self.shared.now());
        let operation = Operation { action: Action::Write(self.value), begin: self.begin, end };
        self.shared.found.lock().operations.push((self.register, operation));
    }
}

/// Leaves the first `keep` bytes.
async fn write_file(dfs: &Dfs, path: &str, bytes: Bytes, keep: u64) -> Result<(), Error> {
    let (folder, file) = match path.split_once('/') {
        Some((folder, file)) => {
            let exclusive = MakeOptions { exclusive: true, ..MakeOptions::default() };
            let made = dfs.make(&ROOT, FOLDER, &name(folder), NewNode::Directory, 0o755, exclusive).await?;
            (made.attr.inode, file)
        }
        None => (FOLDER, path),
    };
    let options = MakeOptions { exclusive: true, open: Some(OpenMode::WRITE), ..MakeOptions::default() };
    let made = dfs.make(&ROOT, folder, &name(file), NewNode::File, 0o644, options).await?;
    let Some(file) = made.file else { return Err(unlikely("the new file was not opened")) };
    let len = bytes.len() as u64;
    file.write(0, bytes).await?;
    file.sync().await?;
    if keep < len {
        file.set_size(keep).await?;
        file.sync().await?;
    }
    file.close().await
}

/// At most `max` bytes.
async fn read_file(dfs: &Dfs, path: &str, max: usize) -> Result<Bytes, Error> {
    let mut at = FOLDER;
    for part in path.split('/') {
        at = dfs.lookup(&ROOT, at, &name(part)).await?.inode;
    }
    let file = dfs.open(&ROOT, at, OpenMode::READ).await?;
    let bytes = file.read(0, max).await?;
    file.close().await?;
    Ok(bytes)
}

async fn store(dfs: &Dfs, register: &str, value: u64) -> Result<(), Error> {
    let options = MakeOptions { open: Some(OpenMode::WRITE), ..MakeOptions::default() };
    let made = dfs.make(&ROOT, FOLDER, &name(register), NewNode::File, 0o644, options).await?;
    let Some(file) = made.file else { return Err(unlikely("the file was not opened")) };
    file.write(0, Bytes::from(format!("{value:0DIGITS$}"))).await?;
    file.sync().await?;
    file.close().await
}

async fn load(dfs: &Dfs, register: &str) -> Result<u64, Error> {
    number(&read_file(dfs, register, DIGITS).await?)
}

fn number(text: &[u8]) -> Result<u64, Error> {
    let text = String::from_utf8_lossy(text);
    text.parse().map_err(|_| unlikely(format!("holds `{text}`, which nobody wrote")))
}

fn unlikely(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Internal, what)
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap_or_else(|_| panic!("{text} is no name"))
}

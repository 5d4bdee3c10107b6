//! The Raft log as openraft wants it, over `store::log`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use dfs_proto::codec;
use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader, StorageIOError};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::presence::Memory;
use super::types::{Entry, LogId, StorageError, TypeConfig, Vote};
use crate::fail_stop::FailStop;
use crate::store::StoreError;
use crate::store::log::{LogChange, LogDb, Mark};
use crate::store::log_writer::LogWriter;

/// Bytes of entries that one append to a follower carries: with its envelope it stays far below
/// `limits::RAFT_FRAME_MAX`, and arrives within a heartbeat interval.
const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bytes of recent entries kept in memory. What is applied or sent to followers is nearly always among
/// them, so neither waits for the database.
const RECENT_BYTES_MAX: usize = 16 << 20;

/// Bytes of entries that are looked at together at the start.
const CHECK_BYTES: usize = 4 << 20;

/// Cheap to clone; clones share the log.
#[derive(Clone)]
pub struct LogStore {
    log: Arc<LogDb>,
    writer: LogWriter,
    recent: Arc<Mutex<Recent>>,
    durable: Arc<Mutex<Durable>>,
}

/// What is certainly on this node's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    pub vote: Option<Vote>,
    /// The last entry, purged or not.
    pub last: Option<LogId>,
}

/// The newest entries, without a hole up to the end of the log. They are readable from here before they
/// are on the disk, as openraft asks.
#[derive(Default)]
struct Recent {
    entries: BTreeMap<u64, (Entry, usize)>,
    bytes: usize,
    /// Entries up to this index are on the disk and may be forgotten here.
    synced: u64,
}

impl Recent {
    fn push(&mut self, entry: Entry, size: usize) {
        self.bytes += size;
        if let Some((_, old)) = self.entries.insert(entry.log_id.index, (entry, size)) {
            self.bytes -= old;
        }
    }

    fn synced(&mut self, index: u64) {
        self.synced = self.synced.max(index);
        while self.bytes > RECENT_BYTES_MAX {
            match self.entries.first_key_value() {
                Some((first, _)) if *first <= self.synced => {
                    self.bytes -= self.entries.pop_first().map_or(0, |(_, (_, size))| size);
                }
                _ => break,
            }
        }
    }

    fn truncate(&mut self, from: u64) {
        let gone = self.entries.split_off(&from);
        self.bytes -= gone.values().map(|(_, size)| size).sum::<usize>();
        self.synced = self.synced.min(from.saturating_sub(1));
    }

    fn purge(&mut self, to: u64) {
        let kept = match to.checked_add(1) {
            Some(next) => self.entries.split_off(&next),
            None => BTreeMap::new(),
        };
        self.bytes = kept.values().map(|(_, size)| size).sum();
        self.entries = kept;
    }

    /// The entries of the range, if all of it is here.
    fn range(&self, from: u64, to: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        self.entries.get(&from)?;
        let mut bytes = 0;
        let mut found = Vec::new();
        for (entry, size) in self.entries.range(from..to).map(|(_, row)| row) {
            bytes += size;
            found.push(entry.clone());
            if bytes >= bytes_max {
                break;
            }
        }
        Some(found)
    }
}

impl LogStore {
    pub fn open(log: LogDb, fail: FailStop) -> Result<LogStore, StoreError> {
        let log = Arc::new(log);
        let writer = LogWriter::start(log.clone(), fail)?;
        let store = LogStore { log, writer, recent: Arc::default(), durable: Arc::default() };
        let damaged = |error: StorageError| StoreError::Damaged(format!("the log cannot be read: {error}"));
        store.check_whole()?;
        let vote = store.read_mark(Mark::Vote).map_err(damaged)?;
        let last = store.last_log_id().map_err(damaged)?;
        *store.durable.lock() = Durable { vote, last };
        Ok(store)
    }

    /// Reads every entry: the log has no hole and begins where it was purged to. One with a hole would lead others to
    /// believe that nothing was ever there.
    fn check_whole(&self) -> Result<(), StoreError> {
        let damaged = |error: StorageError| StoreError::Damaged(format!("the log cannot be read: {error}"));
        let purged: Option<LogId> = self.read_mark(Mark::Purged).map_err(damaged)?;
        let mut next = purged.map_or(0, |purged| purged.index + 1);
        loop {
            let rows = self.log.entries(next, u64::MAX, CHECK_BYTES)?;
            if rows.is_empty() {
                return Ok(());
            }
            for (index, bytes) in rows {
                let entry: Entry = codec::decode_large(&bytes)
                    .map_err(|error| StoreError::Damaged(format!("log entry {index} is not readable: {error}")))?;
                if index != next || entry.log_id.index != index {
                    return Err(StoreError::Damaged(format!("the log has a hole: entry {next} is missing")));
                }
                next += 1;
            }
        }
    }

    pub fn durable(&self) -> Durable {
        *self.durable.lock()
    }

    /// What this node remembers of the others.
    pub fn memories(&self) -> Result<BTreeMap<u64, Memory>, StoreError> {
        let damaged = |error: StorageError| StoreError::Damaged(format!("the log cannot be read: {error}"));
        Ok(self.read_mark(Mark::Peers).map_err(damaged)?.unwrap_or_default())
    }

    /// Writes that down, some time: it is a second net, and the nodes tell it again.
    pub fn remember(&self, memories: &BTreeMap<u64, Memory>) {
        // A queue that is full holds newer memories soon.
        if let Ok(bytes) = codec::encode(memories) {
            self.writer.try_write_lazily(vec![LogChange::Mark(Mark::Peers, bytes)]);
        }
    }

    fn last_log_id(&self) -> Result<Option<LogId>, StorageError> {
        let last = match self.log.last().map_err(read_logs)? {
            Some((_, bytes)) => Some(codec::decode_large::<Entry>(&bytes).map_err(read_logs)?.log_id),
            None => None,
        };
        Ok(last.max(self.read_mark(Mark::Purged)?))
    }

    fn entries(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, StorageError> {
        if from >= to {
            return Ok(Vec::new());
        }
        if let Some(found) = self.recent.lock().range(from, to, bytes_max) {
            return Ok(found);
        }
        let rows = self.log.entries(from, to, bytes_max).map_err(read_logs)?;
        let mut found: Vec<Entry> =
            rows.iter().map(|(_, bytes)| codec::decode_large(bytes).map_err(read_logs)).collect::<Result<_, _>>()?;
        // The end of the range may not be written yet: it goes on where the database ends.
        let next = found.last().map_or(from, |entry| entry.log_id.index + 1);
        let bytes: usize = rows.iter().map(|(_, bytes)| bytes.len()).sum();
        if bytes < bytes_max && next < to {
            found.extend(self.recent.lock().range(next, to, bytes_max - bytes).unwrap_or_default());
        }
        Ok(found)
    }

    fn read_mark<T: DeserializeOwned>(&self, mark: Mark) -> Result<Option<T>, StorageError> {
        let bytes = self.log.mark(mark).map_err(read_logs)?;
        bytes.map(|bytes| codec::decode(&bytes).map_err(read_logs)).transpose()
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        self.entries(from, to, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.entries(start, end, PAYLOAD_BYTES_MAX)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let last_purged_log_id: Option<LogId> = self.read_mark(Mark::Purged)?;
        let newest = self.recent.lock().entries.last_key_value().map(|(_, (entry, _))| entry.log_id);
        let last_log_id = match newest {
            Some(newest) => Some(newest),
            None => self.last_log_id()?,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let mark = LogChange::Mark(Mark::Vote, encode(vote)?);
        let written = self.writer.write(vec![mark]).await;
        written.map_err(|e| StorageIOError::write_vote(AnyError::error(e)))?;
        self.durable.lock().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.read_mark(Mark::Vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // Only a hint at the next start, so it need not be synced: what is committed and not known to be
        // will be known again from the leader.
        let mark = LogChange::Mark(Mark::Committed, encode(&committed)?);
        self.writer.write_lazily(vec![mark]).await.map_err(write_logs)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.read_mark::<Option<LogId>>(Mark::Committed)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut changes = Vec::new();
        let mut last = None;
        for entry in entries {
            let bytes = encode(&entry)?;
            last = Some(entry.log_id);
            let size = bytes.len();
            changes.push(LogChange::Append { index: entry.log_id.index, entry: bytes });
            self.recent.lock().push(entry, size);
        }
        let (recent, durable) = (self.recent.clone(), self.durable.clone());
        let done = move |result: Result<(), String>| {
            if let (Ok(()), Some(last)) = (&result, last) {
                recent.lock().synced(last.index);
                durable.lock().last = Some(last);
            }
            callback.log_io_completed(result.map_err(std::io::Error::other));
        };
        self.writer.send(changes, Box::new(done)).await;
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.recent.lock().truncate(log_id.index);
        self.writer.write(vec![LogChange::Truncate { from: log_id.index }]).await.map_err(write_logs)?;
        let last = self.last_log_id()?;
        self.durable.lock().last = last;
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // The mark and the removal are one write: there is never a hole that no mark explains.
        let mark = LogChange::Mark(Mark::Purged, encode(&log_id)?);
        self.writer.write(vec![LogChange::Purge { to: log_id.index }, mark]).await.map_err(write_logs)?;
        self.recent.lock().purge(log_id.index);
        let mut durable = self.durable.lock();
        durable.last = durable.last.max(Some(log_id));
        Ok(())
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StorageError> {
    codec::encode(value).map_err(|e| StorageIOError::write_logs(AnyError::error(e)).into())
}

fn read_logs(error: impl ToString) -> StorageError {
    StorageIOError::read_logs(AnyError::error(error)).into()
}

fn write_logs(error: impl ToString) -> StorageError {
    StorageIOError::write_logs(AnyError::error(error)).into()
}

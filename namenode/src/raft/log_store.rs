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
use tokio::sync::watch;

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
    me: u64,
    log: Arc<LogDb>,
    writer: LogWriter,
    recent: Arc<Mutex<Recent>>,
    disk: Disk,
    /// What is known to be committed and not written down yet: the next entries take it along.
    committed: Arc<Mutex<Option<LogId>>>,
}

/// What is certainly on this node's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    pub vote: Option<Vote>,
    /// The last entry, purged or not.
    pub last: Option<LogId>,
    /// The last of the entries on their way to the disk that Raft may count already; `None` when all have arrived.
    pub ahead: Option<LogId>,
}

impl Durable {
    /// As much of `committed` as follows from disks alone. While this node leads, Raft counts its entries before they
    /// are on its disk; what is committed by that count may be told to nobody yet.
    pub fn certain(&self, committed: Option<LogId>) -> Option<LogId> {
        if self.ahead.is_some() { committed.min(self.last) } else { committed }
    }

    fn arrived(&mut self, last: LogId) {
        self.last = Some(last);
        self.ahead = self.ahead.filter(|ahead| last < *ahead);
    }
}

/// Follows what is on the disk. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Disk(Arc<watch::Sender<Durable>>);

impl Default for Disk {
    fn default() -> Self {
        Disk(Arc::new(watch::channel(Durable::default()).0))
    }
}

impl Disk {
    pub fn now(&self) -> Durable {
        *self.0.borrow()
    }

    /// Returns when everything up to `last` is on the disk that Raft counted before it was; never, if it cannot be
    /// brought there.
    pub async fn has(&self, last: LogId) {
        let certain = |durable: &Durable| durable.certain(Some(last)) == Some(last);
        if self.0.subscribe().wait_for(certain).await.is_err() {
            // The sender lives in `self`.
            std::future::pending::<()>().await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Durable)) {
        self.0.send_modify(change);
    }
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
    /// `me` is this node's number.
    pub fn open(me: u64, log: LogDb, fail: FailStop) -> Result<LogStore, StoreError> {
        let log = Arc::new(log);
        let writer = LogWriter::start(log.clone(), fail)?;
        let (recent, disk, committed) = (Arc::default(), Disk::default(), Arc::default());
        let store = LogStore { me, log, writer, recent, disk, committed };
        let damaged = |error: StorageError| StoreError::Damaged(format!("the log cannot be read: {error}"));
        store.check_whole()?;
        let vote = store.read_mark(Mark::Vote).map_err(damaged)?;
        let last = store.last_log_id().map_err(damaged)?;
        store.disk.change(|durable| *durable = Durable { vote, last, ahead: None });
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
        self.disk.now()
    }

    pub fn disk(&self) -> Disk {
        self.disk.clone()
    }

    /// Whether these are entries that this node makes itself, as the leader that its vote on the disk says it is.
    /// Nobody else can send entries of that leader, and whoever leads later has another vote.
    fn leads(&self, entries: &[Entry]) -> bool {
        let Some(vote) = self.durable().vote.filter(Vote::is_committed) else { return false };
        let leader = vote.leader_id();
        let own = |entry: &Entry| {
            let by = entry.log_id.leader_id;
            by.term == leader.term && by.node_id == leader.node_id
        };
        leader.node_id == self.me && entries.iter().all(own)
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
        self.disk.change(|durable| durable.vote = Some(*vote));
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        // openraft would have a node lead on in the term in which it led before it stopped. But followers may have
        // entries of that term which never reached this disk, and others must not be made under their ids.
        let vote: Option<Vote> = self.read_mark(Mark::Vote)?;
        Ok(vote.map(|vote| match vote.leader_id() {
            leader if leader.node_id == self.me => Vote::new(leader.term, leader.node_id),
            _ => vote,
        }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        // Only a hint at the next start, so it has no write of its own: what is committed and not known to be
        // will be known again from the leader.
        *self.committed.lock() = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        let unwritten = *self.committed.lock();
        Ok(unwritten.max(self.read_mark::<Option<LogId>>(Mark::Committed)?.flatten()))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let leads = self.leads(&entries);
        let mut changes = Vec::with_capacity(entries.len() + 1);
        let mut last = None;
        if let Some(committed) = self.committed.lock().take() {
            changes.push(LogChange::Mark(Mark::Committed, encode(&Some(committed))?));
        }
        for entry in entries {
            let bytes = encode(&entry)?;
            last = Some(entry.log_id);
            let size = bytes.len();
            changes.push(LogChange::Append { index: entry.log_id.index, entry: bytes });
            self.recent.lock().push(entry, size);
        }
        // openraft waits for the callback before it sends the entries to the followers. A leader's own are sent while
        // its disk is busy with them; what comes of counting them early waits for the disk (see `Durable::certain`).
        let (now, later) = if leads { (Some(callback), None) } else { (None, Some(callback)) };
        if leads {
            self.disk.change(|durable| durable.ahead = last);
        }
        let (recent, disk) = (self.recent.clone(), self.disk.clone());
        let done = move |result: Result<(), String>| {
            if let (Ok(()), Some(last)) = (&result, last) {
                recent.lock().synced(last.index);
                disk.change(|durable| durable.arrived(last));
            }
            if let Some(callback) = later {
                callback.log_io_completed(result.map_err(std::io::Error::other));
            }
        };
        self.writer.send(changes, Box::new(done)).await;
        if let Some(callback) = now {
            let failed = self.writer.failure().map(std::io::Error::other);
            callback.log_io_completed(failed.map_or(Ok(()), Err));
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.recent.lock().truncate(log_id.index);
        self.writer.write(vec![LogChange::Truncate { from: log_id.index }]).await.map_err(write_logs)?;
        let last = self.last_log_id()?;
        self.disk.change(|durable| (durable.last, durable.ahead) = (last, None));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // The mark and the removal are one write: there is never a hole that no mark explains.
        let mark = LogChange::Mark(Mark::Purged, encode(&log_id)?);
        self.writer.write(vec![LogChange::Purge { to: log_id.index }, mark]).await.map_err(write_logs)?;
        self.recent.lock().purge(log_id.index);
        self.disk.change(|durable| durable.last = durable.last.max(Some(log_id)));
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use futures::FutureExt;
    use openraft::storage::RaftLogStorageExt;
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;

    const ME: u64 = 1;
    /// For what happens at once unless it never does.
    const DEADLINE: Duration = Duration::from_secs(10);

    fn id(term: u64, node: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, node), index)
    }

    fn entry(log_id: LogId) -> Entry {
        Entry { log_id, payload: EntryPayload::Blank }
    }

    fn open(dir: &tempfile::TempDir) -> LogStore {
        LogStore::open(ME, LogDb::open(dir.path()).unwrap(), FailStop::default()).unwrap()
    }

    /// Keeps the disk busy until the answer is dropped.
    async fn hold(log: &LogStore) -> mpsc::Sender<()> {
        let (release, held) = mpsc::channel();
        let (begun, wait) = tokio::sync::oneshot::channel();
        let busy = move |_: Result<(), String>| {
            begun.send(()).unwrap();
            assert!(held.recv().is_err());
        };
        log.writer.send(Vec::new(), Box::new(busy)).await;
        wait.await.unwrap();
        release
    }

    #[tokio::test]
    async fn a_leaders_own_entries_count_at_once_and_show_when_they_are_on_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        log.save_vote(&Vote::new_committed(3, ME)).await.unwrap();
        log.blocking_append([entry(id(3, ME, 0))]).await.unwrap();
        log.disk().has(id(3, ME, 0)).await;
        let busy = hold(&log).await;
        let appended = log.blocking_append([entry(id(3, ME, 1)), entry(id(3, ME, 2))]);
        tokio::time::timeout(DEADLINE, appended).await.unwrap().unwrap();
        // They can be sent on, but nothing may follow from them.
        assert_eq!(log.limited_get_log_entries(1, 3).await.unwrap().len(), 2);
        let durable = log.durable();
        assert_eq!(durable.last, Some(id(3, ME, 0)));
        assert_eq!(durable.certain(Some(id(3, ME, 2))), Some(id(3, ME, 0)));
        assert_eq!(durable.certain(None), None);
        let disk = log.disk();
        assert_eq!(disk.has(id(3, ME, 1)).now_or_never(), None);
        drop(busy);
        tokio::time::timeout(DEADLINE, disk.has(id(3, ME, 2))).await.unwrap();
        assert_eq!(log.durable().certain(Some(id(3, ME, 2))), Some(id(3, ME, 2)));
    }

    #[tokio::test]
    async fn what_others_send_counts_when_it_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(&dir);
        // It led itself in term 2, and somebody else leads now; among the entries may be old ones of its own.
        log.save_vote(&Vote::new_committed(2, ME)).await.unwrap();
        log.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
        let busy = hold(&log).await;
        let mut appended = Box::pin(log.blocking_append([entry(id(2, ME, 0)), entry(id(3, 2, 1))]));
        assert!(appended.as_mut().now_or_never().is_none());
        drop(busy);
        tokio::time::timeout(DEADLINE, appended).await.unwrap().unwrap();
        assert_eq!(log.durable(), Durable { last: Some(id(3, 2, 1)), ahead: None, ..log.durable() });
    }

    #[tokio::test]
    async fn a_leader_that_was_restarted_does_not_lead_in_its_old_term() {
        let dir = tempfile::tempdir().unwrap();
        for (saved, read) in [
            (Vote::new_committed(3, ME), Vote::new(3, ME)),
            (Vote::new(4, ME), Vote::new(4, ME)),
            (Vote::new_committed(5, 2), Vote::new_committed(5, 2)),
        ] {
            open(&dir).save_vote(&saved).await.unwrap();
            let mut log = open(&dir);
            assert_eq!(log.read_vote().await.unwrap(), Some(read));
            // What it tells others of its disk is what it promised.
            assert_eq!(log.durable().vote, Some(saved));
        }
    }
}

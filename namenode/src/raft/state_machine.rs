//! Committed entries become changes of the state.

use std::sync::Arc;
use std::time::Duration;

use dfs_meta::{Body, Command, Event};
use dfs_proto::codec;
use dfs_rpc::Moment;
use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::clock::Clock;
use super::log_store::Disk;
use super::snapshot::{SnapshotFiles, Snapshots, decode_mark};
use super::types::{
    AppliedMark, Entry, LogId, Outcomes, Snapshot, SnapshotMeta, StorageError, StoredMembership, TypeConfig,
};
use crate::fail_stop::FailStop;
use crate::leader::{Changed, Watches};
use crate::store::StoreError;
use crate::store::state::StateStore;

/// Commands that one write batch of the state covers at most: after a restart the whole log behind the
/// last write may have to be applied at once.
const COMMANDS_MAX: usize = 4096;

/// Between two looks whether there is room for a snapshot.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);

/// Encoded commands that are applied on the runtime's own thread: for few, the way to another one and back takes longer
/// than the work.
const HERE_BYTES_MAX: usize = 2 << 10;

/// Cheap to clone; clones share the state.
#[derive(Clone)]
pub struct StateMachine(Arc<Inner>);

struct Inner {
    state: Arc<StateStore>,
    /// Where the log is.
    disk: Disk,
    snapshots: Snapshots,
    clock: Clock,
    /// Hints for the leader's workers. Dropped when nobody keeps up: workers also look for themselves.
    events: mpsc::Sender<Event>,
    watches: Arc<Watches>,
    fail: FailStop,
    mark: Mutex<AppliedMark>,
}

impl StateMachine {
    pub fn new(
        state: Arc<StateStore>,
        disk: Disk,
        snapshots: Snapshots,
        clock: Clock,
        events: mpsc::Sender<Event>,
        watches: Arc<Watches>,
        fail: FailStop,
    ) -> Result<StateMachine, StoreError> {
        let mark = decode_mark(state.mark()?)?;
        clock.observe(mark.now);
        Ok(StateMachine(Arc::new(Inner {
            state,
            disk,
            snapshots,
            clock,
            events,
            watches,
            fail,
            mark: Mutex::new(mark),
        })))
    }

    /// Runs disk work beside the runtime's threads; a failure latches and stops the node.
    async fn on_disk<T: Send + 'static>(
        &self,
        what: &'static str,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let inner = self.0.clone();
        let result = tokio::task::spawn_blocking(move || work(&inner)).await;
        let reason = match result {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => format!("{what}: {error}"),
            Err(error) => format!("{what}: {error}"),
        };
        Err(self.failed(reason))
    }

    /// Latches, so that the node stops.
    fn failed(&self, reason: String) -> StorageError {
        self.0.fail.fail(reason.clone());
        StorageIOError::write_state_machine(AnyError::error(reason)).into()
    }
}

impl Inner {
    /// Applies entries in order and answers each. Several entries share a write batch; a crash between
    /// two batches is the same as a crash between two entries.
    fn apply(&self, entries: Vec<Entry>) -> Result<Vec<Outcomes>, StoreError> {
        let mut replies = Vec::with_capacity(entries.len());
        let mut group = Group::default();
        for entry in entries {
            let mut count = 0;
            let log_id = entry.log_id;
            match entry.payload {
                EntryPayload::Blank => group.last_applied = Some(log_id),
                EntryPayload::Membership(membership) => {
                    group.last_applied = Some(log_id);
                    group.membership = Some(StoredMembership::new(Some(log_id), membership));
                }
                EntryPayload::Normal(batch) => {
                    let commands = batch
                        .decode()
                        .map_err(|e| StoreError::Damaged(format!("log entry {} is not readable: {e}", log_id)))?;
                    count = commands.len();
                    if commands.iter().any(|command| command.body == Body::CheckState) {
                        // However the log is cut into batches, the hash is that of everything before this entry.
                        self.apply_group(std::mem::take(&mut group), &mut replies)?;
                        group.check = Some(log_id.index);
                    }
                    group.last_applied = Some(log_id);
                    group.commands.extend(commands);
                }
            }
            group.counts.push(count);
            if group.commands.len() >= COMMANDS_MAX {
                self.apply_group(std::mem::take(&mut group), &mut replies)?;
            }
        }
        self.apply_group(group, &mut replies)?;
        Ok(replies)
    }

    fn apply_group(&self, group: Group, replies: &mut Vec<Outcomes>) -> Result<(), StoreError> {
        let Some(last_applied) = group.last_applied else {
            return Ok(());
        };
        let applied = self
            .state
            .read_latest(|view| dfs_meta::apply(view, &group.commands))
            .map_err(|fault| StoreError::Damaged(fault.0))?;
        let mut mark = self.mark.lock();
        let mut next = AppliedMark { last_applied: Some(last_applied), ..mark.clone() };
        if let Some(membership) = group.membership {
            next.membership = membership;
        }
        next.now = group.commands.iter().map(|command| command.now).fold(next.now, Ord::max);
        let bytes = codec::encode(&next).map_err(|e| StoreError::Damaged(e.to_string()))?;
        // Whoever remembers what changes is noted before anybody can read the new rows.
        let changed = group
            .commands
            .iter()
            .zip(&applied.changed)
            .map(|(command, inodes)| Changed { request: command.body.request(), inodes });
        let notices = self.watches.about_to_change(changed, Moment::now());
        self.state.write(&applied.changes, &bytes, group.check)?;
        self.watches.tell(notices);
        self.clock.observe(next.now);
        *mark = next;
        drop(mark);
        for event in applied.events {
            if self.events.try_send(event).is_err() {
                break;
            }
        }
        let mut outcomes = applied.outcomes.into_iter();
        replies.extend(group.counts.iter().map(|count| Outcomes { each: outcomes.by_ref().take(*count).collect() }));
        Ok(())
    }
}

/// Entries that are applied together.
#[derive(Default)]
struct Group {
    commands: Vec<Command>,
    /// Commands of each entry, in order.
    counts: Vec<usize>,
    last_applied: Option<LogId>,
    membership: Option<StoredMembership>,
    /// The first entry asks for the hash of the state before it.
    check: Option<u64>,
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = StateMachine;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let mark = self.0.mark.lock();
        Ok((mark.last_applied, mark.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(last) = entries.last() {
            // Counted on a leader before it was there. If it does not get there the log's writer has said why.
            tokio::select! {
                biased;
                () = self.0.disk.has(last.log_id) => {}
                reason = self.0.fail.failed() => {
                    return Err(StorageIOError::write_logs(AnyError::error(reason)).into());
                }
            }
        }
        const WHAT: &str = "applying the log failed";
        let size = |entry: &Entry| match &entry.payload {
            EntryPayload::Normal(batch) => batch.len(),
            _ => 0,
        };
        let few = entries.iter().map(size).sum::<usize>() <= HERE_BYTES_MAX;
        if few && self.0.state.takes_writes() {
            return self.0.apply(entries).map_err(|error| self.failed(format!("{WHAT}: {error}")));
        }
        self.on_disk(WHAT, move |inner| inner.apply(entries)).await
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<SnapshotFiles>, StorageError> {
        let files = self.on_disk("receiving a snapshot failed", |inner| inner.snapshots.begin_receiving()).await?;
        Ok(Box::new(files))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<SnapshotFiles>,
    ) -> Result<(), StorageError> {
        let meta = meta.clone();
        self.on_disk("installing a snapshot failed", move |inner| {
            let mut mark = inner.mark.lock();
            *mark = inner.snapshots.install(&meta, &snapshot, &inner.state)?;
            inner.clock.observe(mark.now);
            Ok(())
        })
        .await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        Ok(self.0.snapshots.current())
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let mut told = false;
        loop {
            let attempt = |inner: &Inner| match inner.state.has_room_for_checkpoint()? {
                true => inner.snapshots.build(&inner.state).map(Some),
                false => Ok(None),
            };
            let attempt = move |inner: &Inner| match attempt(inner) {
                Err(error) if error.is_no_space() => Ok(None),
                outcome => outcome,
            };
            if let Some(snapshot) = self.on_disk("taking a snapshot failed", attempt).await? {
                tracing::info!(snapshot = %snapshot.meta, "snapshot taken");
                return Ok(snapshot);
            }
            if !told {
                tracing::warn!("no room for a snapshot: it is taken once there is, and until then the log grows");
                told = true;
            }
            tokio::time::sleep(NO_ROOM_PAUSE).await;
        }
    }
}

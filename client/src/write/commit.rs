//! Group commit: what many files have on datanodes becomes part of them by one operation at a time. What
//! is acknowledged meanwhile goes into the next one.
//!
//! An operation is repeated under its request number until the namenode has answered. So there is never
//! a commit of unknown outcome that could be carried out behind a later one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use dfs_proto::limits::{COMMIT_CHUNKS_MAX, COMMIT_EXTENTS_MAX, COMMIT_FILES_MAX};
use dfs_proto::msg::meta::{FileCommit, Op, OpReply};
use dfs_proto::{Attr, ChunkId, ErrorKind, Extent, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tracing::{Instrument, debug, info_span, warn};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Error, Result, unexpected_answer};
use crate::open::{FileState, Inner};
use crate::private::Busy;
use crate::session::{Session, session_lost};
use crate::write::upload::ON_BEHALF_OF_GRANTS;
use crate::write::writer::{ChunkWriter, Stored};

#[derive(Default)]
pub(crate) struct Committer {
    work: Arc<Notify>,
    /// Bounded by the appending files: each has one at a time.
    appends: Mutex<VecDeque<Append>>,
}

/// An append to the end of a file, wherever that is by then.
pub(super) struct Append {
    pub file: Arc<FileState>,
    /// File offsets from 0.
    pub extents: Vec<Extent>,
    /// Keeps the chunks open.
    pub stored: Vec<Stored>,
    pub mtime: Timestamp,
    pub reply: oneshot::Sender<Result<Attr>>,
}

impl Committer {
    pub fn kick(&self) {
        self.work.notify_one();
    }

    pub(super) fn append(&self, append: Append) {
        self.appends.lock().push_back(append);
        self.kick();
    }

    pub(super) fn fail_appends(&self, error: &Error) {
        for append in std::mem::take(&mut *self.appends.lock()) {
            // Whoever no longer waits need not know.
            let _ = append.reply.send(Err(error.clone()));
        }
    }
}

/// What one operation commits.
#[derive(Default)]
struct Batch {
    entries: Vec<Entry>,
    /// Chunks that the entries use.
    used: BTreeMap<ChunkId, Arc<ChunkWriter>>,
    seals: BTreeMap<ChunkId, Arc<ChunkWriter>>,
}

struct Entry {
    file: Arc<FileState>,
    commit: FileCommit,
    /// `None` for what the file's write state has under way.
    append: Option<Append>,
    _busy: Busy,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.seals.is_empty()
    }

    /// Extents that still fit.
    fn room(&self) -> usize {
        let extents: usize = self.entries.iter().map(|entry| entry.commit.extents.len()).sum();
        // One file may add as many chunks as it has uploads under way, far fewer than the half left here.
        if self.entries.len() == COMMIT_FILES_MAX || self.used.len() + self.seals.len() > COMMIT_CHUNKS_MAX / 2 {
            0
        } else {
            COMMIT_EXTENTS_MAX - extents
        }
    }

    fn op(&self) -> Op {
        let used = self.used.iter().map(|(chunk, writer)| writer.chunk_commit(true, self.seals.contains_key(chunk)));
        let only_sealed = self.seals.iter().filter(|(chunk, _)| !self.used.contains_key(chunk));
        Op::Commit {
            chunks: used.chain(only_sealed.map(|(_, writer)| writer.chunk_commit(false, true))).collect(),
            files: self.entries.iter().map(|entry| entry.commit.clone()).collect(),
        }
    }

    /// The same in two halves, if it can be halved. Chunks are sealed by the second.
    fn halve(mut self) -> std::result::Result<(Batch, Batch), Batch> {
        if self.entries.len() < 2 && (self.entries.is_empty() || self.seals.is_empty()) {
            return Err(self);
        }
        let rest = if self.entries.len() < 2 { Vec::new() } else { self.entries.split_off(self.entries.len() / 2) };
        let used_by = |entries: &[Entry]| {
            let chunks = entries.iter().flat_map(|entry| &entry.commit.extents).map(|extent| extent.chunk);
            chunks.filter_map(|chunk| self.used.get_key_value(&chunk)).map(|(&c, w)| (c, w.clone())).collect()
        };
        let first: BTreeMap<_, _> = used_by(&self.entries);
        let second = used_by(&rest);
        Ok((
            Batch { entries: self.entries, used: first, seals: BTreeMap::new() },
            Batch { entries: rest, used: second, seals: self.seals },
        ))
    }
}

impl Client {
    pub(crate) fn start_committer(self: &Arc<Self>) {
        let client: Weak<Client> = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(strong) = client.upgrade() {
                let committed = strong.commit_once().await;
                if committed {
                    continue;
                }
                // Waits without keeping the client alive. A kick that came since is remembered.
                let (work, stopped) = (strong.writes.committer.work.clone(), strong.stopped.clone());
                drop(strong);
                tokio::select! {
                    () = stopped.cancelled() => return,
                    () = work.notified() => {}
                }
            }
        });
    }

    /// Something that commits waited for has happened.
    pub(crate) fn commit_soon(&self) {
        self.writes.committer.kick();
    }

    /// Commits what there is. `false` if there was nothing.
    async fn commit_once(self: &Arc<Self>) -> bool {
        let Some(session) = self.sessions.current() else { return false };
        let batch = self.collect(&session);
        if batch.is_empty() {
            return false;
        }
        // Refused as a whole, a batch is tried in halves until what is refused stands alone.
        let mut batches = vec![batch];
        while let Some(batch) = batches.pop() {
            let span = info_span!("commit", files = batch.entries.len(), chunks = batch.used.len());
            let outcome = self.send(&session, &batch).instrument(span).await;
            match outcome {
                Ok(attrs) => self.committed(batch, attrs),
                Err(_) if self.stopped.is_cancelled() => return false,
                Err(error) if error.kind == ErrorKind::SessionExpired => {
                    self.session_expired(session.id());
                    self.refused(batch, &session_lost());
                }
                Err(error) => match batch.halve() {
                    Ok((first, second)) => batches.extend([second, first]),
                    Err(batch) => self.refused(batch, &error),
                },
            }
        }
        true
    }

    fn collect(self: &Arc<Self>, session: &Session) -> Batch {
        let mut batch = Batch::default();
        self.add_appends(session, &mut batch);
        let ended: Vec<_> = self.writes.open_writers().into_iter().filter(|writer| writer.is_settled()).collect();
        let files = self.writes.dirty_files();
        for file in &files {
            self.add_file(session, &mut batch, file, &ended);
        }
        // A chunk is sealed with or after the last extent on it. It takes no more pieces, and all owners
        // have been told, so nothing can come after what is seen here.
        for writer in ended {
            let waits = files.iter().any(|file| file.inner.lock().writes.waits_on(writer.chunk()));
            if !waits && batch.used.len() + batch.seals.len() < COMMIT_CHUNKS_MAX {
                batch.seals.insert(writer.chunk(), writer);
            }
        }
        batch
    }

    fn add_appends(&self, session: &Session, batch: &mut Batch) {
        let waiting = std::mem::take(&mut *self.writes.committer.appends.lock());
        let mut left = VecDeque::new();
        for append in waiting {
            // Tried again when the namenode knows the file as it is known here.
            match (batch.room() > 0).then(|| self.private.committing(append.file.inode)).flatten() {
                Some(busy) => self.add_append(session, batch, append, busy),
                None => left.push_back(append),
            }
        }
        let mut appends = self.writes.committer.appends.lock();
        left.append(&mut appends);
        *appends = left;
    }

    fn add_append(&self, session: &Session, batch: &mut Batch, append: Append, busy: Busy) {
        let Some(grant) = append.file.inner.lock().grant(true, session.id()) else {
            let _ = append.reply.send(Err(session_lost()));
            return;
        };
        for stored in &append.stored {
            batch.used.insert(stored.writer.chunk(), stored.writer.clone());
        }
        let commit = FileCommit {
            inode: append.file.inode,
            grant,
            extents: append.extents.clone(),
            mtime: Some(append.mtime),
            append: true,
        };
        batch.entries.push(Entry { file: append.file.clone(), commit, append: Some(append), _busy: busy });
    }

    fn add_file(
        self: &Arc<Self>,
        session: &Session,
        batch: &mut Batch,
        file: &Arc<FileState>,
        ended: &[Arc<ChunkWriter>],
    ) {
        let room = batch.room();
        if room == 0 {
            return;
        }
        let wanted = |inner: &mut Inner| {
            inner.wants_commit() || ended.iter().any(|writer| inner.writes.waits_on(writer.chunk()))
        };
        if !wanted(&mut file.inner.lock()) {
            return;
        }
        // Tried again when the namenode knows the file as it is known here.
        let Some(busy) = self.private.committing(file.inode) else { return };
        let (grant, extents, mtime) = {
            let mut inner = file.inner.lock();
            if !wanted(&mut inner) {
                return;
            }
            match inner.grant(true, session.id()) {
                Some(grant) => (grant, inner.writes.take_commit(room), inner.writes.mtime()),
                None => {
                    drop(inner);
                    return self.grant_again(file.clone());
                }
            }
        };
        if extents.is_empty() {
            return;
        }
        let mut missing = None;
        {
            let writers = self.writes.writers.lock();
            for extent in &extents {
                match writers.get(&extent.chunk) {
                    Some(writer) => drop(batch.used.insert(extent.chunk, writer.clone())),
                    None => missing = Some(extent.chunk),
                }
            }
        }
        if let Some(chunk) = missing {
            // Given up with its session, while the bytes were acknowledged.
            let mut inner = file.inner.lock();
            inner.writes.handle_refused();
            inner.writes.handle_lost(chunk);
            drop(inner);
            self.kick_uploader(file);
            return;
        }
        let commit = FileCommit { inode: file.inode, grant, extents, mtime, append: false };
        batch.entries.push(Entry { file: file.clone(), commit, append: None, _busy: busy });
    }

    async fn send(&self, session: &Arc<Session>, batch: &Batch) -> Result<Vec<Attr>> {
        let op = batch.op();
        let lens: Vec<(ChunkId, u32)> = match &op {
            Op::Commit { chunks, .. } => chunks.iter().map(|commit| (commit.chunk, commit.len)).collect(),
            _ => Vec::new(),
        };
        let reply = tokio::select! {
            reply = self.mutate_in(session, &ON_BEHALF_OF_GRANTS, op, Deadline::NEVER) => reply?,
            () = self.stopped.cancelled() => {
                return Err(Error::new(ErrorKind::Unavailable, "the client has been shut down"));
            }
        };
        let OpReply::Committed { files } = reply else { return Err(unexpected_answer("Commit")) };
        if files.len() != batch.entries.len() {
            return Err(unexpected_answer("Commit"));
        }
        for (chunk, len) in lens {
            if let Some(writer) = batch.used.get(&chunk).or_else(|| batch.seals.get(&chunk)) {
                writer.handle_committed(len);
            }
        }
        Ok(files)
    }

    fn committed(self: &Arc<Self>, batch: Batch, attrs: Vec<Attr>) {
        for (entry, attr) in batch.entries.into_iter().zip(attrs) {
            match entry.append {
                Some(append) => {
                    let placed = placed_at_end(&append.extents, &attr);
                    let learn = |attr: Attr| {
                        entry.file.inner.lock().observe_own(&attr, &placed);
                        attr
                    };
                    let outcome = match vanished(&attr) {
                        None => Ok(self.private.observe(attr, learn)),
                        Some(error) => Err(error),
                    };
                    let _ = append.reply.send(outcome);
                }
                None => self.file_committed(&entry.file, attr),
            }
        }
        let mut writers = self.writes.writers.lock();
        for chunk in batch.seals.keys() {
            writers.remove(chunk);
        }
        drop(writers);
        for (chunk, writer) in batch.seals {
            debug!(%chunk, "chunk sealed");
            self.reads.replicas_are(chunk, &writer.chunk_commit(false, true).replicas);
        }
    }

    fn file_committed(self: &Arc<Self>, file: &Arc<FileState>, attr: Attr) {
        let gone = vanished(&attr);
        let settle = |attr: Option<Attr>| {
            let mut inner = file.inner.lock();
            let (freed, extents) = inner.writes.handle_committed();
            if let Some(attr) = attr {
                inner.observe_own(&attr, &extents);
            }
            self.unlist_if_clean(file, &mut inner);
            (freed, inner.wants_commit())
        };
        let (freed, again) = match &gone {
            None => self.private.observe(attr, |attr| settle(Some(attr))),
            Some(_) => settle(None),
        };
        self.free(freed);
        match gone {
            // Removed by somebody else. Only whoever still has it open can notice.
            Some(error) if file.inner.lock().handles > 0 => self.fail_file(file, &error),
            Some(_) => self.discard(file),
            None => file.progress.notify_waiters(),
        }
        if again {
            self.writes.committer.kick();
        }
    }

    /// Gets a grant under the current key, and goes on with the file's commits.
    fn grant_again(self: &Arc<Self>, file: Arc<FileState>) {
        let client = self.clone();
        tokio::spawn(async move {
            match client.grant(&file, true).await {
                Ok(_) => client.writes.committer.kick(),
                Err(error) => client.fail_file(&file, &error),
            }
        });
    }

    /// What cannot be halved has been refused.
    fn refused(self: &Arc<Self>, batch: Batch, error: &Error) {
        let stale = error.kind == ErrorKind::StaleEpoch;
        let retired = error.kind == ErrorKind::CapabilityExpired;
        warn!(%error, files = batch.entries.len(), "commit refused");
        for entry in batch.entries {
            match entry.append {
                Some(append) => drop(append.reply.send(Err(error.clone()))),
                None => {
                    let mut inner = entry.file.inner.lock();
                    inner.writes.handle_refused();
                    // The bytes of a chunk that is no longer ours are sent again to another one.
                    if stale {
                        batch.used.keys().for_each(|&chunk| inner.writes.handle_lost(chunk));
                    }
                    if retired {
                        inner.drop_grants();
                    }
                    drop(inner);
                    if stale {
                        self.kick_uploader(&entry.file);
                    } else if retired {
                        self.grant_again(entry.file);
                    } else {
                        self.fail_file(&entry.file, error);
                    }
                }
            }
        }
        if stale || error.kind == ErrorKind::SessionExpired {
            for (chunk, writer) in batch.used {
                self.writes.writers.lock().remove(&chunk);
                writer.abandon(self, &error.message);
            }
        }
        // If the namenode does not seal them for us it does so with the session.
        let mut writers = self.writes.writers.lock();
        for chunk in batch.seals.keys() {
            writers.remove(chunk);
        }
    }
}

/// Where appended extents came to lie in a file that ends with them.
fn placed_at_end(extents: &[Extent], attr: &Attr) -> Vec<Extent> {
    let len: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum();
    let Some(base) = attr.size_bytes.checked_sub(len) else { return Vec::new() };
    extents.iter().map(|extent| Extent { file_offset: base + extent.file_offset, ..*extent }).collect()
}

/// The namenode passes over files that are gone and shows them without links and content.
fn vanished(attr: &Attr) -> Option<Error> {
    (attr.version == 0 && attr.nlink == 0)
        .then(|| Error::new(ErrorKind::Stale, format!("inode {} has been removed by another client", attr.inode)))
}

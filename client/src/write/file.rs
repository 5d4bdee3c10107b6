//! What an open file does to write: take bytes, flush, sync, append, change its size.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::FILE_MAX;
use dfs_proto::msg::meta::{Op, OpReply};
use dfs_proto::{Attr, Caller, ChunkId, ErrorKind, Extent, SetAttr};
use futures::future::join_all;
use tokio::sync::oneshot;

use crate::client::{Client, now};
use crate::deadline::{Deadline, timed_out};
use crate::error::{Error, Result, unexpected_answer};
use crate::open::{FileState, Inner};
use crate::write::commit::Append;
use crate::write::state::{Lane, Mark, STREAM_MIN, UPLOAD_MAX};
use crate::write::writer::{Owner, Piece, Stored};

/// How often a sync starts over because a chunk failed before it was synced.
const SYNC_ROUNDS: usize = 8;

impl Client {
    /// Takes bytes into memory; waits while there are too many.
    pub async fn write(self: &Arc<Self>, file: &Arc<FileState>, offset: u64, bytes: Bytes) -> Result<()> {
        require_size(offset, bytes.len() as u64)?;
        let deadline = self.deadline();
        let _shared = deadline.bound("a change of the file's size is under way", file.resize.read()).await?;
        self.take(file, offset, bytes, deadline).await
    }

    /// `write`, by whoever has the file's `resize`.
    async fn take(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        mut offset: u64,
        mut bytes: Bytes,
        deadline: Deadline,
    ) -> Result<()> {
        self.require_writable(file).await?;
        while !bytes.is_empty() {
            let part = bytes.split_to(bytes.len().min(UPLOAD_MAX as usize));
            let len = part.len();
            self.reserve(len, deadline).await?;
            let replaced = {
                let mut inner = file.inner.lock();
                let replaced = inner.writes.write(offset, part, now());
                self.list_dirty(file, &mut inner);
                replaced
            };
            self.free(replaced);
            offset += len as u64;
            if self.writes.budget.available_permits() < self.writes.budget_max / 2 {
                self.start_writeback(file);
            } else {
                self.kick_uploader(file);
            }
        }
        Ok(())
    }

    /// Everything written so far is on enough datanodes and committed.
    pub async fn flush(self: &Arc<Self>, file: &Arc<FileState>, deadline: Deadline) -> Result<()> {
        let (mark, failures) = self.force(file);
        file.inner.lock().commit_up_to(mark);
        let stored = |inner: &Inner| inner.writes.is_done(mark);
        self.wait(file, mark, failures, deadline, "the file's bytes are being stored", stored).await
    }

    /// As `flush`, and synced to disk on enough datanodes. Chunks are synced before what lies in them is
    /// committed, as far as a flush or the clock has not committed it already.
    pub async fn sync(self: &Arc<Self>, file: &Arc<FileState>) -> Result<()> {
        for _ in 0..SYNC_ROUNDS {
            let syncing = Syncing::start(file);
            let (mark, failures) = self.force(file);
            let uploaded = |inner: &Inner| inner.writes.is_uploaded(mark);
            self.wait(file, mark, failures, self.deadline(), "the file's bytes are being sent", uploaded).await?;
            drop(syncing);
            // However long that took: bytes have moved all the time.
            let deadline = self.deadline();
            let unsynced: Vec<_> = file.inner.lock().unsynced.values().cloned().collect();
            let syncs = unsynced.iter().map(|(writer, end)| writer.sync(*end));
            let synced = deadline.bound("datanodes sync to disk", join_all(syncs)).await?;
            let mut failed = Vec::new();
            {
                let mut inner = file.inner.lock();
                for ((writer, end), ok) in unsynced.iter().zip(synced) {
                    // Bytes that came meanwhile wait for the next sync.
                    if inner.unsynced.get(&writer.chunk()).is_some_and(|(_, now)| now <= end) || !ok {
                        inner.unsynced.remove(&writer.chunk());
                    }
                    if !ok {
                        inner.writes.handle_lost(writer.chunk());
                        failed.push(writer.chunk());
                    }
                }
            }
            self.flush(file, deadline).await?;
            if failed.is_empty() {
                // And its name.
                return self.told_of_all().await;
            }
            // Committed, but nobody can say whether synced: the bytes are written once more.
            for chunk in failed {
                self.rewrite(file, chunk).await?;
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "datanodes failed again and again before the bytes were synced"))
    }

    /// Appends at the end of the file, across all clients. Returns where.
    pub async fn append(self: &Arc<Self>, file: &Arc<FileState>, bytes: Bytes) -> Result<u64> {
        require_size(0, bytes.len() as u64)?;
        let deadline = self.deadline();
        let _shared = deadline.bound("a change of the file's size is under way", file.resize.read()).await?;
        let _one = deadline.bound("another append is under way", file.appending.lock()).await?;
        self.grant(file, true).await?;
        if bytes.is_empty() {
            return Ok(file.inner.lock().merged_attr().size_bytes);
        }
        // What this client wrote before has to be in front of it.
        if !file.inner.lock().writes.is_empty() {
            self.flush(file, deadline).await?;
        }
        let len = bytes.len() as u64;
        loop {
            let attr = self.append_once(file, &bytes, deadline).await;
            match attr {
                Ok(attr) => return Ok(attr.size_bytes.saturating_sub(len)),
                // The chunk was not ours any more: nothing has been committed.
                Err(error) if error.kind == ErrorKind::StaleEpoch && !deadline.passed() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Cuts or extends the file.
    pub async fn set_size(
        self: &Arc<Self>,
        caller: &Caller,
        file: &Arc<FileState>,
        set: SetAttr,
        through_handle: bool,
    ) -> Result<Attr> {
        let deadline = self.deadline();
        let _alone = deadline.bound("writes are under way", file.resize.write()).await?;
        if let Some(size) = set.size_bytes {
            let freed = {
                let mut inner = file.inner.lock();
                let freed = inner.writes.truncate(size);
                self.unlist_if_clean(file, &mut inner);
                freed
            };
            self.free(freed);
        }
        self.flush(file, deadline).await?;
        loop {
            let grant = if through_handle { Some(self.grant(file, true).await?) } else { None };
            match self.mutate(caller, Op::SetAttr { inode: file.inode, set: set.clone(), grant }).await {
                Ok(OpReply::Attr(attr)) => {
                    let mut inner = file.inner.lock();
                    inner.observe(&attr);
                    if is_part(&set, &attr) {
                        continue;
                    }
                    return Ok(inner.merged_attr());
                }
                Ok(_) => return Err(unexpected_answer("SetAttr")),
                // Its key has been retired, or its session is over: the file is opened again.
                Err(error) if through_handle && is_outdated(error.kind) && !deadline.passed() => {
                    file.inner.lock().drop_grants();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Has everything sent that was written so far; and how often bytes were lost before that.
    fn force(self: &Arc<Self>, file: &Arc<FileState>) -> (Mark, u64) {
        let (mark, failures) = {
            let mut inner = file.inner.lock();
            (inner.writes.force(), inner.failures.count())
        };
        self.kick_uploader(file);
        (mark, failures)
    }

    /// Waits until `done`, or until more bytes were lost than those `failures`. The deadline begins anew whenever fewer
    /// bytes up to the mark have still to be sent than ever before: over a slow link many of them take long, and nothing
    /// is wrong.
    async fn wait(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        mark: Mark,
        failures: u64,
        mut deadline: Deadline,
        what: &str,
        done: impl Fn(&Inner) -> bool,
    ) -> Result<()> {
        let mut least = None;
        loop {
            let progress = file.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let commit = {
                let mut inner = file.inner.lock();
                if let Some(error) = inner.failures.since(failures) {
                    return Err(error);
                }
                if done(&inner) {
                    return Ok(());
                }
                let unsent = inner.writes.unsent_bytes(mark);
                if least.is_some_and(|least| unsent < least) {
                    deadline = deadline.renewed();
                }
                least = Some(least.map_or(unsent, |least: u64| least.min(unsent)));
                inner.wants_commit()
            };
            if commit {
                self.writes.committer.kick();
            }
            if deadline.bound(what, progress).await.is_err() {
                return Err(timed_out(what));
            }
        }
    }

    /// Takes room for bytes; it is given back when they are committed.
    async fn reserve(self: &Arc<Self>, len: usize, deadline: Deadline) -> Result<()> {
        let permit = match self.writes.budget.try_acquire_many(len as u32) {
            Ok(permit) => permit,
            Err(_) => {
                self.start_writeback_of_all();
                let room = self.writes.budget.acquire_many(len as u32);
                let room = deadline.bound("written bytes wait to be stored", room).await?;
                room.map_err(|_| Error::new(ErrorKind::Internal, "the client is shut down"))?
            }
        };
        permit.forget();
        Ok(())
    }

    async fn append_once(self: &Arc<Self>, file: &Arc<FileState>, bytes: &Bytes, deadline: Deadline) -> Result<Attr> {
        let mut extents = Vec::new();
        let mut stored = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            let part = bytes.slice(done..bytes.len().min(done + UPLOAD_MAX as usize));
            let lane = if bytes.len() as u64 >= STREAM_MIN { Lane::Stream } else { Lane::Pack };
            let piece = deadline.bound("the appended bytes are sent", self.store(file, lane, &part)).await??;
            let extent = Extent {
                file_offset: done as u64,
                chunk: piece.writer.chunk(),
                chunk_offset: piece.at,
                len: part.len() as u32,
            };
            {
                let mut inner = file.inner.lock();
                let unsynced = inner.unsynced.entry(extent.chunk).or_insert_with(|| (piece.writer.clone(), 0));
                unsynced.1 = unsynced.1.max(extent.chunk_end());
            }
            done += part.len();
            extents.push(extent);
            stored.push(piece);
        }
        let (reply, answer) = oneshot::channel();
        self.writes.committer.append(Append { file: file.clone(), extents, stored, mtime: now(), reply });
        let gone = |_| Error::new(ErrorKind::Internal, "the client is shut down");
        deadline.bound("the append is committed", answer).await?.map_err(gone)?
    }

    /// One piece onto datanodes, however many chunks fail under it.
    async fn store(self: &Arc<Self>, file: &Arc<FileState>, lane: Lane, part: &Bytes) -> Result<Stored> {
        let replication = file.inner.lock().attr.replication;
        let pack = self.writes.pack(replication);
        let slot = if lane == Lane::Stream { &file.stream } else { &*pack };
        loop {
            let (owner, stored) = oneshot::channel();
            let piece = Piece { owner: Owner::Direct(owner), bytes: vec![part.clone()], sync: false };
            slot.append(self, lane, replication, piece).await?;
            if let Ok(stored) = stored.await {
                return Ok(stored);
            }
        }
    }

    /// Writes again what the file has in `chunk`. Another client that overwrites the same bytes at this
    /// very moment may lose to it, as it may to any write of ours.
    async fn rewrite(self: &Arc<Self>, file: &Arc<FileState>, chunk: ChunkId) -> Result<()> {
        let size = {
            let mut inner = file.inner.lock();
            inner.allow_own_reads();
            inner.attr.size_bytes
        };
        let extents = self.extents(file, 0, size).await?;
        for extent in extents.into_iter().filter(|extent| extent.chunk == chunk) {
            let mut start = extent.file_offset;
            while start < extent.file_end() {
                let end = extent.file_end().min(start + UPLOAD_MAX);
                self.rewrite_piece(file, chunk, start, end).await?;
                start = end;
            }
        }
        Ok(())
    }

    async fn rewrite_piece(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        chunk: ChunkId,
        start: u64,
        end: u64,
    ) -> Result<()> {
        let deadline = self.deadline();
        // What is cut or punched meanwhile must not come back.
        let _shared = deadline.bound("a change of the file's size is under way", file.resize.read()).await?;
        for extent in self.extents(file, start, end).await?.into_iter().filter(|extent| extent.chunk == chunk) {
            let bytes = self.read_committed(file, extent.file_offset, extent.file_end()).await?.complete()?;
            let untouched = file.inner.lock().writes.overlay(extent.file_offset, extent.file_end()).is_empty();
            if untouched {
                self.take(file, extent.file_offset, bytes, deadline).await?;
            }
        }
        Ok(())
    }
}

/// Of a file with many extents only a piece is cut so far, and nothing else is done.
pub(crate) fn is_part(set: &SetAttr, after: &Attr) -> bool {
    set.size_bytes.is_some_and(|wanted| after.size_bytes > wanted)
}

/// The grant that came along is no longer good; another one may be.
pub(super) fn is_outdated(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::CapabilityExpired | ErrorKind::SessionExpired)
}

pub(super) fn require_size(offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= FILE_MAX => Ok(()),
        _ => Err(Error::new(ErrorKind::FileTooLarge, format!("a file has at most {FILE_MAX} bytes"))),
    }
}

/// While it lives, what the file sends last is synced at once.
struct Syncing<'a> {
    file: &'a FileState,
}

impl<'a> Syncing<'a> {
    fn start(file: &'a FileState) -> Syncing<'a> {
        file.inner.lock().syncing += 1;
        Syncing { file }
    }
}

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        self.file.inner.lock().syncing -= 1;
    }
}

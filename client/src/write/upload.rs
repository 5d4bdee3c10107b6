//! Moves a file's bytes to datanodes, and hears what became of them.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{Caller, ErrorKind};
use futures::future::join_all;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::open::{FileState, Inner};
use crate::write::state::{Lane, Mark, UploadId};
use crate::write::writer::{ChunkWriter, Owner, Piece};

/// How often files with uncommitted bytes are looked at: what was there already at the last look is
/// stored. So a crash of the client loses at most two seconds of writes that nobody flushed.
const CLOCK: Duration = Duration::from_secs(1);

/// A chunk without appends for so long is sealed: only sealed chunks are repaired when a node dies.
const CHUNK_IDLE: Duration = Duration::from_secs(3);

/// Acknowledged bytes of one file that are committed without a flush, so that memory is set free.
const COMMIT_BYTES: u64 = 16 << 20;

/// Moments at which somebody wanted a file committed, and it is not yet. With more the latest take the place of each other.
const COMMIT_MARKS_MAX: usize = 16;

/// Pause of an uploader that got no chunk.
const RETRY: Duration = Duration::from_millis(500);

impl Inner {
    /// Has what was written up to the mark committed as soon as all of it is acknowledged.
    pub(super) fn commit_up_to(&mut self, mark: Mark) {
        self.commit_marks.retain(|mark| !self.writes.is_done(*mark));
        if self.commit_marks.len() >= COMMIT_MARKS_MAX {
            self.commit_marks.pop_back();
        }
        self.commit_marks.push_back(mark);
    }

    /// Whether what is acknowledged is to be committed now: a good deal of it, or all of what somebody waits for. Not each
    /// acknowledged piece by itself, which costs a round through the group.
    pub(super) fn wants_commit(&mut self) -> bool {
        while self.commit_marks.front().is_some_and(|mark| self.writes.is_done(*mark)) {
            self.commit_marks.pop_front();
        }
        // They only grow: where the first one is not reached, no other is.
        let waited_for = |mark: &Mark| self.writes.is_uploaded(*mark);
        let acked = self.writes.acked_bytes();
        acked > 0 && (acked >= COMMIT_BYTES || self.commit_marks.front().is_some_and(waited_for))
    }
}

impl Client {
    /// Sees to it that what is due is uploaded.
    pub fn kick_uploader(self: &Arc<Self>, file: &Arc<FileState>) {
        let start = {
            let mut inner = file.inner.lock();
            let start = !inner.uploading && inner.writes.has_due();
            inner.uploading |= start;
            start
        };
        if start {
            let (client, file) = (self.clone(), file.clone());
            tokio::spawn(async move { client.upload(&file).await });
        }
    }

    /// Stores what the file has, without anybody waiting for it.
    pub fn start_writeback(self: &Arc<Self>, file: &Arc<FileState>) {
        {
            let mut inner = file.inner.lock();
            if inner.writes.is_empty() {
                return;
            }
            let mark = inner.writes.force();
            inner.commit_up_to(mark);
        }
        self.kick_uploader(file);
        self.writes.committer.kick();
    }

    pub fn start_writeback_of_all(self: &Arc<Self>) {
        for file in self.writes.dirty_files() {
            self.start_writeback(&file);
        }
    }

    /// Drops what the file has not committed.
    pub fn discard(&self, file: &Arc<FileState>) {
        let freed = {
            let mut inner = file.inner.lock();
            let freed = inner.writes.discard();
            self.unlist_if_clean(file, &mut inner);
            freed
        };
        self.free(freed);
        file.progress.notify_waiters();
    }

    /// Drops what the file has not committed, which every descriptor is told by its next write, flush or sync.
    pub(super) fn fail_file(&self, file: &Arc<FileState>, error: &Error) {
        warn!(inode = %file.inode, %error, "bytes lost");
        file.inner.lock().failures.note(error.clone());
        self.discard(file);
    }

    pub(super) fn free(&self, bytes: u64) {
        self.writes.budget.add_permits(bytes as usize);
    }

    pub(super) fn list_dirty(&self, file: &Arc<FileState>, inner: &mut Inner) {
        if !inner.listed {
            inner.listed = true;
            self.writes.dirty.lock().insert(file.inode, file.clone());
        }
    }

    pub(super) fn unlist_if_clean(&self, file: &Arc<FileState>, inner: &mut Inner) {
        if inner.writes.is_empty() {
            inner.listed = false;
            inner.commit_marks.clear();
            inner.aged = false;
            self.writes.dirty.lock().remove(&file.inode);
        }
    }

    async fn upload(self: &Arc<Self>, file: &Arc<FileState>) {
        loop {
            let (upload, sync, replication) = {
                let mut inner = file.inner.lock();
                match inner.writes.next_upload() {
                    Some(upload) => (upload, inner.syncing > 0 && !inner.writes.has_due(), inner.attr.replication),
                    None => {
                        inner.uploading = false;
                        break;
                    }
                }
            };
            let owner = Owner::File(file.clone(), upload.id);
            let piece = Piece { owner, bytes: upload.pieces, sync };
            let appended = match upload.lane {
                Lane::Stream => file.stream.append(self, upload.lane, replication, piece).await,
                Lane::Pack => self.writes.pack(replication).append(self, upload.lane, replication, piece).await,
            };
            if let Err(error) = appended {
                self.no_chunk(file, upload.id, error).await;
            }
            if self.stopped.is_cancelled() {
                file.inner.lock().uploading = false;
                break;
            }
        }
        file.progress.notify_waiters();
    }

    async fn no_chunk(self: &Arc<Self>, file: &Arc<FileState>, upload: UploadId, error: Error) {
        if error.kind.retryable() || error.kind == ErrorKind::SessionExpired {
            // Whoever waits has a deadline of its own. The bytes stay and are tried again.
            debug!(inode = %file.inode, %error, "upload waits");
            file.inner.lock().writes.handle_failure(upload);
            tokio::time::sleep(RETRY).await;
        } else {
            self.fail_file(file, &error);
        }
    }

    pub fn upload_acked(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        upload: UploadId,
        writer: &Arc<ChunkWriter>,
        at: u32,
        len: u32,
    ) {
        let commit = {
            let mut inner = file.inner.lock();
            inner.writes.handle_ack(upload, writer.chunk(), at);
            if inner.unsynced.len() > 16 {
                inner.unsynced.retain(|_, (writer, end)| !writer.is_synced(*end));
            }
            let unsynced = inner.unsynced.entry(writer.chunk()).or_insert_with(|| (writer.clone(), 0));
            unsynced.1 = unsynced.1.max(at + len);
            if writer.is_lost() {
                inner.writes.handle_lost(writer.chunk());
            }
            inner.wants_commit()
        };
        if commit {
            self.writes.committer.kick();
        }
        file.progress.notify_waiters();
        self.kick_uploader(file);
    }

    pub fn upload_failed(self: &Arc<Self>, file: &Arc<FileState>, upload: UploadId) {
        file.inner.lock().writes.handle_failure(upload);
        self.kick_uploader(file);
    }

    /// A chunk takes no more appends: it is sealed by the next commit, and what it lost is sent again.
    pub fn chunk_ended(self: &Arc<Self>, writer: &Arc<ChunkWriter>) {
        let took = !writer.is_lost() || writer.acked() > 0;
        self.writes.failing.lock().ended(took, Instant::now());
        if writer.is_lost() {
            for file in self.writes.dirty_files() {
                file.inner.lock().writes.handle_lost(writer.chunk());
                self.kick_uploader(&file);
            }
        }
        self.writes.committer.kick();
    }

    /// Everything under way is given up: the session that it belongs to is over.
    pub fn abandon_writes(self: &Arc<Self>, error: &Error) {
        let writers: Vec<_> = self.writes.writers.lock().drain().map(|(_, writer)| writer).collect();
        self.writes.stock.clear();
        self.writes.committer.fail_appends(error);
        // Before the chunks end: otherwise their bytes would be sent again.
        for file in self.writes.dirty_files() {
            self.fail_file(&file, error);
        }
        for writer in writers {
            writer.abandon(self, &error.message);
        }
    }

    pub(crate) fn start_writeback_clock(self: &Arc<Self>) {
        let client = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(CLOCK).await;
                match client.upgrade() {
                    Some(client) => client.tick().await,
                    None => return,
                }
            }
        });
    }

    async fn tick(self: &Arc<Self>) {
        self.files.sweep();
        let client = self.clone();
        tokio::spawn(async move { client.tell_reads().await });
        for file in self.writes.dirty_files() {
            let aged = std::mem::replace(&mut file.inner.lock().aged, true);
            if aged {
                self.start_writeback(&file);
            }
        }
        for writer in self.writes.open_writers() {
            if writer.is_idle_since(CHUNK_IDLE) {
                writer.close().await;
            }
        }
        self.give_unused_chunks_back();
    }

    /// Stores everything and ends the append streams. What is on datanodes and committed by then needs no
    /// more of them: the end of the session seals their chunks. Returns the first error that lost bytes.
    pub async fn drain_writes(self: &Arc<Self>) -> Result<()> {
        // Also of a `hard` client: who stops it wants it to end.
        let deadline = Deadline::after(self.options.op_deadline);
        let files = self.writes.dirty_files();
        let flushed = join_all(files.iter().map(|file| self.flush(file, deadline))).await;
        for writer in self.writes.open_writers() {
            writer.halt();
        }
        flushed.into_iter().collect()
    }
}

/// Commits and allocations act for files opened by many callers; grants prove what they may.
pub(super) static ON_BEHALF_OF_GRANTS: Caller = Caller::ROOT;

//! Opening a chunk for appending, appending to it, syncing it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use dfs_proto::limits::{CHUNK_FRAMES_MAX, CHUNK_MAX};
use dfs_proto::{ChunkId, Epoch, FrameHeader};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::Store;
use super::chunk_file::ChunkFile;
use super::chunks::Replica;
use super::error::StoreError;
use super::format::{Header, State};
use super::volume::Volume;
use crate::clock;

/// A volume with less room than this takes no new chunk: the writer would soon have to switch again.
const NEW_CHUNK_ROOM: u64 = 4 << 20;

/// A chunk in its one life as a target of appends.
pub struct OpenChunk {
    pub chunk: ChunkId,
    volume: Arc<Volume>,
    file: ChunkFile,
    /// Held while the file is synced: one caller syncs for all who wait, and an error of the file is
    /// seen by the caller who meets the latch next, not swallowed by whoever asked the kernel first.
    syncing: Mutex<()>,
    /// Held while frames are written.
    tail: Mutex<Tail>,
    /// The append stream has ended, or the chunk was sealed or deleted: no frame is taken any more.
    over: AtomicBool,
    /// Bytes from the start of the chunk that a finished sync covers.
    synced: AtomicU32,
    /// Cancelled when the writer is to go on elsewhere.
    pub evicted: CancellationToken,
}

struct Tail {
    frames: u32,
    len: u32,
}

impl Store {
    /// Makes a chunk and opens it for appending. It survives a power cut from here on, still empty.
    ///
    /// A chunk has at most one append stream in its life: one that exists is refused.
    pub fn create(&self, chunk: ChunkId, epoch: Epoch) -> Result<Arc<OpenChunk>, StoreError> {
        if !self.is_scanned() {
            return Err(StoreError::NotScanned);
        }
        let _gate = self.gate(chunk);
        if self.chunks.get(chunk).is_some() {
            return Err(StoreError::AlreadyHere(chunk));
        }
        let volume = &self.roomiest_volume()?;
        volume.take_room(NEW_CHUNK_ROOM)?;
        let path = volume.chunk_path(chunk);
        let header = Header::open(self.cluster, chunk, epoch);
        let made = self.write(volume, || match ChunkFile::create(&path, &header) {
            // A file that is not in the table: a second one of its chunk, or the rest of a failed attempt.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            other => other.map(Some),
        })?;
        let file = made.ok_or(StoreError::AlreadyHere(chunk))?;
        self.sync(volume, &file)?;
        self.sync_folder(volume, chunk)?;
        let open = Arc::new(OpenChunk {
            chunk,
            volume: volume.clone(),
            file,
            syncing: Mutex::new(()),
            tail: Mutex::new(Tail { frames: 0, len: 0 }),
            over: AtomicBool::new(false),
            synced: AtomicU32::new(0),
            evicted: CancellationToken::new(),
        });
        self.open.lock().insert(chunk, open.clone());
        self.chunks.put(
            chunk,
            Replica {
                volume: volume.number,
                epoch,
                state: State::Open,
                frames: 0,
                len: 0,
                whole: 0,
                verified_s: clock::now_s(),
                lost: false,
                short: false,
            },
        );
        Ok(open)
    }

    /// Verifies frames and appends them; the chunk's new length. All of them or none.
    pub fn append(&self, open: &OpenChunk, frames: &[(FrameHeader, Bytes)]) -> Result<u32, StoreError> {
        let chunk = open.chunk;
        for (frame, bytes) in frames {
            if !frame.matches(chunk, bytes) {
                return Err(StoreError::WrongDigest { chunk, offset: frame.offset });
            }
        }
        let mut tail = open.tail.lock();
        if open.over.load(Ordering::Acquire) {
            return Err(StoreError::NotOpen(chunk));
        }
        let mut end = tail.len;
        for (frame, _) in frames {
            if frame.offset != end {
                return Err(StoreError::NotContiguous { chunk, end, found: frame.offset });
            }
            end = frame.end();
        }
        let count = tail.frames + frames.len() as u32;
        if count > CHUNK_FRAMES_MAX || end > CHUNK_MAX {
            return Err(StoreError::Full(chunk));
        }
        open.volume.take_room(u64::from(end - tail.len))?;
        self.write(&open.volume, || open.file.write_frames(tail.frames, frames, open.synced()))?;
        (tail.frames, tail.len) = (count, end);
        self.chunks.update(chunk, |replica| (replica.frames, replica.len, replica.whole) = (count, end, end));
        Ok(end)
    }

    /// Syncs what has been appended so far; the length that is now safe.
    pub fn sync_open(&self, open: &OpenChunk) -> Result<u32, StoreError> {
        let wanted = open.tail.lock().len;
        let _syncing = open.syncing.lock();
        // Whoever held the lock before may have failed: then the volume says so.
        open.volume.check()?;
        if open.synced() < wanted {
            let len = open.tail.lock().len;
            self.sync(&open.volume, &open.file)?;
            open.synced.fetch_max(len, Ordering::AcqRel);
            // Entries that follow say it as well, but perhaps none will. The sync has succeeded, whatever becomes of the
            // note; of a failed write the volume has heard.
            let tail = open.tail.lock();
            let _ = self.write(&open.volume, || open.file.note_synced(tail.frames, len));
        }
        Ok(open.synced())
    }

    /// Has the writer of an open chunk end its stream, if it still appends under an epoch up to `epoch`. What it has
    /// appended stays.
    pub fn end_appends(&self, chunk: ChunkId, epoch: Epoch) {
        let open = self.open.lock().get(&chunk).cloned();
        if let Some(open) = open
            && self.chunks.get(chunk).is_some_and(|replica| replica.epoch <= epoch)
        {
            open.evicted.cancel();
        }
    }

    /// Syncs every open chunk that has unsynced bytes, and lets go of files that nobody appends to any more.
    pub fn sync_all_open(&self) {
        let open: Vec<_> = self.open.lock().values().cloned().collect();
        for open in open {
            if open.volume.check().is_ok()
                && let Err(error) = self.sync_open(&open)
            {
                warn!(chunk = %open.chunk, %error, "cannot sync");
            }
            let over = open.over.load(Ordering::Acquire);
            if over && (open.synced() == open.tail.lock().len || open.volume.check().is_err()) {
                self.open.lock().remove(&open.chunk);
            }
        }
    }
}

impl OpenChunk {
    /// Bytes from the start of the chunk that survive a power cut.
    pub fn synced(&self) -> u32 {
        self.synced.load(Ordering::Acquire)
    }

    /// The append stream has ended, however it did. The chunk stays as it is until its seal order.
    /// Does not wait for a write under way.
    pub fn end_of_stream(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// As `end_of_stream`, and waits for the write under way: nothing is appended behind this.
    pub(super) fn stop(&self) {
        self.end_of_stream();
        drop(self.tail.lock());
    }
}

//! The end of a replica's changes: sealed where the namenode says, found damaged, or deleted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dfs_proto::limits::CHUNK_FRAMES_MAX;
use dfs_proto::{ChunkId, Epoch};
use tracing::{info, warn};

use super::append::OpenChunk;
use super::chunk_file::{ChunkFile, ReadFault};
use super::chunks::Replica;
use super::error::{self, StoreError};
use super::format::{Header, State};
use super::recover::{Tail, Walk};
use super::volume::Volume;
use super::{Access, Store};
use crate::clock;

/// What a seal order led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sealed {
    Now,
    /// It was sealed at this length and epoch before.
    Before,
    /// The replica has a higher epoch: the order is old.
    Outdated,
}

/// What a delete order led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deleted {
    /// In the trash, or it was not here.
    Gone,
    /// The replica has a higher epoch: the order is old.
    Outdated,
}

impl Store {
    /// Ends the chunk at `len`, cuts what lies behind, and takes the epoch. Durable when it returns.
    ///
    /// `NotHere` or `Damaged` if this replica cannot be what the order says; `Short` if all that is wrong with it is
    /// that it has less: then it stays open, and an order that says less seals it.
    pub fn seal(&self, chunk: ChunkId, epoch: Epoch, len: u32) -> Result<Sealed, StoreError> {
        let _gate = self.gate(chunk);
        if self.chunks.get(chunk).is_some_and(|replica| replica.epoch > epoch) {
            return Ok(Sealed::Outdated);
        }
        let writer = self.stop_writer(chunk);
        // Read after the writer was stopped: nothing is appended behind this.
        let replica = self.chunks.get(chunk).ok_or(StoreError::NotHere(chunk))?;
        if replica.state == State::Damaged && !replica.was_found_short() {
            return Err(StoreError::Damaged { chunk, reason: "a frame did not match".into() });
        }
        if replica.state == State::Sealed && (replica.epoch, replica.len) == (epoch, len) {
            return Ok(Sealed::Before);
        }
        let volume = &self.volume_of(&replica);
        volume.check()?;
        if replica.short && replica.len < len {
            return Err(StoreError::Short { chunk, here: replica.len, asked: len });
        }
        let file = ChunkFile::open(&volume.chunk_path(chunk), chunk).map_err(|e| self.unopened(chunk, &replica, e))?;
        let replica = match replica.len < len || replica.short || replica.state == State::Damaged {
            true => self.read_again(chunk, &file, &replica, len)?,
            false => replica,
        };
        let frames = match boundary(&file, &replica, len) {
            Ok(frames) => frames,
            Err(fault) => {
                self.condemn(chunk, &replica, 0, &fault.to_string());
                return Err(StoreError::damaged(chunk, &fault));
            }
        };
        if replica.state == State::Open {
            match &writer {
                Some(open) if open.synced() >= len => {}
                Some(open) => drop(self.sync_open(open)?),
                None => self.sync(volume, &file)?,
            }
        }
        self.write_next_header(
            volume,
            &file,
            &Header { cluster: self.cluster, chunk, epoch, state: State::Sealed, frames, len, whole: 0, generation: 0 },
        )?;
        self.write(volume, || file.cut(len))?;
        self.chunks.update(chunk, |replica| {
            *replica = Replica { state: State::Sealed, epoch, frames, len, whole: len, short: false, ..*replica };
        });
        self.open.lock().remove(&chunk);
        Ok(Sealed::Now)
    }

    /// Finds out from the disk what a replica is worth that has fewer bytes than it should, or had before. If it has
    /// `len` by now it is an open one with that many or more. The caller holds the gate and has stopped the writer.
    ///
    /// One that merely ends early must be told from one with damage in the middle: behind damage there may be frames
    /// that were promised and that nobody else has.
    fn read_again(&self, chunk: ChunkId, file: &ChunkFile, replica: &Replica, len: u32) -> Result<Replica, StoreError> {
        file.forget_cached();
        let walk = Walk::whole(file, chunk, CHUNK_FRAMES_MAX);
        if let Some(ReadFault::Io(source)) = walk.fault {
            if error::is_shortage(&source) {
                return Err(StoreError::Io { what: "reading", source });
            }
            let reason = format!("cannot be read behind byte {}: {source}", walk.len);
            self.condemn(chunk, &Replica { frames: walk.frames, len, ..*replica }, walk.len, &reason);
            return Err(StoreError::Damaged { chunk, reason });
        }
        let found = Replica {
            state: State::Open,
            frames: walk.frames,
            len: walk.len,
            whole: walk.len,
            short: walk.len < len,
            ..*replica
        };
        if found.short {
            let sealed = if replica.state == State::Sealed { replica.len } else { 0 };
            let (frames, end) = match Tail::behind(file, chunk, &walk) {
                Tail::Nothing => (walk.frames, walk.len),
                Tail::Unsynced { .. } if sealed <= walk.len => (walk.frames, walk.len),
                Tail::Unsynced { frames, end } | Tail::Frames { frames, end } => (frames, end.max(walk.len + 1)),
                Tail::Unreadable => (walk.frames, len),
            };
            if end > walk.len {
                let reason = format!("damaged at byte {}, with good frames behind it", walk.len);
                self.condemn(chunk, &Replica { frames, len: end, ..*replica }, walk.len, &reason);
                return Err(StoreError::Damaged { chunk, reason });
            }
            warn!(%chunk, here = walk.len, asked = len, "the end of the replica is missing");
            self.open.lock().remove(&chunk);
        }
        self.chunks.update(chunk, |replica| *replica = found);
        match found.short {
            true => Err(StoreError::Short { chunk, here: found.len, asked: len }),
            false => Ok(found),
        }
    }

    /// Moves the replica to the trash.
    pub fn delete(&self, chunk: ChunkId, epoch: Epoch) -> Result<Deleted, StoreError> {
        let _gate = self.gate(chunk);
        let Some(replica) = self.chunks.get(chunk) else { return Ok(Deleted::Gone) };
        if replica.epoch > epoch {
            return Ok(Deleted::Outdated);
        }
        self.discard(chunk, &replica)?;
        info!(%chunk, %epoch, len = replica.len, "replica moved to the trash");
        Ok(Deleted::Gone)
    }

    /// Takes a replica out of the table and its file out of the way. The caller holds the gate.
    pub(super) fn discard(&self, chunk: ChunkId, replica: &Replica) -> Result<(), StoreError> {
        self.stop_writer(chunk);
        let volume = &self.volume_of(replica);
        // A failed volume is not written to. If it ever comes back, so does the replica with its old
        // epoch, and is deleted then.
        if volume.check().is_ok() {
            let moved = self.write(volume, || match volume.move_to_trash(chunk, replica.epoch, clock::now_s()) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            });
            // The latch was thrown by this very move: the table need not wait for it.
            if !matches!(moved, Err(StoreError::VolumeFailed { .. })) {
                moved?;
            }
        }
        self.open.lock().remove(&chunk);
        self.chunks.remove(chunk);
        Ok(())
    }

    /// Marks a replica as damaged behind its first `whole` bytes, if it is still the one that was
    /// examined. Takes the gate.
    pub(super) fn found_damaged(&self, chunk: ChunkId, examined: &Replica, whole: u32, reason: &str) -> bool {
        let _gate = self.gate(chunk);
        let same =
            |now: Replica| (now.volume, now.epoch, now.state) == (examined.volume, examined.epoch, examined.state);
        let still = self.chunks.get(chunk).is_some_and(same);
        if still {
            self.stop_writer(chunk);
            self.condemn(chunk, examined, whole, reason);
        }
        still
    }

    /// Marks a replica as damaged, in the table and as well as may be in its file, so that it stays so
    /// over a restart. The caller holds the gate.
    fn condemn(&self, chunk: ChunkId, replica: &Replica, whole: u32, reason: &str) {
        warn!(%chunk, epoch = %replica.epoch, whole, reason, "replica is damaged");
        self.damaged.fetch_add(1, Ordering::Relaxed);
        let Replica { frames, len, .. } = *replica;
        self.chunks.update(chunk, |replica| {
            *replica = Replica { state: State::Damaged, frames, len, whole, short: false, ..*replica };
        });
        let volume = &self.volume_of(replica);
        let header = Header {
            cluster: self.cluster,
            chunk,
            epoch: replica.epoch,
            state: State::Damaged,
            frames: replica.frames,
            len: replica.len,
            whole,
            generation: 0,
        };
        let marked = ChunkFile::open(&volume.chunk_path(chunk), chunk)
            .map_err(|source| StoreError::Io { what: "opening", source })
            .and_then(|file| self.write_next_header(volume, &file, &header));
        if let Err(error) = marked {
            warn!(%chunk, %error, "cannot mark the file as damaged");
        }
        self.open.lock().remove(&chunk);
    }

    /// Writes a header into the slot that does not hold the current one, durably.
    fn write_next_header(&self, volume: &Volume, file: &ChunkFile, header: &Header) -> Result<(), StoreError> {
        let current = file.read_header().map_err(|source| StoreError::Io { what: "reading a header", source })?;
        // A file whose header cannot be read gets one in slot A: there is nothing to keep.
        let generation = current.map_or(1, |current| current.generation + 1);
        self.write(volume, || file.write_header(&Header { generation, ..*header }))?;
        self.sync(volume, file)
    }

    /// From here on nothing is appended to the chunk.
    fn stop_writer(&self, chunk: ChunkId) -> Option<Arc<OpenChunk>> {
        let writer = self.open.lock().get(&chunk).cloned();
        if let Some(open) = &writer {
            open.stop();
        }
        writer
    }

    /// A replica's file cannot be opened: gone is damaged, the rest depends. The caller holds the gate.
    fn unopened(&self, chunk: ChunkId, replica: &Replica, source: io::Error) -> StoreError {
        if source.kind() == io::ErrorKind::NotFound {
            let reason = "its file is gone".to_owned();
            self.condemn(chunk, replica, 0, &reason);
            return StoreError::Damaged { chunk, reason };
        }
        if error::is_shortage(&source) {
            return StoreError::Io { what: "opening", source };
        }
        self.fault(&self.volume_of(replica), Access::Write, source)
    }
}

/// The number of frames below `len`, which must be where a frame ends.
fn boundary(file: &ChunkFile, replica: &Replica, len: u32) -> Result<u32, ReadFault> {
    if len == replica.len {
        return Ok(replica.frames);
    }
    let frames = file.find_frame(len, replica.frames, replica.len)?;
    if file.entry(frames)?.offset == len { Ok(frames) } else { Err(ReadFault::Entry(frames)) }
}

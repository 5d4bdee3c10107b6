//! A copy on its way in: written beside the chunks, and one of them only when it is whole and synced.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::limits::CHUNK_FRAMES_MAX;
use dfs_proto::{ChunkId, Epoch, FrameHeader};
use parking_lot::Mutex;

use super::chunk_file::ChunkFile;
use super::error::StoreError;
use super::format::{Header, State};
use super::volume::Volume;
use super::volumes::Moved;
use super::{Replica, Store};
use crate::clock;

/// Chunks that something is on its way in of. A copy, a gathering and a move between volumes may come upon the same
/// chunk, and in one volume they would write to one file.
#[derive(Clone, Default)]
pub(super) struct Copying(Arc<Mutex<HashSet<ChunkId>>>);

/// Keeps others from bringing in the same chunk until it is dropped.
struct Claim {
    copying: Copying,
    chunk: ChunkId,
}

/// Removed from disk when dropped, unless it was published.
pub struct Incoming {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    /// Bytes the chunk must have.
    pub len: u32,
    volume: Arc<Volume>,
    path: PathBuf,
    file: ChunkFile,
    frames: u32,
    have: u32,
    /// Let go of last: what is removed from disk is this copy's own.
    _claim: Claim,
}

impl Store {
    /// # Errors
    /// `Copying` while another one of the chunk is on its way in.
    pub fn begin_copy(&self, chunk: ChunkId, epoch: Epoch, len: u32) -> Result<Incoming, StoreError> {
        let claim = self.copying.claim(chunk).ok_or(StoreError::Copying(chunk))?;
        let volume = &self.roomiest_volume()?;
        volume.take_room(u64::from(len))?;
        let path = volume.incoming_path(chunk);
        let file = self.write(volume, || {
            // What an earlier attempt left that could not be removed.
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => ChunkFile::create(&path, &Header::open(self.cluster, chunk, epoch)),
            }
        })?;
        Ok(Incoming { chunk, epoch, len, volume: volume.clone(), path, file, frames: 0, have: 0, _claim: claim })
    }

    /// Writes the frames that follow what is there and match their digests, up to the first that does
    /// not, which is the error.
    pub fn copy_frames(&self, incoming: &mut Incoming, frames: &[(FrameHeader, Bytes)]) -> Result<(), StoreError> {
        let mut end = incoming.have;
        let (mut good, mut fault) = (0, None);
        for (frame, bytes) in frames {
            fault = incoming.judge(end, good, frame, bytes).err();
            if fault.is_some() {
                break;
            }
            (good, end) = (good + 1, frame.end());
        }
        self.write(&incoming.volume, || incoming.file.write_frames(incoming.frames, &frames[..good], 0))?;
        (incoming.frames, incoming.have) = (incoming.frames + good as u32, end);
        fault.map_or(Ok(()), Err)
    }

    /// Makes a complete copy a replica, in place of whatever older one there is. Durable when it returns.
    pub fn publish(&self, incoming: Incoming) -> Result<(), StoreError> {
        let (chunk, epoch, len) = (incoming.chunk, incoming.epoch, incoming.len);
        if incoming.have != len {
            return Err(StoreError::Damaged { chunk, reason: format!("{} of {len} bytes are here", incoming.have) });
        }
        self.finish(&incoming)?;
        let _gate = self.gate(chunk);
        if let Some(old) = self.chunks.get(chunk) {
            if old.epoch > epoch {
                return Err(StoreError::StaleEpoch { chunk, here: old.epoch, asked: epoch });
            }
            self.discard(chunk, &old)?;
        }
        self.install(&incoming)
    }

    /// Makes a complete copy of a replica of this very node take its place, on another volume.
    pub(super) fn publish_moved(&self, incoming: Incoming, old: &Replica) -> Result<Moved, StoreError> {
        let chunk = incoming.chunk;
        self.finish(&incoming)?;
        let _gate = self.gate(chunk);
        let same = |now: Replica| (now.volume, now.epoch, now.state) == (old.volume, old.epoch, old.state);
        if !self.chunks.get(chunk).is_some_and(same) {
            return Ok(Moved::NotNow);
        }
        // The new file first: unlike a repair's copy it replaces nothing that is superseded.
        self.install(&incoming)?;
        self.leave_behind(chunk, old, clock::now_s());
        Ok(Moved::Yes)
    }

    /// Seals the copy's file and syncs it.
    fn finish(&self, incoming: &Incoming) -> Result<(), StoreError> {
        let header = Header {
            cluster: self.cluster,
            chunk: incoming.chunk,
            epoch: incoming.epoch,
            state: State::Sealed,
            frames: incoming.frames,
            len: incoming.len,
            whole: 0,
            generation: 2,
        };
        self.write(&incoming.volume, || incoming.file.write_header(&header))?;
        self.sync(&incoming.volume, &incoming.file)
    }

    /// Gives the copy its name, durably, and enters it in the table. The caller holds the gate.
    fn install(&self, incoming: &Incoming) -> Result<(), StoreError> {
        let Incoming { chunk, epoch, len, volume, .. } = incoming;
        self.write(volume, || fs::rename(&incoming.path, volume.chunk_path(*chunk)))?;
        self.sync_folder(volume, *chunk)?;
        self.chunks.put(
            *chunk,
            Replica {
                volume: volume.number,
                epoch: *epoch,
                state: State::Sealed,
                frames: incoming.frames,
                len: *len,
                whole: *len,
                verified_s: clock::now_s(),
                lost: false,
                short: false,
            },
        );
        Ok(())
    }
}

impl Incoming {
    /// Verified bytes from the start of the chunk.
    pub fn have(&self) -> u32 {
        self.have
    }

    fn judge(&self, end: u32, ahead: usize, frame: &FrameHeader, bytes: &Bytes) -> Result<(), StoreError> {
        let chunk = self.chunk;
        if frame.offset != end || frame.end() > self.len {
            return Err(StoreError::NotContiguous { chunk, end, found: frame.offset });
        }
        if self.frames as usize + ahead >= CHUNK_FRAMES_MAX as usize {
            return Err(StoreError::Full(chunk));
        }
        if !frame.matches(chunk, bytes) {
            return Err(StoreError::WrongDigest { chunk, offset: frame.offset });
        }
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Published, the path is gone. What cannot be removed is removed at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

impl Copying {
    fn claim(&self, chunk: ChunkId) -> Option<Claim> {
        let free = self.0.lock().insert(chunk);
        free.then(|| Claim { copying: self.clone(), chunk })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.copying.0.lock().remove(&self.chunk);
    }
}

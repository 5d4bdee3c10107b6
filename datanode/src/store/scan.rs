//! The start: reading what each volume holds into the table.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::UNIX_EPOCH;

use dfs_proto::limits::CHUNK_FRAMES_MAX;
use dfs_proto::{ChunkId, Epoch};
use tracing::{error, info, warn};

use super::chunk_file::ChunkFile;
use super::format::{Header, State};
use super::recover::Walk;
use super::volume::Volume;
use super::{Replica, Store};

impl Store {
    /// Reads all volumes, each on a thread of its own. Replicas can be read as soon as they are found.
    pub fn scan(&self) {
        std::thread::scope(|threads| {
            for volume in self.volumes().into_iter().filter(|volume| volume.check().is_ok()) {
                threads.spawn(move || self.scan_volume(&volume));
            }
        });
        self.scanned.store(true, Ordering::Release);
    }

    /// Reads one volume into the table.
    pub(super) fn scan_volume(&self, volume: &Arc<Volume>) {
        let chunks = match volume.chunk_files() {
            Ok(chunks) => chunks,
            Err(error) => {
                // A list that breaks off must not pass for a short one.
                self.fail_volume(volume, format!("cannot be listed: {error}"));
                return;
            }
        };
        info!(volume = %volume.path().display(), chunks = chunks.len(), "reading volume");
        for chunk in chunks {
            let found = self.examine(volume, chunk);
            let _gate = self.gate(chunk);
            match self.chunks.get(chunk) {
                // The same chunk on two volumes: a crash between making the newer one and moving the older
                // one to the trash. The one that says more counts.
                Some(other) if self.rank(&other) >= self.rank(&found) => {
                    warn!(%chunk, volume = %volume.path().display(), "second file of a chunk, left alone");
                }
                _ => drop(self.chunks.put(chunk, found).map(|other| {
                    warn!(%chunk, volume = other.volume, "second file of a chunk, left alone");
                })),
            }
        }
    }

    /// Finds out what one file is.
    fn examine(&self, volume: &Volume, chunk: ChunkId) -> Replica {
        let blank = Replica {
            volume: volume.number,
            epoch: Epoch(0),
            state: State::Damaged,
            frames: 0,
            len: 0,
            whole: 0,
            verified_s: 0,
            lost: false,
            short: false,
        };
        let path = volume.chunk_path(chunk);
        let opened = ChunkFile::open(&path, chunk).and_then(|file| Ok((file.read_header()?, file)));
        let (header, file) = match opened {
            Ok((Ok(header), file)) if (header.cluster, header.chunk) == (self.cluster, chunk) => (header, file),
            Ok((Ok(header), _)) => {
                error!(%chunk, found = %header.chunk, cluster = %header.cluster, "file of another chunk or cluster");
                return blank;
            }
            Ok((Err(fault), _)) => {
                warn!(%chunk, path = %path.display(), %fault, "no chunk file");
                return blank;
            }
            Err(error) => {
                error!(%chunk, path = %path.display(), %error, "chunk file cannot be read");
                return blank;
            }
        };
        let verified_s =
            file.verified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_secs());
        let Header { epoch, state, frames, len, whole, .. } = header;
        match state {
            State::Open => self.examine_open(volume, chunk, &file, Replica { epoch, verified_s, ..blank }),
            State::Sealed => {
                let sealed = Replica { epoch, state, frames, len, whole: len, verified_s, ..blank };
                self.examine_sealed(chunk, &file, sealed)
            }
            State::Damaged => Replica { epoch, state, frames, len, whole, verified_s, ..blank },
        }
    }

    /// An open chunk is worth its whole frames. Nothing is cut: that waits for the seal order.
    fn examine_open(&self, volume: &Volume, chunk: ChunkId, file: &ChunkFile, replica: Replica) -> Replica {
        let walk = Walk::whole(file, chunk, CHUNK_FRAMES_MAX);
        if let Some(fault) = walk.fault.filter(|fault| !fault.is_plain_end()) {
            info!(%chunk, len = walk.len, %fault, "open chunk ends in a torn tail");
        }
        // After a kill the frames may be in memory only. A failure latches the volume.
        if let Err(error) = self.sync(volume, file) {
            warn!(%chunk, %error, "cannot sync");
        }
        Replica { state: State::Open, frames: walk.frames, len: walk.len, whole: walk.len, ..replica }
    }

    /// A sealed chunk has been verified before: only its length is checked, the scrubber does the rest.
    fn examine_sealed(&self, chunk: ChunkId, file: &ChunkFile, replica: Replica) -> Replica {
        match file.data_len() {
            Ok(found) if found == u64::from(replica.len) => replica,
            Ok(found) if found > u64::from(replica.len) => {
                // The seal was interrupted before the cut. The cut only gives room back.
                if let Err(error) = file.cut(replica.len) {
                    warn!(%chunk, %error, "cannot cut the tail of a sealed chunk");
                }
                replica
            }
            _ => {
                let walk = Walk::whole(file, chunk, replica.frames);
                error!(%chunk, len = replica.len, whole = walk.len, "sealed chunk is shorter than its header says");
                Replica { state: State::Damaged, whole: walk.len, ..replica }
            }
        }
    }

    /// Orders the files of one chunk by how much they say; of two alike, the one on a volume that is not being emptied
    /// was moved there.
    fn rank(&self, replica: &Replica) -> (bool, Epoch, u32, bool) {
        let stays = !self.volume_of(replica).is_draining();
        (replica.state != State::Damaged && !replica.lost, replica.epoch, replica.len, stays)
    }
}

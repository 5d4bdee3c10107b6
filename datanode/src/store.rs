//! The chunks on this node's disks: the bytes, the crash rules and the table of what is where.
//!
//! Everything here blocks: callers on async threads go through `Store::blocking`. Work that decides
//! (`format`, `chunks`, `recover`) is apart from work that touches files; each story has a file of its
//! own: appending, sealing, reading, copying in, scanning at the start.
//!
//! Locks are taken in this order: a chunk's gate, an open chunk's sync lock, its tail, the register,
//! the list of volumes, a shard of the table.

mod append;
mod chunk_file;
mod chunks;
mod copy;
mod error;
mod format;
mod local;
mod pace;
mod read;
mod recover;
mod register;
mod scan;
mod seal;
mod verify;
mod volume;
mod volumes;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, bail};
use dfs_proto::msg::data::{ReplicaState, ReplicaStatus};
use dfs_proto::msg::node::{Pace, ReplicaReport, ScrubStatus, VolumeStatus};
use dfs_proto::{ChunkId, ClusterId, Epoch};
use dfs_rpc::{Home, HomeError};
use parking_lot::{Mutex, MutexGuard, RwLock};
use tokio::time::Instant;
use tracing::{error, warn};

use crate::config::Config;
use chunk_file::ChunkFile;
use chunks::Chunks;
use copy::Copying;
use pace::PaceMeter;
use register::{Found, Known, Register};
use volume::{Volume, sync_dir};

pub use append::OpenChunk;
pub use chunk_file::Batch;
pub use chunks::{Replica, ShardView};
pub use copy::Incoming;
pub use error::StoreError;
pub use format::State;
pub use read::Reader;
pub use seal::Deleted;
pub use verify::{FileReport, Verdict, VerifyError, verify_file};
pub use volumes::{Moved, VolumeError};

/// Gates: enough that two chunks rarely share one.
const GATES: u64 = 64;

pub struct Store {
    cluster: ClusterId,
    /// By number. Only grows: a volume that goes out of use keeps its place.
    volumes: RwLock<Vec<Arc<Volume>>>,
    chunks: Chunks,
    /// Chunks whose files are held open for appending and syncing.
    open: Mutex<HashMap<ChunkId, Arc<OpenChunk>>>,
    copying: Copying,
    /// A chunk's gate is held by whoever creates, seals, condemns, replaces or deletes its file.
    gates: Vec<Mutex<()>>,
    register: Mutex<Register>,
    scanned: AtomicBool,
    /// Replicas found damaged since the start.
    damaged: AtomicU64,
    pace: PaceMeter,
    _home: Home,
    #[cfg(test)]
    faults: faults::Faults,
}

/// What a disk was asked to do when it failed: decides what the failure means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Write,
    Sync,
}

impl Store {
    /// Opens the node's folder and its volumes. Chunks are known after `scan`.
    ///
    /// Fails if a folder belongs to somebody else or is in use, or if no volume can be used. A volume
    /// that was here before and is missing or empty is kept as failed, not made anew.
    pub fn open(config: &Config) -> anyhow::Result<Store> {
        let home = open_home(config, &config.data_dir)?;
        let mut register = Register::load(&config.data_dir)?;
        let mut dirs = config.volume_dirs();
        dirs.retain(|dir| !register.known(dir).is_some_and(|known| known.retired));
        let added = register.volumes().iter().filter(|known| known.added && !known.retired);
        let added: Vec<PathBuf> = added.map(|known| known.path.clone()).filter(|path| !dirs.contains(path)).collect();
        dirs.extend(added);
        let mut volumes = Vec::new();
        for (number, dir) in dirs.iter().enumerate() {
            let volume = open_volume(config, &mut register, number, dir.clone())?;
            volume.set_draining(register.known(dir).is_some_and(|known| known.draining));
            volumes.push(Arc::new(volume));
        }
        let dropped = register.volumes().iter().filter(|known| !dirs.contains(&known.path) && !known.retired);
        let dropped: Vec<PathBuf> = dropped.map(|known| known.path.clone()).collect();
        for path in dropped {
            let reason = "was a volume of this node and is not in its configuration".to_owned();
            volumes.push(Arc::new(Volume::failed(volumes.len(), path, reason)));
        }
        for volume in &volumes {
            if let Err(failed) = volume.check() {
                error!(error = %failed, "volume cannot be used");
            }
        }
        if volumes.iter().all(|volume| volume.check().is_err()) {
            let reasons: Vec<_> = volumes.iter().filter_map(|v| v.check().err()).map(|e| e.to_string()).collect();
            bail!(
                "no volume can be used: {} (a volume that failed is used again once its `failed` line is taken out of {}, \
                 a new one once its whole entry is)",
                reasons.join("; "),
                config.data_dir.join("VOLUMES").display()
            );
        }
        Ok(Store {
            cluster: config.cluster,
            volumes: RwLock::new(volumes),
            chunks: Chunks::default(),
            open: Mutex::default(),
            copying: Copying::default(),
            gates: (0..GATES).map(|_| Mutex::default()).collect(),
            register: Mutex::new(register),
            scanned: AtomicBool::new(false),
            damaged: AtomicU64::new(0),
            pace: PaceMeter::default(),
            _home: home,
            #[cfg(test)]
            faults: faults::Faults::default(),
        })
    }

    /// Runs blocking work on a thread that may block.
    pub async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let store = self.clone();
        tokio::task::spawn_blocking(move || work(&store))
            .await
            .map_err(|e| StoreError::Io { what: "disk thread", source: io::Error::other(e) })
    }

    /// Whether every volume has been read: only then does an absent chunk mean anything.
    pub fn is_scanned(&self) -> bool {
        self.scanned.load(Ordering::Acquire)
    }

    pub fn get(&self, chunk: ChunkId) -> Option<Replica> {
        self.chunks.get(chunk)
    }

    /// Whether the sealed replica of this epoch and length is here, on a volume that counts. Says nothing of its bytes.
    pub fn has_sealed(&self, chunk: ChunkId, epoch: Epoch, len: u32) -> bool {
        let wanted = (State::Sealed, epoch, len, false);
        self.get(chunk).is_some_and(|replica| (replica.state, replica.epoch, replica.len, replica.lost) == wanted)
    }

    pub fn digests(&self) -> Vec<u64> {
        self.chunks.digests()
    }

    /// Open and damaged replicas, at most `max`.
    pub fn unsealed(&self, max: usize) -> Vec<ReplicaReport> {
        self.chunks.unsealed(max)
    }

    /// What the node has in one shard of the digest.
    pub fn shard(&self, shard: usize) -> Option<ShardView> {
        self.chunks.view(shard)
    }

    /// Numbers of the volumes that can be used.
    pub fn usable_volumes(&self) -> Vec<usize> {
        let usable = |volume: &Arc<Volume>| volume.is_in_use() && volume.check().is_ok();
        self.volumes().into_iter().filter(usable).map(|volume| volume.number).collect()
    }

    /// Sealed replicas of a volume, with the time (seconds since 1970) at which each last matched.
    pub fn sealed_on(&self, volume: usize) -> Vec<(u64, ChunkId)> {
        self.chunks.sealed_on(volume)
    }

    /// How single replicas stand; those that are not here are left out.
    pub fn describe(&self, chunks: &[ChunkId]) -> Vec<ReplicaStatus> {
        let one = |chunk: &ChunkId| {
            let replica = self.get(*chunk)?;
            Some(ReplicaStatus {
                chunk: *chunk,
                epoch: replica.epoch,
                state: match replica.state {
                    State::Open => ReplicaState::Open,
                    State::Sealed => ReplicaState::Sealed,
                    State::Damaged => ReplicaState::Damaged,
                },
                len: replica.len,
                whole: replica.whole,
                verified_s: replica.verified_s,
                volume: self.volume_of(&replica).path().display().to_string(),
                lost: replica.lost,
            })
        };
        chunks.iter().filter_map(one).collect()
    }

    /// How far the replicas have been verified since `asked_s`.
    pub fn scrub_status(&self, period_s: u64, asked_s: u64) -> ScrubStatus {
        ScrubStatus { damaged: self.damaged.load(Ordering::Relaxed), ..self.chunks.scrubbed(period_s, asked_s) }
    }

    /// How the volumes stand, as of the last `maintain`.
    pub fn volume_status(&self) -> Vec<VolumeStatus> {
        let volumes = self.volumes();
        let counts = self.chunks.counts(volumes.len());
        let in_use = volumes.iter().zip(counts).filter(|(volume, _)| volume.is_in_use());
        in_use.map(|(volume, chunks)| volume.status(chunks)).collect()
    }

    /// Looks whether each volume is still there and writable, asks how much is free, and removes what has lain in the trash since before `trash_before_s`.
    pub fn maintain(&self, trash_before_s: u64) {
        for volume in self.volumes().into_iter().filter(|volume| volume.is_in_use() && volume.check().is_ok()) {
            if let Err(reason) = volume.probe() {
                self.fail_volume(&volume, reason);
                continue;
            }
            let done = volume.refresh_room().and_then(|()| volume.empty_trash(trash_before_s));
            if let Err(error) = done {
                warn!(volume = %volume.path().display(), %error, "volume cannot be maintained");
            }
        }
    }

    fn gate(&self, chunk: ChunkId) -> MutexGuard<'_, ()> {
        self.gates[(chunk.0 % GATES) as usize].lock()
    }

    /// Every volume there ever was, by number.
    fn volumes(&self) -> Vec<Arc<Volume>> {
        self.volumes.read().clone()
    }

    fn volume_of(&self, replica: &Replica) -> Arc<Volume> {
        self.volumes.read()[replica.volume].clone()
    }

    /// The volume with the most room, of those that take something new.
    fn roomiest_volume(&self) -> Result<Arc<Volume>, StoreError> {
        // Ties go to the first, so that the choice can be foretold.
        let takes = |volume: &Arc<Volume>| volume.is_in_use() && !volume.is_draining() && volume.check().is_ok();
        let usable = self.volumes().into_iter().rev().filter(takes);
        usable.max_by_key(|volume| volume.free_bytes()).ok_or(StoreError::NoSpace)
    }

    /// Syncs a file, or latches its volume.
    fn sync(&self, volume: &Volume, file: &ChunkFile) -> Result<(), StoreError> {
        volume.check()?;
        #[cfg(test)]
        self.faults.take(Access::Sync).map_or(Ok(()), Err).map_err(|e| self.fault(volume, Access::Sync, e))?;
        let started = Instant::now();
        let synced = file.sync();
        let ended = Instant::now();
        self.pace.note(ended - started, ended);
        synced.map_err(|e| self.fault(volume, Access::Sync, e))
    }

    /// Makes the names in the chunk's folder durable.
    fn sync_folder(&self, volume: &Volume, chunk: ChunkId) -> Result<(), StoreError> {
        #[cfg(test)]
        self.faults.take(Access::Sync).map_or(Ok(()), Err).map_err(|e| self.fault(volume, Access::Sync, e))?;
        sync_dir(&volume.chunk_dir(chunk)).map_err(|e| self.fault(volume, Access::Sync, e))
    }

    /// How quick its disks have been lately.
    pub fn pace(&self) -> Pace {
        self.pace.pace(Instant::now())
    }

    /// Writes, or latches the volume unless it is just full.
    fn write<T>(&self, volume: &Volume, write: impl FnOnce() -> io::Result<T>) -> Result<T, StoreError> {
        volume.check()?;
        #[cfg(test)]
        self.faults.take(Access::Write).map_or(Ok(()), Err).map_err(|e| self.fault(volume, Access::Write, e))?;
        write().map_err(|e| self.fault(volume, Access::Write, e))
    }

    /// Judges an error of the disk: decides whether the volume has failed with it.
    fn fault(&self, volume: &Volume, access: Access, source: io::Error) -> StoreError {
        if error::is_shortage(&source) {
            return StoreError::Io { what: "opening", source };
        }
        // After a failed sync the kernel may have dropped the pages and call the next attempt a success:
        // no error of a sync is ever forgiven.
        if access == Access::Write && error::is_full(&source) {
            return StoreError::NoSpace;
        }
        let what = if access == Access::Write { "write" } else { "sync" };
        self.fail_volume(volume, format!("{what}: {source}"))
    }

    fn fail_volume(&self, volume: &Volume, reason: String) -> StoreError {
        if volume.latch(reason.clone()) {
            self.chunks.lose_volume(volume.number);
            if let Err(error) = self.register.lock().set_failed(volume.path(), &reason) {
                error!(volume = %volume.path().display(), %error, "cannot note that the volume has failed");
            }
        }
        StoreError::VolumeFailed { path: volume.path().to_owned(), reason }
    }
}

/// Opens one volume as the register and the folder say.
fn open_volume(config: &Config, register: &mut Register, number: usize, dir: PathBuf) -> anyhow::Result<Volume> {
    let known = register.known(&dir);
    if let Some(Known { failed: Some(reason), .. }) = known {
        return Ok(Volume::failed(number, dir, reason.clone()));
    }
    let home = match known {
        Some(_) => match Home::open(&dir, config.identity()) {
            Err(error @ (HomeError::Empty(_) | HomeError::Io { .. } | HomeError::Damaged { .. })) => {
                return Ok(Volume::failed(number, dir, error.to_string()));
            }
            other => other?,
        },
        None => open_home(config, &dir)?,
    };
    match register.found(&dir, home.disk()).context("cannot note the volume")? {
        Found::Known(None) => {}
        Found::Known(Some(reason)) => return Ok(Volume::failed(number, dir, reason)),
        Found::Stranger => bail!("{} holds another volume than before", dir.display()),
    }
    Ok(Volume::open(number, home, config.reserve_bytes)
        .unwrap_or_else(|error| Volume::failed(number, dir, format!("cannot be prepared: {error}"))))
}

/// Opens a folder of this node, or makes it where that is allowed.
fn open_home(config: &Config, dir: &Path) -> Result<Home, HomeError> {
    match config.must_exist {
        true => Home::open(dir, config.identity()),
        false => Home::create_or_open(dir, config.identity()),
    }
}

#[cfg(test)]
mod faults {
    //! Disk errors on demand.

    use std::io;

    use parking_lot::Mutex;

    use super::Access;

    /// Each with how many accesses of its kind still pass before it.
    #[derive(Default)]
    pub struct Faults(Mutex<Vec<(Access, usize, i32)>>);

    impl Faults {
        /// The next access of this kind fails with this errno.
        pub fn plan(&self, access: Access, errno: rustix::io::Errno) {
            self.plan_after(access, 0, errno);
        }

        /// The access of this kind behind the next `passed` ones fails with this errno.
        pub fn plan_after(&self, access: Access, passed: usize, errno: rustix::io::Errno) {
            self.0.lock().push((access, passed, errno.raw_os_error()));
        }

        pub fn take(&self, access: Access) -> Option<io::Error> {
            let mut planned = self.0.lock();
            let at = planned.iter().position(|(kind, ..)| *kind == access)?;
            if planned[at].1 > 0 {
                planned[at].1 -= 1;
                return None;
            }
            Some(io::Error::from_raw_os_error(planned.remove(at).2))
        }
    }
}

#[cfg(test)]
mod tests;

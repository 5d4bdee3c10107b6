//! Volumes that come and go while the node runs: added, emptied, replaced. What is decided is noted in the register
//! before it is done, so that a restart finds the same volumes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_proto::ChunkId;
use dfs_rpc::{Home, HomeError};
use tracing::{info, warn};

use super::chunk_file::{BATCH_BYTES, ChunkFile, ReadFault};
use super::format::State;
use super::volume::Volume;
use super::{Store, StoreError, open_volume};
use crate::config::Config;

/// Why a volume was not added, emptied or replaced.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{} is no absolute path", .0.display())]
    Relative(PathBuf),
    #[error("{} is no volume of this node", .0.display())]
    Unknown(PathBuf),
    #[error("{} is a volume of this node already", .0.display())]
    InUse(PathBuf),
    #[error("{} has not failed: it holds replicas that count", .0.display())]
    Working(PathBuf),
    #[error("{} is the only volume that takes chunks", .0.display())]
    Only(PathBuf),
    #[error("{} holds another volume than the one that failed", .0.display())]
    OtherDisk(PathBuf),
    #[error("{} holds the volume that failed, and no new one", .0.display())]
    SameDisk(PathBuf),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error("cannot be opened: {0}")]
    Open(String),
    #[error("cannot note the volume: {0}")]
    Register(#[from] io::Error),
}

/// What became of a replica that was to move to another volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Moved {
    Yes,
    /// No other volume has room.
    NoRoom,
    /// It was found damaged.
    Damaged(String),
    /// It is not sealed, or was changed or deleted meanwhile.
    NotNow,
}

impl Store {
    /// Takes a folder into use as a volume: a new one, one that failed and is in order again, or one that is being
    /// emptied and may stay after all. Answers with the number of a volume that is to be read
    /// (`scan_added`), which may take its time.
    pub fn add_volume(&self, config: &Config, dir: &Path) -> Result<Option<usize>, VolumeError> {
        require_absolute(dir)?;
        let mut register = self.register.lock();
        let old = self.volume_at(dir);
        if let Some(old) = &old
            && old.check().is_ok()
        {
            if !old.is_draining() {
                return Err(VolumeError::InUse(dir.to_owned()));
            }
            register.change(dir, |known| known.draining = false)?;
            old.set_draining(false);
            info!(volume = %dir.display(), "volume is no longer emptied");
            return Ok(None);
        }
        if let Some(known) = register.known(dir).filter(|known| !known.retired).cloned() {
            // It failed before. The same disk may come back; another one must not pass for it.
            if let Some(old) = &old {
                old.release();
            }
            let home = Home::open(dir, config.identity())?;
            if format!("{:016x}", home.disk()) != known.disk {
                return Err(VolumeError::OtherDisk(dir.to_owned()));
            }
            drop(home);
            register.change(dir, |known| (known.failed, known.draining) = (None, false))?;
        } else {
            // Made before it is noted: a folder that was emptied earlier may be used again as well.
            drop(Home::create_or_open(dir, config.identity())?);
            register.forget(dir)?;
        }
        let number = self.volumes.read().len();
        let volume = open_volume(config, &mut register, number, dir.to_owned())
            .map_err(|error| VolumeError::Open(format!("{error:#}")))?;
        if let Err(error) = volume.check() {
            return Err(VolumeError::Open(error.to_string()));
        }
        register.change(dir, |known| known.added = true)?;
        if let Some(old) = &old {
            old.retire();
            self.chunks.forget_volume(old.number);
        }
        // Volumes are added under the register's lock only: the number is still the next one.
        self.volumes.write().push(Arc::new(volume));
        info!(volume = %dir.display(), number, "volume added");
        Ok(Some(number))
    }

    /// Reads what an added volume holds. If it failed before, what its files say of themselves may not be true of their
    /// frames: all of it is due to be verified.
    pub fn scan_added(&self, number: usize) {
        let volume = self.volumes.read().get(number).cloned();
        if let Some(volume) = volume {
            self.scan_volume(&volume);
            self.chunks.distrust_volume(number);
        }
    }

    /// Has a volume emptied: it takes nothing new, and `drain` moves its replicas elsewhere.
    pub fn drain_volume(&self, dir: &Path) -> Result<(), VolumeError> {
        require_absolute(dir)?;
        let mut register = self.register.lock();
        let volume = self.volume_at(dir).ok_or_else(|| VolumeError::Unknown(dir.to_owned()))?;
        volume.check().map_err(|error| VolumeError::Open(error.to_string()))?;
        let takes = |other: &Arc<Volume>| {
            other.number != volume.number && other.is_in_use() && !other.is_draining() && other.check().is_ok()
        };
        if !self.volumes().iter().any(takes) {
            return Err(VolumeError::Only(dir.to_owned()));
        }
        register.change(dir, |known| known.draining = true)?;
        volume.set_draining(true);
        info!(volume = %dir.display(), "volume is to be emptied");
        Ok(())
    }

    /// Puts a new, empty disk at the place of a volume that failed. What the old one had is forgotten here; its
    /// replicas have left the digests when it failed.
    pub fn replace_volume(&self, config: &Config, dir: &Path) -> Result<Option<usize>, VolumeError> {
        require_absolute(dir)?;
        {
            let mut register = self.register.lock();
            let old = self.volume_at(dir);
            if old.as_ref().is_some_and(|old| old.check().is_ok()) {
                return Err(VolumeError::Working(dir.to_owned()));
            }
            let known = register.known(dir).ok_or_else(|| VolumeError::Unknown(dir.to_owned()))?;
            let known_disk = known.disk.clone();
            // Made here if the folder is empty; refused if it holds anything else.
            let home = match Home::create_or_open(dir, config.identity()) {
                // Locked by this very process: the disk that failed is still there.
                Err(HomeError::InUse(dir)) => return Err(VolumeError::SameDisk(dir)),
                other => other?,
            };
            if format!("{:016x}", home.disk()) == known_disk {
                return Err(VolumeError::SameDisk(dir.to_owned()));
            }
            register.forget(dir)?;
        }
        self.add_volume(config, dir)
    }

    /// The volumes that are being emptied, with their replicas.
    pub fn draining(&self) -> Vec<(usize, Vec<ChunkId>)> {
        let draining = self.volumes().into_iter().filter(|v| v.is_in_use() && v.is_draining() && v.check().is_ok());
        draining
            .map(|volume| {
                let replicas = self.chunks.on_volume(volume.number);
                (volume.number, replicas.into_iter().map(|(chunk, _)| chunk).collect())
            })
            .collect()
    }

    /// Takes a volume that has been emptied out of use; whether it was empty.
    pub fn retire_volume(&self, number: usize) -> Result<bool, VolumeError> {
        let mut register = self.register.lock();
        let Some(volume) = self.volumes.read().get(number).cloned() else { return Ok(false) };
        if !volume.is_draining() || !self.chunks.on_volume(number).is_empty() {
            return Ok(false);
        }
        register.change(volume.path(), |known| (known.draining, known.retired) = (false, true))?;
        volume.retire();
        info!(volume = %volume.path().display(), "volume is empty and out of use");
        Ok(true)
    }

    /// Moves a sealed replica to another volume of this node. Every frame is verified on the way; the new file is
    /// durable and in the table before the old one goes to the trash, so that a crash leaves one of them or both.
    pub fn move_replica(&self, chunk: ChunkId) -> Result<Moved, StoreError> {
        let Some(replica) = self.chunks.get(chunk).filter(|r| r.state == State::Sealed && !r.lost) else {
            return Ok(Moved::NotNow);
        };
        let mut incoming = match self.begin_copy(chunk, replica.epoch, replica.len) {
            Err(StoreError::NoSpace) => return Ok(Moved::NoRoom),
            other => other?,
        };
        let file = ChunkFile::open_read_only(&self.volume_of(&replica).chunk_path(chunk), chunk)
            .map_err(|source| StoreError::Io { what: "opening", source })?;
        let mut next = 0;
        while next < replica.frames {
            let batch = match file.load(next, replica.frames, u32::MAX, BATCH_BYTES) {
                Ok(batch) => batch,
                Err(ReadFault::Io(source)) if super::error::is_shortage(&source) => {
                    return Err(StoreError::Io { what: "reading", source });
                }
                Err(fault) => return Ok(self.damaged_on_the_way(chunk, &replica, incoming.have(), &fault.to_string())),
            };
            next = batch.next();
            let frames: Vec<_> = batch.iter().map(|(frame, bytes)| (*frame, bytes)).collect();
            match self.copy_frames(&mut incoming, &frames) {
                Ok(()) => {}
                Err(error @ (StoreError::WrongDigest { .. } | StoreError::NotContiguous { .. })) => {
                    return Ok(self.damaged_on_the_way(chunk, &replica, incoming.have(), &error.to_string()));
                }
                Err(StoreError::NoSpace) => return Ok(Moved::NoRoom),
                Err(error) => return Err(error),
            }
        }
        self.publish_moved(incoming, &replica)
    }

    fn damaged_on_the_way(&self, chunk: ChunkId, replica: &super::Replica, whole: u32, reason: &str) -> Moved {
        match self.found_damaged(chunk, replica, whole, reason) {
            true => Moved::Damaged(reason.to_owned()),
            false => Moved::NotNow,
        }
    }

    /// The volume in use at a path.
    fn volume_at(&self, dir: &Path) -> Option<Arc<Volume>> {
        self.volumes().into_iter().find(|volume| volume.is_in_use() && volume.path() == dir)
    }

    /// Gives a moved replica's old file up. The caller holds the gate; the table names the new one.
    pub(super) fn leave_behind(&self, chunk: ChunkId, old: &super::Replica, now_s: u64) {
        let volume = self.volume_of(old);
        // A leftover is told from the moved file at the next start.
        if let Err(error) = self.write(&volume, || volume.move_to_trash(chunk, old.epoch, now_s)) {
            warn!(%chunk, %error, "the old file of a moved replica stays");
        }
    }
}

fn require_absolute(dir: &Path) -> Result<(), VolumeError> {
    dir.is_absolute().then_some(()).ok_or_else(|| VolumeError::Relative(dir.to_owned()))
}

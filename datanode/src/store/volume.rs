//! One volume: its folders, its room, its trash, and the latch that a disk error throws.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dfs_proto::msg::node::VolumeStatus;
use dfs_proto::{ChunkId, Epoch};
use dfs_rpc::Home;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, StatVfsMountFlags, Timespec, Timestamps, UTIME_NOW};
use tracing::{error, warn};

use super::error::StoreError;

/// Folders under `chunks/`, so that none grows beyond what every file system handles well.
const FANOUT: u64 = 256;

/// A folder that holds chunks.
pub struct Volume {
    /// Its place among the node's volumes.
    pub number: usize,
    path: PathBuf,
    /// Holds the folder's lock; `None` if it could not be opened, and once it is out of use.
    home: Mutex<Option<Home>>,
    /// Device and inode of the folder's `IDENTITY` when it was opened; `None` if it was not.
    identity: Option<(u64, u64)>,
    /// Out of use: emptied, or replaced by another disk. Keeps its number.
    retired: AtomicBool,
    failed: OnceLock<String>,
    /// Takes nothing new: its replicas are being moved away.
    draining: AtomicBool,
    reserve_bytes: u64,
    total_bytes: AtomicU64,
    /// Bytes free on the file system when last asked, less what was written since.
    room_bytes: AtomicU64,
    trash_bytes: AtomicU64,
    /// Held while the trash is emptied, so that two threads do not count one file twice.
    purging: Mutex<()>,
}

/// What a name in the trash says.
struct Trashed {
    at_s: u64,
    path: PathBuf,
    bytes: u64,
}

impl Volume {
    /// Takes an identified folder into use: makes what is missing in it and empties `incoming/`.
    pub fn open(number: usize, home: Home, reserve_bytes: u64) -> io::Result<Volume> {
        let path = home.path().to_owned();
        for folder in ["chunks", "incoming", "trash"] {
            fs::create_dir_all(path.join(folder))?;
        }
        for number in 0..FANOUT {
            fs::create_dir_all(path.join("chunks").join(format!("{number:02x}")))?;
        }
        sync_dir(&path.join("chunks"))?;
        sync_dir(&path)?;
        for entry in fs::read_dir(path.join("incoming"))? {
            fs::remove_file(entry?.path())?;
        }
        let identity = Some(identity_of(&path)?);
        let home = Mutex::new(Some(home));
        let volume = Volume { home, identity, ..Volume::unopened(number, path, reserve_bytes) };
        let trash_bytes = volume.trashed()?.iter().map(|trashed| trashed.bytes).sum();
        volume.trash_bytes.store(trash_bytes, Ordering::Relaxed);
        volume.refresh_room()?;
        Ok(volume)
    }

    /// A volume that cannot be used, kept to be reported.
    pub fn failed(number: usize, path: PathBuf, reason: String) -> Volume {
        let volume = Volume::unopened(number, path, 0);
        let _ = volume.failed.set(reason);
        volume
    }

    fn unopened(number: usize, path: PathBuf, reserve_bytes: u64) -> Volume {
        Volume {
            number,
            path,
            home: Mutex::new(None),
            identity: None,
            retired: AtomicBool::new(false),
            failed: OnceLock::new(),
            draining: AtomicBool::new(false),
            reserve_bytes,
            total_bytes: AtomicU64::new(0),
            room_bytes: AtomicU64::new(0),
            trash_bytes: AtomicU64::new(0),
            purging: Mutex::new(()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn chunk_dir(&self, chunk: ChunkId) -> PathBuf {
        self.path.join("chunks").join(format!("{:02x}", chunk.0 % FANOUT))
    }

    pub fn chunk_path(&self, chunk: ChunkId) -> PathBuf {
        self.chunk_dir(chunk).join(format!("{:016x}.chunk", chunk.0))
    }

    pub fn incoming_path(&self, chunk: ChunkId) -> PathBuf {
        self.path.join("incoming").join(format!("{:016x}.copy", chunk.0))
    }

    /// Every chunk file there is, by the name it has. Names that are none are left alone.
    pub fn chunk_files(&self) -> io::Result<Vec<ChunkId>> {
        let mut chunks = Vec::new();
        for number in 0..FANOUT {
            for entry in fs::read_dir(self.path.join("chunks").join(format!("{number:02x}")))? {
                let path = entry?.path();
                match chunk_of(&path).filter(|chunk| self.chunk_path(*chunk) == path) {
                    Some(chunk) => chunks.push(chunk),
                    None => warn!(path = %path.display(), "not a chunk file, left alone"),
                }
            }
        }
        Ok(chunks)
    }

    /// Refuses if the volume has failed or is out of use. Asked before every write and before every acknowledgement.
    pub fn check(&self) -> Result<(), StoreError> {
        let retired = (!self.is_in_use()).then(|| "it is out of use".to_owned());
        match self.failed.get().cloned().or(retired) {
            None => Ok(()),
            Some(reason) => Err(StoreError::VolumeFailed { path: self.path.clone(), reason }),
        }
    }

    /// Whether it is one of the node's volumes at all, working or not.
    pub fn is_in_use(&self) -> bool {
        !self.retired.load(Ordering::Acquire)
    }

    /// Takes it out of use and lets go of the folder, so that something else may take its place.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
        self.release();
    }

    /// Lets go of a failed volume's folder, so that it can be opened anew.
    pub fn release(&self) {
        self.home.lock().take();
    }

    /// Looks whether the folder is still what was opened, and can be written. A disk that was pulled out or unmounted
    /// leaves an empty folder, or none; one with an error the kernel may have remounted read-only.
    ///
    /// # Errors
    /// Why nothing on it may be believed any more.
    pub fn probe(&self) -> Result<(), String> {
        match identity_of(&self.path) {
            Ok(found) if Some(found) == self.identity => {}
            Ok(_) => return Err("another file system is mounted at its folder".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err("its folder has gone, or its disk is not mounted any more".to_owned());
            }
            Err(error) => return Err(format!("its folder cannot be looked at: {error}")),
        }
        let stat =
            rustix::fs::statvfs(&self.path).map_err(|error| format!("its file system does not answer: {error}"))?;
        if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
            return Err("its file system is mounted read-only".to_owned());
        }
        // A file system that has shut itself off after an error does not say so; the smallest change shows it.
        match self.touch() {
            Err(error) if !super::error::is_full(&error) && !super::error::is_shortage(&error) => {
                Err(format!("its file system takes no changes: {error}"))
            }
            _ => Ok(()),
        }
    }

    /// Sets the time of the folder's lock file.
    fn touch(&self) -> io::Result<()> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        Ok(rustix::fs::utimensat(CWD, self.path.join("LOCK"), &times, AtFlags::empty())?)
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Release);
    }

    /// Throws the latch: nothing on this volume is acknowledged again by this process. Whether this
    /// call was the first.
    pub fn latch(&self, reason: String) -> bool {
        let first = self.failed.set(reason.clone()).is_ok();
        if first {
            error!(volume = %self.path.display(), reason, "volume has failed");
        }
        first
    }

    /// Bytes that new frames may take, trash included, which makes way for them.
    pub fn free_bytes(&self) -> u64 {
        let free = self.room_bytes.load(Ordering::Relaxed) + self.trash_bytes.load(Ordering::Relaxed);
        if self.failed.get().is_some() { 0 } else { free.saturating_sub(self.reserve()) }
    }

    /// Takes `bytes` of the room, emptying the trash for it if need be.
    pub fn take_room(&self, bytes: u64) -> Result<(), StoreError> {
        let take = |room: u64| (room >= self.reserve() + bytes).then(|| room - bytes);
        if self.room_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
            return Ok(());
        }
        self.make_room(self.reserve() + bytes).map_err(|source| StoreError::Io { what: "looking for room", source })?;
        match self.room_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            Ok(_) => Ok(()),
            Err(_) => Err(StoreError::NoSpace),
        }
    }

    /// Asks the file system how much is free.
    pub fn refresh_room(&self) -> io::Result<()> {
        let stat = rustix::fs::statvfs(&self.path)?;
        self.total_bytes.store(stat.f_blocks * stat.f_frsize, Ordering::Relaxed);
        self.room_bytes.store(stat.f_bavail * stat.f_frsize, Ordering::Relaxed);
        Ok(())
    }

    pub fn status(&self, chunks: u64) -> VolumeStatus {
        VolumeStatus {
            path: self.path.display().to_string(),
            total_bytes: self.total_bytes.load(Ordering::Relaxed),
            free_bytes: self.free_bytes(),
            chunks,
            failed: self.failed.get().cloned(),
            draining: self.is_draining(),
        }
    }

    /// Moves a chunk file into the trash. Not synced: if a crash undoes it, the replica is reported
    /// again and deleted again.
    pub fn move_to_trash(&self, chunk: ChunkId, epoch: Epoch, now_s: u64) -> io::Result<()> {
        let from = self.chunk_path(chunk);
        let bytes = fs::metadata(&from)?.blocks() * 512;
        fs::rename(from, self.path.join("trash").join(format!("{now_s}-{:016x}-{epoch}.chunk", chunk.0)))?;
        self.trash_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Removes what has lain in the trash since before `before_s`.
    pub fn empty_trash(&self, before_s: u64) -> io::Result<()> {
        let _purging = self.purging.lock();
        for trashed in self.trashed()?.iter().filter(|trashed| trashed.at_s <= before_s) {
            self.remove(trashed)?;
        }
        Ok(())
    }

    /// Empties the trash, oldest first, until `bytes` are free.
    fn make_room(&self, bytes: u64) -> io::Result<()> {
        let _purging = self.purging.lock();
        self.refresh_room()?;
        for trashed in &self.trashed()? {
            if self.room_bytes.load(Ordering::Relaxed) >= bytes {
                break;
            }
            self.remove(trashed)?;
            self.refresh_room()?;
        }
        Ok(())
    }

    fn remove(&self, trashed: &Trashed) -> io::Result<()> {
        let file = File::options().write(true).open(&trashed.path);
        fs::remove_file(&trashed.path)?;
        // Clients of this machine that have read it keep it open for a while, and with it the room. Cut off behind the
        // removal, so that they see that it was removed and is not damaged. What fails here is had later, by their closing.
        let _ = file.and_then(|file| file.set_len(0));
        let less = |bytes: u64| Some(bytes.saturating_sub(trashed.bytes));
        let _ = self.trash_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        Ok(())
    }

    /// What is in the trash, oldest first.
    fn trashed(&self) -> io::Result<Vec<Trashed>> {
        let mut trashed = Vec::new();
        for entry in fs::read_dir(self.path.join("trash"))? {
            let entry = entry?;
            let name = entry.file_name();
            let at_s = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
            if let Some(at_s) = at_s {
                trashed.push(Trashed { at_s, path: entry.path(), bytes: entry.metadata()?.blocks() * 512 });
            }
        }
        trashed.sort_by(|a, b| (a.at_s, &a.path).cmp(&(b.at_s, &b.path)));
        Ok(trashed)
    }

    /// What is left free: as configured, but a small volume must stay usable.
    fn reserve(&self) -> u64 {
        self.reserve_bytes.min(self.total_bytes.load(Ordering::Relaxed) / 20)
    }
}

/// Tells the folder that was opened from one that has taken its place.
fn identity_of(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::metadata(path.join("IDENTITY"))?;
    Ok((found.dev(), found.ino()))
}

/// Makes names that were created in, or moved into, a folder survive a power cut.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The chunk that a path names: `<16 hexadecimal digits>.chunk`.
pub fn chunk_of(path: &Path) -> Option<ChunkId> {
    let digits = path.file_name()?.to_str()?.strip_suffix(".chunk")?;
    (digits.len() == 16).then(|| u64::from_str_radix(digits, 16).ok().map(ChunkId))?
}

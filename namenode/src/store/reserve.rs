//! Room that is kept for the day when the disk is full.
//!
//! A namenode that cannot write its log ends, and files can only be deleted while it runs. So it holds a file of its own
//! that it gives up when room is short; from then on it refuses what makes the state grow, and goes on with all else. When
//! there is room again it takes the file back. Nobody has to start anything.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::{error, info};

/// Some minutes of deleting, snapshots put off.
const RESERVE_BYTES: u64 = 32 << 20;
/// Of a small disk no more than this part.
const PART_OF_DISK: u64 = 16;

#[derive(Debug)]
pub struct Reserve {
    dir: PathBuf,
    short: AtomicBool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Nothing,
    GiveUp,
    Take,
}

/// What to do with `free` bytes on a disk whose reserve is `size` bytes, and `held` or not. It is given up when a quarter
/// of it is all that is free, and taken back when as much is free beside it as it has itself: not to and fro.
fn decide(free: u64, held: bool, size: u64) -> Step {
    match held {
        true if free < size / 4 => Step::GiveUp,
        false if free >= 2 * size => Step::Take,
        _ => Step::Nothing,
    }
}

impl Reserve {
    /// In a namenode's data folder. `look` takes it.
    pub fn of(dir: &Path) -> Reserve {
        Reserve { dir: dir.to_owned(), short: AtomicBool::new(false) }
    }

    /// Whether what makes the state grow is to be refused.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Sees how much room there is. To be called again and again, more often than a disk fills.
    pub fn look(&self) -> io::Result<()> {
        let path = self.dir.join("reserve");
        let stat = statvfs(&self.dir)?;
        let size = RESERVE_BYTES.min(stat.f_blocks.saturating_mul(stat.f_frsize) / PART_OF_DISK);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let step = decide(free, path.exists(), size);
        match step {
            Step::GiveUp => {
                fs::remove_file(&path)?;
                error!(free, "this namenode's disk is nearly full: nothing new is made until there is room");
            }
            Step::Take => {
                let taken = OpenOptions::new().create(true).truncate(true).write(true).open(&path).and_then(|file| {
                    fallocate(&file, FallocateFlags::empty(), 0, size)?;
                    Ok(())
                });
                // Somebody else was quicker, or this file system keeps nothing ready: better no reserve than half of one.
                taken.inspect_err(|_| _ = fs::remove_file(&path))?;
                if self.is_short() {
                    info!(free, "this namenode's disk has room again");
                }
            }
            Step::Nothing => {}
        }
        // Without a reserve room is short only where there is little of it.
        self.short.store(!path.exists() && free < 2 * size, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 400;

    #[test]
    fn the_reserve_is_given_up_late_and_taken_back_with_room_to_spare() {
        assert_eq!(decide(100, true, SIZE), Step::Nothing);
        assert_eq!(decide(99, true, SIZE), Step::GiveUp);
        // Given up, it is free itself.
        assert_eq!(decide(99 + SIZE, false, SIZE), Step::Nothing);
        assert_eq!(decide(2 * SIZE, false, SIZE), Step::Take);
        assert_eq!(decide(SIZE, true, SIZE), Step::Nothing);
    }

    #[test]
    fn it_is_taken_where_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path());
        reserve.look().unwrap();
        assert!(dir.path().join("reserve").metadata().unwrap().len() >= 1 << 20);
        assert!(!reserve.is_short());
    }
}

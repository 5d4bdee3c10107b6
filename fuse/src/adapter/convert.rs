//! Between the types of fuser and those of the project.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_proto::limits::{FRAME_MAX, NAME_MAX};
use dfs_proto::msg::meta::{LockClaim, LockMode, LockRange, StatFs};
use dfs_proto::{Attr, FileKind, InodeId, SetTime, Timestamp};
use fuser::{FileAttr, FileHandle, FileType, Generation, INodeNo, LockOwner, ReplyLock, ReplyStatfs, TimeOrNow};

use crate::fs::directory::Listed;
use crate::fs::errno::Errno;
use crate::fs::handles::HandleId;
use crate::fs::locks::LockRequest;

/// The unit in which `statfs` counts. Programs multiply, so it only has to be one that they know.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// How many more files there is room for: nothing limits them but the namenodes' disks.
const FREE_FILES: u64 = 1 << 40;

pub fn node(inode: InodeId) -> INodeNo {
    INodeNo(inode.0)
}

/// Always the same: inode numbers are never used again.
pub fn generation() -> Generation {
    Generation(0)
}

pub fn handle_in(handle: FileHandle) -> HandleId {
    HandleId(handle.0)
}

pub fn handle_out(handle: HandleId) -> FileHandle {
    FileHandle(handle.0)
}

/// The kernel's name for the last byte that can be locked; here it means all that follow as well.
const LOCK_END: u64 = i64::MAX as u64;

/// `None` for a kind of lock that does not exist.
pub fn lock_request(owner: LockOwner, start: u64, end: u64, kind: i32, process: u32) -> Option<LockRequest> {
    let mode = match kind {
        libc::F_RDLCK => Some(LockMode::Shared),
        libc::F_WRLCK => Some(LockMode::Exclusive),
        libc::F_UNLCK => None,
        _ => return None,
    };
    let last = if end >= LOCK_END { u64::MAX } else { end };
    Some(LockRequest { number: owner.0, range: LockRange { first: start, last }, mode, process })
}

pub fn found_lock(reply: ReplyLock, found: Option<LockClaim>) {
    match found {
        None => reply.locked(0, 0, libc::F_UNLCK, 0),
        Some(claim) => {
            let kind = match claim.mode {
                LockMode::Shared => libc::F_RDLCK,
                LockMode::Exclusive => libc::F_WRLCK,
            };
            reply.locked(claim.range.first, claim.range.last.min(LOCK_END), kind, claim.process);
        }
    }
}

pub fn os_str(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

pub fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.0)
}

pub fn permission_bits(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: node(attr.inode),
        size: attr.size_bytes,
        blocks: attr.mapped_bytes.div_ceil(512),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.crtime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        // The size programs buffer by: a whole frame has to be read and verified anyway.
        blksize: FRAME_MAX,
        flags: 0,
    }
}

/// `.` and `..` come without attributes, and the kernel uses none of them.
pub fn listed_attr(entry: &Listed) -> FileAttr {
    match &entry.attr {
        Some(attr) => file_attr(attr),
        None => FileAttr {
            ino: node(entry.inode),
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: file_type(entry.kind),
            perm: 0,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: FRAME_MAX,
            flags: 0,
        },
    }
}

pub fn statfs(reply: ReplyStatfs, stat: &StatFs) {
    let block = u64::from(STATFS_BLOCK_BYTES);
    let free = stat.free_bytes / block;
    let total = stat.total_bytes / block;
    let files = stat.files.saturating_add(FREE_FILES);
    reply.statfs(total, free, free, files, FREE_FILES, STATFS_BLOCK_BYTES, NAME_MAX as u32, STATFS_BLOCK_BYTES);
}

/// A time that `SystemTime` cannot hold becomes 1970.
fn system_time(time: Timestamp) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let seconds = if time.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    seconds.and_then(|time_| time_.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(requested_time(time)),
    }
}

/// Before 1970, fuser 0.18 subtracts the nanoseconds of a request from its seconds instead of adding them; the two
/// numbers of the request are what lies between its result and 1970.
fn requested_time(time: SystemTime) -> Timestamp {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timestamp { secs: seconds(after), nanos: after.subsec_nanos() },
        Err(error) => {
            let before = error.duration();
            Timestamp { secs: -seconds(before), nanos: before.subsec_nanos() }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn time_before_1970_counts_its_nanoseconds_forward() {
        let time = system_time(Timestamp { secs: -2, nanos: 800_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(time).unwrap(), Duration::from_millis(1200));
    }

    #[test]
    fn a_requested_time_before_1970_is_what_the_kernel_sent() {
        // What fuser makes of (-2 s, 800 ms).
        let time = UNIX_EPOCH - Duration::from_millis(2800);
        assert_eq!(requested_time(time), Timestamp { secs: -2, nanos: 800_000_000 });
    }

    #[test]
    fn half_a_block_is_shown_as_a_block() {
        let zero = Timestamp::default();
        let attr = Attr {
            inode: InodeId(3),
            kind: FileKind::File,
            mode: 0o4755,
            nlink: 1,
            uid: 7,
            gid: 8,
            rdev: 0,
            size_bytes: 1 << 40,
            mapped_bytes: 513,
            atime: zero,
            mtime: zero,
            ctime: zero,
            crtime: zero,
            version: 1,
            replication: 3,
            xattrs: dfs_proto::XattrKinds::NONE,
        };
        let shown = file_attr(&attr);
        assert_eq!((shown.size, shown.blocks, shown.perm), (1 << 40, 2, 0o4755));
    }

    proptest! {
        #[test]
        fn no_stored_time_stops_the_mount(secs in any::<i64>(), nanos in 0..1_000_000_000u32) {
            system_time(Timestamp { secs, nanos });
        }

        #[test]
        fn a_time_from_1970_on_comes_back_as_it_was_set(secs in 0..i64::MAX, nanos in 0..1_000_000_000u32) {
            let time = Timestamp { secs, nanos };
            assert_eq!(requested_time(system_time(time)), time);
        }
    }
}

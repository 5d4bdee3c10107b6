//! Attributes of an inode, and who asks for them to change.

use serde::{Deserialize, Serialize};

use crate::ids::InodeId;

/// Time since 1970-01-01 UTC. `nanos` is below 1,000,000,000 and counts forward also before 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default)]
pub struct Timestamp {
    pub secs: i64,
    pub nanos: u32,
}

impl Timestamp {
    /// Milliseconds since 1970, rounded down.
    pub fn as_millis(self) -> i64 {
        self.secs.saturating_mul(1000).saturating_add(i64::from(self.nanos / 1_000_000))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `stat` shows, and the change counter that caches compare.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Attr {
    pub inode: InodeId,
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Major and minor number of a device, as the kernel encodes them; 0 otherwise.
    pub rdev: u32,
    pub size_bytes: u64,
    /// Bytes mapped by extents (holes count nothing); `stat` shows it in 512-byte blocks.
    pub mapped_bytes: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub crtime: Timestamp,
    /// Raised by every change of the file's bytes. Equal versions mean equal content.
    pub version: u64,
    /// Copies wanted of each of the file's chunks.
    pub replication: u8,
}

/// How old an atime may become before a read renews it.
pub const ATIME_SECS: i64 = 24 * 60 * 60;

impl Attr {
    /// Whether a read at `now` sets atime, by the rule of `relatime`: at the first read after a change, and once a day.
    pub fn wants_atime(&self, now: Timestamp) -> bool {
        let stale = self.atime <= self.mtime || self.atime <= self.ctime;
        let old = now.secs.saturating_sub(self.atime.secs) >= ATIME_SECS;
        now > self.atime && (stale || old)
    }
}

/// A change of attributes; `None` leaves one as it is.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SetAttr {
    pub mode: Option<u16>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub replication: Option<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum SetTime {
    /// The leader's clock at the time of the change.
    Now,
    At(Timestamp),
}

/// On whose behalf a request is made. Believed from peers whose certificate says client.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, at most `limits::GROUPS_MAX`.
    pub groups: Vec<u32>,
}

impl Caller {
    pub const ROOT: Caller = Caller { uid: 0, gid: 0, groups: Vec::new() };

    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

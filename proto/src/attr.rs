//! Attributes of an inode, and who asks for them to change.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::InodeId;
use crate::xattr::{XattrKinds, pack_mode, unpack_mode};

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
#[derive(Clone, PartialEq, Eq, Debug)]
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
    /// Which kinds of extended attributes there are.
    pub xattrs: XattrKinds,
}

/// Field by field, with mode and kinds of extended attributes in one number.
impl Serialize for Attr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (
            (self.inode, self.kind, pack_mode(self.mode, self.xattrs)),
            (self.nlink, self.uid, self.gid, self.rdev, self.size_bytes, self.mapped_bytes),
            (self.atime, self.mtime, self.ctime, self.crtime, self.version, self.replication),
        )
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Attr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Attr, D::Error> {
        let (
            (inode, kind, packed),
            (nlink, uid, gid, rdev, size_bytes, mapped_bytes),
            (atime, mtime, ctime, crtime, version, replication),
        ) = Deserialize::deserialize(deserializer)?;
        let (mode, xattrs) = unpack_mode(packed);
        Ok(Attr {
            inode,
            kind,
            mode,
            nlink,
            uid,
            gid,
            rdev,
            size_bytes,
            mapped_bytes,
            atime,
            mtime,
            ctime,
            crtime,
            version,
            replication,
            xattrs,
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    /// `Attr` as it was before there were extended attributes.
    #[derive(Serialize)]
    struct FirstAttr {
        inode: InodeId,
        kind: FileKind,
        mode: u16,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        size_bytes: u64,
        mapped_bytes: u64,
        atime: Timestamp,
        mtime: Timestamp,
        ctime: Timestamp,
        crtime: Timestamp,
        version: u64,
        replication: u8,
    }

    #[test]
    fn attributes_stored_before_there_were_extended_ones_are_still_read() {
        let at = |secs| Timestamp { secs, nanos: 9 };
        let first = FirstAttr {
            inode: InodeId(1),
            kind: FileKind::Fifo,
            mode: 0o4751,
            nlink: 2,
            uid: 3,
            gid: 4,
            rdev: 5,
            size_bytes: 6,
            mapped_bytes: 7,
            atime: at(8),
            mtime: at(9),
            ctime: at(10),
            crtime: at(11),
            version: 12,
            replication: 13,
        };
        let bytes = codec::encode(&first).unwrap();
        let attr: Attr = codec::decode(&bytes).unwrap();
        assert_eq!((attr.inode, attr.kind, attr.mode), (InodeId(1), FileKind::Fifo, 0o4751));
        assert_eq!((attr.crtime, attr.version, attr.replication, attr.xattrs), (at(11), 12, 13, XattrKinds::NONE));
        assert_eq!(codec::encode(&attr).unwrap(), bytes);

        let with = Attr { xattrs: XattrKinds::DEFAULT_ACL, ..attr };
        assert_eq!(codec::decode::<Attr>(&codec::encode(&with).unwrap()).unwrap(), with);
    }
}

//! Inodes, names and extents.

use dfs_proto::xattr::{pack_mode, unpack_mode};
use dfs_proto::{Attr, ChunkId, Extent, FileKind, InodeId, Name, SessionId, Timestamp, XattrKinds};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Key, Row, decode, get, number_at, pair, prefix_end, scan, scan_prefix};
use crate::view::{Fault, Table, View};

/// Cookies below this are the mount's own: `.` and `..`.
pub const FIRST_COOKIE: u64 = 3;

/// Shown as the size of a directory, as most file systems do.
const DIRECTORY_SIZE_BYTES: u64 = 4096;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InodeRow {
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub crtime: Timestamp,
    /// Raised by every change of a file's bytes or of a directory's entries.
    pub version: u64,
    pub content: Content,
    /// With `nlink` 0: the first of those that hold it, or `RECLAIM_QUEUE`. Ties the row to its `Orphans` rows.
    pub orphan: Option<SessionId>,
    /// Which kinds of extended attributes it has in `Xattrs`.
    pub xattrs: XattrKinds,
}

/// Field by field, with mode and kinds of extended attributes in one number: see `pack_mode`.
impl Serialize for InodeRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (
            (pack_mode(self.mode, self.xattrs), self.nlink, self.uid, self.gid),
            (self.atime, self.mtime, self.ctime, self.crtime),
            (self.version, &self.content, self.orphan),
        )
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for InodeRow {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<InodeRow, D::Error> {
        let ((packed, nlink, uid, gid), (atime, mtime, ctime, crtime), (version, content, orphan)) =
            Deserialize::deserialize(deserializer)?;
        let (mode, xattrs) = unpack_mode(packed);
        Ok(InodeRow { mode, nlink, uid, gid, atime, mtime, ctime, crtime, version, content, orphan, xattrs })
    }
}

/// What only inodes of one kind have.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(from = "Stored", into = "Stored")]
pub enum Content {
    File {
        size_bytes: u64,
        /// Sum of the extents' lengths.
        mapped_bytes: u64,
        /// Copies wanted of each of its chunks.
        replication: u8,
    },
    Directory {
        /// The root is its own parent.
        parent: InodeId,
        /// Given to the next entry; counts up only, so a cookie never means two entries.
        next_cookie: u64,
        /// While this session lives nobody else may see the directory: it changes it without asking (see `private`).
        private: Option<SessionId>,
    },
    Symlink {
        target: Vec<u8>,
    },
    Special {
        kind: FileKind,
        rdev: u32,
    },
}

/// `Content` as it is in a row: a private directory is a kind of its own, so that rows from before there were any are
/// read as they are.
#[derive(Serialize, Deserialize)]
enum Stored {
    File { size_bytes: u64, mapped_bytes: u64, replication: u8 },
    Directory { parent: InodeId, next_cookie: u64 },
    Symlink { target: Vec<u8> },
    Special { kind: FileKind, rdev: u32 },
    PrivateDirectory { parent: InodeId, next_cookie: u64, session: SessionId },
}

impl From<Stored> for Content {
    fn from(stored: Stored) -> Content {
        match stored {
            Stored::File { size_bytes, mapped_bytes, replication } => {
                Content::File { size_bytes, mapped_bytes, replication }
            }
            Stored::Directory { parent, next_cookie } => Content::Directory { parent, next_cookie, private: None },
            Stored::Symlink { target } => Content::Symlink { target },
            Stored::Special { kind, rdev } => Content::Special { kind, rdev },
            Stored::PrivateDirectory { parent, next_cookie, session } => {
                Content::Directory { parent, next_cookie, private: Some(session) }
            }
        }
    }
}

impl From<Content> for Stored {
    fn from(content: Content) -> Stored {
        match content {
            Content::File { size_bytes, mapped_bytes, replication } => {
                Stored::File { size_bytes, mapped_bytes, replication }
            }
            Content::Directory { parent, next_cookie, private: None } => Stored::Directory { parent, next_cookie },
            Content::Directory { parent, next_cookie, private: Some(session) } => {
                Stored::PrivateDirectory { parent, next_cookie, session }
            }
            Content::Symlink { target } => Stored::Symlink { target },
            Content::Special { kind, rdev } => Stored::Special { kind, rdev },
        }
    }
}

impl Content {
    pub fn kind(&self) -> FileKind {
        match self {
            Content::File { .. } => FileKind::File,
            Content::Directory { .. } => FileKind::Directory,
            Content::Symlink { .. } => FileKind::Symlink,
            Content::Special { kind, .. } => *kind,
        }
    }
}

impl Row for InodeRow {
    const TABLE: Table = Table::Inodes;
}

impl InodeRow {
    pub fn key(inode: InodeId) -> Key<InodeRow> {
        Key::new(inode.0.to_be_bytes().to_vec())
    }

    /// The inode whose row has this key; `None` for bytes that are no key.
    pub fn inode_of_key(key: &[u8]) -> Option<InodeId> {
        key.try_into().ok().map(|bytes| InodeId(u64::from_be_bytes(bytes)))
    }

    pub fn kind(&self) -> FileKind {
        self.content.kind()
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.content, Content::Directory { .. })
    }

    /// The session that alone may see the directory, if it lives.
    pub fn private(&self) -> Option<SessionId> {
        match self.content {
            Content::Directory { private, .. } => private,
            _ => None,
        }
    }

    /// Where its extents are; nowhere, if it is no regular file.
    pub fn span(&self, inode: InodeId) -> FileSpan {
        let size_bytes = if let Content::File { size_bytes, .. } = self.content { size_bytes } else { 0 };
        FileSpan { inode, size_bytes }
    }

    pub fn attr(&self, inode: InodeId) -> Attr {
        let (size_bytes, mapped_bytes, replication, rdev) = match &self.content {
            Content::File { size_bytes, mapped_bytes, replication } => (*size_bytes, *mapped_bytes, *replication, 0),
            Content::Directory { .. } => (DIRECTORY_SIZE_BYTES, 0, 0, 0),
            Content::Symlink { target } => (target.len() as u64, 0, 0, 0),
            Content::Special { rdev, .. } => (0, 0, 0, *rdev),
        };
        Attr {
            inode,
            kind: self.kind(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            rdev,
            size_bytes,
            mapped_bytes,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            crtime: self.crtime,
            version: self.version,
            replication,
            xattrs: self.xattrs,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DentryRow {
    pub inode: InodeId,
    pub kind: FileKind,
    /// Its key in `DirIndex`.
    pub cookie: u64,
}

impl Row for DentryRow {
    const TABLE: Table = Table::Dentries;
}

impl DentryRow {
    pub fn key(parent: InodeId, name: &Name) -> Key<DentryRow> {
        Key::new([&parent.0.to_be_bytes()[..], name.as_bytes()].concat())
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DirIndexRow {
    pub name: Name,
    pub inode: InodeId,
    pub kind: FileKind,
}

impl Row for DirIndexRow {
    const TABLE: Table = Table::DirIndex;
}

impl DirIndexRow {
    pub fn key(parent: InodeId, cookie: u64) -> Key<DirIndexRow> {
        Key::new(pair(parent.0, cookie))
    }
}

/// An extent without what its key says: the inode and the end of the file range.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ExtentRow {
    pub chunk: ChunkId,
    pub chunk_offset: u32,
    pub len: u32,
}

impl Row for ExtentRow {
    const TABLE: Table = Table::Extents;
}

impl ExtentRow {
    pub fn key(inode: InodeId, extent: &Extent) -> Key<ExtentRow> {
        ExtentRow::key_at(inode, extent.file_end())
    }

    /// Of the extent that ends at this offset in the file.
    pub fn key_at(inode: InodeId, file_end: u64) -> Key<ExtentRow> {
        Key::new(pair(inode.0, file_end))
    }

    pub fn of(extent: &Extent) -> ExtentRow {
        ExtentRow { chunk: extent.chunk, chunk_offset: extent.chunk_offset, len: extent.len }
    }

    pub(crate) fn extent(self, file_end: u64) -> Result<Extent, Fault> {
        let file_offset = file_end
            .checked_sub(u64::from(self.len))
            .ok_or_else(|| Fault(format!("an extent of {} bytes ends at {file_end}", self.len)))?;
        Ok(Extent { file_offset, chunk: self.chunk, chunk_offset: self.chunk_offset, len: self.len })
    }
}

pub fn inode(view: &dyn View, inode: InodeId) -> Result<Option<InodeRow>, Fault> {
    get(view, &InodeRow::key(inode))
}

/// Visits every inode in order of ids.
pub fn inodes(view: &dyn View, visit: &mut dyn FnMut(InodeId, InodeRow)) -> Result<(), Fault> {
    let mut fault = None;
    scan_prefix::<InodeRow>(view, &[], &mut |key, row| match number_at(Table::Inodes, key, 0) {
        Ok(inode) => {
            visit(InodeId(inode), row);
            true
        }
        Err(damage) => {
            fault = Some(damage);
            false
        }
    })?;
    fault.map_or(Ok(()), Err)
}

pub fn dentry(view: &dyn View, parent: InodeId, name: &Name) -> Result<Option<DentryRow>, Fault> {
    get(view, &DentryRow::key(parent, name))
}

/// Entries of a directory with cookies above `after`, in order, at most `limit`.
pub fn list_dir(view: &dyn View, parent: InodeId, after: u64, limit: usize) -> Result<Vec<(u64, DirIndexRow)>, Fault> {
    let mut entries = Vec::new();
    let Some(start) = after.checked_add(1).filter(|_| limit > 0) else { return Ok(entries) };
    let end = prefix_end(&parent.0.to_be_bytes());
    let mut fault = None;
    scan::<DirIndexRow>(view, &pair(parent.0, start), &end, &mut |key, row| {
        match number_at(Table::DirIndex, key, 8) {
            Ok(cookie) => entries.push((cookie, row)),
            Err(damage) => fault = Some(damage),
        }
        fault.is_none() && entries.len() < limit
    })?;
    fault.map_or(Ok(entries), Err)
}

pub fn has_entries(view: &dyn View, parent: InodeId) -> Result<bool, Fault> {
    Ok(!list_dir(view, parent, 0, 1)?.is_empty())
}

/// Where the extents of an inode can be: none ends behind the file's size. What was there once is not looked at, because
/// rows that were deleted take as long as others until the database has tidied up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileSpan {
    pub inode: InodeId,
    pub size_bytes: u64,
}

impl FileSpan {
    /// The keys of extents that end behind `offset`; `None` if there can be none.
    fn keys_past(self, offset: u64) -> Option<(Vec<u8>, Vec<u8>)> {
        let (start, end) = (offset.checked_add(1)?, self.size_bytes.saturating_add(1));
        (start < end).then(|| (pair(self.inode.0, start), pair(self.inode.0, end)))
    }
}

/// Extents of a file that end behind `offset`, in order, until `visit` says false.
pub fn extents_past(
    view: &dyn View,
    file: FileSpan,
    offset: u64,
    visit: &mut dyn FnMut(Extent) -> bool,
) -> Result<(), Fault> {
    let Some((start, end)) = file.keys_past(offset) else { return Ok(()) };
    let mut fault = None;
    scan::<ExtentRow>(view, &start, &end, &mut |key, row| match number_at(Table::Extents, key, 8)
        .and_then(|end| row.extent(end))
    {
        Ok(extent) => visit(extent),
        Err(damage) => {
            fault = Some(damage);
            false
        }
    })?;
    fault.map_or(Ok(()), Err)
}

/// Extents of a file that end behind `offset`, from the last to the first, until `visit` says false.
pub fn extents_back(
    view: &dyn View,
    file: FileSpan,
    offset: u64,
    visit: &mut dyn FnMut(Extent) -> bool,
) -> Result<(), Fault> {
    let Some((start, end)) = file.keys_past(offset) else { return Ok(()) };
    let mut fault = None;
    view.scan_back(Table::Extents, &start, &end, &mut |key, bytes| {
        let row = decode::<ExtentRow>(key, bytes);
        match row.and_then(|row| row.extent(number_at(Table::Extents, key, 8)?)) {
            Ok(extent) => visit(extent),
            Err(damage) => {
                fault = Some(damage);
                false
            }
        }
    })?;
    fault.map_or(Ok(()), Err)
}

/// Extents of a file that overlap or touch the range `[start, end]`, in order.
pub fn extents_touching(view: &dyn View, file: FileSpan, start: u64, end: u64) -> Result<Vec<Extent>, Fault> {
    let mut found = Vec::new();
    // One byte earlier, so that the extent that ends exactly at `start` is among them.
    extents_past(view, file, start.saturating_sub(1), &mut |extent| {
        let touches = extent.file_offset <= end;
        if touches {
            found.push(extent);
        }
        touches
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::testing::Rig;
    use crate::view::MemoryView;

    /// Notes where scans end.
    struct Watched<'a> {
        state: &'a MemoryView,
        ends: RefCell<Vec<Vec<u8>>>,
    }

    impl View for Watched<'_> {
        fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
            self.state.get(table, key)
        }

        fn scan(
            &self,
            table: Table,
            start: &[u8],
            end: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), Fault> {
            self.ends.borrow_mut().push(end.to_vec());
            self.state.scan(table, start, end, visit)
        }

        fn scan_back(
            &self,
            table: Table,
            start: &[u8],
            end: &[u8],
            visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
        ) -> Result<(), Fault> {
            self.ends.borrow_mut().push(end.to_vec());
            self.state.scan_back(table, start, end, visit)
        }
    }

    #[test]
    fn extents_are_looked_for_up_to_the_end_of_the_file_and_no_further() {
        let mut rig = Rig::new();
        let inode = rig.write_scattered(InodeId::ROOT, "f", 10);
        let file = span_of(&rig, inode);
        assert_eq!(file.size_bytes, 100);
        let view = Watched { state: &rig.state, ends: RefCell::default() };
        let mut found = 0;
        let mut count = |_| {
            found += 1;
            true
        };
        extents_past(&view, file, 25, &mut count).unwrap();
        extents_back(&view, file, 25, &mut count).unwrap();
        assert_eq!(extents_touching(&view, file, 95, u64::MAX).unwrap().len(), 1);
        assert_eq!(found, 16);
        assert_eq!(*view.ends.borrow(), vec![pair(inode.0, 101); 3]);
        // Where nothing can be, nothing is looked for.
        extents_past(&view, file, 100, &mut |_| panic!("behind the end")).unwrap();
        extents_back(&view, span_of(&rig, InodeId::ROOT), 0, &mut |_| panic!("in a directory")).unwrap();
        assert_eq!(view.ends.borrow().len(), 3);
    }

    fn span_of(rig: &Rig, inode: InodeId) -> FileSpan {
        super::inode(&rig.state, inode).unwrap().unwrap().span(inode)
    }
}

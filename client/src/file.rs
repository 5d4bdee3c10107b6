use bytes::Bytes;
use dfs_proto::{Attr, InodeId};

use crate::error::Result;

/// What a handle may do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenMode {
    pub read: bool,
    pub write: bool,
    /// O_APPEND: every write goes to the end of the file as it is when it is committed, across mounts.
    pub append: bool,
}

impl OpenMode {
    pub const READ: OpenMode = OpenMode { read: true, write: false, append: false };
    pub const WRITE: OpenMode = OpenMode { read: false, write: true, append: false };
    pub const READ_WRITE: OpenMode = OpenMode { read: true, write: true, append: false };
    pub const APPEND: OpenMode = OpenMode { read: false, write: true, append: true };
}

/// An open file. Clones are the same handle; it ends when the last one is closed or dropped. A handle
/// dropped without `close` is flushed in the background.
#[derive(Clone)]
pub struct File {}

impl File {
    pub fn inode(&self) -> InodeId {
        unimplemented!()
    }

    pub fn mode(&self) -> OpenMode {
        unimplemented!()
    }

    /// The attributes as this client knows them, with its own uncommitted size and mtime.
    pub fn attr(&self) -> Attr {
        unimplemented!()
    }

    /// The bytes at `offset`, `len` of them; fewer only at the end of the file.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        let _ = (offset, len);
        unimplemented!()
    }

    /// Takes the bytes; waits only while too many are not yet stored. On an append handle they go to
    /// the end of the file whatever `offset` says.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        let _ = (offset, bytes);
        unimplemented!()
    }

    /// Appends, committed when it returns; the file offset that the bytes got.
    pub async fn append(&self, bytes: Bytes) -> Result<u64> {
        let _ = bytes;
        unimplemented!()
    }

    /// Everything written before is on `min_copies` datanodes and committed.
    pub async fn flush(&self) -> Result<()> {
        unimplemented!()
    }

    /// As `flush`, and the bytes are synced to disk on `min_copies` datanodes.
    pub async fn sync(&self) -> Result<()> {
        unimplemented!()
    }

    /// Cuts or extends the file.
    pub async fn set_size(&self, size_bytes: u64) -> Result<Attr> {
        let _ = size_bytes;
        unimplemented!()
    }

    /// `flush`, and the handle is given back.
    pub async fn close(self) -> Result<()> {
        unimplemented!()
    }
}

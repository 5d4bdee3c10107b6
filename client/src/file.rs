//! Open files, as applications of this crate see them.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{Attr, Caller, ErrorKind, InodeId, SetAttr};
use tracing::{Instrument, debug_span};

use crate::error::{Error, Result};
use crate::open::Handle;

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

/// An open file. Clones are the same handle; it ends when the last one is closed or dropped. What a
/// handle dropped without `close` has written is stored in the background.
#[derive(Clone)]
pub struct File {
    pub(crate) handle: Arc<Handle>,
}

impl File {
    pub(crate) fn new(handle: Handle) -> File {
        File { handle: Arc::new(handle) }
    }

    pub fn inode(&self) -> InodeId {
        self.handle.file.inode
    }

    pub fn mode(&self) -> OpenMode {
        self.handle.mode
    }

    /// The attributes as this client knows them, with its own uncommitted size and mtime.
    pub fn attr(&self) -> Attr {
        self.handle.file.inner.lock().merged_attr()
    }

    /// Counts the changes of the file's bytes by others that this client has heard of.
    pub fn foreign_changes(&self) -> u64 {
        self.handle.file.inner.lock().foreign_changes
    }

    /// The bytes at `offset`, `len` of them; fewer only at the end of the file. `Corrupt` if no good
    /// replica is left, `Timeout` if none could be reached in time.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.require(self.handle.mode.read, "reading")?;
        let span = debug_span!("read", inode = %self.inode(), offset, len);
        self.handle.client.read(&self.handle, offset, len).instrument(span).await
    }

    /// Takes the bytes; waits only while too many are not yet stored. On an append handle they go to
    /// the end of the file whatever `offset` says, and are committed. Also reports, once, that bytes
    /// written earlier were lost.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        if self.handle.mode.append {
            return self.append(bytes).await.map(|_| ());
        }
        self.require(self.handle.mode.write, "writing")?;
        let span = debug_span!("write", inode = %self.inode(), offset, len = bytes.len());
        self.handle.client.write(&self.handle.file, offset, bytes).instrument(span).await
    }

    /// Appends, committed when it returns; the file offset that the bytes got.
    pub async fn append(&self, bytes: Bytes) -> Result<u64> {
        self.require(self.handle.mode.write, "writing")?;
        let span = debug_span!("append", inode = %self.inode(), len = bytes.len());
        self.handle.client.append(&self.handle.file, bytes).instrument(span).await
    }

    /// Everything written before is on `min_copies` datanodes and committed.
    pub async fn flush(&self) -> Result<()> {
        let client = &self.handle.client;
        client.flush(&self.handle.file, client.deadline()).instrument(debug_span!("flush", inode = %self.inode())).await
    }

    /// As `flush`, and the bytes are synced to disk on `min_copies` datanodes.
    pub async fn sync(&self) -> Result<()> {
        self.handle.client.sync(&self.handle.file).instrument(debug_span!("sync", inode = %self.inode())).await
    }

    /// Cuts or extends the file.
    pub async fn set_size(&self, size_bytes: u64) -> Result<Attr> {
        self.require(self.handle.mode.write, "writing")?;
        let set = SetAttr { size_bytes: Some(size_bytes), ..SetAttr::default() };
        self.handle.client.set_size(&Caller::ROOT, &self.handle.file, set, true).await
    }

    /// `flush`, and the handle is given back.
    pub async fn close(self) -> Result<()> {
        self.flush().await
    }

    fn require(&self, allowed: bool, access: &str) -> Result<()> {
        if allowed {
            return Ok(());
        }
        let message = format!("inode {} is not open for {access}", self.inode());
        Err(Error::new(ErrorKind::InvalidArgument, message))
    }
}

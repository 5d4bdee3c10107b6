//! Open files, as applications of this crate see them.

use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{Attr, Caller, ErrorKind, InodeId, SetAttr, XattrKinds};
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
    /// O_NOATIME: reading leaves the file's atime alone.
    pub no_atime: bool,
}

impl OpenMode {
    const NOTHING: OpenMode = OpenMode { read: false, write: false, append: false, no_atime: false };
    pub const READ: OpenMode = OpenMode { read: true, ..OpenMode::NOTHING };
    pub const WRITE: OpenMode = OpenMode { write: true, ..OpenMode::NOTHING };
    pub const READ_WRITE: OpenMode = OpenMode { read: true, write: true, ..OpenMode::NOTHING };
    pub const APPEND: OpenMode = OpenMode { write: true, append: true, ..OpenMode::NOTHING };
}

/// What becomes of a range of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fallocate {
    /// Its bytes go: it reads as zeros.
    pub zero: bool,
    /// The file does not grow to the end of the range.
    pub keep_size: bool,
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
        self.handle.client.read(&self.handle, offset, len).instrument(span).await?.complete()
    }

    /// As `read`, but where some of the bytes cannot be read it gives those in front of them, if there are any: fewer
    /// than asked for are not always the end of the file.
    pub async fn read_front(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.require(self.handle.mode.read, "reading")?;
        let span = debug_span!("read front", inode = %self.inode(), offset, len);
        self.handle.client.read(&self.handle, offset, len).instrument(span).await?.some()
    }

    /// Takes the bytes; waits only while too many are not yet stored. On an append handle they go to
    /// the end of the file whatever `offset` says, and are committed. Also reports, once
    /// through each handle, that bytes written earlier were lost.
    pub async fn write(&self, offset: u64, bytes: Bytes) -> Result<()> {
        if self.handle.mode.append {
            return self.append(bytes).await.map(|_| ());
        }
        self.require(self.handle.mode.write, "writing")?;
        self.handle.tell()?;
        let span = debug_span!("write", inode = %self.inode(), offset, len = bytes.len());
        self.handle.client.write(&self.handle.file, offset, bytes).instrument(span).await
    }

    /// Appends, committed when it returns; the file offset that the bytes got.
    pub async fn append(&self, bytes: Bytes) -> Result<u64> {
        self.require(self.handle.mode.write, "writing")?;
        self.handle.tell()?;
        let span = debug_span!("append", inode = %self.inode(), len = bytes.len());
        self.handle.client.append(&self.handle.file, bytes).instrument(span).await
    }

    /// Everything written before is on `min_copies` datanodes and committed.
    pub async fn flush(&self) -> Result<()> {
        let client = &self.handle.client;
        let flushed = client.flush(&self.handle.file, client.deadline());
        self.unless_failed(flushed.instrument(debug_span!("flush", inode = %self.inode()))).await
    }

    /// `work`, unless bytes were lost that this handle has not been told of, before it or meanwhile.
    async fn unless_failed(&self, work: impl Future<Output = Result<()>>) -> Result<()> {
        self.handle.tell()?;
        let done = work.await;
        self.handle.tell()?;
        done
    }

    /// What `close` promises. Of a file that nobody else can see yet, an error of earlier bytes is told; the rest go on
    /// their way with the clock, and whoever is the first to see the file waits for them. Of any other it is a `flush`.
    pub async fn settle(&self) -> Result<()> {
        let (client, file) = (&self.handle.client, &self.handle.file);
        // What others do to such a file's bytes shows in its attributes, once they are there.
        let plain = |attr: &Attr| !attr.xattrs.contains(XattrKinds::CAPABILITY);
        if !client.private.attr(file.inode).is_some_and(|attr| plain(&attr)) {
            return self.flush().await;
        }
        self.handle.tell()
    }

    /// As `flush`, and the bytes are synced to disk on `min_copies` datanodes.
    pub async fn sync(&self) -> Result<()> {
        let synced = self.handle.client.sync(&self.handle.file);
        self.unless_failed(synced.instrument(debug_span!("sync", inode = %self.inode()))).await
    }

    /// Cuts or extends the file.
    pub async fn set_size(&self, size_bytes: u64) -> Result<Attr> {
        self.require(self.handle.mode.write, "writing")?;
        let set = SetAttr { size_bytes: Some(size_bytes), ..SetAttr::default() };
        self.handle.client.set_size(&Caller::ROOT, &self.handle.file, set, true).await
    }

    /// Makes `[offset, offset + len)` part of the file, or a hole of it. On behalf of `caller`, who if not
    /// root takes set-id bits away.
    pub async fn fallocate(&self, caller: &Caller, offset: u64, len: u64, how: Fallocate) -> Result<()> {
        self.require(self.handle.mode.write, "writing")?;
        let span = debug_span!("fallocate", inode = %self.inode(), offset, len, ?how);
        self.handle.client.fallocate(caller, &self.handle.file, offset, len, how).instrument(span).await
    }

    /// The first byte at or behind `offset` that is no hole; `None` if only holes follow.
    pub async fn seek_data(&self, offset: u64) -> Result<Option<u64>> {
        let span = debug_span!("seek data", inode = %self.inode(), offset);
        self.handle.client.seek_data(&self.handle.file, offset).instrument(span).await
    }

    /// The first hole at or behind `offset`, where the end of the file counts as one; `None` behind the end.
    pub async fn seek_hole(&self, offset: u64) -> Result<Option<u64>> {
        let span = debug_span!("seek hole", inode = %self.inode(), offset);
        self.handle.client.seek_hole(&self.handle.file, offset).instrument(span).await
    }

    /// Lets `[offset, offset + len)` have the bytes of `source` from `source_offset` on: shared where that
    /// can be, copied where not. How many bytes are done: some, or 0 at the end of the source.
    pub async fn copy_from(
        &self,
        caller: &Caller,
        source: &File,
        source_offset: u64,
        offset: u64,
        len: u64,
    ) -> Result<u64> {
        source.require(source.handle.mode.read, "reading")?;
        self.require(self.handle.mode.write, "writing")?;
        let span = debug_span!("copy range", from = %source.inode(), source_offset, to = %self.inode(), offset, len);
        let (from, to) = (&source.handle, &self.handle.file);
        self.handle.client.copy_range(caller, from, source_offset, to, offset, len).instrument(span).await
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

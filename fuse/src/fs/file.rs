//! Open files: reading, writing, and the promises of flush and fsync.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use dfs_client::{Dfs, File, MakeOptions, OpenMode};
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{Attr, Caller, InodeId, Name};
use tokio::sync::OnceCell;

use super::Fs;
use super::admission::Payload;
use super::caller::Requester;
use super::errno::Errno;
use super::handles::{Handle, HandleId};
use super::names::MODE_MASK;
use super::open_inodes::OpenInodes;

/// The kernel opens a program in order to run it (`__FMODE_EXEC`; the number is part of the protocol).
const OPEN_TO_EXECUTE: i32 = 0x20;

/// What the kernel's page cache reads is a multiple of this in place and length, whatever its pages are.
const PAGE: u64 = 4096;

/// One bit of an access mask: execute.
const EXECUTE: u8 = 1;

/// A file as somebody opened it.
pub struct OpenFile {
    file: File,
    /// For an append handle: a second one that writes where it is told. See [`OpenFile::positioned`].
    positioned: OnceCell<File>,
    open_inodes: Arc<OpenInodes>,
    /// How many changes by others the client had seen when the kernel's pages were dropped last.
    foreign_changes: AtomicU64,
}

/// A file that is open but has no handle yet. Dropped, it is closed again.
pub struct Opened {
    file: OpenFile,
    /// The pages that the kernel has of it are still right.
    pub keep_cache: bool,
    /// Reads and writes must not go through the kernel's cache.
    pub direct: bool,
}

/// Where the bytes of a write go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    At(u64),
    /// O_APPEND: where the file ends for the cluster; the kernel's idea of it may be old.
    End,
}

impl Fs {
    /// `flags` are those of open(2). Truncates if they say so.
    pub async fn open(&self, who: Requester, inode: InodeId, flags: i32) -> Result<Opened, Errno> {
        let caller = who.caller();
        let file = if flags & OPEN_TO_EXECUTE != 0 {
            // A program that may be run need not be readable.
            self.dfs.access(&caller, inode, EXECUTE).await?;
            self.dfs.open(&Caller::ROOT, inode, OpenMode::READ).await?
        } else {
            self.dfs.open(&caller, inode, open_mode(flags)?).await?
        };
        self.finish_open(who, file, flags, true).await
    }

    /// Makes the file unless it is there, and opens it. `umask` counts unless the parent has a default ACL.
    pub async fn create(
        &self,
        who: Requester,
        parent: InodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
    ) -> Result<(Attr, Opened), Errno> {
        let name = Name::new(name.as_bytes())?;
        let exclusive = flags & libc::O_EXCL != 0;
        let (mode, umask) = ((mode & MODE_MASK) as u16, (umask & MODE_MASK) as u16);
        let options = MakeOptions { exclusive, open: Some(open_mode(flags)?), replication: None, umask };
        let made = self.dfs.make(&who.caller(), parent, &name, NewNode::File, mode, options).await?;
        let file = match made.file {
            Some(file) => file,
            // Found rather than made, and without a grant: open it as any other.
            None => self.dfs.open(&who.caller(), made.attr.inode, open_mode(flags)?).await?,
        };
        let opened = self.finish_open(who, file, flags, !made.created).await?;
        Ok((opened.file.file.attr(), opened))
    }

    async fn finish_open(&self, who: Requester, file: File, flags: i32, may_truncate: bool) -> Result<Opened, Errno> {
        if may_truncate && flags & libc::O_TRUNC != 0 && file.mode().write {
            self.open_inodes.changed(file.inode());
            self.drop_privilege(who, &file.set_size(0).await?).await?;
        }
        let keep_cache = self.open_inodes.opened(file.inode(), file.attr().version, file.mode().write);
        // The kernel writes where it believes the file to end, into its cache as well; the bytes may land elsewhere.
        let direct = file.mode().append;
        let file = OpenFile {
            file,
            positioned: OnceCell::new(),
            open_inodes: self.open_inodes.clone(),
            foreign_changes: AtomicU64::new(u64::MAX),
        };
        Ok(Opened { file, keep_cache, direct })
    }

    /// Gives an opened file its handle.
    pub fn admit(&self, opened: Opened) -> HandleId {
        self.handles.insert(Handle::File(Arc::new(opened.file)))
    }

    /// Up to `len` bytes; fewer only at the end of the file.
    pub async fn read(&self, handle: HandleId, offset: u64, len: u32) -> Result<Bytes, Errno> {
        let open = self.handles.file(handle)?;
        self.check_locks(handle, open.file.inode()).await?;
        // To the kernel's page cache a short answer is the end of the file, and what follows it in the page is zeros. It
        // asks for whole pages; anything else is a direct read, which may be given what there is.
        let for_pages = offset.is_multiple_of(PAGE) && u64::from(len).is_multiple_of(PAGE);
        let bytes = match for_pages {
            true => open.file.read(offset, len as usize).await?,
            false => open.file.read_front(offset, len as usize).await?,
        };
        Ok(bytes)
    }

    /// How many bytes were taken: all of them, or an error.
    pub async fn write(&self, who: Requester, handle: HandleId, place: Place, payload: Payload) -> Result<u32, Errno> {
        let open = self.handles.file(handle)?;
        self.check_locks(handle, open.file.inode()).await?;
        let (bytes, _room) = payload.into_parts();
        let len = bytes.len() as u32;
        self.open_inodes.changed(open.file.inode());
        self.drop_privilege(who, &open.file.attr()).await?;
        match place {
            Place::End => open.file.write(0, bytes).await?,
            Place::At(offset) => open.positioned(&self.dfs).await?.write(offset, bytes).await?,
        }
        Ok(len)
    }

    /// A descriptor is closed: what was written through it must reach the cluster, or its caller learns why not.
    /// `closer` is the kernel's number of the process, as an owner of locks.
    pub async fn flush(&self, handle: HandleId, closer: u64) -> Result<(), Errno> {
        let open = self.handles.file(handle)?;
        let inode = open.file.inode();
        let kept = self.check_locks(handle, inode).await;
        let flushed = open.flush().await;
        // After the bytes: whoever gets the lock next must find them.
        let unlocked = self.unlock_process(inode, closer).await;
        flushed.and(kept).and(unlocked)
    }

    pub async fn fsync(&self, handle: HandleId) -> Result<(), Errno> {
        let open = self.handles.file(handle)?;
        self.check_locks(handle, open.file.inode()).await?;
        let synced = match open.positioned.get() {
            Some(positioned) => positioned.sync().await,
            None => Ok(()),
        };
        // Both: one descriptor is told once of bytes that were lost.
        Ok(synced.and(open.file.sync().await)?)
    }

    /// The last descriptor is gone. Pages of a shared mapping may have come after the last flush. Nobody is told of an
    /// error any more; it is logged.
    pub async fn release(&self, handle: HandleId) -> Result<(), Errno> {
        match self.handles.remove(handle) {
            Some(Handle::File(open)) => {
                let flushed = open.flush().await;
                self.unlock_handle(handle, open.file.inode()).await;
                flushed
            }
            Some(Handle::Directory(_)) => Ok(()),
            None => Err(Errno::BAD_HANDLE),
        }
    }
}

impl OpenFile {
    /// The client's file, as which it was opened.
    pub fn client_file(&self) -> &File {
        &self.file
    }

    /// The file for writes that name their offset. An append handle of the client ignores offsets, and yet such writes
    /// come through one: pages of a shared mapping, and all after `fcntl` has taken O_APPEND away. The right to write
    /// is that of the open, so it is not asked for again.
    async fn positioned(&self, dfs: &Dfs) -> Result<&File, Errno> {
        if !self.file.mode().append {
            return Ok(&self.file);
        }
        let open = async || dfs.open(&Caller::ROOT, self.file.inode(), OpenMode::WRITE).await;
        Ok(self.positioned.get_or_try_init(open).await?)
    }

    /// Whether others have changed the file since this was asked last; the first time it may be.
    pub(super) fn saw_foreign_change(&self) -> bool {
        let now = self.file.foreign_changes();
        self.foreign_changes.swap(now, Ordering::Relaxed) != now
    }

    pub(super) async fn flush(&self) -> Result<(), Errno> {
        let positioned = match self.positioned.get() {
            Some(positioned) => positioned.settle().await,
            None => Ok(()),
        };
        // Both: one descriptor is told once of bytes that were lost.
        let settled = if self.file.mode().write { self.file.settle().await } else { Ok(()) };
        Ok(positioned.and(settled)?)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.open_inodes.closed(self.file.inode(), self.file.mode().write);
    }
}

fn open_mode(flags: i32) -> Result<OpenMode, Errno> {
    let append = flags & libc::O_APPEND != 0;
    let no_atime = flags & libc::O_NOATIME != 0;
    match flags & libc::O_ACCMODE {
        libc::O_RDONLY => Ok(OpenMode { no_atime, ..OpenMode::READ }),
        libc::O_WRONLY => Ok(OpenMode { append, ..OpenMode::WRITE }),
        libc::O_RDWR => Ok(OpenMode { append, no_atime, ..OpenMode::READ_WRITE }),
        _ => Err(Errno::INVALID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_asks_for_what_its_flags_say_and_no_more() {
        assert_eq!(open_mode(libc::O_RDONLY), Ok(OpenMode::READ));
        assert_eq!(open_mode(libc::O_RDONLY | libc::O_APPEND), Ok(OpenMode::READ));
        assert_eq!(open_mode(libc::O_WRONLY | libc::O_APPEND), Ok(OpenMode::APPEND));
        assert_eq!(open_mode(libc::O_RDWR | libc::O_DIRECT), Ok(OpenMode::READ_WRITE));
        assert_eq!(open_mode(libc::O_ACCMODE), Err(Errno::INVALID));
    }
}

//! Where the fuser library stops: each request becomes a call of [`Fs`], each result a reply.
//!
//! A request is copied out of the session's buffer, which is used again at once, and becomes a task as soon as it has to
//! wait: the threads of the session never wait for the cluster. Nothing here decides anything about files.
//!
//! The kernel is notified of two things: that pages are old, after a lock was had, and that attributes are, when others
//! change them. Whoever adds to that must do it like that from a thread of its own that holds no lock: the kernel may have
//! to finish a request of this mount first.

mod answer;
mod convert;
pub mod session;
mod task;

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use dfs_proto::{InodeId, SetAttr};
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tokio_util::sync::DropGuard;
use tracing::{Instrument, Span};

use crate::fs::Fs;
use crate::fs::caller::{Requester, Squash};
use crate::fs::errno::Errno;
use crate::fs::file::Place;
use crate::fs::file_ranges::Start;
use crate::fs::handles::HandleId;
use answer::{
    attr, created, data, directory, directory_plus, empty, entry, linked, opened, place, sized, statistics, tested,
    written,
};
use convert::{errno, handle_in, handle_out, lock_request, set_time};

/// The largest request: what the kernel allows without a change of `fs.fuse.max_pages_limit`.
const REQUEST_MAX: u32 = 1 << 20;

/// Requests that no thread waits for (read-ahead, write-back, releases) in the kernel's queue at one time. At 1 MiB
/// each they cover the cluster's latency; its own default of 12 does not.
const BACKGROUND_MAX: u16 = 64;

/// Asked of the kernel as far as it knows them. What is left out is left out on purpose: the writeback cache, because
/// the kernel would own size and mtime of files that others write; SETXATTR_EXT, on which this fuser version stops a
/// session thread.
const CAPABILITIES: [InitFlags; 13] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    // Targets of symlinks never change.
    InitFlags::FUSE_CACHE_SYMLINKS,
    // One request for open and truncate, so that the truncation has the right of the open.
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    // Append handles bypass the cache and may still be mapped.
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
    // fcntl and flock come here; otherwise they would not reach other mounts.
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    // The umask comes with the request instead of being taken away from the mode: a default ACL takes its place.
    InitFlags::FUSE_DONT_MASK,
    // The kernel asks for ACLs and decides by them as the namenode does.
    InitFlags::FUSE_POSIX_ACL,
    // Set-id bits and capabilities of a changed file are ours to take away; the kernel then need not ask for the
    // capability before each write. This fuser version does not pass on for which requests to open and to truncate the
    // kernel wants that; the caller's uid says the same.
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
];

pub struct Adapter {
    fs: Arc<Fs>,
    runtime: Handle,
    /// Says that no request will come any more, when the session drops the adapter.
    _ended: DropGuard,
}

impl Adapter {
    /// Must be called within a tokio runtime, which then runs the requests.
    pub fn new(fs: Arc<Fs>, ended: DropGuard) -> Adapter {
        Adapter { fs, runtime: Handle::current(), _ended: ended }
    }

    /// Who asks, as far as this mount says it to the cluster.
    fn requester(&self, request: &Request) -> Requester {
        let who = Requester { uid: request.uid(), gid: request.gid(), thread: request.pid() };
        self.fs.squash.apply(who)
    }

    /// The kernel's number of an inode is the cluster's, but for the top of the mount: that is always 1 to the kernel.
    /// In the other direction nothing needs to be turned round: no name below the top leads to it.
    fn inode(&self, number: INodeNo) -> InodeId {
        if number == INodeNo::ROOT { self.fs.root } else { InodeId(number.0) }
    }

    /// Runs an operation and answers with its result: at once if it need not wait, otherwise as a task.
    fn start<T, O, F>(&self, span: Span, operation: O, answer: impl FnOnce(Result<T, Errno>) + Send + 'static)
    where
        T: Send + 'static,
        O: FnOnce(Arc<Fs>) -> F,
        F: Future<Output = Result<T, Errno>> + Send + 'static,
    {
        let fs = self.fs.clone();
        let operation = operation(self.fs.clone());
        // What is known here is answered without waking another thread, which would take several times as long.
        task::start(&self.runtime, async move { fs.admission.run(operation, answer).await }.instrument(span));
    }
}

/// The span of one request.
macro_rules! span {
    ($name:literal, $request:expr, $inode:expr) => {
        tracing::debug_span!($name, request = $request.unique().0, inode = $inode.0)
    };
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // With ACLs the kernel checks permissions, for users that are somebody else to the cluster.
        let unwanted = |capability| capability == InitFlags::FUSE_POSIX_ACL && matches!(self.fs.squash, Squash::All(_));
        for capability in CAPABILITIES.into_iter().filter(|capability| !unwanted(*capability)) {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "kernel lacks a capability");
            }
        }
        // Both refuse only values out of their range.
        let _ = config.set_max_write(REQUEST_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (who, parent, name) = (self.requester(request), self.inode(parent), name.to_owned());
        let span = span!("lookup", request, parent);
        let answer = entry(self.fs.clone(), parent, &name, reply);
        self.start(span, |fs| async move { fs.lookup(who, parent, &name).await }, answer);
    }

    /// Inode numbers are the cluster's and are never used again, so there is no reference to give back.
    fn forget(&self, _: &Request, _: INodeNo, _: u64) {}

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let (who, inode) = (self.requester(request), self.inode(ino));
        let span = span!("getattr", request, inode);
        self.start(span, |fs| async move { fs.getattr(who, inode).await }, attr(self.fs.clone(), reply));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (who, inode, handle) = (self.requester(request), self.inode(ino), fh.map(handle_in));
        let set = SetAttr {
            mode: mode.map(convert::permission_bits),
            uid,
            gid,
            size_bytes: size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            replication: None,
        };
        let span = span!("setattr", request, inode);
        self.start(span, |fs| async move { fs.setattr(who, inode, set, handle).await }, attr(self.fs.clone(), reply));
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        let (who, inode) = (self.requester(request), self.inode(ino));
        let span = span!("readlink", request, inode);
        self.start(span, |fs| async move { fs.readlink(who, inode).await }, data(reply));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (who, parent, name) = (self.requester(request), self.inode(parent), name.to_owned());
        let span = span!("mknod", request, parent);
        let answer = entry(self.fs.clone(), parent, &name, reply);
        self.start(span, |fs| async move { fs.make_node(who, parent, &name, mode, umask, rdev).await }, answer);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (who, parent, name) = (self.requester(request), self.inode(parent), name.to_owned());
        let span = span!("mkdir", request, parent);
        let answer = entry(self.fs.clone(), parent, &name, reply);
        self.start(span, |fs| async move { fs.make_directory(who, parent, &name, mode, umask).await }, answer);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, parent, name) = (self.requester(request), self.inode(parent), name.to_owned());
        let span = span!("unlink", request, parent);
        self.start(span, |fs| async move { fs.unlink(who, parent, &name).await }, empty(reply));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, parent, name) = (self.requester(request), self.inode(parent), name.to_owned());
        let span = span!("rmdir", request, parent);
        self.start(span, |fs| async move { fs.remove_directory(who, parent, &name).await }, empty(reply));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (who, parent, name) = (self.requester(request), self.inode(parent), name.to_owned());
        let target = target.as_os_str().to_owned();
        let span = span!("symlink", request, parent);
        let answer = entry(self.fs.clone(), parent, &name, reply);
        self.start(span, |fs| async move { fs.make_symlink(who, parent, &name, &target).await }, answer);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (who, from, to) = (self.requester(request), self.inode(parent), self.inode(newparent));
        let (name, newname, flags) = (name.to_owned(), newname.to_owned(), flags.bits());
        let span = span!("rename", request, from);
        self.start(span, |fs| async move { fs.rename(who, (from, &name), (to, &newname), flags).await }, empty(reply));
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let (who, inode, parent, name) =
            (self.requester(request), self.inode(ino), self.inode(newparent), newname.to_owned());
        let span = span!("link", request, inode);
        self.start(span, |fs| async move { fs.link(who, inode, parent, &name).await }, linked(reply));
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (who, inode) = (self.requester(request), self.inode(ino));
        let answer = opened(self.fs.clone(), reply);
        let span = span!("open", request, inode);
        self.start(span, |fs| async move { fs.open(who, inode, flags.0).await }, answer);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, parent, name) = (self.requester(request), self.inode(parent), name.to_owned());
        let answer = created(self.fs.clone(), reply);
        let span = span!("create", request, parent);
        self.start(span, |fs| async move { fs.create(who, parent, &name, mode, umask, flags).await }, answer);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let handle = handle_in(fh);
        let span = tracing::debug_span!("read", request = request.unique().0, inode = ino.0, offset, size);
        self.start(span, |fs| async move { fs.read(handle, offset, size).await }, data(reply));
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (who, handle) = (self.requester(request), handle_in(fh));
        let size = data.len();
        let place = match flags.0 & libc::O_APPEND != 0 && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE) {
            true => Place::End,
            false => Place::At(offset),
        };
        let payload = match self.fs.admission.take(data) {
            Ok(payload) => payload,
            Err(error) => return reply.error(errno(error)),
        };
        let span = tracing::debug_span!("write", request = request.unique().0, inode = ino.0, offset, size);
        self.start(span, |fs| async move { fs.write(who, handle, place, payload).await }, written(reply));
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, closer: LockOwner, reply: ReplyEmpty) {
        let handle = handle_in(fh);
        let span = span!("flush", request, ino);
        self.start(span, move |fs| async move { fs.flush(handle, closer.0).await }, empty(reply));
    }

    fn getlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let handle = handle_in(fh);
        let Some(asked) = lock_request(owner, start, end, typ, pid) else {
            return reply.error(errno(Errno::INVALID));
        };
        let span = span!("getlk", request, ino);
        self.start(span, move |fs| async move { fs.test_lock(handle, asked).await }, tested(reply));
    }

    fn setlk(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        reply: ReplyEmpty,
    ) {
        let (who, handle) = (self.requester(request), handle_in(fh));
        let Some(asked) = lock_request(owner, start, end, typ, pid) else {
            return reply.error(errno(Errno::INVALID));
        };
        let span = span!("setlk", request, ino);
        if !sleep {
            return self.start(span, move |fs| async move { fs.set_lock(who, handle, asked).await }, empty(reply));
        }
        // Not among the operations that are counted and end at a deadline: whoever waits may wait for long, and
        // must not keep others from running, who may hold the lock.
        let (fs, answer) = (self.fs.clone(), empty(reply));
        let wait = async move { answer(fs.wait_for_lock(who, handle, asked).await) };
        self.runtime.spawn(wait.instrument(span));
    }

    fn fsync(&self, request: &Request, ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let handle = handle_in(fh);
        let span = span!("fsync", request, ino);
        self.start(span, |fs| async move { fs.fsync(handle).await }, empty(reply));
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let handle = handle_in(fh);
        // Noted before the next request is taken: that may be for a lock which goes with this handle.
        let ending = self.fs.end_locks(handle);
        let span = span!("release", request, ino);
        let release = move |fs: Arc<Fs>| async move {
            let released = fs.release(handle).await;
            drop(ending);
            released
        };
        self.start(span, release, empty(reply));
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let (who, handle) = (self.requester(request), handle_in(fh));
        let span = span!("fallocate", request, ino);
        self.start(span, |fs| async move { fs.allocate(who, handle, offset, length, mode).await }, empty(reply));
    }

    fn lseek(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let handle = handle_in(fh);
        let span = span!("lseek", request, ino);
        self.start(span, |fs| async move { fs.seek(handle, offset, whence).await }, place(reply));
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let who = self.requester(request);
        let from = Start { handle: handle_in(fh_in), offset: offset_in };
        let to = Start { handle: handle_in(fh_out), offset: offset_out };
        let span = span!("copy_file_range", request, ino_in);
        self.start(span, |fs| async move { fs.copy_range(who, from, to, len).await }, written(reply));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(handle_out(self.fs.open_directory(self.inode(ino))), FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let (who, handle) = (self.requester(request), handle_in(fh));
        let span = span!("readdir", request, ino);
        self.start(span, |fs| async move { fs.list(who, handle, offset, false).await }, directory(reply));
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let (who, handle) = (self.requester(request), handle_in(fh));
        let span = span!("readdirplus", request, ino);
        let answer = directory_plus(self.fs.clone(), self.inode(ino), reply);
        self.start(span, |fs| async move { fs.list(who, handle, offset, true).await }, answer);
    }

    fn releasedir(&self, request: &Request, ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.release_handle(span!("releasedir", request, ino), handle_in(fh), reply);
    }

    fn fsyncdir(&self, request: &Request, ino: INodeNo, _: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let span = span!("fsyncdir", request, ino);
        self.start(span, |fs| async move { fs.sync_names().await }, empty(reply));
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let span = span!("statfs", request, ino);
        self.start(span, |fs| async move { fs.statfs().await }, statistics(reply));
    }

    fn access(&self, request: &Request, ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (who, inode, mask) = (self.requester(request), self.inode(ino), (mask.bits() & 0o7) as u8);
        let span = span!("access", request, inode);
        self.start(span, |fs| async move { fs.access(who, inode, mask).await }, empty(reply));
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (who, inode, name) = (self.requester(request), self.inode(ino), name.to_owned());
        let value = match self.fs.admission.take(value) {
            Ok(value) => value,
            Err(error) => return reply.error(errno(error)),
        };
        let span = span!("setxattr", request, inode);
        self.start(span, |fs| async move { fs.set_xattr(who, inode, &name, value, flags).await }, empty(reply));
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (who, inode, name) = (self.requester(request), self.inode(ino), name.to_owned());
        let span = span!("getxattr", request, inode);
        let operation = |fs: Arc<Fs>| async move { Ok(Vec::from(fs.get_xattr(who, inode, &name).await?)) };
        self.start(span, operation, sized(reply, size));
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (who, inode) = (self.requester(request), self.inode(ino));
        let span = span!("listxattr", request, inode);
        self.start(span, |fs| async move { fs.list_xattrs(who, inode).await }, sized(reply, size));
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, inode, name) = (self.requester(request), self.inode(ino), name.to_owned());
        let span = span!("removexattr", request, inode);
        self.start(span, |fs| async move { fs.remove_xattr(who, inode, &name).await }, empty(reply));
    }

    // What this file system does not have. The kernel then answers by itself, mostly with EOPNOTSUPP, and does
    // not ask again.

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(errno(Errno::UNKNOWN_REQUEST));
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(errno(Errno::UNKNOWN_REQUEST));
    }
}

impl Adapter {
    fn release_handle(&self, span: Span, handle: HandleId, reply: ReplyEmpty) {
        self.start(span, |fs| async move { fs.release(handle).await }, empty(reply));
    }
}

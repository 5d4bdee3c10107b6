//! Replies: how a result of [`crate::fs`] is told to the kernel.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::msg::meta::{LockClaim, StatFs};
use dfs_proto::{Attr, InodeId};
use fuser::{
    FopenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLock, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert::{self, errno, file_attr, file_type, generation, handle_out, node};
use crate::fs::Fs;
use crate::fs::directory::Listed;
use crate::fs::errno::Errno;
use crate::fs::file::Opened;

/// Asked for anew each time.
const TTL: Duration = Duration::ZERO;

/// Of a name that was looked up or made in `parent`.
pub fn entry(
    fs: Arc<Fs>,
    parent: InodeId,
    name: &OsStr,
    reply: ReplyEntry,
) -> impl FnOnce(Result<Attr, Errno>) + use<> {
    let name = name.to_owned();
    move |result| match result {
        Ok(attr) => {
            let (name, attributes) = (fs.name_ttl(parent, &name, &attr), fs.attr_ttl(&attr));
            reply.entry_with_ttls(&attributes, &name, &file_attr(&attr), generation());
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// As `entry`, of an inode that the kernel may have known before. It takes this answer for newer than whatever it was
/// told meanwhile, unlike any other answer, so nothing can be lent with it.
pub fn linked(reply: ReplyEntry) -> impl FnOnce(Result<Attr, Errno>) {
    |result| match result {
        Ok(attr) => reply.entry(&TTL, &file_attr(&attr), generation()),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn attr(fs: Arc<Fs>, reply: ReplyAttr) -> impl FnOnce(Result<Attr, Errno>) {
    move |result| match result {
        Ok(attr) => reply.attr(&fs.attr_ttl(&attr), &file_attr(&attr)),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn data<T: AsRef<[u8]>>(reply: ReplyData) -> impl FnOnce(Result<T, Errno>) {
    |result| match result {
        Ok(bytes) => reply.data(bytes.as_ref()),
        Err(error) => reply.error(errno(error)),
    }
}

/// Bytes for a buffer of `size`; how many there are, if it is 0.
pub fn sized(reply: ReplyXattr, size: u32) -> impl FnOnce(Result<Vec<u8>, Errno>) {
    move |result| match result {
        // At most 64 KiB.
        Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
        Ok(bytes) if bytes.len() > size as usize => reply.error(errno(Errno::RANGE)),
        Ok(bytes) => reply.data(&bytes),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) {
    |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn opened(fs: Arc<Fs>, reply: ReplyOpen) -> impl FnOnce(Result<Opened, Errno>) {
    move |result| match result {
        Ok(opened) => {
            let flags = open_flags(&opened);
            reply.opened(handle_out(fs.admit(opened)), flags);
        }
        Err(error) => reply.error(errno(error)),
    }
}

pub fn created(fs: Arc<Fs>, reply: ReplyCreate) -> impl FnOnce(Result<(Attr, Opened), Errno>) {
    move |result| match result {
        Ok((attr, opened)) => {
            let flags = open_flags(&opened);
            let handle = handle_out(fs.admit(opened));
            reply.created(&TTL, &file_attr(&attr), generation(), handle, flags);
        }
        Err(error) => reply.error(errno(error)),
    }
}

pub fn written(reply: ReplyWrite) -> impl FnOnce(Result<u32, Errno>) {
    |result| match result {
        Ok(len) => reply.written(len),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn place(reply: ReplyLseek) -> impl FnOnce(Result<i64, Errno>) {
    |result| match result {
        Ok(offset) => reply.offset(offset),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn tested(reply: ReplyLock) -> impl FnOnce(Result<Option<LockClaim>, Errno>) {
    |result| match result {
        Ok(found) => convert::found_lock(reply, found),
        Err(error) => reply.error(errno(error)),
    }
}

pub fn statistics(reply: ReplyStatfs) -> impl FnOnce(Result<StatFs, Errno>) {
    |result| match result {
        Ok(stat) => convert::statfs(reply, &stat),
        Err(error) => reply.error(errno(error)),
    }
}

/// As many entries as fit; the kernel asks again for the rest.
pub fn directory(mut reply: ReplyDirectory) -> impl FnOnce(Result<Vec<Listed>, Errno>) {
    |result| match result {
        Ok(entries) => {
            for entry in entries {
                let name = convert::os_str(&entry.name);
                if reply.add(node(entry.inode), entry.position, file_type(entry.kind), name) {
                    break;
                }
            }
            reply.ok();
        }
        Err(error) => reply.error(errno(error)),
    }
}

/// As `directory`, with attributes.
pub fn directory_plus(
    fs: Arc<Fs>,
    directory: InodeId,
    mut reply: ReplyDirectoryPlus,
) -> impl FnOnce(Result<Vec<Listed>, Errno>) {
    move |result| match result {
        Ok(entries) => {
            for entry in entries {
                let name = convert::os_str(&entry.name);
                let attr = convert::listed_attr(&entry);
                // One time for both.
                let ttl =
                    entry.attr.map_or(TTL, |attr| fs.listed_name_ttl(directory, name, &attr).min(fs.attr_ttl(&attr)));
                if reply.add(node(entry.inode), entry.position, name, &ttl, &attr, generation()) {
                    break;
                }
            }
            reply.ok();
        }
        Err(error) => reply.error(errno(error)),
    }
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.direct);
    flags
}

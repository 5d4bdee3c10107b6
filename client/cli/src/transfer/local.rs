//! Files of this machine, as one end of a copy.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dfs_proto::{FileKind, Timestamp};
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps};
use tokio::sync::mpsc;

use super::{
    CopyOptions, Found, Meta, OWNER_MAY_FILL, READ_BYTES, Reader, Source, Target, Writer, exists, temporary_name,
};
use crate::error::{Failure, Result};
use crate::users;

/// Pieces that the disk may be ahead of the network, for each file: 4 MiB.
const PIECES_AHEAD: usize = 4;

/// Entries that a listing may be ahead.
const ENTRIES_AHEAD: usize = 256;

#[derive(Clone, Copy)]
pub struct LocalTree;

impl LocalTree {
    /// Attributes of what the path leads to; a symlink is itself the answer unless `follow`.
    pub fn meta(path: &Path, follow: bool) -> Result<Meta> {
        let meta = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
        meta.map(|meta| of(&meta)).map_err(|error| Failure::local(path, &error))
    }
}

fn of(meta: &fs::Metadata) -> Meta {
    let kind = meta.file_type();
    Meta {
        kind: match kind {
            kind if kind.is_file() => FileKind::File,
            kind if kind.is_dir() => FileKind::Directory,
            kind if kind.is_symlink() => FileKind::Symlink,
            kind if kind.is_fifo() => FileKind::Fifo,
            kind if kind.is_socket() => FileKind::Socket,
            kind if kind.is_char_device() => FileKind::CharDevice,
            _ => FileKind::BlockDevice,
        },
        mode: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        size_bytes: meta.size(),
        atime: Timestamp { secs: meta.atime(), nanos: meta.atime_nsec() as u32 },
        mtime: Timestamp { secs: meta.mtime(), nanos: meta.mtime_nsec() as u32 },
    }
}

impl Source for LocalTree {
    type Node = PathBuf;
    type Reader = LocalReader;

    fn list(&self, node: &PathBuf) -> BoxStream<'static, Result<Found<PathBuf>>> {
        let (found, receiver) = mpsc::channel(ENTRIES_AHEAD);
        let path = node.clone();
        tokio::task::spawn_blocking(move || {
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(error) => {
                    let _ = found.blocking_send(Err(Failure::local(&path, &error)));
                    return;
                }
            };
            for entry in entries {
                let one = entry.map_err(|error| Failure::local(&path, &error)).and_then(|entry| {
                    let meta = entry.metadata().map_err(|error| Failure::local(&entry.path(), &error))?;
                    Ok(Found { name: entry.file_name().into_vec(), node: entry.path(), meta: of(&meta) })
                });
                // Nobody listens any more: the copy was interrupted.
                if found.blocking_send(one).is_err() {
                    return;
                }
            }
        });
        stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|one| (one, receiver)) }).boxed()
    }

    async fn read_link(&self, node: &PathBuf) -> Result<Vec<u8>> {
        match tokio::fs::read_link(node).await {
            Ok(target) => Ok(target.into_os_string().into_vec()),
            Err(error) => Err(Failure::local(node, &error)),
        }
    }

    async fn open(&self, node: &PathBuf, _meta: &Meta) -> Result<LocalReader> {
        let file = fs::File::open(node).map_err(|error| Failure::local(node, &error))?;
        Ok(LocalReader { pieces: read_pieces(file, node.display().to_string()) })
    }

    fn show(&self, node: &PathBuf) -> String {
        node.display().to_string()
    }
}

/// A file, or anything else that is read from front to end, read by a thread of its own.
pub struct LocalReader {
    pieces: mpsc::Receiver<Result<Bytes>>,
}

/// Standard input.
pub struct StdinReader;

impl StdinReader {
    pub fn start() -> LocalReader {
        LocalReader { pieces: read_pieces(io::stdin(), "standard input".into()) }
    }
}

fn read_pieces(mut input: impl Read + Send + 'static, shown: String) -> mpsc::Receiver<Result<Bytes>> {
    let (pieces, receiver) = mpsc::channel(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = Vec::with_capacity(READ_BYTES as usize);
            let piece = match input.by_ref().take(READ_BYTES).read_to_end(&mut piece) {
                Ok(0) => return,
                Ok(_) => Ok(Bytes::from(piece)),
                Err(error) => Err(Failure::io(&shown, &error)),
            };
            let failed = piece.is_err();
            if pieces.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

impl Reader for LocalReader {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        self.pieces.recv().await
    }
}

impl Target for LocalTree {
    type Dir = PathBuf;
    type Writer = LocalWriter;

    async fn make_dir(&self, dir: &PathBuf, name: &[u8], meta: &Meta) -> Result<PathBuf> {
        let path = dir.join(OsStr::from_bytes(name));
        let mode = u32::from(meta.mode & 0o777 | OWNER_MAY_FILL);
        match fs::DirBuilder::new().mode(mode).create(&path) {
            Ok(()) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(path),
            Err(error) => Err(Failure::local(&path, &error)),
        }
    }

    async fn make_link(&self, dir: &PathBuf, name: &[u8], link: &[u8], options: CopyOptions) -> Result {
        let path = dir.join(OsStr::from_bytes(name));
        let made = match std::os::unix::fs::symlink(OsStr::from_bytes(link), &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !options.force {
                    return Err(exists(&path.display().to_string()));
                }
                fs::remove_file(&path).and_then(|()| std::os::unix::fs::symlink(OsStr::from_bytes(link), &path))
            }
            made => made,
        };
        made.map_err(|error| Failure::local(&path, &error))
    }

    async fn begin(&self, dir: &PathBuf, name: &[u8], meta: &Meta, options: CopyOptions) -> Result<LocalWriter> {
        let path = dir.join(OsStr::from_bytes(name));
        match fs::metadata(&path) {
            Ok(there) if there.is_dir() => return Err(Failure::failed("is a directory").at(path.display())),
            Ok(_) if !options.force => return Err(exists(&path.display().to_string())),
            _ => {}
        }
        let temporary = dir.join(OsStr::from_bytes(&temporary_name(name)));
        let mode = u32::from(meta.mode & 0o777 | 0o200);
        let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&temporary);
        let file = file.map_err(|error| Failure::local(&path, &error))?;
        Ok(LocalWriter { file: Arc::new(file), temporary, path })
    }

    async fn finish_dir(&self, dir: &PathBuf, meta: &Meta, options: CopyOptions) -> Result {
        let finished = match options.preserve {
            true => keep_attrs(dir, meta),
            false => set_mode(dir, meta.mode & 0o777 & !users::umask()),
        };
        finished.map_err(|error| Failure::local(dir, &error))
    }
}

pub struct LocalWriter {
    file: Arc<fs::File>,
    temporary: PathBuf,
    path: PathBuf,
}

impl Writer for LocalWriter {
    async fn write(&mut self, offset: u64, bytes: Bytes) -> Result {
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, offset)).await;
        let written = written.unwrap_or_else(|error| Err(io::Error::other(error)));
        written.map_err(|error| Failure::local(&self.path, &error))
    }

    async fn finish(self, meta: &Meta, options: CopyOptions) -> Result {
        let finished = || -> io::Result<()> {
            if options.preserve {
                keep_attrs(&self.temporary, meta)?;
            } else if meta.mode & 0o200 == 0 {
                set_mode(&self.temporary, meta.mode & 0o777 & !users::umask())?;
            }
            rename(&self.temporary, &self.path, options.force)
        };
        if let Err(error) = finished() {
            let _ = fs::remove_file(&self.temporary);
            return Err(match error.kind() {
                io::ErrorKind::AlreadyExists => exists(&self.path.display().to_string()),
                _ => Failure::local(&self.path, &error),
            });
        }
        Ok(())
    }

    async fn abandon(self) {
        // Best effort: what failed has been told already, and the name says what is left.
        let _ = fs::remove_file(&self.temporary);
    }
}

fn rename(from: &Path, to: &Path, replace: bool) -> io::Result<()> {
    if replace {
        return fs::rename(from, to);
    }
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system that cannot: the check before the copy has to do.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::rename(from, to),
        done => Ok(done?),
    }
}

fn set_mode(path: &Path, mode: u16) -> io::Result<()> {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode.into()))
}

/// Owner (as far as we may), all permission bits, times.
fn keep_attrs(path: &Path, meta: &Meta) -> io::Result<()> {
    // Only root gives files away; everybody else keeps the rest, as `cp -p` does.
    match std::os::unix::fs::lchown(path, Some(meta.uid), Some(meta.gid)) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
        _ => {}
    }
    set_mode(path, meta.mode)?;
    let time = |at: Timestamp| Timespec { tv_sec: at.secs, tv_nsec: at.nanos.into() };
    let times = Timestamps { last_access: time(meta.atime), last_modification: time(meta.mtime) };
    Ok(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty())?)
}

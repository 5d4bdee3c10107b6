//! Files of the cluster, as one end of a copy.

use bytes::Bytes;
use dfs_client::{File, MakeOptions, OpenMode};
use dfs_proto::msg::meta::{NewNode, RenameMode};
use dfs_proto::{Attr, ErrorKind, FileKind, InodeId, Name, SetAttr, SetTime, limits};
use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::{
    CopyOptions, Found, Meta, OWNER_MAY_FILL, Pieces, READ_BYTES, Source, Target, Writer, exists, read_ahead,
    temporary_name,
};
use crate::error::{Failure, Result};
use crate::path::{DfsPath, parse_name};
use crate::remote::Remote;
use crate::users;

#[derive(Clone)]
pub struct ClusterTree {
    remote: Remote,
}

/// An inode to copy; the path is for messages.
#[derive(Clone)]
pub struct ClusterNode {
    pub inode: InodeId,
    pub path: DfsPath,
}

/// A directory to copy into.
#[derive(Clone)]
pub struct ClusterDir {
    pub inode: InodeId,
    pub path: DfsPath,
}

impl ClusterTree {
    pub fn new(remote: &Remote) -> ClusterTree {
        ClusterTree { remote: remote.clone() }
    }

    /// Several operands, or a destination typed with a trailing `/`, need a directory that is there.
    pub async fn check_destination(&self, destination: &DfsPath, operands: usize) -> Result {
        if operands < 2 && !destination.wants_directory() {
            return Ok(());
        }
        match self.remote.stat(destination).await?.kind {
            FileKind::Directory => Ok(()),
            _ => Err(Failure::of(ErrorKind::NotADirectory, "not a directory").at(destination)),
        }
    }

    /// Where a copy named `name` of something shall go: into `destination` if that is a directory,
    /// else to its place under its own last name.
    pub async fn destination(&self, destination: &DfsPath, name: Option<&[u8]>) -> Result<(ClusterDir, Vec<u8>)> {
        match self.remote.find(destination).await {
            Ok(Some(attr)) if attr.kind == FileKind::Directory => {
                let name =
                    name.ok_or_else(|| Failure::of(ErrorKind::IsADirectory, "is a directory").at(destination))?;
                Ok((ClusterDir { inode: attr.inode, path: destination.clone() }, name.to_vec()))
            }
            Ok(_) => {
                let (inode, name) = self.remote.place(destination).await?;
                let path = destination.split().map_or_else(DfsPath::root, |(above, _)| above);
                Ok((ClusterDir { inode, path }, name.as_bytes().to_vec()))
            }
            Err(failure) => Err(failure),
        }
    }

    fn join(dir: &ClusterDir, name: &[u8]) -> Result<(Name, DfsPath)> {
        let name = parse_name(name).map_err(|failure| failure.at(&dir.path))?;
        let path = dir.path.join(&name);
        Ok((name, path))
    }
}

impl From<&Attr> for Meta {
    fn from(attr: &Attr) -> Meta {
        Meta {
            kind: attr.kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            size_bytes: attr.size_bytes,
            atime: attr.atime,
            mtime: attr.mtime,
        }
    }
}

impl Source for ClusterTree {
    type Node = ClusterNode;
    type Reader = Pieces;

    fn list(&self, node: &ClusterNode) -> BoxStream<'static, Result<Found<ClusterNode>>> {
        struct Listing {
            remote: Remote,
            node: ClusterNode,
            page: std::vec::IntoIter<dfs_proto::msg::meta::DirEntry>,
            after: u64,
            end: bool,
        }
        let start = Listing {
            remote: self.remote.clone(),
            node: node.clone(),
            page: Vec::new().into_iter(),
            after: 0,
            end: false,
        };
        stream::unfold(start, |mut at| async {
            loop {
                if let Some(entry) = at.page.next() {
                    // Without attributes the entry was removed while the page was made.
                    let Some(attr) = entry.attr else { continue };
                    let node = ClusterNode { inode: entry.inode, path: at.node.path.join(&entry.name) };
                    let found = Found { name: entry.name.into(), node, meta: Meta::from(&attr) };
                    return Some((Ok(found), at));
                }
                if at.end {
                    return None;
                }
                let (caller, limit) = (&at.remote.caller, limits::READDIR_PAGE_MAX);
                match at.remote.dfs.read_dir(caller, at.node.inode, at.after, limit, true).await {
                    Ok(page) => {
                        at.end = page.end || page.entries.is_empty();
                        at.after = page.entries.last().map_or(at.after, |last| last.cookie);
                        at.page = page.entries.into_iter();
                    }
                    Err(error) => {
                        at.end = true;
                        return Some((Err(Failure::from(error).at(&at.node.path)), at));
                    }
                }
            }
        })
        .boxed()
    }

    async fn read_link(&self, node: &ClusterNode) -> Result<Vec<u8>> {
        let target = self.remote.dfs.readlink(&self.remote.caller, node.inode).await;
        target.map_err(|error| Failure::from(error).at(&node.path))
    }

    async fn open(&self, node: &ClusterNode, meta: &Meta) -> Result<Pieces> {
        let file = self.remote.dfs.open(&self.remote.caller, node.inode, OpenMode::READ).await;
        let file = file.map_err(|error| Failure::from(error).at(&node.path))?;
        Ok(read_ahead(&file, 0, meta.size_bytes, READ_BYTES))
    }

    fn show(&self, node: &ClusterNode) -> String {
        node.path.to_string()
    }
}

impl Target for ClusterTree {
    type Dir = ClusterDir;
    type Writer = ClusterWriter;

    async fn make_dir(&self, dir: &ClusterDir, name: &[u8], meta: &Meta) -> Result<ClusterDir> {
        let (name, path) = ClusterTree::join(dir, name)?;
        let Remote { dfs, caller } = &self.remote;
        let mode = meta.mode & 0o777 & !users::umask() | OWNER_MAY_FILL;
        let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
        match dfs.make(caller, dir.inode, &name, NewNode::Directory, mode, options).await {
            Ok(made) => Ok(ClusterDir { inode: made.attr.inode, path }),
            Err(error) if error.kind == ErrorKind::Exists => match self.remote.stat(&path).await? {
                there if there.kind == FileKind::Directory => Ok(ClusterDir { inode: there.inode, path }),
                _ => Err(Failure::of(ErrorKind::NotADirectory, "exists and is not a directory").at(path)),
            },
            Err(error) => Err(Failure::from(error).at(path)),
        }
    }

    async fn make_link(&self, dir: &ClusterDir, name: &[u8], link: &[u8], options: CopyOptions) -> Result {
        let (name, path) = ClusterTree::join(dir, name)?;
        let Remote { dfs, caller } = &self.remote;
        let exclusive = MakeOptions { exclusive: true, ..MakeOptions::default() };
        let link = NewNode::Symlink(link.to_vec());
        let made = match dfs.make(caller, dir.inode, &name, link.clone(), 0o777, exclusive).await {
            Err(error) if error.kind == ErrorKind::Exists => {
                if !options.force {
                    return Err(exists(&path.to_string()));
                }
                dfs.unlink(caller, dir.inode, &name).await.map_err(|error| Failure::from(error).at(&path))?;
                dfs.make(caller, dir.inode, &name, link, 0o777, exclusive).await
            }
            made => made,
        };
        made.map(|_| ()).map_err(|error| Failure::from(error).at(path))
    }

    async fn begin(&self, dir: &ClusterDir, name: &[u8], meta: &Meta, options: CopyOptions) -> Result<ClusterWriter> {
        let (name, path) = ClusterTree::join(dir, name)?;
        match self.remote.lookup(dir.inode, &name).await.map_err(|failure| failure.at(&path))? {
            Some(there) if there.kind == FileKind::Directory => {
                return Err(Failure::of(ErrorKind::IsADirectory, "is a directory").at(path));
            }
            Some(_) if !options.force => return Err(exists(&path.to_string())),
            _ => {}
        }
        let (temporary, temporary_path) = ClusterTree::join(dir, &temporary_name(name.as_bytes()))?;
        let Remote { dfs, caller } = &self.remote;
        let mode = meta.mode & 0o777 & !users::umask();
        let exclusive = MakeOptions { exclusive: true, open: Some(OpenMode::WRITE), ..MakeOptions::default() };
        let at = |error| Failure::from(error).at(&temporary_path);
        let made = match dfs.make(caller, dir.inode, &temporary, NewNode::File, mode, exclusive).await {
            // Left by a copy that was cut off. A new inode, so that the other copy, should it still
            // run, cannot mix its bytes with ours.
            Err(error) if error.kind == ErrorKind::Exists => {
                dfs.unlink(caller, dir.inode, &temporary).await.map_err(at)?;
                dfs.make(caller, dir.inode, &temporary, NewNode::File, mode, exclusive).await.map_err(at)?
            }
            made => made.map_err(at)?,
        };
        let inode = made.attr.inode;
        let file = match made.file {
            Some(file) => file,
            None => dfs.open(caller, inode, OpenMode::WRITE).await.map_err(at)?,
        };
        Ok(ClusterWriter { remote: self.remote.clone(), dir: dir.inode, temporary, name, path, file })
    }

    async fn finish_dir(&self, dir: &ClusterDir, meta: &Meta, options: CopyOptions) -> Result {
        let finished = async {
            if options.preserve {
                return keep_attrs(&self.remote, dir.inode, meta).await;
            }
            let mode = SetAttr { mode: Some(meta.mode & 0o777 & !users::umask()), ..SetAttr::default() };
            self.remote.dfs.setattr(&self.remote.caller, dir.inode, mode, None).await?;
            Ok(())
        };
        finished.await.map_err(|failure: Failure| failure.at(&dir.path))
    }
}

pub struct ClusterWriter {
    remote: Remote,
    dir: InodeId,
    temporary: Name,
    name: Name,
    path: DfsPath,
    file: File,
}

impl Writer for ClusterWriter {
    async fn write(&mut self, offset: u64, bytes: Bytes) -> Result {
        self.file.write(offset, bytes).await.map_err(|error| Failure::from(error).at(&self.path))
    }

    async fn share(&mut self, source: &File, offset: u64, len: u64) -> Result<Option<u64>> {
        let shared = self.file.copy_from(&self.remote.caller, source, offset, offset, len).await;
        shared.map(Some).map_err(|error| Failure::from(error).at(&self.path))
    }

    async fn finish(self, meta: &Meta, options: CopyOptions) -> Result {
        let ClusterWriter { remote, dir, temporary, name, path, file } = self;
        let inode = file.inode();
        let finished = async {
            // Durable first: the name must not point to bytes that a power cut can take away.
            file.sync().await?;
            file.close().await?;
            if options.preserve {
                keep_attrs(&remote, inode, meta).await?;
            }
            let mode = if options.force { RenameMode::Replace } else { RenameMode::NoReplace };
            remote.dfs.rename(&remote.caller, dir, &temporary, dir, &name, mode).await?;
            Ok(())
        };
        let finished: Result = finished.await;
        if finished.is_err() {
            let _ = remote.dfs.unlink(&remote.caller, dir, &temporary).await;
        }
        finished.map_err(|failure| match failure.wire_kind() {
            Some(ErrorKind::Exists) => exists(&path.to_string()),
            _ => failure.at(path),
        })
    }

    async fn abandon(self) {
        // Unlinked before the close, so that nobody waits for bytes that are thrown away. Best effort:
        // what failed has been told already, and the name says what is left.
        let _ = self.remote.dfs.unlink(&self.remote.caller, self.dir, &self.temporary).await;
        let _ = self.file.close().await;
    }
}

/// Owner (as far as we may), all permission bits, times.
async fn keep_attrs(remote: &Remote, inode: InodeId, meta: &Meta) -> Result {
    let owner = SetAttr { uid: Some(meta.uid), gid: Some(meta.gid), ..SetAttr::default() };
    match remote.dfs.setattr(&remote.caller, inode, owner, None).await {
        Err(error) if !matches!(error.kind, ErrorKind::NotPermitted | ErrorKind::AccessDenied) => {
            return Err(error.into());
        }
        _ => {}
    }
    let rest = SetAttr {
        mode: Some(meta.mode),
        atime: Some(SetTime::At(meta.atime)),
        mtime: Some(SetTime::At(meta.mtime)),
        ..SetAttr::default()
    };
    remote.dfs.setattr(&remote.caller, inode, rest, None).await?;
    Ok(())
}

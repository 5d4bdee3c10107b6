//! The cluster by paths, on behalf of one caller: what the file verbs share.

use dfs_client::Dfs;
use dfs_proto::msg::meta::DirEntry;
use dfs_proto::{Attr, Caller, ErrorKind, FileKind, InodeId, Name, limits};

use crate::error::{Failure, Result};
use crate::path::DfsPath;

#[derive(Clone)]
pub struct Remote {
    pub dfs: Dfs,
    pub caller: Caller,
}

impl From<dfs_client::Error> for Failure {
    fn from(error: dfs_client::Error) -> Failure {
        let failure = Failure::of(error.kind, error.to_string());
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

impl Remote {
    pub fn new(dfs: Dfs, caller: Caller) -> Remote {
        Remote { dfs, caller }
    }

    /// Flushes what is left and ends the session.
    pub async fn close(self) -> Result {
        Ok(self.dfs.shutdown().await?)
    }

    /// Attributes of what the path leads to, symlinks followed.
    pub async fn stat(&self, path: &DfsPath) -> Result<Attr> {
        self.resolve(path, true).await.map_err(|failure| failure.at(path))
    }

    /// As `stat`, but a symlink at the end is itself the answer.
    pub async fn lstat(&self, path: &DfsPath) -> Result<Attr> {
        self.resolve(path, false).await.map_err(|failure| failure.at(path))
    }

    /// As `stat`, with `None` for what does not exist.
    pub async fn find(&self, path: &DfsPath) -> Result<Option<Attr>> {
        match self.stat(path).await {
            Ok(attr) => Ok(Some(attr)),
            Err(failure) if failure.wire_kind() == Some(ErrorKind::NotFound) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The directory that the path's last name is in, and that name. Refused for the root.
    pub async fn place(&self, path: &DfsPath) -> Result<(InodeId, Name)> {
        let Some((above, name)) = path.split() else {
            return Err(Failure::of(ErrorKind::InvalidArgument, "not possible with the root directory").at(path));
        };
        let parent = self.resolve(&above, true).await.map_err(|failure| failure.at(path))?;
        if parent.kind != FileKind::Directory {
            return Err(Failure::of(ErrorKind::NotADirectory, "not a directory").at(above));
        }
        Ok((parent.inode, name.clone()))
    }

    pub async fn lookup(&self, parent: InodeId, name: &Name) -> Result<Option<Attr>> {
        match self.dfs.lookup(&self.caller, parent, name).await {
            Ok(attr) => Ok(Some(attr)),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The entries of a directory, page by page.
    pub fn list(&self, directory: InodeId, attrs: bool) -> Listing<'_> {
        Listing { remote: self, directory, attrs, after: 0, end: false }
    }

    /// Everything at and below `path`, a directory before what is in it. Symlinks are not followed,
    /// except `path` itself where `follow`.
    pub async fn walk(&self, path: &DfsPath, follow: bool) -> Result<Walk<'_>> {
        let attr = if follow { self.stat(path).await? } else { self.lstat(path).await? };
        Ok(Walk { remote: self, start: Some((path.clone(), attr)), stack: Vec::new() })
    }

    async fn resolve(&self, path: &DfsPath, follow: bool) -> Result<Attr> {
        let bytes = path.to_bytes();
        let attr = match follow || path.wants_directory() {
            true => self.dfs.resolve(&self.caller, bytes).await?,
            false => self.dfs.resolve_nofollow(&self.caller, bytes).await?,
        };
        if path.wants_directory() && attr.kind != FileKind::Directory {
            return Err(Failure::of(ErrorKind::NotADirectory, "not a directory"));
        }
        Ok(attr)
    }
}

/// Where a listing stands. Entries may come and go meanwhile; those that stay are seen once.
pub struct Listing<'a> {
    remote: &'a Remote,
    directory: InodeId,
    attrs: bool,
    after: u64,
    end: bool,
}

impl Listing<'_> {
    /// The next entries, or `None` behind the last.
    pub async fn next(&mut self) -> Result<Option<Vec<DirEntry>>> {
        if self.end {
            return Ok(None);
        }
        let limit = limits::READDIR_PAGE_MAX;
        let page = self.remote.dfs.read_dir(&self.remote.caller, self.directory, self.after, limit, self.attrs).await?;
        self.end = page.end || page.entries.is_empty();
        if let Some(last) = page.entries.last() {
            self.after = last.cookie;
        }
        Ok(Some(page.entries))
    }
}

/// A walk over a tree, in no more memory than one page for each level.
pub struct Walk<'a> {
    remote: &'a Remote,
    start: Option<(DfsPath, Attr)>,
    stack: Vec<Level<'a>>,
}

struct Level<'a> {
    path: DfsPath,
    listing: Listing<'a>,
    page: std::vec::IntoIter<DirEntry>,
}

/// One step of a walk: where, what, and how far below the start.
pub struct Visit {
    pub path: DfsPath,
    pub attr: Attr,
    pub depth: usize,
}

impl Walk<'_> {
    /// The next inode, or `None` at the end. After an error the walk goes on behind what failed.
    pub async fn next(&mut self) -> Result<Option<Visit>> {
        if let Some((path, attr)) = self.start.take() {
            self.enter(&path, &attr);
            return Ok(Some(Visit { path, attr, depth: 0 }));
        }
        loop {
            let depth = self.stack.len();
            let Some(level) = self.stack.last_mut() else { return Ok(None) };
            let Some(entry) = level.page.next() else {
                match level.listing.next().await {
                    Ok(Some(page)) => level.page = page.into_iter(),
                    Ok(None) => {
                        self.stack.pop();
                    }
                    Err(failure) => {
                        let path = level.path.clone();
                        self.stack.pop();
                        return Err(failure.at(path));
                    }
                }
                continue;
            };
            let path = level.path.join(&entry.name);
            let attr = match entry.attr {
                Some(attr) => attr,
                // Removed since the page was read, unless the answer says otherwise.
                None => match self.remote.dfs.getattr(&self.remote.caller, entry.inode).await {
                    Ok(attr) => attr,
                    Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Stale) => continue,
                    Err(error) => return Err(Failure::from(error).at(path)),
                },
            };
            self.enter(&path, &attr);
            return Ok(Some(Visit { path, attr, depth }));
        }
    }

    /// Goes round what lies below the directory just returned.
    pub fn skip_below(&mut self, step: &Visit) {
        if self.stack.last().is_some_and(|level| level.path == step.path && step.attr.kind == FileKind::Directory) {
            self.stack.pop();
        }
    }

    fn enter(&mut self, path: &DfsPath, attr: &Attr) {
        if attr.kind == FileKind::Directory {
            let listing = self.remote.list(attr.inode, true);
            self.stack.push(Level { path: path.clone(), listing, page: Vec::new().into_iter() });
        }
    }
}

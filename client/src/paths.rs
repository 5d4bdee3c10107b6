//! Paths: what the command line and tests say instead of inode numbers.

use std::collections::VecDeque;

use bytes::Bytes;
use dfs_proto::limits::{PATH_MAX, READDIR_PAGE_MAX};
use dfs_proto::msg::meta::{DirEntry, NewNode};
use dfs_proto::{Attr, Caller, ErrorKind, FileKind, InodeId, Name};

use crate::dfs::Dfs;
use crate::error::{Error, Result};
use crate::file::OpenMode;
use crate::namespace::MakeOptions;

/// Symlinks followed in one path, as Linux has it.
const SYMLINKS_MAX: usize = 40;

impl Dfs {
    /// What an absolute path leads to, symlinks followed (at most 40).
    pub async fn resolve(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<Attr> {
        Walker::new(self, caller, path.as_ref())?.finish(true).await
    }

    /// As `resolve`, but a symlink at the end is not followed.
    pub async fn resolve_nofollow(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<Attr> {
        let path = path.as_ref();
        // A slash at the end asks for a directory, so for what the symlink leads to.
        Walker::new(self, caller, path)?.finish(path.ends_with(b"/")).await
    }

    /// The directory that holds the last component, and that component, which need not exist. The
    /// root and `..` have no such name: `InvalidArgument`.
    pub async fn parent_and_name(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<(InodeId, Name)> {
        let path = path.as_ref();
        let mut walker = Walker::new(self, caller, path)?;
        let Some(last) = walker.left.pop_back() else {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{} has no name of its own", shown(path))));
        };
        let name = Name::new(last).map_err(|error| Error::from(error).context(shown(path)))?;
        let parent = walker.finish(true).await?;
        require_directory(&parent, path)?;
        Ok((parent.inode, name))
    }

    /// `mkdir -p`.
    pub async fn mkdir_all(&self, caller: &Caller, path: impl AsRef<[u8]>, mode: u16) -> Result<Attr> {
        let path = path.as_ref();
        let mut at = self.getattr(caller, InodeId::ROOT).await?;
        let mut reached = Vec::new();
        for component in components(path)? {
            reached.push(b'/');
            reached.extend_from_slice(&component);
            at = match self.resolve(caller, &reached).await {
                Ok(attr) => attr,
                Err(error) if error.kind == ErrorKind::NotFound => {
                    let name = Name::new(component)?;
                    let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
                    match self.make(caller, at.inode, &name, NewNode::Directory, mode, options).await {
                        Ok(made) => made.attr,
                        // Somebody else was faster.
                        Err(error) if error.kind == ErrorKind::Exists => self.resolve(caller, &reached).await?,
                        Err(error) => return Err(error.context(shown(&reached))),
                    }
                }
                Err(error) => return Err(error),
            };
            require_directory(&at, &reached)?;
        }
        Ok(at)
    }

    /// Everything at and below an inode, parents before children, symlinks not followed.
    pub fn walk(&self, caller: &Caller, start: &Attr) -> Walk {
        let start = WalkEntry { path: Vec::new(), attr: start.clone() };
        Walk { dfs: self.clone(), caller: caller.clone(), start: Some(start), into: None, open: Vec::new() }
    }

    /// The whole file. For small ones: it is held in memory.
    pub async fn read_file(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<Bytes> {
        let path = path.as_ref();
        let attr = self.resolve(caller, path).await?;
        let file = self.open(caller, attr.inode, OpenMode::READ).await.map_err(|error| error.context(shown(path)))?;
        let len = usize::try_from(file.attr().size_bytes).unwrap_or(usize::MAX);
        let bytes = file.read(0, len).await?;
        file.close().await?;
        Ok(bytes)
    }

    /// Replaces the file's content, making the file with mode 0644 if there is none.
    pub async fn write_file(&self, caller: &Caller, path: impl AsRef<[u8]>, bytes: Bytes) -> Result<Attr> {
        let (parent, name) = self.parent_and_name(caller, path).await?;
        let options = MakeOptions { open: Some(OpenMode::WRITE), ..MakeOptions::default() };
        let made = self.make(caller, parent, &name, NewNode::File, 0o644, options).await?;
        let file = made.file.ok_or_else(|| Error::new(ErrorKind::Internal, "the new file was not opened"))?;
        if !made.created && made.attr.size_bytes > 0 {
            file.set_size(0).await?;
        }
        file.write(0, bytes).await?;
        file.flush().await?;
        let attr = file.attr();
        file.close().await?;
        Ok(attr)
    }
}

/// One path on its way to an inode.
struct Walker<'a> {
    dfs: &'a Dfs,
    caller: &'a Caller,
    path: &'a [u8],
    /// Components still to take.
    left: VecDeque<Vec<u8>>,
}

impl<'a> Walker<'a> {
    fn new(dfs: &'a Dfs, caller: &'a Caller, path: &'a [u8]) -> Result<Walker<'a>> {
        Ok(Walker { dfs, caller, path, left: components(path)?.into() })
    }

    async fn finish(mut self, follow_last: bool) -> Result<Attr> {
        let (dfs, caller) = (self.dfs, self.caller);
        let failed = |error: Error| error.context(shown(self.path));
        let mut at = dfs.getattr(caller, InodeId::ROOT).await.map_err(failed)?;
        let mut followed = 0;
        while let Some(component) = self.left.pop_front() {
            require_directory(&at, self.path)?;
            if component == b".." {
                // One entry is enough: the page tells the parent.
                let parent = dfs.read_dir(caller, at.inode, 0, 1, false).await.map_err(failed)?.parent;
                at = dfs.getattr(caller, parent).await.map_err(failed)?;
                continue;
            }
            let name = Name::new(component).map_err(|error| failed(error.into()))?;
            let next = dfs.lookup(caller, at.inode, &name).await.map_err(failed)?;
            if next.kind != FileKind::Symlink || (self.left.is_empty() && !follow_last) {
                at = next;
                continue;
            }
            followed += 1;
            if followed > SYMLINKS_MAX {
                let message = format!("{}: more than {SYMLINKS_MAX} symlinks", shown(self.path));
                return Err(Error::new(ErrorKind::TooManySymlinks, message));
            }
            let target = dfs.readlink(caller, next.inode).await.map_err(failed)?;
            if target.starts_with(b"/") {
                at = dfs.getattr(caller, InodeId::ROOT).await.map_err(failed)?;
            }
            for component in split(&target).rev() {
                self.left.push_front(component);
            }
        }
        if self.path.ends_with(b"/") {
            require_directory(&at, self.path)?;
        }
        Ok(at)
    }
}

/// The components of an absolute path, without `.` and empty ones.
fn components(path: &[u8]) -> Result<Vec<Vec<u8>>> {
    if path.len() > PATH_MAX {
        return Err(Error::new(ErrorKind::NameTooLong, format!("a path has at most {PATH_MAX} bytes")));
    }
    if !path.starts_with(b"/") {
        let message = format!("{} is not an absolute path", shown(path));
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    Ok(split(path).collect())
}

fn split(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec)
}

fn require_directory(attr: &Attr, path: &[u8]) -> Result<()> {
    if attr.kind == FileKind::Directory {
        return Ok(());
    }
    Err(Error::new(ErrorKind::NotADirectory, format!("{}: not a directory", shown(path))))
}

fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().flat_map(char::escape_debug).collect()
}

/// One step of `Dfs::walk`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalkEntry {
    /// From the start of the walk, without a leading `/`; empty for the start itself.
    pub path: Vec<u8>,
    pub attr: Attr,
}

/// A walk under way: `while let Some(entry) = walk.next().await? { .. }`.
pub struct Walk {
    dfs: Dfs,
    caller: Caller,
    start: Option<WalkEntry>,
    /// The directory returned last, which is gone into next.
    into: Option<Level>,
    /// From the start down to where the walk is; memory is one page of names for each.
    open: Vec<Level>,
}

struct Level {
    path: Vec<u8>,
    inode: InodeId,
    page: VecDeque<DirEntry>,
    after: u64,
    end: bool,
}

impl Walk {
    /// The next entry; `None` at the end. What vanishes meanwhile is passed over.
    pub async fn next(&mut self) -> Result<Option<WalkEntry>> {
        if let Some(start) = self.start.take() {
            self.into = Level::of(&start);
            return Ok(Some(start));
        }
        self.open.extend(self.into.take());
        while let Some(level) = self.open.last_mut() {
            let Some(entry) = level.next(&self.dfs, &self.caller).await? else {
                self.open.pop();
                continue;
            };
            let mut path = level.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name.as_bytes());
            let attr = match entry.attr {
                Some(attr) => attr,
                None => match self.dfs.getattr(&self.caller, entry.inode).await {
                    Ok(attr) => attr,
                    Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Stale) => continue,
                    Err(error) => return Err(error),
                },
            };
            let entry = WalkEntry { path, attr };
            self.into = Level::of(&entry);
            return Ok(Some(entry));
        }
        Ok(None)
    }

    /// Does not go into the directory that `next` returned last.
    pub fn skip(&mut self) {
        self.into = None;
    }
}

impl Level {
    fn of(entry: &WalkEntry) -> Option<Level> {
        (entry.attr.kind == FileKind::Directory).then(|| Level {
            path: entry.path.clone(),
            inode: entry.attr.inode,
            page: VecDeque::new(),
            after: 0,
            end: false,
        })
    }

    async fn next(&mut self, dfs: &Dfs, caller: &Caller) -> Result<Option<DirEntry>> {
        while self.page.is_empty() && !self.end {
            let page = match dfs.read_dir(caller, self.inode, self.after, READDIR_PAGE_MAX, true).await {
                Ok(page) => page,
                Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Stale) => return Ok(None),
                Err(error) => return Err(error.context(shown(&self.path))),
            };
            self.end = page.end || page.entries.is_empty();
            self.after = page.entries.last().map_or(self.after, |entry| entry.cookie);
            self.page = page.entries.into();
        }
        Ok(self.page.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_absolute_and_bounded() {
        assert_eq!(components(b"/a//b/./c/").unwrap(), [b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]);
        assert!(components(b"/").unwrap().is_empty());
        assert_eq!(components(b"a/b").unwrap_err().kind, ErrorKind::InvalidArgument);
        assert_eq!(components(&[b'/'; PATH_MAX + 1]).unwrap_err().kind, ErrorKind::NameTooLong);
    }
}

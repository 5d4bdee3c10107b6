//! Paths: what the command line and tests say instead of inode numbers.

use bytes::Bytes;
use dfs_proto::{Attr, Caller, InodeId, Name};

use crate::dfs::Dfs;
use crate::error::Result;

/// One step of `Dfs::walk`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalkEntry {
    /// From the start of the walk, without a leading `/`; empty for the start itself.
    pub path: Vec<u8>,
    pub attr: Attr,
}

impl Dfs {
    /// What an absolute path leads to, symlinks followed (at most 40).
    pub async fn resolve(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = (caller, path.as_ref());
        unimplemented!()
    }

    /// As `resolve`, but a symlink at the end is not followed.
    pub async fn resolve_nofollow(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = (caller, path.as_ref());
        unimplemented!()
    }

    /// The directory that holds the last component, and that component, which need not exist.
    pub async fn parent_and_name(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<(InodeId, Name)> {
        let _ = (caller, path.as_ref());
        unimplemented!()
    }

    /// `mkdir -p`.
    pub async fn mkdir_all(&self, caller: &Caller, path: impl AsRef<[u8]>, mode: u16) -> Result<Attr> {
        let _ = (caller, path.as_ref(), mode);
        unimplemented!()
    }

    /// Everything at and below an inode, parents before children, symlinks not followed, names in byte
    /// order. `visit` returns whether to go on; into a directory for which it said so.
    pub async fn walk(
        &self,
        caller: &Caller,
        start: &Attr,
        visit: impl AsyncFnMut(WalkEntry) -> Result<bool>,
    ) -> Result<()> {
        let _ = (caller, start, visit);
        unimplemented!()
    }

    /// The whole file. For small ones: it is held in memory.
    pub async fn read_file(&self, caller: &Caller, path: impl AsRef<[u8]>) -> Result<Bytes> {
        let _ = (caller, path.as_ref());
        unimplemented!()
    }

    /// Replaces the file's content, making the file with mode 0644 if there is none.
    pub async fn write_file(&self, caller: &Caller, path: impl AsRef<[u8]>, bytes: Bytes) -> Result<Attr> {
        let _ = (caller, path.as_ref(), bytes);
        unimplemented!()
    }
}

//! Names and attributes.

use dfs_proto::msg::meta::{DirPage, NewNode, RenameMode, StatFs};
use dfs_proto::{Attr, Caller, InodeId, Name, SetAttr};

use crate::dfs::Dfs;
use crate::error::Result;
use crate::file::{File, OpenMode};

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MakeOptions {
    /// Fail with `Exists` instead of returning the file that is there.
    pub exclusive: bool,
    /// Open the new file in the same step.
    pub open: Option<OpenMode>,
    /// Copies of its chunks; the cluster's default if `None`.
    pub replication: Option<u8>,
}

pub struct Made {
    pub attr: Attr,
    /// `false` if it was there before.
    pub created: bool,
    pub file: Option<File>,
}

impl Dfs {
    pub async fn lookup(&self, caller: &Caller, parent: InodeId, name: &Name) -> Result<Attr> {
        let _ = (caller, parent, name);
        unimplemented!()
    }

    pub async fn getattr(&self, caller: &Caller, inode: InodeId) -> Result<Attr> {
        let _ = (caller, inode);
        unimplemented!()
    }

    /// Changes attributes. `handle` is the open file through which the caller asks, which carries the
    /// permission to change the size.
    pub async fn setattr(&self, caller: &Caller, inode: InodeId, set: SetAttr, handle: Option<&File>) -> Result<Attr> {
        let _ = (caller, inode, set, handle);
        unimplemented!()
    }

    /// Whether `caller` may access with these bits (4 read, 2 write, 1 execute).
    pub async fn access(&self, caller: &Caller, inode: InodeId, mask: u8) -> Result<()> {
        let _ = (caller, inode, mask);
        unimplemented!()
    }

    /// Makes a file, directory, symlink or special file; `mode` with the umask already taken away.
    pub async fn make(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &Name,
        node: NewNode,
        mode: u16,
        options: MakeOptions,
    ) -> Result<Made> {
        let _ = (caller, parent, name, node, mode, options);
        unimplemented!()
    }

    pub async fn link(&self, caller: &Caller, inode: InodeId, parent: InodeId, name: &Name) -> Result<Attr> {
        let _ = (caller, inode, parent, name);
        unimplemented!()
    }

    /// Removes a name. A file that is open here lives on until its last handle closes. The inode as it
    /// is afterwards.
    pub async fn unlink(&self, caller: &Caller, parent: InodeId, name: &Name) -> Result<Option<Attr>> {
        let _ = (caller, parent, name);
        unimplemented!()
    }

    pub async fn rmdir(&self, caller: &Caller, parent: InodeId, name: &Name) -> Result<()> {
        let _ = (caller, parent, name);
        unimplemented!()
    }

    /// Renames; what the new name pointed to before, if anything.
    pub async fn rename(
        &self,
        caller: &Caller,
        from_parent: InodeId,
        from_name: &Name,
        to_parent: InodeId,
        to_name: &Name,
        mode: RenameMode,
    ) -> Result<Option<Attr>> {
        let _ = (caller, from_parent, from_name, to_parent, to_name, mode);
        unimplemented!()
    }

    pub async fn readlink(&self, caller: &Caller, inode: InodeId) -> Result<Vec<u8>> {
        let _ = (caller, inode);
        unimplemented!()
    }

    /// Entries after the cookie `after` (0 to start), at most `limit` (and `limits::READDIR_PAGE_MAX`).
    pub async fn read_dir(
        &self,
        caller: &Caller,
        inode: InodeId,
        after: u64,
        limit: u32,
        attrs: bool,
    ) -> Result<DirPage> {
        let _ = (caller, inode, after, limit, attrs);
        unimplemented!()
    }

    pub async fn open(&self, caller: &Caller, inode: InodeId, mode: OpenMode) -> Result<File> {
        let _ = (caller, inode, mode);
        unimplemented!()
    }

    pub async fn statfs(&self) -> Result<StatFs> {
        unimplemented!()
    }
}

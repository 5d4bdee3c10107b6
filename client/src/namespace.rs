//! Names and attributes.

use dfs_proto::msg::meta::{Answer, DirPage, NewNode, Op, OpReply, Query, RenameMode, StatFs};
use dfs_proto::{Attr, Caller, InodeId, Name, SetAttr, XattrKinds, XattrMode, XattrName, XattrValue};

use crate::dfs::Dfs;
use crate::error::{Result, unexpected_answer};
use crate::file::{File, OpenMode};
use crate::write::file::is_part;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MakeOptions {
    /// Fail with `Exists` instead of returning the file that is there.
    pub exclusive: bool,
    /// Open the file in the same step.
    pub open: Option<OpenMode>,
    /// Copies of its chunks; the cluster's default if `None`.
    pub replication: Option<u8>,
    /// Taken away from the mode, unless the parent has a default ACL.
    pub umask: u16,
}

pub struct Made {
    pub attr: Attr,
    /// `false` if it was there before.
    pub created: bool,
    pub file: Option<File>,
}

impl Dfs {
    pub async fn lookup(&self, caller: &Caller, parent: InodeId, name: &Name) -> Result<Attr> {
        Ok(self.client.merged(self.client.lookup(caller, parent, name).await?))
    }

    pub async fn getattr(&self, caller: &Caller, inode: InodeId) -> Result<Attr> {
        Ok(self.client.merged(self.client.getattr(caller, inode).await?))
    }

    /// Changes attributes. `handle` is the open file through which the caller asks, which carries the
    /// permission to change the size.
    pub async fn setattr(&self, caller: &Caller, inode: InodeId, set: SetAttr, handle: Option<&File>) -> Result<Attr> {
        let touches_bytes = set.size_bytes.is_some() || set.mtime.is_some();
        if set.size_bytes.is_none() && self.client.private.holds(inode) {
            return self.set_private_attr(caller, inode, set).await;
        }
        if let Some(file) = self.client.files.get(inode).filter(|_| touches_bytes) {
            // Bytes written before must not undo it by being committed after it.
            let through_handle = set.size_bytes.is_some() && handle.is_some_and(|handle| handle.mode().write);
            return self.client.set_size(caller, &file, set, through_handle).await;
        }
        loop {
            match self.client.mutate(caller, Op::SetAttr { inode, set: set.clone(), grant: None }).await? {
                OpReply::Attr(attr) if is_part(&set, &attr) => {}
                OpReply::Attr(attr) => return Ok(self.client.merged(attr)),
                _ => return Err(unexpected_answer("SetAttr")),
            }
        }
    }

    /// Whether `caller` may access with these bits (4 read, 2 write, 1 execute).
    pub async fn access(&self, caller: &Caller, inode: InodeId, mask: u8) -> Result<()> {
        self.attr_answer(caller, Query::Access { inode, mask }).await.map(|_| ())
    }

    /// Makes a file, directory, symlink or special file.
    pub async fn make(
        &self,
        caller: &Caller,
        parent: InodeId,
        name: &Name,
        node: NewNode,
        mode: u16,
        options: MakeOptions,
    ) -> Result<Made> {
        let op = Op::MakeMasked {
            parent,
            name: name.clone(),
            node,
            mode,
            umask: options.umask,
            exclusive: options.exclusive,
            open: options.open.map(|open| (open.read, open.write)),
            replication: options.replication,
            private: false,
        };
        let OpReply::Made { attr, created, grant } = self.client.mutate(caller, op).await? else {
            return Err(unexpected_answer("Make"));
        };
        let file = match (options.open, grant) {
            (Some(mode), Some(grant)) => Some(File::new(self.client.opened(caller, &attr, &grant, mode))),
            // The namenode has not heard of it yet; or it has by now, and may be asked.
            (Some(mode), None) => match self.client.opened_privately(caller, &attr, mode) {
                Some(handle) => Some(File::new(handle)),
                None => Some(File::new(self.client.open(caller, attr.inode, mode).await?)),
            },
            (None, _) => None,
        };
        Ok(Made { attr: self.client.merged(attr), created, file })
    }

    /// Sets an extended attribute; an ACL in the kernel's binary form.
    pub async fn set_xattr(
        &self,
        caller: &Caller,
        inode: InodeId,
        name: &XattrName,
        value: XattrValue,
        mode: XattrMode,
    ) -> Result<Attr> {
        if name.kind() == XattrKinds::CAPABILITY
            && let Some(file) = self.client.files.get(inode).filter(|file| !file.inner.lock().writes.is_empty())
        {
            // Bytes take it away, and these were written before.
            self.client.flush(&file, self.client.deadline()).await?;
        }
        self.attr_reply(caller, Op::SetXattr { inode, name: name.clone(), value, mode }).await
    }

    pub async fn remove_xattr(&self, caller: &Caller, inode: InodeId, name: &XattrName) -> Result<Attr> {
        self.attr_reply(caller, Op::RemoveXattr { inode, name: name.clone() }).await
    }

    pub async fn get_xattr(&self, caller: &Caller, inode: InodeId, name: &XattrName) -> Result<XattrValue> {
        match self.client.query(caller, Query::GetXattr { inode, name: name.clone() }).await? {
            Answer::Xattr(value) => Ok(value),
            _ => Err(unexpected_answer("GetXattr")),
        }
    }

    /// The names of the extended attributes that the caller may know of.
    pub async fn list_xattrs(&self, caller: &Caller, inode: InodeId) -> Result<Vec<XattrName>> {
        match self.client.query(caller, Query::ListXattrs { inode }).await? {
            Answer::XattrNames(names) => Ok(names),
            _ => Err(unexpected_answer("ListXattrs")),
        }
    }

    pub async fn link(&self, caller: &Caller, inode: InodeId, parent: InodeId, name: &Name) -> Result<Attr> {
        self.attr_reply(caller, Op::Link { inode, parent, name: name.clone() }).await
    }

    /// Removes a name. A file that is open, here or elsewhere, lives on until its last handle closes. Returns
    /// the inode as it is afterwards.
    pub async fn unlink(&self, caller: &Caller, parent: InodeId, name: &Name) -> Result<Option<Attr>> {
        self.removed(caller, Op::Unlink { parent, name: name.clone(), hold: None }).await
    }

    pub async fn rmdir(&self, caller: &Caller, parent: InodeId, name: &Name) -> Result<()> {
        self.client.mutate(caller, Op::Rmdir { parent, name: name.clone() }).await.map(|_| ())
    }

    /// Renames. Returns what the new name pointed to before, if anything.
    pub async fn rename(
        &self,
        caller: &Caller,
        from_parent: InodeId,
        from_name: &Name,
        to_parent: InodeId,
        to_name: &Name,
        mode: RenameMode,
    ) -> Result<Option<Attr>> {
        let (from_name, to_name) = (from_name.clone(), to_name.clone());
        self.removed(caller, Op::Rename { from_parent, from_name, to_parent, to_name, mode, hold: None }).await
    }

    pub async fn readlink(&self, caller: &Caller, inode: InodeId) -> Result<Vec<u8>> {
        match self.client.query(caller, Query::ReadLink { inode }).await? {
            Answer::Target(target) => Ok(target),
            _ => Err(unexpected_answer("ReadLink")),
        }
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
        let query = Query::ReadDir { inode, after, limit, attrs };
        let Answer::Page(mut page) = self.client.watched(caller, query).await? else {
            return Err(unexpected_answer("ReadDir"));
        };
        for entry in &mut page.entries {
            entry.attr.iter().for_each(|attr| self.client.found(inode, attr));
            entry.attr = entry.attr.take().map(|attr| self.client.merged(attr));
        }
        Ok(page)
    }

    pub async fn open(&self, caller: &Caller, inode: InodeId, mode: OpenMode) -> Result<File> {
        self.client.open(caller, inode, mode).await.map(File::new)
    }

    pub async fn statfs(&self) -> Result<StatFs> {
        match self.client.query(&Caller::ROOT, Query::StatFs).await? {
            Answer::StatFs(statfs) => Ok(statfs),
            _ => Err(unexpected_answer("StatFs")),
        }
    }

    /// Of a file in a private directory. Bytes that are still to be committed do not change the time of its last change
    /// any more, if that is set.
    async fn set_private_attr(&self, caller: &Caller, inode: InodeId, set: SetAttr) -> Result<Attr> {
        let file = self.client.files.get(inode).filter(|_| set.mtime.is_some());
        let written = file.as_ref().and_then(|file| file.inner.lock().writes.replace_mtime(None));
        let changed = self.attr_reply(caller, Op::SetAttr { inode, set, grant: None }).await;
        if let (Err(_), Some(file), Some(written)) = (&changed, file, written) {
            let mut inner = file.inner.lock();
            let later = inner.writes.mtime();
            inner.writes.replace_mtime(later.or(Some(written)));
        }
        changed
    }

    /// Everything that was done to names is stored, as after `fsync` of a directory.
    pub async fn sync_names(&self) -> Result<()> {
        self.client.told_of_all().await
    }

    async fn removed(&self, caller: &Caller, op: Op) -> Result<Option<Attr>> {
        // What a rename replaces may yet be opened by whoever has just looked it up.
        let unlinks = matches!(op, Op::Unlink { .. });
        let OpReply::Removed { inode } = self.client.mutate(caller, op).await? else {
            return Err(unexpected_answer("the removal of a name"));
        };
        if let Some(attr) = &inode
            && attr.nlink == 0
            && self.client.files.is_open(attr.inode)
        {
            self.client.lost_its_name(attr.inode).await;
        } else if let Some(attr) = inode.as_ref().filter(|attr| attr.nlink == 0 && unlinks)
            && let Some(file) = self.client.files.get(attr.inode)
        {
            // Closed before its bytes were stored.
            self.client.discard(&file);
        }
        Ok(inode.map(|attr| self.client.merged(attr)))
    }

    async fn attr_answer(&self, caller: &Caller, query: Query) -> Result<Attr> {
        match self.client.query(caller, query).await? {
            Answer::Attr(attr) => Ok(self.client.merged(attr)),
            _ => Err(unexpected_answer("a question about attributes")),
        }
    }

    async fn attr_reply(&self, caller: &Caller, op: Op) -> Result<Attr> {
        match self.client.mutate(caller, op).await? {
            OpReply::Attr(attr) => Ok(self.client.merged(attr)),
            _ => Err(unexpected_answer("a change of attributes")),
        }
    }
}

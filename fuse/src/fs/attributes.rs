//! Attributes of inodes and of the whole file system.

use dfs_proto::msg::meta::StatFs;
use dfs_proto::{Attr, Caller, ErrorKind, InodeId, SetAttr};

use super::Fs;
use super::caller::Requester;
use super::errno::Errno;
use super::handles::HandleId;

const SET_USER_ID: u16 = 0o4000;
const SET_GROUP_ID: u16 = 0o2000;
const SUID_SGID: u16 = SET_USER_ID | SET_GROUP_ID;
const GROUP_EXECUTE: u16 = 0o0010;

impl Fs {
    /// With the size and times that this mount's own writes give it, whether or not they are committed.
    pub async fn getattr(&self, who: Requester, inode: InodeId) -> Result<Attr, Errno> {
        Ok(self.dfs.getattr(&who.caller(), inode).await?)
    }

    /// `handle` is the open file by which the caller asks (ftruncate): its right to change the size is that of
    /// the open.
    pub async fn setattr(
        &self,
        who: Requester,
        inode: InodeId,
        set: SetAttr,
        handle: Option<HandleId>,
    ) -> Result<Attr, Errno> {
        let file = handle.map(|handle| self.handles.file(handle)).transpose()?;
        if set.size_bytes.is_some() {
            self.open_inodes.changed(inode);
        }
        let by = file.as_deref().map(|file| file.client_file());
        match self.dfs.setattr(&who.caller(), inode, set.clone(), by).await {
            Err(error) if error.kind == ErrorKind::NotPermitted => {
                let attr = self.dfs.getattr(&Caller::ROOT, inode).await?;
                if !drops_privilege(&attr, &set) {
                    return Err(error.into());
                }
                Ok(self.dfs.setattr(&Caller::ROOT, inode, set, None).await?)
            }
            other => Ok(other?),
        }
    }

    /// Takes from a file the set-id bits that a change of its bytes by another than root takes away. It costs nothing
    /// for a file that has none, as `attr` knows it; one that has got them since loses them when the bytes are
    /// committed.
    pub async fn drop_privilege(&self, who: Requester, attr: &Attr) -> Result<(), Errno> {
        if who.uid == 0 || privilege(attr.mode) == 0 {
            return Ok(());
        }
        // The other bits stay as they are now, not as they were when the file was opened.
        let mode = self.dfs.getattr(&Caller::ROOT, attr.inode).await?.mode;
        if privilege(mode) != 0 {
            let set = SetAttr { mode: Some(mode & !privilege(mode)), ..SetAttr::default() };
            self.dfs.setattr(&Caller::ROOT, attr.inode, set, None).await?;
            // The kernel has asked for a write and does not know that this came of it.
            self.dfs.take_back(attr.inode).await;
        }
        Ok(())
    }

    pub async fn access(&self, who: Requester, inode: InodeId, mask: u8) -> Result<(), Errno> {
        Ok(self.dfs.access(&who.caller(), inode, mask).await?)
    }

    pub async fn statfs(&self) -> Result<StatFs, Errno> {
        Ok(self.dfs.statfs().await?)
    }
}

/// The bits by which running a file gives its runner more rights. Set-group-id on a file that the group cannot
/// execute is an old mark of mandatory locking and stays.
fn privilege(mode: u16) -> u16 {
    let group = if mode & GROUP_EXECUTE != 0 { mode & SET_GROUP_ID } else { 0 };
    mode & SET_USER_ID | group
}

/// Whether a change of mode only takes set-id bits away. When somebody writes to a file that carries them, the
/// kernel clears them in that writer's name, who need not be the owner. A `chmod` by another than the owner does not
/// get here: the kernel refuses it (default_permissions). Even if it did, nothing could be gained by it.
fn drops_privilege(attr: &Attr, set: &SetAttr) -> bool {
    let Some(mode) = set.mode else { return false };
    let only_mode = *set == SetAttr { mode: set.mode, ..SetAttr::default() };
    only_mode && mode != attr.mode && mode | SUID_SGID == attr.mode | SUID_SGID && mode & !attr.mode == 0
}

#[cfg(test)]
mod tests {
    use dfs_proto::{FileKind, Timestamp, XattrKinds};

    use super::*;

    fn attr(mode: u16) -> Attr {
        let epoch = Timestamp::default();
        Attr {
            inode: InodeId(9),
            kind: FileKind::File,
            mode,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size_bytes: 0,
            mapped_bytes: 0,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            version: 1,
            replication: 3,
            xattrs: XattrKinds::NONE,
        }
    }

    fn mode(mode: u16) -> SetAttr {
        SetAttr { mode: Some(mode), ..SetAttr::default() }
    }

    #[test]
    fn clearing_set_id_bits_is_told_from_other_changes_of_mode() {
        assert!(drops_privilege(&attr(0o6755), &mode(0o0755)));
        assert!(drops_privilege(&attr(0o4777), &mode(0o0777)));
        assert!(!drops_privilege(&attr(0o0755), &mode(0o0755)));
        assert!(!drops_privilege(&attr(0o0755), &mode(0o4755)));
        assert!(!drops_privilege(&attr(0o4755), &mode(0o2755)));
        assert!(!drops_privilege(&attr(0o4755), &mode(0o0777)));
        assert!(!drops_privilege(&attr(0o4755), &mode(0o0700)));
    }

    #[test]
    fn a_write_takes_privilege_and_nothing_else() {
        assert_eq!(privilege(0o6777), 0o6000);
        assert_eq!(privilege(0o2644), 0);
        assert_eq!(privilege(0o1755), 0);
    }

    #[test]
    fn clearing_set_id_bits_brings_no_other_change_with_it() {
        let set = SetAttr { uid: Some(1), ..mode(0o0755) };
        assert!(!drops_privilege(&attr(0o4755), &set));
        assert!(!drops_privilege(&attr(0o4755), &SetAttr::default()));
    }
}

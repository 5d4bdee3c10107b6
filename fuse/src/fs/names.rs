//! Names: looking up, making, linking, renaming, removing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_client::MakeOptions;
use dfs_proto::msg::meta::{NewNode, RenameMode};
use dfs_proto::{Attr, ErrorKind, FileKind, InodeId, Name};

use super::Fs;
use super::caller::Requester;
use super::errno::Errno;

/// Permission bits with setuid, setgid and sticky.
pub const MODE_MASK: u32 = 0o7777;

/// How often in a row a symlink may be replaced between the answer to a look-up and the question for its target. Each
/// time takes a change that is replicated, and the question less than that.
const REPLACED_MAX: usize = 8;

impl Fs {
    /// Of a symlink the target is read as well: the kernel asks for it next, by the symlink's number, and another mount
    /// may have put a new one in its place by then.
    pub async fn lookup(&self, who: Requester, parent: InodeId, name: &OsStr) -> Result<Attr, Errno> {
        let (caller, name) = (who.caller(), parse(name)?);
        let mut attr = self.dfs.lookup(&caller, parent, &name).await?;
        for _ in 0..REPLACED_MAX {
            if attr.kind != FileKind::Symlink || self.targets.knows(attr.inode) {
                break;
            }
            match self.dfs.readlink(&caller, attr.inode).await {
                Ok(target) => self.targets.remember(attr.inode, &target),
                Err(error) if error.kind == ErrorKind::Stale => attr = self.dfs.lookup(&caller, parent, &name).await?,
                // Whoever wants to know the target hears of it.
                Err(_) => break,
            }
        }
        Ok(attr)
    }

    pub async fn readlink(&self, who: Requester, inode: InodeId) -> Result<Vec<u8>, Errno> {
        if let Some(target) = self.targets.get(inode) {
            return Ok(target);
        }
        let target = self.dfs.readlink(&who.caller(), inode).await?;
        self.targets.remember(inode, &target);
        Ok(target)
    }

    /// `mode` holds the file type as well. `umask` counts unless the parent has a default ACL. Fails with EINVAL for a type
    /// that has calls of its own.
    pub async fn make_node(
        &self,
        who: Requester,
        parent: InodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
        device: u32,
    ) -> Result<Attr, Errno> {
        let node = match mode & libc::S_IFMT {
            // mknod(2): no type is a regular file.
            libc::S_IFREG | 0 => NewNode::File,
            libc::S_IFIFO => NewNode::Special(FileKind::Fifo, 0),
            libc::S_IFSOCK => NewNode::Special(FileKind::Socket, 0),
            libc::S_IFCHR => NewNode::Special(FileKind::CharDevice, device),
            libc::S_IFBLK => NewNode::Special(FileKind::BlockDevice, device),
            _ => return Err(Errno::INVALID),
        };
        self.make(who, parent, name, node, mode, umask).await
    }

    pub async fn make_directory(
        &self,
        who: Requester,
        parent: InodeId,
        name: &OsStr,
        mode: u32,
        umask: u32,
    ) -> Result<Attr, Errno> {
        self.make(who, parent, name, NewNode::Directory, mode, umask).await
    }

    pub async fn make_symlink(
        &self,
        who: Requester,
        parent: InodeId,
        name: &OsStr,
        target: &OsStr,
    ) -> Result<Attr, Errno> {
        self.make(who, parent, name, NewNode::Symlink(target.as_bytes().to_vec()), 0o777, 0).await
    }

    async fn make(
        &self,
        who: Requester,
        parent: InodeId,
        name: &OsStr,
        node: NewNode,
        mode: u32,
        umask: u32,
    ) -> Result<Attr, Errno> {
        let umask = (umask & MODE_MASK) as u16;
        let options = MakeOptions { exclusive: true, umask, ..MakeOptions::default() };
        let mode = (mode & MODE_MASK) as u16;
        let made = self.dfs.make(&who.caller(), parent, &parse(name)?, node, mode, options).await?;
        Ok(made.attr)
    }

    pub async fn link(&self, who: Requester, inode: InodeId, parent: InodeId, name: &OsStr) -> Result<Attr, Errno> {
        Ok(self.dfs.link(&who.caller(), inode, parent, &parse(name)?).await?)
    }

    /// What was done to names is synced on a majority of namenodes, if it is not already.
    pub async fn sync_names(&self) -> Result<(), Errno> {
        Ok(self.dfs.sync_names().await?)
    }

    pub async fn unlink(&self, who: Requester, parent: InodeId, name: &OsStr) -> Result<(), Errno> {
        let (caller, name) = (who.caller(), parse(name)?);
        self.dfs.unlink(&caller, parent, &name).await?;
        Ok(())
    }

    pub async fn remove_directory(&self, who: Requester, parent: InodeId, name: &OsStr) -> Result<(), Errno> {
        Ok(self.dfs.rmdir(&who.caller(), parent, &parse(name)?).await?)
    }

    /// `flags` are those of renameat2(2).
    pub async fn rename(
        &self,
        who: Requester,
        from: (InodeId, &OsStr),
        to: (InodeId, &OsStr),
        flags: u32,
    ) -> Result<(), Errno> {
        let mode = rename_mode(flags)?;
        let (caller, from_name, to_name) = (who.caller(), parse(from.1)?, parse(to.1)?);
        self.dfs.rename(&caller, from.0, &from_name, to.0, &to_name, mode).await?;
        Ok(())
    }
}

pub(super) fn parse(name: &OsStr) -> Result<Name, Errno> {
    Ok(Name::new(name.as_bytes())?)
}

fn rename_mode(flags: u32) -> Result<RenameMode, Errno> {
    match flags {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(Errno::INVALID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_flags_that_are_not_known_are_refused_rather_than_ignored() {
        assert_eq!(rename_mode(0), Ok(RenameMode::Replace));
        assert_eq!(rename_mode(libc::RENAME_NOREPLACE), Ok(RenameMode::NoReplace));
        assert_eq!(rename_mode(libc::RENAME_EXCHANGE), Ok(RenameMode::Exchange));
        assert_eq!(rename_mode(libc::RENAME_WHITEOUT), Err(Errno::INVALID));
        assert_eq!(rename_mode(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE), Err(Errno::INVALID));
    }

    #[test]
    fn a_name_that_is_too_long_says_so() {
        let long = "x".repeat(256);
        assert_eq!(parse(OsStr::new(&long)), Err(Errno(libc::ENAMETOOLONG)));
        assert!(parse(OsStr::new(&long[..255])).is_ok());
    }
}

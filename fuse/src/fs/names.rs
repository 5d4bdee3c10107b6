//! Names: looking up, making, linking, renaming, removing.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_client::MakeOptions;
use dfs_proto::msg::meta::{NewNode, RenameMode};
use dfs_proto::{Attr, FileKind, InodeId, Name};

use super::Fs;
use super::caller::Requester;
use super::errno::Errno;

/// Permission bits with setuid, setgid and sticky.
pub const MODE_MASK: u32 = 0o7777;

impl Fs {
    pub async fn lookup(&self, who: Requester, parent: InodeId, name: &OsStr) -> Result<Attr, Errno> {
        Ok(self.dfs.lookup(&who.caller(), parent, &parse(name)?).await?)
    }

    pub async fn readlink(&self, who: Requester, inode: InodeId) -> Result<Vec<u8>, Errno> {
        Ok(self.dfs.readlink(&who.caller(), inode).await?)
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

fn parse(name: &OsStr) -> Result<Name, Errno> {
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

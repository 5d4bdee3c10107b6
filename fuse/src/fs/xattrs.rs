//! Extended attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use dfs_proto::{Caller, ErrorKind, InodeId, XattrKinds, XattrMode, XattrName, XattrValue};

use super::Fs;
use super::admission::Payload;
use super::caller::Requester;
use super::errno::Errno;

impl Fs {
    /// The kernel asks for ACLs at each permission check, and for the capability before it writes, programs for attributes of
    /// their own: nearly always for what is not there. That is answered from the inode's attributes, which the client
    /// remembers. Which other namespaces there are the namenode knows.
    pub async fn get_xattr(&self, who: Requester, inode: InodeId, name: &OsStr) -> Result<XattrValue, Errno> {
        let name = XattrName::new(name.as_bytes())?;
        let is_known = name.kind() != XattrKinds::OTHER || name.as_bytes().starts_with(b"user.");
        if is_known && !self.kinds(inode).await?.contains(name.kind()) {
            return Err(Errno::NO_ATTRIBUTE);
        }
        Ok(self.dfs.get_xattr(&who.caller(), inode, &name).await?)
    }

    /// The names as listxattr(2) wants them: a NUL behind each.
    pub async fn list_xattrs(&self, who: Requester, inode: InodeId) -> Result<Vec<u8>, Errno> {
        if self.kinds(inode).await?.is_empty() {
            return Ok(Vec::new());
        }
        let names = self.dfs.list_xattrs(&who.caller(), inode).await?;
        Ok(names.iter().flat_map(|name| name.as_bytes().iter().copied().chain([0])).collect())
    }

    /// `flags` are those of setxattr(2).
    pub async fn set_xattr(
        &self,
        who: Requester,
        inode: InodeId,
        name: &OsStr,
        value: Payload,
        flags: i32,
    ) -> Result<(), Errno> {
        let name = XattrName::new(name.as_bytes())?;
        let mode = xattr_mode(flags)?;
        let (value, _room) = value.into_parts();
        self.dfs.set_xattr(&who.caller(), inode, &name, XattrValue::new(value)?, mode).await?;
        Ok(())
    }

    pub async fn remove_xattr(&self, who: Requester, inode: InodeId, name: &OsStr) -> Result<(), Errno> {
        let name = XattrName::new(name.as_bytes())?;
        let removed = match self.dfs.remove_xattr(&who.caller(), inode, &name).await {
            // Somebody writes to the file: the kernel takes the capability away in that writer's name. `removexattr` by
            // the same user does not get here, because the kernel refuses it; nothing could be gained by it either.
            Err(error) if error.kind == ErrorKind::NotPermitted && name.kind() == XattrKinds::CAPABILITY => {
                self.dfs.remove_xattr(&Caller::ROOT, inode, &name).await
            }
            other => other,
        };
        removed?;
        Ok(())
    }

    async fn kinds(&self, inode: InodeId) -> Result<XattrKinds, Errno> {
        Ok(self.dfs.getattr(&Caller::ROOT, inode).await?.xattrs)
    }
}

fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::INVALID),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert_eq!(xattr_mode(0), Ok(XattrMode::Set));
        assert_eq!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE), Err(Errno::INVALID));
        assert_eq!(xattr_mode(4), Err(Errno::INVALID));
    }
}

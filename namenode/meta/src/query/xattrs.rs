//! Extended attributes: one, and the names of all.

use dfs_proto::msg::meta::Answer;
use dfs_proto::{ErrorKind, FileKind, InodeId, XattrName};

use super::Asker;
use crate::permission::{self, READ};
use crate::rows;
use crate::tree;
use crate::tx::{Failure, refuse};
use crate::view::View;
use crate::xattrs::{self, Namespace};

pub(super) fn get(view: &dyn View, asker: &Asker<'_>, inode: InodeId, name: &XattrName) -> Result<Answer, Failure> {
    let space = Namespace::of(name)?;
    let row = tree::live_inode(view, inode)?;
    if matches!(space, Namespace::Acl(_)) && row.kind() == FileKind::Symlink {
        return Err(refuse(ErrorKind::NotSupported, "a symlink has no ACL"));
    }
    permission::require_xattr(view, inode, &row, asker.caller, space, READ)?;
    let found = match row.xattrs.contains(name.kind()) {
        true => rows::xattr(view, inode, name)?,
        false => None,
    };
    let found = found.ok_or_else(|| refuse(ErrorKind::NoAttribute, format!("there is no attribute `{name}`")))?;
    Ok(Answer::Xattr(found.value))
}

pub(super) fn list(view: &dyn View, asker: &Asker<'_>, inode: InodeId) -> Result<Answer, Failure> {
    let row = tree::live_inode(view, inode)?;
    let mut names = xattrs::first_names(view, inode, &row, usize::MAX)?;
    if asker.caller.uid != 0 {
        names.retain(|name| !matches!(Namespace::of(name), Ok(Namespace::Trusted)));
    }
    Ok(Answer::XattrNames(names))
}

//! SetXattr, RemoveXattr: extended attributes, and the ACLs among them, by Linux's rules.

use dfs_proto::msg::meta::OpReply;
use dfs_proto::xattr::CAPABILITY;
use dfs_proto::{ErrorKind, FileKind, InodeId, XattrMode, XattrName, XattrValue};

use crate::acl::{Acl, Which};
use crate::apply::Client;
use crate::permission::{self, SET_GID, WRITE};
use crate::rows::{self, InodeRow};
use crate::tree;
use crate::tx::{Failure, Tx, refuse};
use crate::xattrs::{self, Namespace};

pub(crate) fn set(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    name: &XattrName,
    value: &XattrValue,
    mode: XattrMode,
) -> Result<OpReply, Failure> {
    let space = Namespace::of(name)?;
    let mut row = tree::live_inode(tx.view(), inode)?;
    if let Namespace::Acl(which) = space {
        // As in Linux, an ACL is set whether or not there is one.
        let acl = Acl::parse(value.as_bytes())?;
        set_acl(tx, client, inode, &mut row, which, acl)?;
        return changed(tx, client, inode, row);
    }
    permission::require_xattr(tx.view(), inode, &row, client.caller, space, WRITE)?;
    if name.as_bytes() == CAPABILITY && !is_capability(value.as_bytes()) {
        return Err(refuse(ErrorKind::InvalidArgument, "not a file capability"));
    }
    let is_there = rows::xattr(tx.view(), inode, name)?.is_some();
    match (mode, is_there) {
        (XattrMode::Create, true) => return Err(refuse(ErrorKind::Exists, format!("`{name}` is there already"))),
        (XattrMode::Replace, false) => return Err(missing(name)),
        _ => {}
    }
    xattrs::require_room(tx.view(), inode, &row, name, value)?;
    xattrs::put(tx, inode, &mut row, name, value.clone())?;
    changed(tx, client, inode, row)
}

pub(crate) fn remove(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    name: &XattrName,
) -> Result<OpReply, Failure> {
    let space = Namespace::of(name)?;
    let mut row = tree::live_inode(tx.view(), inode)?;
    if let Namespace::Acl(which) = space {
        set_acl(tx, client, inode, &mut row, which, None)?;
        return changed(tx, client, inode, row);
    }
    permission::require_xattr(tx.view(), inode, &row, client.caller, space, WRITE)?;
    if rows::xattr(tx.view(), inode, name)?.is_none() {
        return Err(missing(name));
    }
    xattrs::remove(tx, inode, &mut row, name)?;
    changed(tx, client, inode, row)
}

/// `None` takes the list away; the mode stays as it is then.
fn set_acl(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    row: &mut InodeRow,
    which: Which,
    acl: Option<Acl>,
) -> Result<(), Failure> {
    if row.kind() == FileKind::Symlink {
        return Err(refuse(ErrorKind::NotSupported, "a symlink has no ACL"));
    }
    if which == Which::Default && !row.is_directory() {
        return match acl {
            Some(_) => Err(refuse(ErrorKind::AccessDenied, "only a directory has a default ACL")),
            None => Ok(()),
        };
    }
    permission::require_owner(row, client.caller)?;
    let Some(acl) = acl else { return Ok(xattrs::put_acl(tx, inode, row, which, None)?) };
    if which == Which::Access {
        row.mode = row.mode & !0o777 | acl.mode();
        if client.caller.uid != 0 && !client.caller.in_group(row.gid) {
            row.mode &= !SET_GID;
        }
        if acl.is_minimal() {
            return Ok(xattrs::put_acl(tx, inode, row, which, None)?);
        }
    }
    xattrs::require_room(tx.view(), inode, row, &which.name()?, &acl.encode()?)?;
    Ok(xattrs::put_acl(tx, inode, row, which, Some(&acl))?)
}

fn changed(tx: &mut Tx<'_>, client: &Client<'_>, inode: InodeId, row: InodeRow) -> Result<OpReply, Failure> {
    let row = InodeRow { ctime: client.now, ..row };
    tx.put(InodeRow::key(inode), &row)?;
    Ok(OpReply::Attr(row.attr(inode)))
}

fn missing(name: &XattrName) -> Failure {
    refuse(ErrorKind::NoAttribute, format!("there is no attribute `{name}`"))
}

/// The two forms that Linux stores: version 2, and version 3 with the user id of a namespace's root.
fn is_capability(bytes: &[u8]) -> bool {
    let Some((magic, _)) = bytes.split_first_chunk::<4>() else { return false };
    matches!((u32::from_le_bytes(*magic) >> 24, bytes.len()), (2, 20) | (3, 24))
}

#[cfg(test)]
mod tests;

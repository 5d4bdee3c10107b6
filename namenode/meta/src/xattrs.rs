//! Keeps the table of extended attributes and the kinds in the inode's row in step; and what the namespaces are.

use dfs_proto::limits::{XATTR_LIST_MAX, XATTR_OVERHEAD, XATTRS_MAX};
use dfs_proto::xattr::{ACCESS_ACL, CAPABILITY, DEFAULT_ACL};
use dfs_proto::{ErrorKind, InodeId, XattrKinds, XattrName, XattrValue};

use crate::acl::{self, Acl, Which};
use crate::rows::{self, InodeRow, XattrRow};
use crate::tx::{Failure, Tx, refuse};
use crate::view::{Fault, View};

/// What the name of an attribute begins with decides who may see and change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Namespace {
    /// Of files and directories, guarded by their permission bits.
    User,
    /// Root's alone.
    Trusted,
    /// Everybody reads, root writes.
    Security,
    /// The owner's, with a meaning of their own.
    Acl(Which),
}

impl Namespace {
    pub fn of(name: &XattrName) -> Result<Namespace, Failure> {
        let bytes = name.as_bytes();
        match bytes {
            ACCESS_ACL => return Ok(Namespace::Acl(Which::Access)),
            DEFAULT_ACL => return Ok(Namespace::Acl(Which::Default)),
            _ => {}
        }
        let spaces: [(&[u8], Namespace); 3] =
            [(b"user.", Namespace::User), (b"trusted.", Namespace::Trusted), (b"security.", Namespace::Security)];
        let found = spaces.into_iter().find_map(|(prefix, space)| Some((bytes.strip_prefix(prefix)?, space)));
        match found {
            Some((b"", _)) => Err(refuse(ErrorKind::InvalidArgument, format!("`{name}` is a namespace only"))),
            Some((_, space)) => Ok(space),
            None => Err(refuse(ErrorKind::NotSupported, format!("`{name}` is in no known namespace"))),
        }
    }
}

/// Writes an attribute. The row of the inode is the caller's to write.
pub(crate) fn put(
    tx: &mut Tx<'_>,
    inode: InodeId,
    row: &mut InodeRow,
    name: &XattrName,
    value: XattrValue,
) -> Result<(), Fault> {
    row.xattrs = row.xattrs.with(name.kind());
    tx.put(XattrRow::key(inode, name), &XattrRow { value })
}

/// Takes an attribute away, if it is there. The row of the inode is the caller's to write.
pub(crate) fn remove(tx: &mut Tx<'_>, inode: InodeId, row: &mut InodeRow, name: &XattrName) -> Result<(), Fault> {
    tx.delete(XattrRow::key(inode, name));
    let mut others_left = false;
    if name.kind() == XattrKinds::OTHER {
        rows::xattrs(tx.view(), inode, &mut |left, _| {
            others_left = left.kind() == XattrKinds::OTHER;
            !others_left
        })?;
    }
    if !others_left {
        row.xattrs = row.xattrs.without(name.kind());
    }
    Ok(())
}

/// Sets one of the inode's ACLs, or takes it away.
pub(crate) fn put_acl(
    tx: &mut Tx<'_>,
    inode: InodeId,
    row: &mut InodeRow,
    which: Which,
    acl: Option<&Acl>,
) -> Result<(), Fault> {
    let name = which.name()?;
    match acl {
        Some(acl) => put(tx, inode, row, &name, acl.encode()?),
        None => remove(tx, inode, row, &name),
    }
}

/// After a chmod: the access ACL follows the mode.
pub(crate) fn follow_mode(tx: &mut Tx<'_>, inode: InodeId, row: &mut InodeRow) -> Result<(), Fault> {
    if !row.xattrs.contains(XattrKinds::ACCESS_ACL) {
        return Ok(());
    }
    let acl = acl::stored(tx.view(), inode, Which::Access)?.with_mode(row.mode);
    put_acl(tx, inode, row, Which::Access, Some(&acl))
}

/// What was written, cut or given away no longer runs with more rights than its runner's, whoever did it.
pub(crate) fn drop_capability(tx: &mut Tx<'_>, inode: InodeId, row: &mut InodeRow) -> Result<(), Fault> {
    if !row.xattrs.contains(XattrKinds::CAPABILITY) {
        return Ok(());
    }
    let name = XattrName::new(CAPABILITY).map_err(|bad| Fault(bad.to_string()))?;
    remove(tx, inode, row, &name)
}

/// Takes away the first attributes of an inode that goes, at most `limit`; answers how many.
pub(crate) fn take(tx: &mut Tx<'_>, inode: InodeId, row: &InodeRow, limit: usize) -> Result<usize, Fault> {
    let names = first_names(tx.view(), inode, row, limit)?;
    for name in &names {
        tx.delete(XattrRow::key(inode, name));
    }
    Ok(names.len())
}

/// The names of the first attributes, at most `limit`.
pub(crate) fn first_names(
    view: &dyn View,
    inode: InodeId,
    row: &InodeRow,
    limit: usize,
) -> Result<Vec<XattrName>, Fault> {
    let mut names = Vec::new();
    if !row.xattrs.is_empty() && limit > 0 {
        rows::xattrs(view, inode, &mut |name, _| {
            names.push(name);
            names.len() < limit
        })?;
    }
    Ok(names)
}

/// Whether the inode has room for this attribute in the place of its older value.
pub(crate) fn require_room(
    view: &dyn View,
    inode: InodeId,
    row: &InodeRow,
    name: &XattrName,
    value: &XattrValue,
) -> Result<(), Failure> {
    let mut size = Size::default();
    size.add(name, value);
    if !row.xattrs.is_empty() {
        rows::xattrs(view, inode, &mut |other, value| {
            if other != *name {
                size.add(&other, &value);
            }
            true
        })?;
    }
    match size.fits() {
        true => Ok(()),
        false => Err(refuse(ErrorKind::NoSpace, "the inode has no room for that extended attribute")),
    }
}

/// What an inode's attributes add up to.
#[derive(Default)]
pub(crate) struct Size {
    list_bytes: usize,
    total_bytes: usize,
}

impl Size {
    pub fn add(&mut self, name: &XattrName, value: &XattrValue) {
        self.list_bytes += name.as_bytes().len() + 1;
        self.total_bytes += name.as_bytes().len() + value.as_bytes().len() + XATTR_OVERHEAD;
    }

    pub fn fits(&self) -> bool {
        self.list_bytes <= XATTR_LIST_MAX && self.total_bytes <= XATTRS_MAX
    }
}

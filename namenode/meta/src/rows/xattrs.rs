//! Extended attributes.

use dfs_proto::{InodeId, XattrName, XattrValue};
use serde::{Deserialize, Serialize};

use super::{Key, Row, get, scan_prefix};
use crate::view::{Fault, Table, View};

/// One extended attribute. Which kinds an inode has stands in its own row as well.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct XattrRow {
    pub value: XattrValue,
}

impl Row for XattrRow {
    const TABLE: Table = Table::Xattrs;
}

impl XattrRow {
    pub fn key(inode: InodeId, name: &XattrName) -> Key<XattrRow> {
        Key::new([&inode.0.to_be_bytes()[..], name.as_bytes()].concat())
    }
}

pub fn xattr(view: &dyn View, inode: InodeId, name: &XattrName) -> Result<Option<XattrRow>, Fault> {
    get(view, &XattrRow::key(inode, name))
}

/// Visits an inode's extended attributes in order of names until `visit` says false.
pub fn xattrs(
    view: &dyn View,
    inode: InodeId,
    visit: &mut dyn FnMut(XattrName, XattrValue) -> bool,
) -> Result<(), Fault> {
    let mut fault = None;
    scan_prefix::<XattrRow>(view, &inode.0.to_be_bytes(), &mut |key, row| match xattr_key(key) {
        Some((_, name)) => visit(name, row.value),
        None => {
            fault = Some(Fault(format!("{} key {key:02x?} is no inode and name", Table::Xattrs.name())));
            false
        }
    })?;
    fault.map_or(Ok(()), Err)
}

/// Inode and name of a key.
pub(crate) fn xattr_key(key: &[u8]) -> Option<(InodeId, XattrName)> {
    let (inode, name) = key.split_first_chunk::<8>()?;
    Some((InodeId(u64::from_be_bytes(*inode)), XattrName::new(name).ok()?))
}

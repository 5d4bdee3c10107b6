//! Extended attributes: of inodes that exist, of kinds that these tell of, within their limits, ACLs valid.

use std::collections::BTreeMap;

use dfs_proto::{InodeId, XattrKinds};

use super::Findings;
use super::tree::Tree;
use crate::acl;
use crate::rows::{self, RECLAIM_QUEUE, XattrRow};
use crate::view::{Fault, View};
use crate::xattrs::{Namespace, Size};

pub(super) fn check(view: &dyn View, tree: &Tree, found: &mut Findings) -> Result<(), Fault> {
    let mut seen: BTreeMap<InodeId, (XattrKinds, Size)> = BTreeMap::new();
    rows::scan_all::<XattrRow>(view, &mut |key, attribute| {
        let Some((inode, name)) = rows::xattr_key(key) else {
            return found.broken(format!("extended attribute key {key:02x?} is no inode and name"));
        };
        let Some(row) = tree.inodes.get(&inode) else {
            return found.broken_inode(inode, format!("`{name}` belongs to inode {inode}, which is gone"));
        };
        match Namespace::of(&name) {
            Ok(Namespace::Acl(which)) => {
                if let Some(problem) = acl::problem(row, which, &attribute.value) {
                    found.broken_inode(inode, problem);
                }
            }
            Ok(_) => {}
            Err(_) => found.broken_inode(inode, format!("`{name}` is in no known namespace")),
        }
        let (kinds, size) = seen.entry(inode).or_default();
        *kinds = kinds.with(name.kind());
        size.add(&name, &attribute.value);
    })?;
    for (inode, row) in &tree.inodes {
        let (kinds, size) = seen.remove(inode).unwrap_or_default();
        // One that is being taken apart may have lost some of them.
        let agree = match row.orphan {
            Some(RECLAIM_QUEUE) => row.xattrs.contains(kinds),
            _ => row.xattrs == kinds,
        };
        if !agree {
            found.broken_inode(*inode, format!("inode {inode} tells of {:?} and has {kinds:?}", row.xattrs));
        }
        if !size.fits() {
            found.broken_inode(*inode, format!("inode {inode} has more extended attributes than it may"));
        }
    }
    Ok(())
}

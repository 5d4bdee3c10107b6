//! Link: another name for a file.

use dfs_proto::limits::LINK_MAX;
use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ErrorKind, InodeId, Name};

use crate::apply::Client;
use crate::rows::{self, InodeRow};
use crate::tx::{Failure, Tx, refuse};
use crate::{permission, tree};

pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    parent: InodeId,
    name: &Name,
) -> Result<OpReply, Failure> {
    let directory = tree::directory(tx.view(), parent)?;
    permission::require(tx.view(), parent, &directory, client.caller, permission::EXECUTE)?;
    if rows::dentry(tx.view(), parent, name)?.is_some() {
        return Err(refuse(ErrorKind::Exists, format!("`{name}` exists")));
    }
    permission::require_add(tx.view(), parent, &directory, client.caller)?;

    let mut row = tree::live_inode(tx.view(), inode)?;
    if row.is_directory() {
        return Err(refuse(ErrorKind::NotPermitted, "a directory has one name only"));
    }
    if row.nlink == 0 {
        return Err(refuse(ErrorKind::NotFound, "the file has been deleted"));
    }
    if row.nlink >= LINK_MAX {
        return Err(refuse(ErrorKind::TooManyLinks, format!("the file has {LINK_MAX} names")));
    }
    row.nlink += 1;
    row.ctime = client.now;
    tx.put(InodeRow::key(inode), &row)?;
    tree::insert(tx, parent, name, inode, row.kind(), client.now)?;
    Ok(OpReply::Attr(row.attr(inode)))
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::Op;

    use super::*;
    use crate::testing::{Rig, kind_of, name};

    fn link(inode: InodeId, text: &str) -> Op {
        Op::Link { inode, parent: InodeId::ROOT, name: name(text) }
    }

    #[test]
    fn a_file_lives_as_long_as_one_of_its_names() {
        let mut rig = Rig::new();
        let file = rig.create(InodeId::ROOT, "a").inode;
        let linked = rig.op(link(file, "b")).unwrap();
        assert!(matches!(linked, OpReply::Attr(attr) if attr.nlink == 2));
        rig.unlink(InodeId::ROOT, "a", None).unwrap();
        assert_eq!(rig.lookup(InodeId::ROOT, "b").unwrap().nlink, 1);
        rig.unlink(InodeId::ROOT, "b", None).unwrap();
        assert_eq!(kind_of(rig.try_attr(file)), Some(ErrorKind::Stale));
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let mut rig = Rig::new();
        let dir = rig.mkdir(InodeId::ROOT, "d").inode;
        let file = rig.create(InodeId::ROOT, "f").inode;
        assert_eq!(kind_of(rig.op(link(dir, "x"))), Some(ErrorKind::NotPermitted));
        assert_eq!(kind_of(rig.op(link(file, "d"))), Some(ErrorKind::Exists));
        assert_eq!(kind_of(rig.op(link(InodeId(99), "x"))), Some(ErrorKind::Stale));
        rig.unlink(InodeId::ROOT, "f", Some(file)).unwrap();
        assert_eq!(kind_of(rig.op(link(file, "x"))), Some(ErrorKind::NotFound));
        rig.become_user(5, 5);
        assert_eq!(kind_of(rig.op(link(file, "x"))), Some(ErrorKind::AccessDenied));
    }
}

//! Rmdir: an empty directory goes.

use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ErrorKind, FileKind, InodeId, Name};

use crate::apply::Client;
use crate::permission::{self, EXECUTE};
use crate::rows::{self, InodeRow};
use crate::tree;
use crate::tx::{Failure, Tx, refuse};
use crate::usage::shifted;
use crate::view::Fault;
use crate::xattrs;

pub(crate) fn apply(tx: &mut Tx<'_>, client: &Client<'_>, parent: InodeId, name: &Name) -> Result<OpReply, Failure> {
    let directory = tree::directory(tx.view(), parent)?;
    permission::require(tx.view(), parent, &directory, client.caller, EXECUTE)?;
    let entry = tree::entry(tx.view(), parent, name)?;
    let victim = tree::named_inode(tx.view(), &entry)?;
    permission::require_remove(tx.view(), parent, &directory, &victim, client.caller)?;
    if entry.kind != FileKind::Directory {
        return Err(refuse(ErrorKind::NotADirectory, format!("`{name}` is not a directory")));
    }
    require_empty(tx, entry.inode, name)?;
    tree::remove(tx, parent, name, &entry, client.now)?;
    forget_directory(tx, entry.inode, &victim)?;
    Ok(OpReply::Done)
}

pub(crate) fn require_empty(tx: &Tx<'_>, directory: InodeId, name: &Name) -> Result<(), Failure> {
    match rows::has_entries(tx.view(), directory)? {
        true => Err(refuse(ErrorKind::NotEmpty, format!("`{name}` is not empty"))),
        false => Ok(()),
    }
}

/// Removes the inode of an empty directory whose entry is gone. Nobody can hold one: what a client has
/// open of it is only a place in its listing. Its extended attributes go at once: their limits bound the work.
pub(crate) fn forget_directory(tx: &mut Tx<'_>, directory: InodeId, row: &InodeRow) -> Result<(), Fault> {
    xattrs::take(tx, directory, row, usize::MAX)?;
    tx.delete(InodeRow::key(directory));
    tx.totals.counts.directories = shifted(tx.totals.counts.directories, -1, "directories")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, kind_of};

    #[test]
    fn an_empty_directory_goes_and_its_parent_counts_one_link_less() {
        let mut rig = Rig::new();
        let dir = rig.mkdir(InodeId::ROOT, "d").inode;
        assert_eq!(rig.attr(InodeId::ROOT).nlink, 3);
        rig.rmdir(InodeId::ROOT, "d").unwrap();
        assert_eq!(rig.attr(InodeId::ROOT).nlink, 2);
        assert_eq!(kind_of(rig.try_attr(dir)), Some(ErrorKind::Stale));
        assert_eq!(rig.totals().counts.directories, 1);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let mut rig = Rig::new();
        let dir = rig.mkdir(InodeId::ROOT, "d").inode;
        rig.create(dir, "f");
        assert_eq!(kind_of(rig.rmdir(InodeId::ROOT, "d")), Some(ErrorKind::NotEmpty));
        assert_eq!(kind_of(rig.rmdir(dir, "f")), Some(ErrorKind::NotADirectory));
        assert_eq!(kind_of(rig.rmdir(dir, "x")), Some(ErrorKind::NotFound));
        rig.become_user(5, 5);
        assert_eq!(kind_of(rig.rmdir(InodeId::ROOT, "d")), Some(ErrorKind::AccessDenied));
    }
}

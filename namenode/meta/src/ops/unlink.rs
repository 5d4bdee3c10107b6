//! Unlink: a name that is no directory goes, and the file with its last name.

use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ErrorKind, FileKind, InodeId, Name};

use crate::apply::Client;
use crate::permission::{self, EXECUTE};
use crate::tree;
use crate::tx::{Failure, Tx, refuse};

pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    parent: InodeId,
    name: &Name,
    hold: Option<InodeId>,
) -> Result<OpReply, Failure> {
    let directory = tree::directory(tx.view(), parent)?;
    permission::require(tx.view(), parent, &directory, client.caller, EXECUTE)?;
    let entry = tree::entry(tx.view(), parent, name)?;
    let victim = tree::named_inode(tx.view(), &entry)?;
    permission::require_remove(tx.view(), parent, &directory, &victim, client.caller)?;
    if entry.kind == FileKind::Directory {
        return Err(refuse(ErrorKind::IsADirectory, format!("`{name}` is a directory")));
    }
    tree::remove(tx, parent, name, &entry, client.now)?;
    let attr = tree::drop_link(tx, entry.inode, client, hold)?;
    Ok(OpReply::Removed { inode: Some(attr) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{self, RECLAIM_QUEUE};
    use crate::testing::{Rig, kind_of};

    #[test]
    fn the_last_name_takes_the_file_and_its_bytes_along() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 1000);
        assert_eq!(rig.totals().counts.mapped_bytes, 1000);
        let removed = rig.unlink(InodeId::ROOT, "a", None).unwrap();
        assert!(matches!(removed, OpReply::Removed { inode: Some(attr) } if attr.nlink == 0 && attr.inode == file));
        assert_eq!(kind_of(rig.try_attr(file)), Some(ErrorKind::Stale));
        let counts = rig.totals().counts;
        assert_eq!((counts.files, counts.mapped_bytes, counts.chunks), (0, 0, 0));
    }

    #[test]
    fn a_held_file_stays_until_it_is_released() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 1000);
        rig.unlink(InodeId::ROOT, "a", Some(file)).unwrap();
        assert_eq!(rig.attr(file).nlink, 0);
        assert_eq!(rows::orphans(&rig.state, rig.session, 9).unwrap(), [file]);
        assert_eq!(rig.totals().counts.mapped_bytes, 1000);
        rig.release(file);
        assert_eq!(kind_of(rig.try_attr(file)), Some(ErrorKind::Stale));
        assert_eq!(rig.totals().counts.mapped_bytes, 0);
    }

    #[test]
    fn holding_another_inode_holds_nothing() {
        let mut rig = Rig::new();
        let file = rig.create(InodeId::ROOT, "a").inode;
        rig.unlink(InodeId::ROOT, "a", Some(InodeId(77))).unwrap();
        assert_eq!(kind_of(rig.try_attr(file)), Some(ErrorKind::Stale));
        assert!(rows::orphans(&rig.state, rig.session, 9).unwrap().is_empty());
    }

    #[test]
    fn a_file_of_many_extents_goes_at_once_and_is_reclaimed_behind() {
        let mut rig = Rig::new();
        let file = rig.write_scattered(InodeId::ROOT, "big", 100);
        rig.unlink(InodeId::ROOT, "big", None).unwrap();
        assert_eq!(kind_of(rig.try_attr(file)), Some(ErrorKind::Stale));
        assert_eq!(kind_of(rig.lookup(InodeId::ROOT, "big")), Some(ErrorKind::NotFound));
        assert_eq!(rows::orphans(&rig.state, RECLAIM_QUEUE, 9).unwrap(), [file]);
        assert!(rig.events.contains(&crate::Event::Orphaned(file)));
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let mut rig = Rig::new();
        rig.mkdir(InodeId::ROOT, "d");
        rig.create(InodeId::ROOT, "f");
        assert_eq!(kind_of(rig.unlink(InodeId::ROOT, "d", None)), Some(ErrorKind::IsADirectory));
        assert_eq!(kind_of(rig.unlink(InodeId::ROOT, "x", None)), Some(ErrorKind::NotFound));
        rig.become_user(5, 5);
        assert_eq!(kind_of(rig.unlink(InodeId::ROOT, "f", None)), Some(ErrorKind::AccessDenied));
        rig.become_root();
        rig.chmod(InodeId::ROOT, 0o1777).unwrap();
        rig.become_user(5, 5);
        assert_eq!(kind_of(rig.unlink(InodeId::ROOT, "f", None)), Some(ErrorKind::NotPermitted));
    }
}

//! Reclaim: what has no name and no holder is taken apart, at once when it is small, piece by piece
//! behind everybody's back when it is not.

use std::collections::BTreeSet;

use dfs_proto::{FileKind, InodeId, SessionId};

use crate::command::{Event, Reply};
use crate::ops::lock;
use crate::rows::{self, Content, HolderRow, InodeRow, OrphanRow, RECLAIM_QUEUE, UNDECIDED};
use crate::tree;
use crate::tx::{Failure, Tx};
use crate::usage::{Usage, shifted};
use crate::view::Fault;
use crate::xattrs;

/// Extents and extended attributes that the command which removes the last name takes away itself. Most files have
/// one.
const AT_ONCE_MAX: usize = 64;

/// Takes away at most `extents_max` extents and extended attributes of queued inodes in all, and the inodes that have
/// none left. What is not in the queue is passed over.
pub(crate) fn apply(tx: &mut Tx<'_>, inodes: &[InodeId], extents_max: u32) -> Result<Reply, Failure> {
    let mut left = extents_max as usize;
    for inode in inodes {
        let Some(row) = rows::inode(tx.view(), *inode)?.filter(|row| row.orphan == Some(RECLAIM_QUEUE)) else {
            continue;
        };
        left -= take_apart(tx, *inode, row, left)?;
        if left == 0 {
            break;
        }
    }
    Ok(Reply::Done)
}

/// The inode has no name, and `holders` are those who have it open, or may have. There is at least one.
pub(crate) fn hold(tx: &mut Tx<'_>, inode: InodeId, row: InodeRow, holders: &BTreeSet<SessionId>) -> Result<(), Fault> {
    let row = InodeRow { orphan: holders.first().copied(), ..row };
    tx.put(InodeRow::key(inode), &row)?;
    for session in holders {
        tx.put(OrphanRow::key(*session, inode), &OrphanRow)?;
        tx.put(HolderRow::key(inode, *session), &HolderRow)?;
    }
    if holders.contains(&UNDECIDED) {
        tx.event(Event::Undecided(inode));
    }
    Ok(())
}

/// A session no longer holds an inode. Nothing happens if it did not. With its last holder the inode goes,
/// into the queue unless it may go `at_once`.
pub(crate) fn leave(tx: &mut Tx<'_>, inode: InodeId, session: SessionId, at_once: bool) -> Result<(), Fault> {
    if tx.get(&OrphanRow::key(session, inode))?.is_none() || session == RECLAIM_QUEUE {
        return Ok(());
    }
    tx.delete(OrphanRow::key(session, inode));
    tx.delete(HolderRow::key(inode, session));
    let row = tree::existing(tx.view(), inode)?;
    match rows::holders(tx.view(), inode, 1)?.first() {
        Some(next) => tx.put(InodeRow::key(inode), &InodeRow { orphan: Some(*next), ..row }),
        None if at_once => let_go(tx, inode, row),
        None => queue(tx, inode, row),
    }
}

/// The inode has lost its last name and holder: it goes now, or is queued if there is much to take away.
pub(crate) fn let_go(tx: &mut Tx<'_>, inode: InodeId, row: InodeRow) -> Result<(), Fault> {
    lock::forget_inode(tx, inode)?;
    let mut extents = 0;
    rows::extents_past(tx.view(), row.span(inode), 0, &mut |_| {
        extents += 1;
        extents <= AT_ONCE_MAX
    })?;
    let attributes = xattrs::first_names(tx.view(), inode, &row, AT_ONCE_MAX + 1)?.len();
    if extents + attributes > AT_ONCE_MAX {
        return queue(tx, inode, row);
    }
    take_apart(tx, inode, InodeRow { orphan: Some(RECLAIM_QUEUE), ..row }, AT_ONCE_MAX + 1).map(|_| ())
}

/// The inode waits for `Body::Reclaim`. From here on nobody can name it.
pub(crate) fn queue(tx: &mut Tx<'_>, inode: InodeId, row: InodeRow) -> Result<(), Fault> {
    lock::forget_inode(tx, inode)?;
    tx.put(InodeRow::key(inode), &InodeRow { orphan: Some(RECLAIM_QUEUE), ..row })?;
    tx.put(OrphanRow::key(RECLAIM_QUEUE, inode), &OrphanRow)?;
    tx.event(Event::Orphaned(inode));
    Ok(())
}

/// Takes at most `limit` extents and extended attributes from an inode in the queue, and the inode too if that were all
/// of them. Answers how many it took.
fn take_apart(tx: &mut Tx<'_>, inode: InodeId, mut row: InodeRow, limit: usize) -> Result<usize, Fault> {
    let mut usage = Usage::default();
    let (extents, bytes) = usage.take(tx, row.span(inode), limit)?;
    usage.settle(tx)?;
    let taken = extents + xattrs::take(tx, inode, &row, limit - extents)?;
    // Fewer than could have been taken: there are no more.
    if taken < limit {
        tx.delete(OrphanRow::key(RECLAIM_QUEUE, inode));
        tx.delete(InodeRow::key(inode));
        uncount(tx, row.kind())?;
    } else {
        if let Content::File { mapped_bytes, .. } = &mut row.content {
            *mapped_bytes = shifted(*mapped_bytes, -(bytes as i64), "mapped bytes of a file")?;
        }
        tx.put(InodeRow::key(inode), &row)?;
    }
    Ok(taken)
}

fn uncount(tx: &mut Tx<'_>, kind: FileKind) -> Result<(), Fault> {
    let counts = &mut tx.totals.counts;
    let counter = match kind {
        FileKind::File => &mut counts.files,
        FileKind::Directory => &mut counts.directories,
        _ => &mut counts.symlinks_and_specials,
    };
    *counter = shifted(*counter, -1, "inodes of a kind")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Body;
    use crate::testing::Rig;

    #[test]
    fn a_big_file_is_taken_apart_piece_by_piece() {
        let mut rig = Rig::new();
        let file = rig.write_scattered(InodeId::ROOT, "big", 100);
        let bytes = rig.totals().counts.mapped_bytes;
        rig.unlink(InodeId::ROOT, "big", None).unwrap();

        rig.apply(Body::Reclaim { inodes: vec![file], extents_max: 40 }).unwrap();
        assert_eq!(rig.totals().counts.mapped_bytes, bytes * 60 / 100);
        rig.apply(Body::Reclaim { inodes: vec![file], extents_max: 60 }).unwrap();
        // Nothing said yet that these sixty were the last.
        assert_eq!((rig.totals().counts.mapped_bytes, rig.totals().counts.files), (0, 1));
        rig.apply(Body::Reclaim { inodes: vec![file], extents_max: 40 }).unwrap();
        assert_eq!((rig.totals().counts.files, rig.totals().counts.chunks), (0, 0));
        assert!(rows::orphans(&rig.state, RECLAIM_QUEUE, 9).unwrap().is_empty());
    }

    #[test]
    fn one_command_takes_several_inodes_and_stops_at_its_limit() {
        let mut rig = Rig::new();
        let files: Vec<_> = ["a", "b"].map(|name| rig.write_scattered(InodeId::ROOT, name, 70)).to_vec();
        for name in ["a", "b"] {
            rig.unlink(InodeId::ROOT, name, None).unwrap();
        }
        rig.apply(Body::Reclaim { inodes: files.clone(), extents_max: 100 }).unwrap();
        assert_eq!(rows::orphans(&rig.state, RECLAIM_QUEUE, 9).unwrap(), [files[1]]);
        rig.apply(Body::Reclaim { inodes: files, extents_max: 100 }).unwrap();
        assert_eq!(rig.totals().counts.files, 0);
    }

    #[test]
    fn extended_attributes_are_taken_apart_with_their_file() {
        let mut rig = Rig::new();
        let few = rig.create(InodeId::ROOT, "few").inode;
        let many = rig.write_scattered(InodeId::ROOT, "many", 50);
        rig.set_xattr(few, "user.a", b"1").unwrap();
        for number in 0..50 {
            rig.set_xattr(many, &format!("user.{number}"), b"1").unwrap();
        }
        rig.unlink(InodeId::ROOT, "few", None).unwrap();
        rig.unlink(InodeId::ROOT, "many", None).unwrap();
        assert_eq!(rows::orphans(&rig.state, RECLAIM_QUEUE, 9).unwrap(), [many]);
        rig.apply(Body::Reclaim { inodes: vec![many], extents_max: 80 }).unwrap();
        assert_eq!(
            xattrs::first_names(&rig.state, many, &rows::inode(&rig.state, many).unwrap().unwrap(), 99).unwrap().len(),
            20
        );
        rig.apply(Body::Reclaim { inodes: vec![many], extents_max: 80 }).unwrap();
        assert_eq!(rig.totals().counts.files, 0);
        let mut left = 0;
        rows::scan_all::<rows::XattrRow>(&rig.state, &mut |_, _| left += 1).unwrap();
        assert_eq!(left, 0);
    }

    #[test]
    fn named_and_held_inodes_are_never_reclaimed() {
        let mut rig = Rig::new();
        let named = rig.write_new(InodeId::ROOT, "named", 10);
        let held = rig.write_new(InodeId::ROOT, "held", 10);
        rig.unlink(InodeId::ROOT, "held", Some(held)).unwrap();
        let before = rig.state.clone();
        rig.apply(Body::Reclaim { inodes: vec![named, held, InodeId(99)], extents_max: 1000 }).unwrap();
        assert_eq!(rig.state, before);
    }
}

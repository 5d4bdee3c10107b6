//! Release: nameless inodes that the session held open are no longer needed.

use dfs_proto::InodeId;
use dfs_proto::msg::meta::OpReply;

use crate::apply::Client;
use crate::ops::reclaim;
use crate::rows::OrphanRow;
use crate::tree;
use crate::tx::{Failure, Tx};

/// Inodes that one command takes apart itself; behind that they all go to the reclaim queue, so that
/// one request cannot make applying slow.
const TAKEN_APART_MAX: usize = 64;

/// What the session does not hold is passed over: the file may have had another name after all.
pub(crate) fn apply(tx: &mut Tx<'_>, client: &Client<'_>, inodes: &[InodeId]) -> Result<OpReply, Failure> {
    let at_once = inodes.len() <= TAKEN_APART_MAX;
    for inode in inodes {
        let key = OrphanRow::key(client.session, *inode);
        if tx.get(&key)?.is_none() {
            continue;
        }
        tx.delete(key);
        let row = tree::existing(tx.view(), *inode)?;
        match at_once {
            true => reclaim::let_go(tx, *inode, row)?,
            false => reclaim::queue(tx, *inode, row)?,
        }
    }
    Ok(OpReply::Done)
}

#[cfg(test)]
mod tests {
    use dfs_proto::ErrorKind;
    use dfs_proto::msg::meta::Op;

    use super::*;
    use crate::rows::{self, RECLAIM_QUEUE};
    use crate::testing::{Rig, kind_of};

    #[test]
    fn only_what_the_session_holds_is_released() {
        let mut rig = Rig::new();
        let named = rig.create(InodeId::ROOT, "named").inode;
        let held = rig.create(InodeId::ROOT, "held").inode;
        rig.unlink(InodeId::ROOT, "held", Some(held)).unwrap();
        let mine = rig.session;
        rig.open_session();
        rig.op(Op::Release { inodes: vec![named, held, InodeId(99)] }).unwrap();
        assert_eq!(rig.attr(named).nlink, 1);
        assert_eq!(rig.attr(held).nlink, 0);
        rig.session = mine;
        rig.op(Op::Release { inodes: vec![held, held] }).unwrap();
        assert_eq!(kind_of(rig.try_attr(held)), Some(ErrorKind::Stale));
    }

    #[test]
    fn very_many_at_once_are_queued() {
        let mut rig = Rig::new();
        let held: Vec<_> = (0..70)
            .map(|i| {
                let inode = rig.create(InodeId::ROOT, &format!("f{i}")).inode;
                rig.unlink(InodeId::ROOT, &format!("f{i}"), Some(inode)).unwrap();
                inode
            })
            .collect();
        rig.op(Op::Release { inodes: held.clone() }).unwrap();
        assert_eq!(rows::orphans(&rig.state, RECLAIM_QUEUE, 99).unwrap(), held);
        assert!(rows::orphans(&rig.state, rig.session, 99).unwrap().is_empty());
    }
}

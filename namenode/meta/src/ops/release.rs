//! Release: nameless inodes that the session held open are no longer needed.

use std::collections::BTreeSet;

use dfs_proto::InodeId;
use dfs_proto::msg::meta::OpReply;

use crate::apply::Client;
use crate::command::{HolderChange, Reply};
use crate::ops::reclaim;
use crate::rows::{self, RECLAIM_QUEUE};
use crate::tx::{Failure, Tx};

/// Inodes that one command takes apart itself; behind that they all go to the reclaim queue, so that
/// one request cannot make applying slow.
const TAKEN_APART_MAX: usize = 64;

/// What the session does not hold is passed over: the file may have had another name after all.
pub(crate) fn apply(tx: &mut Tx<'_>, client: &Client<'_>, inodes: &[InodeId]) -> Result<OpReply, Failure> {
    for inode in inodes {
        reclaim::leave(tx, *inode, client.session, inodes.len() <= TAKEN_APART_MAX)?;
    }
    Ok(OpReply::Done)
}

/// What the leader has found out about who has nameless inodes open.
pub(crate) fn change_holders(tx: &mut Tx<'_>, changes: &[HolderChange]) -> Result<Reply, Failure> {
    for change in changes {
        // Without a holder it has gone, or has a name.
        let holders = rows::holders(tx.view(), change.inode, 1)?;
        let Some(row) = rows::inode(tx.view(), change.inode)?.filter(|_| !holders.is_empty()) else { continue };
        let mut join = BTreeSet::new();
        for session in change.join.iter().filter(|session| **session != RECLAIM_QUEUE) {
            if rows::session(tx.view(), *session)?.is_some() {
                join.insert(*session);
            }
        }
        if !join.is_empty() {
            join.extend(rows::holders(tx.view(), change.inode, usize::MAX)?);
            reclaim::hold(tx, change.inode, row, &join)?;
        }
        for session in &change.leave {
            reclaim::leave(tx, change.inode, *session, changes.len() <= TAKEN_APART_MAX)?;
        }
    }
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use dfs_proto::ErrorKind;
    use dfs_proto::msg::meta::Op;

    use super::*;
    use crate::command::Body;
    use crate::rows::UNDECIDED;
    use crate::rows::{self, RECLAIM_QUEUE};
    use crate::testing::{Rig, kind_of, name};
    use dfs_proto::SessionId;

    /// Unlinks as a leader does it.
    fn remove(rig: &mut Rig, text: &str, expected: InodeId, holders: &[SessionId], undecided: bool) {
        let op = Op::Unlink { parent: InodeId::ROOT, name: name(text), hold: None };
        let Body::Client { id, acked_below, caller, op, .. } = rig.client(op, Vec::new()) else { panic!() };
        let (expected, holders) = (Some(expected), holders.to_vec());
        rig.apply(Body::Removal { id, acked_below, caller, op, expected, holders, undecided }).unwrap();
    }

    fn change(rig: &mut Rig, inode: InodeId, leave: &[SessionId], join: &[SessionId]) {
        let change = HolderChange { inode, leave: leave.to_vec(), join: join.to_vec() };
        rig.apply(Body::Holders { changes: vec![change] }).unwrap();
    }

    #[test]
    fn an_inode_that_several_sessions_hold_goes_with_the_last_of_them() {
        for in_order in [true, false] {
            let mut rig = Rig::new();
            let file = rig.write_new(InodeId::ROOT, "f", 100);
            let first = rig.session;
            rig.open_session();
            let second = rig.session;
            // One that has ended already holds nothing.
            remove(&mut rig, "f", file, &[first, second, SessionId(77)], false);
            assert_eq!(rows::holders(&rig.state, file, 9).unwrap(), [first, second]);
            rig.session = first;
            rig.release(file);
            rig.release(file);
            assert_eq!(rig.attr(file).nlink, 0);
            rig.session = second;
            match in_order {
                true => rig.release(file),
                false => rig.apply(Body::ExpireSessions { sessions: vec![second] }).map(|_| ()).unwrap(),
            }
            assert_eq!(kind_of(rig.try_attr(file)), Some(ErrorKind::Stale));
        }
    }

    #[test]
    fn what_is_undecided_stays_until_it_is_known_who_holds_it() {
        let mut rig = Rig::new();
        let held = rig.write_new(InodeId::ROOT, "held", 100);
        let free = rig.write_new(InodeId::ROOT, "free", 100);
        let mine = rig.session;
        for (text, inode) in [("held", held), ("free", free)] {
            remove(&mut rig, text, inode, &[], true);
            assert!(rig.events.contains(&crate::Event::Undecided(inode)));
        }
        assert_eq!(rows::orphans(&rig.state, UNDECIDED, 9).unwrap(), [held, free]);
        change(&mut rig, held, &[UNDECIDED], &[mine]);
        change(&mut rig, free, &[UNDECIDED], &[]);
        assert_eq!(kind_of(rig.try_attr(free)), Some(ErrorKind::Stale));
        assert_eq!(rows::holders(&rig.state, held, 9).unwrap(), [mine]);
        // Late word about what has gone, or has a name, changes nothing.
        let named = rig.create(InodeId::ROOT, "named").inode;
        change(&mut rig, named, &[UNDECIDED], &[mine]);
        change(&mut rig, free, &[UNDECIDED], &[mine]);
        assert_eq!(rig.attr(named).nlink, 1);
        rig.release(held);
        assert_eq!(kind_of(rig.try_attr(held)), Some(ErrorKind::Stale));
    }

    #[test]
    fn a_name_that_leads_elsewhere_than_the_leader_saw_decides_nothing() {
        let mut rig = Rig::new();
        let file = rig.create(InodeId::ROOT, "f").inode;
        let mine = rig.session;
        remove(&mut rig, "f", InodeId(999), &[mine], false);
        assert_eq!(rows::holders(&rig.state, file, 9).unwrap(), [UNDECIDED]);
    }

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

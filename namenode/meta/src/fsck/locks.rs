//! Locks: that they could all have been given, to sessions that live, on inodes that can be named.

use std::collections::BTreeMap;

use dfs_proto::{InodeId, SessionId};

use super::Findings;
use super::tree::{Tree, number_at};
use crate::locks::{Held, conflict};
use crate::rows::{self, ALL_INODES, LockRow, RECLAIM_QUEUE, SessionLocksRow};
use crate::view::{Fault, View};

pub(super) fn check(view: &dyn View, tree: &Tree, found: &mut Findings) -> Result<(), Fault> {
    let sessions: BTreeMap<SessionId, _> = rows::sessions(view)?.into_iter().collect();
    let mut locks: BTreeMap<InodeId, Vec<Held>> = BTreeMap::new();
    rows::scan_all::<LockRow>(view, &mut |key, row| match row.held(key) {
        Ok((inode, held)) => locks.entry(inode).or_default().push(held),
        Err(fault) => found.broken(fault.0),
    })?;
    let mut counts: BTreeMap<(SessionId, InodeId), u64> = BTreeMap::new();
    for (inode, held) in &mut locks {
        held.sort_by_key(|lock| lock.claim.range.first);
        if tree.inodes.get(inode).is_none_or(|row| row.orphan == Some(RECLAIM_QUEUE)) {
            found.broken_inode(*inode, format!("inode {inode} is locked and does not exist"));
        }
        for (at, lock) in held.iter().enumerate() {
            *counts.entry((lock.session, *inode)).or_default() += 1;
            *counts.entry((lock.session, ALL_INODES)).or_default() += 1;
            if !sessions.contains_key(&lock.session) {
                let session = lock.session;
                found.broken_inode(*inode, format!("inode {inode} is locked by session {session}, which has ended"));
            }
            // By their first bytes: behind the first that begins past this one, none overlaps it.
            let behind = held[at + 1..].iter().take_while(|other| other.claim.range.first <= lock.claim.range.last);
            for other in behind {
                let mine_twice = other.holder() == lock.holder() && other.claim.range.overlaps(&lock.claim.range);
                if mine_twice || conflict((other.holder(), &other.claim), (lock.holder(), &lock.claim)) {
                    found.broken_inode(*inode, format!("inode {inode} has two locks that exclude each other"));
                }
            }
        }
    }
    rows::scan_all::<SessionLocksRow>(view, &mut |key, row| {
        let parts = number_at(key, 0).map(SessionId).zip(number_at(key, 8).map(InodeId));
        if parts.and_then(|parts| counts.remove(&parts)) != Some(row.locks) {
            found.broken(format!("a session's locks are counted wrong: {key:02x?} says {}", row.locks));
        }
    })?;
    for ((session, inode), _) in counts {
        found.broken(format!("the locks of session {session} on inode {inode} are not counted"));
    }
    Ok(())
}

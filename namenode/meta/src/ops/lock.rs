//! Lock and unlock: what `fcntl` and `flock` do, and how locks go with their owners.

use std::collections::BTreeSet;

use dfs_proto::limits::{LOCKS_PER_INODE_MAX, LOCKS_PER_SESSION_MAX};
use dfs_proto::msg::meta::{LockClaim, LockOwner, LockRange, LockSpace, OpReply};
use dfs_proto::{ErrorKind, InodeId, SessionId};

use crate::apply::Client;
use crate::command::Event;
use crate::locks::{self, Change, Held};
use crate::rows::{self, ALL_INODES, LockRow, SessionLocksRow};
use crate::tree;
use crate::tx::{Failure, Tx, refuse};
use crate::usage::shifted;
use crate::view::Fault;

pub(crate) fn lock(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    claim: &LockClaim,
) -> Result<OpReply, Failure> {
    require_sound(claim.owner, &claim.range)?;
    tree::live_inode(tx.view(), inode)?;
    let held = rows::locks(tx.view(), inode)?;
    if let Some(other) = locks::in_the_way(&held, client.session, claim).next() {
        let message = format!("session {} has inode {inode} locked there", other.session);
        return Err(refuse(ErrorKind::WouldBlock, message));
    }
    let own = own(&held, client.session, claim.owner);
    let change = locks::lock(&own, *claim);
    // Another mode over the whole of a lock can let others in.
    let weaker = own.iter().any(|old| old.range.overlaps(&claim.range) && old.mode != claim.mode);
    write(tx, client.session, inode, claim.owner, held.len(), change)?;
    if weaker {
        tx.event(Event::LocksReleased(inode));
    }
    Ok(OpReply::Done)
}

pub(crate) fn unlock(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    owner: LockOwner,
    range: LockRange,
) -> Result<OpReply, Failure> {
    require_sound(owner, &range)?;
    let held = rows::locks(tx.view(), inode)?;
    let change = locks::unlock(&own(&held, client.session, owner), range);
    if !change.removed.is_empty() {
        write(tx, client.session, inode, owner, held.len(), change)?;
        tx.event(Event::LocksReleased(inode));
    }
    Ok(OpReply::Done)
}

/// The session ends, and all of its locks with it.
pub(crate) fn forget_session(tx: &mut Tx<'_>, session: SessionId) -> Result<(), Fault> {
    for inode in rows::locked_inodes(tx.view(), session)? {
        for held in rows::locks(tx.view(), inode)?.iter().filter(|held| held.session == session) {
            tx.delete(LockRow::key(inode, session, held.claim.owner, held.claim.range.first));
        }
        tx.delete(SessionLocksRow::key(session, inode));
        tx.event(Event::LocksReleased(inode));
    }
    tx.delete(SessionLocksRow::key(session, ALL_INODES));
    Ok(())
}

/// Nobody can name the inode any more, and its locks go.
pub(crate) fn forget_inode(tx: &mut Tx<'_>, inode: InodeId) -> Result<(), Fault> {
    let held = rows::locks(tx.view(), inode)?;
    if held.is_empty() {
        return Ok(());
    }
    for lock in &held {
        tx.delete(LockRow::key(inode, lock.session, lock.claim.owner, lock.claim.range.first));
    }
    for session in held.iter().map(|lock| lock.session).collect::<BTreeSet<_>>() {
        let gone = rows::session_locks(tx.view(), session, inode)?;
        count(tx, session, inode, -(gone as i64))?;
    }
    tx.event(Event::LocksReleased(inode));
    Ok(())
}

fn require_sound(owner: LockOwner, range: &LockRange) -> Result<(), Failure> {
    if range.first > range.last || (owner.space == LockSpace::Whole && *range != LockRange::ALL) {
        return Err(refuse(ErrorKind::InvalidArgument, "not a range that can be locked"));
    }
    Ok(())
}

fn own(held: &[Held], session: SessionId, owner: LockOwner) -> Vec<LockClaim> {
    held.iter().filter(|lock| lock.session == session && lock.claim.owner == owner).map(|lock| lock.claim).collect()
}

/// Writes a change of one owner's locks. `held`: how many locks the inode had.
fn write(
    tx: &mut Tx<'_>,
    session: SessionId,
    inode: InodeId,
    owner: LockOwner,
    held: usize,
    change: Change,
) -> Result<(), Failure> {
    let (removed, added) = (change.removed.len(), change.added.len());
    // Fewer or as many are never refused: to unlock must be possible at the limit.
    if added > removed {
        let all = rows::session_locks(tx.view(), session, ALL_INODES)?;
        if held - removed + added > LOCKS_PER_INODE_MAX {
            let message = format!("inode {inode} has {LOCKS_PER_INODE_MAX} locks already");
            return Err(refuse(ErrorKind::NoLocks, message));
        }
        if all + (added - removed) as u64 > LOCKS_PER_SESSION_MAX {
            let message = format!("session {session} has {LOCKS_PER_SESSION_MAX} locks already");
            return Err(refuse(ErrorKind::NoLocks, message));
        }
    }
    for first in change.removed {
        tx.delete(LockRow::key(inode, session, owner, first));
    }
    for claim in change.added {
        tx.put(LockRow::key(inode, session, owner, claim.range.first), &LockRow::of(&claim))?;
    }
    Ok(count(tx, session, inode, added as i64 - removed as i64)?)
}

/// Keeps the session's two counts in step.
fn count(tx: &mut Tx<'_>, session: SessionId, inode: InodeId, by: i64) -> Result<(), Fault> {
    for inode in [inode, ALL_INODES] {
        let locks = shifted(rows::session_locks(tx.view(), session, inode)?, by, "locks of a session")?;
        match locks {
            0 => tx.delete(SessionLocksRow::key(session, inode)),
            _ => tx.put(SessionLocksRow::key(session, inode), &SessionLocksRow { locks })?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

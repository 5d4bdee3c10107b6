//! Locks of files, and how many of them each session has.

use dfs_proto::msg::meta::{LockClaim, LockMode, LockOwner, LockRange, LockSpace};
use dfs_proto::{InodeId, SessionId};
use serde::{Deserialize, Serialize};

use super::{Key, Row, get, number_at, numbers, pair, scan_prefix};
use crate::locks::Held;
use crate::view::{Fault, Table, View};

/// In a [`SessionLocksRow`]'s key: the session's locks in all. No inode has this number.
pub const ALL_INODES: InodeId = InodeId(0);

/// One locked range of one owner. What the key says is not said again.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LockRow {
    pub last: u64,
    pub mode: LockMode,
    pub process: u32,
}

impl Row for LockRow {
    const TABLE: Table = Table::Locks;
}

impl LockRow {
    pub fn of(claim: &LockClaim) -> LockRow {
        LockRow { last: claim.range.last, mode: claim.mode, process: claim.process }
    }

    pub fn key(inode: InodeId, session: SessionId, owner: LockOwner, first: u64) -> Key<LockRow> {
        let mut key = pair(inode.0, session.0);
        key.push(match owner.space {
            LockSpace::Range => 0,
            LockSpace::Whole => 1,
        });
        key.extend_from_slice(&owner.number.to_be_bytes());
        key.extend_from_slice(&first.to_be_bytes());
        Key::new(key)
    }

    /// What a row and its key say, with the inode.
    pub fn held(&self, key: &[u8]) -> Result<(InodeId, Held), Fault> {
        let number = |at| number_at(Table::Locks, key, at);
        let space = match key.get(16) {
            Some(0) => LockSpace::Range,
            Some(1) => LockSpace::Whole,
            _ => return Err(Fault(format!("lock key {key:02x?} names no kind of lock"))),
        };
        let owner = LockOwner { space, number: number(17)? };
        let range = LockRange { first: number(25)?, last: self.last };
        let claim = LockClaim { owner, range, mode: self.mode, process: self.process };
        Ok((InodeId(number(0)?), Held { session: SessionId(number(8)?), claim }))
    }
}

/// How many locks a session has on one inode (`ALL_INODES`: on all). None: no row.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SessionLocksRow {
    pub locks: u64,
}

impl Row for SessionLocksRow {
    const TABLE: Table = Table::SessionLocks;
}

impl SessionLocksRow {
    pub fn key(session: SessionId, inode: InodeId) -> Key<SessionLocksRow> {
        Key::new(pair(session.0, inode.0))
    }
}

/// Every lock of an inode, by session, owner and range. `limits::LOCKS_PER_INODE_MAX` bounds them.
pub fn locks(view: &dyn View, inode: InodeId) -> Result<Vec<Held>, Fault> {
    let mut found = Vec::new();
    scan_prefix::<LockRow>(view, &inode.0.to_be_bytes(), &mut |key, row| {
        found.push(row.held(key).map(|(_, held)| held));
        true
    })?;
    found.into_iter().collect()
}

/// How many locks a session has on an inode, or in all.
pub fn session_locks(view: &dyn View, session: SessionId, inode: InodeId) -> Result<u64, Fault> {
    Ok(get(view, &SessionLocksRow::key(session, inode))?.map_or(0, |row| row.locks))
}

/// The inodes that a session has locks on.
pub fn locked_inodes(view: &dyn View, session: SessionId) -> Result<Vec<InodeId>, Fault> {
    let found = numbers::<SessionLocksRow>(view, &session.0.to_be_bytes(), 8, usize::MAX)?;
    Ok(found.into_iter().map(InodeId).filter(|inode| *inode != ALL_INODES).collect())
}

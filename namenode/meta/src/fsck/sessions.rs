//! Sessions and what hangs on them.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::{ChunkId, InodeId, SessionId};

use super::Findings;
use super::storage::Storage;
use super::tree::{Tree, number_at};
use crate::rows::{
    self, ChunkState, HolderRow, OrphanRow, RECLAIM_QUEUE, ReplyRow, SessionChunkRow, SessionInodesRow, SessionRow,
    UNDECIDED,
};
use crate::view::{Fault, View};

pub(super) fn check(view: &dyn View, tree: &Tree, storage: &Storage, found: &mut Findings) -> Result<(), Fault> {
    let sessions: BTreeMap<SessionId, SessionRow> = rows::sessions(view)?.into_iter().collect();
    check_open_chunks(view, &sessions, storage, found)?;
    check_orphans(view, &sessions, tree, found)?;

    let next_session = rows::totals(view)?.next_session;
    for session in sessions.keys().filter(|session| **session >= next_session || **session == RECLAIM_QUEUE) {
        found.broken(format!("session {session} has a number that was not given out"));
    }
    check_reserved(view, &sessions, found)?;
    rows::scan_all::<ReplyRow>(view, &mut |key, _| {
        let Some((session, number)) = number_at(key, 0).map(SessionId).zip(number_at(key, 8)) else {
            return found.broken(format!("reply key {key:02x?} is too short"));
        };
        match sessions.get(&session) {
            None => found.broken(format!("a reply is remembered for session {session}, which has ended")),
            Some(row) if number < row.acked_below => {
                found.broken(format!("reply {number} of session {session} was acknowledged and is remembered"))
            }
            Some(_) => {}
        }
    })
}

/// Reserved numbers belong to a session that lives, were given out once, and no inode has them.
fn check_reserved(
    view: &dyn View,
    sessions: &BTreeMap<SessionId, SessionRow>,
    found: &mut Findings,
) -> Result<(), Fault> {
    let next_inode = rows::totals(view)?.next_inode;
    let mut rows = Vec::new();
    rows::scan_all::<SessionInodesRow>(view, &mut |key, row| match number_at(key, 0).map(SessionId) {
        Some(session) if sessions.contains_key(&session) => rows.push(row),
        _ => found.broken(format!("numbers are reserved for a session that has ended: {key:02x?}")),
    })?;
    for SessionInodesRow { next, end } in rows {
        if next >= end || end > next_inode {
            found.broken(format!("numbers {next} to {end} are reserved, and {next_inode} is the next"));
        }
        for number in next.0..end.0.min(next_inode.0) {
            if rows::inode(view, InodeId(number))?.is_some() {
                found.broken_inode(InodeId(number), format!("inode {number} exists, and its number is reserved"));
            }
        }
    }
    Ok(())
}

fn check_open_chunks(
    view: &dyn View,
    sessions: &BTreeMap<SessionId, SessionRow>,
    storage: &Storage,
    found: &mut Findings,
) -> Result<(), Fault> {
    let mut open: BTreeSet<(SessionId, ChunkId)> = BTreeSet::new();
    for (chunk, row) in &storage.chunks {
        if let ChunkState::Open { session } = row.state {
            open.insert((session, *chunk));
            if !sessions.contains_key(&session) {
                found.broken_chunk(*chunk, format!("chunk {chunk} is open for session {session}, which has ended"));
            }
        }
    }
    rows::scan_all::<SessionChunkRow>(view, &mut |key, _| {
        let parts = number_at(key, 0).map(SessionId).zip(number_at(key, 8).map(ChunkId));
        if !parts.is_some_and(|parts| open.remove(&parts)) {
            found.broken(format!("a session is counted for a chunk that is not open for it: {key:02x?}"));
        }
    })?;
    for (session, chunk) in open {
        found.broken_chunk(chunk, format!("chunk {chunk} is open and not counted for session {session}"));
    }
    Ok(())
}

fn check_orphans(
    view: &dyn View,
    sessions: &BTreeMap<SessionId, SessionRow>,
    tree: &Tree,
    found: &mut Findings,
) -> Result<(), Fault> {
    // By inode: who is noted to hold it, in the one table and in the other.
    let mut noted: BTreeMap<InodeId, BTreeSet<SessionId>> = BTreeMap::new();
    let mut holders: BTreeMap<InodeId, BTreeSet<SessionId>> = BTreeMap::new();
    rows::scan_all::<OrphanRow>(view, &mut |key, _| match number_at(key, 0)
        .map(SessionId)
        .zip(number_at(key, 8).map(InodeId))
    {
        Some((session, inode)) => drop(noted.entry(inode).or_default().insert(session)),
        None => found.broken(format!("orphan key {key:02x?} is too short")),
    })?;
    rows::scan_all::<HolderRow>(view, &mut |key, _| match number_at(key, 0)
        .map(InodeId)
        .zip(number_at(key, 8).map(SessionId))
    {
        Some((inode, session)) => drop(holders.entry(inode).or_default().insert(session)),
        None => found.broken(format!("holder key {key:02x?} is too short")),
    })?;
    for (inode, row) in &tree.inodes {
        let noted = noted.remove(inode).unwrap_or_default();
        let holders = holders.remove(inode).unwrap_or_default();
        if row.orphan != noted.first().copied() {
            found.broken_inode(*inode, format!("inode {inode} says {:?} and is an orphan of {noted:?}", row.orphan));
        }
        if noted.contains(&RECLAIM_QUEUE) && noted.len() > 1 {
            found.broken_inode(*inode, format!("inode {inode} is to be reclaimed and is held by {noted:?}"));
        }
        if !noted.iter().filter(|session| **session != RECLAIM_QUEUE).eq(&holders) {
            found.broken_inode(*inode, format!("inode {inode} is an orphan of {noted:?} and held by {holders:?}"));
        }
        for session in holders {
            if session != UNDECIDED && !sessions.contains_key(&session) {
                found.broken_inode(*inode, format!("inode {inode} is held by session {session}, which has ended"));
            }
        }
    }
    for inode in noted.keys().chain(holders.keys()) {
        found.broken(format!("an orphan is noted that does not exist: {inode}"));
    }
    Ok(())
}

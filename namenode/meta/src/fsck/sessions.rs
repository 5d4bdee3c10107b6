//! Sessions and what hangs on them.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::{ChunkId, InodeId, SessionId};

use super::Findings;
use super::storage::Storage;
use super::tree::{Tree, number_at};
use crate::rows::{self, ChunkState, OrphanRow, RECLAIM_QUEUE, ReplyRow, SessionChunkRow, SessionRow};
use crate::view::{Fault, View};

pub(super) fn check(view: &dyn View, tree: &Tree, storage: &Storage, found: &mut Findings) -> Result<(), Fault> {
    let sessions: BTreeMap<SessionId, SessionRow> = rows::sessions(view)?.into_iter().collect();
    check_open_chunks(view, &sessions, storage, found)?;
    check_orphans(view, &sessions, tree, found)?;

    let next_session = rows::totals(view)?.next_session;
    for session in sessions.keys().filter(|session| **session >= next_session || **session == RECLAIM_QUEUE) {
        found.broken(format!("session {session} has a number that was not given out"));
    }
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
    let mut orphans: BTreeSet<(SessionId, InodeId)> =
        tree.inodes.iter().filter_map(|(inode, row)| Some((row.orphan?, *inode))).collect();
    for (session, inode) in &orphans {
        if *session != RECLAIM_QUEUE && !sessions.contains_key(session) {
            found.broken_inode(*inode, format!("inode {inode} is held by session {session}, which has ended"));
        }
    }
    rows::scan_all::<OrphanRow>(view, &mut |key, _| {
        let parts = number_at(key, 0).map(SessionId).zip(number_at(key, 8).map(InodeId));
        if !parts.is_some_and(|parts| orphans.remove(&parts)) {
            found.broken(format!("an orphan is noted that is none: {key:02x?}"));
        }
    })?;
    for (_, inode) in orphans {
        found.broken_inode(inode, format!("inode {inode} has no name and is not noted as an orphan"));
    }
    Ok(())
}

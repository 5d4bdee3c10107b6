//! Sessions and what hangs on them.

use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ChunkId, InodeId, NodeId, SessionId, Timestamp, WireError};
use serde::{Deserialize, Serialize};

use super::{Key, Row, get, number_at, numbers, pair, scan, scan_prefix};
use crate::view::{Fault, Table, View};

/// Owns the nameless inodes that nobody holds any more. No session has this number.
pub const RECLAIM_QUEUE: SessionId = SessionId(0);

/// Holds the nameless inodes of which the leader does not know yet who has them open. No session has this
/// number.
pub const UNDECIDED: SessionId = SessionId(u64::MAX);

/// A live session; the row goes when it ends. Renewals are soft state of the leader and not kept here.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SessionRow {
    pub description: String,
    /// Number of the client's certificate.
    pub holder: NodeId,
    pub opened: Timestamp,
    /// Requests with lower numbers have been answered and their replies forgotten.
    pub acked_below: u64,
}

impl Row for SessionRow {
    const TABLE: Table = Table::Sessions;
}

impl SessionRow {
    pub fn key(session: SessionId) -> Key<SessionRow> {
        Key::new(session.0.to_be_bytes().to_vec())
    }
}

/// The chunk is open and this session's.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SessionChunkRow;

impl Row for SessionChunkRow {
    const TABLE: Table = Table::SessionChunks;
}

impl SessionChunkRow {
    pub fn key(session: SessionId, chunk: ChunkId) -> Key<SessionChunkRow> {
        Key::new(pair(session.0, chunk.0))
    }
}

/// Numbers of inodes, reserved for the session: `next` up to `end`, which is not among them, are not given out yet.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SessionInodesRow {
    pub next: InodeId,
    pub end: InodeId,
}

impl Row for SessionInodesRow {
    const TABLE: Table = Table::SessionInodes;
}

impl SessionInodesRow {
    pub fn key(session: SessionId, first: InodeId) -> Key<SessionInodesRow> {
        Key::new(pair(session.0, first.0))
    }
}

/// The session's reserved numbers, by their first.
pub fn session_inodes(view: &dyn View, session: SessionId) -> Result<Vec<(InodeId, SessionInodesRow)>, Fault> {
    let mut found = Vec::new();
    scan_prefix::<SessionInodesRow>(view, &session.0.to_be_bytes(), &mut |key, row| {
        found.push(number_at(Table::SessionInodes, key, 8).map(|first| (InodeId(first), row)));
        true
    })?;
    found.into_iter().collect()
}

/// What a request was answered, refusals too.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ReplyRow {
    pub outcome: Result<OpReply, WireError>,
}

impl Row for ReplyRow {
    const TABLE: Table = Table::Replies;
}

impl ReplyRow {
    pub fn key(session: SessionId, number: u64) -> Key<ReplyRow> {
        Key::new(pair(session.0, number))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct OrphanRow;

impl Row for OrphanRow {
    const TABLE: Table = Table::Orphans;
}

impl OrphanRow {
    pub fn key(session: SessionId, inode: InodeId) -> Key<OrphanRow> {
        Key::new(pair(session.0, inode.0))
    }
}

/// The session holds the nameless inode.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct HolderRow;

impl Row for HolderRow {
    const TABLE: Table = Table::Holders;
}

impl HolderRow {
    pub fn key(inode: InodeId, session: SessionId) -> Key<HolderRow> {
        Key::new(pair(inode.0, session.0))
    }
}

/// Who holds a nameless inode, `UNDECIDED` last; at most `limit`.
pub fn holders(view: &dyn View, inode: InodeId, limit: usize) -> Result<Vec<SessionId>, Fault> {
    let found = numbers::<HolderRow>(view, &inode.0.to_be_bytes(), 8, limit)?;
    Ok(found.into_iter().map(SessionId).collect())
}

pub fn session(view: &dyn View, session: SessionId) -> Result<Option<SessionRow>, Fault> {
    get(view, &SessionRow::key(session))
}

/// Every live session, by id.
pub fn sessions(view: &dyn View) -> Result<Vec<(SessionId, SessionRow)>, Fault> {
    let mut found = Vec::new();
    scan_prefix::<SessionRow>(view, &[], &mut |key, row| {
        found.push(number_at(Table::Sessions, key, 0).map(|session| (SessionId(session), row)));
        true
    })?;
    found.into_iter().collect()
}

/// The session's open chunks, by id.
pub fn session_chunks(view: &dyn View, session: SessionId) -> Result<Vec<ChunkId>, Fault> {
    let found = numbers::<SessionChunkRow>(view, &session.0.to_be_bytes(), 8, usize::MAX)?;
    Ok(found.into_iter().map(ChunkId).collect())
}

/// Nameless inodes that the session holds (or that wait in `RECLAIM_QUEUE`), at most `limit`, by id.
pub fn orphans(view: &dyn View, session: SessionId, limit: usize) -> Result<Vec<InodeId>, Fault> {
    let found = numbers::<OrphanRow>(view, &session.0.to_be_bytes(), 8, limit)?;
    Ok(found.into_iter().map(InodeId).collect())
}

/// Numbers of the remembered replies with `from <= number < below`.
pub fn replies_below(view: &dyn View, session: SessionId, from: u64, below: u64) -> Result<Vec<u64>, Fault> {
    let mut found = Vec::new();
    scan::<ReplyRow>(view, &pair(session.0, from), &pair(session.0, below), &mut |key, _| {
        found.push(number_at(Table::Replies, key, 8));
        true
    })?;
    found.into_iter().collect()
}

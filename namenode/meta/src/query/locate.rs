//! Where bytes are, with the capabilities to reach them.

use std::collections::BTreeSet;
use std::ops::Range;

use dfs_proto::limits::{LOCATE_EXTENTS_MAX, OPENED_EXTENTS_MAX};
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::meta::{Answer, ChunkLocation, FileMap, OpReply, ReplicaAt};
use dfs_proto::{
    Access, Capability, CapabilityKey, ChunkId, ErrorKind, Extent, Grant, InodeId, NodeId, Refusal, Timestamp,
};

use super::{Asker, forbidden_grant};
use crate::rows::{self, ChunkFileRow, ChunkRow, ChunkState, Content, InodeRow};
use crate::tree;
use crate::tx::{Failure, refuse};
use crate::view::{Fault, View};

/// Long enough for a slow reader to finish what it located, short enough that a client whose access
/// ended does not read on for long. A client renews by asking again.
const CAPABILITY_SECS: i64 = 600;

/// As many chunks in one question as extents in one answer.
const CHUNKS_MAX: usize = LOCATE_EXTENTS_MAX as usize;

/// Puts append capabilities for the session's open chunks into a `Chunks` reply, and orders replicas.
/// The leader calls it on every reply it sends, also on one that was remembered.
pub fn sign_reply(
    view: &dyn View,
    asker: &Asker<'_>,
    reply: &mut OpReply,
    nodes: &dyn Fn(NodeId) -> Liveness,
) -> Result<(), Fault> {
    let OpReply::Chunks(locations) = reply else { return Ok(()) };
    let keys = rows::capability_keys(view)?;
    let key = keys.newest()?;
    for location in locations {
        location.replicas.sort_by_key(|at| rank(nodes(at.node)));
        let open = rows::chunk(view, location.chunk)?
            .is_some_and(|row| row.state == ChunkState::Open { session: asker.session });
        location.capability = open.then(|| sign(key, asker, location.chunk, Access::Append));
    }
    Ok(())
}

/// The extents of a file that overlap a range, and their chunks. Needs a grant to read.
pub(super) fn locate(
    view: &dyn View,
    asker: &Asker<'_>,
    nodes: &dyn Fn(NodeId) -> Liveness,
    inode: InodeId,
    grant: &Grant,
    offset: u64,
    len: u64,
) -> Result<Answer, Failure> {
    let keys = rows::capability_keys(view)?;
    grant.check(&keys.0, inode, asker.session, false).map_err(|refusal| forbidden_grant(inode, refusal))?;
    let row = tree::live_inode(view, inode)?;
    let range = offset..offset.saturating_add(len);
    let map = map_of(view, asker, nodes, inode, &row, range, LOCATE_EXTENTS_MAX)?;
    map.map(Answer::Map).ok_or_else(|| refuse(ErrorKind::InvalidArgument, "only a regular file has a map"))
}

/// What whoever has just opened the file to read it would ask next: where its front is, and of a small file all of it.
/// `None` of what is no regular file.
pub(super) fn front(
    view: &dyn View,
    asker: &Asker<'_>,
    nodes: &dyn Fn(NodeId) -> Liveness,
    inode: InodeId,
    row: &InodeRow,
) -> Result<Option<FileMap>, Failure> {
    map_of(view, asker, nodes, inode, row, 0..u64::MAX, OPENED_EXTENTS_MAX)
}

/// The extents that overlap `range`, `limit` of them at most. The caller may read the file.
fn map_of(
    view: &dyn View,
    asker: &Asker<'_>,
    nodes: &dyn Fn(NodeId) -> Liveness,
    inode: InodeId,
    row: &InodeRow,
    range: Range<u64>,
    limit: u32,
) -> Result<Option<FileMap>, Failure> {
    let Content::File { size_bytes, .. } = row.content else { return Ok(None) };
    let keys = rows::capability_keys(view)?;
    let mut extents: Vec<Extent> = Vec::new();
    let mut complete_to = range.end;
    rows::extents_past(view, row.span(inode), range.start, &mut |extent| {
        if extent.file_offset >= range.end {
            return false;
        }
        if extents.len() == limit as usize {
            complete_to = extent.file_offset;
            return false;
        }
        extents.push(extent);
        true
    })?;

    let ids: BTreeSet<ChunkId> = extents.iter().map(|extent| extent.chunk).collect();
    let mut chunks = Vec::with_capacity(ids.len());
    for chunk in ids {
        let found = rows::chunk(view, chunk)?
            .ok_or_else(|| Fault(format!("inode {inode} names chunk {chunk}, which does not exist")))?;
        let capability = sign(keys.newest()?, asker, chunk, access_to(asker, &found));
        chunks.push(location(view, nodes, chunk, &found, capability)?);
    }
    Ok(Some(FileMap { version: row.version, size_bytes, extents, chunks, complete_to }))
}

/// Chunks by id, for a client that knows them from an earlier answer. It gets only those that it may
/// have: its own open ones, and with a grant to read those that the file uses. Others are left out.
pub(super) fn locate_chunks(
    view: &dyn View,
    asker: &Asker<'_>,
    nodes: &dyn Fn(NodeId) -> Liveness,
    inode: InodeId,
    grant: &Grant,
    chunks: &[ChunkId],
) -> Result<Answer, Failure> {
    if chunks.len() > CHUNKS_MAX {
        return Err(refuse(ErrorKind::Malformed, format!("more than {CHUNKS_MAX} chunks asked for")));
    }
    let keys = rows::capability_keys(view)?;
    let allows = |write| grant.check(&keys.0, inode, asker.session, write);
    let may_read = allows(false).is_ok();
    if !may_read {
        allows(true).map_err(|refusal: Refusal| forbidden_grant(inode, refusal))?;
    }

    let mut found = Vec::new();
    for chunk in chunks {
        let Some(row) = rows::chunk(view, *chunk)? else { continue };
        let access = access_to(asker, &row);
        let of_this_file = || rows::get(view, &ChunkFileRow::key(*chunk, inode)).map(|row| row.is_some());
        if access == Access::Append || (may_read && of_this_file()?) {
            let capability = sign(keys.newest()?, asker, *chunk, access);
            found.push(location(view, nodes, *chunk, &row, capability)?);
        }
    }
    Ok(Answer::Chunks(found))
}

fn access_to(asker: &Asker<'_>, row: &ChunkRow) -> Access {
    match row.state == (ChunkState::Open { session: asker.session }) {
        true => Access::Append,
        false => Access::Read,
    }
}

fn location(
    view: &dyn View,
    nodes: &dyn Fn(NodeId) -> Liveness,
    chunk: ChunkId,
    row: &ChunkRow,
    capability: Capability,
) -> Result<ChunkLocation, Fault> {
    let mut replicas = Vec::with_capacity(row.replicas.len());
    for node in &row.replicas {
        let known = rows::datanode(view, *node)?
            .ok_or_else(|| Fault(format!("chunk {chunk} has a replica on node {node}, which is not registered")))?;
        replicas.push(ReplicaAt { node: *node, addr: known.addr });
    }
    replicas.sort_by_key(|at| rank(nodes(at.node)));
    Ok(ChunkLocation { chunk, epoch: row.epoch, len: row.len, replicas, capability: Some(capability) })
}

fn sign(key: &CapabilityKey, asker: &Asker<'_>, chunk: ChunkId, access: Access) -> Capability {
    let expires = Timestamp { secs: asker.now.secs.saturating_add(CAPABILITY_SECS), nanos: asker.now.nanos };
    Capability::sign(key, chunk, access, asker.holder, expires)
}

/// The order in which to try nodes. The sort is stable: within a rank the chain's order stays.
fn rank(liveness: Liveness) -> u8 {
    match liveness {
        Liveness::Live => 0,
        Liveness::Leaving => 1,
        Liveness::Suspect => 2,
        Liveness::Dead => 3,
    }
}

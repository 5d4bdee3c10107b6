//! The life of a chunk, and the tables that follow it: what each node keeps, the digests, who needs attention.

use dfs_proto::chunk::{digest_shard, replica_digest};
use dfs_proto::{ChunkId, NodeId};

use crate::command::Event;
use crate::rows::{
    AttentionRow, ChunkRow, ChunkState, CompactionRow, LostEndRow, NodeChunkRow, NodeDigestRow, SessionChunkRow,
    lost_end,
};
use crate::tx::Tx;
use crate::view::Fault;

/// Ends an open chunk at its committed length: `kept` are its replicas from here on, the epoch rises
/// so that nobody appends under the old one. One without living bytes is deleted at once.
pub(crate) fn seal(tx: &mut Tx<'_>, chunk: ChunkId, row: ChunkRow, kept: Vec<NodeId>) -> Result<(), Fault> {
    let ChunkState::Open { session } = row.state else {
        return Err(Fault(format!("chunk {chunk} is sealed twice")));
    };
    tx.delete(SessionChunkRow::key(session, chunk));
    for node in row.replicas.iter().copied().filter(|node| !kept.contains(node)) {
        tx.delete(NodeChunkRow::key(node, chunk));
        // The old epoch: a copy that repair makes there later has the new one and is not meant.
        tx.event(Event::ReplicaDropped { chunk, epoch: row.epoch, node });
    }
    let row = ChunkRow { state: ChunkState::Sealed, epoch: row.epoch.next(), replicas: kept, ..row };
    for node in &row.replicas {
        flip_digest(tx, *node, chunk, &row)?;
    }
    if row.live_bytes == 0 {
        return delete(tx, chunk, &row);
    }
    tx.put(ChunkRow::key(chunk), &row)?;
    note_attention(tx, chunk, &row)?;
    let ChunkRow { epoch, len, replicas, .. } = row;
    tx.event(Event::Sealed { chunk, epoch, len, replicas });
    Ok(())
}

/// Forgets a sealed chunk. Its replicas are deleted by orders; ids are never used again, so a replica
/// that turns up later is known to be superfluous.
pub(crate) fn delete(tx: &mut Tx<'_>, chunk: ChunkId, row: &ChunkRow) -> Result<(), Fault> {
    for node in &row.replicas {
        tx.delete(NodeChunkRow::key(*node, chunk));
        flip_digest(tx, *node, chunk, row)?;
    }
    tx.delete(AttentionRow::key(chunk));
    tx.delete(LostEndRow::key(chunk));
    tx.delete(CompactionRow::key(chunk));
    tx.delete(ChunkRow::key(chunk));
    tx.totals.counts.chunks = crate::usage::shifted(tx.totals.counts.chunks, -1, "chunks")?;
    tx.event(Event::ChunkDeleted { chunk, epoch: row.epoch, replicas: row.replicas.clone() });
    Ok(())
}

/// All nodes of a chunk have gathered it: it is sealed from here on, under the epoch that they have. The caller sees to it
/// that something in it lives.
pub(crate) fn gathered(tx: &mut Tx<'_>, chunk: ChunkId, row: ChunkRow) -> Result<(), Fault> {
    let row = ChunkRow { state: ChunkState::Sealed, ..row };
    for node in &row.replicas {
        flip_digest(tx, *node, chunk, &row)?;
    }
    tx.put(ChunkRow::key(chunk), &row)?;
    note_attention(tx, chunk, &row)
}

/// Nobody gathers the chunk any more. A replica of it that turns up later is known to be superfluous.
pub(crate) fn forget_gathering(tx: &mut Tx<'_>, chunk: ChunkId, row: &ChunkRow) -> Result<(), Fault> {
    for node in &row.replicas {
        tx.delete(NodeChunkRow::key(*node, chunk));
    }
    tx.delete(ChunkRow::key(chunk));
    tx.totals.counts.chunks = crate::usage::shifted(tx.totals.counts.chunks, -1, "chunks")?;
    tx.event(Event::ChunkDeleted { chunk, epoch: row.epoch, replicas: row.replicas.clone() });
    Ok(())
}

/// A sealed chunk ends at `len`, in front of where it did: no disk has the rest. Its replicas go on counting, under a new
/// epoch; those that are shorter still are bad ones, as after any seal.
pub(crate) fn cut(tx: &mut Tx<'_>, chunk: ChunkId, before: &ChunkRow, len: u32) -> Result<(), Fault> {
    let known = lost_end(tx.view(), chunk)?;
    let lost = before.len.checked_sub(len).and_then(|more| more.checked_add(known));
    let lost = lost.ok_or_else(|| Fault(format!("chunk {chunk} cannot be cut from {} to {len} bytes", before.len)))?;
    let row = ChunkRow { epoch: before.epoch.next(), len, ..before.clone() };
    for node in &row.replicas {
        flip_digest(tx, *node, chunk, before)?;
        flip_digest(tx, *node, chunk, &row)?;
    }
    tx.put(ChunkRow::key(chunk), &row)?;
    tx.put(LostEndRow::key(chunk), &LostEndRow { lost })?;
    let ChunkRow { epoch, len, replicas, .. } = row;
    tx.event(Event::Sealed { chunk, epoch, len, replicas });
    Ok(())
}

/// A verified copy counts from here on.
pub(crate) fn add_replica(tx: &mut Tx<'_>, chunk: ChunkId, mut row: ChunkRow, node: NodeId) -> Result<(), Fault> {
    row.replicas.push(node);
    tx.put(NodeChunkRow::key(node, chunk), &NodeChunkRow)?;
    flip_digest(tx, node, chunk, &row)?;
    tx.put(ChunkRow::key(chunk), &row)?;
    note_attention(tx, chunk, &row)
}

/// A replica of a sealed chunk counts no longer.
pub(crate) fn drop_replica(tx: &mut Tx<'_>, chunk: ChunkId, mut row: ChunkRow, node: NodeId) -> Result<(), Fault> {
    row.replicas.retain(|replica| *replica != node);
    tx.delete(NodeChunkRow::key(node, chunk));
    flip_digest(tx, node, chunk, &row)?;
    tx.put(ChunkRow::key(chunk), &row)?;
    note_attention(tx, chunk, &row)?;
    tx.event(Event::ReplicaDropped { chunk, epoch: row.epoch, node });
    Ok(())
}

/// Keeps the `Attention` row of a chunk whose replicas or target have changed.
pub(crate) fn note_attention(tx: &mut Tx<'_>, chunk: ChunkId, row: &ChunkRow) -> Result<(), Fault> {
    let noted = tx.get(&AttentionRow::key(chunk))?.is_some();
    match (row.needs_attention(), noted) {
        (true, false) => tx.put(AttentionRow::key(chunk), &AttentionRow)?,
        (false, true) => tx.delete(AttentionRow::key(chunk)),
        _ => {}
    }
    if row.needs_attention() {
        tx.event(Event::Attention(chunk));
    }
    Ok(())
}

/// Puts a sealed replica into its node's digest, or takes it out: XOR does both.
fn flip_digest(tx: &mut Tx<'_>, node: NodeId, chunk: ChunkId, row: &ChunkRow) -> Result<(), Fault> {
    let shard = digest_shard(chunk);
    let before = tx.get(&NodeDigestRow::key(node, shard))?.map_or(0, |row| row.digest);
    match before ^ replica_digest(chunk, row.epoch, row.len) {
        0 => tx.delete(NodeDigestRow::key(node, shard)),
        digest => tx.put(NodeDigestRow::key(node, shard), &NodeDigestRow { digest })?,
    }
    Ok(())
}

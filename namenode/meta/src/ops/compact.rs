//! Compaction, step by step: a chunk that is to be gathered, extents that come to name it, the end.

use dfs_proto::limits::RANGE_EXTENTS_MAX;
use dfs_proto::msg::node::Piece;
use dfs_proto::{ChunkId, Epoch, ErrorKind, Extent, InodeId, NodeId};

use crate::chunks;
use crate::command::Reply;
use crate::compaction::{self, Moves};
use crate::rows::{self, ChunkRow, ChunkState, CompactionRow, Content, ExtentRow, NodeChunkRow};
use crate::tx::{Failure, Tx, refuse};
use crate::usage::Usage;
use crate::view::Fault;

pub(crate) fn begin(
    tx: &mut Tx<'_>,
    sources: &[(ChunkId, Epoch)],
    pieces: &[Piece],
    nodes: &[NodeId],
) -> Result<Reply, Failure> {
    let under_way = rows::compactions(tx.view())?;
    let mut found = Vec::with_capacity(sources.len());
    for (i, (chunk, epoch)) in sources.iter().enumerate() {
        found.push(source(tx, *chunk, *epoch)?);
        let taken = |row: &CompactionRow| row.sources.iter().any(|(source, _)| source == chunk);
        if under_way.contains_key(chunk) || under_way.values().any(taken) {
            return Err(refuse(ErrorKind::Stale, format!("chunk {chunk} is in a compaction already")));
        }
        if sources[..i].iter().any(|(other, _)| other == chunk) {
            return Err(refuse(ErrorKind::Malformed, format!("chunk {chunk} is named twice")));
        }
    }
    let rows: Vec<&ChunkRow> = found.iter().collect();
    let len = compaction::check(pieces, &rows).map_err(|wrong| refuse(ErrorKind::Malformed, wrong))?;
    let target = rows.iter().map(|row| row.target).max().unwrap_or(1);
    check_nodes(tx, nodes, target)?;
    // What the sources have the new chunk has to have as well, so that nothing is on fewer disks than before.
    let needed = rows.iter().map(|row| row.replicas.len().min(usize::from(row.target))).max().unwrap_or(1);
    if nodes.len() < needed {
        let message = format!("{} nodes for a chunk whose bytes have {needed} copies", nodes.len());
        return Err(refuse(ErrorKind::Unavailable, message));
    }

    let chunk = tx.totals.next_chunk;
    tx.totals.next_chunk = ChunkId(chunk.0 + 1);
    tx.totals.counts.chunks += 1;
    let row = ChunkRow {
        state: ChunkState::Gathering,
        epoch: Epoch::FIRST,
        len,
        live_bytes: 0,
        target,
        replicas: nodes.to_vec(),
    };
    tx.put(ChunkRow::key(chunk), &row)?;
    for node in nodes {
        tx.put(NodeChunkRow::key(*node, chunk), &NodeChunkRow)?;
    }
    let compaction = CompactionRow { sources: sources.to_vec(), pieces: pieces.to_vec() };
    tx.put(CompactionRow::key(chunk), &compaction)?;
    Ok(Reply::Done)
}

/// A chunk that may be taken from.
fn source(tx: &Tx<'_>, chunk: ChunkId, epoch: Epoch) -> Result<ChunkRow, Failure> {
    let row = rows::chunk(tx.view(), chunk)?.filter(|row| row.is_sealed() && row.epoch == epoch);
    let row = row.ok_or_else(|| refuse(ErrorKind::Stale, format!("chunk {chunk} is not sealed at epoch {epoch}")))?;
    if rows::lost_end(tx.view(), chunk)? > 0 {
        return Err(refuse(ErrorKind::NotPermitted, format!("the end of chunk {chunk} is lost")));
    }
    Ok(row)
}

fn check_nodes(tx: &Tx<'_>, nodes: &[NodeId], target: u8) -> Result<(), Failure> {
    let duties = rows::duties(tx.view())?;
    for (i, node) in nodes.iter().enumerate() {
        if nodes[..i].contains(node) {
            return Err(refuse(ErrorKind::Malformed, format!("node {node} is chosen twice")));
        }
        if duties.contains_key(node) || rows::datanode(tx.view(), *node)?.is_none() {
            return Err(refuse(ErrorKind::Unavailable, format!("node {node} is not in service")));
        }
    }
    if nodes.is_empty() || nodes.len() > usize::from(target) {
        return Err(refuse(ErrorKind::Malformed, format!("{} nodes for {target} copies", nodes.len())));
    }
    Ok(())
}

pub(crate) fn relocate(tx: &mut Tx<'_>, chunk: ChunkId, extents: &[(InodeId, u64)]) -> Result<Reply, Failure> {
    if extents.len() > RANGE_EXTENTS_MAX {
        return Err(refuse(ErrorKind::Malformed, "too many extents in one command"));
    }
    let over = || refuse(ErrorKind::Stale, format!("chunk {chunk} is in no compaction"));
    let compaction = rows::compaction(tx.view(), chunk)?.ok_or_else(over)?;
    let row = rows::chunk(tx.view(), chunk)?.ok_or_else(over)?;
    let len = row.len;
    if row.state == ChunkState::Gathering {
        chunks::gathered(tx, chunk, row)?;
    }
    let moves = Moves::of(chunk, &compaction);
    let mut usage = Usage::default();
    let mut relocated = 0;
    for (inode, end) in extents {
        let Some((extent, moved)) = moved(tx, &moves, *inode, *end)? else { continue };
        // Behind the end, if that was cut since.
        if moved.iter().any(|extent| extent.chunk_end() > len) {
            continue;
        }
        relocate_one(tx, &mut usage, *inode, &extent, &moved)?;
        relocated += 1;
    }
    if relocated == 0 {
        return Err(refuse(ErrorKind::Stale, "none of the extents names bytes that were gathered"));
    }
    usage.settle(tx)?;
    Ok(Reply::Done)
}

/// The extent of a file that ends there, and what it is in the new chunk.
fn moved(tx: &Tx<'_>, moves: &Moves, inode: InodeId, end: u64) -> Result<Option<(Extent, Vec<Extent>)>, Fault> {
    let Some(row) = tx.get(&ExtentRow::key_at(inode, end))? else { return Ok(None) };
    let extent = row.extent(end)?;
    Ok(moves.moved(&extent).map(|moved| (extent, moved)))
}

/// What the file has does not change by this, so neither does its row: its version least of all.
fn relocate_one(
    tx: &mut Tx<'_>,
    usage: &mut Usage,
    inode: InodeId,
    extent: &Extent,
    moved: &[Extent],
) -> Result<(), Failure> {
    let row = rows::inode(tx.view(), inode)?
        .ok_or_else(|| Fault(format!("an extent belongs to inode {inode}, which is gone")))?;
    let Content::File { replication, .. } = row.content else {
        return Err(Fault(format!("inode {inode} has extents and is no file")).into());
    };
    for new in moved {
        let grown = usage.write(tx, row.span(inode), replication, new, false)?;
        if grown != 0 {
            return Err(Fault(format!("{extent:?} of inode {inode} changed the file when it was relocated")).into());
        }
    }
    Ok(())
}

pub(crate) fn end(tx: &mut Tx<'_>, chunk: ChunkId) -> Result<Reply, Failure> {
    if let Some(row) = rows::chunk(tx.view(), chunk)?.filter(|row| row.state == ChunkState::Gathering) {
        chunks::forget_gathering(tx, chunk, &row)?;
    }
    if rows::compaction(tx.view(), chunk)?.is_some() {
        tx.delete(CompactionRow::key(chunk));
    }
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests;

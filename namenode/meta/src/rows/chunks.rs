//! Chunks, where their replicas are, and which files they serve.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dfs_proto::chunk::digest_shard;
use dfs_proto::limits::DIGEST_SHARDS;
use dfs_proto::{ChunkId, Epoch, InodeId, NodeId, SessionId};
use serde::{Deserialize, Serialize};

use super::{Key, Row, get, number_at, numbers, pair, scan_prefix};
use crate::view::{Fault, Table, View};

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ChunkRow {
    pub state: ChunkState,
    pub epoch: Epoch,
    /// Committed bytes. Never shrinks, and once sealed changes only if no disk has the end (`CutChunk`): then what was
    /// committed behind it is told by the chunk's [`LostEndRow`].
    pub len: u32,
    /// Sum of the lengths of the extents that name it. More than `len` if files share bytes.
    pub live_bytes: u64,
    /// Copies wanted: at least the highest replication among the files that use it.
    pub target: u8,
    /// The replicas that count. Each has every byte below `len`, unless its disk lost it.
    pub replicas: Vec<NodeId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum ChunkState {
    /// Only this session may append.
    Open { session: SessionId },
    /// Immutable.
    Sealed,
    /// Its nodes put it together from pieces of other chunks, which its [`CompactionRow`](super::CompactionRow) names.
    /// Nobody appends, no extent names it, and its length is that of the pieces from the start.
    Gathering,
}

impl Row for ChunkRow {
    const TABLE: Table = Table::Chunks;
}

impl ChunkRow {
    pub fn key(chunk: ChunkId) -> Key<ChunkRow> {
        Key::new(chunk.0.to_be_bytes().to_vec())
    }

    pub fn is_sealed(&self) -> bool {
        self.state == ChunkState::Sealed
    }

    /// Whether the repair worker has something to do even when every node is well.
    pub fn needs_attention(&self) -> bool {
        self.is_sealed() && self.replicas.len() != usize::from(self.target)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ChunkFileRow {
    /// Bytes of the chunk that the file uses; a row with 0 does not exist.
    pub bytes: u64,
}

impl Row for ChunkFileRow {
    const TABLE: Table = Table::ChunkFiles;
}

impl ChunkFileRow {
    pub fn key(chunk: ChunkId, inode: InodeId) -> Key<ChunkFileRow> {
        Key::new(pair(chunk.0, inode.0))
    }
}

/// A sealed chunk whose end no disk had.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LostEndRow {
    /// Bytes behind `ChunkRow::len` that were committed: extents may name them, and nobody can read them. A row with 0
    /// does not exist.
    pub lost: u32,
}

impl Row for LostEndRow {
    const TABLE: Table = Table::LostEnds;
}

impl LostEndRow {
    pub fn key(chunk: ChunkId) -> Key<LostEndRow> {
        Key::new(chunk.0.to_be_bytes().to_vec())
    }
}

/// The node has a replica, open or sealed, that counts.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeChunkRow;

impl Row for NodeChunkRow {
    const TABLE: Table = Table::NodeChunks;
}

impl NodeChunkRow {
    pub fn key(node: NodeId, chunk: ChunkId) -> Key<NodeChunkRow> {
        let mut key = node_shard(node, digest_shard(chunk));
        key.extend_from_slice(&chunk.0.to_be_bytes());
        Key::new(key)
    }
}

/// XOR of `replica_digest` over the node's sealed replicas of one shard; a row with 0 does not exist.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NodeDigestRow {
    pub digest: u64,
}

impl Row for NodeDigestRow {
    const TABLE: Table = Table::NodeDigests;
}

impl NodeDigestRow {
    pub fn key(node: NodeId, shard: usize) -> Key<NodeDigestRow> {
        Key::new(node_shard(node, shard))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DatanodeRow {
    /// Where its data plane is reached.
    pub addr: SocketAddr,
}

impl Row for DatanodeRow {
    const TABLE: Table = Table::Datanodes;
}

impl DatanodeRow {
    pub fn key(node: NodeId) -> Key<DatanodeRow> {
        Key::new(node.0.to_be_bytes().to_vec())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct AttentionRow;

impl Row for AttentionRow {
    const TABLE: Table = Table::Attention;
}

impl AttentionRow {
    pub fn key(chunk: ChunkId) -> Key<AttentionRow> {
        Key::new(chunk.0.to_be_bytes().to_vec())
    }
}

pub fn chunk(view: &dyn View, chunk: ChunkId) -> Result<Option<ChunkRow>, Fault> {
    get(view, &ChunkRow::key(chunk))
}

/// Visits every chunk in order of ids.
pub fn chunks(view: &dyn View, visit: &mut dyn FnMut(ChunkId, ChunkRow)) -> Result<(), Fault> {
    let mut fault = None;
    scan_prefix::<ChunkRow>(view, &[], &mut |key, row| match number_at(Table::Chunks, key, 0) {
        Ok(chunk) => {
            visit(ChunkId(chunk), row);
            true
        }
        Err(damage) => {
            fault = Some(damage);
            false
        }
    })?;
    fault.map_or(Ok(()), Err)
}

/// How many committed bytes behind the chunk's end are lost: 0 for nearly every chunk.
pub fn lost_end(view: &dyn View, chunk: ChunkId) -> Result<u32, Fault> {
    Ok(get(view, &LostEndRow::key(chunk))?.map_or(0, |row| row.lost))
}

/// The chunks whose ends were cut off, with the bytes that were.
pub fn lost_ends(view: &dyn View) -> Result<BTreeMap<ChunkId, u32>, Fault> {
    let mut found = Vec::new();
    scan_prefix::<LostEndRow>(view, &[], &mut |key, row| {
        found.push(number_at(Table::LostEnds, key, 0).map(|chunk| (ChunkId(chunk), row.lost)));
        true
    })?;
    found.into_iter().collect()
}

/// The files that use a chunk with how many bytes of it, until `visit` says false.
pub fn chunk_files(view: &dyn View, chunk: ChunkId, visit: &mut dyn FnMut(InodeId, u64) -> bool) -> Result<(), Fault> {
    let mut fault = None;
    scan_prefix::<ChunkFileRow>(
        view,
        &chunk.0.to_be_bytes(),
        &mut |key, row| match number_at(Table::ChunkFiles, key, 8) {
            Ok(inode) => visit(InodeId(inode), row.bytes),
            Err(damage) => {
                fault = Some(damage);
                false
            }
        },
    )?;
    fault.map_or(Ok(()), Err)
}

/// Chunks with a replica on `node`, at most `limit`, by shard and id.
pub fn node_chunks(view: &dyn View, node: NodeId, limit: usize) -> Result<Vec<ChunkId>, Fault> {
    let found = numbers::<NodeChunkRow>(view, &node.0.to_be_bytes(), 10, limit)?;
    Ok(found.into_iter().map(ChunkId).collect())
}

/// Chunks of one digest shard with a replica on `node`, by id.
pub fn node_chunks_of_shard(view: &dyn View, node: NodeId, shard: usize) -> Result<Vec<ChunkId>, Fault> {
    let found = numbers::<NodeChunkRow>(view, &node_shard(node, shard), 10, usize::MAX)?;
    Ok(found.into_iter().map(ChunkId).collect())
}

/// What the node's sealed replicas must add up to, for each of the `DIGEST_SHARDS` shards.
pub fn node_digests(view: &dyn View, node: NodeId) -> Result<Vec<u64>, Fault> {
    let mut digests = vec![0; DIGEST_SHARDS];
    scan_prefix::<NodeDigestRow>(view, &node.0.to_be_bytes(), &mut |key, row| {
        if let Some(digest) = digests.get_mut(shard_of_key(key)) {
            *digest = row.digest;
        }
        true
    })?;
    Ok(digests)
}

pub fn datanode(view: &dyn View, node: NodeId) -> Result<Option<DatanodeRow>, Fault> {
    get(view, &DatanodeRow::key(node))
}

/// Every datanode that was ever registered, by id.
pub fn datanodes(view: &dyn View) -> Result<Vec<(NodeId, DatanodeRow)>, Fault> {
    let mut found = Vec::new();
    scan_prefix::<DatanodeRow>(view, &[], &mut |key, row| {
        found.push(number_at(Table::Datanodes, key, 0).map(|node| (NodeId(node), row)));
        true
    })?;
    found.into_iter().collect()
}

/// Sealed chunks whose number of replicas differs from what is wanted, at most `limit`, by id.
pub fn attention(view: &dyn View, limit: usize) -> Result<Vec<ChunkId>, Fault> {
    Ok(numbers::<AttentionRow>(view, &[], 0, limit)?.into_iter().map(ChunkId).collect())
}

fn node_shard(node: NodeId, shard: usize) -> Vec<u8> {
    let mut key = node.0.to_be_bytes().to_vec();
    key.extend_from_slice(&(shard as u16).to_be_bytes());
    key
}

fn shard_of_key(key: &[u8]) -> usize {
    match key.get(8..10) {
        Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
        _ => usize::MAX,
    }
}

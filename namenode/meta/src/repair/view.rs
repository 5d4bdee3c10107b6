//! What the planner sees.

use dfs_proto::msg::admin::{ChunkHealth, Liveness};
use dfs_proto::{ChunkId, Epoch, NodeId};

use crate::view::{Fault, View};

/// A sealed chunk: its row, and what the leader knows besides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChunkView {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub len: u32,
    /// Copies wanted.
    pub target: u8,
    pub replicas: Vec<NodeId>,
    /// Of `replicas`: reported missing, short or damaged. To be dropped; no source, no copy that counts.
    pub bad: Vec<NodeId>,
    /// Copies that have been ordered and not ended.
    pub in_flight: Vec<Flight>,
    /// Nodes with another order for this chunk on its way (a deletion): no target meanwhile.
    pub busy: Vec<NodeId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flight {
    pub target: NodeId,
    /// The first of its sources, where known.
    pub source: Option<NodeId>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    pub node: NodeId,
    pub liveness: Liveness,
    /// How long it has been so, in milliseconds.
    pub since_ms: u64,
    pub free_bytes: u64,
    /// It has a volume that takes writes.
    pub writable: bool,
    /// Its first scan is over: it has said what it has. Nothing is dropped on the strength of a node
    /// that has not.
    pub scanned: bool,
}

/// The sealed chunks that a plan may be about, at most `limit`: those with `Attention`, and those with
/// a replica on one of the nodes that are not live (`unwell`). `bad`, `in_flight` and `busy` are left
/// empty for the leader to fill in; chunks known as bad are to be added with `ChunkView::load`.
pub fn candidates(_view: &dyn View, _unwell: &[NodeId], _limit: usize) -> Result<Vec<ChunkView>, Fault> {
    unimplemented!()
}

/// Counts how all chunks stand. `age_ms` is 0.
pub fn health(_view: &dyn View, _live: &dyn Fn(NodeId) -> bool) -> Result<ChunkHealth, Fault> {
    unimplemented!()
}

impl ChunkView {
    /// One sealed chunk, or `None` if it is open or gone.
    pub fn load(_view: &dyn View, _chunk: ChunkId) -> Result<Option<ChunkView>, Fault> {
        unimplemented!()
    }
}

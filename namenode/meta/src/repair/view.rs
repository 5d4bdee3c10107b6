//! What the planner sees, and how all chunks stand.

use std::collections::BTreeSet;

use dfs_proto::msg::admin::{ChunkHealth, Liveness};
use dfs_proto::{ChunkId, Epoch, NodeId};

use crate::rows::{self, ChunkRow};
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

impl ChunkView {
    /// One sealed chunk, or `None` if it is open or gone.
    pub fn load(view: &dyn View, chunk: ChunkId) -> Result<Option<ChunkView>, Fault> {
        let row = rows::chunk(view, chunk)?.filter(ChunkRow::is_sealed);
        Ok(row.map(|row| ChunkView {
            chunk,
            epoch: row.epoch,
            len: row.len,
            target: row.target,
            replicas: row.replicas,
            bad: Vec::new(),
            in_flight: Vec::new(),
            busy: Vec::new(),
        }))
    }

    /// Replicas that are not known to be bad.
    pub(super) fn unharmed(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.replicas.iter().copied().filter(|node| !self.bad.contains(node))
    }
}

/// The sealed chunks that a plan may be about, at most `limit`: those with `Attention`, and those with
/// a replica on one of the nodes that are not live (`unwell`). `bad`, `in_flight` and `busy` are left
/// empty for the leader to fill in; chunks known as bad are to be added with `ChunkView::load`.
///
/// Beyond `limit` the lowest ids are seen first, so `limit` should be more than is ever lost at a time
/// for want of nodes; what can be repaired leaves the list and lets the rest in.
pub fn candidates(view: &dyn View, unwell: &[NodeId], limit: usize) -> Result<Vec<ChunkView>, Fault> {
    let mut ids: BTreeSet<ChunkId> = rows::attention(view, limit)?.into_iter().collect();
    for node in unwell {
        ids.extend(rows::node_chunks(view, *node, limit)?);
    }
    let mut found = Vec::new();
    for chunk in ids {
        if found.len() == limit {
            break;
        }
        found.extend(ChunkView::load(view, chunk)?);
    }
    Ok(found)
}

/// Counts how all chunks stand. `age_ms` is 0. Every chunk is exactly one of open, healthy,
/// under-replicated or missing; `over_replicated` counts some of them again.
pub fn health(view: &dyn View, live: &dyn Fn(NodeId) -> bool) -> Result<ChunkHealth, Fault> {
    let nodes = rows::datanodes(view)?;
    let live_nodes = nodes.iter().filter(|(node, _)| live(*node)).count();
    let mut health = ChunkHealth::default();
    rows::chunks(view, &mut |_, row| count(&mut health, &row, live, live_nodes))?;
    Ok(health)
}

/// Counts one chunk.
pub(crate) fn count(health: &mut ChunkHealth, row: &ChunkRow, live: &dyn Fn(NodeId) -> bool, live_nodes: usize) {
    let target = usize::from(row.target);
    health.total += 1;
    if !row.is_sealed() {
        health.open += 1;
        return;
    }
    health.over_replicated += u64::from(row.replicas.len() > target);
    match row.replicas.iter().filter(|node| live(**node)).count() {
        0 => health.missing += 1,
        copies if copies < target => {
            health.under_replicated += 1;
            health.one_copy += u64::from(copies == 1);
            health.lacking_nodes += u64::from(live_nodes < target);
        }
        _ => health.healthy += 1,
    }
}

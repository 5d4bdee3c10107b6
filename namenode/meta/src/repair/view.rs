//! What the planner sees, and how all chunks stand.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::msg::admin::{ChunkHealth, Duty, Liveness};
use dfs_proto::{ChunkId, Epoch, NodeId};

use crate::duty;
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
    /// Of `replicas`: reported missing, short or damaged, or on a dead node that is being removed. To be dropped;
    /// no source, no copy that counts.
    pub bad: Vec<NodeId>,
    /// Of `bad`: those that are whole as far as they go, and end in front of the chunk's end; with their bytes.
    pub short: BTreeMap<NodeId, u32>,
    /// Of `bad`: on dead nodes that an administrator has said will not come back.
    pub gone: Vec<NodeId>,
    /// Of `replicas`: good, but to be elsewhere, because node or volume is being emptied. A source, and to be
    /// dropped once as many others as wanted are there.
    pub leaving: Vec<NodeId>,
    /// Of `replicas`, while one of them is damaged: not known to be bad, but not read since that came out either. Whatever
    /// hurt the one may have hurt the other.
    pub unproven: Vec<NodeId>,
    /// It was tried lately to put a copy together from what is left of damaged ones, and did not succeed.
    pub hopeless: bool,
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
    /// On its healthy volumes, as `free_bytes`.
    pub total_bytes: u64,
    /// It is in service and has a volume that takes writes.
    pub writable: bool,
    /// It is in maintenance: that it is silent is no reason to repair.
    pub excused: bool,
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
            short: BTreeMap::new(),
            gone: Vec::new(),
            leaving: Vec::new(),
            unproven: Vec::new(),
            hopeless: false,
            in_flight: Vec::new(),
            busy: Vec::new(),
        }))
    }

    /// Marks the replicas on nodes that are to leave. One that is being removed and does not answer has nothing that
    /// could be waited for: its replicas are as good as lost.
    pub fn mark_leaving(&mut self, duties: &BTreeMap<NodeId, Duty>, live: &dyn Fn(NodeId) -> bool) {
        for node in &self.replicas {
            match duties.get(node) {
                Some(Duty::Removing { .. }) if !live(*node) => {
                    self.bad.push(*node);
                    self.gone.push(*node);
                }
                Some(duty) if duty::leaves(duty) => self.leaving.push(*node),
                _ => {}
            }
        }
        for nodes in [&mut self.bad, &mut self.leaving] {
            nodes.sort_unstable();
            nodes.dedup();
        }
    }

    /// Whether there is anything of this chunk on the node, or on its way there or away.
    pub(super) fn knows(&self, node: NodeId) -> bool {
        self.replicas.contains(&node)
            || self.busy.contains(&node)
            || self.in_flight.iter().any(|flight| flight.target == node)
    }

    /// Replicas that are not known to be bad.
    pub(super) fn unharmed(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.replicas.iter().copied().filter(|node| !self.bad.contains(node))
    }
}

/// The sealed chunks that a plan may be about, at most `limit`: those with `Attention`, and those with
/// a replica on one of the nodes that are not live or are to leave (`unwell`). `bad`, `leaving`, `unproven`, `in_flight`
/// and `busy` are left empty for the leader to fill in; chunks known as bad are to be added with `ChunkView::load`.
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

/// What is known of nodes and replicas beside the rows.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Whether a node answers.
    pub live: &'a dyn Fn(NodeId) -> bool,
    /// Whether a replica is known to be damaged or missing.
    pub bad: &'a dyn Fn(ChunkId, NodeId) -> bool,
}

impl Known<'_> {
    /// Every node answers and every replica is good.
    #[cfg(test)]
    pub const ALL_WELL: Known<'static> = Known { live: &|_| true, bad: &|_, _| false };

    /// The replicas of a chunk that can be read, as far as is known.
    pub(crate) fn good(&self, chunk: ChunkId, row: &ChunkRow) -> usize {
        row.replicas.iter().filter(|node| (self.live)(**node) && !(self.bad)(chunk, **node)).count()
    }
}

/// Counts how all chunks stand. `age_ms` is 0. Every chunk is exactly one of open, healthy,
/// under-replicated or missing; `over_replicated` counts some of them again.
pub fn health(view: &dyn View, known: Known<'_>) -> Result<ChunkHealth, Fault> {
    let nodes = rows::datanodes(view)?;
    let live_nodes = nodes.iter().filter(|(node, _)| (known.live)(*node)).count();
    let mut health = ChunkHealth { lost_ends: rows::lost_ends(view)?.len() as u64, ..ChunkHealth::default() };
    rows::chunks(view, &mut |chunk, row| count(&mut health, chunk, &row, known, live_nodes))?;
    Ok(health)
}

/// Counts one chunk.
pub(crate) fn count(health: &mut ChunkHealth, chunk: ChunkId, row: &ChunkRow, known: Known<'_>, live_nodes: usize) {
    let target = usize::from(row.target);
    health.total += 1;
    if !row.is_sealed() {
        health.open += 1;
        return;
    }
    health.over_replicated += u64::from(row.replicas.len() > target);
    health.dead_bytes += u64::from(row.len).saturating_sub(row.live_bytes);
    match known.good(chunk, row) {
        0 => health.missing += 1,
        copies if copies < target => {
            health.under_replicated += 1;
            health.one_copy += u64::from(copies == 1);
            health.lacking_nodes += u64::from(live_nodes < target);
        }
        _ => health.healthy += 1,
    }
}

//! Moves chunks from full nodes to empty ones (`namenode/CONSISTENCY.md`, section 9.3).
//!
//! A move is planned as a copy too many; the rule for superfluous replicas does the rest. Each one makes the fullest
//! node of a chunk and an emptier one more alike without letting them change places, what is under way counted as done.
//! So the sum over nodes of the squares of how full they are falls with every move, and moving ends.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use dfs_proto::limits::DIGEST_SHARDS;
use dfs_proto::msg::admin::Liveness;
use dfs_proto::{ChunkId, NodeId};

use super::plan::{Planner, used};
use super::{ChunkView, NodeView, Risk};
use crate::rows;
use crate::view::{Fault, View};

/// Full nodes of which chunks are looked at in one pass, fullest first.
const NODES_PER_PASS: usize = 8;
/// Chunks that are looked at of each of them.
const CHUNKS_PER_NODE: usize = 64;

/// How full disks are: millionths of their size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Share(u64);

impl Share {
    const FULL: Share = Share(1_000_000);

    /// So many of a hundred.
    pub fn from_points(points: u8) -> Share {
        Share(u64::from(points) * 10_000)
    }

    /// A node without healthy disks has no room, and so is full.
    pub fn used(node: &NodeView) -> Share {
        Share::of(node.total_bytes.saturating_sub(node.free_bytes), node.total_bytes)
    }

    fn of(bytes: u64, total: u64) -> Share {
        match total {
            0 => Share::FULL,
            total => Share((u128::from(bytes) * 1_000_000 / u128::from(total)) as u64),
        }
    }

    /// By how much this is more than `other`.
    pub fn above(self, other: Share) -> Share {
        Share(self.0.saturating_sub(other.0))
    }
}

/// Where the search for chunks of a node goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    shard: usize,
    /// Of this shard, chunks up to this one were seen.
    after: Option<ChunkId>,
}

/// What was found on one full node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    pub node: NodeId,
    pub chunks: Vec<ChunkId>,
    pub next: Cursor,
    /// The search came to the end and begins anew.
    pub ended: bool,
}

/// Nodes that are fuller than the emptiest one that takes copies by more than `above`, fullest first.
pub fn full_nodes(nodes: &[NodeView], above: Share) -> Vec<NodeId> {
    let emptiest = nodes.iter().filter(|node| takes_part(node)).map(Share::used).min();
    let is_full = |node: &&NodeView| emptiest.is_some_and(|emptiest| Share::used(node).above(emptiest) > above);
    let mut full: Vec<&NodeView> = nodes.iter().filter(|node| takes_part(node)).filter(is_full).collect();
    full.sort_by_key(|node| (Reverse(Share::used(node)), node.node));
    full.into_iter().map(|node| node.node).collect()
}

/// Some chunks of the fullest nodes, from where the search of the last pass ended. Which of them can be moved is for the
/// plan to say.
pub fn candidates(
    view: &dyn View,
    nodes: &[NodeView],
    above: Share,
    from: &dyn Fn(NodeId) -> Cursor,
) -> Result<Vec<Found>, Fault> {
    let full = full_nodes(nodes, above);
    full.into_iter().take(NODES_PER_PASS).map(|node| chunks_of(view, node, from(node))).collect()
}

fn chunks_of(view: &dyn View, node: NodeId, from: Cursor) -> Result<Found, Fault> {
    let mut found = Found { node, chunks: Vec::new(), next: Cursor::default(), ended: true };
    let mut after = from.after;
    for shard in from.shard..DIGEST_SHARDS {
        let here = rows::node_chunks_of_shard(view, node, shard)?;
        let seen = after.take().map_or(0, |after| here.partition_point(|chunk| *chunk <= after));
        let wanted = CHUNKS_PER_NODE - found.chunks.len();
        found.chunks.extend(here[seen..].iter().take(wanted));
        if found.chunks.len() == CHUNKS_PER_NODE {
            found.next = Cursor { shard, after: found.chunks.last().copied() };
            found.ended = false;
            break;
        }
    }
    Ok(found)
}

/// About how many bytes have to move until no node is fuller than another by more than `above`: what nodes have too much,
/// or lack, of being as full as all of them together, give or take half of `above`.
pub fn bytes_to_move(nodes: &[NodeView], above: Share) -> u64 {
    if full_nodes(nodes, above).is_empty() {
        return 0;
    }
    let part: Vec<&NodeView> = nodes.iter().filter(|node| takes_part(node)).collect();
    let sum = |bytes: &dyn Fn(&NodeView) -> u64| part.iter().map(|node| u128::from(bytes(node))).sum::<u128>();
    let total = sum(&|node| node.total_bytes).max(1);
    let used = sum(&|node| node.total_bytes.saturating_sub(node.free_bytes));
    let (mean, slack) = (used * 1_000_000 / total, u128::from(above.0) / 2);
    let (mut excess, mut lack) = (0, 0);
    for node in part {
        let has = node.total_bytes.saturating_sub(node.free_bytes);
        let of = |millionths: u128| (u128::from(node.total_bytes) * millionths / 1_000_000) as u64;
        excess += has.saturating_sub(of(mean + slack));
        lack += of(mean.saturating_sub(slack)).saturating_sub(has);
    }
    excess.max(lack)
}

fn takes_part(node: &NodeView) -> bool {
    node.liveness == Liveness::Live && node.writable && node.scanned && node.total_bytes > 0
}

/// What nodes will have when all that is under way and planned is done.
struct Levels(BTreeMap<NodeId, Level>);

#[derive(Clone, Copy)]
struct Level {
    used: u64,
    total: u64,
}

impl Levels {
    fn share(&self, node: NodeId) -> Option<Share> {
        self.0.get(&node).map(|level| Share::of(level.used, level.total))
    }

    fn fullest(&self, of: &[NodeId]) -> Option<NodeId> {
        of.iter().copied().filter(|node| self.0.contains_key(node)).max_by_key(|node| (self.share(*node), *node))
    }

    fn add(&mut self, node: NodeId, bytes: u32) {
        if let Some(level) = self.0.get_mut(&node) {
            level.used += u64::from(bytes);
        }
    }

    fn take(&mut self, node: NodeId, bytes: u32) {
        if let Some(level) = self.0.get_mut(&node) {
            level.used = level.used.saturating_sub(u64::from(bytes));
        }
    }

    /// Whether `from` is fuller than `to` by more than `above`, and not less full after `bytes` have moved.
    fn may_move(&self, bytes: u32, from: NodeId, to: NodeId, above: Share) -> bool {
        let (Some(from), Some(to)) = (self.0.get(&from), self.0.get(&to)) else { return false };
        let bytes = u64::from(bytes);
        let before = Share::of(from.used, from.total).above(Share::of(to.used, to.total));
        let (left, grown) = (from.used.saturating_sub(bytes), to.used + bytes);
        before > above && Share::of(left, from.total) >= Share::of(grown, to.total)
    }
}

impl Planner<'_> {
    /// Plans moves of `movable`, fullest nodes first. `chunks` are those that were planned for before.
    pub(super) fn moves(&mut self, chunks: &[ChunkView], movable: &[ChunkView]) {
        let Some(above) = self.policy.uneven_above else { return };
        let mut levels = self.levels(chunks);
        let fullest = |levels: &Levels, chunk: &ChunkView| {
            let from = levels.fullest(&chunk.replicas)?;
            Some((Reverse(levels.share(from)?), chunk.chunk))
        };
        let mut order: Vec<&ChunkView> = movable.iter().filter(|chunk| self.may_leave(chunk)).collect();
        order.sort_by_cached_key(|chunk| fullest(&levels, chunk));
        order.dedup_by_key(|chunk| chunk.chunk);
        for chunk in order {
            self.one_move(chunk, &mut levels, above);
        }
    }

    fn one_move(&mut self, chunk: &ChunkView, levels: &mut Levels, above: Share) -> Option<()> {
        let idle = |copies: &BTreeMap<NodeId, u32>, node| used(copies, node) < self.policy.moves_per_node;
        let from = levels.fullest(&chunk.replicas)?;
        let can_take = |node: &&NodeView| {
            levels.may_move(chunk.len, from, node.node, above)
                && !chunk.knows(node.node)
                && self.room(node) >= u64::from(chunk.len)
                && idle(&self.copies_in, node.node)
        };
        let to = self.nodes.values().copied().filter(can_take).min_by_key(|node| (levels.share(node.node), node.node));
        let to = to?.node;
        let mut sources = chunk.replicas.clone();
        sources.sort_by_key(|node| (used(&self.copies_out, *node), *node));
        if !idle(&self.copies_out, *sources.first()?) {
            return None;
        }
        levels.take(from, chunk.len);
        levels.add(to, chunk.len);
        self.order_copy(chunk, to, sources, Risk::Uneven);
        Some(())
    }

    /// Whether nothing is, or should be, done to the chunk but to move it: all is there, good, and confirmed.
    fn may_leave(&self, chunk: &ChunkView) -> bool {
        let untouched = chunk.bad.is_empty()
            && chunk.leaving.is_empty()
            && chunk.unproven.is_empty()
            && chunk.in_flight.is_empty()
            && chunk.busy.is_empty();
        let confirmed = |node: &NodeId| self.nodes.get(node).is_some_and(|view| takes_part(view));
        untouched && chunk.replicas.len() == usize::from(chunk.target) && chunk.replicas.iter().all(confirmed)
    }

    fn levels(&self, chunks: &[ChunkView]) -> Levels {
        let level =
            |node: &NodeView| Level { used: node.total_bytes.saturating_sub(node.free_bytes), total: node.total_bytes };
        let part = self.nodes.values().filter(|node| takes_part(node));
        let mut levels = Levels(part.map(|node| (node.node, level(node))).collect());
        for copy in &self.plan.copies {
            levels.add(copy.target, copy.len);
        }
        for chunk in chunks {
            let arriving = chunk.in_flight.iter().map(|flight| flight.target);
            // How much of it has arrived is not known. If all of it has, the node seems fuller than it will be.
            arriving.clone().for_each(|node| levels.add(node, chunk.len));
            // What is too much goes from the fullest nodes; nobody is emptied twice for it.
            let mut there: Vec<NodeId> = chunk.unharmed().chain(arriving).collect();
            there.retain(|node| levels.0.contains_key(node));
            while there.len() > usize::from(chunk.target) {
                let Some(fullest) = levels.fullest(&there) else { break };
                levels.take(fullest, chunk.len);
                there.retain(|node| *node != fullest);
            }
        }
        levels
    }
}

#[cfg(test)]
mod tests;

//! The planner.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::msg::admin::Liveness;
use dfs_proto::{ChunkId, NodeId};

use super::balance::Share;
use super::{ChunkView, CopyPlan, CutPlan, DropPlan, NodeView, Plan, Policy, Reason, Risk, Wait};

/// Plans one pass over `chunks` (see [`super::candidates`]), in which every chunk that has a copy under way must be, and
/// moves out of `movable` ([`super::balance::candidates`]), which are others. Ties are broken by ids, so the same
/// arguments give the same plan.
pub fn plan(chunks: &[ChunkView], movable: &[ChunkView], nodes: &[NodeView], policy: &Policy) -> Plan {
    let mut planner = Planner::new(chunks, nodes, policy);
    let mut jobs: Vec<Job<'_>> = chunks.iter().flat_map(|chunk| planner.jobs(chunk)).collect();
    jobs.sort_by_key(|job| (job.risk, job.have, job.chunk.chunk));
    for job in jobs {
        if let Err(reason) = planner.copy(&job) {
            planner.wait(job.chunk, reason);
        }
    }
    for chunk in chunks {
        planner.drop_bad(chunk);
        planner.drop_superfluous(chunk);
    }
    planner.moves(chunks, movable);
    planner.plan
}

/// One copy to be made.
struct Job<'a> {
    chunk: &'a ChunkView,
    risk: Risk,
    /// Copies there are, with those under way and those planned before this one.
    have: usize,
}

pub(super) struct Planner<'a> {
    pub(super) nodes: BTreeMap<NodeId, &'a NodeView>,
    pub(super) policy: &'a Policy,
    /// Copies under way and planned, by receiving and by serving node.
    pub(super) copies_in: BTreeMap<NodeId, u32>,
    pub(super) copies_out: BTreeMap<NodeId, u32>,
    /// Bytes of planned copies, by receiving node.
    reserved_bytes: BTreeMap<NodeId, u64>,
    /// Chunks in `plan.waits`.
    waiting: BTreeSet<ChunkId>,
    pub(super) plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(chunks: &[ChunkView], nodes: &'a [NodeView], policy: &'a Policy) -> Planner<'a> {
        let mut planner = Planner {
            nodes: nodes.iter().map(|node| (node.node, node)).collect(),
            policy,
            copies_in: BTreeMap::new(),
            copies_out: BTreeMap::new(),
            reserved_bytes: BTreeMap::new(),
            waiting: BTreeSet::new(),
            plan: Plan::default(),
        };
        for flight in chunks.iter().flat_map(|chunk| &chunk.in_flight) {
            *planner.copies_in.entry(flight.target).or_default() += 1;
            if let Some(source) = flight.source {
                *planner.copies_out.entry(source).or_default() += 1;
            }
        }
        planner
    }

    /// The copies that the chunk needs; where it needs none yet but will, notes why it waits.
    fn jobs<'c>(&mut self, chunk: &'c ChunkView) -> Vec<Job<'c>> {
        let target = usize::from(chunk.target);
        let live = self.with(chunk, |node| node.liveness == Liveness::Live);
        if live.is_empty() {
            // No copy can bring back an end that none of them has.
            let damaged = self.damaged(chunk);
            if !damaged.is_empty() && damaged.iter().all(|node| chunk.short.contains_key(node)) {
                if let Err(reason) = self.cut(chunk) {
                    self.wait(chunk, reason);
                }
                return Vec::new();
            }
            // Damaged in different places they make a whole copy between them: every frame is verified on the way.
            if !chunk.hopeless && chunk.in_flight.is_empty() && !damaged.is_empty() {
                return vec![Job { chunk, risk: Risk::OneCopyLeft, have: 0 }];
            }
            self.wait(chunk, Reason::NoLiveSource);
            return Vec::new();
        }
        let stay = |node: &NodeId| !chunk.leaving.contains(node);
        let (staying, going): (Vec<NodeId>, Vec<NodeId>) = live.iter().copied().partition(stay);
        let mut away = self.with(chunk, |node| self.reason_to_wait_for(node).is_some());
        away.retain(stay);

        // One copy left is no time to wait for who may come back.
        let expected = if live.len() == 1 { staying.len() } else { staying.len() + away.len() };
        let have = expected + chunk.in_flight.len();
        if have >= target && staying.len() < target {
            let who = away.iter().filter_map(|node| self.reason_to_wait_for(self.nodes[node])).min();
            let reason = who.filter(|_| expected >= target).unwrap_or(Reason::CopyUnderWay);
            self.wait(chunk, reason);
        }
        let min_copies = usize::from(self.policy.min_copies);
        // What is only to be moved protects as well as before for as long as it has not been moved.
        let risk = |have: usize| match have + going.len() {
            have if have >= target => Risk::BelowTarget,
            0 | 1 => Risk::OneCopyLeft,
            have if have < min_copies => Risk::BelowMinCopies,
            _ => Risk::BelowTarget,
        };
        (have..target).map(|have| Job { chunk, risk: risk(have), have }).collect()
    }

    /// Plans to end a chunk at its longest replica, all that can be asked being short; or says why that has to wait.
    fn cut(&mut self, chunk: &ChunkView) -> Result<(), Reason> {
        let mut len = None;
        for node in &chunk.replicas {
            let view = self.nodes.get(node);
            let live = view.is_some_and(|view| view.liveness == Liveness::Live);
            // An administrator has written it off. Anybody else who is away may come back with the end.
            if !live && chunk.gone.contains(node) {
                continue;
            }
            match chunk.short.get(node) {
                Some(has) if live && view.is_some_and(|view| view.scanned) => len = len.max(Some(*has)),
                _ => return Err(Reason::MayHaveEnd(*node)),
            }
        }
        if !chunk.in_flight.is_empty() {
            return Err(Reason::CopyUnderWay);
        }
        if self.plan.cuts.len() >= self.policy.drops_per_pass as usize {
            return Err(Reason::CutBudgetUsedUp);
        }
        let len = len.filter(|len| *len < chunk.len).ok_or(Reason::NoLiveSource)?;
        let ChunkView { chunk, epoch, ref replicas, .. } = *chunk;
        self.plan.cuts.push(CutPlan { chunk, epoch, len, replicas: replicas.clone() });
        Ok(())
    }

    /// Plans one copy, or says why it cannot be.
    fn copy(&mut self, job: &Job<'_>) -> Result<(), Reason> {
        let urgent = job.risk == Risk::OneCopyLeft;
        let target = self.target(job.chunk, urgent)?;
        let sources = self.sources(job.chunk, urgent)?;
        self.order_copy(job.chunk, target, sources, job.risk);
        Ok(())
    }

    pub(super) fn order_copy(&mut self, chunk: &ChunkView, target: NodeId, sources: Vec<NodeId>, why: Risk) {
        *self.copies_in.entry(target).or_default() += 1;
        *self.copies_out.entry(sources[0]).or_default() += 1;
        *self.reserved_bytes.entry(target).or_default() += u64::from(chunk.len);
        let ChunkView { chunk, epoch, len, .. } = *chunk;
        self.plan.copies.push(CopyPlan { chunk, epoch, len, target, sources, why });
    }

    /// The live node without a replica that has most room.
    fn target(&self, chunk: &ChunkView, urgent: bool) -> Result<NodeId, Reason> {
        let has_one = |node: &NodeId| chunk.knows(*node) || self.is_promised(chunk, *node);
        let mut without: Vec<&NodeView> = self
            .nodes
            .values()
            .copied()
            .filter(|node| node.liveness == Liveness::Live && !has_one(&node.node))
            .collect();
        if without.is_empty() {
            return Err(Reason::NoNodeWithoutReplica);
        }
        without.retain(|node| node.writable && self.room(node) >= u64::from(chunk.len));
        without.sort_by_key(|node| (Reverse(self.room(node)), node.node));
        let best = without.first().ok_or(Reason::NoRoom)?.node;
        let limit = if urgent { self.policy.urgent_copies_in_per_node } else { self.policy.copies_in_per_node };
        let idle = without.iter().find(|node| used(&self.copies_in, node.node) < limit);
        idle.map(|node| node.node).ok_or(Reason::BudgetUsedUp(best))
    }

    fn is_promised(&self, chunk: &ChunkView, node: NodeId) -> bool {
        self.plan.copies.iter().any(|copy| copy.chunk == chunk.chunk && copy.target == node)
    }

    /// The live holders of damaged replicas, by id.
    fn damaged(&self, chunk: &ChunkView) -> Vec<NodeId> {
        let live = |node: &NodeId| self.nodes.get(node).is_some_and(|view| view.liveness == Liveness::Live);
        let mut found: Vec<NodeId> =
            chunk.bad.iter().copied().filter(|n| chunk.replicas.contains(n) && live(n)).collect();
        found.sort();
        found
    }

    /// The live holders of good replicas, the least busy one first; without any, those of damaged ones.
    fn sources(&self, chunk: &ChunkView, urgent: bool) -> Result<Vec<NodeId>, Reason> {
        let mut sources = self.with(chunk, |node| node.liveness == Liveness::Live);
        if sources.is_empty() {
            sources = self.damaged(chunk);
        }
        sources.sort_by_key(|node| (used(&self.copies_out, *node), *node));
        let first = *sources.first().ok_or(Reason::NoLiveSource)?;
        let limit = if urgent { self.policy.urgent_copies_out_per_node } else { self.policy.copies_out_per_node };
        match used(&self.copies_out, first) < limit {
            true => Ok(sources),
            false => Err(Reason::BudgetUsedUp(first)),
        }
    }

    /// A bad replica is in the way of a good one on the same node. It may also hold the last good copy of some frame,
    /// so it stays until another replica has been read well since.
    fn drop_bad(&mut self, chunk: &ChunkView) {
        if self.confirmed(chunk).is_empty() {
            if let Some(node) = chunk.unproven.first() {
                self.wait(chunk, Reason::Unproven(*node));
            }
            return;
        }
        for node in chunk.bad.iter().filter(|node| chunk.replicas.contains(node)) {
            self.drop_one(chunk, *node);
        }
    }

    fn drop_superfluous(&mut self, chunk: &ChunkView) {
        let target = usize::from(chunk.target);
        let surplus = chunk.unharmed().count().saturating_sub(target);
        // A replica may be the source of a copy under way.
        if surplus == 0 || !chunk.in_flight.is_empty() {
            return;
        }
        let mut confirmed = self.confirmed(chunk);
        if confirmed.len() < target {
            if let Some(node) = self.with(chunk, |node| node.liveness == Liveness::Live && !node.scanned).first() {
                self.wait(chunk, Reason::Unconfirmed(*node));
            }
            return;
        }
        // Nobody can read what is on a node that is gone; what comes back with it is deleted as superfluous.
        let mut victims: Vec<NodeId> = chunk.unharmed().filter(|node| self.is_given_up(*node)).collect();
        let moved: Vec<NodeId> =
            chunk.unharmed().filter(|node| chunk.leaving.contains(node) && !victims.contains(node)).collect();
        victims.extend(moved);
        confirmed.sort_by_key(|node| (Reverse(Share::used(self.nodes[node])), Reverse(*node)));
        victims.extend(confirmed.iter().take(confirmed.len() - target));
        for node in victims.into_iter().take(surplus) {
            self.drop_one(chunk, node);
        }
    }

    fn drop_one(&mut self, chunk: &ChunkView, node: NodeId) {
        if self.plan.drops.len() < self.policy.drops_per_pass as usize {
            self.plan.drops.push(DropPlan { chunk: chunk.chunk, epoch: chunk.epoch, node });
        } else {
            self.wait(chunk, Reason::DropBudgetUsedUp);
        }
    }

    /// Notes the first reason only: the others follow from it or come up in the next pass.
    fn wait(&mut self, chunk: &ChunkView, reason: Reason) {
        let chunk = chunk.chunk;
        if self.waiting.insert(chunk) {
            self.plan.waits.push(Wait { chunk, reason });
        }
    }

    /// Unharmed replicas that stay, on live nodes that have said what they have, and that were read since another one
    /// was found damaged.
    fn confirmed(&self, chunk: &ChunkView) -> Vec<NodeId> {
        let mut confirmed = self.with(chunk, |node| node.liveness == Liveness::Live && node.scanned);
        confirmed.retain(|node| !chunk.leaving.contains(node) && !chunk.unproven.contains(node));
        confirmed
    }

    /// Why a node that does not answer may still be counted on.
    fn reason_to_wait_for(&self, node: &NodeView) -> Option<Reason> {
        match node.liveness {
            Liveness::Live => None,
            _ if node.excused => Some(Reason::InMaintenance(node.node)),
            Liveness::Leaving if node.since_ms < self.policy.leaving_grace_ms => Some(Reason::LeftInOrder(node.node)),
            Liveness::Suspect => Some(Reason::Silent(node.node)),
            Liveness::Leaving | Liveness::Dead => None,
        }
    }

    /// Unharmed replicas on nodes that are known and `are` so, by id.
    pub(super) fn with(&self, chunk: &ChunkView, are: impl Fn(&NodeView) -> bool) -> Vec<NodeId> {
        let mut found: Vec<NodeId> =
            chunk.unharmed().filter(|node| self.nodes.get(node).is_some_and(|view| are(view))).collect();
        found.sort();
        found
    }

    /// A node that nobody has heard of since this leader leads is as good as dead, and so is one that
    /// left in order and stayed away.
    fn is_given_up(&self, node: NodeId) -> bool {
        self.nodes
            .get(&node)
            .is_none_or(|view| view.liveness != Liveness::Live && self.reason_to_wait_for(view).is_none())
    }

    pub(super) fn room(&self, node: &NodeView) -> u64 {
        node.free_bytes.saturating_sub(self.reserved_bytes.get(&node.node).copied().unwrap_or(0))
    }
}

pub(super) fn used(copies: &BTreeMap<NodeId, u32>, node: NodeId) -> u32 {
    copies.get(&node).copied().unwrap_or(0)
}

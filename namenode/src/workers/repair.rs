//! Brings every sealed chunk back to the replicas it should have, and moves some from full nodes to empty ones: looks,
//! has `dfs_meta::repair` plan, and turns the plan into orders and commands.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::repair::balance::{self, Found, Share};
use dfs_meta::repair::{self, ChunkView, CopyPlan, CutPlan, DropPlan, Known, Plan, Policy, Risk};
use dfs_meta::{Body, Fault, View, duty, rows};
use dfs_proto::msg::admin::{Balance, ChunkHealth, Liveness};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::msg::node::Order;
use dfs_proto::{Access, Capability, CapabilityKey, NodeId, Timestamp, WireError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::leader::CopyInFlight;
use crate::namenode::Namenode;

/// Time between two passes without a hint.
const TICK: Duration = Duration::from_secs(1);
/// Hints that come in a crowd share a pass.
const PASS_EVERY: Duration = Duration::from_millis(100);
/// Chunks that one pass looks at; the next pass sees the rest.
const CANDIDATES_MAX: usize = 16_384;
/// How long a copy's capability is good for; longer than a copy may take.
const CAPABILITY_SECS: i64 = 600;
/// Counting all chunks takes at most one part in so many of this worker's time.
const HEALTH_SHARE: u32 = 20;

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    let mut next_health = Instant::now();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = namenode.repair_wanted.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        namenode.notice_pause();
        if namenode.leading().is_ok()
            && let Err(error) = pass(&namenode, &mut next_health).await
        {
            warn!(%error, "repair is delayed");
        }
        tokio::time::sleep(PASS_EVERY).await;
    }
}

/// What one pass sees.
struct Sight {
    chunks: Vec<ChunkView>,
    /// Of full nodes, and none of `chunks`.
    movable: Vec<ChunkView>,
    found: Vec<Found>,
    nodes: Vec<repair::NodeView>,
    addrs: BTreeMap<NodeId, ReplicaAt>,
    key: CapabilityKey,
    policy: Policy,
    balance: Balance,
    health: Option<(ChunkHealth, Duration)>,
}

async fn pass(namenode: &Arc<Namenode>, next_health: &mut Instant) -> Result<(), WireError> {
    let started = Instant::now();
    let gone = |node| namenode.nodes.liveness(node, started) == Liveness::Dead;
    namenode.board.sweep(&gone, started);
    let (me, count) = (namenode.clone(), started >= *next_health);
    let sight = namenode.read_long(move |view| look(&me, view, count)).await?;
    let Some(Sight { chunks, movable, found, nodes, addrs, key, policy, balance, health }) = sight else {
        return Ok(());
    };
    if let Some((_, took)) = health {
        *next_health = Instant::now() + (took * HEALTH_SHARE).max(TICK);
    }
    for chunk in &chunks {
        prove(namenode, chunk, &nodes);
    }
    let plan = repair::plan(&chunks, &movable, &nodes, &policy);
    let moves = plan.copies.iter().filter(|copy| copy.why == Risk::Uneven).count();
    let above = Share::from_points(balance.points);
    namenode.board.searched(balance::full_nodes(&nodes, above).len(), &found, moves > 0, Instant::now());
    namenode.board.balance(balance, balance::bytes_to_move(&nodes, above));
    let queued = (plan.copies.len() - moves + plan.cuts.len() + plan.waits.len()) as u64;
    namenode.board.pass_done(health.map(|(health, _)| health), plan.wait_summary(), queued, Instant::now());
    carry_out(namenode, plan, &addrs, &key).await
}

/// Collects what the planner needs; `None` before genesis, and while datanodes may be there that were not
/// heard yet.
fn look(namenode: &Namenode, view: &dyn View, count: bool) -> Result<Option<Sight>, Fault> {
    let (Some(config), Some(key)) = (rows::config(view)?, rows::capability_keys(view)?.0.pop()) else {
        return Ok(None);
    };
    let datanodes = rows::datanodes(view)?;
    let ids: Vec<NodeId> = datanodes.iter().map(|(node, _)| *node).collect();
    if !namenode.nodes.have_had_their_say(&ids, Instant::now()) {
        return Ok(None);
    }
    let duties = rows::duties(view)?;
    let nodes = namenode.nodes.for_repair(&ids, &duties, Instant::now());
    let leaves = |node: &NodeId| duties.get(node).is_some_and(duty::leaves);
    let unwell = nodes.iter().filter(|view| view.liveness != Liveness::Live || leaves(&view.node));
    let unwell: Vec<NodeId> = unwell.map(|view| view.node).collect();
    let mut chunks = repair::candidates(view, &unwell, CANDIDATES_MAX)?;
    let seen: BTreeSet<_> = chunks.iter().map(|chunk| chunk.chunk).collect();
    let mut others = namenode.board.troubled_chunks();
    others.extend(namenode.board.chunks_in_flight());
    for chunk in others.difference(&seen) {
        chunks.extend(ChunkView::load(view, *chunk)?);
    }
    let balance = rows::balance(view)?;
    let uneven_above = balance.on.then(|| Share::from_points(balance.points));
    let found = match uneven_above {
        Some(above) => balance::candidates(view, &nodes, above, &|node| namenode.board.search_from(node))?,
        None => Vec::new(),
    };
    let seen: BTreeSet<_> = chunks.iter().map(|chunk| chunk.chunk).collect();
    let mut movable = Vec::new();
    for chunk in found.iter().flat_map(|found| &found.chunks).collect::<BTreeSet<_>>() {
        if !seen.contains(chunk) {
            movable.extend(ChunkView::load(view, *chunk)?);
        }
    }
    let live = |node| nodes.iter().any(|view| view.node == node && view.liveness == Liveness::Live);
    for chunk in chunks.iter_mut().chain(&mut movable) {
        namenode.board.annotate(chunk);
        chunk.mark_leaving(&duties, &live);
    }
    let health = match count {
        true => {
            let begun = Instant::now();
            let bad = |chunk, node| namenode.board.is_bad(chunk, node);
            Some((repair::health(view, Known { live: &live, bad: &bad })?, begun.elapsed()))
        }
        false => None,
    };
    let addrs = datanodes.into_iter().map(|(node, row)| (node, ReplicaAt { node, addr: row.addr })).collect();
    let policy = Policy { min_copies: config.min_copies, uneven_above, ..Policy::default() };
    Ok(Some(Sight { chunks, movable, found, nodes, addrs, key, policy, balance, health }))
}

/// Has the other replicas of a damaged chunk read: only those that are well then make up for the damaged one.
fn prove(namenode: &Namenode, chunk: &ChunkView, nodes: &[repair::NodeView]) {
    let live = |node: &NodeId| nodes.iter().any(|view| view.node == *node && view.liveness == Liveness::Live);
    for node in chunk.unproven.iter().filter(|node| live(node)) {
        if namenode.board.may_ask(chunk.chunk, *node, Instant::now()) {
            namenode.orders.push(*node, Order::Verify { chunk: chunk.chunk, epoch: chunk.epoch, len: chunk.len });
        }
    }
}

async fn carry_out(
    namenode: &Arc<Namenode>,
    plan: Plan,
    addrs: &BTreeMap<NodeId, ReplicaAt>,
    key: &CapabilityKey,
) -> Result<(), WireError> {
    let clock = namenode.consensus.now();
    for copy in plan.copies {
        order_copy(namenode, &copy, addrs, key, clock);
    }
    // Together, so that they share log entries. The deletion is ordered when its drop is applied, by the
    // event: never before it is committed.
    let drops = plan.drops.into_iter().map(|DropPlan { chunk, epoch, node }| async move {
        namenode.propose(Body::DropReplica { chunk, epoch, node }).await?;
        info!(%chunk, %node, "replica dropped");
        Ok::<_, WireError>(())
    });
    futures::future::try_join_all(drops).await?;
    // The replicas are told by the event that comes with the command, and by their digests.
    let cuts = plan.cuts.into_iter().map(|CutPlan { chunk, epoch, len, replicas }| async move {
        namenode.propose(Body::CutChunk { chunk, epoch, len, replicas }).await?;
        namenode.board.cut(chunk);
        warn!(target: "audit", %chunk, len, "the end of a chunk is lost: no disk has it");
        Ok::<_, WireError>(())
    });
    futures::future::try_join_all(cuts).await.map(|_| ())
}

fn order_copy(
    namenode: &Namenode,
    copy: &CopyPlan,
    addrs: &BTreeMap<NodeId, ReplicaAt>,
    key: &CapabilityKey,
    clock: Timestamp,
) {
    let CopyPlan { chunk, epoch, len, target, .. } = *copy;
    let expires = Timestamp { secs: clock.secs + CAPABILITY_SECS, ..clock };
    let order = Order::Copy {
        chunk,
        epoch,
        len,
        sources: copy.sources.iter().filter_map(|node| addrs.get(node).copied()).collect(),
        capability: Capability::sign(key, chunk, Access::Read, target, expires),
    };
    if namenode.orders.push(target, order) {
        info!(%chunk, node = %target, why = %copy.why, "copy ordered");
        let moves = copy.why == Risk::Uneven;
        let flight = CopyInFlight { source: copy.sources.first().copied(), len, since: Instant::now(), moves };
        namenode.board.copy_ordered(chunk, target, flight);
    }
}

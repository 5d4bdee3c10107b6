//! Recounts a plan without planning.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::NodeId;
use dfs_proto::msg::admin::Liveness;

use super::balance::Share;
use super::{ChunkView, CopyPlan, CutPlan, DropPlan, NodeView, Plan, Policy, Risk};

/// Says what is wrong with a plan: anything that could lose data, be refused, or overload a node.
pub fn check(
    plan: &Plan,
    chunks: &[ChunkView],
    movable: &[ChunkView],
    nodes: &[NodeView],
    policy: &Policy,
) -> Result<(), String> {
    let (moves, copies): (Vec<&CopyPlan>, Vec<&CopyPlan>) =
        plan.copies.iter().partition(|copy| copy.why == Risk::Uneven);
    for copy in &moves {
        let alone = moves.iter().filter(|other| other.chunk == copy.chunk).count() == 1
            && !chunks.iter().any(|chunk| chunk.chunk == copy.chunk);
        let chunk = movable.iter().find(|chunk| chunk.chunk == copy.chunk).filter(|_| alone);
        let chunk = chunk.ok_or_else(|| format!("chunk {} is not among those to move, or not alone", copy.chunk))?;
        check_move(chunk, nodes, copy).map_err(|what| format!("chunk {}: {what}", chunk.chunk))?;
    }
    let at_rest = copies.is_empty()
        && chunks.iter().all(|chunk| chunk.in_flight.is_empty() && chunk.replicas.len() <= usize::from(chunk.target));
    // While something is under way, how full nodes will be is for the planner to guess.
    if at_rest {
        check_levels(&moves, movable, nodes, policy)?;
    } else if !moves.is_empty() && policy.uneven_above.is_none() {
        return Err("moving is off".into());
    }
    for chunk in chunks {
        let copies: Vec<_> = copies.iter().copied().filter(|copy| copy.chunk == chunk.chunk).collect();
        let drops: Vec<_> = plan.drops.iter().filter(|drop| drop.chunk == chunk.chunk).collect();
        check_copies(chunk, nodes, &copies).map_err(|what| format!("chunk {}: {what}", chunk.chunk))?;
        check_drops(chunk, nodes, &drops).map_err(|what| format!("chunk {}: {what}", chunk.chunk))?;
        let cuts: Vec<_> = plan.cuts.iter().filter(|cut| cut.chunk == chunk.chunk).collect();
        let alone = copies.is_empty() && drops.is_empty();
        if cuts.len() > usize::from(alone) {
            return Err(format!("chunk {}: something else is done to a chunk that is cut", chunk.chunk));
        }
        cuts.iter().try_for_each(|cut| check_cut(chunk, nodes, cut)).map_err(|what| format!("{cuts:?}: {what}"))?;
    }
    let known: BTreeSet<_> = chunks.iter().map(|chunk| chunk.chunk).collect();
    let named = copies
        .iter()
        .map(|copy| copy.chunk)
        .chain(plan.drops.iter().map(|drop| drop.chunk))
        .chain(plan.cuts.iter().map(|cut| cut.chunk));
    if let Some(stray) = named.into_iter().find(|chunk| !known.contains(chunk)) {
        return Err(format!("chunk {stray} is not among those to plan for"));
    }
    if plan.drops.len() > policy.drops_per_pass as usize {
        return Err(format!("{} replicas are dropped at once", plan.drops.len()));
    }
    if plan.cuts.len() > policy.drops_per_pass as usize {
        return Err(format!("{} chunks are cut at once", plan.cuts.len()));
    }
    check_budgets(plan, chunks, policy)
}

/// Carried out one after the other, each move goes from the fullest of a chunk's nodes to one that is emptier by more than
/// the threshold.
fn check_levels(moves: &[&CopyPlan], movable: &[ChunkView], nodes: &[NodeView], policy: &Policy) -> Result<(), String> {
    let mut nodes = nodes.to_vec();
    for copy in moves {
        let above = policy.uneven_above.ok_or("moving is off")?;
        let holders = movable.iter().find(|chunk| chunk.chunk == copy.chunk).map(|chunk| &chunk.replicas);
        let place = |node: &NodeId| nodes.iter().position(|view| view.node == *node);
        let from = holders.into_iter().flatten().filter_map(place);
        let from = from.max_by_key(|at| (Share::used(&nodes[*at]), nodes[*at].node)).ok_or("nobody has it")?;
        let to = place(&copy.target).ok_or("the target is not known")?;
        let apart = Share::used(&nodes[from]).above(Share::used(&nodes[to]));
        nodes[from].free_bytes += u64::from(copy.len);
        nodes[to].free_bytes = nodes[to].free_bytes.saturating_sub(u64::from(copy.len));
        if apart <= above || Share::used(&nodes[from]) < Share::used(&nodes[to]) {
            return Err(format!("chunk {} moves between nodes that are even enough, {apart:?}", copy.chunk));
        }
    }
    Ok(())
}

/// A move may not make anything worse.
fn check_move(chunk: &ChunkView, nodes: &[NodeView], copy: &CopyPlan) -> Result<(), String> {
    let part = |node: NodeId| {
        let mut part = nodes.iter().filter(|view| view.liveness == Liveness::Live && view.scanned && view.writable);
        part.find(|view| view.node == node)
    };
    if (copy.epoch, copy.len) != (chunk.epoch, chunk.len) {
        return Err("the copy is of another state of the chunk".into());
    }
    let whole = chunk.replicas.len() == usize::from(chunk.target)
        && chunk.replicas.iter().all(|node| part(*node).is_some())
        && [&chunk.bad, &chunk.leaving, &chunk.unproven, &chunk.busy].iter().all(|nodes| nodes.is_empty())
        && chunk.in_flight.is_empty();
    if !whole {
        return Err("something else is to be done to it".into());
    }
    if copy.sources.is_empty() || copy.sources.iter().any(|node| !chunk.replicas.contains(node)) {
        return Err(format!("sources {:?} do not all hold it", copy.sources));
    }
    let target = part(copy.target).filter(|_| !chunk.replicas.contains(&copy.target));
    let target = target.ok_or_else(|| format!("node {} has it, or takes no copies", copy.target))?;
    if target.free_bytes < u64::from(chunk.len) {
        return Err(format!("node {} has no room for it", copy.target));
    }
    Ok(())
}

/// Nothing that could be read may be cut off: whoever counts has said that there is nothing behind the new end, or
/// never will say anything again.
fn check_cut(chunk: &ChunkView, nodes: &[NodeView], cut: &CutPlan) -> Result<(), String> {
    let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
    if cut.epoch != chunk.epoch || cut.len >= chunk.len || set(&cut.replicas) != set(&chunk.replicas) {
        return Err("the cut is of another state of the chunk".into());
    }
    if !chunk.in_flight.is_empty() {
        return Err("a copy may turn out whole".into());
    }
    let mut longest = None;
    for node in &chunk.replicas {
        let view = nodes.iter().find(|view| view.node == *node);
        let live = view.is_some_and(|view| view.liveness == Liveness::Live);
        if chunk.gone.contains(node) && !live {
            continue;
        }
        if !live || !view.is_some_and(|view| view.scanned) {
            return Err(format!("node {node} may have the end, and cannot be asked"));
        }
        if !chunk.bad.contains(node) {
            return Err(format!("node {node} has said nothing of its replica"));
        }
        let has = chunk.short.get(node).ok_or_else(|| format!("node {node} may have frames behind the damage"))?;
        longest = longest.max(Some(*has));
    }
    if longest != Some(cut.len) {
        return Err(format!("the longest replica has {longest:?} bytes"));
    }
    Ok(())
}

fn check_copies(chunk: &ChunkView, nodes: &[NodeView], copies: &[&CopyPlan]) -> Result<(), String> {
    let live = |node: NodeId| nodes.iter().any(|view| view.node == node && view.liveness == Liveness::Live);
    let good_source = |node: NodeId| live(node) && chunk.replicas.contains(&node) && !chunk.bad.contains(&node);
    // Damaged ones may be put together only where nothing better is left.
    let salvage = !chunk.hopeless && !chunk.replicas.iter().any(|node| good_source(*node));
    let source = |node: NodeId| good_source(node) || salvage && live(node) && chunk.replicas.contains(&node);
    let mut targets = BTreeSet::new();
    for copy in copies {
        if (copy.epoch, copy.len) != (chunk.epoch, chunk.len) {
            return Err("the copy is of another state of the chunk".into());
        }
        if copy.sources.is_empty() || copy.sources.iter().any(|node| !source(*node)) {
            return Err(format!("sources {:?} are not all live holders of good replicas", copy.sources));
        }
        let target = nodes.iter().find(|view| view.node == copy.target);
        if !target.is_some_and(|view| view.writable && view.liveness == Liveness::Live) {
            return Err(format!("node {} takes no copies", copy.target));
        }
        let taken = chunk.replicas.contains(&copy.target)
            || chunk.busy.contains(&copy.target)
            || chunk.in_flight.iter().any(|flight| flight.target == copy.target);
        if taken || !targets.insert(copy.target) {
            return Err(format!("node {} has or gets the chunk already", copy.target));
        }
    }
    let good = chunk.replicas.iter().filter(|node| good_source(**node) && !chunk.leaving.contains(node)).count();
    if !copies.is_empty() && good + chunk.in_flight.len() + copies.len() > usize::from(chunk.target) {
        return Err("more copies are made than wanted".into());
    }
    Ok(())
}

fn check_drops(chunk: &ChunkView, nodes: &[NodeView], drops: &[&DropPlan]) -> Result<(), String> {
    let dropped: BTreeSet<NodeId> = drops.iter().map(|drop| drop.node).collect();
    if dropped.len() != drops.len() {
        return Err("a replica is dropped twice".into());
    }
    if drops.iter().any(|drop| drop.epoch != chunk.epoch || !chunk.replicas.contains(&drop.node)) {
        return Err("a replica is dropped that does not count".into());
    }
    let confirmed =
        |node: NodeId| nodes.iter().any(|view| view.node == node && view.liveness == Liveness::Live && view.scanned);
    let remaining = chunk
        .replicas
        .iter()
        .filter(|node| confirmed(**node) && !chunk.bad.contains(node) && !dropped.contains(node))
        .filter(|node| !chunk.leaving.contains(node) && !chunk.unproven.contains(node))
        .count();
    if !drops.is_empty() && remaining == 0 {
        return Err("no good copy would remain".into());
    }
    let drops_unharmed = drops.iter().any(|drop| !chunk.bad.contains(&drop.node));
    if drops_unharmed && remaining < usize::from(chunk.target) {
        return Err(format!("{remaining} good copies would remain of {} wanted", chunk.target));
    }
    Ok(())
}

/// Ordinary copies keep to the ordinary budget, counting everything; urgent ones may go beyond it, to theirs.
fn check_budgets(plan: &Plan, chunks: &[ChunkView], policy: &Policy) -> Result<(), String> {
    let mut total: BTreeMap<(NodeId, bool), u32> = BTreeMap::new();
    for flight in chunks.iter().flat_map(|chunk| &chunk.in_flight) {
        *total.entry((flight.target, true)).or_default() += 1;
        if let Some(source) = flight.source {
            *total.entry((source, false)).or_default() += 1;
        }
    }
    let before = total.clone();
    let (mut ordinary, mut moving) = (BTreeSet::new(), BTreeSet::new());
    for copy in &plan.copies {
        let Some(first) = copy.sources.first() else { continue };
        for key in [(copy.target, true), (*first, false)] {
            *total.entry(key).or_default() += 1;
            match copy.why {
                Risk::OneCopyLeft => {}
                Risk::Uneven => drop(moving.insert(key)),
                Risk::BelowMinCopies | Risk::BelowTarget => drop(ordinary.insert(key)),
            }
        }
    }
    for ((node, receives), copies) in &total {
        let planned = before.get(&(*node, *receives)) != Some(copies);
        let key = (*node, *receives);
        let limit = match (ordinary.contains(&key), receives) {
            _ if moving.contains(&key) => policy.moves_per_node,
            (true, true) => policy.copies_in_per_node,
            (true, false) => policy.copies_out_per_node,
            (false, true) => policy.urgent_copies_in_per_node,
            (false, false) => policy.urgent_copies_out_per_node,
        };
        if planned && *copies > limit {
            return Err(format!("node {node} has {copies} copies at a time, and {limit} are allowed"));
        }
    }
    Ok(())
}

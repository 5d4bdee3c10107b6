//! Chooses nodes for a new chunk.

use dfs_proto::NodeId;
use dfs_proto::limits::CHUNK_MAX;
use dfs_proto::msg::admin::Liveness;

/// What placement knows of a datanode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    pub node: NodeId,
    pub liveness: Liveness,
    /// On its healthy volumes.
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// It has a volume that takes writes.
    pub writable: bool,
    /// Open chunks and copies under way there: any number that grows with its work.
    pub load: u32,
}

/// At most `count` different nodes, for one chunk. Fewer if there are not so many: whether that is
/// enough is for the caller (`min_copies`) to say. Nodes in `avoid` are taken only if there are no
/// others, and the first of them last. The same arguments give the same nodes, in whatever order `nodes`
/// comes.
///
/// Drawn at random by weight rather than always the best: all writers that ask within one heartbeat
/// see the same numbers, and the best node would get all their chunks.
pub fn choose(nodes: &[NodeView], count: usize, avoid: &[NodeId], seed: u64) -> Vec<NodeId> {
    // A whole chunk must fit: one that ends early for want of room costs a seal and a switch.
    choose_for(u64::from(CHUNK_MAX), nodes, count, avoid, seed)
}

/// As [`choose`], for a chunk of which it is known how many bytes it will have.
pub fn choose_for(bytes: u64, nodes: &[NodeView], count: usize, avoid: &[NodeId], seed: u64) -> Vec<NodeId> {
    let mut eligible: Vec<&NodeView> = nodes.iter().filter(|node| is_eligible(node, bytes)).collect();
    eligible.sort_by_key(|node| node.node);
    eligible.dedup_by_key(|node| node.node);
    let place = |node: NodeId| avoid.iter().position(|&avoided| avoided == node);
    let (mut avoided, preferred): (Vec<_>, Vec<_>) = eligible.into_iter().partition(|node| place(node.node).is_some());

    let mut chosen = draw(preferred, count, &mut SplitMix(seed));
    avoided.sort_by_key(|node| std::cmp::Reverse(place(node.node)));
    chosen.extend(avoided.iter().map(|node| node.node).take(count - chosen.len()));
    chosen
}

/// Recounts a choice without choosing: says what is wrong with it.
pub fn check(nodes: &[NodeView], count: usize, avoid: &[NodeId], chosen: &[NodeId]) -> Result<(), String> {
    for (i, node) in chosen.iter().enumerate() {
        if chosen[..i].contains(node) {
            return Err(format!("node {node} is chosen twice"));
        }
        match nodes.iter().find(|view| view.node == *node) {
            None => return Err(format!("node {node} is not known")),
            Some(view) if !is_eligible(view, u64::from(CHUNK_MAX)) => {
                return Err(format!("node {node} cannot take a chunk"));
            }
            Some(_) => {}
        }
    }
    let unused = || nodes.iter().filter(|view| is_eligible(view, u64::from(CHUNK_MAX)) && !chosen.contains(&view.node));
    if chosen.len() > count {
        return Err(format!("{} nodes are chosen for {count} copies", chosen.len()));
    }
    if chosen.len() < count && unused().next().is_some() {
        return Err("a node that could take a copy is left out".into());
    }
    let shunned = |node: &NodeId| avoid.iter().position(|avoided| avoided == node).map_or(0, |at| avoid.len() - at);
    let worst = chosen.iter().map(shunned).max().unwrap_or(0);
    if unused().any(|view| shunned(&view.node) < worst) {
        return Err("a node is chosen before one that was to be avoided less".into());
    }
    Ok(())
}

fn is_eligible(node: &NodeView, bytes: u64) -> bool {
    node.liveness == Liveness::Live && node.writable && node.free_bytes >= bytes
}

/// Draws up to `count` nodes, one after the other, each with a chance that grows with its free space
/// and falls with its load.
fn draw(mut nodes: Vec<&NodeView>, count: usize, random: &mut SplitMix) -> Vec<NodeId> {
    let mut drawn = Vec::new();
    while drawn.len() < count && !nodes.is_empty() {
        let total: u128 = nodes.iter().map(|node| weight(node)).sum();
        // A weight is below 2^49, so the product fits; with 64 random bits the bias is too small to matter.
        let mut ticket = (u128::from(random.next()) * total) >> 64;
        let winner = nodes.iter().position(|node| match ticket.checked_sub(weight(node)) {
            Some(rest) => {
                ticket = rest;
                false
            }
            None => true,
        });
        drawn.push(nodes.remove(winner.unwrap_or(nodes.len() - 1)).node);
    }
    drawn
}

/// Room for chunks, divided by one more than the load, in 1/1024 chunks. At least 1.
fn weight(node: &NodeView) -> u128 {
    let room = u128::from(node.free_bytes / u64::from(CHUNK_MAX)) * 1024;
    (room / (1 + u128::from(node.load))).max(1)
}

/// Steele, Lea and Flood's generator: a few lines, and the same numbers everywhere for ever.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn node(n: u64, free_bytes: u64, load: u32) -> NodeView {
        NodeView { node: NodeId(n), liveness: Liveness::Live, free_bytes, total_bytes: 100 * GIB, writable: true, load }
    }

    #[test]
    fn emptier_and_idler_nodes_are_chosen_more_often() {
        let nodes = [node(1, 10 * GIB, 0), node(2, 40 * GIB, 0), node(3, 40 * GIB, 9)];
        let mut chosen = [0; 4];
        for seed in 0..1000 {
            chosen[choose(&nodes, 1, &[], seed)[0].0 as usize] += 1;
        }
        assert!(chosen[2] > 3 * chosen[1] && chosen[1] > chosen[3], "{chosen:?}");
    }

    #[test]
    fn nodes_that_cannot_take_a_chunk_are_never_chosen() {
        let mut nodes = [node(1, GIB, 0), node(2, GIB, 0), node(3, 1 << 20, 0), node(4, GIB, 0), node(5, GIB, 0)];
        nodes[1].liveness = Liveness::Suspect;
        nodes[3].writable = false;
        let mut chosen = choose(&nodes, 3, &[], 7);
        chosen.sort();
        assert_eq!(chosen, [NodeId(1), NodeId(5)]);
        assert!(choose(&nodes[1..4], 3, &[], 7).is_empty());
    }

    #[test]
    fn a_node_to_avoid_is_the_last_resort() {
        let nodes = [node(1, GIB, 0), node(2, GIB, 0), node(3, GIB, 0)];
        for seed in 0..50 {
            assert!(!choose(&nodes, 2, &[NodeId(2)], seed).contains(&NodeId(2)));
            assert_eq!(choose(&nodes, 3, &[NodeId(2)], seed)[2], NodeId(2));
            let all = [NodeId(2), NodeId(3), NodeId(1)];
            assert_eq!(choose(&nodes, 2, &all, seed), [NodeId(1), NodeId(3)], "the first one last");
        }
    }

    #[test]
    fn the_check_finds_each_kind_of_wrong_choice() {
        let mut nodes = [node(1, GIB, 0), node(2, GIB, 0), node(3, GIB, 0)];
        nodes[2].writable = false;
        let [a, b, c] = [NodeId(1), NodeId(2), NodeId(3)];
        assert_eq!(check(&nodes, 3, &[], &[a, b]), Ok(()));
        for (count, avoid, chosen) in [
            (3, &[][..], &[a, a][..]),
            (3, &[], &[a, NodeId(9)]),
            (3, &[], &[a, b, c]),
            (1, &[], &[a, b]),
            (2, &[], &[a]),
            (1, &[a], &[a]),
            (1, &[a, b], &[a]),
        ] {
            assert!(check(&nodes, count, avoid, chosen).is_err(), "{chosen:?}");
        }
    }

    proptest! {
        #[test]
        fn every_choice_passes_the_check_and_hangs_on_nothing_but_the_arguments(
            raw in prop::collection::vec((0u64..6, 0u64..200, 0u32..5, 0u8..5), 0..9),
            count in 0usize..6,
            avoid in prop::collection::vec(0u64..9, 0..3),
            seed: u64,
        ) {
            let mut nodes: Vec<NodeView> = raw
                .iter()
                .enumerate()
                .map(|(i, (_, free, load, kind))| {
                    let mut view = node(i as u64, free << 20, *load);
                    view.writable = *kind != 4;
                    view.liveness = if *kind == 3 { Liveness::Dead } else { Liveness::Live };
                    view
                })
                .collect();
            let avoid: Vec<_> = avoid.into_iter().map(NodeId).collect();
            let chosen = choose(&nodes, count, &avoid, seed);
            prop_assert_eq!(check(&nodes, count, &avoid, &chosen), Ok(()));
            nodes.reverse();
            prop_assert_eq!(choose(&nodes, count, &avoid, seed), chosen);
        }
    }
}

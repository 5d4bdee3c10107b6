//! Disks that fill and empty as plans say.

use std::collections::BTreeSet;

use dfs_proto::msg::admin::Balance;
use dfs_proto::{ChunkId, Epoch};
use proptest::prelude::*;

use super::*;
use crate::command::Body;
use crate::repair::{CopyPlan, DropPlan, Flight, Plan, Policy, check, plan};
use crate::testing::{NODES, Rig};

const LEN: u32 = 64 << 20;

/// Nodes with disks of their own, and what they hold.
#[derive(Clone, Debug)]
struct Disks {
    nodes: Vec<NodeView>,
    chunks: Vec<ChunkView>,
}

impl Disks {
    /// Node `n` has `units[n - 1]` chunks' worth of room in all.
    fn new(units: &[u64]) -> Disks {
        let node = |(index, units): (usize, &u64)| NodeView {
            node: NodeId(index as u64 + 1),
            liveness: Liveness::Live,
            since_ms: 0,
            free_bytes: units * u64::from(LEN),
            total_bytes: units * u64::from(LEN),
            writable: true,
            excused: false,
            scanned: true,
        };
        Disks { nodes: units.iter().enumerate().map(node).collect(), chunks: Vec::new() }
    }

    fn put(&mut self, replicas: &[u64]) {
        let replicas: Vec<NodeId> = replicas.iter().copied().map(NodeId).collect();
        replicas.iter().for_each(|node| self.node(*node).free_bytes -= u64::from(LEN));
        self.chunks.push(ChunkView {
            chunk: ChunkId(self.chunks.len() as u64 + 1),
            epoch: Epoch(1),
            len: LEN,
            target: replicas.len() as u8,
            replicas,
            bad: Vec::new(),
            short: BTreeMap::new(),
            gone: Vec::new(),
            leaving: Vec::new(),
            unproven: Vec::new(),
            hopeless: false,
            in_flight: Vec::new(),
            busy: Vec::new(),
        });
    }

    fn node(&mut self, node: NodeId) -> &mut NodeView {
        self.nodes.iter_mut().find(|view| view.node == node).unwrap()
    }

    /// Those that the repair worker would plan for, and the others.
    fn sorted(&self) -> (Vec<ChunkView>, Vec<ChunkView>) {
        let troubled =
            |chunk: &&ChunkView| !chunk.in_flight.is_empty() || chunk.replicas.len() != usize::from(chunk.target);
        let (chunks, movable): (Vec<_>, Vec<_>) = self.chunks.iter().partition(troubled);
        (chunks.into_iter().cloned().collect(), movable.into_iter().cloned().collect())
    }

    fn plan(&self) -> Plan {
        let (chunks, movable) = self.sorted();
        let policy = Policy::default();
        let made = plan(&chunks, &movable, &self.nodes, &policy);
        assert_eq!(check(&made, &chunks, &movable, &self.nodes, &policy), Ok(()), "{made:#?}");
        made
    }

    fn begin(&mut self, copies: &[CopyPlan]) {
        for copy in copies {
            let chunk = self.chunks.iter_mut().find(|chunk| chunk.chunk == copy.chunk).unwrap();
            chunk.in_flight.push(Flight { target: copy.target, source: copy.sources.first().copied() });
        }
    }

    fn end_copies(&mut self) {
        for index in 0..self.chunks.len() {
            for flight in std::mem::take(&mut self.chunks[index].in_flight) {
                self.chunks[index].replicas.push(flight.target);
                self.node(flight.target).free_bytes -= u64::from(LEN);
            }
        }
    }

    fn drop_replicas(&mut self, drops: &[DropPlan]) {
        for drop in drops {
            let chunk = self.chunks.iter_mut().find(|chunk| chunk.chunk == drop.chunk).unwrap();
            chunk.replicas.retain(|node| *node != drop.node);
            self.node(drop.node).free_bytes += u64::from(LEN);
        }
    }

    /// Carries plans out until there is nothing to do; how many copies that were.
    fn settle(&mut self) -> usize {
        let mut copies = 0;
        for _ in 0..10_000 {
            let plan = self.plan();
            copies += plan.copies.len();
            self.begin(&plan.copies);
            self.drop_replicas(&plan.drops);
            // Nothing may be ordered twice while it is under way.
            let meanwhile = self.plan();
            self.begin(&meanwhile.copies);
            copies += meanwhile.copies.len();
            if plan.copies.is_empty() && plan.drops.is_empty() && meanwhile.copies.is_empty() {
                return copies;
            }
            self.end_copies();
        }
        panic!("it does not end: {self:?}");
    }

    fn shares(&self) -> Vec<Share> {
        self.nodes.iter().map(Share::used).collect()
    }

    fn spread(&self) -> Share {
        let shares = self.shares();
        let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
        most.above(*least)
    }
}

const WANTED: Share = Share(50_000);

#[test]
fn a_node_that_joins_a_full_cluster_gets_its_share() {
    let mut disks = Disks::new(&[100, 100, 100, 100]);
    (0..96).for_each(|_| disks.put(&[1, 2, 3]));
    assert_eq!(full_nodes(&disks.nodes, WANTED), [NodeId(1), NodeId(2), NodeId(3)]);
    // The new one lacks 72, less the slack.
    assert_eq!(bytes_to_move(&disks.nodes, WANTED) / u64::from(LEN), 69);
    let copies = disks.settle();
    assert!(disks.spread() <= WANTED, "{:?}", disks.shares());
    // 72 would make all alike.
    assert!((68..=72).contains(&copies), "{copies} copies");
    assert!(disks.chunks.iter().all(|chunk| chunk.replicas.len() == 3 && chunk.in_flight.is_empty()));
    assert_eq!(bytes_to_move(&disks.nodes, WANTED), 0);
}

#[test]
fn disks_of_different_sizes_become_equally_full_and_not_equally_free() {
    let mut disks = Disks::new(&[400, 200, 100, 100]);
    (0..50).for_each(|_| disks.put(&[2, 3]));
    disks.settle();
    // 25 %, 50 % and nothing before. Where both copies of what a node has lie as they should, it can give nothing away.
    assert!(disks.spread() <= Share::from_points(7), "{:?}", disks.shares());
}

#[test]
fn one_copy_at_a_time_and_what_is_under_way_counts_as_done() {
    let mut disks = Disks::new(&[100, 100]);
    (0..6).for_each(|_| disks.put(&[1]));
    let first = disks.plan();
    assert_eq!(first.copies.len(), 1);
    assert_eq!((first.copies[0].target, first.copies[0].why), (NodeId(2), Risk::Uneven));
    disks.begin(&first.copies);
    assert!(disks.plan().copies.is_empty(), "the node gets one already");
    disks.end_copies();
    // 6 and 1 of a hundred: as far apart as is allowed, once the superfluous replica is gone.
    let second = disks.plan();
    assert!(second.copies.is_empty(), "{second:?}");
    assert_eq!(second.drops.iter().map(|drop| drop.node).collect::<Vec<_>>(), [NodeId(1)]);
}

#[test]
fn small_disks_do_not_change_places() {
    // One chunk is a quarter of a disk: moving it would only turn the difference round.
    let mut disks = Disks::new(&[4, 4]);
    disks.put(&[1]);
    assert!(disks.plan().copies.is_empty());
    disks.put(&[1]);
    assert_eq!(disks.settle(), 1);
    assert_eq!(disks.shares(), [Share(250_000), Share(250_000)]);
}

#[test]
fn only_what_is_whole_and_left_alone_is_moved() {
    let mut disks = Disks::new(&[100, 100, 100]);
    (0..50).for_each(|_| disks.put(&[1, 2]));
    type Change = fn(&mut Disks);
    let changes: [(&str, Change); 10] = [
        ("short of a copy", |disks| disks.chunks[0].replicas.truncate(1)),
        ("bad", |disks| disks.chunks[0].bad.push(NodeId(1))),
        ("leaving", |disks| disks.chunks[0].leaving.push(NodeId(1))),
        ("unproven", |disks| disks.chunks[0].unproven.push(NodeId(1))),
        ("busy", |disks| disks.chunks[0].busy.push(NodeId(3))),
        ("a silent holder", |disks| disks.node(NodeId(2)).liveness = Liveness::Suspect),
        ("a holder that scans", |disks| disks.node(NodeId(2)).scanned = false),
        ("a target that takes nothing", |disks| disks.node(NodeId(3)).writable = false),
        ("a target that is silent", |disks| disks.node(NodeId(3)).liveness = Liveness::Suspect),
        ("a target without room", |disks| disks.node(NodeId(3)).free_bytes = u64::from(LEN) - 1),
    ];
    disks.chunks.truncate(1);
    let policy = Policy::default();
    assert_eq!(plan(&[], &disks.chunks, &disks.nodes, &policy).copies.len(), 1);
    let off = Policy { uneven_above: None, ..policy };
    assert!(plan(&[], &disks.chunks, &disks.nodes, &off).copies.is_empty());
    for (what, change) in changes {
        let mut changed = disks.clone();
        change(&mut changed);
        let made = plan(&[], &changed.chunks, &changed.nodes, &policy);
        assert!(made.copies.is_empty(), "{what}: {made:?}");
    }
}

#[test]
fn repair_has_the_budget_first() {
    let mut disks = Disks::new(&[100, 100, 100, 100]);
    (0..40).for_each(|_| disks.put(&[1, 2]));
    let mut hurt = disks.chunks.split_off(39);
    hurt[0].replicas = vec![NodeId(1), NodeId(9)];
    let made = plan(&hurt, &disks.chunks, &disks.nodes, &Policy::default());
    let ordered: Vec<_> = made.copies.iter().map(|copy| (copy.target, copy.why, copy.sources[0])).collect();
    assert_eq!(
        ordered,
        [(NodeId(3), Risk::OneCopyLeft, NodeId(1)), (NodeId(4), Risk::Uneven, NodeId(2))],
        "nodes 1 and 3 are busy"
    );
}

#[test]
fn the_search_sees_every_chunk_of_a_full_node_and_begins_anew() {
    let mut rig = Rig::new();
    let there: BTreeSet<ChunkId> = (0..2 * CHUNKS_PER_NODE + 10).flat_map(|_| rig.allocate(1)).collect();
    let mut disks = Disks::new(&[1, 1, 1, 1]);
    for (view, node) in disks.nodes.iter_mut().zip(NODES) {
        view.node = node;
    }
    disks.node(NODES[0]).free_bytes = 0;
    let (mut cursor, mut seen) = (Cursor::default(), BTreeSet::new());
    for round in 0..3 {
        let found = candidates(&rig.state, &disks.nodes, WANTED, &|_| cursor).unwrap();
        let [found] = &found[..] else { panic!("one node is full: {found:?}") };
        assert_eq!((found.node, found.ended), (NODES[0], round == 2));
        assert!(found.chunks.len() <= CHUNKS_PER_NODE);
        assert!(found.chunks.iter().all(|chunk| seen.insert(*chunk)), "seen twice: {found:?}");
        cursor = found.next;
    }
    assert_eq!((seen, cursor), (there, Cursor::default()));
}

#[test]
fn what_administrators_say_is_kept_and_impossible_thresholds_are_refused() {
    let mut rig = Rig::new();
    assert_eq!(rows::balance(&rig.state), Ok(Balance { on: true, points: 5 }));
    let wanted = Balance { on: false, points: 20 };
    rig.apply(Body::SetBalance(wanted)).unwrap();
    for points in [0, 51] {
        assert!(rig.apply(Body::SetBalance(Balance { on: true, points })).is_err());
    }
    assert_eq!(rows::balance(&rig.state), Ok(wanted));
}

proptest! {
    /// Wherever chunks lie, moving ends; no chunk ever has fewer copies than wanted; and in the end the nodes are as even
    /// as is wanted, or no chunk of those that are too full has another place to go.
    #[test]
    fn moving_ends_with_even_nodes(
        units in prop::collection::vec(20u64..120, 2..7),
        chunks in prop::collection::vec((any::<u64>(), 1usize..4), 0..60),
    ) {
        let mut disks = Disks::new(&units);
        for (seed, copies) in chunks {
            let count = units.len() as u64;
            // Most of them on few nodes.
            let mut nodes: Vec<u64> = (0..copies as u64).map(|n| 1 + (seed % 3 % count + n) % count).collect();
            nodes.sort_unstable();
            nodes.dedup();
            let room = |node: &u64| disks.nodes[*node as usize - 1].free_bytes >= 4 * u64::from(LEN);
            if nodes.iter().all(room) {
                disks.put(&nodes);
            }
        }
        let wanted: Vec<usize> = disks.chunks.iter().map(|chunk| chunk.replicas.len()).collect();
        disks.settle();
        for (chunk, wanted) in disks.chunks.iter().zip(wanted) {
            prop_assert_eq!(chunk.replicas.len(), wanted);
        }
        for chunk in &disks.chunks {
            for from in &chunk.replicas {
                for to in disks.nodes.iter().filter(|node| !chunk.replicas.contains(&node.node)) {
                    let from = disks.nodes.iter().find(|node| node.node == *from).unwrap();
                    let apart = Share::used(from).above(Share::used(to)) > WANTED;
                    let grown = NodeView { free_bytes: to.free_bytes.saturating_sub(u64::from(LEN)), ..to.clone() };
                    let left = NodeView { free_bytes: from.free_bytes + u64::from(LEN), ..from.clone() };
                    let better = Share::used(&left) >= Share::used(&grown) && to.free_bytes >= u64::from(LEN);
                    // Only the fullest of its nodes gives a chunk away.
                    let fullest = chunk.replicas.iter().all(|other| {
                        let other = disks.nodes.iter().find(|node| node.node == *other).unwrap();
                        Share::used(other) <= Share::used(from)
                    });
                    prop_assert!(!(apart && better && fullest), "{:?} could go from {:?} to {:?}", chunk, from, to);
                }
            }
        }
    }
}

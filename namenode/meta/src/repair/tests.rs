//! Scenarios: chunks and nodes in, copies, drops and reasons out.

use dfs_proto::Timestamp;
use dfs_proto::msg::admin::{Duty, Liveness};
use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;
const LEN: u32 = 1000;

fn node(n: u64, liveness: Liveness) -> NodeView {
    NodeView {
        node: NodeId(n),
        liveness,
        since_ms: 20_000,
        free_bytes: 100 * GIB - n * GIB,
        total_bytes: 400 * GIB,
        writable: true,
        excused: false,
        scanned: true,
    }
}

/// Nodes 1 to `count`, all live; then changed by `but`.
fn nodes(count: u64, but: &[(u64, Liveness)]) -> Vec<NodeView> {
    let liveness = |n| but.iter().find(|(node, _)| *node == n).map_or(Liveness::Live, |(_, liveness)| *liveness);
    (1..=count).map(|n| node(n, liveness(n))).collect()
}

fn chunk(id: u64, replicas: &[u64]) -> ChunkView {
    ChunkView {
        chunk: ChunkId(id),
        epoch: Epoch(2),
        len: LEN,
        target: 3,
        replicas: replicas.iter().copied().map(NodeId).collect(),
        bad: Vec::new(),
        short: BTreeMap::new(),
        gone: Vec::new(),
        leaving: Vec::new(),
        unproven: Vec::new(),
        hopeless: false,
        in_flight: Vec::new(),
        busy: Vec::new(),
    }
}

/// Plans, and has the plan checked.
fn planned(chunks: &[ChunkView], nodes: &[NodeView]) -> Plan {
    let policy = Policy::default();
    let plan = plan(chunks, &[], nodes, &policy);
    assert_eq!(check(&plan, chunks, &[], nodes, &policy), Ok(()), "{plan:#?}");
    plan
}

fn copies(plan: &Plan) -> Vec<(u64, u64, Risk)> {
    plan.copies.iter().map(|copy| (copy.chunk.0, copy.target.0, copy.why)).collect()
}

fn reasons(plan: &Plan) -> Vec<(u64, Reason)> {
    plan.waits.iter().map(|wait| (wait.chunk.0, wait.reason)).collect()
}

fn drops(plan: &Plan) -> Vec<(u64, u64)> {
    plan.drops.iter().map(|drop| (drop.chunk.0, drop.node.0)).collect()
}

#[test]
fn a_dead_nodes_chunk_is_copied_to_the_node_with_most_room() {
    let plan = planned(&[chunk(7, &[1, 2, 3])], &nodes(5, &[(1, Liveness::Dead)]));
    assert_eq!(copies(&plan), [(7, 4, Risk::BelowTarget)]);
    assert_eq!(plan.copies[0].sources, [NodeId(2), NodeId(3)]);
    assert!(plan.waits.is_empty() && plan.drops.is_empty());
}

#[test]
fn what_is_nearest_to_being_lost_goes_first() {
    let nodes = nodes(6, &[(1, Liveness::Dead), (2, Liveness::Dead)]);
    let plan = planned(&[chunk(1, &[1, 3, 4]), chunk(2, &[1, 2, 4]), chunk(3, &[1, 2, 5])], &nodes);
    let order: Vec<_> = plan.copies.iter().map(|copy| (copy.chunk.0, copy.why)).collect();
    assert_eq!(order[..2], [(2, Risk::OneCopyLeft), (3, Risk::OneCopyLeft)]);
    assert!(order[2..].iter().all(|(_, why)| *why == Risk::BelowTarget));
    assert_eq!(order.len(), 5);
}

#[test]
fn budgets_hold_and_one_copy_left_has_a_larger_one() {
    // Many chunks, one possible receiver.
    let many: Vec<_> = (0..20).map(|id| chunk(id, &[1, 2, 3])).collect();
    let ordinary = planned(&many, &nodes(4, &[(1, Liveness::Dead)]));
    assert_eq!(ordinary.copies.len(), 2);
    assert_eq!(ordinary.waits.len(), 18);
    assert_eq!(ordinary.waits[0].reason.to_string(), "budget of node 4 used up");
    assert_eq!(ordinary.wait_summary(), [("budget of node 4 used up".to_string(), 18)]);
    let urgent = planned(&many, &nodes(4, &[(1, Liveness::Dead), (2, Liveness::Dead)]));
    assert_eq!(urgent.copies.len(), 8);
}

#[test]
fn copies_under_way_count_as_copies_and_against_budgets() {
    let nodes = nodes(4, &[(1, Liveness::Dead)]);
    let flight = Flight { target: NodeId(4), source: Some(NodeId(2)) };
    let flying = ChunkView { in_flight: vec![flight], ..chunk(1, &[1, 2, 3]) };
    let plan = planned(std::slice::from_ref(&flying), &nodes);
    assert_eq!((copies(&plan), reasons(&plan)), (vec![], vec![(1, Reason::CopyUnderWay)]));
    let more = planned(&[flying, chunk(2, &[1, 2, 3]), chunk(3, &[1, 2, 3])], &nodes);
    assert_eq!(copies(&more), [(2, 4, Risk::BelowTarget)]);
    assert_eq!(more.copies[0].sources[0], NodeId(3));
    assert_eq!(reasons(&more).last(), Some(&(3, Reason::BudgetUsedUp(NodeId(4)))));
}

#[test]
fn a_chunk_without_a_live_copy_waits_and_loses_nothing() {
    let dead = [(1, Liveness::Dead), (2, Liveness::Dead), (3, Liveness::Suspect)];
    let plan = planned(&[chunk(1, &[1, 2, 3])], &nodes(6, &dead));
    assert_eq!((copies(&plan), drops(&plan)), (vec![], vec![]));
    assert_eq!(reasons(&plan), [(1, Reason::NoLiveSource)]);
    assert_eq!(plan.waits[0].reason.to_string(), "no live source");
}

#[test]
fn fewer_nodes_than_copies_is_said() {
    let plan = planned(&[chunk(1, &[1, 2])], &nodes(2, &[]));
    assert_eq!(reasons(&plan), [(1, Reason::NoNodeWithoutReplica)]);
    let mut full = nodes(3, &[]);
    full[2].free_bytes = u64::from(LEN) - 1;
    assert_eq!(reasons(&planned(&[chunk(1, &[1, 2])], &full)), [(1, Reason::NoRoom)]);
    full[2].free_bytes = GIB;
    full[2].writable = false;
    assert_eq!(reasons(&planned(&[chunk(1, &[1, 2])], &full)), [(1, Reason::NoRoom)]);
}

#[test]
fn room_is_promised_once() {
    let mut tight = nodes(4, &[(1, Liveness::Dead)]);
    tight[3].free_bytes = u64::from(LEN);
    let plan = planned(&[chunk(1, &[1, 2, 3]), chunk(2, &[1, 2, 3])], &tight);
    assert_eq!(copies(&plan), [(1, 4, Risk::BelowTarget)]);
    assert_eq!(reasons(&plan), [(2, Reason::NoRoom)]);
}

#[test]
fn a_node_that_left_in_order_gets_time_to_come_back() {
    let mut nodes = nodes(5, &[(1, Liveness::Leaving)]);
    let waits = planned(&[chunk(1, &[1, 2, 3])], &nodes);
    assert_eq!((copies(&waits), reasons(&waits)), (vec![], vec![(1, Reason::LeftInOrder(NodeId(1)))]));
    assert_eq!(waits.waits[0].reason.to_string(), "node 1 left in order, back-copy waits");
    nodes[0].since_ms = Policy::default().leaving_grace_ms;
    assert_eq!(copies(&planned(&[chunk(1, &[1, 2, 3])], &nodes)).len(), 1);
}

#[test]
fn one_copy_left_waits_for_nobody() {
    let mut nodes = nodes(6, &[(1, Liveness::Leaving), (2, Liveness::Suspect)]);
    let plan = planned(&[chunk(1, &[1, 2, 3])], &nodes);
    assert_eq!(plan.copies[0].why, Risk::OneCopyLeft);
    assert_eq!(plan.copies.len(), 2);
    nodes[1].liveness = Liveness::Live;
    assert!(planned(&[chunk(1, &[1, 2, 3])], &nodes).copies.is_empty());
}

#[test]
fn a_silent_node_is_not_given_up_yet() {
    let plan = planned(&[chunk(1, &[1, 2, 3])], &nodes(5, &[(1, Liveness::Suspect)]));
    assert_eq!((copies(&plan), reasons(&plan)), (vec![], vec![(1, Reason::Silent(NodeId(1)))]));
}

#[test]
fn what_is_to_leave_is_copied_first_serves_as_source_and_is_dropped_last() {
    let going = |replicas: &[u64]| ChunkView { leaving: vec![NodeId(1)], ..chunk(1, replicas) };
    let plan = planned(&[going(&[1, 2, 3])], &nodes(5, &[]));
    assert_eq!((copies(&plan), drops(&plan)), (vec![(1, 4, Risk::BelowTarget)], vec![]));
    assert!(plan.copies[0].sources.contains(&NodeId(1)));
    assert_eq!(drops(&planned(&[going(&[1, 2, 3, 4])], &nodes(5, &[]))), [(1, 1)]);
    // The only good copy is the one that is to leave: it stays until others are there.
    let alone = ChunkView { bad: vec![NodeId(2), NodeId(3)], ..going(&[1, 2, 3]) };
    let plan = planned(&[alone], &nodes(5, &[]));
    assert_eq!((copies(&plan).len(), drops(&plan)), (2, vec![]));
    assert_eq!(plan.copies[0].why, Risk::OneCopyLeft);
    // As many nodes as copies wanted: it waits, and says for what.
    let plan = planned(&[going(&[1, 2, 3])], &nodes(3, &[]));
    assert_eq!((drops(&plan), reasons(&plan)), (vec![], vec![(1, Reason::NoNodeWithoutReplica)]));
}

#[test]
fn a_single_copy_that_is_to_leave_is_in_no_hurry() {
    let single = ChunkView { target: 1, leaving: vec![NodeId(1)], ..chunk(1, &[1]) };
    assert_eq!(copies(&planned(&[single], &nodes(3, &[]))), [(1, 2, Risk::BelowTarget)]);
}

#[test]
fn a_node_in_maintenance_may_be_silent_unless_one_copy_is_left() {
    let mut nodes = nodes(6, &[(1, Liveness::Dead)]);
    nodes[0].excused = true;
    let waits = planned(&[chunk(1, &[1, 2, 3])], &nodes);
    assert_eq!((copies(&waits), reasons(&waits)), (vec![], vec![(1, Reason::InMaintenance(NodeId(1)))]));
    assert!(drops(&planned(&[chunk(1, &[1, 2, 3])], &nodes)).is_empty());
    nodes[1].liveness = Liveness::Dead;
    assert_eq!(planned(&[chunk(1, &[1, 2, 3])], &nodes).copies.len(), 2);
}

#[test]
fn a_dead_node_that_is_removed_keeps_only_what_nobody_else_has() {
    let duties = BTreeMap::from([(NodeId(1), Duty::Removing { since: Timestamp::default(), chunks: 2, bytes: 9 })]);
    let nodes = nodes(3, &[(1, Liveness::Dead)]);
    let live = |node: NodeId| node != NodeId(1);
    let mut chunks = [chunk(1, &[1, 2, 3]), chunk(2, &[1])];
    chunks.iter_mut().for_each(|chunk| chunk.mark_leaving(&duties, &live));
    let plan = planned(&chunks, &nodes);
    assert_eq!(drops(&plan), [(1, 1)]);
    assert_eq!(reasons(&plan), [(2, Reason::NoLiveSource), (1, Reason::NoNodeWithoutReplica)]);
}

#[test]
fn a_bad_replica_is_dropped_and_replaced_and_is_never_a_source() {
    let hurt = ChunkView { bad: vec![NodeId(1)], ..chunk(1, &[1, 2, 3]) };
    let plan = planned(&[hurt], &nodes(4, &[]));
    assert_eq!(drops(&plan), [(1, 1)]);
    assert_eq!(copies(&plan), [(1, 4, Risk::BelowTarget)]);
    assert_eq!(plan.copies[0].sources, [NodeId(2), NodeId(3)]);
}

#[test]
fn a_damaged_replica_stays_until_another_was_read_since_and_is_replaced_meanwhile() {
    let (bad, both) = (vec![NodeId(1)], vec![NodeId(2), NodeId(3)]);
    let hurt = ChunkView { bad: bad.clone(), unproven: both, ..chunk(1, &[1, 2, 3]) };
    let plan = planned(std::slice::from_ref(&hurt), &nodes(4, &[]));
    assert_eq!((copies(&plan), drops(&plan)), (vec![(1, 4, Risk::BelowTarget)], vec![]));
    // Nowhere else to copy to: the damaged one has to go first, and that waits.
    let plan = planned(std::slice::from_ref(&hurt), &nodes(3, &[]));
    assert_eq!(drops(&plan), []);
    assert_eq!(reasons(&plan), [(1, Reason::NoNodeWithoutReplica)]);
    let read = ChunkView { unproven: vec![NodeId(3)], ..hurt };
    assert_eq!(drops(&planned(std::slice::from_ref(&read), &nodes(3, &[]))), [(1, 1)]);
    // The other one turns out to be damaged too: what was read stays.
    let worse = ChunkView { bad: vec![NodeId(1), NodeId(3)], unproven: Vec::new(), ..read };
    assert_eq!(drops(&planned(&[worse], &nodes(3, &[]))), [(1, 1), (1, 3)]);
    // A copy too many stays as well as long as one of them is not known to be good.
    let many = ChunkView { bad, unproven: vec![NodeId(5)], ..chunk(1, &[1, 2, 3, 4, 5]) };
    assert_eq!(drops(&planned(&[many], &nodes(5, &[]))), [(1, 1)]);
}

#[test]
fn damaged_replicas_are_put_together_when_nothing_better_is_left_and_not_over_and_over() {
    let hurt = ChunkView { bad: vec![NodeId(1), NodeId(2), NodeId(3)], ..chunk(1, &[1, 2, 3]) };
    let plan = planned(std::slice::from_ref(&hurt), &nodes(4, &[(3, Liveness::Dead)]));
    assert_eq!((copies(&plan), drops(&plan)), (vec![(1, 4, Risk::OneCopyLeft)], vec![]));
    assert_eq!(plan.copies[0].sources, [NodeId(1), NodeId(2)]);
    let hopeless = ChunkView { hopeless: true, ..hurt };
    let plan = planned(&[hopeless], &nodes(4, &[]));
    assert_eq!((copies(&plan), drops(&plan), reasons(&plan)), (vec![], vec![], vec![(1, Reason::NoLiveSource)]));
}

/// All of a chunk's replicas are short, with so many bytes each.
fn short(id: u64, replicas: &[(u64, u32)]) -> ChunkView {
    let nodes: Vec<u64> = replicas.iter().map(|(node, _)| *node).collect();
    let short = replicas.iter().map(|(node, len)| (NodeId(*node), *len)).collect();
    ChunkView { bad: nodes.iter().copied().map(NodeId).collect(), short, ..chunk(id, &nodes) }
}

fn cuts(plan: &Plan) -> Vec<(u64, u32)> {
    plan.cuts.iter().map(|cut| (cut.chunk.0, cut.len)).collect()
}

#[test]
fn a_chunk_whose_end_nobody_has_is_cut_to_the_longest_replica() {
    let plan = planned(&[short(1, &[(1, 300), (2, 700), (3, 0)]), short(2, &[(1, 0), (2, 0), (3, 0)])], &nodes(4, &[]));
    assert_eq!((cuts(&plan), copies(&plan), drops(&plan)), (vec![(1, 700), (2, 0)], vec![], vec![]));
    assert_eq!(plan.cuts[0].replicas, [NodeId(1), NodeId(2), NodeId(3)]);
    assert!(plan.waits.is_empty());
}

#[test]
fn nothing_is_cut_while_anybody_may_have_the_end() {
    let all = short(1, &[(1, 300), (2, 700), (3, 0)]);
    let nothing = |chunk: &ChunkView, nodes: &[NodeView]| {
        let plan = planned(std::slice::from_ref(chunk), nodes);
        assert!(plan.cuts.is_empty(), "{plan:?}");
        plan
    };
    for liveness in [Liveness::Dead, Liveness::Suspect, Liveness::Leaving] {
        let plan = nothing(&all, &nodes(4, &[(3, liveness)]));
        assert_eq!((copies(&plan), reasons(&plan)), (vec![], vec![(1, Reason::MayHaveEnd(NodeId(3)))]));
    }
    let mut scanning = nodes(4, &[]);
    scanning[1].scanned = false;
    assert_eq!(reasons(&nothing(&all, &scanning)), [(1, Reason::MayHaveEnd(NodeId(2)))]);
    // A node that has not said anything yet: it passes for good, and a copy is tried from it.
    let mut quiet = all.clone();
    quiet.bad.retain(|node| *node != NodeId(2));
    quiet.short.remove(&NodeId(2));
    assert_eq!(nothing(&quiet, &nodes(4, &[])).copies[0].sources, [NodeId(2)]);
    // Damage in the middle: good frames may lie behind it, and all together may make a whole copy.
    let mut rotten = all.clone();
    rotten.short.remove(&NodeId(2));
    assert_eq!(copies(&nothing(&rotten, &nodes(4, &[]))), [(1, 4, Risk::OneCopyLeft)]);
    let hopeless = ChunkView { hopeless: true, ..rotten };
    assert_eq!(reasons(&nothing(&hopeless, &nodes(4, &[]))), [(1, Reason::NoLiveSource)]);
    let flight = Flight { target: NodeId(4), source: None };
    let flying = ChunkView { in_flight: vec![flight], ..all };
    assert_eq!(reasons(&nothing(&flying, &nodes(4, &[]))), [(1, Reason::CopyUnderWay)]);
}

#[test]
fn a_replica_that_an_administrator_has_written_off_keeps_no_chunk_from_being_cut() {
    let duties = BTreeMap::from([(NodeId(3), Duty::Removing { since: Timestamp::default(), chunks: 2, bytes: 9 })]);
    let dead = nodes(4, &[(3, Liveness::Dead)]);
    let mut all = short(1, &[(1, 300), (2, 700)]);
    all.replicas.push(NodeId(3));
    assert_eq!(reasons(&planned(std::slice::from_ref(&all), &dead)), [(1, Reason::MayHaveEnd(NodeId(3)))]);
    all.mark_leaving(&duties, &|node| node != NodeId(3));
    assert_eq!(cuts(&planned(std::slice::from_ref(&all), &dead)), [(1, 700)]);
    // It has come back after all.
    assert_eq!(cuts(&planned(std::slice::from_ref(&all), &nodes(4, &[]))), []);
}

#[test]
fn cuts_have_a_budget() {
    let many: Vec<_> = (0..100).map(|id| short(id, &[(1, 5), (2, 5), (3, 5)])).collect();
    let plan = planned(&many, &nodes(4, &[]));
    assert_eq!(plan.cuts.len(), Policy::default().drops_per_pass as usize);
    assert_eq!(plan.wait_summary()[0].1, 36);
}

#[test]
fn the_check_finds_each_kind_of_harmful_cut() {
    let mut nodes = nodes(5, &[(5, Liveness::Dead)]);
    nodes[3].scanned = false;
    let fine = short(1, &[(1, 300), (2, 700), (3, 0)]);
    let cut =
        |chunk: &ChunkView| CutPlan { chunk: chunk.chunk, epoch: Epoch(2), len: 700, replicas: chunk.replicas.clone() };
    let verdict = |chunk: &ChunkView, cuts: Vec<CutPlan>| {
        let plan = Plan { cuts, ..Plan::default() };
        check(&plan, std::slice::from_ref(chunk), &[], &nodes, &Policy::default())
    };
    let right = cut(&fine);
    assert_eq!(verdict(&fine, vec![right.clone()]), Ok(()));
    for wrong in [
        CutPlan { len: 300, ..right.clone() },
        CutPlan { len: 701, ..right.clone() },
        CutPlan { len: LEN, ..right.clone() },
        CutPlan { epoch: Epoch(1), ..right.clone() },
        CutPlan { replicas: vec![NodeId(1), NodeId(2)], ..right.clone() },
        CutPlan { chunk: ChunkId(9), ..right.clone() },
    ] {
        assert!(verdict(&fine, vec![wrong.clone()]).is_err(), "{wrong:?}");
    }
    assert!(verdict(&fine, vec![right.clone(), right.clone()]).is_err());
    let flight = Flight { target: NodeId(4), source: None };
    let mut rotten = fine.clone();
    rotten.short.remove(&NodeId(3));
    let mut silent = rotten.clone();
    silent.bad.retain(|node| *node != NodeId(3));
    for chunk in [
        rotten,
        silent,
        ChunkView { in_flight: vec![flight], ..fine },
        short(1, &[(1, 300), (2, 700), (4, 0)]),
        short(1, &[(1, 300), (2, 700), (5, 0)]),
        short(1, &[(1, 300), (2, 700), (9, 0)]),
    ] {
        assert!(verdict(&chunk, vec![cut(&chunk)]).is_err(), "{chunk:?}");
    }
}

#[test]
fn what_a_dead_node_had_is_written_off_when_it_has_been_replaced() {
    let dead = nodes(5, &[(1, Liveness::Dead)]);
    assert_eq!(drops(&planned(&[chunk(1, &[1, 2, 3, 4])], &dead)), [(1, 1)]);
    assert!(drops(&planned(&[chunk(1, &[1, 2, 3])], &dead)).is_empty());
    // A node that this leader has never heard of.
    assert_eq!(drops(&planned(&[chunk(1, &[9, 2, 3, 4])], &dead)), [(1, 9)]);
}

#[test]
fn of_too_many_good_copies_the_one_on_the_fullest_node_goes() {
    let plan = planned(&[chunk(1, &[1, 2, 3, 4])], &nodes(5, &[]));
    assert_eq!(drops(&plan), [(1, 4)]);
    assert_eq!(drops(&planned(&[chunk(1, &[1, 2, 3, 4, 5])], &nodes(5, &[]))), [(1, 5), (1, 4)]);
}

#[test]
fn nothing_is_dropped_on_the_word_of_a_node_that_is_still_scanning() {
    let mut nodes = nodes(4, &[]);
    nodes[0].scanned = false;
    nodes[3].scanned = false;
    let plan = planned(&[chunk(1, &[1, 2, 3, 4])], &nodes);
    assert_eq!((drops(&plan), reasons(&plan)), (vec![], vec![(1, Reason::Unconfirmed(NodeId(1)))]));
    let hurt = ChunkView { bad: vec![NodeId(2), NodeId(3)], ..chunk(1, &[1, 2, 3]) };
    assert!(drops(&planned(&[hurt], &nodes)).is_empty());
}

#[test]
fn drops_have_a_budget_of_their_own() {
    let many: Vec<_> = (0..100).map(|id| chunk(id, &[1, 2, 3, 4])).collect();
    let plan = planned(&many, &nodes(4, &[]));
    assert_eq!(plan.drops.len(), Policy::default().drops_per_pass as usize);
    assert_eq!(plan.wait_summary()[0].1, 36);
}

#[test]
fn a_node_with_a_deletion_on_its_way_is_no_target() {
    let busy = ChunkView { busy: vec![NodeId(4)], ..chunk(1, &[2, 3]) };
    let plan = planned(&[busy], &nodes(4, &[(1, Liveness::Dead)]));
    assert_eq!(reasons(&plan), [(1, Reason::NoNodeWithoutReplica)]);
}

#[test]
fn the_check_finds_each_kind_of_harmful_plan() {
    let nodes = nodes(5, &[(5, Liveness::Dead)]);
    let chunks = [ChunkView { bad: vec![NodeId(3)], ..chunk(1, &[1, 2, 3]) }];
    let copy = |target, sources: &[u64]| CopyPlan {
        chunk: ChunkId(1),
        epoch: Epoch(2),
        len: LEN,
        target: NodeId(target),
        sources: sources.iter().copied().map(NodeId).collect(),
        why: Risk::BelowTarget,
    };
    let drop = |node| DropPlan { chunk: ChunkId(1), epoch: Epoch(2), node: NodeId(node) };
    let verdict = |copies: Vec<CopyPlan>, drops: Vec<DropPlan>| {
        check(&Plan { copies, drops, ..Plan::default() }, &chunks, &[], &nodes, &Policy::default())
    };
    assert_eq!(verdict(vec![copy(4, &[1, 2])], vec![drop(3)]), Ok(()));
    for (copies, drops) in [
        (vec![copy(4, &[3])], vec![]),
        (vec![copy(4, &[])], vec![]),
        (vec![copy(5, &[1])], vec![]),
        (vec![copy(2, &[1])], vec![]),
        (vec![copy(4, &[1]), copy(4, &[1])], vec![]),
        (vec![CopyPlan { len: 9, ..copy(4, &[1]) }], vec![]),
        (vec![CopyPlan { chunk: ChunkId(9), ..copy(4, &[1]) }], vec![]),
        (vec![], vec![drop(1)]),
        (vec![], vec![drop(3), drop(3)]),
        (vec![], vec![drop(4)]),
        (vec![], vec![drop(1), drop(2), drop(3)]),
        (vec![], vec![DropPlan { epoch: Epoch(1), ..drop(3) }]),
    ] {
        assert!(verdict(copies.clone(), drops.clone()).is_err(), "{copies:?} {drops:?}");
    }
}

fn any_liveness() -> impl Strategy<Value = Liveness> {
    prop_oneof![
        5 => Just(Liveness::Live),
        1 => Just(Liveness::Suspect),
        2 => Just(Liveness::Dead),
        1 => Just(Liveness::Leaving),
    ]
}

fn any_nodes() -> impl Strategy<Value = Vec<NodeView>> {
    prop::collection::vec((any_liveness(), 0u64..400_000, 0u64..4, prop::bool::weighted(0.9), any::<bool>()), 1..8)
        .prop_map(|raw| {
            let view = |(i, (liveness, since_ms, chunks, writable, scanned)): (usize, _)| NodeView {
                node: NodeId(i as u64 + 1),
                liveness,
                since_ms,
                free_bytes: chunks * u64::from(LEN),
                total_bytes: 4 * u64::from(LEN),
                writable,
                excused: since_ms % 7 == 0,
                scanned,
            };
            raw.into_iter().enumerate().map(view).collect()
        })
}

fn any_chunks() -> impl Strategy<Value = Vec<ChunkView>> {
    let replicas = prop::collection::btree_set(1u64..10, 1..6);
    let one = (replicas, 1u8..5, any::<u8>(), prop::option::weighted(0.2, (1u64..10, 1u64..10)));
    prop::collection::vec(one, 0..12).prop_map(|raw| {
        let view = |(i, (replicas, target, bad, flight)): (usize, (std::collections::BTreeSet<u64>, u8, u8, _))| {
            let replicas: Vec<NodeId> = replicas.into_iter().map(NodeId).collect();
            let flight: Option<(u64, u64)> = flight;
            // Of some chunks all replicas are bad, and most of these are short.
            let all_bad = bad & 7 == 5;
            let is_bad = |node: &NodeId| all_bad || bad & 3 == 0 && node.0.is_multiple_of(3);
            let is_short = |node: &NodeId| is_bad(node) && (bad & 32 == 0 || node.0.is_multiple_of(2));
            let shorts = replicas.iter().filter(|node| is_short(node));
            ChunkView {
                target,
                bad: replicas.iter().copied().filter(is_bad).collect(),
                short: shorts.map(|node| (*node, u32::from(bad) * 31 * node.0 as u32 % LEN)).collect(),
                gone: replicas
                    .iter()
                    .copied()
                    .filter(|node| is_bad(node) && bad & 64 == 0 && node.0 % 5 == 2)
                    .collect(),
                leaving: replicas.iter().copied().filter(|node| bad & 12 == 0 && node.0 % 4 == 1).collect(),
                in_flight: flight
                    .filter(|(target, _)| !replicas.contains(&NodeId(*target)))
                    .map(|(target, source)| Flight { target: NodeId(target), source: Some(NodeId(source)) })
                    .into_iter()
                    .collect(),
                replicas,
                ..chunk(i as u64, &[])
            }
        };
        raw.into_iter().enumerate().map(view).collect()
    })
}

proptest! {
    #[test]
    fn every_plan_passes_the_check(
        chunks in any_chunks(),
        mut movable in any_chunks(),
        nodes in any_nodes(),
        points in prop::option::weighted(0.9, 1u8..50),
    ) {
        for chunk in &mut movable {
            chunk.chunk.0 += 1000;
        }
        let policy = Policy { uneven_above: points.map(Share::from_points), ..Policy::default() };
        let made = plan(&chunks, &movable, &nodes, &policy);
        prop_assert_eq!(check(&made, &chunks, &movable, &nodes, &policy), Ok(()), "{:#?}", made);
        prop_assert_eq!(plan(&chunks, &movable, &nodes, &policy), made);
    }

    /// Carrying plans out until they are empty brings every chunk to strength, and never loses one.
    #[test]
    fn plans_carried_out_end_with_every_chunk_at_its_target(
        mut chunks in any_chunks(),
        dead in prop::collection::vec(1u64..10, 0..3),
    ) {
        let mut nodes = nodes(12, &[]);
        for view in &mut nodes {
            if dead.contains(&view.node.0) {
                view.liveness = Liveness::Dead;
            }
        }
        for chunk in &mut chunks {
            chunk.in_flight.clear();
        }
        let live = |node: &NodeId| !dead.contains(&node.0);
        let lost = |chunk: &ChunkView| !chunk.unharmed().any(|node| live(&node));
        let lost_before: Vec<_> = chunks.iter().filter(|chunk| lost(chunk)).map(|chunk| chunk.chunk).collect();
        for _ in 0..100 {
            let plan = planned(&chunks, &nodes);
            if plan.copies.is_empty() && plan.drops.is_empty() && plan.cuts.is_empty() {
                break;
            }
            for chunk in &mut chunks {
                let dropped: Vec<_> =
                    plan.drops.iter().filter(|drop| drop.chunk == chunk.chunk).map(|drop| drop.node).collect();
                chunk.replicas.retain(|node| !dropped.contains(node));
                chunk.bad.retain(|node| !dropped.contains(node));
                chunk.leaving.retain(|node| !dropped.contains(node));
                // The longest ones can be sealed at the new end; the others are short as before.
                if let Some(cut) = plan.cuts.iter().find(|cut| cut.chunk == chunk.chunk) {
                    (chunk.len, chunk.epoch) = (cut.len, cut.epoch.next());
                    let has_all = |node: &NodeId| chunk.short.get(node).is_some_and(|has| *has >= cut.len);
                    chunk.bad.retain(|node| !has_all(node));
                }
                let copied = plan.copies.iter().filter(|copy| copy.chunk == chunk.chunk).map(|copy| copy.target);
                chunk.replicas.extend(copied);
            }
        }
        for chunk in &chunks {
            // What was put together from damaged replicas is carried out here as if it had succeeded.
            if lost_before.contains(&chunk.chunk) && lost(chunk) {
                continue;
            }
            prop_assert!(chunk.bad.is_empty() && chunk.leaving.is_empty(), "{:?}", chunk);
            prop_assert_eq!(chunk.replicas.len(), usize::from(chunk.target), "{:?}", chunk);
            prop_assert!(chunk.replicas.iter().all(live), "{:?}", chunk);
        }
    }
}

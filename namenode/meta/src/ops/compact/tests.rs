use dfs_proto::msg::admin::Duty;
use dfs_proto::msg::meta::Op;
use dfs_proto::{SetAttr, Timestamp, WireError};

use super::*;
use crate::command::{Body, Event};
use crate::compaction::{Candidate, GatherPlan, left, plan};
use crate::testing::{NODES, Rig, kind_of};

/// Begins to gather the chunks, and answers the new one.
fn begin(rig: &mut Rig, chunks: &[ChunkId]) -> ChunkId {
    let GatherPlan { sources, pieces, .. } = planned(rig, chunks);
    let chunk = rig.totals().next_chunk;
    rig.apply(Body::BeginCompaction { sources, pieces, nodes: NODES[..3].to_vec() }).unwrap();
    chunk
}

fn planned(rig: &Rig, chunks: &[ChunkId]) -> GatherPlan {
    let candidate = |chunk: &ChunkId| {
        let ChunkRow { epoch, len, live_bytes, target, replicas, .. } = row(rig, *chunk).unwrap();
        let replicas = replicas.len() as u8;
        Candidate { chunk: *chunk, epoch, len, live_bytes: live_bytes as u32, target, replicas }
    };
    plan(&rig.state, &chunks.iter().map(candidate).collect::<Vec<_>>()).unwrap().unwrap()
}

/// Relocates all that is left.
fn relocate_all(rig: &mut Rig, chunk: ChunkId) -> Result<Reply, WireError> {
    let extents = left_of(rig, chunk);
    rig.apply(Body::Relocate { chunk, extents })
}

fn left_of(rig: &Rig, chunk: ChunkId) -> Vec<(InodeId, u64)> {
    left(&rig.state, chunk, &rows::compaction(&rig.state, chunk).unwrap().unwrap(), 99).unwrap()
}

fn row(rig: &Rig, chunk: ChunkId) -> Option<ChunkRow> {
    rows::chunk(&rig.state, chunk).unwrap()
}

/// A file of 1,000 bytes in a sealed chunk, of which everything but `[100, 200)` is overwritten; and that chunk.
fn mostly_dead(rig: &mut Rig, name: &str) -> (InodeId, ChunkId) {
    let file = rig.write_new(InodeId::ROOT, name, 1000);
    let chunk = rig.extents(file)[0].chunk;
    let other = rig.allocate(1)[0];
    let over =
        |offset: u32, at: u32, len: u32| Extent { file_offset: u64::from(offset), chunk: other, chunk_offset: at, len };
    rig.commit(file, vec![over(0, 0, 100), over(200, 100, 800)], other, 900, true).unwrap();
    (file, chunk)
}

#[test]
fn what_lives_is_named_elsewhere_and_the_old_chunk_dies() {
    let mut rig = Rig::new();
    let (file, old) = mostly_dead(&mut rig, "a");
    let before = rig.attr(file);
    let new = begin(&mut rig, &[old]);
    let gathering = row(&rig, new).unwrap();
    assert_eq!((gathering.state, gathering.len, gathering.live_bytes), (ChunkState::Gathering, 100, 0));
    relocate_all(&mut rig, new).unwrap();

    let extents = rig.extents(file);
    assert_eq!(extents[1], Extent { file_offset: 100, chunk: new, chunk_offset: 0, len: 100 });
    assert_eq!(rig.attr(file), before, "the file is what it was, its version and times with it");
    let sealed = row(&rig, new).unwrap();
    assert_eq!((sealed.state, sealed.epoch, sealed.live_bytes), (ChunkState::Sealed, gathering.epoch, 100));
    assert_eq!(row(&rig, old), None);
    let deleted = |event: &Event| matches!(event, Event::ChunkDeleted { chunk, .. } if *chunk == old);
    assert!(rig.events.iter().any(deleted), "its nodes are told");

    rig.apply(Body::EndCompaction { chunk: new }).unwrap();
    assert_eq!(rows::compactions(&rig.state).unwrap().len(), 0);
    assert_eq!(row(&rig, new), Some(sealed));
}

#[test]
fn several_chunks_go_into_one_and_what_is_in_order_in_the_file_becomes_one_extent() {
    let mut rig = Rig::new();
    let scattered = rig.write_scattered(InodeId::ROOT, "a", 10);
    let (other, old) = mostly_dead(&mut rig, "b");
    let backwards = rig.extents(scattered)[0].chunk;
    let new = begin(&mut rig, &[old, backwards]);
    relocate_all(&mut rig, new).unwrap();
    assert_eq!(rig.extents(scattered), [Extent { file_offset: 0, chunk: new, chunk_offset: 0, len: 100 }]);
    assert_eq!(rig.extents(other)[1].chunk, new);
    assert_eq!((row(&rig, old), row(&rig, backwards)), (None, None));
    assert_eq!(row(&rig, new).unwrap().live_bytes, 200);
}

#[test]
fn what_has_changed_since_is_passed_over_and_what_has_come_is_found() {
    let mut rig = Rig::new();
    let (a, old_a) = mostly_dead(&mut rig, "a");
    let (b, old_b) = mostly_dead(&mut rig, "b");
    let new = begin(&mut rig, &[old_a, old_b]);
    let planned = left_of(&rig, new);
    assert_eq!(planned.len(), 2);
    // Part of a is overwritten, b is cut to nothing, and c shares what a has had.
    let c = rig.create(InodeId::ROOT, "c").inode;
    let clone = Op::CloneRange {
        source: a,
        source_grant: rig.grant(a),
        source_offset: 150,
        inode: c,
        grant: rig.grant(c),
        offset: 0,
        len: 30,
    };
    rig.op(clone).unwrap();
    let fresh = rig.allocate(1)[0];
    let over = Extent { file_offset: 110, chunk: fresh, chunk_offset: 0, len: 20 };
    rig.commit(a, vec![over], fresh, 20, true).unwrap();
    rig.set_attr(b, SetAttr { size_bytes: Some(0), ..SetAttr::default() }).unwrap();
    let before = (rig.extents(a).len(), rig.extents(c).len());

    rig.apply(Body::Relocate { chunk: new, extents: planned }).unwrap();
    let rest = left_of(&rig, new);
    assert_eq!(rest.len(), 2, "the front of what a has left, and the clone: {rest:?}");
    rig.apply(Body::Relocate { chunk: new, extents: rest }).unwrap();
    assert_eq!(row(&rig, old_a), None);
    assert_eq!((rig.extents(a).len(), rig.extents(c).len()), before);
    assert_eq!(rig.extents(c), [Extent { file_offset: 0, chunk: new, chunk_offset: 50, len: 30 }]);
    assert_eq!(row(&rig, new).unwrap().live_bytes, 10 + 70 + 30);
    assert_eq!(kind_of(relocate_all(&mut rig, new)), Some(ErrorKind::Stale));
}

#[test]
fn a_chunk_that_is_given_up_goes_and_leaves_everything_as_it_was() {
    let mut rig = Rig::new();
    let (file, old) = mostly_dead(&mut rig, "a");
    let (extents, chunks) = (rig.extents(file), rig.totals().counts);
    let new = begin(&mut rig, &[old]);
    rig.apply(Body::EndCompaction { chunk: new }).unwrap();
    let deleted = |event: &Event| matches!(event, Event::ChunkDeleted { chunk, .. } if *chunk == new);
    assert!(rig.events.iter().any(deleted));
    assert_eq!((rig.extents(file), rig.totals().counts), (extents, chunks));
    assert_eq!(kind_of(rig.apply(Body::Relocate { chunk: new, extents: vec![(file, 200)] })), Some(ErrorKind::Stale));
    let before = rig.state.clone();
    rig.apply(Body::EndCompaction { chunk: new }).unwrap();
    assert_eq!(rig.state, before);
    // Its number is not used again, so a late replica is known to be superfluous.
    assert!(rig.totals().next_chunk > new);
}

#[test]
fn nobody_writes_to_a_chunk_that_is_gathered_and_its_nodes_cannot_leave() {
    let mut rig = Rig::new();
    let (file, old) = mostly_dead(&mut rig, "a");
    let new = begin(&mut rig, &[old]);
    assert_eq!(kind_of(rig.commit_at(file, new, 0, 100, false)), Some(ErrorKind::StaleEpoch));
    for body in [
        Body::AddReplica { chunk: new, epoch: Epoch::FIRST, len: 100, node: NODES[3] },
        Body::DropReplica { chunk: new, epoch: Epoch::FIRST, node: NODES[0] },
        Body::CutChunk { chunk: new, epoch: Epoch::FIRST, len: 5, replicas: NODES[..3].to_vec() },
    ] {
        assert_eq!(kind_of(rig.apply(body)), Some(ErrorKind::StaleEpoch));
    }
    // Without any other chunk on them.
    rig.unlink(InodeId::ROOT, "a", None).unwrap();
    let since = Timestamp { secs: 1000, nanos: 0 };
    let leaving = Duty::Decommissioning { since, chunks: 1, bytes: 100 };
    rig.apply(Body::SetDuty { node: NODES[0], before: Duty::Serving, after: leaving }).unwrap();
    let leave = Body::SetDuty { node: NODES[0], before: leaving, after: Duty::Decommissioned { since } };
    assert_eq!(kind_of(rig.apply(leave.clone())), Some(ErrorKind::NotEmpty));
    rig.apply(Body::EndCompaction { chunk: new }).unwrap();
    rig.apply(leave).unwrap();
}

#[test]
fn a_compaction_that_cannot_be_is_refused() {
    let mut rig = Rig::new();
    let (_, old) = mostly_dead(&mut rig, "a");
    let (_, cut) = mostly_dead(&mut rig, "b");
    let (_, busy) = mostly_dead(&mut rig, "c");
    let GatherPlan { sources, pieces, .. } = planned(&rig, &[old]);
    let [piece] = pieces[..] else { panic!("{pieces:?}") };
    let cut_row = row(&rig, cut).unwrap();
    rig.apply(Body::CutChunk { chunk: cut, epoch: cut_row.epoch, len: 500, replicas: cut_row.replicas }).unwrap();
    let open = rig.allocate(1)[0];
    let target = begin(&mut rig, &[busy]);
    let leaving = Duty::Maintenance { until: Timestamp { secs: 9999, nanos: 0 } };
    rig.apply(Body::SetDuty { node: NODES[3], before: Duty::Serving, after: leaving }).unwrap();

    let at = |rig: &Rig, chunk| (chunk, row(rig, chunk).unwrap().epoch);
    let (three, state) = (NODES[..3].to_vec(), rig.state.clone());
    let with = |sources: &[(ChunkId, Epoch)], pieces: &[Piece], nodes: &[NodeId]| Body::BeginCompaction {
        sources: sources.to_vec(),
        pieces: pieces.to_vec(),
        nodes: nodes.to_vec(),
    };
    for (body, kind) in [
        (with(&[], &pieces, &three), ErrorKind::Malformed),
        (with(&sources, &[], &three), ErrorKind::Malformed),
        (with(&[sources[0]; 2], &pieces, &three), ErrorKind::Malformed),
        (with(&sources, &[Piece { len: 0, ..piece }], &three), ErrorKind::Malformed),
        (with(&sources, &[Piece { offset: 950, ..piece }], &three), ErrorKind::Malformed),
        (with(&sources, &[Piece { offset: u32::MAX, ..piece }], &three), ErrorKind::Malformed),
        (with(&sources, &[Piece { source: 1, ..piece }], &three), ErrorKind::Malformed),
        (with(&[(old, Epoch::FIRST)], &pieces, &three), ErrorKind::Stale),
        (with(&[(ChunkId(999), Epoch::FIRST)], &pieces, &three), ErrorKind::Stale),
        (with(&[(open, Epoch::FIRST)], &pieces, &three), ErrorKind::Stale),
        (with(&[at(&rig, busy)], &pieces, &three), ErrorKind::Stale),
        (with(&[at(&rig, target)], &pieces, &three), ErrorKind::Stale),
        (with(&[at(&rig, cut)], &pieces, &three), ErrorKind::NotPermitted),
        (with(&sources, &pieces, &[]), ErrorKind::Malformed),
        (with(&sources, &pieces, &NODES[..2]), ErrorKind::Unavailable),
        (with(&sources, &pieces, &[NODES[0], NODES[0], NODES[1]]), ErrorKind::Malformed),
        (with(&sources, &pieces, &[NODES[0], NODES[1], NodeId(99)]), ErrorKind::Unavailable),
        (with(&sources, &pieces, &[NODES[0], NODES[1], NODES[3]]), ErrorKind::Unavailable),
    ] {
        assert_eq!(kind_of(rig.apply(body.clone())), Some(kind), "{body:?}");
    }
    assert_eq!(rig.state, state);
    let many = vec![(InodeId::ROOT, 1); RANGE_EXTENTS_MAX + 1];
    assert_eq!(kind_of(rig.apply(Body::Relocate { chunk: target, extents: many })), Some(ErrorKind::Malformed));
    rig.apply(with(&sources, &pieces, &three)).unwrap();
}

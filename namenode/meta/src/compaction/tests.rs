use dfs_proto::NodeId;
use proptest::prelude::*;

use super::*;
use crate::command::Body;
use crate::testing::{NODES, Rig};

const MIB: u32 = 1 << 20;

fn candidate(chunk: u64, len: u32, live_bytes: u32, target: u8) -> Candidate {
    Candidate { chunk: ChunkId(chunk), epoch: Epoch(2), len, live_bytes, target, replicas: target }
}

fn ids(chosen: &[Candidate]) -> Vec<u64> {
    chosen.iter().map(|candidate| candidate.chunk.0).collect()
}

#[test]
fn the_deadest_chunks_of_one_target_go_together_as_far_as_they_fit() {
    let fits = [candidate(1, 64 * MIB, 30 * MIB, 3), candidate(2, 64 * MIB, MIB, 3), candidate(3, 8 * MIB, 3 * MIB, 3)];
    assert_eq!(ids(&choose(fits.to_vec(), &|_| CHUNK_MAX)), [2, 3, 1]);
    // 1 + 24 + 30 + 31 MiB are too many.
    let more = [&fits[..2], &[candidate(4, 50 * MIB, 24 * MIB, 3), candidate(5, 63 * MIB, 31 * MIB, 3)]].concat();
    assert_eq!(ids(&choose(more, &|_| CHUNK_MAX)), [2, 1, 4]);
    // Those that are to have two copies free more here.
    let other = [&fits[2..], &[candidate(6, 64 * MIB, MIB, 2)]].concat();
    assert_eq!(ids(&choose(other, &|_| CHUNK_MAX)), [6]);
    let many = (0..100).map(|chunk| candidate(chunk, MIB, 10, 3)).collect();
    assert_eq!(choose(many, &|_| CHUNK_MAX).len(), GATHER_SOURCES_MAX);
}

#[test]
fn where_disks_are_nearly_full_few_go_together() {
    let all = [candidate(1, 64 * MIB, 30 * MIB, 3), candidate(2, 64 * MIB, MIB, 3), candidate(3, 8 * MIB, 3 * MIB, 3)];
    assert_eq!(ids(&choose(all.to_vec(), &|_| 4 * MIB)), [2, 3]);
    assert!(choose(all.to_vec(), &|_| MIB - 1).is_empty());

    let node = |number: u64, mib: u64| placement::NodeView {
        node: NodeId(number),
        liveness: Liveness::Live,
        free_bytes: mib << 20,
        total_bytes: 100 << 30,
        writable: true,
        load: 0,
    };
    let mut nodes = [node(1, 5), node(2, 9), node(3, 400), node(4, 7)];
    assert_eq!([1, 2, 3, 4, 5].map(|copies| room(&nodes, copies) / MIB), [64, 7, 5, 3, 3]);
    nodes[1].liveness = Liveness::Dead;
    nodes[2].writable = false;
    assert_eq!(room(&nodes, 3) / MIB, 3);
    assert_eq!(room(&[], 1), 0);
}

#[test]
fn little_gain_is_not_worth_it() {
    assert!(choose(Vec::new(), &|_| CHUNK_MAX).is_empty());
    let small = candidate(1, MIB / 2, 10, 3);
    assert!(choose(vec![small], &|_| CHUNK_MAX).is_empty());
    let two = vec![small, Candidate { chunk: ChunkId(2), len: MIB, ..small }];
    assert_eq!(ids(&choose(two, &|_| CHUNK_MAX)), [1, 2]);
}

#[test]
fn a_chunk_is_a_candidate_when_it_is_mostly_dead_whole_and_free() {
    let mut rig = Rig::new();
    let known = Known::ALL_WELL;
    let found = |rig: &Rig, known, nodes| {
        let found = candidates(&rig.state, known, nodes, 99).unwrap();
        found.iter().map(|candidate| candidate.chunk).collect::<Vec<_>>()
    };
    let file = rig.write_new(InodeId::ROOT, "a", 100);
    let chunk = rig.extents(file)[0].chunk;
    let cut = |rig: &mut Rig, size| {
        rig.set_attr(file, dfs_proto::SetAttr { size_bytes: Some(size), ..Default::default() }).unwrap();
    };
    cut(&mut rig, 50);
    assert!(found(&rig, known, 4).is_empty(), "half of it lives");
    cut(&mut rig, 49);
    assert_eq!(found(&rig, known, 4), [chunk]);
    assert!(candidates(&rig.state, known, 4, 0).unwrap().is_empty());

    // A replica that does not answer, or is bad, is for repair to deal with first.
    let away = |node: NodeId| node != NODES[0];
    assert!(found(&rig, Known { live: &away, ..known }, 3).is_empty());
    let bad = |_: ChunkId, node: NodeId| node == NODES[1];
    assert!(found(&rig, Known { bad: &bad, ..known }, 4).is_empty());
    let epoch = rows::chunk(&rig.state, chunk).unwrap().unwrap().epoch;
    rig.apply(Body::DropReplica { chunk, epoch, node: NODES[0] }).unwrap();
    assert!(found(&rig, known, 4).is_empty());
    assert_eq!(found(&rig, known, 2), [chunk], "more copies there cannot be");
    rig.apply(Body::AddReplica { chunk, epoch, len: 100, node: NODES[0] }).unwrap();

    let chosen = candidates(&rig.state, known, 4, 99).unwrap();
    let GatherPlan { sources, pieces, .. } = plan(&rig.state, &chosen).unwrap().unwrap();
    rig.apply(Body::BeginCompaction { sources, pieces, nodes: NODES[..3].to_vec() }).unwrap();
    assert!(found(&rig, known, 4).is_empty(), "it is in a compaction");
}

#[test]
fn sources_that_are_too_many_pieces_wait_for_the_next_one() {
    let mut rig = Rig::new();
    let mut chosen = Vec::new();
    for name in ["a", "b", "c"] {
        let file = rig.write_scattered(InodeId::ROOT, name, 5);
        let chunk = rig.extents(file)[0].chunk;
        let epoch = rows::chunk(&rig.state, chunk).unwrap().unwrap().epoch;
        chosen.push(Candidate { chunk, epoch, ..candidate(0, 50, 50, 3) });
    }
    let plan_two = plan(&rig.state, &chosen).unwrap().unwrap();
    assert_eq!((plan_two.sources.len(), plan_two.pieces.len()), (2, 10), "three would be 15 pieces of {PIECES_MAX}");

    // One that has too many by itself is taken in parts.
    let file = rig.write_scattered(InodeId::ROOT, "d", EXTENTS_MAX as u32 + 5);
    let chunk = rig.extents(file)[0].chunk;
    let len = 10 * (EXTENTS_MAX as u32 + 5);
    let epoch = rows::chunk(&rig.state, chunk).unwrap().unwrap().epoch;
    let alone = Candidate { chunk, epoch, ..candidate(0, len, len, 3) };
    let part = plan(&rig.state, &[alone]).unwrap().unwrap();
    assert_eq!(part.pieces.len(), PIECES_MAX);
    let nodes = NODES[..3].to_vec();
    let to = rig.totals().next_chunk;
    rig.apply(Body::BeginCompaction { sources: part.sources, pieces: part.pieces, nodes }).unwrap();
    let row = rows::compaction(&rig.state, to).unwrap().unwrap();
    assert_eq!(left(&rig.state, to, &row, 99).unwrap().len(), PIECES_MAX);
    assert_eq!(left(&rig.state, to, &row, 5).unwrap().len(), 5);
}

#[test]
fn nothing_is_planned_where_nothing_lives_any_more() {
    let rig = Rig::new();
    assert_eq!(plan(&rig.state, &[candidate(7, 100, 10, 3)]).unwrap(), None);
}

proptest! {
    /// Extents that share bytes, in any order: each byte is in one piece, and every extent finds its bytes again.
    #[test]
    fn every_extent_finds_its_bytes_again(
        ranges in prop::collection::vec((0u16..3, 0u32..200, 1u32..50), 1..6)
    ) {
        let extents: Vec<(u16, Extent)> = ranges
            .iter()
            .map(|(source, offset, len)| {
                let chunk = ChunkId(u64::from(*source) + 10);
                (*source, Extent { file_offset: 1000, chunk, chunk_offset: *offset, len: *len })
            })
            .collect();
        let mut pieces = Pieces::default();
        let added: Vec<bool> = extents.iter().map(|(source, extent)| pieces.add(*source, extent)).collect();
        let mut bytes = Vec::new();
        for piece in &pieces.list {
            bytes.extend((piece.offset..piece.offset + piece.len).map(|offset| (piece.source, offset)));
        }
        let unique: BTreeSet<_> = bytes.iter().collect();
        prop_assert_eq!(unique.len(), bytes.len());
        prop_assert_eq!(bytes.len(), pieces.bytes as usize);

        let sources = (10..13).map(|chunk| (ChunkId(chunk), Epoch(2))).collect();
        let moves = Moves::of(ChunkId(99), &CompactionRow { sources, pieces: pieces.list });
        for ((source, extent), added) in extents.iter().zip(added) {
            let Some(moved) = moves.moved(extent) else {
                prop_assert!(!added);
                continue;
            };
            let found: Vec<_> = moved
                .iter()
                .flat_map(|part| (part.chunk_offset..part.chunk_end()).map(|at| bytes[at as usize]))
                .collect();
            let expected: Vec<_> = (extent.chunk_offset..extent.chunk_end()).map(|at| (*source, at)).collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(moved[0].file_offset, extent.file_offset);
            prop_assert!(moved.windows(2).all(|pair| pair[0].file_end() == pair[1].file_offset));
        }
        let outside = Extent { file_offset: 0, chunk: ChunkId(10), chunk_offset: 240, len: 20 };
        prop_assert_eq!(moves.moved(&outside), None);
    }
}

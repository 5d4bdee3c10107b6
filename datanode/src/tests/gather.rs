//! Chunks that are made of pieces of others.

use dfs_proto::chunk::digest_shard;
use dfs_proto::limits::GATHER_PIECES_MAX;
use dfs_proto::msg::node::{GatherSource, Piece};

use super::*;

/// The sources; two, so that one of them may be elsewhere.
const A: ChunkId = ChunkId(0x0a);
const B: ChunkId = ChunkId(0x0b);

/// A chunk's bytes: the same in whatever frames, and no two stretches of them alike.
fn content(chunk: ChunkId, len: u32) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    blake3::Hasher::new().update(&chunk.0.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Makes a sealed chunk of frames of these lengths on each of the nodes.
async fn seal(rig: &Rig, chunk: ChunkId, nodes: &[u64], lens: &[u32]) {
    let len = lens.iter().sum();
    let bytes = content(chunk, len);
    let mut frames = Vec::new();
    let mut offset = 0;
    for len in lens {
        let data = Bytes::copy_from_slice(&bytes[offset as usize..(offset + len) as usize]);
        frames.push((FrameHeader::new(chunk, offset, &data), data));
        offset += len;
    }
    rig.write_chunk(chunk, nodes, &frames).await;
    rig.order_all(nodes, Order::Seal { chunk, epoch: SECOND, len });
    for node in nodes {
        holds(rig, *node, chunk, len).await;
    }
    rig.order_none();
}

/// Waits until a node reports the sealed replica as the only one of its shard.
async fn holds(rig: &Rig, node: u64, chunk: ChunkId, len: u32) {
    let digest = replica_digest(chunk, SECOND, len);
    rig.heard(node, |heartbeat| heartbeat.digests[digest_shard(chunk)] == digest).await;
}

fn piece(source: u16, offset: u32, len: u32) -> Piece {
    Piece { source, offset, len }
}

/// `CHUNK` out of pieces of A (source 0) and B (source 1), which are on these nodes.
fn order(rig: &Rig, pieces: &[Piece], nodes: [&[u64]; 2]) -> Order {
    let source = |(chunk, nodes): (ChunkId, &[u64])| GatherSource {
        chunk,
        epoch: SECOND,
        replicas: rig.replicas(nodes),
        capability: rig.capability(chunk, Access::Read),
    };
    let sources = [A, B].into_iter().zip(nodes).map(source).collect();
    Order::Gather { chunk: CHUNK, epoch: SECOND, pieces: pieces.to_vec(), sources }
}

/// What the pieces are when they lie one behind the other.
fn expected(pieces: &[Piece]) -> Vec<u8> {
    let end = pieces.iter().map(|piece| piece.offset + piece.len).max().unwrap();
    let sources = [A, B].map(|chunk| content(chunk, end));
    let bytes = |piece: &Piece| {
        sources[usize::from(piece.source)][piece.offset as usize..(piece.offset + piece.len) as usize].to_vec()
    };
    pieces.iter().flat_map(bytes).collect()
}

fn gathered(bytes: &[u8]) -> Outcome {
    let hash = u64::from_le_bytes(blake3::hash(bytes).as_bytes()[..8].try_into().unwrap());
    Outcome::Gathered { chunk: CHUNK, epoch: SECOND, hash }
}

/// Waits until a node has gathered what it should, and reads it there. The lengths of its frames.
async fn gathers(rig: &Rig, node: u64, bytes: &[u8]) -> Vec<u32> {
    let done = gathered(bytes);
    let over = |outcome: &Outcome| matches!(outcome, Outcome::Gathered { .. } | Outcome::GatherFailed { .. });
    assert_eq!(rig.outcome(node, over).await, done);
    holds(rig, node, CHUNK, bytes.len() as u32).await;
    let frames = rig.read(node, CHUNK, SECOND, 0, bytes.len() as u32).await.unwrap();
    let read: Vec<u8> = frames.iter().flat_map(|(_, bytes)| bytes.to_vec()).collect();
    assert!(read == bytes, "other bytes than those of the pieces");
    frames.iter().map(|(frame, _)| frame.len).collect()
}

async fn fails(rig: &Rig, node: u64) -> String {
    let failed = rig.outcome(node, |outcome| matches!(outcome, Outcome::GatherFailed { .. })).await;
    let Outcome::GatherFailed { chunk: CHUNK, epoch: SECOND, reason } = failed else { panic!("{failed:?}") };
    reason
}

/// That nothing of the gathered chunk is left on a node.
async fn has_nothing(rig: &Rig, node: u64) {
    let refused = rig.read(node, CHUNK, SECOND, 0, 1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::BadReplica);
    let incoming = rig.data_dir(node).join("volume1/incoming");
    assert_eq!(std::fs::read_dir(incoming).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gathered_chunk_is_its_pieces_one_behind_the_other_in_small_frames() {
    let rig = Rig::start(1).await;
    seal(&rig, A, &[1], &[FRAME_MAX, 100, FRAME_MAX, 4096]).await;
    seal(&rig, B, &[1], &[1000; 30]).await;
    let pieces = [
        // In the middle of a frame, over the end of one, and whole ones.
        piece(1, 10, 20),
        piece(0, 70, 2 * FRAME_MAX),
        piece(1, 2000, 3000),
        // Backwards, and a byte twice.
        piece(0, 65, 6),
        piece(1, 29_999, 1),
    ];
    let bytes = expected(&pieces);
    rig.order_all(&[1], order(&rig, &pieces, [&[], &[]]));
    let frames = gathers(&rig, 1, &bytes).await;
    assert_eq!(frames, [20, FRAME_MAX - 70, 100, FRAME_MAX - 30, 1000, 1000, 1000, 6, 1]);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_read_from_other_places_and_frames_gather_the_same() {
    let rig = Rig::start(3).await;
    let len = 40 * FRAME_MAX;
    seal(&rig, A, &[1], &[FRAME_MAX; 40]).await;
    seal(&rig, A, &[2], &[10_240; 256]).await;
    seal(&rig, B, &[2], &[4096; 640]).await;
    // One that takes many goes, and many small ones in all directions.
    let mut pieces = vec![piece(0, 5000, len - 6000)];
    pieces.extend((0..600).map(|i| piece((i % 3 == 0).into(), (i as u32 * 977_777) % (len - 9000), 1 + i as u32 * 13)));
    let bytes = expected(&pieces);
    // The first one has A, the second one both, the third one nothing.
    rig.order_all(&[1, 2, 3], order(&rig, &pieces, [&[3, 1, 2], &[3, 2]]));
    for node in 1..=3 {
        gathers(&rig, node, &bytes).await;
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_pieces_that_there_may_be_are_gathered_from_here_and_from_elsewhere() {
    let rig = Rig::start(2).await;
    seal(&rig, A, &[1], &[1024; 8192]).await;
    // Last to first: none is read along with another.
    let pieces: Vec<_> = (0..GATHER_PIECES_MAX as u32).rev().map(|i| piece(0, i * 1024 + 500, 1000)).collect();
    let pieces = [&pieces[1..], &[piece(0, 0, 700)]].concat();
    let bytes = expected(&pieces);
    rig.order_all(&[1, 2], order(&rig, &pieces, [&[1], &[]]));
    for node in 1..=2 {
        let frames = gathers(&rig, node, &bytes).await;
        // Two for each piece would be one too many.
        assert!(frames.len() > 2 * GATHER_PIECES_MAX - 200, "{} frames", frames.len());
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_here_is_taken_from_others_and_reported() {
    let rig = Rig::start(4).await;
    seal(&rig, A, &[1, 2, 3], &[FRAME_MAX; 20]).await;
    // One that nothing is wanted of, and three that are damaged on one node each.
    rig.damage(1, A, FRAME_MAX / 2);
    rig.damage(1, A, 4 * FRAME_MAX);
    rig.damage(2, A, 4 * FRAME_MAX);
    rig.damage(3, A, 9 * FRAME_MAX);
    let pieces = [piece(0, FRAME_MAX, 9 * FRAME_MAX)];
    let bytes = expected(&pieces);
    rig.order_all(&[1, 4], order(&rig, &pieces, [&[2, 3], &[]]));
    gathers(&rig, 1, &bytes).await;
    rig.outcome(1, |outcome| matches!(outcome, Outcome::Bad { chunk: A, epoch: SECOND, .. })).await;
    // Where nothing is, none of the damaged ones need be whole.
    gathers(&rig, 4, &bytes).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_source_nothing_is_left_behind_and_the_reason_is_told() {
    let rig = Rig::start(3).await;
    seal(&rig, A, &[1], &[1000; 2000]).await;
    seal(&rig, B, &[1, 2], &[1000; 20]).await;
    rig.damage(1, B, 7500);
    rig.damage(2, B, 7600);
    let pieces = [piece(0, 0, 2_000_000), piece(1, 7100, 100)];
    rig.order_all(&[3], order(&rig, &pieces, [&[1], &[2, 1]]));
    let reason = fails(&rig, 3).await;
    let told = ["from byte 7100", "node 2: ", "node 1: ", "does not match its digest", "here: "];
    assert!(told.iter().all(|told| reason.contains(told)), "{reason}");
    rig.order_none();
    rig.next_heartbeats(3, 2).await;
    has_nothing(&rig, 3).await;
    // More than a source has.
    rig.order_all(&[1], order(&rig, &[piece(0, 1_999_000, 1001)], [&[], &[]]));
    let reason = fails(&rig, 1).await;
    assert!(reason.contains("2000000 bytes here"), "{reason}");
    rig.order_none();
    rig.next_heartbeats(1, 2).await;
    has_nothing(&rig, 1).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_does_not_answer_is_waited_for_once() {
    let rig = Rig::start(2).await;
    seal(&rig, A, &[1], &[1000; 40]).await;
    let mute = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let Order::Gather { chunk, epoch, pieces, mut sources } =
        order(&rig, &(0..40).rev().map(|i| piece(0, i * 1000, 900)).collect::<Vec<_>>(), [&[1], &[]])
    else {
        unreachable!()
    };
    let bytes = expected(&pieces);
    sources[0].replicas.insert(0, ReplicaAt { node: NodeId(9), addr: mute.local_addr().unwrap() });
    rig.order_all(&[2], Order::Gather { chunk, epoch, pieces, sources });
    // Five times the deadline, for as many as are fetched at once, would be too slow for the rig.
    gathers(&rig, 2, &bytes).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_read_again_over_a_restart_too_and_made_anew_if_it_is_damaged() {
    let mut rig = Rig::start(1).await;
    seal(&rig, A, &[1], &[FRAME_MAX; 40]).await;
    let pieces = [piece(0, 7, 39 * FRAME_MAX)];
    let bytes = expected(&pieces);
    rig.order_all(&[1], order(&rig, &pieces, [&[], &[]]));
    gathers(&rig, 1, &bytes).await;
    rig.order_none();
    let len = bytes.len() as u32;
    let made_at = |rig: &Rig| {
        let path = format!("volume1/chunks/{:02x}/{:016x}.chunk", CHUNK.0, CHUNK.0);
        std::fs::metadata(rig.data_dir(1).join(path)).unwrap().modified().unwrap()
    };
    let first = made_at(&rig);

    rig.stop_node(1).await;
    rig.start_node(1).await;
    holds(&rig, 1, CHUNK, len).await;
    // There is nothing to make it of any more: the answer comes from what is here.
    rig.order_all(&[1], Order::Delete { chunk: A, epoch: SECOND });
    rig.outcome(1, |outcome| matches!(outcome, Outcome::Deleted { chunk: A, .. })).await;
    rig.forget_outcomes();
    rig.order_all(&[1], order(&rig, &pieces, [&[], &[]]));
    gathers(&rig, 1, &bytes).await;
    assert_eq!(made_at(&rig), first);

    // Damaged, it does not count, and there is no other.
    rig.order_none();
    rig.next_heartbeats(1, 2).await;
    rig.damage(1, CHUNK, len - 1);
    rig.forget_outcomes();
    rig.order_all(&[1], order(&rig, &pieces, [&[], &[]]));
    assert!(fails(&rig, 1).await.contains("chunk"));
    rig.order_none();
    rig.next_heartbeats(1, 2).await;
    seal(&rig, B, &[1], &[FRAME_MAX; 40]).await;
    rig.forget_outcomes();
    let pieces = [piece(1, 7, 39 * FRAME_MAX)];
    rig.order_all(&[1], order(&rig, &pieces, [&[], &[]]));
    gathers(&rig, 1, &expected(&pieces)).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_order_is_refused_and_one_of_an_old_epoch_changes_nothing() {
    let rig = Rig::start(1).await;
    seal(&rig, A, &[1], &[1000]).await;
    rig.order_all(&[1], order(&rig, &[piece(2, 0, 10)], [&[], &[]]));
    assert!(fails(&rig, 1).await.starts_with("malformed order"));
    rig.order_none();
    rig.next_heartbeats(1, 2).await;
    has_nothing(&rig, 1).await;
    rig.forget_outcomes();

    seal(&rig, CHUNK, &[1], &[500]).await;
    let Order::Gather { chunk, pieces, sources, .. } = order(&rig, &[piece(0, 0, 10)], [&[], &[]]) else {
        unreachable!()
    };
    rig.order_all(&[1], Order::Gather { chunk, epoch: FIRST, pieces, sources });
    rig.outcome(1, |outcome| matches!(outcome, Outcome::GatherFailed { epoch: FIRST, .. })).await;
    holds(&rig, 1, CHUNK, 500).await;
    rig.stop().await;
}

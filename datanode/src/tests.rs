//! Whole datanodes in one process, over real QUIC on loopback, with a namenode that says what it is told to.

mod gather;
mod rig;

use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::chunk::replica_digest;
use dfs_proto::limits::{CONTROL_FRAME_MAX, FRAME_MAX};
use dfs_proto::msg::data::{
    AppendEvent, DataRequest, FRAME_HEADER_LEN, LocalChunk, LocalDoor, LocalHello, LocalOpen, LocalUse, Manage,
    ManageReply, ReadReply, ReplicaState, append_item,
};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::msg::node::{Heartbeat, Order, Outcome};
use dfs_proto::{
    Access, Capability, CapabilityKey, ChunkId, Epoch, ErrorKind, FrameHeader, NodeId, Role, Timestamp, WireError,
};
use dfs_rpc::{LocalStream, RecvStream, RpcError, SendStream};

use rig::{CLIENT, Rig, frames};

const CHUNK: ChunkId = ChunkId(77);
const FIRST: Epoch = Epoch(1);
const SECOND: Epoch = Epoch(2);

#[tokio::test(flavor = "multi_thread")]
async fn what_a_chain_acknowledges_can_be_read_from_every_node_of_it() {
    let rig = Rig::start(3).await;
    let frames = frames(CHUNK, &[FRAME_MAX, 100, FRAME_MAX, 4096]);
    let len = frames.last().unwrap().0.end();

    let mut stream = rig.append(CHUNK, &[1, 2, 3]).await;
    assert_eq!(stream.event().await, AppendEvent::Ready);
    stream.send_frames(&frames).await;
    stream.until_written(len).await;
    stream.send_sync().await;
    stream.until_synced(len).await;
    stream.finish().await;

    for node in 1..=3 {
        assert_eq!(rig.read(node, CHUNK, FIRST, 0, len).await.unwrap(), frames);
        assert_eq!(rig.read(node, CHUNK, FIRST, FRAME_MAX, 100).await.unwrap(), frames[1..2]);
    }
    // Sealed by order, all three have the same digest.
    rig.order_all(&[1, 2, 3], Order::Seal { chunk: CHUNK, epoch: SECOND, len });
    let digest = replica_digest(CHUNK, SECOND, len);
    for node in 1..=3 {
        rig.heard(node, |heartbeat| heartbeat.digests[77] == digest && heartbeat.open.is_empty()).await;
        assert_eq!(rig.read(node, CHUNK, SECOND, 0, len).await.unwrap(), frames);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_with_nothing_to_do_is_acknowledged_as_well() {
    let rig = Rig::start(2).await;
    let mut stream = rig.append(CHUNK, &[1, 2]).await;
    assert_eq!(stream.event().await, AppendEvent::Ready);
    for _ in 0..2 {
        stream.send_sync().await;
        assert_eq!(stream.event().await, AppendEvent::Ack { written: 0, synced: 0 });
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_whose_tail_cannot_be_reached_names_the_tail() {
    let rig = Rig::start(2).await;
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut chain = rig.replicas(&[1, 2]);
    chain.push(ReplicaAt { node: NodeId(9), addr: nobody });
    let mut stream = rig.append_to(CHUNK, chain, rig.capability(CHUNK, Access::Append)).await;
    assert!(matches!(stream.event().await, AppendEvent::Failed { node: NodeId(9), .. }));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_leaves_is_named_and_what_was_acknowledged_stays() {
    let mut rig = Rig::start(3).await;
    let frames = frames(CHUNK, &[1000; 40]);
    let mut stream = rig.append(CHUNK, &[1, 2, 3]).await;
    assert_eq!(stream.event().await, AppendEvent::Ready);
    stream.send_frames(&frames[..20]).await;
    stream.until_written(20_000).await;
    rig.stop_node(3).await;
    stream.try_send_frames(&frames[20..]).await;
    let failed = stream.until_failed().await;
    assert_eq!(failed.0, NodeId(3), "{:?}", failed.1);
    for node in 1..=2 {
        assert_eq!(rig.read(node, CHUNK, FIRST, 0, 20_000).await.unwrap(), frames[..20]);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tail_that_falls_silent_is_named_by_the_node_before_it() {
    let rig = Rig::start(2).await;
    let mut chain = rig.replicas(&[1, 2]);
    chain.push(rig.start_silent(9));
    let mut stream = rig.append_to(CHUNK, chain, rig.capability(CHUNK, Access::Append)).await;
    assert_eq!(stream.event().await, AppendEvent::Ready);
    stream.send_frames(&frames(CHUNK, &[1000])).await;
    let (node, error) = stream.until_failed().await;
    assert_eq!((node, error.kind), (NodeId(9), ErrorKind::Timeout));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_does_not_match_ends_the_stream_and_is_not_kept() {
    let rig = Rig::start(1).await;
    let good = frames(CHUNK, &[1000, 1000]);
    let mut stream = rig.append(CHUNK, &[1]).await;
    assert_eq!(stream.event().await, AppendEvent::Ready);
    stream.send_frames(&good[..1]).await;
    stream.until_written(1000).await;
    stream.try_send_frames(&[(good[1].0, Bytes::from(vec![0; 1000]))]).await;
    let (node, error) = stream.until_failed().await;
    assert_eq!((node, error.kind), (NodeId(1), ErrorKind::Malformed));
    assert_eq!(rig.read(1, CHUNK, FIRST, 0, 1000).await.unwrap(), good[..1]);
    // The chunk has had its append stream: whoever wants to go on takes another chunk.
    let (_, error) = rig.append(CHUNK, &[1]).await.until_failed().await;
    assert_eq!(error.kind, ErrorKind::StaleEpoch);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_holder_of_a_valid_capability_gets_in() {
    let rig = Rig::start(1).await;
    rig.write_chunk(CHUNK, &[1], &frames(CHUNK, &[1000])).await;
    let later = Timestamp { secs: i64::MAX, nanos: 0 };
    let key = rig.key();
    let foreign = CapabilityKey { number: key.number, secret: [66; 32] };
    let retired = CapabilityKey { number: key.number + 7, secret: [66; 32] };
    let past = Timestamp { secs: 1, nanos: 0 };
    let cases = [
        (Capability::sign(&foreign, CHUNK, Access::Read, CLIENT, later), ErrorKind::Forbidden),
        (Capability::sign(&key, ChunkId(78), Access::Read, CLIENT, later), ErrorKind::Forbidden),
        (Capability::sign(&key, CHUNK, Access::Read, NodeId(4711), later), ErrorKind::Forbidden),
        (Capability::sign(&retired, CHUNK, Access::Read, CLIENT, later), ErrorKind::CapabilityExpired),
        (Capability::sign(&key, CHUNK, Access::Read, CLIENT, past), ErrorKind::CapabilityExpired),
    ];
    for (capability, kind) in cases {
        let refused = rig.read_with(1, CHUNK, FIRST, 0, 10, capability).await.unwrap_err();
        assert_eq!(refused.kind(), kind);
    }
    let mut stream = rig.append_to(ChunkId(78), rig.replicas(&[1]), rig.capability(ChunkId(78), Access::Read)).await;
    assert_eq!(stream.until_failed().await.1.kind, ErrorKind::Forbidden);
    rig.stop().await;
}

/// Asks a node for the way in, and goes it.
async fn enter(rig: &Rig, node: u64, wants: LocalUse) -> (LocalDoor, LocalStream) {
    let (mut send, mut recv) = rig.stream(node).await;
    send.send(&DataRequest::Local).await.unwrap();
    send.finish();
    let door = recv.recv::<Result<LocalDoor, WireError>>().await.unwrap().unwrap();
    let mut stream = LocalStream::connect(&door.name).unwrap();
    stream.send(&LocalHello { ticket: door.ticket, wants }).await.unwrap();
    (door, stream)
}

/// A stream within the machine, granted.
async fn enter_stream(rig: &Rig, node: u64) -> (SendStream, RecvStream) {
    let (_, mut stream) = enter(rig, node, LocalUse::Stream).await;
    stream.recv::<Result<(), WireError>>().await.unwrap().unwrap();
    stream.into_halves()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_within_the_machine_is_one_of_the_data_plane() {
    let rig = Rig::start(2).await;
    let frames = frames(CHUNK, &[1000, FRAME_MAX, 7]);
    let len = frames.last().unwrap().0.end();
    let append = |access| DataRequest::Append {
        chunk: CHUNK,
        epoch: FIRST,
        capability: rig.capability(CHUNK, access),
        chain: rig.replicas(&[2]),
    };
    let (mut send, mut recv) = enter_stream(&rig, 1).await;
    send.send(&append(Access::Read)).await.unwrap();
    let refused = recv.recv::<AppendEvent>().await.unwrap();
    assert!(matches!(refused, AppendEvent::Failed { error, .. } if error.kind == ErrorKind::Forbidden));

    let (mut send, mut recv) = enter_stream(&rig, 1).await;
    send.send(&append(Access::Append)).await.unwrap();
    assert_eq!(recv.recv::<AppendEvent>().await.unwrap(), AppendEvent::Ready);
    for (header, bytes) in &frames {
        let head = [&[append_item::FRAME][..], &header.to_bytes()].concat();
        send.send_raw_all(&mut [head.into(), bytes.clone()]).await.unwrap();
    }
    send.send_raw(Bytes::from_static(&[append_item::SYNC])).await.unwrap();
    send.finish();
    let mut last = None;
    while let Some(event) = recv.recv_optional::<AppendEvent>().await.unwrap() {
        last = Some(event);
    }
    assert_eq!(last, Some(AppendEvent::Ack { written: len, synced: len }), "and then the end, in order");

    for node in [1, 2] {
        let (mut send, mut recv) = enter_stream(&rig, node).await;
        let capability = rig.capability(CHUNK, Access::Read);
        send.send(&DataRequest::Read { chunk: CHUNK, epoch: FIRST, offset: 0, len, capability }).await.unwrap();
        send.finish();
        assert_eq!(recv.recv::<Result<ReadReply, WireError>>().await.unwrap().unwrap().len, len);
        for (header, bytes) in &frames {
            let mut head = [0; FRAME_HEADER_LEN];
            recv.read_exact(&mut head).await.unwrap();
            assert_eq!(FrameHeader::from_bytes(&head), Some(*header));
            assert_eq!(recv.read_whole(bytes.len()).await.unwrap(), *bytes);
        }
        assert!(!recv.read_exact_or_end(&mut [0]).await.unwrap());
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_within_the_machine_ends_with_the_connection_beside_it() {
    let rig = Rig::start(1).await;
    let connection = rig.connection(1).await;
    let (mut send, mut recv) = connection.open_near().await.unwrap();
    let (chain, capability) = (Vec::new(), rig.capability(CHUNK, Access::Append));
    send.send(&DataRequest::Append { chunk: CHUNK, epoch: FIRST, capability, chain }).await.unwrap();
    assert_eq!(recv.recv::<AppendEvent>().await.unwrap(), AppendEvent::Ready);
    let waiting = tokio::spawn(async move { recv.recv_optional::<AppendEvent>().await });
    connection.close();
    let ended = tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("it waits for ever").unwrap();
    assert!(ended.is_err(), "{ended:?}");
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_on_this_machine_gets_the_file_of_a_chunk_with_the_same_capability() {
    let rig = Rig::start(1).await;
    let frames = frames(CHUNK, &[1000, 65_536, 7]);
    rig.write_chunk(CHUNK, &[1], &frames).await;
    let (_, mut local) = enter(&rig, 1, LocalUse::Files).await;
    // While it is open, then sealed.
    for _ in 0..2 {
        let forged = LocalOpen { chunk: CHUNK, capability: rig.capability(ChunkId(78), Access::Read) };
        local.send(&forged).await.unwrap();
        let refused = local.recv::<Result<LocalChunk, WireError>>().await.unwrap().unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Forbidden);

        local.send(&LocalOpen { chunk: CHUNK, capability: rig.capability(CHUNK, Access::Read) }).await.unwrap();
        let found = local.recv::<Result<LocalChunk, WireError>>().await.unwrap().unwrap();
        assert_eq!((found.len, found.frames), (66_543, 3));
        let file = std::fs::File::from(local.recv_file().await.unwrap());
        for (header, bytes) in &frames {
            let mut head = [0; FRAME_HEADER_LEN];
            local.read_exact(&mut head).await.unwrap();
            assert_eq!(FrameHeader::from_bytes(&head), Some(*header));
            let mut read = vec![0; bytes.len()];
            file.read_exact_at(&mut read, found.data_start + u64::from(header.offset)).unwrap();
            assert_eq!(read, bytes[..]);
        }
        assert!(file.write_at(&[0], found.data_start).is_err(), "it can be written");

        rig.order_all(&[1], Order::Seal { chunk: CHUNK, epoch: SECOND, len: 66_543 });
        rig.heard(1, |heartbeat| heartbeat.digests[77] != 0).await;
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_in_by_the_local_door_without_a_ticket_of_his_own() {
    let rig = Rig::start(1).await;
    let (door, mut first) = enter(&rig, 1, LocalUse::Files).await;
    // Once it is answered, its ticket has been taken.
    first.send(&LocalOpen { chunk: CHUNK, capability: rig.capability(CHUNK, Access::Read) }).await.unwrap();
    let refused = first.recv::<Result<LocalChunk, WireError>>().await.unwrap().unwrap_err();
    assert_eq!(refused.kind, ErrorKind::BadReplica, "a chunk that is not here");
    for ticket in [door.ticket, [9; 32]] {
        for wants in [LocalUse::Files, LocalUse::Stream] {
            let mut stream = LocalStream::connect(&door.name).unwrap();
            stream.send(&LocalHello { ticket, wants }).await.unwrap();
            assert!(stream.recv::<Result<(), WireError>>().await.is_err());
        }
    }
    let mut stream = LocalStream::connect(&door.name).unwrap();
    stream.send_raw(&[0xff; 64]).await.unwrap();
    assert!(stream.recv::<Result<LocalChunk, WireError>>().await.is_err());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_port_and_on_streams_does_no_harm() {
    let rig = Rig::start(1).await;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for len in [1, 20, 1200, 9000] {
        socket.send_to(&vec![0xa5; len], rig.addr(1)).unwrap();
    }
    let hostile: [&[u8]; 4] =
        [&[0xff; 64], &(CONTROL_FRAME_MAX as u32 + 1).to_le_bytes(), &[4, 0, 0, 0, 9, 9, 9, 9], &[]];
    for bytes in hostile {
        let (mut send, mut recv) = rig.stream(1).await;
        let _ = send.send_raw(Bytes::copy_from_slice(bytes)).await;
        send.finish();
        let mut answer = [0];
        assert!(recv.read_exact(&mut answer).await.is_err());
    }
    // Within an append stream: no such item, and a frame header with a hostile length.
    let header = FrameHeader { offset: 0, len: FRAME_MAX + 1, digest: [0; 32] }.to_bytes();
    for (number, bytes) in [vec![9], [&[append_item::FRAME][..], &header].concat()].into_iter().enumerate() {
        let mut stream = rig.append(ChunkId(500 + number as u64), &[1]).await;
        assert_eq!(stream.event().await, AppendEvent::Ready);
        stream.send_raw(bytes.into()).await;
        assert_eq!(stream.until_failed().await.1.kind, ErrorKind::Malformed);
    }
    let frames = frames(CHUNK, &[1000]);
    rig.write_chunk(CHUNK, &[1], &frames).await;
    assert_eq!(rig.read(1, CHUNK, FIRST, 0, 1000).await.unwrap(), frames);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_takes_nothing_damaged_and_uses_what_is_good_of_every_source() {
    let rig = Rig::start(3).await;
    let frames = frames(CHUNK, &[FRAME_MAX; 40]);
    let len = frames.last().unwrap().0.end();
    rig.write_chunk(CHUNK, &[1, 2], &frames).await;
    rig.order_all(&[1, 2], Order::Seal { chunk: CHUNK, epoch: SECOND, len });
    for node in [1, 2] {
        rig.heard(node, |heartbeat| heartbeat.digests[77] != 0).await;
    }
    rig.damage(1, CHUNK, 10 * FRAME_MAX);
    rig.damage(2, CHUNK, 30 * FRAME_MAX);
    let copy = |sources: &[u64]| Order::Copy {
        chunk: CHUNK,
        epoch: SECOND,
        len,
        sources: rig.replicas(sources),
        capability: rig.capability(CHUNK, Access::Read),
    };

    rig.order_all(&[3], copy(&[1]));
    let failed = rig.outcome(3, |outcome| matches!(outcome, Outcome::CopyFailed { .. })).await;
    assert!(matches!(failed, Outcome::CopyFailed { bad_sources, .. } if bad_sources == [NodeId(1)]));
    let nothing = rig.read(3, CHUNK, SECOND, 0, len).await.unwrap_err();
    assert_eq!(nothing.kind(), ErrorKind::BadReplica);

    // Damaged in different places, the two make one whole copy.
    rig.order_all(&[3], copy(&[1, 2]));
    let copied = Outcome::Copied { chunk: CHUNK, epoch: SECOND, len };
    rig.outcome(3, |outcome| *outcome == copied).await;
    assert_eq!(rig.read(3, CHUNK, SECOND, 0, len).await.unwrap(), frames);
    rig.heard(3, |heartbeat| heartbeat.digests[77] == replica_digest(CHUNK, SECOND, len)).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_that_a_verification_finds_is_reported_and_leaves_the_digests() {
    let rig = Rig::start(1).await;
    let frames = frames(CHUNK, &[1000; 8]);
    rig.write_chunk(CHUNK, &[1], &frames).await;
    rig.order_all(&[1], Order::Seal { chunk: CHUNK, epoch: SECOND, len: 8000 });
    rig.heard(1, |heartbeat| heartbeat.digests[77] != 0).await;
    rig.damage(1, CHUNK, 3500);
    rig.order_all(&[1], Order::Verify { chunk: CHUNK, epoch: SECOND, len: 8000 });
    rig.outcome(1, |outcome| matches!(outcome, Outcome::Bad { chunk: CHUNK, epoch: SECOND, .. })).await;
    let heartbeat = rig.heard(1, |heartbeat| heartbeat.digests[77] == 0).await;
    assert_eq!((heartbeat.open[0].len, heartbeat.open[0].sealed), (3000, false));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_that_cannot_be_fulfilled_is_a_bad_replica_and_goes_by_order() {
    let rig = Rig::start(1).await;
    rig.write_chunk(CHUNK, &[1], &frames(CHUNK, &[1000])).await;
    let missing = ChunkId(99);
    rig.order_all(&[1], Order::Seal { chunk: missing, epoch: SECOND, len: 2000 });
    rig.outcome(1, |outcome| matches!(outcome, Outcome::Bad { chunk, .. } if *chunk == missing)).await;
    let short = |epoch| Outcome::Short { chunk: CHUNK, epoch, len: 1000 };
    rig.order_all(&[1], Order::Seal { chunk: CHUNK, epoch: SECOND, len: 2000 });
    rig.outcome(1, |outcome| *outcome == short(SECOND)).await;
    // Asked to read it again, it says the same; and it serves what it has.
    let third = SECOND.next();
    rig.order_all(&[1], Order::Verify { chunk: CHUNK, epoch: third, len: 2000 });
    rig.outcome(1, |outcome| *outcome == short(third)).await;
    assert_eq!(rig.read(1, CHUNK, FIRST, 0, 2000).await.unwrap(), frames(CHUNK, &[1000]));
    assert_eq!(rig.read(1, CHUNK, FIRST, 1000, 1).await.unwrap_err().kind(), ErrorKind::BadReplica);
    rig.order_all(&[1], Order::Delete { chunk: CHUNK, epoch: SECOND });
    rig.outcome(1, |outcome| *outcome == Outcome::Deleted { chunk: CHUNK, epoch: SECOND }).await;
    assert_eq!(rig.read(1, CHUNK, FIRST, 0, 1).await.unwrap_err().kind(), ErrorKind::BadReplica);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_replica_is_sealed_by_the_order_that_says_where_the_chunk_ends_now() {
    let rig = Rig::start(1).await;
    rig.write_chunk(CHUNK, &[1], &frames(CHUNK, &[1000, 500])).await;
    rig.order_all(&[1], Order::Seal { chunk: CHUNK, epoch: SECOND, len: 2000 });
    rig.outcome(1, |outcome| *outcome == Outcome::Short { chunk: CHUNK, epoch: SECOND, len: 1500 }).await;
    let third = SECOND.next();
    rig.order_all(&[1], Order::Seal { chunk: CHUNK, epoch: third, len: 1000 });
    let shard = dfs_proto::chunk::digest_shard(CHUNK);
    let digest = dfs_proto::chunk::replica_digest(CHUNK, third, 1000);
    rig.heard(1, |heartbeat| heartbeat.digests[shard] == digest).await;
    assert_eq!(rig.read(1, CHUNK, third, 0, 2000).await.unwrap(), frames(CHUNK, &[1000]));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_of_a_deposed_leader_are_ignored() {
    let rig = Rig::start(1).await;
    let frames = frames(CHUNK, &[1000]);
    rig.write_chunk(CHUNK, &[1], &frames).await;
    let term = rig.term();
    rig.set_term(term - 1);
    rig.order_all(&[1], Order::Delete { chunk: CHUNK, epoch: SECOND });
    // The second heartbeat from here is composed after the answer to the first has been heard.
    rig.next_heartbeats(1, 3).await;
    assert_eq!(rig.read(1, CHUNK, FIRST, 0, 1000).await.unwrap(), frames);
    rig.set_term(term + 1);
    rig.outcome(1, |outcome| matches!(outcome, Outcome::Deleted { .. })).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_told_again_until_a_leader_has_heard_them() {
    let rig = Rig::start(1).await;
    rig.order_all(&[1], Order::Delete { chunk: CHUNK, epoch: FIRST });
    let deleted = Outcome::Deleted { chunk: CHUNK, epoch: FIRST };
    rig.heard(1, |heartbeat| heartbeat.outcomes.contains(&deleted)).await;
    rig.set_leading(false);
    rig.order_none();
    rig.next_heartbeats(1, 2).await;
    rig.heard(1, |heartbeat| heartbeat.outcomes.contains(&deleted)).await;
    rig.set_leading(true);
    rig.heard(1, |heartbeat| heartbeat.outcomes.is_empty()).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_is_asked_for_is_reported_in_full() {
    let rig = Rig::start(1).await;
    rig.write_chunk(CHUNK, &[1], &frames(CHUNK, &[1000])).await;
    rig.write_chunk(ChunkId(77 + 256), &[1], &frames(ChunkId(77 + 256), &[50])).await;
    rig.order_all(&[1], Order::Seal { chunk: CHUNK, epoch: SECOND, len: 1000 });
    rig.heard(1, |heartbeat| heartbeat.digests[77] != 0).await;
    rig.want_shards(&[77, 78]);
    let full = rig.reported(1, 77).await;
    let lines: Vec<_> = full.iter().map(|report| (report.chunk.0, report.len, report.sealed)).collect();
    assert_eq!(lines, [(77, 1000, true), (77 + 256, 50, false)]);
    assert!(rig.reported(1, 78).await.is_empty());
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_says_so_and_comes_back_with_its_chunks() {
    let mut rig = Rig::start(1).await;
    let frames = frames(CHUNK, &[1000, 2000]);
    rig.write_chunk(CHUNK, &[1], &frames).await;
    rig.stop_node(1).await;
    rig.heard(1, |heartbeat| heartbeat.leaving).await;
    rig.start_node(1).await;
    assert_eq!(rig.read(1, CHUNK, FIRST, 0, 3000).await.unwrap(), frames);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_a_leader_is_heard_of_requests_are_put_off() {
    let rig = Rig::start_without_leader(1).await;
    let (_, error) = rig.append(CHUNK, &[1]).await.until_failed().await;
    assert_eq!(error.kind, ErrorKind::Unavailable);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_stream_goes_through_a_chain_in_bounded_memory() {
    let rig = Rig::start(2).await;
    // More than the windows of both nodes together.
    let frames = frames(CHUNK, &[FRAME_MAX; 320]);
    let len = frames.last().unwrap().0.end();
    let mut stream = rig.append(CHUNK, &[1, 2]).await;
    assert_eq!(stream.event().await, AppendEvent::Ready);
    stream.send_frames(&frames).await;
    tokio::time::timeout(Duration::from_secs(60), stream.until_written(len)).await.unwrap();
    stream.finish().await;
    assert_eq!(rig.read(2, CHUNK, FIRST, 0, len).await.unwrap(), frames);
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_to_move_is_told_and_what_it_wrote_stays() {
    let rig = Rig::start(2).await;
    let frames = frames(CHUNK, &[1000; 4]);
    let mut stream = rig.append(CHUNK, &[1, 2]).await;
    assert_eq!(stream.event().await, AppendEvent::Ready);
    stream.send_frames(&frames).await;
    stream.until_written(4000).await;
    // Of an epoch before this one: means nothing.
    rig.order_all(&[2], Order::EndAppends { chunk: CHUNK, epoch: Epoch(0) });
    rig.next_heartbeats(2, 3).await;
    stream.send_sync().await;
    stream.until_synced(4000).await;
    rig.order_all(&[2], Order::EndAppends { chunk: CHUNK, epoch: FIRST });
    let (node, error) = stream.until_failed().await;
    assert_eq!((node, error.kind), (NodeId(2), ErrorKind::Unavailable));
    for node in 1..=2 {
        assert_eq!(rig.read(node, CHUNK, FIRST, 0, 4000).await.unwrap(), frames);
    }
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_that_is_wished_for_verifies_everything_and_finds_the_damage() {
    let mut rig = Rig::start(1).await;
    let chunks = [ChunkId(77), ChunkId(78), ChunkId(79)];
    for chunk in chunks {
        rig.write_chunk(chunk, &[1], &frames(chunk, &[1000, 1000])).await;
        rig.order_all(&[1], Order::Seal { chunk, epoch: SECOND, len: 2000 });
        rig.heard(1, |heartbeat| heartbeat.digests[chunk.0 as usize] != 0).await;
    }
    rig.damage(1, ChunkId(78), 1500);
    rig.order_all(&[1], Order::Scrub { wish: 5 });
    let bad = |outcome: &Outcome| matches!(outcome, Outcome::Bad { chunk: ChunkId(78), .. });
    rig.outcome(1, bad).await;
    let done = rig.heard(1, |heartbeat| heartbeat.scrub.asked_s > 0 && heartbeat.scrub.left_chunks == 0).await.scrub;
    assert_eq!((done.chunks, done.bytes, done.damaged), (2, 4000, 1));
    assert!(done.oldest_s >= done.asked_s);
    // The same wish again begins nothing, over a restart either.
    rig.stop_node(1).await;
    rig.start_node(1).await;
    rig.next_heartbeats(1, 3).await;
    let again = rig.heard(1, |heartbeat| heartbeat.scrub.chunks == 2).await.scrub;
    assert_eq!((again.asked_s, again.left_chunks), (done.asked_s, 0));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namenode_whose_clock_is_behind_is_told_by_how_much() {
    let rig = Rig::start(1).await;
    let near = |ms: i64| move |skew: dfs_proto::msg::node::Skew| (skew.offset_ms - ms).abs() <= 100;
    rig.heard(1, |heartbeat| heartbeat.skew.is_some_and(near(0))).await;
    rig.set_behind(7);
    rig.heard(1, |heartbeat| heartbeat.skew.is_some_and(near(7000))).await;
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_added_and_emptied_by_an_administrator_only() {
    let rig = Rig::start(1).await;
    let [first, second] = ["volume1", "second"].map(|name| rig.data_dir(1).join(name));
    let path = |dir: &std::path::Path| dir.to_str().unwrap().to_owned();
    let add = Manage::AddVolume { path: path(&second) };
    let refused = rig.manage(Role::Client, 1, add.clone()).await;
    assert!(matches!(refused, Err(RpcError::Refused(error)) if error.kind == ErrorKind::Forbidden));
    rig.write_chunk(CHUNK, &[1], &frames(CHUNK, &[1000])).await;
    rig.order_all(&[1], Order::Seal { chunk: CHUNK, epoch: SECOND, len: 1000 });
    rig.heard(1, |heartbeat| heartbeat.digests[77] != 0).await;
    let only = rig.manage(Role::Admin, 1, Manage::DrainVolume { path: path(&first) }).await;
    assert!(matches!(only, Err(RpcError::Refused(error)) if error.kind == ErrorKind::NotSupported));
    rig.manage(Role::Admin, 1, add).await.unwrap();
    rig.manage(Role::Admin, 1, Manage::DrainVolume { path: path(&first) }).await.unwrap();
    let only_second = |heartbeat: &Heartbeat| heartbeat.volumes.iter().all(|volume| volume.path == path(&second));
    assert_eq!(rig.heard(1, only_second).await.volumes[0].chunks, 1);
    let Ok(ManageReply::Replicas(here)) =
        rig.manage(Role::Client, 1, Manage::Replicas { chunks: vec![ChunkId(5), CHUNK] }).await
    else {
        panic!("no answer");
    };
    assert_eq!((here.len(), here[0].chunk, here[0].len, here[0].state), (1, CHUNK, 1000, ReplicaState::Sealed));
    assert!(here[0].verified_s > 0 && here[0].volume == path(&second));
    rig.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namenode_that_has_moved_is_found_where_the_configuration_says() {
    let mut rig = Rig::start(1).await;
    rig.stop_node(1).await;
    // As the group named it before, at an address where nobody is any more.
    let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let learnt = format!(
        "[[namenodes]]\nid = {}\nname = \"nn1\"\naddr = \"{}\"\n",
        rig::NAMENODE.0,
        nobody.local_addr().unwrap()
    );
    std::fs::write(rig.data_dir(1).join("namenodes.toml"), learnt).unwrap();
    // Returns when it has been heard.
    rig.start_node(1).await;
    rig.stop().await;
}

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::{ClusterId, NodeId, PeerIdentity, Plane, Role};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Fabric;
use crate::pki::Authority;
use crate::transport::{STREAM_WINDOW, STREAMS_MAX};
use crate::{
    Connection, Endpoint, Handler, Moment, RecvStream, RpcError, SendStream, Target, Tls, TlsFiles, VirtualTime, call,
    serve,
};

const NAMENODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
const PORT: u16 = 7000;
/// Of the meta plane.
const IDLE: Duration = Duration::from_secs(6);

/// A namenode that accepts the meta plane, a client, and the network between them.
struct Net {
    dir: TempDir,
    authority: Authority,
    fabric: Fabric,
    server: Endpoint,
    client: Endpoint,
}

fn tls(dir: &TempDir, authority: &Authority, role: Role, id: u64) -> Tls {
    let name = format!("{}{id}", role.as_str());
    authority.save(dir.path()).unwrap();
    authority.issue(role, NodeId(id)).unwrap().save(dir.path(), &name).unwrap();
    let file = |name: String| dir.path().join(name);
    let files =
        TlsFiles { ca: file("ca.pem".into()), cert: file(format!("{name}.pem")), key: file(format!("{name}.key")) };
    Tls::load(&files).unwrap()
}

impl Net {
    fn new() -> Net {
        let dir = TempDir::new().unwrap();
        let authority = Authority::create(ClusterId([1; 16])).unwrap();
        let fabric = Fabric::new(1);
        let addr = SocketAddr::new(NAMENODE, PORT);
        let server_tls = tls(&dir, &authority, Role::Namenode, 1);
        let server = Endpoint::server_on(&fabric.host(NAMENODE), &server_tls, addr, &[Plane::Meta]).unwrap();
        let client = Endpoint::client_on(&fabric.host(CLIENT), &tls(&dir, &authority, Role::Client, 7)).unwrap();
        Net { dir, authority, fabric, server, client }
    }

    /// The client's side and the namenode's.
    async fn connect(&self) -> (Connection, Connection) {
        let accept = async { self.server.establish(self.server.accept().await.unwrap()).await.unwrap() };
        let target = target();
        let (dialled, accepted) = tokio::join!(self.client.connect(&target), accept);
        (dialled.unwrap(), accepted)
    }
}

fn target() -> Target {
    Target { plane: Plane::Meta, role: Role::Namenode, node: NodeId(1), addr: SocketAddr::new(NAMENODE, PORT) }
}

/// A stream that the client has opened: its two halves, and the namenode's.
async fn stream(client: &Connection, namenode: &Connection) -> ((SendStream, RecvStream), (SendStream, RecvStream)) {
    let opened = client.open().await.unwrap();
    (opened, namenode.accept().await.unwrap())
}

/// Doubles numbers.
struct Doubler;

impl Handler for Doubler {
    async fn handle(&self, _peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let reply = recv.recv::<u64>().await.map(|number| number * 2).map_err(|error| error.to_wire());
        let _ = send.send(&reply).await;
    }
}

#[tokio::test(start_paused = true)]
async fn calls_are_answered_in_virtual_time() {
    let net = Net::new();
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(net.server.clone(), Arc::new(Doubler), shutdown.clone(), Duration::from_secs(1)));
    let connection = net.client.connect(&target()).await.unwrap();
    let begun = Instant::now();
    for number in 0..100u64 {
        assert_eq!(call::<_, u64>(&connection, &number, IDLE).await.unwrap(), 2 * number);
    }
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(100) && took < Duration::from_secs(1), "{took:?}");
    shutdown.cancel();
    sleep(Duration::from_secs(2)).await;
    net.server.close().await;
    sleep(Duration::from_secs(1)).await;
    assert!(connection.is_closed());
    assert!(net.client.connect(&target()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_arrives_in_its_order_and_then_the_end() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    assert_eq!((client.peer().id, namenode.peer().id), (NodeId(1), NodeId(7)));
    let ((mut send, _recv), (_, mut arrives)) = stream(&client, &namenode).await;
    for number in 0..1000u64 {
        send.send(&number).await.unwrap();
    }
    send.finish();
    for number in 0..1000u64 {
        assert_eq!(arrives.recv::<u64>().await.unwrap(), number);
    }
    assert_eq!(arrives.recv_optional::<u64>().await.unwrap(), None);
    timeout(IDLE, send.abandoned()).await.unwrap();
    assert!(send.send(&1u64).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_cut_that_is_mended_in_time_loses_nothing() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    let ((mut send, mut recv), (mut answers, mut arrives)) = stream(&client, &namenode).await;
    net.fabric.cut(CLIENT, NAMENODE);
    send.send(&7u64).await.unwrap();
    answers.send(&8u64).await.unwrap();
    assert_eq!(recv.recv::<u64>().await.unwrap(), 8, "the other way is another link");
    let waited = timeout(IDLE - Duration::from_secs(2), arrives.recv::<u64>()).await;
    assert!(waited.is_err(), "nothing passes a cut link");
    net.fabric.mend(CLIENT, NAMENODE);
    // The read that was given up had taken nothing.
    assert_eq!(timeout(IDLE, arrives.recv::<u64>()).await.unwrap().unwrap(), 7);
    assert!(!client.is_closed() && !namenode.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_when_nothing_is_heard_for_too_long() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    let ((mut send, mut recv), (_answers, mut arrives)) = stream(&client, &namenode).await;
    net.fabric.cut(NAMENODE, CLIENT);
    let begun = Instant::now();
    assert!(recv.recv::<u64>().await.is_err());
    let took = begun.elapsed();
    assert!(took >= IDLE - Duration::from_secs(1) && took <= IDLE + Duration::from_secs(1), "{took:?}");
    assert!(client.is_closed() && send.send(&1u64).await.is_err());
    // The namenode has heard the client all the time, and then hears no more.
    assert!(timeout(2 * IDLE, arrives.recv::<u64>()).await.unwrap().is_err());
    assert!(namenode.is_closed());
    let error = net.client.connect(&target()).await.unwrap_err();
    assert!(matches!(&error, RpcError::Unreachable { reason, .. } if reason.contains("no handshake")), "{error}");
    net.fabric.mend_all();
    net.connect().await;
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_one_side_has_forgotten_ends_when_links_are_mended() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    net.fabric.cut(NAMENODE, CLIENT);
    sleep(IDLE + Duration::from_secs(1)).await;
    assert!(client.is_closed() && !namenode.is_closed());
    net.fabric.mend_all();
    sleep(Duration::from_secs(1)).await;
    assert!(namenode.is_closed());
}

#[tokio::test(start_paused = true)]
async fn the_wrong_node_plane_or_authority_is_refused() {
    let net = Net::new();
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(net.server.clone(), Arc::new(Doubler), shutdown, Duration::from_secs(1)));
    let wrong = [
        Target { node: NodeId(2), ..target() },
        Target { role: Role::Datanode, ..target() },
        Target { plane: Plane::Raft, ..target() },
    ];
    for target in wrong {
        let begun = Instant::now();
        assert!(net.client.connect(&target).await.is_err(), "{target:?}");
        assert!(begun.elapsed() < Duration::from_secs(1), "refused, not unheard");
    }
    // It trusts our authority, but its own certificate is signed by another.
    let elsewhere = TempDir::new().unwrap();
    let theirs = Authority::create(ClusterId([1; 16])).unwrap();
    tls(&elsewhere, &theirs, Role::Admin, 7);
    std::fs::copy(net.dir.path().join("ca.pem"), elsewhere.path().join("ca.pem")).unwrap();
    let file = |name: &str| elsewhere.path().join(name);
    let files = TlsFiles { ca: file("ca.pem"), cert: file("admin7.pem"), key: file("admin7.key") };
    let stranger = Endpoint::client_on(&net.fabric.host(CLIENT), &Tls::load(&files).unwrap()).unwrap();
    assert!(stranger.connect(&target()).await.is_err());
    // And the namenode is not the one that somebody of another authority means.
    let other = Endpoint::client_on(&net.fabric.host(CLIENT), &tls(&elsewhere, &theirs, Role::Client, 7)).unwrap();
    assert!(other.connect(&target()).await.is_err());
    assert!(net.client.connect(&target()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_sender_waits_while_the_reader_does_not_read() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    let ((mut send, _recv), (_answers, mut arrives)) = stream(&client, &namenode).await;
    let window = STREAM_WINDOW as usize;
    send.send_raw(Bytes::from(vec![1; window])).await.unwrap();
    let more = Bytes::from(vec![2; window]);
    assert!(timeout(IDLE, send.send_raw(more.slice(..1))).await.is_err());
    let reading = tokio::spawn(async move {
        let mut got = vec![0; 2 * window];
        arrives.read_exact(&mut got).await.unwrap();
        got
    });
    timeout(IDLE, send.send_raw(more)).await.unwrap().unwrap();
    let got = reading.await.unwrap();
    assert!(got[..window].iter().all(|byte| *byte == 1) && got[window..].iter().all(|byte| *byte == 2));
}

#[tokio::test(start_paused = true)]
async fn streams_under_way_are_limited() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    let mut streams = Vec::new();
    for _ in 0..STREAMS_MAX {
        streams.push(stream(&client, &namenode).await);
    }
    assert!(timeout(IDLE, client.open()).await.is_err());
    // The other side's are counted apart.
    namenode.open().await.unwrap();
    streams.pop();
    timeout(IDLE, client.open()).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn reset_stop_and_close_are_seen_by_the_other_side() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    let ((mut send, mut recv), (mut answers, mut arrives)) = stream(&client, &namenode).await;
    send.send(&1u64).await.unwrap();
    send.reset();
    sleep(Duration::from_millis(50)).await;
    assert!(arrives.recv_optional::<u64>().await.is_err(), "given up is not ended");
    recv.stop();
    timeout(IDLE, answers.abandoned()).await.unwrap();
    assert!(answers.send(&1u64).await.is_err());
    let ((send, recv), (mut answers, mut arrives)) = stream(&client, &namenode).await;
    drop((send, recv));
    assert_eq!(arrives.recv_optional::<u64>().await.unwrap(), None, "dropped is ended in order");
    timeout(IDLE, answers.abandoned()).await.unwrap();
    let ((_send, _recv), (_answers, mut arrives)) = stream(&client, &namenode).await;
    client.close();
    assert!(timeout(IDLE, arrives.recv::<u64>()).await.unwrap().is_err());
    assert!(namenode.is_closed() && client.open().await.is_err() && namenode.accept().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_connection_ends_with_its_last_user() {
    let net = Net::new();
    let (client, namenode) = net.connect().await;
    let ((_send, recv), (_answers, _arrives)) = stream(&client, &namenode).await;
    drop(client);
    sleep(Duration::from_millis(50)).await;
    assert!(!namenode.is_closed(), "a stream is in use");
    drop((_send, recv));
    sleep(Duration::from_millis(50)).await;
    assert!(namenode.is_closed());
}

#[tokio::test(start_paused = true)]
async fn an_address_is_taken_once() {
    let net = Net::new();
    let addr = SocketAddr::new(NAMENODE, PORT);
    let own = tls(&net.dir, &net.authority, Role::Namenode, 2);
    let bind = || Endpoint::server_on(&net.fabric.host(NAMENODE), &own, addr, &[Plane::Meta]);
    assert!(bind().is_err());
    assert!(Endpoint::server_on(&net.fabric.host(CLIENT), &own, addr, &[Plane::Meta]).is_err());
    net.server.close().await;
    bind().unwrap();
}

#[tokio::test(start_paused = true)]
async fn clocks_follow_virtual_time_and_other_threads_hold_it_up() {
    let clock = VirtualTime::start();
    clock.install();
    let (moment, wall, start) = (Moment::now(), crate::since_1970(), Instant::now());
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(Moment::now().since(moment), start.elapsed());
    assert_eq!(crate::since_1970() - wall, start.elapsed());
    let (reply, answer) = tokio::sync::oneshot::channel();
    let working = crate::OtherThread::begins();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        reply.send(()).unwrap();
        drop(working);
    });
    // Without it this would be over at once.
    timeout(Duration::from_millis(1), answer).await.unwrap().unwrap();
    thread.join().unwrap();
}

//! Two endpoints over real QUIC on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::{ClusterId, ErrorKind, NodeId, PeerIdentity, Plane, Role, WireError};
use dfs_rpc::pki::Authority;
use dfs_rpc::{Endpoint, Handler, Pool, RecvStream, RpcError, SendStream, Target, Tls, TlsFiles, call, serve};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(10);

fn tls(dir: &TempDir, authority: &Authority, role: Role, id: u64) -> Tls {
    let name = format!("{}{id}", role.as_str());
    authority.save(dir.path()).unwrap();
    authority.issue(role, NodeId(id)).unwrap().save(dir.path(), &name).unwrap();
    let file = |name: String| dir.path().join(name);
    let files =
        TlsFiles { ca: file("ca.pem".into()), cert: file(format!("{name}.pem")), key: file(format!("{name}.key")) };
    Tls::load(&files).unwrap()
}

/// Doubles numbers, refuses odd ones, and says who asked.
struct Doubler;

impl Handler for Doubler {
    async fn handle(&self, peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let reply = match recv.recv::<u64>().await {
            Ok(number) if number % 2 == 0 => Ok((number * 2, peer.id)),
            Ok(_) => Err(WireError::new(ErrorKind::InvalidArgument, "odd")),
            Err(error) => Err(error.to_wire()),
        };
        let _ = send.send(&reply).await;
    }
}

struct Server {
    addr: SocketAddr,
    endpoint: Endpoint,
    shutdown: CancellationToken,
}

fn start(tls: &Tls, addr: &str) -> Server {
    let endpoint = Endpoint::server(tls, addr.parse().unwrap(), &[Plane::Meta]).unwrap();
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(endpoint.clone(), Arc::new(Doubler), shutdown.clone(), Duration::from_secs(1)));
    Server { addr: endpoint.local_addr().unwrap(), endpoint, shutdown }
}

fn namenode(addr: SocketAddr, id: u64) -> Target {
    Target { plane: Plane::Meta, role: Role::Namenode, node: NodeId(id), addr }
}

#[tokio::test]
async fn a_call_is_answered_and_the_server_knows_who_asked() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::create(ClusterId([1; 16])).unwrap();
    let server = start(&tls(&dir, &authority, Role::Namenode, 1), "127.0.0.1:0");
    let pool = Pool::new(Endpoint::client(&tls(&dir, &authority, Role::Client, 7)).unwrap());
    let connection = pool.get(&namenode(server.addr, 1)).await.unwrap();
    assert_eq!(call::<_, (u64, NodeId)>(&connection, &21u64.wrapping_mul(2), DEADLINE).await.unwrap(), (84, NodeId(7)));
    let refused = call::<_, (u64, NodeId)>(&connection, &3u64, DEADLINE).await.unwrap_err();
    assert!(matches!(refused, RpcError::Refused(e) if e.kind == ErrorKind::InvalidArgument));
}

#[tokio::test]
async fn a_node_of_this_machine_without_a_door_is_reached_all_the_same() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::create(ClusterId([1; 16])).unwrap();
    let server = start(&tls(&dir, &authority, Role::Namenode, 1), "127.0.0.1:0");
    let client = Endpoint::client(&tls(&dir, &authority, Role::Client, 7)).unwrap();
    let connection = client.connect(&namenode(server.addr, 1)).await.unwrap();
    assert!(connection.is_local());
    for number in [21u64, 22] {
        let (mut send, mut recv) = connection.open_near().await.unwrap();
        send.send(&(2 * number)).await.unwrap();
        let answer = recv.recv::<Result<(u64, NodeId), WireError>>().await.unwrap();
        assert_eq!(answer.unwrap().0, 4 * number);
    }
}

#[tokio::test]
async fn a_node_that_is_not_the_one_meant_is_not_connected_to() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::create(ClusterId([1; 16])).unwrap();
    let server = start(&tls(&dir, &authority, Role::Namenode, 1), "127.0.0.1:0");
    let client = Endpoint::client(&tls(&dir, &authority, Role::Client, 7)).unwrap();
    let error = client.connect(&namenode(server.addr, 2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}

#[tokio::test]
async fn a_client_of_another_authority_gets_no_answer() {
    let dir = TempDir::new().unwrap();
    let ours = Authority::create(ClusterId([1; 16])).unwrap();
    let server = start(&tls(&dir, &ours, Role::Namenode, 1), "127.0.0.1:0");
    let elsewhere = TempDir::new().unwrap();
    let theirs = Authority::create(ClusterId([1; 16])).unwrap();
    // It trusts our authority, but its own certificate is signed by another.
    let foreign = tls(&elsewhere, &theirs, Role::Admin, 7);
    std::fs::copy(dir.path().join("ca.pem"), elsewhere.path().join("ca.pem")).unwrap();
    let files = TlsFiles {
        ca: elsewhere.path().join("ca.pem"),
        cert: elsewhere.path().join("admin7.pem"),
        key: elsewhere.path().join("admin7.key"),
    };
    drop(foreign);
    let client = Endpoint::client(&Tls::load(&files).unwrap()).unwrap();
    let answer = match client.connect(&namenode(server.addr, 1)).await {
        // With TLS 1.3 the client's side may finish before the server has refused its certificate.
        Ok(connection) => call::<_, (u64, NodeId)>(&connection, &2u64, DEADLINE).await,
        Err(error) => Err(error),
    };
    assert!(answer.is_err());
}

#[tokio::test]
async fn oversized_and_garbled_messages_are_refused_and_the_connection_lives_on() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::create(ClusterId([1; 16])).unwrap();
    let server = start(&tls(&dir, &authority, Role::Namenode, 1), "127.0.0.1:0");
    let client = Endpoint::client(&tls(&dir, &authority, Role::Client, 7)).unwrap();
    let connection = client.connect(&namenode(server.addr, 1)).await.unwrap();
    for hostile in [&u32::MAX.to_le_bytes()[..], &[3, 0, 0, 0, 1, 2, 3]] {
        let (mut send, mut recv) = connection.open().await.unwrap();
        send.send_raw(Bytes::copy_from_slice(hostile)).await.unwrap();
        send.finish();
        let reply = recv.recv::<Result<(u64, NodeId), WireError>>().await.unwrap();
        assert_eq!(reply.unwrap_err().kind, ErrorKind::Malformed);
    }
    assert_eq!(call::<_, (u64, NodeId)>(&connection, &2u64, DEADLINE).await.unwrap().0, 4);
}

#[tokio::test]
async fn garbage_datagrams_do_not_disturb_the_server() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::create(ClusterId([1; 16])).unwrap();
    let server = start(&tls(&dir, &authority, Role::Namenode, 1), "127.0.0.1:0");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for seed in 0..500usize {
        let garbage: Vec<u8> = (0..(seed * 7) % 1400 + 1).map(|i| (i * seed * 31 + seed) as u8).collect();
        socket.send_to(&garbage, server.addr).unwrap();
    }
    let client = Endpoint::client(&tls(&dir, &authority, Role::Client, 7)).unwrap();
    let connection = client.connect(&namenode(server.addr, 1)).await.unwrap();
    assert_eq!(call::<_, (u64, NodeId)>(&connection, &2u64, DEADLINE).await.unwrap().0, 4);
}

#[tokio::test]
async fn after_a_restart_the_pool_dials_anew() {
    let dir = TempDir::new().unwrap();
    let authority = Authority::create(ClusterId([1; 16])).unwrap();
    let server_tls = tls(&dir, &authority, Role::Namenode, 1);
    let first = start(&server_tls, "127.0.0.1:0");
    let pool = Pool::new(Endpoint::client(&tls(&dir, &authority, Role::Client, 7)).unwrap());
    let target = namenode(first.addr, 1);
    let connection = pool.get(&target).await.unwrap();
    assert_eq!(call::<_, (u64, NodeId)>(&connection, &2u64, DEADLINE).await.unwrap().0, 4);
    let addr = first.addr.to_string();
    first.shutdown.cancel();
    first.endpoint.close().await;
    assert!(call::<_, (u64, NodeId)>(&connection, &2u64, DEADLINE).await.is_err());
    drop((first, connection));
    // The port is free once the old endpoint's driver has ended.
    let second = tokio::time::timeout(DEADLINE, async {
        loop {
            match Endpoint::server(&server_tls, addr.parse().unwrap(), &[Plane::Meta]) {
                Ok(endpoint) => break endpoint,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let endpoint = second.await.unwrap();
    tokio::spawn(serve(endpoint, Arc::new(Doubler), CancellationToken::new(), Duration::from_secs(1)));
    let connection = pool.get(&target).await.unwrap();
    assert_eq!(call::<_, (u64, NodeId)>(&connection, &2u64, DEADLINE).await.unwrap().0, 4);
}

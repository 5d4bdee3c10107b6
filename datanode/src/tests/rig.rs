//! Datanodes, a scripted namenode and a client, all in this process.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::msg::data::{AppendEvent, DataRequest, FRAME_HEADER_LEN, Manage, ManageReply, ReadReply, append_item};
use dfs_proto::msg::meta::{MetaReply, MetaRequest, ReplicaAt};
use dfs_proto::msg::node::{Heartbeat, HeartbeatReply, NodeReply, NodeRequest, Order, Outcome, ReplicaReport};
use dfs_proto::{
    Access, Capability, CapabilityKey, ChunkId, ClusterId, Epoch, FrameHeader, NodeId, PeerIdentity, Plane, Role,
    Timestamp, WireError,
};
use dfs_rpc::pki::Authority;
use dfs_rpc::{Connection, Endpoint, Handler, Pool, RecvStream, RpcError, SendStream, Target, Tls, TlsFiles, serve};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, NamenodeAddr};

pub const CLIENT: NodeId = NodeId(500);
pub const NAMENODE: NodeId = NodeId(100);
const EPOCH: Epoch = Epoch(1);
/// Far beyond anything that works; a test that hits it has failed.
const PATIENCE: Duration = Duration::from_secs(40);

pub struct Rig {
    dir: TempDir,
    authority: Authority,
    namenode: Arc<Namenode>,
    namenode_addr: SocketAddr,
    nodes: HashMap<u64, Running>,
    client: Pool,
    stop: CancellationToken,
}

struct Running {
    addr: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

/// Answers heartbeats as its script says and remembers what it hears.
struct Namenode {
    script: Mutex<Script>,
    heard: Mutex<Heard>,
    /// Counts heartbeats and reports.
    changed: watch::Sender<u64>,
}

struct Script {
    leading: bool,
    term: u64,
    key: CapabilityKey,
    orders: HashMap<u64, Vec<Order>>,
    want_shards: Vec<u16>,
    /// By how much the namenode's clock is behind.
    behind_s: i64,
}

#[derive(Default)]
struct Heard {
    last: HashMap<u64, Heartbeat>,
    counts: HashMap<u64, u64>,
    outcomes: HashMap<u64, Vec<Outcome>>,
    reports: HashMap<(u64, u16), Vec<ReplicaReport>>,
}

impl Rig {
    /// Starts datanodes 1 to `count` and waits until the namenode has heard from each.
    pub async fn start(count: u64) -> Rig {
        Rig::start_with(count, true).await
    }

    pub async fn start_without_leader(count: u64) -> Rig {
        Rig::start_with(count, false).await
    }

    async fn start_with(count: u64, leading: bool) -> Rig {
        let dir = crate::scratch::folder();
        let authority = Authority::create(ClusterId([3; 16])).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.cert_pem()).unwrap();
        let key = CapabilityKey { number: 1, secret: [9; 32] };
        let script = Script { leading, term: 5, key, orders: HashMap::new(), want_shards: Vec::new(), behind_s: 0 };
        let namenode =
            Arc::new(Namenode { script: Mutex::new(script), heard: Mutex::default(), changed: watch::channel(0).0 });
        let stop = CancellationToken::new();
        let tls = load(&issue(&authority, &dir, Role::Namenode, NAMENODE));
        let endpoint = Endpoint::server(&tls, "127.0.0.1:0".parse().unwrap(), &[Plane::Meta]).unwrap();
        let namenode_addr = endpoint.local_addr().unwrap();
        tokio::spawn(serve(endpoint, namenode.clone(), stop.clone(), Duration::ZERO));
        let tls = load(&issue(&authority, &dir, Role::Client, CLIENT));
        let client = Pool::new(Endpoint::client(&tls).unwrap());
        let mut rig = Rig { dir, authority, namenode, namenode_addr, nodes: HashMap::new(), client, stop };
        for node in 1..=count {
            rig.start_node(node).await;
        }
        rig
    }

    pub async fn start_node(&mut self, node: u64) {
        let tls = issue(&self.authority, &self.dir, Role::Datanode, NodeId(node));
        let me = PeerIdentity { cluster: self.authority.cluster(), role: Role::Datanode, id: NodeId(node) };
        let namenodes = vec![NamenodeAddr { id: NAMENODE, name: "nn1".into(), addr: self.namenode_addr }];
        let listen = "127.0.0.1:0".parse().unwrap();
        let mut config = Config::new(me, format!("dn{node}"), self.data_dir(node), listen, namenodes, tls);
        config.heartbeat_interval_ms = 100;
        let stop = CancellationToken::new();
        let task = tokio::spawn(crate::run(config, stop.clone()));
        self.namenode.heard.lock().last.remove(&node);
        let first = self.heard(node, |heartbeat| heartbeat.scanned && !heartbeat.leaving).await;
        // The second one tells that the answer to the first, with the keys, has been heard.
        self.next_heartbeats(node, 2).await;
        self.nodes.insert(node, Running { addr: first.addr, stop, task });
    }

    /// Stops one node in order.
    pub async fn stop_node(&mut self, node: u64) {
        let running = self.nodes.remove(&node).unwrap();
        running.stop.cancel();
        within(running.task).await.unwrap().unwrap();
    }

    /// Stops everything; no node may have failed.
    pub async fn stop(self) {
        for running in self.nodes.values() {
            running.stop.cancel();
        }
        self.client.endpoint().close().await;
        for running in self.nodes.into_values() {
            within(running.task).await.unwrap().unwrap();
        }
        self.stop.cancel();
    }

    pub fn data_dir(&self, node: u64) -> PathBuf {
        self.dir.path().join(format!("dn{node}"))
    }

    pub fn addr(&self, node: u64) -> SocketAddr {
        self.nodes[&node].addr
    }

    pub fn replicas(&self, nodes: &[u64]) -> Vec<ReplicaAt> {
        nodes.iter().map(|node| ReplicaAt { node: NodeId(*node), addr: self.addr(*node) }).collect()
    }

    /// Changes a byte of a chunk on one node's disk.
    pub fn damage(&self, node: u64, chunk: ChunkId, at: u32) {
        let path = format!("volume1/chunks/{:02x}/{:016x}.chunk", chunk.0 % 256, chunk.0);
        let path = self.data_dir(node).join(path);
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let offset = 1_052_672 + u64::from(at);
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    pub fn key(&self) -> CapabilityKey {
        self.namenode.script.lock().key.clone()
    }

    pub fn capability(&self, chunk: ChunkId, access: Access) -> Capability {
        Capability::sign(&self.key(), chunk, access, CLIENT, Timestamp { secs: i64::MAX, nanos: 0 })
    }

    /// A datanode that opens every chunk and then never says anything again.
    pub fn start_silent(&self, node: u64) -> ReplicaAt {
        let tls = load(&issue(&self.authority, &self.dir, Role::Datanode, NodeId(node)));
        let endpoint = Endpoint::server(&tls, "127.0.0.1:0".parse().unwrap(), &[Plane::Data]).unwrap();
        let addr = endpoint.local_addr().unwrap();
        tokio::spawn(serve(endpoint, Arc::new(Silent), self.stop.clone(), Duration::ZERO));
        ReplicaAt { node: NodeId(node), addr }
    }

    // What the namenode says.

    pub fn order_all(&self, nodes: &[u64], order: Order) {
        let mut script = self.namenode.script.lock();
        script.orders = nodes.iter().map(|node| (*node, vec![order.clone()])).collect();
    }

    pub fn order_none(&self) {
        self.namenode.script.lock().orders.clear();
    }

    pub fn set_leading(&self, leading: bool) {
        self.namenode.script.lock().leading = leading;
    }

    pub fn term(&self) -> u64 {
        self.namenode.script.lock().term
    }

    pub fn set_term(&self, term: u64) {
        self.namenode.script.lock().term = term;
    }

    /// Sets the namenode's clock back.
    pub fn set_behind(&self, behind_s: i64) {
        self.namenode.script.lock().behind_s = behind_s;
    }

    pub fn want_shards(&self, shards: &[u16]) {
        self.namenode.script.lock().want_shards = shards.to_vec();
    }

    // What the namenode hears.

    /// Waits until the last heartbeat of a node is as wanted.
    pub async fn heard(&self, node: u64, wanted: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        self.until(|heard| heard.last.get(&node).filter(|heartbeat| wanted(heartbeat)).cloned()).await
    }

    /// Waits for so many more heartbeats of a node.
    pub async fn next_heartbeats(&self, node: u64, count: u64) {
        let before = self.namenode.heard.lock().counts.get(&node).copied().unwrap_or(0);
        self.until(|heard| (heard.counts.get(&node).copied().unwrap_or(0) >= before + count).then_some(())).await;
    }

    /// Waits until a node has told such an outcome.
    pub async fn outcome(&self, node: u64, wanted: impl Fn(&Outcome) -> bool) -> Outcome {
        self.until(|heard| heard.outcomes.get(&node)?.iter().find(|outcome| wanted(outcome)).cloned()).await
    }

    /// Forgets the outcomes that were told so far.
    pub fn forget_outcomes(&self) {
        self.namenode.heard.lock().outcomes.clear();
    }

    pub async fn reported(&self, node: u64, shard: u16) -> Vec<ReplicaReport> {
        self.until(|heard| heard.reports.get(&(node, shard)).cloned()).await
    }

    async fn until<T>(&self, look: impl Fn(&Heard) -> Option<T>) -> T {
        let mut changed = self.namenode.changed.subscribe();
        within(async {
            loop {
                if let Some(found) = look(&self.namenode.heard.lock()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        })
        .await
    }

    // What the client does.

    /// Asks a node as a client or as an administrator.
    pub async fn manage(&self, role: Role, node: u64, request: Manage) -> Result<ManageReply, RpcError> {
        let tls = load(&issue(&self.authority, &self.dir, role, NodeId(900)));
        let pool = Pool::new(Endpoint::client(&tls).unwrap());
        let target = Target { plane: Plane::Data, role: Role::Datanode, node: NodeId(node), addr: self.addr(node) };
        let connection = pool.get(&target).await?;
        dfs_rpc::call(&connection, &DataRequest::Manage(request), PATIENCE).await
    }

    pub async fn stream(&self, node: u64) -> (SendStream, RecvStream) {
        self.stream_to(ReplicaAt { node: NodeId(node), addr: self.addr(node) }).await
    }

    async fn stream_to(&self, replica: ReplicaAt) -> (SendStream, RecvStream) {
        self.connection_to(replica).await.open().await.unwrap()
    }

    pub async fn connection(&self, node: u64) -> Connection {
        self.connection_to(ReplicaAt { node: NodeId(node), addr: self.addr(node) }).await
    }

    async fn connection_to(&self, replica: ReplicaAt) -> Connection {
        let target = Target { plane: Plane::Data, role: Role::Datanode, node: replica.node, addr: replica.addr };
        self.client.get(&target).await.unwrap()
    }

    pub async fn append(&self, chunk: ChunkId, nodes: &[u64]) -> AppendStream {
        self.append_to(chunk, self.replicas(nodes), self.capability(chunk, Access::Append)).await
    }

    pub async fn append_to(&self, chunk: ChunkId, nodes: Vec<ReplicaAt>, capability: Capability) -> AppendStream {
        let (mut send, recv) = self.stream_to(nodes[0]).await;
        let request = DataRequest::Append { chunk, epoch: EPOCH, capability, chain: nodes[1..].to_vec() };
        send.send(&request).await.unwrap();
        AppendStream { send, recv }
    }

    /// Appends, waits until all is written, and ends the stream.
    pub async fn write_chunk(&self, chunk: ChunkId, nodes: &[u64], frames: &[(FrameHeader, Bytes)]) {
        let mut stream = self.append(chunk, nodes).await;
        assert_eq!(stream.event().await, AppendEvent::Ready);
        stream.send_frames(frames).await;
        stream.until_written(frames.last().unwrap().0.end()).await;
        stream.finish().await;
    }

    pub async fn read(
        &self,
        node: u64,
        chunk: ChunkId,
        epoch: Epoch,
        offset: u32,
        len: u32,
    ) -> Result<Vec<(FrameHeader, Bytes)>, RpcError> {
        self.read_with(node, chunk, epoch, offset, len, self.capability(chunk, Access::Read)).await
    }

    pub async fn read_with(
        &self,
        node: u64,
        chunk: ChunkId,
        epoch: Epoch,
        offset: u32,
        len: u32,
        capability: Capability,
    ) -> Result<Vec<(FrameHeader, Bytes)>, RpcError> {
        let (mut send, mut recv) = self.stream(node).await;
        send.send(&DataRequest::Read { chunk, epoch, offset, len, capability }).await?;
        within(async {
            recv.recv::<Result<ReadReply, WireError>>().await?.map_err(RpcError::Refused)?;
            let mut frames = Vec::new();
            let mut header = [0; FRAME_HEADER_LEN];
            while recv.read_exact_or_end(&mut header).await? {
                let header = FrameHeader::from_bytes(&header).expect("a frame header");
                let mut bytes = BytesMut::zeroed(header.len as usize);
                recv.read_exact(&mut bytes).await?;
                assert!(header.matches(chunk, &bytes), "frame at {} does not match", header.offset);
                frames.push((header, bytes.freeze()));
            }
            Ok(frames)
        })
        .await
    }
}

pub struct AppendStream {
    send: SendStream,
    recv: RecvStream,
}

impl AppendStream {
    pub async fn event(&mut self) -> AppendEvent {
        within(self.recv.recv()).await.unwrap()
    }

    pub async fn send_frames(&mut self, frames: &[(FrameHeader, Bytes)]) {
        for (header, bytes) in frames {
            let head = [&[append_item::FRAME][..], &header.to_bytes()].concat();
            self.send.send_raw_all(&mut [head.into(), bytes.clone()]).await.unwrap();
        }
    }

    /// As `send_frames`, to a stream that may fail meanwhile.
    pub async fn try_send_frames(&mut self, frames: &[(FrameHeader, Bytes)]) {
        for (header, bytes) in frames {
            let head = [&[append_item::FRAME][..], &header.to_bytes()].concat();
            let _ = self.send.send_raw_all(&mut [head.into(), bytes.clone()]).await;
        }
    }

    pub async fn send_sync(&mut self) {
        self.send_raw(Bytes::from_static(&[append_item::SYNC])).await;
    }

    pub async fn send_raw(&mut self, bytes: Bytes) {
        self.send.send_raw(bytes).await.unwrap();
    }

    pub async fn until_written(&mut self, len: u32) {
        self.until_ack(|written, _| written == len).await;
    }

    pub async fn until_synced(&mut self, len: u32) {
        self.until_ack(|_, synced| synced == len).await;
    }

    async fn until_ack(&mut self, wanted: impl Fn(u32, u32) -> bool) {
        loop {
            match self.event().await {
                AppendEvent::Ack { written, synced } if wanted(written, synced) => return,
                AppendEvent::Ack { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub async fn until_failed(&mut self) -> (NodeId, WireError) {
        loop {
            if let AppendEvent::Failed { node, error } = self.event().await {
                return (node, error);
            }
        }
    }

    /// Ends the stream in order and waits for the other side to do the same.
    pub async fn finish(mut self) {
        self.send.finish();
        while let Some(event) = within(self.recv.recv_optional::<AppendEvent>()).await.unwrap() {
            assert!(matches!(event, AppendEvent::Ack { .. }), "{event:?}");
        }
    }
}

/// Frames of these lengths from byte 0 on.
pub fn frames(chunk: ChunkId, lens: &[u32]) -> Vec<(FrameHeader, Bytes)> {
    let mut offset = 0;
    let mut frames = Vec::new();
    for (number, len) in lens.iter().enumerate() {
        let bytes: Vec<u8> = (0..*len).map(|i| (number as u32 * 31 + i * 7 + 1) as u8).collect();
        frames.push((FrameHeader::new(chunk, offset, &bytes), bytes.into()));
        offset += len;
    }
    frames
}

struct Silent;

impl Handler for Silent {
    async fn handle(&self, _peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let _ = recv.recv::<DataRequest>().await;
        let _ = send.send(&AppendEvent::Ready).await;
        while let Ok(Some(_)) = recv.read_chunk(1 << 20).await {}
        std::future::pending().await
    }
}

impl Handler for Namenode {
    async fn handle(&self, peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        // Anything else is refused, as by a namenode that does not know it.
        let Ok(MetaRequest::Node(request)) = recv.recv::<MetaRequest>().await else { return send.reset() };
        let reply = match request {
            NodeRequest::Heartbeat(heartbeat) => NodeReply::Heartbeat(Box::new(self.heartbeat(peer.id.0, *heartbeat))),
            NodeRequest::ShardReport { shard, replicas, .. } => {
                self.heard.lock().reports.insert((peer.id.0, shard), replicas);
                NodeReply::Done
            }
        };
        self.changed.send_modify(|count| *count += 1);
        let _ = send.send(&Ok::<_, WireError>(MetaReply::Node(reply))).await;
        send.finish();
    }
}

impl Namenode {
    fn heartbeat(&self, node: u64, heartbeat: Heartbeat) -> HeartbeatReply {
        let script = self.script.lock();
        let mut heard = self.heard.lock();
        let received = heartbeat.now;
        heard.outcomes.entry(node).or_default().extend(heartbeat.outcomes.iter().cloned());
        *heard.counts.entry(node).or_default() += 1;
        heard.last.insert(node, heartbeat);
        let stamp = Timestamp { secs: received.secs - script.behind_s, ..received };
        let nothing = HeartbeatReply {
            leading: false,
            term: 0,
            orders: vec![],
            keys: vec![],
            want_shards: vec![],
            received: stamp,
            sent: stamp,
        };
        if !script.leading {
            return nothing;
        }
        HeartbeatReply {
            leading: true,
            term: script.term,
            orders: script.orders.get(&node).cloned().unwrap_or_default(),
            keys: vec![script.key.clone()],
            want_shards: script.want_shards.clone(),
            ..nothing
        }
    }
}

fn issue(authority: &Authority, dir: &TempDir, role: Role, id: NodeId) -> TlsFiles {
    let name = format!("{}-{id}", role.as_str());
    authority.issue(role, id).unwrap().save(dir.path(), &name).unwrap();
    let path = |name: String| dir.path().join(name);
    TlsFiles { ca: path("ca.pem".into()), cert: path(format!("{name}.pem")), key: path(format!("{name}.key")) }
}

fn load(files: &TlsFiles) -> Tls {
    Tls::load(files).unwrap()
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("too slow")
}

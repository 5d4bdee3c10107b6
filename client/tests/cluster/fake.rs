//! A cluster in this process: real certificates, real QUIC, the namenode's real rules over rows in
//! memory, and datanodes that keep their chunks in memory and fail when told to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use dfs_client::{ClusterConfig, Dfs, NodeAddr, Options, TlsFiles};
use dfs_meta::command::{Body, Command, Reply};
use dfs_meta::query::{self, Asker};
use dfs_meta::{MemoryView, apply, rows};
use dfs_proto::limits::FRAME_MAX;
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::data::{AppendEvent, DataRequest, FRAME_HEADER_LEN, LocalDoor, ReadReply, append_item};
use dfs_proto::msg::meta::{MetaReply, MetaRequest, Op, RenameMode};
use dfs_proto::{
    Access, Caller, CapabilityKey, ChunkId, ClusterId, Epoch, ErrorKind, Extent, FrameHeader, InodeId, NodeId,
    PeerIdentity, Plane, RequestId, Role, SessionId, Timestamp, WireError,
};
use dfs_rpc::pki::Authority;
use dfs_rpc::{Endpoint, Handler, RecvStream, RpcError, SendStream, Tls};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const CLUSTER: ClusterId = ClusterId([5; 16]);

pub struct Cluster {
    pub namenode: Arc<Namenode>,
    pub datanodes: Vec<Arc<Datanode>>,
    pub config: ClusterConfig,
    stop: CancellationToken,
    _folder: TempDir,
}

impl Cluster {
    /// Two namenodes, of which the first leads and the second points at it until a test decides otherwise,
    /// and so many datanodes.
    pub async fn start(datanodes: u64) -> Cluster {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(CLUSTER).unwrap();
        authority.save(folder.path()).unwrap();
        let identity = |role: Role, id: u64| {
            let name = format!("{}{id}", role.as_str());
            authority.issue(role, NodeId(id)).unwrap().save(folder.path(), &name).unwrap();
            TlsFiles {
                ca: folder.path().join("ca.pem"),
                cert: folder.path().join(format!("{name}.pem")),
                key: folder.path().join(format!("{name}.key")),
            }
        };
        let stop = CancellationToken::new();
        let serve = |files: &TlsFiles, plane| {
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            Endpoint::server(&Tls::load(files).unwrap(), any, &[plane]).unwrap()
        };

        let replicas: Replicas = Arc::default();
        let mut nodes = Vec::new();
        let mut addrs = Vec::new();
        for id in 11..11 + datanodes {
            let endpoint = serve(&identity(Role::Datanode, id), Plane::Data);
            addrs.push((NodeId(id), endpoint.local_addr().unwrap()));
            let node = Arc::new(Datanode {
                id: NodeId(id),
                replicas: replicas.clone(),
                faults: Mutex::default(),
                reads: AtomicU32::new(0),
            });
            tokio::spawn(dfs_rpc::serve(endpoint, node.clone(), stop.clone(), Duration::ZERO));
            nodes.push(node);
        }

        let namenode = Arc::new(Namenode::new(&addrs));
        let mut namenodes = Vec::new();
        for id in [2, 1] {
            let endpoint = serve(&identity(Role::Namenode, id), Plane::Meta);
            let addr = endpoint.local_addr().unwrap();
            namenodes.push(NodeAddr { id: NodeId(id), name: format!("nn{id}"), addr });
            let seat = Arc::new(Seat { id, namenode: namenode.clone() });
            tokio::spawn(dfs_rpc::serve(endpoint, seat, stop.clone(), Duration::ZERO));
        }

        let config = ClusterConfig {
            cluster: CLUSTER,
            replication: 3,
            tls: identity(Role::Client, 500),
            namenodes,
            datanodes: Vec::new(),
            mounts: Vec::new(),
        };
        Cluster { namenode, datanodes: nodes, config, stop, _folder: folder }
    }

    /// Whether at least two datanodes have synced these bytes.
    pub fn is_synced(&self, extent: &Extent) -> bool {
        let replicas = self.datanodes[0].replicas.lock();
        let synced = |node: &&Arc<Datanode>| {
            replicas.get(&(node.id, extent.chunk)).is_some_and(|replica| replica.synced >= extent.chunk_end())
        };
        self.datanodes.iter().filter(synced).count() >= 2
    }

    /// Bytes that the datanodes have, each replica by itself.
    pub fn stored_bytes(&self) -> usize {
        self.datanodes[0].replicas.lock().values().map(|replica| replica.bytes.len()).sum()
    }

    /// The power goes, and of a chunk that nobody appends to any more only `len` bytes were synced.
    pub fn lose_end(&self, inode: InodeId, chunk: ChunkId, len: u32) {
        for replica in self.datanodes[0].replicas.lock().iter_mut().filter(|((_, of), _)| *of == chunk) {
            replica.1.bytes.truncate(len as usize);
            replica.1.frames.retain(|frame| frame.end() <= len);
        }
        self.namenode.cut(inode, chunk, len);
    }

    pub async fn client(&self) -> Dfs {
        Dfs::connect(&self.config, Options::default()).await.unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Where a namenode listens. Both have the same rows, as if every command had reached them.
struct Seat {
    id: u64,
    namenode: Arc<Namenode>,
}

impl Handler for Seat {
    async fn handle(&self, peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let Ok(request) = recv.recv::<MetaRequest>().await else { return };
        let group = self.namenode.group.lock().clone();
        if group.silent == Some(self.id) {
            let held = Held::new(&self.namenode);
            send.abandoned().await;
            drop(held);
            return;
        }
        if group.leader != self.id {
            let error = WireError { leader: Some(group.leader), ..WireError::new(ErrorKind::NotLeader, "a follower") };
            drop(send.send(&Err::<MetaReply, _>(error)).await);
            // Whoever was asked instead of a silent leader knows the next one.
            if let Some(next) = group.elect_when_asked {
                self.namenode.group.lock().leader = next;
            }
            return;
        }
        if matches!(request, MetaRequest::Mutate { op: Op::Commit { .. }, .. }) {
            self.namenode.commits_waiting.fetch_add(1, Ordering::SeqCst);
            drop(self.namenode.commits.read().await);
            self.namenode.commits_waiting.fetch_sub(1, Ordering::SeqCst);
        }
        match self.namenode.answer(peer, request) {
            Ok(Some(reply)) => drop(send.send(&Ok::<_, WireError>(reply)).await),
            Ok(None) => send.reset(),
            Err(error) => drop(send.send(&Err::<MetaReply, _>(error)).await),
        }
    }
}

/// Who leads, and who has died without a word.
#[derive(Clone, Debug)]
pub struct Group {
    pub leader: u64,
    pub silent: Option<u64>,
    /// Elected as soon as a follower has been asked.
    pub elect_when_asked: Option<u64>,
}

/// A request that a silent namenode has got and does not answer.
struct Held<'a>(&'a Namenode);

impl<'a> Held<'a> {
    fn new(namenode: &'a Namenode) -> Held<'a> {
        *namenode.held.lock() += 1;
        Held(namenode)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        *self.0.held.lock() -= 1;
    }
}

pub struct Namenode {
    rows: Mutex<MemoryView>,
    nodes: Vec<NodeId>,
    /// Mutations that are carried out and not answered.
    pub swallow: Mutex<u32>,
    pub reports: Mutex<Vec<(ChunkId, NodeId)>>,
    /// Mutations carried out, by kind.
    pub done: Mutex<BTreeMap<&'static str, u32>>,
    pub group: Mutex<Group>,
    /// Requests that wait at a silent namenode now.
    held: Mutex<u32>,
    /// The most that waited there while another one carried out a mutation.
    pub held_while_serving: Mutex<u32>,
    /// While it is held, commits that arrive wait.
    pub commits: tokio::sync::RwLock<()>,
    pub commits_waiting: AtomicU32,
}

impl Namenode {
    fn new(addrs: &[(NodeId, SocketAddr)]) -> Namenode {
        let namenode = Namenode {
            rows: Mutex::new(MemoryView::new()),
            nodes: addrs.iter().map(|(node, _)| *node).collect(),
            swallow: Mutex::new(0),
            reports: Mutex::default(),
            done: Mutex::default(),
            group: Mutex::new(Group { leader: 1, silent: None, elect_when_asked: None }),
            held: Mutex::default(),
            held_while_serving: Mutex::default(),
            commits: tokio::sync::RwLock::new(()),
            commits_waiting: AtomicU32::new(0),
        };
        let key = CapabilityKey { number: 1, secret: [7; 32] };
        namenode
            .apply(Body::Genesis { cluster: CLUSTER, default_replication: 3, min_copies: 2, lease_ms: 3000, key })
            .unwrap();
        for &(node, addr) in addrs {
            namenode.apply(Body::PutDatanode { node, addr }).unwrap();
        }
        namenode
    }

    pub fn extents(&self, inode: InodeId) -> Vec<Extent> {
        query::file_info(&*self.rows.lock(), inode, &|_| Liveness::Live).unwrap().unwrap().extents
    }

    pub fn expire(&self, session: SessionId) {
        self.apply(Body::ExpireSessions { sessions: vec![session] }).unwrap();
    }

    /// The epoch of a chunk of this file, and the replicas that count.
    pub fn chunk(&self, inode: InodeId, chunk: ChunkId) -> (Epoch, Vec<NodeId>) {
        let found = query::file_info(&*self.rows.lock(), inode, &|_| Liveness::Live).unwrap().unwrap().chunks;
        let info = found.into_iter().find(|info| info.chunk == chunk).unwrap();
        (info.epoch, info.replicas.iter().map(|(node, _)| *node).collect())
    }

    /// Ends a sealed chunk at the end of a frame, as if no disk had synced what is behind it.
    fn cut(&self, inode: InodeId, chunk: ChunkId, len: u32) {
        let (epoch, replicas) = self.chunk(inode, chunk);
        self.apply(Body::CutChunk { chunk, epoch, len, replicas }).unwrap();
    }

    /// Sessions are numbered from 1 in the order in which they were opened.
    fn apply(&self, body: Body) -> Result<Reply, WireError> {
        let mut rows = self.rows.lock();
        let applied = apply(&*rows, &[Command { now: now(), body }]).unwrap();
        rows.write(applied.changes);
        applied.outcomes.into_iter().next().unwrap()
    }

    fn answer(&self, peer: PeerIdentity, request: MetaRequest) -> Result<Option<MetaReply>, WireError> {
        let live = |_| Liveness::Live;
        Ok(Some(match request {
            MetaRequest::OpenSession { description } => {
                match self.apply(Body::OpenSession { description, holder: peer.id })? {
                    Reply::Session(grant) => MetaReply::Session(grant),
                    other => panic!("{other:?}"),
                }
            }
            MetaRequest::Renew { session } => {
                query::check_session(&*self.rows.lock(), session, peer.id).unwrap()?;
                MetaReply::Done
            }
            MetaRequest::Mutate { id, acked_below, caller, op } => {
                {
                    let rows = self.rows.lock();
                    query::check_session(&*rows, id.session, peer.id).unwrap()?;
                    query::check_grants(&*rows, id.session, &op).unwrap()?;
                }
                *self.done.lock().entry(kind_of(&op)).or_default() += 1;
                let held = *self.held.lock();
                let mut most = self.held_while_serving.lock();
                *most = held.max(*most);
                drop(most);
                let placement = self.place(&op);
                let body = self.command(id, acked_below, &caller, op, placement);
                let Reply::Op(mut reply) = self.apply(body)? else { panic!("no reply") };
                let asker = Asker { caller: &caller, session: id.session, holder: peer.id, now: now() };
                query::sign_reply(&*self.rows.lock(), &asker, &mut reply, &live).unwrap();
                let mut swallow = self.swallow.lock();
                if *swallow > 0 {
                    *swallow -= 1;
                    return Ok(None);
                }
                MetaReply::Mutated(reply)
            }
            MetaRequest::Query { session, caller, query } => {
                let asker = Asker { caller: &caller, session, holder: peer.id, now: now() };
                MetaReply::Answer(query::answer(&*self.rows.lock(), &asker, &query, &live).unwrap()?)
            }
            MetaRequest::Admin(_) => return Err(WireError::new(ErrorKind::Unavailable, "no administration here")),
            MetaRequest::Closed { .. } | MetaRequest::Announce { .. } => MetaReply::Done,
            MetaRequest::ReportBad { chunk, node, .. } => {
                self.reports.lock().push((chunk, node));
                MetaReply::Done
            }
            other => panic!("{other:?}"),
        }))
    }

    /// As a leader to whom the asking session, and nobody else, seems to have everything open.
    fn command(&self, id: RequestId, acked_below: u64, caller: &Caller, op: Op, placement: Vec<Vec<NodeId>>) -> Body {
        let caller = caller.clone();
        let name = match &op {
            Op::Unlink { parent, name, .. } => Some((*parent, name)),
            Op::Rename { to_parent, to_name, mode: RenameMode::Replace, .. } => Some((*to_parent, to_name)),
            _ => None,
        };
        match name {
            Some((parent, name)) => {
                let expected = rows::dentry(&*self.rows.lock(), parent, name).unwrap().map(|entry| entry.inode);
                let holders = vec![id.session];
                Body::Removal { id, acked_below, caller, op, expected, holders, undecided: false }
            }
            None => Body::Client { id, acked_below, caller, op, placement },
        }
    }

    /// The first nodes that are not to be avoided, then the others.
    fn place(&self, op: &Op) -> Vec<Vec<NodeId>> {
        let Op::AllocateChunks { count, replication, avoid } = op else { return Vec::new() };
        let (bad, good): (Vec<_>, Vec<_>) = self.nodes.iter().copied().partition(|node| avoid.contains(node));
        let nodes = good.into_iter().chain(bad).take(usize::from(*replication)).collect();
        vec![nodes; usize::from(*count)]
    }
}

fn kind_of(op: &Op) -> &'static str {
    match op {
        Op::Make { .. } | Op::MakeMasked { .. } => "make",
        Op::AllocateChunks { .. } => "allocate",
        Op::Commit { .. } => "commit",
        Op::Release { .. } => "release",
        Op::SetAttr { .. } => "set attributes",
        Op::Fallocate { .. } => "fallocate",
        Op::CloneRange { .. } => "clone",
        _ => "other",
    }
}

#[derive(Default, Clone)]
struct Replica {
    bytes: Vec<u8>,
    frames: Vec<FrameHeader>,
    synced: u32,
}

type Replicas = Arc<Mutex<BTreeMap<(NodeId, ChunkId), Replica>>>;

#[derive(Default, Clone)]
pub struct Faults {
    /// The next append stream fails once it has this many bytes.
    pub fail_append_at: Option<usize>,
    /// Every append fails at once.
    pub refuse_appends: bool,
    /// Every appended frame takes so long.
    pub append_takes: Duration,
    /// Frames are acknowledged with the next sync only.
    pub acks_wait_for_sync: bool,
    /// A byte of every frame that is read is wrong.
    pub corrupt_reads: bool,
    /// So is one of the frames that have these bytes of their chunk.
    pub corrupt_at: Vec<u32>,
    /// Reads are never answered.
    pub silent_reads: bool,
}

pub struct Datanode {
    pub id: NodeId,
    replicas: Replicas,
    pub faults: Mutex<Faults>,
    /// Reads that it was asked for.
    pub reads: AtomicU32,
}

impl Datanode {
    pub fn holds(&self) -> BTreeSet<ChunkId> {
        self.replicas.lock().keys().filter(|(node, _)| *node == self.id).map(|(_, chunk)| *chunk).collect()
    }

    async fn append(
        &self,
        chunk: ChunkId,
        nodes: Vec<NodeId>,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<(), RpcError> {
        let fail =
            |message: &str| AppendEvent::Failed { node: self.id, error: WireError::new(ErrorKind::Internal, message) };
        for node in &nodes {
            let old = self.replicas.lock().insert((*node, chunk), Replica::default());
            if old.is_some() {
                return send.send(&fail("a chunk has one append stream in its life")).await;
            }
        }
        send.send(&AppendEvent::Ready).await?;
        let mut synced = 0;
        let mut written = 0u32;
        let mut item = [0];
        while recv.read_exact_or_end(&mut item).await? {
            match item[0] {
                append_item::SYNC => {
                    synced = written;
                    let mut replicas = self.replicas.lock();
                    nodes.iter().for_each(|node| replicas.get_mut(&(*node, chunk)).unwrap().synced = synced);
                }
                append_item::FRAME => {
                    let mut head = [0; FRAME_HEADER_LEN];
                    recv.read_exact(&mut head).await?;
                    let header = FrameHeader::from_bytes(&head).unwrap();
                    assert_eq!(header.offset, written, "frames follow each other");
                    let mut bytes = vec![0; header.len as usize];
                    recv.read_exact(&mut bytes).await?;
                    assert!(header.matches(chunk, &bytes));
                    let takes = self.faults.lock().append_takes;
                    tokio::time::sleep(takes).await;
                    written += header.len;
                    let refused = {
                        let mut faults = self.faults.lock();
                        let fails = faults.fail_append_at.is_some_and(|at| written as usize >= at);
                        if fails {
                            faults.fail_append_at = None;
                        }
                        fails || faults.refuse_appends
                    };
                    if refused {
                        return send.send(&fail("told to fail")).await;
                    }
                    let mut replicas = self.replicas.lock();
                    for node in &nodes {
                        let replica = replicas.get_mut(&(*node, chunk)).unwrap();
                        replica.bytes.extend_from_slice(&bytes);
                        replica.frames.push(header);
                    }
                }
                other => panic!("item {other}"),
            }
            if synced < written && self.faults.lock().acks_wait_for_sync {
                continue;
            }
            send.send(&AppendEvent::Ack { written, synced }).await?;
        }
        Ok(())
    }

    async fn read(&self, chunk: ChunkId, start: u32, len: u32, send: &mut SendStream) -> Result<(), RpcError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let faults = self.faults.lock().clone();
        if faults.silent_reads {
            return std::future::pending().await;
        }
        let Some(replica) = self.replicas.lock().get(&(self.id, chunk)).cloned() else {
            let error = WireError::new(ErrorKind::BadReplica, "not here");
            return send.send(&Err::<ReadReply, _>(error)).await;
        };
        let reply = ReadReply { len: replica.bytes.len() as u32, sealed: false };
        send.send(&Ok::<_, WireError>(reply)).await?;
        for frame in replica.frames.iter().filter(|frame| frame.offset < start + len && frame.end() > start) {
            assert!(frame.len <= FRAME_MAX);
            let mut bytes = replica.bytes[frame.offset as usize..frame.end() as usize].to_vec();
            let damaged = faults.corrupt_at.iter().any(|at| (frame.offset..frame.end()).contains(at));
            bytes[0] ^= u8::from(faults.corrupt_reads || damaged);
            send.send_raw(Bytes::copy_from_slice(&frame.to_bytes())).await?;
            send.send_raw(Bytes::from(bytes)).await?;
        }
        Ok(())
    }
}

impl Handler for Datanode {
    async fn handle(&self, _peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let Ok(request) = recv.recv::<DataRequest>().await else { return };
        // A client that has gone away is no failure of the datanode.
        let _ = match request {
            DataRequest::Append { chunk, capability, chain, .. } => {
                assert_eq!((capability.chunk, capability.access), (chunk, Access::Append));
                let nodes = std::iter::once(self.id).chain(chain.iter().map(|replica| replica.node)).collect();
                self.append(chunk, nodes, &mut send, &mut recv).await
            }
            DataRequest::Read { chunk, offset, len, .. } => self.read(chunk, offset, len, &mut send).await,
            // It has no files.
            DataRequest::Local => {
                let refusal = WireError::new(ErrorKind::NotSupported, "no local way");
                send.send(&Err::<LocalDoor, _>(refusal)).await
            }
            DataRequest::Manage(_) => panic!("no client of these tests manages a datanode"),
        };
        send.finish();
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

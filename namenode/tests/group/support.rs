//! A group of namenodes over real QUIC on loopback, each in a runtime of its own, so that one can be
//! killed without being asked.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dfs_client::{ClusterConfig, Dfs, NodeAddr, Options};
use dfs_namenode::{Config, Peer, Timers};
use dfs_proto::msg::admin::{AdminReply, AdminRequest, Member, Status};
use dfs_proto::msg::group::{GroupReply, GroupRequest, GroupStatus, MemberRole, NamenodeAddr};
use dfs_proto::msg::meta::{Answer, MetaReply, MetaRequest, NewNode, Op, OpReply, Query, SessionGrant};
use dfs_proto::msg::node::{Heartbeat, HeartbeatReply, NodeReply, NodeRequest};
use dfs_proto::{Caller, ClusterId, ErrorKind, InodeId, Name, NodeId, Plane, RequestId, Role, WireError};
use dfs_rpc::pki::Authority;
use dfs_rpc::{Endpoint, Pool, RpcError, Target, Tls, TlsFiles};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a machine that is busy with other tests.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub const CLUSTER: ClusterId = ClusterId([5; 16]);

pub struct Group {
    dir: tempfile::TempDir,
    authority: Authority,
    pub nodes: Vec<Node>,
    /// Where the test itself runs.
    pub runtime: Runtime,
    /// Who answered as leader last: asked first, because one that has ended by itself is noticed by its silence only.
    answered: AtomicUsize,
}

pub struct Node {
    pub id: u64,
    config: Config,
    running: Option<(Runtime, CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>)>,
}

impl Node {
    /// Where clients reach it.
    pub fn addr(&self) -> SocketAddr {
        self.config.listen
    }
}

impl Group {
    /// Starts `count` namenodes that do not know of any cluster yet.
    pub fn start(count: usize, tune: impl Fn(&mut Config)) -> Group {
        // Shows what the namenodes say: DFS_LOG=info cargo test ... -- --nocapture
        if let Ok(filter) = std::env::var("DFS_LOG") {
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        }
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::create(CLUSTER).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.cert_pem()).unwrap();
        let peers: Vec<Peer> = (1..=count as u64)
            .map(|id| Peer { id, name: format!("nn{id}"), addr: free_addr(), raft_addr: free_addr() })
            .collect();
        let mut group = Group {
            dir,
            authority,
            nodes: Vec::new(),
            runtime: Runtime::new().unwrap(),
            answered: AtomicUsize::new(0),
        };
        for peer in &peers {
            let node = group.make(peer, &peers, &tune);
            group.nodes.push(node);
        }
        (0..count).for_each(|index| group.restart(index));
        group
    }

    fn make(&self, own: &Peer, peers: &[Peer], tune: impl Fn(&mut Config)) -> Node {
        let mut config = Config {
            node: own.id,
            name: own.name.clone(),
            cluster: CLUSTER.to_string(),
            data_dir: self.dir.path().join(&own.name),
            listen: own.addr,
            raft_listen: own.raft_addr,
            peers: peers.to_vec(),
            tls: files(&self.authority, self.dir.path(), Role::Namenode, own.id),
            timers: Timers::default(),
            snapshot_log_entries: 10_000,
            log_keep_entries: 1000,
            network: dfs_rpc::Network::Udp,
        };
        tune(&mut config);
        Node { id: own.id, config, running: None }
    }

    /// Starts a further, empty namenode that knows where those before it were; they do not know of it.
    pub fn spare(&mut self, tune: impl Fn(&mut Config)) -> usize {
        let id = self.nodes.len() as u64 + 1;
        let own = Peer { id, name: format!("nn{id}"), addr: free_addr(), raft_addr: free_addr() };
        let peers = self.nodes.iter().map(|node| Peer {
            id: node.id,
            name: node.config.name.clone(),
            addr: node.config.listen,
            raft_addr: node.config.raft_listen,
        });
        let peers: Vec<Peer> = peers.collect();
        let node = self.make(&own, &peers, tune);
        self.nodes.push(node);
        self.restart(id as usize - 1);
        id as usize - 1
    }

    /// As an administrator names it when it is to be added.
    pub fn addr(&self, index: usize) -> NamenodeAddr {
        let config = &self.nodes[index].config;
        NamenodeAddr {
            node: NodeId(config.node),
            name: config.name.clone(),
            addr: config.listen,
            raft_addr: config.raft_listen,
        }
    }

    /// The client library, with a certificate of this number.
    pub fn dfs(&self, id: u64, options: Options) -> Dfs {
        let addr = |node: &Node| NodeAddr { id: NodeId(node.id), name: format!("nn{}", node.id), addr: node.addr() };
        let config = ClusterConfig {
            cluster: CLUSTER,
            replication: 3,
            tls: self.certificate(Role::Client, id),
            namenodes: self.nodes.iter().map(addr).collect(),
            datanodes: Vec::new(),
            mounts: Vec::new(),
        };
        self.runtime.block_on(Dfs::connect(&config, options)).unwrap()
    }

    pub fn data_dir(&self, index: usize) -> PathBuf {
        self.nodes[index].config.data_dir.clone()
    }

    /// Waits until a namenode has ended by itself, and returns why.
    pub fn ended(&mut self, index: usize) -> String {
        let (runtime, _, task) = self.nodes[index].running.take().unwrap();
        let ended = runtime.block_on(async { tokio::time::timeout(DEADLINE, task).await });
        runtime.shutdown_timeout(DEADLINE);
        match ended.expect("the namenode did not end").unwrap() {
            Ok(()) => panic!("the namenode stopped in order"),
            Err(error) => format!("{error:#}"),
        }
    }

    /// As `start`, and makes the cluster.
    pub fn formed(count: usize, tune: impl Fn(&mut Config)) -> Group {
        let group = Group::start(count, tune);
        group.admin().initialize().unwrap();
        group
    }

    pub fn restart(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        assert!(node.running.is_none());
        let runtime = Runtime::new().unwrap();
        let shutdown = CancellationToken::new();
        let (config, token) = (node.config.clone(), shutdown.clone());
        // What was killed may hold its files and its port a moment longer.
        let task = runtime.spawn(async move {
            let deadline = Instant::now() + DEADLINE;
            loop {
                match dfs_namenode::run(config.clone(), token.clone()).await {
                    Err(error) if Instant::now() < deadline && is_still_held(&error) => {
                        tokio::task::yield_now().await;
                    }
                    result => {
                        if let Err(error) = &result {
                            eprintln!("namenode {}: {error:#}", config.node);
                        }
                        return result;
                    }
                }
            }
        });
        node.running = Some((runtime, shutdown, task));
    }

    /// Ends a namenode in the middle of whatever it does.
    pub fn kill(&mut self, index: usize) {
        let (runtime, ..) = self.nodes[index].running.take().unwrap();
        // Tasks end at their next await; only what a thread has begun is waited for, as RocksDB must not
        // be in use when the test process ends.
        runtime.shutdown_timeout(DEADLINE);
    }

    /// Stops a namenode in order.
    pub fn stop(&mut self, index: usize) -> anyhow::Result<()> {
        let (runtime, shutdown, task) = self.nodes[index].running.take().unwrap();
        shutdown.cancel();
        runtime.block_on(task).unwrap()
    }

    /// The files of a new certificate.
    pub fn certificate(&self, role: Role, id: u64) -> TlsFiles {
        files(&self.authority, self.dir.path(), role, id)
    }

    pub fn admin(&self) -> Client<'_> {
        self.client(Role::Admin, 900)
    }

    pub fn client(&self, role: Role, id: u64) -> Client<'_> {
        let tls = Tls::load(&self.certificate(role, id)).unwrap();
        let pool = self.runtime.block_on(async { Pool::new(Endpoint::client(&tls).unwrap()) });
        Client { group: self, pool }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some((runtime, ..)) = node.running.take() {
                runtime.shutdown_timeout(DEADLINE);
            }
        }
    }
}

fn is_still_held(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}").to_lowercase();
    ["in use", "lock", "address"].iter().any(|sign| text.contains(sign))
}

fn files(authority: &Authority, dir: &Path, role: Role, id: u64) -> TlsFiles {
    let name = format!("{}-{id}", role.as_str());
    let path = |ending: &str| -> PathBuf { dir.join(format!("{name}.{ending}")) };
    // Issued once: another thread of the test may be reading it.
    if !path("pem").exists() {
        authority.issue(role, NodeId(id)).unwrap().save(dir, &name).unwrap();
    }
    TlsFiles { ca: dir.join("ca.pem"), cert: path("pem"), key: path("key") }
}

pub fn free_addr() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Tries until `attempt` gives something, or fails the test.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A peer of the group with a certificate.
pub struct Client<'g> {
    group: &'g Group,
    pool: Pool,
}

impl Client<'_> {
    /// One request to one namenode.
    pub fn ask(&self, index: usize, request: &MetaRequest) -> Result<MetaReply, RpcError> {
        self.ask_for(index, request, Duration::from_secs(4))
    }

    /// One request to one namenode, which may take so long to answer.
    pub fn ask_for(&self, index: usize, request: &MetaRequest, patience: Duration) -> Result<MetaReply, RpcError> {
        let node = &self.group.nodes[index];
        let target =
            Target { plane: Plane::Meta, role: Role::Namenode, node: NodeId(node.id), addr: node.config.listen };
        self.group.runtime.block_on(async {
            let connection = self.pool.get(&target).await?;
            let reply = dfs_rpc::call(&connection, request, patience).await;
            if matches!(reply, Err(RpcError::Timeout(_) | RpcError::Closed(_))) {
                self.pool.forget(&target);
            }
            reply
        })
    }

    /// Asks whoever leads, through elections, until there is an answer.
    pub fn ask_leader(&self, request: &MetaRequest) -> Result<MetaReply, WireError> {
        let mut next = self.group.answered.load(Ordering::Relaxed);
        until("an answer of the leader", || {
            let index = next % self.group.nodes.len();
            next = index + 1;
            self.group.nodes[index].running.as_ref()?;
            let answer = match self.ask(index, request) {
                Ok(reply) => Ok(reply),
                Err(RpcError::Refused(error)) if error.kind.retryable() => return None,
                Err(RpcError::Refused(error)) => Err(error),
                Err(_) => return None,
            };
            self.group.answered.store(index, Ordering::Relaxed);
            Some(answer)
        })
    }

    pub fn initialize(&self) -> Result<(), WireError> {
        let members = self.group.nodes.iter();
        let members = members.map(|node| Member { node: NodeId(node.id), addr: node.config.listen }).collect();
        let request = AdminRequest::Initialize { cluster: CLUSTER, members, default_replication: 3, min_copies: 2 };
        let request = MetaRequest::Admin(request);
        // A group is formed when all of it is there.
        until("the first namenode's answer", || match self.ask(0, &request) {
            Ok(_) => Some(Ok(())),
            Err(RpcError::Refused(error)) if error.kind == ErrorKind::Unavailable => None,
            Err(RpcError::Refused(error)) => Some(Err(error)),
            Err(_) => None,
        })
    }

    /// Asks the leader about the group itself, again for as long as a change takes.
    pub fn group(&self, request: GroupRequest) -> Result<GroupReply, WireError> {
        match self.ask_leader(&MetaRequest::Admin(AdminRequest::Group(request)))? {
            MetaReply::Admin(reply) => match *reply {
                AdminReply::Group(reply) => Ok(reply),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// The members as one namenode knows them.
    pub fn members(&self, index: usize) -> Option<GroupStatus> {
        match self.ask(index, &MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show))).ok()? {
            MetaReply::Admin(reply) => match *reply {
                AdminReply::Group(GroupReply::Members(members)) => Some(members),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// The numbers of the voters, as the leader knows them.
    pub fn voters(&self) -> Vec<u64> {
        // Another one may not have heard of the last change yet.
        let members = until("the leader's members", || self.members(self.leader()));
        let voters = members.members.iter().filter(|member| member.role == MemberRole::Voter);
        voters.map(|member| member.node.0).collect()
    }

    pub fn status(&self, index: usize) -> Option<Status> {
        match self.ask(index, &MetaRequest::Admin(AdminRequest::Status)).ok()? {
            MetaReply::Admin(reply) => match *reply {
                AdminReply::Status(status) => Some(*status),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// The leader's index in the group, as the leader itself says it.
    pub fn leader(&self) -> usize {
        until("a leader", || {
            (0..self.group.nodes.len()).filter(|index| self.group.nodes[*index].running.is_some()).find(|index| {
                let own = self.group.nodes[*index].id;
                self.status(*index).is_some_and(|status| status.leader == Some(NodeId(own)))
            })
        })
    }

    pub fn open_session(&self) -> SessionGrant {
        match self.ask_leader(&MetaRequest::OpenSession { description: "test".into() }).unwrap() {
            MetaReply::Session(grant) => grant,
            other => panic!("{other:?}"),
        }
    }

    pub fn mutate(&self, id: RequestId, op: Op) -> Result<OpReply, WireError> {
        let request = MetaRequest::Mutate { id, acked_below: 0, caller: Caller::ROOT, op };
        self.ask_leader(&request).map(|reply| match reply {
            MetaReply::Mutated(reply) => reply,
            other => panic!("{other:?}"),
        })
    }

    pub fn query(&self, session: SessionGrant, query: Query) -> Result<Answer, WireError> {
        let request = MetaRequest::Query { session: session.session, caller: Caller::ROOT, query };
        self.ask_leader(&request).map(|reply| match reply {
            MetaReply::Answer(answer) => answer,
            other => panic!("{other:?}"),
        })
    }

    /// The names in the root directory.
    pub fn names(&self, session: SessionGrant) -> Vec<String> {
        let (mut names, mut after) = (Vec::new(), 0);
        loop {
            let query = Query::ReadDir { inode: InodeId::ROOT, after, limit: 100, attrs: false };
            let Answer::Page(page) = self.query(session, query).unwrap() else { panic!("no page") };
            names.extend(page.entries.iter().map(|entry| entry.name.to_string()));
            match page.entries.last() {
                Some(last) if !page.end => after = last.cookie,
                _ => return names,
            }
        }
    }

    /// Sends a heartbeat to one namenode.
    pub fn heartbeat(&self, index: usize, heartbeat: Heartbeat) -> Option<HeartbeatReply> {
        let request = MetaRequest::Node(NodeRequest::Heartbeat(Box::new(heartbeat)));
        match self.ask(index, &request).ok()? {
            MetaReply::Node(NodeReply::Heartbeat(reply)) => Some(*reply),
            other => panic!("{other:?}"),
        }
    }
}

pub fn mkdir(name: &str) -> Op {
    make(name, NewNode::Directory)
}

pub fn make(name: &str, node: NewNode) -> Op {
    let open = matches!(node, NewNode::File).then_some((true, true));
    let name = Name::new(name).unwrap();
    Op::Make { parent: InodeId::ROOT, name, node, mode: 0o755, exclusive: true, open, replication: None }
}

pub fn kind<T>(result: Result<T, WireError>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}

/// An empty file in the root directory.
pub fn create(client: &Client<'_>, id: RequestId, name: &str) -> InodeId {
    match client.mutate(id, make(name, NewNode::File)).unwrap() {
        OpReply::Made { attr, .. } => attr.inode,
        other => panic!("{other:?}"),
    }
}

//! The machines: each node of the cluster on one of its own, and each client.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use dfs_client::{ClusterConfig, Dfs, NodeAddr, Options};
use dfs_cluster::{Invariant, Verdict};
use dfs_proto::msg::admin::Member;
use dfs_proto::{ClusterId, NodeId, PeerIdentity, Role};
use dfs_rpc::pki::Authority;
use dfs_rpc::{Fabric, TlsFiles};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

const NAMENODES: u64 = 3;
const DATANODES: u64 = 4;
const CLIENTS: u64 = 3;

/// Few enough that a namenode that was away for long gets a snapshot.
pub const SNAPSHOT_ENTRIES: u64 = 1000;
pub const KEPT_ENTRIES: u64 = 500;

/// So soon that chunks are compacted while the faults come.
const COMPACTION_AFTER_MS: u64 = 1000;

const CLUSTER: ClusterId = ClusterId([7; 16]);

/// A node that is told to stop has ended after that long.
const STOP: Duration = Duration::from_secs(60);

pub struct Bed {
    pub fabric: Fabric,
    pub nodes: Vec<Node>,
    pub clients: Vec<Client>,
    /// Sees everything, from a machine that nothing is done to.
    pub observer: Dfs,
    /// That were inflicted.
    pub faults: u64,
    /// In which somebody was seen to lead.
    pub terms: BTreeSet<u64>,
    begun: Instant,
    ended: Vec<String>,
    config: ClusterConfig,
    authority: Authority,
    dir: TempDir,
}

/// A namenode or datanode.
pub struct Node {
    pub name: String,
    pub ip: IpAddr,
    config: Config,
    running: Option<(CancellationToken, JoinHandle<Result<()>>)>,
}

#[derive(Clone)]
enum Config {
    Namenode(Box<dfs_namenode::Config>),
    Datanode(Box<dfs_datanode::Config>),
}

pub struct Client {
    pub ip: IpAddr,
    pub dfs: Dfs,
}

impl Node {
    pub fn is_namenode(&self) -> bool {
        matches!(self.config, Config::Namenode(_))
    }

    fn start(&mut self) {
        if self.running.is_some() {
            return;
        }
        let (stop, config) = (CancellationToken::new(), self.config.clone());
        let token = stop.clone();
        let task = tokio::spawn(async move {
            match config {
                Config::Namenode(config) => dfs_namenode::run(*config, token).await,
                Config::Datanode(config) => dfs_datanode::run(*config, token).await,
            }
        });
        self.running = Some((stop, task));
    }

    async fn stop(&mut self) -> Result<()> {
        let Some((stop, task)) = self.running.take() else { return Ok(()) };
        stop.cancel();
        let ended = timeout(STOP, task).await.with_context(|| format!("{} does not stop", self.name))?;
        ended.map_err(anyhow::Error::from).flatten().with_context(|| format!("{} ended badly", self.name))
    }
}

impl Bed {
    /// A cluster that has been formed, with its clients.
    pub async fn start(seed: u64) -> Result<Bed> {
        // What is synced there costs nothing, and a simulated power cut is not among the faults.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory)? } else { TempDir::new()? };
        let authority = Authority::create(CLUSTER)?;
        authority.save(dir.path())?;
        let fabric = Fabric::new(seed);
        let config = ClusterConfig {
            cluster: CLUSTER,
            replication: 3,
            tls: certificate(&authority, dir.path(), Role::Admin, 900)?,
            namenodes: (1..=NAMENODES)
                .map(|id| NodeAddr { id: NodeId(id), name: format!("nn{id}"), addr: addr(1, id, 7000) })
                .collect(),
            datanodes: Vec::new(),
            mounts: Vec::new(),
        };
        let options = Options { network: fabric.host(ip(4, 1)), ..Options::default() };
        let observer = Dfs::connect(&config, options).await?;
        let mut bed = Bed {
            fabric,
            nodes: Vec::new(),
            clients: Vec::new(),
            observer,
            faults: 0,
            terms: BTreeSet::new(),
            begun: Instant::now(),
            ended: Vec::new(),
            config,
            authority,
            dir,
        };
        for id in 1..=NAMENODES {
            bed.nodes.push(bed.namenode(id)?);
        }
        for id in 1..=DATANODES {
            bed.nodes.push(bed.datanode(id)?);
        }
        bed.nodes.iter_mut().for_each(Node::start);
        let members = bed.config.namenodes.iter().map(|node| Member { node: node.id, addr: node.addr }).collect();
        bed.observer.initialize(members, 3, 2).await.map_err(|error| anyhow!("form the cluster: {error}"))?;
        for id in 1..=CLIENTS {
            let dfs = bed.client(id, id != 2, id == 1).await?;
            bed.clients.push(Client { ip: ip(3, id), dfs });
        }
        Ok(bed)
    }

    fn namenode(&self, id: u64) -> Result<Node> {
        let peer = |id| dfs_namenode::Peer {
            id,
            name: format!("nn{id}"),
            addr: addr(1, id, 7000),
            raft_addr: addr(1, id, 7001),
        };
        let name = format!("nn{id}");
        let config = dfs_namenode::Config {
            node: id,
            name: name.clone(),
            cluster: CLUSTER.to_string(),
            data_dir: self.dir.path().join(&name),
            listen: addr(1, id, 7000),
            raft_listen: addr(1, id, 7001),
            peers: (1..=NAMENODES).map(peer).collect(),
            tls: certificate(&self.authority, self.dir.path(), Role::Namenode, id)?,
            timers: dfs_namenode::Timers { compaction_after_ms: COMPACTION_AFTER_MS, ..Default::default() },
            snapshot_log_entries: SNAPSHOT_ENTRIES,
            log_keep_entries: KEPT_ENTRIES,
            network: self.fabric.host(ip(1, id)),
        };
        Ok(Node { name, ip: ip(1, id), config: Config::Namenode(Box::new(config)), running: None })
    }

    fn datanode(&self, id: u64) -> Result<Node> {
        let name = format!("dn{id}");
        let me = PeerIdentity { cluster: CLUSTER, role: Role::Datanode, id: NodeId(100 + id) };
        let namenodes = self.config.namenodes.iter();
        let namenodes = namenodes
            .map(|node| dfs_datanode::NamenodeAddr { id: node.id, name: node.name.clone(), addr: node.addr })
            .collect();
        let tls = certificate(&self.authority, self.dir.path(), Role::Datanode, 100 + id)?;
        let data_dir = self.dir.path().join(&name);
        let mut config = dfs_datanode::Config::new(me, name.clone(), data_dir, addr(2, id, 7100), namenodes, tls);
        config.network = self.fabric.host(ip(2, id));
        Ok(Node { name, ip: ip(2, id), config: Config::Datanode(Box::new(config)), running: None })
    }

    /// A client of a machine of its own. One that remembers names is like a mount; one that writes behind is like a mount
    /// with `-o writebehind`.
    pub async fn client(&self, id: u64, remember: bool, write_behind: bool) -> Result<Dfs> {
        let tls = certificate(&self.authority, self.dir.path(), Role::Client, 200 + id)?;
        let config = ClusterConfig { tls, ..self.config.clone() };
        let description = format!("client {id}");
        let network = self.fabric.host(ip(3, id));
        let options = Options { remember, write_behind, description, network, ..Options::default() };
        Ok(Dfs::connect(&config, options).await?)
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Every machine but the observer's.
    pub fn machines(&self) -> Vec<IpAddr> {
        self.nodes.iter().map(|node| node.ip).chain(self.clients.iter().map(|client| client.ip)).collect()
    }

    /// The namenode that leads; another one while nobody does.
    pub async fn leader(&mut self) -> usize {
        let answers = self.observer.each_namenode().await;
        let leader =
            answers.iter().filter(|answer| answer.leader == Some(answer.from)).max_by_key(|answer| answer.term);
        self.terms.extend(leader.map(|leader| leader.term));
        leader.map_or(0, |leader| leader.from.0 as usize - 1)
    }

    /// Stops a node in order.
    pub async fn stop_node(&mut self, index: usize) {
        if let Err(error) = self.nodes[index].stop().await {
            self.ended.push(format!("{error:#}"));
        }
    }

    pub fn start_node(&mut self, index: usize) {
        self.nodes[index].start();
    }

    /// Mends every link and starts every node.
    pub fn make_whole(&mut self) {
        self.fabric.mend_all();
        self.fabric.delay_as_usual();
        self.nodes.iter_mut().for_each(Node::start);
    }

    /// No node has ended by itself, nor badly.
    pub fn check_nodes(&self, verdict: &mut Verdict) {
        verdict.fine(Invariant::OneLeader, self.nodes.len() as u64);
        for why in &self.ended {
            verdict.broken(Invariant::OneLeader, why.clone());
        }
        for node in &self.nodes {
            if node.running.as_ref().is_some_and(|(_, task)| task.is_finished()) {
                verdict.broken(Invariant::OneLeader, format!("{} has ended by itself", node.name));
            }
        }
    }

    /// Ends everything in order.
    pub async fn stop(mut self) -> Result<()> {
        for client in self.clients.drain(..) {
            client.dfs.shutdown().await.map_err(|error| anyhow!("a client ends: {error}"))?;
        }
        // Datanodes tell the namenodes that they leave.
        for node in self.nodes.iter_mut().rev() {
            node.stop().await?;
        }
        match self.ended.first() {
            Some(why) => bail!("{why}"),
            None => Ok(()),
        }
    }
}

fn ip(kind: u8, id: u64) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, kind, id as u8))
}

fn addr(kind: u8, id: u64, port: u16) -> SocketAddr {
    SocketAddr::new(ip(kind, id), port)
}

fn certificate(authority: &Authority, dir: &Path, role: Role, id: u64) -> Result<TlsFiles> {
    let name = format!("{}-{id}", role.as_str());
    authority.issue(role, NodeId(id))?.save(dir, &name)?;
    let path = |ending: &str| dir.join(format!("{name}.{ending}"));
    Ok(TlsFiles { ca: dir.join("ca.pem"), cert: path("pem"), key: path("key") })
}

/// What the nodes say, as `RUST_LOG` asks for it, with virtual time.
pub fn log() {
    struct Uptime(Instant);
    impl tracing_subscriber::fmt::time::FormatTime for Uptime {
        fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
            write!(w, "{:9.3}", self.0.elapsed().as_secs_f64())
        }
    }
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_timer(Uptime(Instant::now()));
        // Of several seeds the first one sets it.
        let _ = subscriber.with_ansi(false).with_writer(std::io::stderr).try_init();
    }
}

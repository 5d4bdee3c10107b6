//! What the parts of a running datanode share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::{
    Access, Capability, CapabilityKey, ChunkId, ErrorKind, NodeId, PeerIdentity, Plane, Refusal, Role, WireError,
};
use dfs_rpc::{Pool, Target};
use parking_lot::RwLock;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{Config, NamenodeAddr};
use crate::heartbeat::{Outcomes, group};
use crate::orders::Orders;
use crate::scrub::Wish;
use crate::serve::local::Door;
use crate::store::Store;

/// Bytes that all reads together may hold on their way from disk to network. Not shared with appends:
/// those wait for other nodes, and two nodes that wait for each other's memory would wait for ever.
const READ_MEMORY_BYTES: usize = 256 << 20;

/// Append streams at once. Each holds up to `serve::append::WINDOW_BYTES`, and one file handle.
const APPEND_STREAMS_MAX: usize = 256;

pub struct Node {
    pub config: Config,
    pub me: PeerIdentity,
    /// Where others reach the data plane.
    pub addr: SocketAddr,
    /// Drawn at the start of the process: a restart shows.
    pub boot: u64,
    pub store: Arc<Store>,
    pub pool: Pool,
    pub orders: Orders,
    pub outcomes: Outcomes,
    pub scrub: Wish,
    pub read_memory: Semaphore,
    pub append_streams: Semaphore,
    /// For clients on this machine.
    pub door: Door,
    /// The namenodes, as far as they are known.
    pub namenodes: watch::Sender<Vec<NamenodeAddr>>,
    /// Turns true when the volumes have been read.
    pub scanned: watch::Sender<bool>,
    /// Cancelled when the node is about to stop in order.
    pub leaving: CancellationToken,
    leader: RwLock<Leader>,
}

/// What the last leader that was heard of has said.
#[derive(Default)]
struct Leader {
    term: u64,
    keys: Vec<CapabilityKey>,
    /// When one spoke.
    heard: Option<Instant>,
}

impl Node {
    pub fn new(config: Config, addr: SocketAddr, store: Arc<Store>, pool: Pool, orders: Orders) -> Node {
        Node {
            me: config.identity(),
            scrub: Wish::load(&config.data_dir),
            namenodes: watch::channel(group::first_contacts(&config)).0,
            config,
            addr,
            boot: rand::random(),
            store,
            pool,
            orders,
            outcomes: Outcomes::default(),
            read_memory: Semaphore::new(READ_MEMORY_BYTES),
            append_streams: Semaphore::new(APPEND_STREAMS_MAX),
            door: Door::new(),
            scanned: watch::channel(false).0,
            leaving: CancellationToken::new(),
            leader: RwLock::default(),
        }
    }

    /// Takes over what a leading namenode says, unless a newer leader has spoken before; whether it was taken.
    pub fn follow(&self, term: u64, keys: Vec<CapabilityKey>) -> bool {
        let mut leader = self.leader.write();
        if term < leader.term {
            return false;
        }
        leader.term = term;
        leader.heard = Some(Instant::now());
        // A leader that has no key yet does not take away those that are known.
        if !keys.is_empty() {
            leader.keys = keys;
        }
        true
    }

    /// Whether no leader has spoken for so long.
    pub fn is_unled_for(&self, time: Duration) -> bool {
        self.leader.read().heard.is_none_or(|heard| heard.elapsed() >= time)
    }

    /// Whether `peer` may access `chunk` with this capability.
    pub fn admit(
        &self,
        peer: &PeerIdentity,
        capability: &Capability,
        chunk: ChunkId,
        access: Access,
    ) -> Result<(), WireError> {
        if peer.role == Role::Namenode {
            return Err(WireError::new(ErrorKind::Forbidden, "a namenode has no business on the data plane"));
        }
        let leader = self.leader.read();
        if leader.keys.is_empty() {
            return Err(WireError::new(ErrorKind::Unavailable, "no leading namenode has been heard of yet"));
        }
        capability.check_from(peer, &leader.keys, chunk, access, clock::now()).map_err(|refusal| {
            let kind = match refusal {
                Refusal::Expired | Refusal::UnknownKey => ErrorKind::CapabilityExpired,
                Refusal::Forged | Refusal::Mismatch => ErrorKind::Forbidden,
            };
            WireError::new(kind, format!("capability for chunk {chunk}: {refusal}"))
        })
    }

    pub fn id(&self) -> NodeId {
        self.me.id
    }
}

/// Another datanode's data plane.
pub fn data_target(replica: &ReplicaAt) -> Target {
    Target { plane: Plane::Data, role: Role::Datanode, node: replica.node, addr: replica.addr }
}

//! Datanodes to namenodes: registration, heartbeats, reports; and the orders that come back.
//!
//! Every datanode speaks to every namenode, so that whoever leads next knows who is alive. Only the
//! leader answers with orders.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::attr::Timestamp;
use crate::capability::{Capability, CapabilityKey};
use crate::ids::{ChunkId, Epoch, NodeId};
use crate::msg::meta::ReplicaAt;

#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum NodeRequest {
    /// Every `heartbeat_interval_ms` (1 s). Answer: `Heartbeat`.
    Heartbeat(Box<Heartbeat>),
    /// The replicas of one shard of the chunk-id space, by id, in pages. Answer: `Done`.
    ShardReport {
        shard: u16,
        /// The digest that this report adds up to over its sealed replicas.
        digest: u64,
        /// Zero for the first page; the last page says `last`.
        page: u32,
        last: bool,
        replicas: Vec<ReplicaReport>,
    },
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum NodeReply {
    Done,
    Heartbeat(Box<HeartbeatReply>),
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Heartbeat {
    /// Drawn at process start: a restart shows.
    pub boot: u64,
    /// Where clients and other datanodes reach the data plane.
    pub addr: SocketAddr,
    pub volumes: Vec<VolumeStatus>,
    /// Per shard (`limits::DIGEST_SHARDS` of them): XOR of `replica_digest` over the sealed replicas.
    pub digests: Vec<u64>,
    /// Open replicas, at most 4096; the rest is in shard reports.
    pub open: Vec<ReplicaReport>,
    /// Outcomes of orders since the last heartbeat that this namenode answered.
    pub outcomes: Vec<Outcome>,
    /// Copies under way, so that a new leader does not order them again.
    pub copying: Vec<ChunkId>,
    /// The first scan of the volumes is over: digests are complete. Before that nothing may be
    /// concluded from what is missing.
    pub scanned: bool,
    /// The node is about to stop in order.
    pub leaving: bool,
    /// The datanode's clock, to show skew.
    pub now: Timestamp,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct VolumeStatus {
    pub path: String,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub chunks: u64,
    /// Latched at the first failed sync or write that is not "disk full".
    pub failed: Option<String>,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct HeartbeatReply {
    /// Whether the sender leads; the rest is empty otherwise.
    pub leading: bool,
    /// The leader's term: orders of an older term than one already seen are ignored.
    pub term: u64,
    pub orders: Vec<Order>,
    /// The capability keys to accept, newest last.
    pub keys: Vec<CapabilityKey>,
    /// Shards whose digest differs from the namenode's: send their reports.
    pub want_shards: Vec<u16>,
}

/// What a datanode is told to do. Each carries an epoch that is committed in the log; a replica with a
/// higher epoch ignores it. Doing one twice is the same as doing it once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Order {
    /// The chunk ends at `len`: cut what lies behind, take the epoch, never append again.
    Seal { chunk: ChunkId, epoch: Epoch, len: u32 },
    /// Move the replica to the trash if its epoch is at most this one.
    Delete { chunk: ChunkId, epoch: Epoch },
    /// Fetch a sealed chunk, verify every frame, sync it, then say so in `outcomes`.
    Copy {
        chunk: ChunkId,
        epoch: Epoch,
        len: u32,
        /// To try in this order.
        sources: Vec<ReplicaAt>,
        capability: Capability,
    },
    /// Read the whole replica again and report what is found.
    Verify { chunk: ChunkId, epoch: Epoch, len: u32 },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Outcome {
    /// A copy is complete, verified and synced here.
    Copied {
        chunk: ChunkId,
        epoch: Epoch,
        len: u32,
    },
    /// A copy could not be made; `bad_sources` served wrong or no bytes.
    CopyFailed {
        chunk: ChunkId,
        epoch: Epoch,
        reason: String,
        bad_sources: Vec<NodeId>,
    },
    /// This node's own replica is missing, short or damaged.
    Bad {
        chunk: ChunkId,
        epoch: Epoch,
        reason: String,
    },
    /// Every frame was read and matched.
    Verified {
        chunk: ChunkId,
        epoch: Epoch,
        len: u32,
    },
    Deleted {
        chunk: ChunkId,
        epoch: Epoch,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ReplicaReport {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    /// Bytes whose frames are whole.
    pub len: u32,
    pub sealed: bool,
}

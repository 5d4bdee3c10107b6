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
    /// The datanode's clock when it sent this.
    pub now: Timestamp,
    /// How far the datanode's clock is from this namenode's, once some heartbeats have been answered.
    pub skew: Option<Skew>,
    pub scrub: ScrubStatus,
    pub pace: Pace,
}

/// How quick a datanode's disks are, from its syncs of the last ten seconds. Under work only: an idle node shows none.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Pace {
    /// Syncs that ended in that time, at most 512.
    pub syncs: u32,
    /// Nine of ten of them took at most so long, in milliseconds.
    pub sync_ms: u32,
}

/// The difference between two clocks, as NTP estimates it from the four time stamps of a request and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Skew {
    /// The datanode's clock minus the namenode's, in milliseconds.
    pub offset_ms: i64,
    /// The truth is within half of this around `offset_ms`: what the round trip took, in milliseconds.
    pub round_trip_ms: u64,
}

/// How far a node is with reading its sealed replicas again. Times are seconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct ScrubStatus {
    /// Every replica is to be verified at least so often.
    pub period_s: u64,
    /// An administrator wants everything verified since then, by the node's own clock; 0 if nobody asked.
    pub asked_s: u64,
    /// Sealed replicas, and the bytes in them.
    pub chunks: u64,
    pub bytes: u64,
    /// Of these: not verified since `asked_s`.
    pub left_chunks: u64,
    pub left_bytes: u64,
    /// When the replica that has waited longest was last verified; 0 without replicas.
    pub oldest_s: u64,
    /// Replicas found damaged since the process started, by scrub, order or reader.
    pub damaged: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct VolumeStatus {
    pub path: String,
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub chunks: u64,
    /// Latched at the first failed sync or write that is not "disk full", or when the folder has gone.
    pub failed: Option<String>,
    /// Its replicas are being moved away, by an administrator's wish: it takes nothing new.
    pub draining: bool,
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
    /// The namenode's clock when the heartbeat came, and when this answer left.
    pub received: Timestamp,
    pub sent: Timestamp,
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
    /// End the append stream of this open replica, if it has one: its writer seals the chunk and goes on elsewhere.
    EndAppends { chunk: ChunkId, epoch: Epoch },
    /// Verify every sealed replica that was not verified since this order came, ahead of its turn. `wish` tells one
    /// wish from the next: what comes twice does not begin again.
    Scrub { wish: u64 },
    /// Make a sealed replica of this epoch out of `pieces` of other chunks, one behind the other; verify every frame that
    /// they are in, sync the replica, then say so in `outcomes`. At most `limits::GATHER_PIECES_MAX` pieces.
    Gather { chunk: ChunkId, epoch: Epoch, pieces: Vec<Piece>, sources: Vec<GatherSource> },
}

/// A range of a chunk that goes into another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct Piece {
    /// Which of the sources, counted from 0.
    pub source: u16,
    /// In the source, in bytes.
    pub offset: u32,
    /// In bytes, above 0.
    pub len: u32,
}

/// A chunk that pieces are taken from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct GatherSource {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    /// To try in this order, after the node's own.
    pub replicas: Vec<ReplicaAt>,
    pub capability: Capability,
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
    /// This node's own replica is missing or damaged.
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
    /// The replica is good, but its volume is to be emptied and no other one here has room: copy it to another node.
    Unwanted {
        chunk: ChunkId,
        epoch: Epoch,
    },
    /// The order of this epoch says that the chunk is longer than this node's replica. What is here is whole, was read
    /// from the disk just now, and ends at a frame's end; and nothing that could be read lies behind it.
    Short {
        chunk: ChunkId,
        epoch: Epoch,
        /// Bytes that are here.
        len: u32,
    },
    /// The replica that was to be gathered is complete, verified and synced here.
    Gathered {
        chunk: ChunkId,
        epoch: Epoch,
        /// First eight bytes, little-endian, of the BLAKE3 of all its bytes: the same on every node.
        hash: u64,
    },
    GatherFailed {
        chunk: ChunkId,
        epoch: Epoch,
        reason: String,
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

//! Administrators to namenodes: genesis, status, checks.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::{ChunkId, ClusterId, InodeId, NodeId};
use crate::msg::group::{GroupReply, GroupRequest};
use crate::msg::node::VolumeStatus;

#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum AdminRequest {
    /// Once in a cluster's life, to one namenode: forms the group and writes the cluster id, the root
    /// directory and the first capability key into the log. Refused by a node that has any state.
    Initialize { cluster: ClusterId, members: Vec<Member>, default_replication: u8, min_copies: u8 },
    /// Answered by any namenode from what it knows, leader or not. Answer: `Status`.
    Status,
    /// Recomputes everything from the rows and compares it with the live counters. Answer: `Fsck`.
    Fsck {
        /// Only what lies below this directory or file; the whole cluster if it is the root.
        root: InodeId,
    },
    /// Extents of a file and the replicas behind them. Answer: `FileInfo`.
    FileInfo { inode: InodeId },
    /// Takes a snapshot of the state and purges the log behind it. Answer: `Done`.
    Snapshot,
    /// About the group of namenodes itself. Answer: `Group`.
    Group(GroupRequest),
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum AdminReply {
    Done,
    Status(Status),
    Fsck(FsckReport),
    FileInfo(FileInfo),
    Group(GroupReply),
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Member {
    pub node: NodeId,
    pub addr: SocketAddr,
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct Status {
    pub cluster: Option<ClusterId>,
    /// The namenode that answers.
    pub from: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    pub namenodes: Vec<NamenodeStatus>,
    /// Empty unless the leader answers, as all that follows.
    pub datanodes: Vec<DatanodeStatus>,
    pub counts: Counts,
    pub chunks: ChunkHealth,
    pub repair: RepairStatus,
    pub default_replication: u8,
    pub min_copies: u8,
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct NamenodeStatus {
    pub node: NodeId,
    pub addr: SocketAddr,
    /// Whether the answering node has heard from it lately; itself always.
    pub reachable: bool,
    /// Last log index known to be on that node, where known.
    pub matched_index: Option<u64>,
    pub last_log_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Liveness {
    Live,
    /// Not heard from for a few seconds: no new writes there.
    Suspect,
    /// Silent for long enough that its data is copied again.
    Dead,
    /// Said that it stops; its data is copied again only after a while.
    Leaving,
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct DatanodeStatus {
    pub node: NodeId,
    pub addr: SocketAddr,
    pub liveness: Liveness,
    pub silent_ms: u64,
    pub volumes: Vec<VolumeStatus>,
    /// Replicas that the namenode counts on this node.
    pub replicas: u64,
    /// Whether what the node says it has is what the namenode counts, shard by shard.
    pub digest_agrees: bool,
    /// Its clock minus ours.
    pub skew_ms: i64,
}

/// The live counters, kept by every command that changes them.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Counts {
    pub files: u64,
    pub directories: u64,
    pub symlinks_and_specials: u64,
    /// Bytes mapped by extents, counted once.
    pub mapped_bytes: u64,
    pub chunks: u64,
    pub sessions: u64,
}

/// How the chunks stand, from the last pass of the repair worker.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct ChunkHealth {
    pub total: u64,
    pub open: u64,
    /// Sealed, as many live verified replicas as wanted.
    pub healthy: u64,
    /// Sealed and fewer live replicas than wanted, but at least one.
    pub under_replicated: u64,
    /// Of these: exactly one live replica.
    pub one_copy: u64,
    /// No live replica.
    pub missing: u64,
    /// More replicas than wanted.
    pub over_replicated: u64,
    /// Under-replicated because there are fewer live datanodes than copies wanted.
    pub lacking_nodes: u64,
    /// Milliseconds since that pass.
    pub age_ms: u64,
}

#[derive(Clone, Serialize, Deserialize, Debug, Default)]
pub struct RepairStatus {
    pub queued: u64,
    pub copying: Vec<CopyStatus>,
    /// Since this leader leads.
    pub copied_chunks: u64,
    pub copied_bytes: u64,
    /// Why chunks wait: a sentence and how many chunks, most first.
    pub waits: Vec<(String, u64)>,
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub struct CopyStatus {
    pub chunk: ChunkId,
    pub target: NodeId,
    pub len: u32,
    pub since_ms: u64,
}

#[derive(Clone, Serialize, Deserialize, Debug, Default)]
pub struct FsckReport {
    pub counts: Counts,
    pub chunks: ChunkHealth,
    /// Everything that contradicts itself, in words; empty is healthy. At most 1000.
    pub problems: Vec<Problem>,
    pub problems_total: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Problem {
    pub kind: ProblemKind,
    pub text: String,
    pub inode: Option<InodeId>,
    pub chunk: Option<ChunkId>,
    /// The file's path where it is known.
    pub path: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum ProblemKind {
    /// Bytes cannot be read: no live replica.
    Missing,
    /// Fewer copies than wanted.
    UnderReplicated,
    /// Rows contradict each other: a bug or damage.
    Inconsistent,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FileInfo {
    pub extents: Vec<crate::Extent>,
    pub chunks: Vec<ChunkInfo>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ChunkInfo {
    pub chunk: ChunkId,
    pub epoch: crate::Epoch,
    pub len: u32,
    pub live_bytes: u64,
    pub sealed: bool,
    pub target: u8,
    pub replicas: Vec<(NodeId, Liveness)>,
}

//! Administrators to namenodes: genesis, status, checks.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::attr::Timestamp;
use crate::ids::{ChunkId, ClusterId, InodeId, NodeId};
use crate::msg::group::{GroupReply, GroupRequest};
use crate::msg::node::{Pace, ScrubStatus, VolumeStatus};

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
    /// Gives a datanode another duty, or only says what that would mean. Answer: `DutyPlan`.
    ChangeDuty { node: NodeId, change: DutyChange, dry_run: bool },
    /// Has these datanodes (none: all that are live) verify every replica again. Answer: `Done`.
    Scrub { nodes: Vec<NodeId> },
    /// About the group of namenodes itself. Answer: `Group`.
    Group(GroupRequest),
    /// Whether and from when on chunks are moved from full datanodes to empty ones. Answer: `Done`.
    SetBalance(Balance),
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum AdminReply {
    Done,
    Status(Box<Status>),
    Fsck(FsckReport),
    FileInfo(FileInfo),
    DutyPlan(Box<DutyPlan>),
    Group(GroupReply),
}

/// What a datanode is meant to do, as an administrator has said: a row of the state. How alive it is, is another
/// matter.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub enum Duty {
    #[default]
    Serving,
    /// It may be silent until then without being repaired for; nothing new is placed on it.
    Maintenance { until: Timestamp },
    /// It takes nothing new, and its replicas are copied to other nodes. `chunks` and `bytes` are what it had at the
    /// start, so that any leader can tell how far it is.
    Decommissioning { since: Timestamp, chunks: u64, bytes: u64 },
    /// No chunk needs it: it may be stopped, removed, or recommissioned.
    Decommissioned { since: Timestamp },
    /// It is gone for good: its replicas are written off wherever another good one remains.
    Removing { since: Timestamp, chunks: u64, bytes: u64 },
    /// Its number is never used again.
    Removed { since: Timestamp },
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum DutyChange {
    Decommission,
    /// Back to service, from whatever it was but removed.
    Recommission,
    Maintenance {
        for_ms: u64,
    },
    Remove,
}

/// What a change of duty means, by what the leader knew when it was asked.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DutyPlan {
    pub before: Duty,
    pub after: Duty,
    /// Replicas that count on the node, the bytes in them, and how many of them are open.
    pub chunks: u64,
    pub bytes: u64,
    pub open: u64,
    /// Room on the other nodes that take copies.
    pub room_bytes: u64,
    /// Chunks that want more copies than there would be nodes to hold them: they would keep the node.
    pub stuck: u64,
    /// Chunks of which no other live node has a good copy, and some of the files in them.
    pub lost: u64,
    pub lost_files: Vec<String>,
    /// Chunks that would be left with a single good copy elsewhere.
    pub one_copy: u64,
}

/// When chunks are moved from full datanodes to empty ones, as an administrator has said: a row of the state.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Balance {
    pub on: bool,
    /// So many points of a hundred may one node's disks be fuller than another's: 1 to `BALANCE_POINTS_MAX`.
    pub points: u8,
}

impl Default for Balance {
    fn default() -> Balance {
        Balance { on: true, points: 5 }
    }
}

/// How full the datanodes are beside each other, and what is done about it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct BalanceStatus {
    pub wanted: Balance,
    pub moving: Vec<CopyStatus>,
    /// Since this leader leads: replicas that moved, and their bytes.
    pub moved_chunks: u64,
    pub moved_bytes: u64,
    /// About how many bytes have to move until no node is fuller than another by more than is wanted, whether or not
    /// that is on.
    pub left_bytes: u64,
    /// Every chunk of the full nodes was looked at since the last move, and none can be moved as things are.
    pub stuck: bool,
}

/// What a node still has that must leave it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct Drain {
    pub chunks: u64,
    pub bytes: u64,
    /// Of `chunks`: open, so that a writer has to move first.
    pub open: u64,
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
    pub compaction: CompactionStatus,
    pub balance: BalanceStatus,
    pub default_replication: u8,
    pub min_copies: u8,
    /// Datanodes that were removed for good; those above are the others.
    pub removed: Vec<NodeId>,
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
    /// Its clock minus ours, as estimated by the datanode from the answers to its heartbeats.
    pub skew_ms: i64,
    pub duty: Duty,
    /// What is left to be moved, while it is decommissioned or removed.
    pub drain: Option<Drain>,
    /// `None` until it was heard.
    pub scrub: Option<ScrubStatus>,
    pub pace: Pace,
    /// It is slow beside the others, and gets no new chunks for a while.
    pub slow: bool,
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
    /// Chunks whose end was cut off, because no disk has it: files that need it have ranges that cannot be read. Each is
    /// counted above as well, by the copies of what is left.
    pub lost_ends: u64,
    /// Bytes of sealed chunks that no file needs any more, each counted once. They give their room back when less than
    /// half of their chunk lives, or nothing.
    pub dead_bytes: u64,
    /// Milliseconds since that pass.
    pub age_ms: u64,
}

/// How what lives in mostly dead chunks is put together in new ones.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct CompactionStatus {
    /// Chunks that are being gathered.
    pub under_way: u64,
    /// Since this leader leads: chunks that were, and by how many bytes their sources were longer, each counted once.
    pub done: u64,
    pub freed_bytes: u64,
}

#[derive(Clone, Serialize, Deserialize, Debug, Default)]
pub struct RepairStatus {
    pub queued: u64,
    /// Without those that only move a replica: they are in `BalanceStatus`.
    pub copying: Vec<CopyStatus>,
    /// Since this leader leads.
    pub copied_chunks: u64,
    pub copied_bytes: u64,
    /// Why chunks wait: a sentence and how many chunks, most first.
    pub waits: Vec<(String, u64)>,
    /// Replicas known to be damaged or missing that still count.
    pub damaged: u64,
    /// Chunks open for sessions that have not been heard from for half a lease, or not yet by this leader: sealed soon,
    /// and only then is it known how their replicas stand.
    pub unattended: u64,
    /// Since this leader leads: replicas found so, and those of them that were read well again, or replaced and dropped.
    pub damaged_found: u64,
    pub healed: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
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
    /// Bytes cannot be read, and never will be: their chunk was cut off in front of them.
    Lost,
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
    /// Bytes behind `len` that were committed and that no disk has.
    pub lost: u32,
    pub live_bytes: u64,
    pub sealed: bool,
    pub target: u8,
    pub replicas: Vec<(NodeId, Liveness)>,
    /// Of these: known to be damaged or missing.
    pub damaged: Vec<NodeId>,
}

//! What stands in the replicated log, and what applying it answers.

use std::net::SocketAddr;

use dfs_proto::msg::admin::{Balance, Duty};
use dfs_proto::msg::meta::{Op, OpReply, SessionGrant};
use dfs_proto::msg::node::Piece;
use dfs_proto::{
    Caller, CapabilityKey, ChunkId, ClusterId, Epoch, InodeId, NodeId, RequestId, SessionId, Timestamp, WireError,
};
use serde::{Deserialize, Serialize};

use crate::view::Change;

/// One entry of the log. The leader has put everything into it that applying must not look up
/// elsewhere: the time, the placement, new secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct Command {
    /// The leader's clock when it proposed this. Only ever becomes a time stamp; no decision hangs on it.
    pub now: Timestamp,
    pub body: Body,
}

#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub enum Body {
    /// Makes the cluster: configuration, root directory, first capability key. Once.
    Genesis { cluster: ClusterId, default_replication: u8, min_copies: u8, lease_ms: u64, key: CapabilityKey },
    /// Reply: `Session`.
    OpenSession {
        description: String,
        /// Number of the client's certificate; what capabilities are made out to.
        holder: NodeId,
    },
    /// A client's mutation. Reply: `Op`.
    Client {
        id: RequestId,
        /// Replies with lower numbers are forgotten.
        acked_below: u64,
        caller: Caller,
        op: Op,
        /// For `Op::AllocateChunks`: the nodes of each chunk, one list per chunk. Empty otherwise.
        placement: Vec<Vec<NodeId>>,
    },
    /// Ends sessions whose lease has run out: their open chunks are sealed, what they held is reclaimed.
    ExpireSessions { sessions: Vec<SessionId> },
    /// A datanode is new, or is reached at another address.
    PutDatanode { node: NodeId, addr: SocketAddr },
    /// A copy was completed, verified and synced on `node`. Refused if the chunk has changed since.
    AddReplica { chunk: ChunkId, epoch: Epoch, len: u32, node: NodeId },
    /// The replica on `node` no longer counts. Nothing happens if it did not count before; the last
    /// replica is never dropped. That good copies remain is for the proposer to know.
    DropReplica { chunk: ChunkId, epoch: Epoch, node: NodeId },
    /// A new capability key; the newest two are kept.
    RotateKey { key: CapabilityKey },
    /// Takes apart inodes without a name, at most `extents_max` extents in all.
    Reclaim { inodes: Vec<InodeId>, extents_max: u32 },
    /// A client's mutation that can take a last name away, with what the leader knows of open files.
    /// Otherwise as `Client`. Reply: `Op`.
    Removal {
        id: RequestId,
        acked_below: u64,
        caller: Caller,
        op: Op,
        /// What the name led to when the leader looked, and who had that open.
        expected: Option<InodeId>,
        holders: Vec<SessionId>,
        /// Others may have it open.
        undecided: bool,
    },
    /// Who holds nameless inodes has changed, or become known. What is no orphan is passed over.
    Holders { changes: Vec<HolderChange> },
    /// A datanode's duty changes, if it still is what the proposer saw.
    SetDuty { node: NodeId, before: Duty, after: Duty },
    /// A namenode's number is given to the data folder with this number. Refused if it was given before.
    AdmitNamenode { node: NodeId, disk: u64 },
    /// A namenode's number is used up.
    RetireNamenode { node: NodeId },
    /// Changes nothing: each namenode notes the hash that its state had before this entry, and they compare.
    CheckState,
    /// A sealed chunk ends at `len` bytes: what was committed behind that was never synced, and is on no disk. Refused
    /// unless the chunk is what the proposer saw, with exactly these replicas. That none of them can be longer is for
    /// the proposer to know.
    CutChunk { chunk: ChunkId, epoch: Epoch, len: u32, replicas: Vec<NodeId> },
    /// A new chunk is to be gathered on `nodes` out of `pieces` of the `sources`, which are sealed chunks at these epochs.
    /// It is found again in the rows (`Compactions`).
    BeginCompaction { sources: Vec<(ChunkId, Epoch)>, pieces: Vec<Piece>, nodes: Vec<NodeId> },
    /// All nodes of a chunk that was gathered have it: extents that name bytes of its pieces come to name it instead. Each
    /// is told by its inode and the end of its range in the file; at most `RANGE_EXTENTS_MAX`. Those that are not there, or
    /// name something else by now, are passed over; refused if that is all of them.
    Relocate { chunk: ChunkId, extents: Vec<(InodeId, u64)> },
    /// A compaction is over, or given up: then the chunk, which is still gathering, is deleted.
    EndCompaction { chunk: ChunkId },
    /// Whether and from when on chunks are moved from full datanodes to empty ones.
    SetBalance(Balance),
}

/// Sessions that no longer hold a nameless inode (`rows::UNDECIDED` among them), and those that do.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct HolderChange {
    pub inode: InodeId,
    pub leave: Vec<SessionId>,
    pub join: Vec<SessionId>,
}

impl Body {
    /// The client's request that this carries out.
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Body::Client { id, .. } | Body::Removal { id, .. } => Some(*id),
            Body::Genesis { .. }
            | Body::OpenSession { .. }
            | Body::ExpireSessions { .. }
            | Body::PutDatanode { .. }
            | Body::AddReplica { .. }
            | Body::DropReplica { .. }
            | Body::RotateKey { .. }
            | Body::Reclaim { .. }
            | Body::Holders { .. }
            | Body::SetDuty { .. }
            | Body::AdmitNamenode { .. }
            | Body::RetireNamenode { .. }
            | Body::CheckState
            | Body::CutChunk { .. }
            | Body::BeginCompaction { .. }
            | Body::Relocate { .. }
            | Body::EndCompaction { .. }
            | Body::SetBalance(_) => None,
        }
    }
}

/// A command that was done.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Reply {
    Done,
    Session(SessionGrant),
    Op(OpReply),
}

/// What the proposer is told. A refusal has changed nothing (but that it is remembered).
pub type Outcome = Result<Reply, WireError>;

/// The result of applying a batch.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Applied {
    /// One per command, in order.
    pub outcomes: Vec<Outcome>,
    /// The net result of the batch: one per key, by table and key.
    pub changes: Vec<Change>,
    pub events: Vec<Event>,
    /// One per command, in order: the inodes whose rows it has changed, made or removed. A name that comes
    /// or goes changes its directory's row.
    pub changed: Vec<Vec<InodeId>>,
}

/// A hint for the leader's workers, so that they act at once. Nothing depends on one arriving: what
/// they say can be found again in the rows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Tell the replicas where the chunk ends: it was sealed, or cut.
    Sealed { chunk: ChunkId, epoch: Epoch, len: u32, replicas: Vec<NodeId> },
    /// Tell the replicas to delete it, up to `epoch`.
    ChunkDeleted { chunk: ChunkId, epoch: Epoch, replicas: Vec<NodeId> },
    /// Tell `node` to delete its replica, if its epoch is at most `epoch`.
    ReplicaDropped { chunk: ChunkId, epoch: Epoch, node: NodeId },
    /// A sealed chunk has more or fewer replicas than wanted.
    Attention(ChunkId),
    /// An inode waits in the reclaim queue.
    Orphaned(InodeId),
    /// A nameless inode waits for word of who has it open.
    Undecided(InodeId),
    /// Some lock of the inode has gone: whoever waits may look again.
    LocksReleased(InodeId),
}

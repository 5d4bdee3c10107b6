//! Plans copies and drops so that every sealed chunk gets back the replicas it should have.
//!
//! The order is by risk: chunks of which one copy is left, then those below `min_copies`, then the
//! rest. A replica counts while its node lives; one on a node that is silent but not given up, or that
//! left in order a short while ago or is in maintenance, counts too unless only one live copy is left. A replica that
//! is to leave its node is copied like a lost one, is a source meanwhile, and is dropped last. A copy is planned from
//! live holders to the live node with most room, within each node's budget. A replica is dropped
//! only if, without it, as many live and confirmed good ones as wanted remain (or, if it is itself bad,
//! at least one). While one replica is damaged, only those count as confirmed that were read since.
//!
//! Where all that is left is damaged, a copy is tried from all of it: frames that are good in any replica make it whole.
//!
//! Where all that is left is *short* (whole, but without the chunk's end, which no copy could bring back), the chunk is
//! cut to the longest of them. That takes the word of every counted replica's node, live and with its disks scanned:
//! one that is away may have the end, and one that is damaged in the middle may have good frames behind the damage.
//!
//! With what budget that leaves, chunks that need nothing are moved from full nodes to empty ones: a copy that nobody
//! needs, after which the replica on the fullest node is superfluous ([`balance`]).
//!
//! What is planned names everything, with the epoch: carried out late or twice, it does no harm.

pub mod balance;
mod check;
mod plan;
mod view;

pub use check::check;
pub use plan::plan;
pub(crate) use view::count;
pub use view::{ChunkView, Flight, Known, NodeView, candidates, health};

use std::collections::BTreeMap;
use std::fmt;

use dfs_proto::msg::admin::Balance;
use dfs_proto::{ChunkId, Epoch, NodeId};

use balance::Share;

/// How much may be done at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Copies that one node receives or serves at a time.
    pub copies_in_per_node: u32,
    pub copies_out_per_node: u32,
    /// The same, for chunks of which one copy is left.
    pub urgent_copies_in_per_node: u32,
    pub urgent_copies_out_per_node: u32,
    /// What a node may receive and serve at a time, counting everything, for a copy that only moves a replica to be made.
    pub moves_per_node: u32,
    /// Replicas are moved between nodes that are more unevenly full than this; `None`: never.
    pub uneven_above: Option<Share>,
    /// Replicas dropped by one plan, and chunks cut: bounds the commands that one pass proposes.
    pub drops_per_pass: u32,
    /// A node that left in order gets so long to come back before its data is copied again.
    pub leaving_grace_ms: u64,
    /// The cluster's `Config::min_copies`.
    pub min_copies: u8,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            copies_in_per_node: 2,
            copies_out_per_node: 2,
            urgent_copies_in_per_node: 8,
            urgent_copies_out_per_node: 8,
            moves_per_node: 1,
            uneven_above: Some(Share::from_points(Balance::default().points)),
            drops_per_pass: 64,
            leaving_grace_ms: 300_000,
            min_copies: 2,
        }
    }
}

/// What to do next. Leaves no choices.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Most urgent first.
    pub copies: Vec<CopyPlan>,
    pub drops: Vec<DropPlan>,
    pub cuts: Vec<CutPlan>,
    /// Chunks that would need a copy or a drop now and get none, each with the first reason.
    pub waits: Vec<Wait>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyPlan {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub len: u32,
    pub target: NodeId,
    /// To try in this order. The first one's budget is charged.
    pub sources: Vec<NodeId>,
    pub why: Risk,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DropPlan {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub node: NodeId,
}

/// The chunk is to end at `len`: the longest of its replicas, which are all short, has no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CutPlan {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub len: u32,
    /// All that count, as they were judged.
    pub replicas: Vec<NodeId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wait {
    pub chunk: ChunkId,
    pub reason: Reason,
}

/// How near a chunk is to being lost, most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Risk {
    OneCopyLeft,
    BelowMinCopies,
    BelowTarget,
    /// None: a node is fuller than another.
    Uneven,
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Risk::OneCopyLeft => "one copy left",
            Risk::BelowMinCopies => "fewer copies than a write needs",
            Risk::BelowTarget => "fewer copies than wanted",
            Risk::Uneven => "to an emptier node",
        })
    }
}

/// Why a chunk waits. Its text is what `dfs status` shows, counted over the chunks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reason {
    NoLiveSource,
    NoNodeWithoutReplica,
    /// The nodes without a replica are full or take no writes.
    NoRoom,
    BudgetUsedUp(NodeId),
    LeftInOrder(NodeId),
    InMaintenance(NodeId),
    Silent(NodeId),
    CopyUnderWay,
    DropBudgetUsedUp,
    /// A superfluous replica stays until this node has confirmed its own.
    Unconfirmed(NodeId),
    /// All replicas that can be asked are short. This node may have the end.
    MayHaveEnd(NodeId),
    CutBudgetUsedUp,
    /// A damaged replica stays until this node has read its own again.
    Unproven(NodeId),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::NoLiveSource => write!(f, "no live source"),
            Reason::NoNodeWithoutReplica => write!(f, "no node without a replica"),
            Reason::NoRoom => write!(f, "no node with room"),
            Reason::BudgetUsedUp(node) => write!(f, "budget of node {node} used up"),
            Reason::LeftInOrder(node) => write!(f, "node {node} left in order, back-copy waits"),
            Reason::InMaintenance(node) => write!(f, "node {node} is in maintenance"),
            Reason::Silent(node) => write!(f, "node {node} is silent but not given up"),
            Reason::CopyUnderWay => write!(f, "a copy is under way"),
            Reason::DropBudgetUsedUp => write!(f, "enough superfluous replicas dropped for one pass"),
            Reason::Unconfirmed(node) => write!(f, "node {node} is still scanning its disks"),
            Reason::MayHaveEnd(node) => write!(f, "the end of the chunk may be on node {node}, which has not said"),
            Reason::CutBudgetUsedUp => write!(f, "enough chunks cut for one pass"),
            Reason::Unproven(node) => write!(f, "node {node} verifies its replica"),
        }
    }
}

impl Plan {
    /// Why chunks wait: a sentence and how many chunks, most first.
    pub fn wait_summary(&self) -> Vec<(String, u64)> {
        let mut counted: BTreeMap<String, u64> = BTreeMap::new();
        for wait in &self.waits {
            *counted.entry(wait.reason.to_string()).or_default() += 1;
        }
        let mut summary: Vec<_> = counted.into_iter().collect();
        // Stable: equal numbers stay in the order of their texts.
        summary.sort_by_key(|(_, chunks)| std::cmp::Reverse(*chunks));
        summary
    }
}

#[cfg(test)]
mod tests;

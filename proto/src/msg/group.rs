//! The group of namenodes itself: who they are, and how that changes while they serve.
//!
//! `namenode/CONSISTENCY.md`, section 11, says why a change loses nothing.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ids::NodeId;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum GroupRequest {
    /// Who the members are and where they stand. Answered by any namenode, to any role: this is how clients and
    /// datanodes learn of members that their configuration does not name. Answer: `Members`.
    Show,
    /// A further namenode, which runs and is empty, becomes a voting member. Answer: `Changed` once it votes. Asked
    /// again, it joins the change that runs or says that it is done. `Unavailable` while it catches up: ask again.
    Add(NamenodeAddr),
    /// A member stops being one, for good. Answer: `Changed`.
    Remove { node: NodeId },
    /// `new` takes the place of `old` in one step. Answer: `Changed`.
    Replace { old: NodeId, new: NamenodeAddr },
    /// The leader has another member elected. The one that is asked for is named, so that this may be repeated: once it
    /// leads nothing more is done. Answer: `Leads`.
    HandOver { to: NodeId },
    /// Has every namenode note the hash of its state at one entry of the log; `GroupStatus::checks` then has it.
    /// Answer: `Changed`.
    CheckState,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum GroupReply {
    Members(GroupStatus),
    Changed,
    /// This one leads.
    Leads(NodeId),
}

/// Where a namenode is reached.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NamenodeAddr {
    pub node: NodeId,
    /// For people; at most `limits::NODE_NAME_MAX` bytes.
    pub name: String,
    /// Its meta plane.
    pub addr: SocketAddr,
    pub raft_addr: SocketAddr,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct GroupStatus {
    /// The namenode that answers.
    pub from: NodeId,
    pub leader: Option<NodeId>,
    pub term: u64,
    /// By number. Empty before genesis.
    pub members: Vec<GroupMember>,
    /// A change that runs at the answering leader, or one that was cut off half way, in words.
    pub change: Option<String>,
    /// Every number that a namenode of this cluster has or had. None is given to another one.
    pub used: Vec<NodeId>,
    /// The hash of the answering node's state before each of the last entries that asked for it, oldest first.
    pub checks: Vec<StateCheck>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct StateCheck {
    pub index: u64,
    pub hash: [u8; 32],
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct GroupMember {
    pub node: NodeId,
    /// Empty if the group was formed before names were part of the membership.
    pub name: String,
    pub addr: SocketAddr,
    pub raft_addr: Option<SocketAddr>,
    pub role: MemberRole,
    /// Whether the answering node has heard from it lately; itself always.
    pub reachable: bool,
    /// Where a leader answers: the last log index known to be on that node's disk.
    pub matched_index: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum MemberRole {
    Voter,
    /// Receives the log and does not count in any majority.
    Learner,
    /// Votes until the change that is under way is done.
    Leaving,
}

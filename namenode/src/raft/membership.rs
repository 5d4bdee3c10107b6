//! Carrying out a change of the membership, step by step. Every step may be the last one that this leader takes:
//! whoever leads next finds the group in a state from which `change::plan` goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use dfs_proto::{ErrorKind, WireError};
use openraft::ChangeMembers;
use openraft::error::{ClientWriteError, RaftError};
use tokio::time::Instant;
use tracing::info;

use super::network::{self, RaftReply, RaftRequest};
use super::node::{Consensus, ProposeError, write_error};
use super::presence::Presence;
use super::types::Member;

/// For one entry that changes the membership. Without a majority it cannot succeed.
const DEADLINE: Duration = Duration::from_secs(10);
/// A newcomer may need a snapshot of everything first; it is given up when it does not come nearer for so long.
const STALL: Duration = Duration::from_secs(30);
/// How often its progress is looked at.
const TICK: Duration = Duration::from_millis(50);
/// Entries that a newcomer may lack when it begins to vote: what is on its way under load.
const LAG_MAX: u64 = 64;
/// For the first contact with a newcomer, dialling included.
const FIRST_CONTACT: Duration = Duration::from_secs(5);
const CALL: Duration = Duration::from_secs(1);

impl Consensus {
    /// One request to another namenode.
    pub(super) async fn call(
        &self,
        node: u64,
        request: &RaftRequest,
        within: Duration,
    ) -> Result<RaftReply, WireError> {
        network::call(&self.links, node, request, within).await
    }

    /// Reaches a namenode that may not be a member yet, and returns what it says of itself.
    ///
    /// # Errors
    /// `InvalidArgument` if nobody with that number's certificate answers there.
    pub async fn contact(&self, node: u64, member: &Member) -> Result<Presence, WireError> {
        self.links.reach(node, member.raft_addr);
        let deadline = Instant::now() + FIRST_CONTACT;
        loop {
            let request = RaftRequest::Presence(Box::new((self.presences.tell(), self.presences.opinion(node, None))));
            match self.call(node, &request, CALL).await {
                Ok(RaftReply::Presence(told)) => return Ok(told.0),
                _ if Instant::now() < deadline => tokio::time::sleep(TICK).await,
                _ => {
                    self.forget_strangers();
                    let at = member.raft_addr.map_or("no address".into(), |addr| addr.to_string());
                    let text =
                        format!("nobody with the certificate of namenode {node} answers at {at}: is it started?");
                    return Err(WireError::new(ErrorKind::InvalidArgument, text));
                }
            }
        }
    }

    /// Has `node` receive the log, and returns when it has nearly all of it. `progress` hears how many entries it lacks.
    pub async fn teach(&self, node: u64, member: Member, progress: impl Fn(u64)) -> Result<(), WireError> {
        if !self.standing().members.contains_key(&node) {
            self.change(ChangeMembers::AddNodes([(node, member)].into())).await?;
            info!(node, "a learner was added");
        }
        let mut best = (0, Instant::now());
        loop {
            let standing = self.standing();
            if !standing.leads() {
                return Err(ProposeError::NotLeader { leader: standing.leader }.into());
            }
            let matched = standing.matched.get(&node).copied().unwrap_or(0);
            let lacks = standing.last_log_index.saturating_sub(matched);
            progress(lacks);
            if matched > 0 && lacks <= LAG_MAX {
                return Ok(());
            }
            if matched > best.0 {
                best = (matched, Instant::now());
            } else if best.1.elapsed() >= STALL && !self.reachable(node) {
                let text = format!("namenode {node} has stopped catching up and does not answer");
                return Err(WireError::new(ErrorKind::InvalidArgument, text));
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// Makes `voters` the voting members, through a joint majority. Who voted before and does not any more is no
    /// member any more.
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), WireError> {
        info!(?voters, "changing the voters");
        self.change(ChangeMembers::ReplaceAllVoters(voters)).await
    }

    /// Takes a learner out.
    pub async fn forget(&self, node: u64) -> Result<(), WireError> {
        info!(node, "a learner is removed");
        self.change(ChangeMembers::RemoveNodes([node].into())).await
    }

    /// Writes down where a member is reached now, and what it is called.
    pub async fn move_member(&self, node: u64, member: Member) -> Result<(), WireError> {
        info!(node, name = member.name, addr = %member.addr, "a member is reached elsewhere");
        self.change(ChangeMembers::SetNodes([(node, member)].into())).await
    }

    /// Ends the links to nodes that are no members.
    pub fn forget_strangers(&self) {
        self.links.forget_all_but(&self.standing().members.keys().copied().collect());
    }

    /// What a member has said of itself lately.
    pub fn presence(&self, node: u64) -> Option<Presence> {
        if node == self.presences.own().node { Some(self.presences.tell()) } else { self.presences.said(node) }
    }

    async fn change(&self, changes: ChangeMembers<u64, Member>) -> Result<(), WireError> {
        let done = tokio::time::timeout(DEADLINE, self.raft.change_membership(changes, false)).await;
        match done {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error)))) => {
                Err(WireError::new(ErrorKind::Unavailable, format!("the membership cannot be changed now: {error}")))
            }
            Ok(Err(error)) => Err(write_error(error).into()),
            Err(_) => Err(ProposeError::Timeout.into()),
        }
    }
}

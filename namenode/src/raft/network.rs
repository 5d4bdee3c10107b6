//! Raft's calls over the Raft plane, both sides.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_proto::{ErrorKind, PeerIdentity, Plane, Role, WireError};
use dfs_rpc::{Handler, Moment, RecvStream, RpcError, SendStream};
use openraft::error::{NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::{AnyError, OptionalSend};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::elections::Ear;
use super::handover::Gate;
use super::lease::Lease;
use super::links::{Attempt, Link, Links};
use super::log_store::Disk;
use super::node::Standing;
use super::presence::{Opinion, Presence, Presences};
use super::snapshot_transfer::{self, SnapshotOffer};
use super::types::{
    AppendRequest, AppendResponse, LogId, Member, Raft, Snapshot, SnapshotResponse, TypeConfig, Vote, VoteRequest,
    VoteResponse,
};

/// How long a request may take to arrive once its stream is open.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// What may arrive on the Raft plane, one to a stream.
#[derive(Serialize, Deserialize)]
pub enum RaftRequest {
    Append(AppendRequest),
    Vote(VoteRequest),
    /// Followed by the bytes of the offered files, in order.
    Snapshot(SnapshotOffer),
    /// What the sender says of itself, and what it knows of the receiver. Answered in kind.
    Presence(Box<(Presence, Opinion)>),
    /// The leader of this term asks the receiver to stand for election.
    Stand {
        term: u64,
    },
}

#[derive(Serialize, Deserialize)]
pub enum RaftReply {
    Append(AppendResponse),
    Vote(VoteResponse),
    Snapshot(SnapshotResponse),
    Presence(Box<(Presence, Opinion)>),
    Standing,
}

/// One request to the node, on the connection there is.
pub async fn call(links: &Links, node: u64, request: &RaftRequest, within: Duration) -> Result<RaftReply, WireError> {
    let unreachable = || WireError::new(ErrorKind::Unavailable, format!("no connection to namenode {node}"));
    let link = links.get(node).ok_or_else(unreachable)?;
    let connection = link.connection().ok_or_else(unreachable)?;
    let attempt = link.attempt();
    match dfs_rpc::call_large::<_, RaftReply>(&connection, request, within).await {
        Ok(reply) => {
            attempt.answered();
            Ok(reply)
        }
        Err(error) => {
            if matches!(error, RpcError::Refused(_)) {
                attempt.answered();
            }
            Err(error.to_wire())
        }
    }
}

/// Makes callers; never dials, because openraft asks for a new one at every read barrier.
#[derive(Clone)]
pub struct Network {
    links: Links,
    ear: Ear,
    lease: Lease,
    gate: Gate,
    disk: Disk,
    /// For how long after an append a follower need not hear that nothing new is there.
    rides: Duration,
    /// Before this node has been recognised it sends nothing. Set once, when Raft has been made.
    presences: Arc<OnceLock<Presences>>,
}

impl Network {
    pub fn new(links: Links, ear: Ear, lease: Lease, gate: Gate, disk: Disk, rides: Duration) -> Network {
        Network { links, ear, lease, gate, disk, rides, presences: Arc::default() }
    }

    pub fn presences(&self) -> Arc<OnceLock<Presences>> {
        self.presences.clone()
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, member: &Member) -> Peer {
        let link = self.links.reach(target, member.raft_addr);
        Peer { target, link, network: self.clone(), accepted: None }
    }
}

/// Calls one namenode.
pub struct Peer {
    target: u64,
    /// `None`: nobody says where it is.
    link: Option<Arc<Link>>,
    network: Network,
    /// The last append that was accepted from here.
    accepted: Option<Accepted>,
}

/// An append that a follower has accepted.
#[derive(Clone, Copy)]
struct Accepted {
    vote: Vote,
    /// Where its log then ended.
    last: Option<LogId>,
    sent: Moment,
}

impl Accepted {
    /// Whether the request says no more than the follower knows, except perhaps how far the log is committed. That
    /// may ride with the next entries or heartbeat. As a request of its own after each entry it would be in the way
    /// of the next one, because there is one at a time.
    fn covers(&self, request: &AppendRequest, now: Moment, rides: Duration) -> bool {
        request.entries.is_empty()
            && (request.vote, request.prev_log_id) == (self.vote, self.last)
            && now.since(self.sent) < rides
    }
}

type CallError = RPCError<u64, Member, RaftError<u64>>;

impl Peer {
    async fn call(&self, request: &RaftRequest, option: &RPCOption) -> Result<RaftReply, CallError> {
        let Some(link) = &self.link else {
            return Err(unreachable(format!("nobody says where namenode {} is", self.target)).into());
        };
        if !self.network.presences.get().is_some_and(Presences::is_recognised) {
            return Err(unreachable("this namenode has not been recognised yet").into());
        }
        let Some(connection) = link.connection() else {
            return Err(unreachable(format!("no connection to namenode {}", self.target)).into());
        };
        let attempt = link.attempt();
        let result = dfs_rpc::call_large::<_, RaftReply>(&connection, request, option.hard_ttl()).await;
        self.judge(attempt, result)
    }

    fn judge(&self, attempt: Attempt, result: Result<RaftReply, RpcError>) -> Result<RaftReply, CallError> {
        match result {
            Ok(reply) => {
                attempt.answered();
                Ok(reply)
            }
            Err(RpcError::Refused(error)) => {
                attempt.answered();
                Err(NetworkError::from(AnyError::error(error)).into())
            }
            // "Unreachable" makes openraft wait before it tries again; a plain network error does not.
            Err(error) => Err(unreachable(error).into()),
        }
    }

    fn odd_reply(&self) -> NetworkError {
        NetworkError::from(AnyError::error(format!("namenode {} answered something else", self.target)))
    }
}

fn unreachable(error: impl ToString) -> Unreachable {
    Unreachable::from(AnyError::error(error))
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(&mut self, mut rpc: AppendRequest, option: RPCOption) -> Result<AppendResponse, CallError> {
        let Some(_passage) = self.network.gate.enter() else {
            return Err(unreachable("the lead is being handed over").into());
        };
        let (vote, sent) = (rpc.vote, Moment::now());
        if self.accepted.is_some_and(|accepted| accepted.covers(&rpc, sent, self.network.rides)) {
            return Ok(AppendResponse::Success);
        }
        rpc.leader_commit = self.network.disk.now().certain(rpc.leader_commit);
        let last = rpc.entries.last().map_or(rpc.prev_log_id, |entry| Some(entry.log_id));
        // Whatever happens to this request, what an earlier one showed says nothing any more.
        self.accepted = None;
        match self.call(&RaftRequest::Append(rpc), &option).await? {
            RaftReply::Append(response) => {
                if matches!(response, AppendResponse::Success | AppendResponse::PartialSuccess(_)) {
                    self.network.lease.accepted(vote, self.target, sent);
                }
                if matches!(response, AppendResponse::Success) {
                    self.accepted = Some(Accepted { vote, last, sent });
                }
                Ok(response)
            }
            _ => Err(self.odd_reply().into()),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest, option: RPCOption) -> Result<VoteResponse, CallError> {
        let (candidate, last) = (rpc.vote, rpc.last_log_id);
        self.network.ear.election(Instant::now());
        match self.call(&RaftRequest::Vote(rpc), &option).await? {
            RaftReply::Vote(response) => {
                self.network.ear.answer(&candidate, last, &response, Instant::now());
                Ok(response)
            }
            _ => Err(self.odd_reply().into()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse, StreamingError<TypeConfig, openraft::error::Fatal<u64>>> {
        // No deadline over the whole: a large snapshot takes what it takes. `send` gives up when the
        // transfer stands still.
        let Some(connection) = self.link.as_ref().and_then(|link| link.connection()) else {
            return Err(unreachable(format!("no connection to namenode {}", self.target)).into());
        };
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = snapshot_transfer::send(&connection, vote, &snapshot) => match sent {
                Ok(response) => Ok(response),
                Err(error) => {
                    warn!(peer = self.target, %error, "sending a snapshot failed");
                    Err(unreachable(error).into())
                }
            },
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(Duration::from_millis(100)))
    }
}

/// Answers the other namenodes.
pub struct RaftServer {
    raft: Raft,
    ear: Ear,
    lease: Lease,
    presences: Presences,
    standing: watch::Receiver<Standing>,
    /// Until then no vote is granted: what this node promised a leader before it was restarted is forgotten.
    silent_until: Instant,
    /// One snapshot is received at a time; its owner may have gone, but its bytes are still on the disk.
    receiving: tokio::sync::Mutex<()>,
}

impl RaftServer {
    pub(super) fn new(
        raft: Raft,
        ear: Ear,
        lease: Lease,
        presences: Presences,
        standing: watch::Receiver<Standing>,
        silent_until: Instant,
    ) -> RaftServer {
        RaftServer { raft, ear, lease, presences, standing, silent_until, receiving: tokio::sync::Mutex::new(()) }
    }

    async fn answer(&self, peer: u64, recv: &mut RecvStream) -> Result<RaftReply, WireError> {
        let request = tokio::time::timeout(REQUEST_DEADLINE, recv.recv_large::<RaftRequest>())
            .await
            .map_err(|_| WireError::new(ErrorKind::Timeout, "the request did not arrive in time"))?
            .map_err(|error| error.to_wire())?;
        let failed = |error: String| WireError::new(ErrorKind::Unavailable, error);
        if !matches!(request, RaftRequest::Presence(..)) && !self.presences.is_recognised() {
            return Err(failed("not recognised by the group yet".into()));
        }
        match request {
            RaftRequest::Presence(told) => {
                let (said, opinion) = *told;
                Ok(RaftReply::Presence(Box::new(self.presences.meet(peer, said, &opinion))))
            }
            RaftRequest::Stand { term } => {
                let followed = {
                    let standing = self.standing.borrow();
                    standing.term == term && standing.leader == Some(peer)
                };
                if !followed || Instant::now() < self.silent_until {
                    return Err(failed("this namenode does not follow you, or has just started".into()));
                }
                info!(term, from = peer, "asked to take over the lead");
                self.raft.trigger().elect().await.map_err(|e| failed(e.to_string()))?;
                Ok(RaftReply::Standing)
            }
            RaftRequest::Append(rpc) => {
                let response = self.raft.append_entries(rpc).await.map_err(|e| failed(e.to_string()))?;
                if !matches!(response, AppendResponse::HigherVote(_)) {
                    self.ear.leader(Instant::now());
                }
                Ok(RaftReply::Append(response))
            }
            RaftRequest::Vote(rpc) => {
                if Instant::now() < self.silent_until {
                    return Err(failed("just started: a leader may still count on this namenode".into()));
                }
                let candidate = rpc.vote;
                let response = self.raft.vote(rpc).await.map_err(|e| failed(e.to_string()))?;
                if response.is_granted_to(&candidate) {
                    self.lease.granted(candidate);
                    self.ear.election(Instant::now());
                }
                Ok(RaftReply::Vote(response))
            }
            RaftRequest::Snapshot(offer) => {
                let _one = self.receiving.try_lock().map_err(|_| failed("already receiving a snapshot".into()))?;
                let (vote, snapshot) = snapshot_transfer::receive(&self.raft, offer, recv).await?;
                let response =
                    self.raft.install_full_snapshot(vote, snapshot).await.map_err(|e| failed(e.to_string()))?;
                Ok(RaftReply::Snapshot(response))
            }
        }
    }
}

impl Handler for RaftServer {
    async fn handle(&self, peer: PeerIdentity, plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let reply = if plane == Plane::Raft && peer.role == Role::Namenode {
            self.answer(peer.id.0, &mut recv).await
        } else {
            Err(WireError::new(ErrorKind::Forbidden, "only namenodes speak here"))
        };
        if let Err(error) = &reply {
            debug!(peer = %peer.id, %error, "raft request failed");
        }
        // A peer that has gone meanwhile asks again.
        let _ = send.send(&reply).await;
        send.finish();
    }
}

#[cfg(test)]
mod tests {
    use openraft::{CommittedLeaderId, EntryPayload};

    use super::*;
    use crate::raft::types::Entry;

    #[test]
    fn only_what_says_nothing_new_is_left_out_and_not_for_long() {
        let id = |index| Some(LogId::new(CommittedLeaderId::new(3, 1), index));
        let (sent, rides) = (Moment::now(), Duration::from_millis(40));
        let accepted = Accepted { vote: Vote::new_committed(3, 1), last: id(7), sent };
        let request = || AppendRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: id(7),
            entries: Vec::new(),
            leader_commit: id(7),
        };
        let soon = sent + Duration::from_millis(39);
        assert!(accepted.covers(&request(), soon, rides));
        assert!(!accepted.covers(&request(), sent + rides, rides));
        assert!(!accepted.covers(&AppendRequest { prev_log_id: id(6), ..request() }, soon, rides));
        assert!(!accepted.covers(&AppendRequest { prev_log_id: id(8), ..request() }, soon, rides));
        assert!(!accepted.covers(&AppendRequest { vote: Vote::new_committed(4, 1), ..request() }, soon, rides));
        let entries = vec![Entry { log_id: id(8).unwrap(), payload: EntryPayload::Blank }];
        assert!(!accepted.covers(&AppendRequest { entries, ..request() }, soon, rides));
    }
}

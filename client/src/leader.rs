//! Calls to the namenode group: finds the leader, and goes on trying while there is none.
//!
//! A namenode that was killed says nothing, and nothing on the network says it either. So a call that is
//! not answered soon looks round: it puts the same request to the other namenodes, which point at the
//! leader or serve it. That is safe because a mutation is done once whoever is asked how often. The
//! first call that finds a new leader takes all others that wait along.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dfs_proto::limits::NAMENODES_MAX;
use dfs_proto::msg::admin::{AdminReply, AdminRequest};
use dfs_proto::msg::group::{GroupReply, GroupRequest, GroupStatus};
use dfs_proto::msg::meta::{MetaReply, MetaRequest};
use dfs_proto::{ErrorKind, NodeId, Plane, Role};
use dfs_rpc::{Connection, Pool, RpcError, Target};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use crate::deadline::Deadline;
use crate::error::Error;

/// One attempt at one namenode, which may be slow and alive.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(3);

/// A leader that has not answered for so long may be dead: the others are asked as well, each for at most
/// `LOOK`, and again after `LOOK_PAUSE` while they know no other leader.
const QUIET: Duration = Duration::from_millis(400);
const LOOK: Duration = Duration::from_millis(400);
const LOOK_PAUSE: Duration = Duration::from_millis(150);

/// Pauses between rounds over the group; each is drawn between half of it and all of it.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a namenode that did not answer is passed over although others still call it the leader:
/// followers believe in a dead leader until the election.
const SUSPICION: Duration = Duration::from_secs(3);

pub(crate) struct Group {
    pool: Pool,
    /// Those of the configuration, and whoever else the namenodes say belongs to the group. Only ever grows, so that
    /// an index means the same namenode for as long as this lives.
    namenodes: RwLock<Members>,
    /// Index of the one that answered last.
    leader: watch::Sender<usize>,
}

#[derive(Default)]
struct Members(Vec<Arc<Namenode>>);

struct Namenode {
    node: NodeId,
    addr: RwLock<SocketAddr>,
    /// It was removed from the group: asked only when nobody else is left to ask.
    gone: AtomicBool,
    /// Since when it has not answered; cleared by an answer.
    silent: Mutex<Option<Instant>>,
}

impl Namenode {
    fn new(node: NodeId, addr: SocketAddr) -> Arc<Namenode> {
        Arc::new(Namenode { node, addr: RwLock::new(addr), gone: AtomicBool::new(false), silent: Mutex::new(None) })
    }

    fn target(&self) -> Target {
        Target { plane: Plane::Meta, role: Role::Namenode, node: self.node, addr: *self.addr.read() }
    }
}

impl Members {
    /// Takes in who belongs to the group, if the one that says so follows a leader.
    fn learn(&mut self, status: &GroupStatus) {
        if status.leader.is_none() || status.members.is_empty() || status.members.len() > NAMENODES_MAX {
            return;
        }
        let namenodes = &mut self.0;
        for namenode in namenodes.iter() {
            let gone = !status.members.iter().any(|member| member.node == namenode.node);
            if gone != namenode.gone.swap(gone, Ordering::Relaxed) {
                debug!(node = %namenode.node, gone, "the group has changed");
            }
        }
        for member in &status.members {
            match namenodes.iter().find(|namenode| namenode.node == member.node) {
                Some(known) => *known.addr.write() = member.addr,
                None => {
                    debug!(node = %member.node, addr = %member.addr, "the group has a new member");
                    namenodes.push(Namenode::new(member.node, member.addr));
                }
            }
        }
    }
}

/// A call that was served.
pub(crate) struct Answered {
    pub reply: MetaReply,
    /// An earlier attempt went out whose fate is not known.
    pub repeated: bool,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct CallError {
    pub error: Error,
    /// An attempt went out whose fate is not known: the request may have been carried out.
    pub unknown: bool,
}

impl From<CallError> for Error {
    fn from(failed: CallError) -> Error {
        failed.error
    }
}

impl Group {
    pub fn new(pool: Pool, namenodes: impl IntoIterator<Item = (NodeId, SocketAddr)>) -> Group {
        let namenodes = namenodes.into_iter().map(|(node, addr)| Namenode::new(node, addr)).collect();
        Group { pool, namenodes: RwLock::new(Members(namenodes)), leader: watch::channel(0).0 }
    }

    pub fn len(&self) -> usize {
        self.namenodes.read().0.len()
    }

    pub fn node(&self, index: usize) -> NodeId {
        self.at(index).node
    }

    fn at(&self, index: usize) -> Arc<Namenode> {
        self.namenodes.read().0[index].clone()
    }

    /// Whether that namenode was removed from the group.
    pub fn is_gone(&self, index: usize) -> bool {
        self.at(index).gone.load(Ordering::Relaxed)
    }

    /// Asks one namenode who belongs to the group, and takes that in.
    pub async fn learn_from(&self, index: usize) {
        let request = MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show));
        if let Ok(MetaReply::Admin(reply)) = self.attempt(index, &request, LOOK).await
            && let AdminReply::Group(GroupReply::Members(status)) = *reply
        {
            self.learn(&status);
        }
    }

    /// As `learn_from`, from whoever leads as far as is known.
    pub async fn learn_from_leader(&self) {
        let leader = *self.leader.borrow();
        self.learn_from(leader).await;
    }

    pub fn learn(&self, status: &GroupStatus) {
        self.namenodes.write().learn(status);
    }

    /// Asks the leader, whoever it is, until the deadline. `attempt` bounds each try.
    pub async fn call(
        &self,
        request: &MetaRequest,
        attempt: Duration,
        deadline: Deadline,
    ) -> Result<MetaReply, CallError> {
        Ok(self.call_noting(request, attempt, deadline).await?.reply)
    }

    /// As `call`, and says whether the request may have been carried out by an earlier attempt.
    pub async fn call_noting(
        &self,
        request: &MetaRequest,
        attempt: Duration,
        deadline: Deadline,
    ) -> Result<Answered, CallError> {
        let mut route = Route::new(self.len(), *self.leader.borrow());
        let mut unknown = false;
        loop {
            let at = route.at();
            let found = tokio::select! {
                biased;
                answer = self.ask(at, request, deadline.cap(attempt)) => Found::Answer(at, answer),
                found = self.look_round(at, request, deadline) => {
                    // The attempt that is given up may yet be carried out.
                    unknown = true;
                    found
                }
            };
            let (at, error) = match found {
                Found::Answer(at, Ok(reply)) => {
                    self.found(at);
                    return Ok(Answered { reply, repeated: unknown });
                }
                Found::Answer(at, Err(error)) => (at, error),
                Found::Leader(index) => {
                    debug!(silent = %self.node(at), next = %self.node(index), "another namenode leads");
                    self.silent(at);
                    route.go(index);
                    continue;
                }
            };
            route.go(at);
            if self.names_a_stranger(&error) {
                self.learn_from(at).await;
            }
            route.count = self.len();
            let turn = match Turn::after(&error, |id| self.index_of(id)) {
                Some(turn) => turn,
                None => return Err(CallError { error: error.into(), unknown }),
            };
            unknown |= may_have_arrived(&error);
            let pause = route.turn(turn, |index| self.is_silent(index));
            debug!(node = %self.node(at), %error, next = %self.node(route.at()), "namenode did not serve the request");
            if deadline.cap(Duration::MAX) <= pause {
                return Err(CallError { error: gave_up(error), unknown });
            }
            if !pause.is_zero() {
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
                // Somebody else may have found the leader meanwhile.
                let leader = *self.leader.borrow();
                if !self.is_silent(leader) && self.is_silent(route.at()) {
                    route.go(leader);
                }
            }
        }
    }

    /// Returns when somebody other than the namenode at `at`, which is being asked, serves the request or
    /// is known to lead. Waits for ever if that does not happen: the attempt has its own deadline.
    async fn look_round(&self, at: usize, request: &MetaRequest, deadline: Deadline) -> Found {
        tokio::select! {
            found = self.ask_others(at, request, deadline) => found,
            leader = self.other_leader(at) => Found::Leader(leader),
        }
    }

    async fn ask_others(&self, at: usize, request: &MetaRequest, deadline: Deadline) -> Found {
        // Who waits for a lock hears nothing for a while, and that is no sign of anything.
        let awaited = match request {
            MetaRequest::AwaitLock { wait_ms, .. } => Duration::from_millis(*wait_ms),
            _ => Duration::ZERO,
        };
        tokio::time::sleep(QUIET + awaited).await;
        loop {
            let count = self.len();
            for index in (1..count).map(|step| (at + step) % count).filter(|index| !self.is_gone(*index)) {
                // Its silence would say little in so short a time, and is not remembered.
                let answer = self.attempt(index, request, deadline.cap(LOOK)).await;
                if let Err(error) = &answer {
                    match Turn::after(error, |id| self.index_of(id)) {
                        Some(Turn::Leader(named)) if named != at => return Found::Leader(named),
                        Some(Turn::Leader(_) | Turn::Elsewhere) => continue,
                        // It leads or is about to, or the request cannot be served.
                        Some(Turn::Later) | None => {}
                    }
                }
                return Found::Answer(index, answer);
            }
            tokio::time::sleep(LOOK_PAUSE.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
    }

    /// A connection to whoever led when it was asked last, and its index.
    pub async fn leader_connection(&self) -> Result<(usize, Connection), RpcError> {
        let leader = *self.leader.borrow();
        let dialled = tokio::time::timeout(ATTEMPT, self.pool.get(&self.at(leader).target())).await;
        Ok((leader, dialled.unwrap_or(Err(RpcError::Timeout(ATTEMPT.as_millis())))?))
    }

    /// Returns when another call has been served by somebody else than the namenode at `at`.
    pub async fn other_leader(&self, at: usize) -> usize {
        let mut leader = self.leader.subscribe();
        loop {
            if leader.changed().await.is_err() {
                // The sender lives in `self`.
                std::future::pending::<()>().await;
            }
            let leader = *leader.borrow_and_update();
            if leader != at {
                return leader;
            }
        }
    }

    fn found(&self, leader: usize) {
        self.leader.send_if_modified(|known| std::mem::replace(known, leader) != leader);
    }

    fn index_of(&self, id: u64) -> Option<usize> {
        self.namenodes.read().0.iter().position(|namenode| namenode.node.0 == id)
    }

    /// Whether a follower points at a leader that is not known here.
    fn names_a_stranger(&self, error: &RpcError) -> bool {
        let RpcError::Refused(error) = error else { return false };
        error.kind == ErrorKind::NotLeader && error.leader.is_some_and(|id| self.index_of(id).is_none())
    }

    /// Asks one namenode once, leader or not.
    pub async fn ask(&self, index: usize, request: &MetaRequest, within: Duration) -> Result<MetaReply, RpcError> {
        let answer = self.attempt(index, request, within).await;
        match &answer {
            Err(RpcError::Timeout(_) | RpcError::Unreachable { .. } | RpcError::Closed(_)) => self.silent(index),
            _ => *self.at(index).silent.lock() = None,
        }
        answer
    }

    async fn attempt(&self, index: usize, request: &MetaRequest, within: Duration) -> Result<MetaReply, RpcError> {
        tokio::time::timeout(within, async {
            let connection = self.pool.get(&self.at(index).target()).await?;
            dfs_rpc::call(&connection, request, within).await
        })
        .await
        .unwrap_or(Err(RpcError::Timeout(within.as_millis())))
    }

    /// Remembers that a namenode did not answer. A connection to a process that is gone would go on
    /// swallowing requests, so the next one dials anew.
    fn silent(&self, index: usize) {
        let namenode = self.at(index);
        self.pool.forget(&namenode.target());
        *namenode.silent.lock() = Some(Instant::now());
    }

    fn is_silent(&self, index: usize) -> bool {
        let namenode = self.at(index);
        let silent = namenode.silent.lock().is_some_and(|since| since.elapsed() < SUSPICION);
        silent || namenode.gone.load(Ordering::Relaxed)
    }
}

/// How an attempt ended.
#[expect(clippy::large_enum_variant, reason = "lives for a moment; a box would cost each request an allocation")]
enum Found {
    /// This namenode answered, or did not in time.
    Answer(usize, Result<MetaReply, RpcError>),
    /// This one leads, rather than the one that was asked.
    Leader(usize),
}

fn may_have_arrived(error: &RpcError) -> bool {
    match error {
        RpcError::Timeout(_) | RpcError::Closed(_) => true,
        // The leader gave up waiting for its own log: the entry may still be committed.
        RpcError::Refused(error) => matches!(error.kind, ErrorKind::Timeout | ErrorKind::Unavailable),
        _ => false,
    }
}

fn gave_up(last: RpcError) -> Error {
    Error::new(ErrorKind::Timeout, format!("no leading namenode answered in time; the last error: {last}"))
        .with_hint("a majority of the namenodes must be up; `dfs status` shows which are")
}

/// What an unsuccessful attempt says about where to go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// It names the leader.
    Leader(usize),
    /// It does not lead, or did not answer.
    Elsewhere,
    /// It leads, or will, but not now.
    Later,
}

impl Turn {
    /// `None`: the answer is final.
    fn after(error: &RpcError, index_of: impl Fn(u64) -> Option<usize>) -> Option<Turn> {
        match error {
            RpcError::Refused(error) => match error.kind {
                ErrorKind::NotLeader => Some(error.leader.and_then(index_of).map_or(Turn::Elsewhere, Turn::Leader)),
                ErrorKind::Unavailable | ErrorKind::Timeout => Some(Turn::Later),
                _ => None,
            },
            RpcError::Unreachable { .. } | RpcError::Timeout(_) | RpcError::Closed(_) => Some(Turn::Elsewhere),
            RpcError::Malformed(_) | RpcError::Tls(_) | RpcError::Io { .. } => None,
        }
    }
}

/// Where one call has been and goes next. Pure.
struct Route {
    count: usize,
    at: usize,
    /// Attempts since the last pause: a full round without one would spin.
    since_pause: usize,
    pause: Duration,
}

impl Route {
    fn new(count: usize, start: usize) -> Route {
        Route { count, at: start % count, since_pause: 0, pause: PAUSE_MIN }
    }

    fn at(&self) -> usize {
        self.at
    }

    fn go(&mut self, index: usize) {
        self.at = index;
    }

    /// Moves on; returns how long to wait first.
    fn turn(&mut self, turn: Turn, silent: impl Fn(usize) -> bool) -> Duration {
        self.since_pause += 1;
        let mut wait = self.since_pause >= self.count;
        match turn {
            Turn::Leader(index) if index != self.at && !silent(index) => self.at = index,
            // Its supposed leader is not answering: an election is on.
            Turn::Leader(_) => {
                self.at = self.next(&silent);
                wait = true;
            }
            Turn::Elsewhere => self.at = self.next(&silent),
            Turn::Later => wait = true,
        }
        if !wait {
            return Duration::ZERO;
        }
        self.since_pause = 0;
        let pause = self.pause;
        self.pause = (pause * 2).min(PAUSE_MAX);
        pause
    }

    /// The next in the ring that is not silent; simply the next if all are.
    fn next(&self, silent: impl Fn(usize) -> bool) -> usize {
        let ring = (1..=self.count).map(|step| (self.at + step) % self.count);
        ring.clone().find(|&index| !silent(index)).unwrap_or((self.at + 1) % self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::WireError;

    fn not_leader(leader: Option<u64>) -> RpcError {
        RpcError::Refused(WireError { leader, ..WireError::new(ErrorKind::NotLeader, "follower") })
    }

    #[test]
    fn a_hint_is_followed_at_once() {
        let mut route = Route::new(3, 0);
        let turn = Turn::after(&not_leader(Some(7)), |id| (id == 7).then_some(2)).unwrap();
        assert_eq!(turn, Turn::Leader(2));
        assert_eq!(route.turn(turn, |_| false), Duration::ZERO);
        assert_eq!(route.at(), 2);
    }

    #[test]
    fn a_hint_to_a_silent_leader_leads_elsewhere_after_a_pause() {
        let mut route = Route::new(3, 0);
        assert_eq!(route.turn(Turn::Elsewhere, |index| index == 0), Duration::ZERO);
        assert_eq!(route.at(), 1);
        assert_eq!(route.turn(Turn::Leader(0), |index| index == 0), PAUSE_MIN);
        assert_eq!(route.at(), 2);
    }

    #[test]
    fn two_followers_that_point_at_each_other_do_not_make_it_spin() {
        let mut route = Route::new(3, 0);
        let waits: Vec<_> = (0..9).map(|step| route.turn(Turn::Leader((step + 1) % 2), |_| false)).collect();
        assert!(waits.chunks(3).all(|round| round.iter().any(|wait| !wait.is_zero())), "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= PAUSE_MAX));
    }

    #[test]
    fn every_namenode_is_tried_when_none_answers() {
        let mut route = Route::new(5, 3);
        let mut seen = std::collections::BTreeSet::from([3]);
        for _ in 0..4 {
            route.turn(Turn::Elsewhere, |_| true);
            seen.insert(route.at());
        }
        assert_eq!(seen.len(), 5);
    }

    #[test]
    fn the_group_is_learnt_and_indexes_stay() {
        use dfs_proto::msg::group::{GroupMember, MemberRole};
        let addr = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let status = |namenodes: &[(u64, u16)]| GroupStatus {
            from: NodeId(1),
            leader: Some(NodeId(1)),
            term: 3,
            members: namenodes
                .iter()
                .map(|(id, port)| GroupMember {
                    node: NodeId(*id),
                    name: format!("nn{id}"),
                    addr: addr(*port),
                    raft_addr: None,
                    role: MemberRole::Voter,
                    reachable: true,
                    matched_index: None,
                })
                .collect(),
            change: None,
            used: Vec::new(),
            checks: Vec::new(),
        };
        let mut members = Members::default();
        members.learn(&status(&[(1, 1), (2, 2)]));
        members.learn(&status(&[(1, 1), (3, 9)]));
        let seen: Vec<_> = members.0.iter().map(|known| (known.node.0, known.gone.load(Ordering::Relaxed))).collect();
        assert_eq!(seen, [(1, false), (2, true), (3, false)]);
        // A namenode that follows nobody may know less.
        members.learn(&GroupStatus { leader: None, ..status(&[(7, 7)]) });
        assert_eq!(members.0.len(), 3);
        members.learn(&status(&[(2, 22)]));
        assert_eq!(*members.0[1].addr.read(), addr(22));
    }

    #[test]
    fn answers_about_the_request_itself_are_final() {
        for kind in [ErrorKind::NotFound, ErrorKind::SessionExpired, ErrorKind::Forbidden, ErrorKind::Internal] {
            assert_eq!(Turn::after(&RpcError::Refused(WireError::new(kind, "no")), |_| None), None);
        }
    }

    #[test]
    fn only_attempts_that_went_out_leave_the_outcome_unknown() {
        assert!(may_have_arrived(&RpcError::Timeout(3000)));
        assert!(may_have_arrived(&RpcError::Closed("reset".into())));
        assert!(!may_have_arrived(&not_leader(None)));
        let addr = "127.0.0.1:1".parse().unwrap();
        assert!(!may_have_arrived(&RpcError::Unreachable { addr, reason: "refused".into() }));
    }
}

//! Handing the lead over to a chosen namenode. `CONSISTENCY.md`, section 11.2, is the argument.
//!
//! openraft 0.9 has no such step. It is made of ones that are safe by themselves: the leader takes no more proposals,
//! waits until the successor has the whole log, sends nothing until everybody's promise to it has run out, and then
//! asks the successor to stand.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dfs_proto::{ErrorKind, WireError};
use tokio::time::Instant;
use tracing::{info, warn};

use super::network::{RaftReply, RaftRequest};
use super::node::{Consensus, Standing};
use super::types::Raft;

/// How long the successor may take to get what it still lacks of the log.
const CATCH_UP: Duration = Duration::from_secs(3);
/// How often conditions are looked at.
const TICK: Duration = Duration::from_millis(10);
/// Added to the promise: clocks tick in milliseconds, and an append may have been on its way.
const MARGIN: Duration = Duration::from_millis(20);
/// For one request to stand; then it is sent again.
const STAND: Duration = Duration::from_millis(200);
/// How long the election may take before the old leader goes on leading.
const ELECTION: Duration = Duration::from_millis(1500);

/// Through it go all appends of this node. Closed while the lead is handed over.
#[derive(Clone, Default)]
pub struct Gate(Arc<GateState>);

#[derive(Default)]
struct GateState {
    closed: AtomicBool,
    under_way: AtomicUsize,
}

/// One append under way.
pub struct Passage(Arc<GateState>);

impl Gate {
    pub fn enter(&self) -> Option<Passage> {
        // Counted first: whoever closes the gate and then sees nobody under way is right.
        self.0.under_way.fetch_add(1, Ordering::SeqCst);
        let passage = Passage(self.0.clone());
        (!self.0.closed.load(Ordering::SeqCst)).then_some(passage)
    }

    /// Until the returned guard is dropped nothing passes.
    fn close(&self) -> Closed {
        self.0.closed.store(true, Ordering::SeqCst);
        Closed(self.0.clone())
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Closed(Arc<GateState>);

impl Closed {
    fn is_quiet(&self) -> bool {
        self.0.under_way.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.closed.store(false, Ordering::SeqCst);
    }
}

/// Who is to lead next: `to`, or the reachable voter with most of the log.
pub fn successor(standing: &Standing, to: Option<u64>, reachable: impl Fn(u64) -> bool) -> Result<u64, WireError> {
    let refuse = |text: String| Err(WireError::new(ErrorKind::InvalidArgument, text));
    let others = |id: &u64| *id != standing.node && standing.voters.iter().all(|set| set.contains(id));
    if let Some(to) = to {
        return match to {
            _ if !standing.members.contains_key(&to) => refuse(format!("namenode {to} is no member of the group")),
            _ if to != standing.node && !others(&to) => refuse(format!("namenode {to} does not vote")),
            _ if to != standing.node && !reachable(to) => refuse(format!("namenode {to} does not answer")),
            _ => Ok(to),
        };
    }
    let candidates = standing.voters.iter().flatten().copied().filter(|id| others(id) && reachable(*id));
    match candidates.max_by_key(|id| (standing.matched.get(id).copied(), std::cmp::Reverse(*id))) {
        Some(best) => Ok(best),
        None => refuse("no other voting namenode answers".into()),
    }
}

/// While it lives, this leader sends no heartbeats of its own accord.
struct Silence(Raft);

impl Silence {
    fn keep(raft: &Raft) -> Silence {
        raft.runtime_config().heartbeat(false);
        Silence(raft.clone())
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        self.0.runtime_config().heartbeat(true);
    }
}

impl Consensus {
    /// Has another namenode elected; returns which one leads then. Everything that was proposed before is done.
    /// Writes wait for about `election_timeout_max` meanwhile.
    ///
    /// # Errors
    /// `NotLeader`; `InvalidArgument` if there is nobody to hand over to; `Unavailable` if it did not succeed, and
    /// then this node goes on leading.
    pub async fn hand_over(&self, to: Option<u64>) -> Result<u64, WireError> {
        let standing = self.standing();
        if !standing.leads() {
            let error = WireError::new(ErrorKind::NotLeader, "this namenode does not lead");
            return Err(WireError { leader: standing.leader, ..error });
        }
        let to = successor(&standing, to, |id| self.reachable(id))?;
        if to == standing.node {
            return Ok(to);
        }
        let failed = |text: &str| {
            warn!(to, text, "the lead was not handed over");
            Err(WireError::new(ErrorKind::Unavailable, text))
        };
        info!(to, term = standing.term, "handing over the lead");
        let started = Instant::now();
        let paused = self.batcher.pause();
        let has_all = |standing: &Standing| {
            let matched = standing.matched.get(&to).copied().unwrap_or(0);
            standing.applied_index == standing.last_log_index && matched == standing.last_log_index
        };
        if !self.comes_true(CATCH_UP, has_all).await {
            return failed("the successor did not catch up in time");
        }
        let closed = self.gate.close();
        // Heartbeats would only be turned away at the gate.
        let silence = Silence::keep(&self.raft);
        let promise_over = Instant::now() + self.promise + MARGIN;
        loop {
            if !self.reachable(to) {
                return failed("the successor has gone");
            }
            if Instant::now() >= promise_over && closed.is_quiet() {
                break;
            }
            tokio::time::sleep(TICK).await;
        }
        let deadline = Instant::now() + ELECTION;
        while Instant::now() < deadline {
            let asked = self.call(to, &RaftRequest::Stand { term: standing.term }, STAND).await;
            if let Err(error) = asked.as_ref().map(|reply| matches!(reply, RaftReply::Standing)) {
                warn!(to, %error, "the successor does not stand");
            }
            if self.comes_true(STAND, |now| now.leader.is_some_and(|leader| leader != now.node)).await {
                drop((closed, paused, silence));
                let leader = self.leader().unwrap_or(to);
                info!(leader, ms = started.elapsed().as_millis() as u64, "the lead was handed over");
                return Ok(leader);
            }
        }
        failed("the successor was not elected")
    }

    /// Waits until the standing satisfies `condition`; whether it did by the deadline.
    pub(super) async fn comes_true(&self, deadline: Duration, condition: impl Fn(&Standing) -> bool) -> bool {
        let mut standing = self.watch();
        let came = tokio::time::timeout(deadline, standing.wait_for(|now| condition(now))).await;
        matches!(came, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Member;
    use std::collections::{BTreeMap, BTreeSet};

    fn standing() -> Standing {
        Standing {
            node: 1,
            leader: Some(1),
            members: (1..=4).map(|id| (id, Member::default())).collect(),
            voters: vec![BTreeSet::from([1, 2, 3])],
            matched: BTreeMap::from([(2, 9), (3, 12), (4, 12)]),
            ..Standing::default()
        }
    }

    #[test]
    fn the_voter_with_most_of_the_log_is_next() {
        assert_eq!(successor(&standing(), None, |_| true), Ok(3));
        assert_eq!(successor(&standing(), None, |id| id != 3), Ok(2));
        assert!(successor(&standing(), None, |_| false).is_err());
        assert_eq!(successor(&standing(), Some(2), |_| true), Ok(2));
    }

    #[test]
    fn a_learner_a_stranger_and_a_dead_node_do_not_lead() {
        for (to, alive) in [(4, true), (9, true), (2, false)] {
            assert!(successor(&standing(), Some(to), |_| alive).is_err(), "{to}");
        }
        // While the membership changes, only who votes in both groups may.
        let joint = Standing { voters: vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 3, 4])], ..standing() };
        assert_eq!(successor(&joint, None, |_| true), Ok(3));
        assert!(successor(&joint, Some(2), |_| true).is_err());
    }

    #[test]
    fn a_closed_gate_lets_nobody_in_and_is_quiet_once_all_are_through() {
        let gate = Gate::default();
        let passage = gate.enter().unwrap();
        let closed = gate.close();
        assert!(gate.enter().is_none() && !closed.is_quiet());
        drop(passage);
        assert!(closed.is_quiet());
        drop(closed);
        assert!(gate.enter().is_some());
    }
}

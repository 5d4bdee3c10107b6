//! The leader's lease: reads without a round to the followers.
//!
//! A follower that has accepted an append of the leader grants no vote for `election_timeout_max` from
//! then on (openraft's own rule, kept over a restart by `RaftServer`). So for a shorter time, counted
//! from when the *request* was sent, a majority of such followers means that nobody else can have been
//! elected, and that whatever was acknowledged so far was acknowledged by this leader, whose state
//! holds it. Source: Ongaro, "Consensus: Bridging Theory and Practice", section 6.4.1.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

use super::types::Vote;

/// A moment of the clock that goes on while the machine is suspended: `Instant` stands still then, and
/// a leader that woke up would believe in a lease that its followers have long seen end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(Duration);

impl Moment {
    pub fn now() -> Moment {
        let time = clock_gettime(ClockId::Boottime);
        Moment(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
    }

    fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// What this node knows of the votes of others. Cheap to clone.
#[derive(Clone)]
pub struct Lease {
    duration: Duration,
    votes: Arc<Mutex<Votes>>,
}

#[derive(Default)]
struct Votes {
    /// The highest vote that was acknowledged to this node as leader, or granted by it to another one.
    highest: Option<Vote>,
    /// When the last request that a peer accepted under `highest` was sent.
    accepted: BTreeMap<u64, Moment>,
}

impl Lease {
    /// `promise` is how long a follower refuses votes. Half of it is used: no two clocks differ by that.
    pub fn new(promise: Duration) -> Lease {
        Lease { duration: promise / 2, votes: Arc::default() }
    }

    /// `peer` has accepted a request of this node, sent at `sent` under `vote`.
    pub fn accepted(&self, vote: Vote, peer: u64, sent: Moment) {
        let mut votes = self.votes.lock();
        if votes.highest.is_some_and(|highest| vote < highest) {
            return;
        }
        if votes.highest != Some(vote) {
            *votes = Votes { highest: Some(vote), accepted: BTreeMap::new() };
        }
        let latest = votes.accepted.entry(peer).or_insert(sent);
        *latest = sent.max(*latest);
    }

    /// This node is about to tell a candidate that it has its vote. A leader may grant one: its own
    /// promise binds only its followers.
    pub fn granted(&self, vote: Vote) {
        let mut votes = self.votes.lock();
        if votes.highest.is_none_or(|highest| highest < vote) {
            *votes = Votes { highest: Some(vote), accepted: BTreeMap::new() };
        }
    }

    /// Whether nobody but node `me`, leading in `term`, can have been elected by `now`. `voters` are the
    /// sets of which each must have a majority: one, or two while the membership changes.
    pub fn holds(&self, me: u64, term: u64, voters: &[BTreeSet<u64>], now: Moment) -> bool {
        let votes = self.votes.lock();
        let Some(vote) = votes.highest else {
            return false;
        };
        if vote.leader_id().term != term || vote.leader_id().node_id != me {
            return false;
        }
        let bound = |node: &u64| {
            *node == me || votes.accepted.get(node).is_some_and(|sent| now.since(*sent) < self.duration)
        };
        !voters.is_empty() && voters.iter().all(|set| set.iter().filter(|node| bound(node)).count() > set.len() / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISE: Duration = Duration::from_millis(1000);

    fn at(ms: u64) -> Moment {
        Moment(Duration::from_millis(10_000 + ms))
    }

    fn vote(term: u64, node: u64) -> Vote {
        Vote::new_committed(term, node)
    }

    fn three() -> Vec<BTreeSet<u64>> {
        vec![BTreeSet::from([1, 2, 3])]
    }

    #[test]
    fn a_majority_that_has_lately_accepted_is_a_lease_and_it_runs_out() {
        let lease = Lease::new(PROMISE);
        assert!(!lease.holds(1, 5, &three(), at(0)));
        lease.accepted(vote(5, 1), 2, at(0));
        assert!(lease.holds(1, 5, &three(), at(499)));
        assert!(!lease.holds(1, 5, &three(), at(500)));
        // Answers may arrive in any order; what counts is when the request was sent.
        lease.accepted(vote(5, 1), 2, at(300));
        lease.accepted(vote(5, 1), 2, at(100));
        assert!(lease.holds(1, 5, &three(), at(799)));
        assert!(!lease.holds(1, 5, &three(), at(800)));
    }

    #[test]
    fn a_leader_that_has_given_its_vote_away_has_no_lease_whatever_its_followers_answer() {
        let lease = Lease::new(PROMISE);
        lease.accepted(vote(5, 1), 2, at(0));
        lease.granted(Vote::new(6, 3));
        assert!(!lease.holds(1, 5, &three(), at(1)));
        lease.accepted(vote(5, 1), 2, at(2));
        assert!(!lease.holds(1, 5, &three(), at(3)));
    }

    #[test]
    fn a_lease_belongs_to_one_term() {
        let lease = Lease::new(PROMISE);
        lease.accepted(vote(5, 1), 2, at(0));
        lease.accepted(vote(7, 1), 3, at(1));
        // What was read into the state for term 5 may lack what a leader of term 6 acknowledged.
        assert!(!lease.holds(1, 5, &three(), at(2)));
        assert!(lease.holds(1, 7, &three(), at(2)));
        lease.accepted(vote(5, 1), 2, at(3));
        assert!(lease.holds(1, 7, &three(), at(4)));
    }

    #[test]
    fn while_the_membership_changes_both_groups_must_be_bound() {
        let lease = Lease::new(PROMISE);
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        lease.accepted(vote(5, 1), 2, at(0));
        assert!(!lease.holds(1, 5, &joint, at(1)));
        lease.accepted(vote(5, 1), 4, at(0));
        assert!(lease.holds(1, 5, &joint, at(1)));
        assert!(!lease.holds(1, 5, &[], at(1)));
    }

    #[test]
    fn the_clock_goes_forward() {
        let (first, second) = (Moment::now(), Moment::now());
        assert!(second >= first && first.0 > Duration::ZERO);
    }
}

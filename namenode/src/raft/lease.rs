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

use dfs_rpc::Moment;
use parking_lot::Mutex;

use super::types::Vote;

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

    /// For how long from `now` on nobody but node `me`, leading in `term`, can have been elected; zero if
    /// somebody may have been already. `voters` are the sets of which each must have a majority: one, or
    /// two while the membership changes.
    pub fn remaining(&self, me: u64, term: u64, voters: &[BTreeSet<u64>], now: Moment) -> Duration {
        let votes = self.votes.lock();
        let leads = |vote: &Vote| vote.leader_id().term == term && vote.leader_id().node_id == me;
        if !votes.highest.as_ref().is_some_and(leads) {
            return Duration::ZERO;
        }
        let bound = |node: &u64| match votes.accepted.get(node) {
            _ if *node == me => self.duration,
            Some(sent) => self.duration.saturating_sub(now.since(*sent)),
            None => Duration::ZERO,
        };
        // The longest time for which more than half of the set is bound.
        let majority = |set: &BTreeSet<u64>| {
            let mut times: Vec<Duration> = set.iter().map(bound).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times.get(set.len() / 2).copied().unwrap_or_default()
        };
        voters.iter().map(majority).min().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMISE: Duration = Duration::from_millis(1000);

    fn at(ms: u64) -> Moment {
        Moment::from_boot(Duration::from_millis(10_000 + ms))
    }

    fn vote(term: u64, node: u64) -> Vote {
        Vote::new_committed(term, node)
    }

    fn holds(lease: &Lease, me: u64, term: u64, voters: &[BTreeSet<u64>], now: Moment) -> bool {
        !lease.remaining(me, term, voters, now).is_zero()
    }

    fn three() -> Vec<BTreeSet<u64>> {
        vec![BTreeSet::from([1, 2, 3])]
    }

    #[test]
    fn a_majority_that_has_lately_accepted_is_a_lease_and_it_runs_out() {
        let lease = Lease::new(PROMISE);
        assert!(!holds(&lease, 1, 5, &three(), at(0)));
        lease.accepted(vote(5, 1), 2, at(0));
        assert!(holds(&lease, 1, 5, &three(), at(499)));
        assert!(!holds(&lease, 1, 5, &three(), at(500)));
        // Answers may arrive in any order; what counts is when the request was sent.
        lease.accepted(vote(5, 1), 2, at(300));
        lease.accepted(vote(5, 1), 2, at(100));
        assert!(holds(&lease, 1, 5, &three(), at(799)));
        assert!(!holds(&lease, 1, 5, &three(), at(800)));
    }

    #[test]
    fn a_leader_that_has_given_its_vote_away_has_no_lease_whatever_its_followers_answer() {
        let lease = Lease::new(PROMISE);
        lease.accepted(vote(5, 1), 2, at(0));
        lease.granted(Vote::new(6, 3));
        assert!(!holds(&lease, 1, 5, &three(), at(1)));
        lease.accepted(vote(5, 1), 2, at(2));
        assert!(!holds(&lease, 1, 5, &three(), at(3)));
    }

    #[test]
    fn a_lease_belongs_to_one_term() {
        let lease = Lease::new(PROMISE);
        lease.accepted(vote(5, 1), 2, at(0));
        lease.accepted(vote(7, 1), 3, at(1));
        // What was read into the state for term 5 may lack what a leader of term 6 acknowledged.
        assert!(!holds(&lease, 1, 5, &three(), at(2)));
        assert!(holds(&lease, 1, 7, &three(), at(2)));
        lease.accepted(vote(5, 1), 2, at(3));
        assert!(holds(&lease, 1, 7, &three(), at(4)));
    }

    #[test]
    fn while_the_membership_changes_both_groups_must_be_bound() {
        let lease = Lease::new(PROMISE);
        let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 4, 5])];
        lease.accepted(vote(5, 1), 2, at(0));
        assert!(!holds(&lease, 1, 5, &joint, at(1)));
        lease.accepted(vote(5, 1), 4, at(0));
        assert!(holds(&lease, 1, 5, &joint, at(1)));
        assert!(!holds(&lease, 1, 5, &[], at(1)));
    }
}

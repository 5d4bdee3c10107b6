//! What namenodes tell each other about themselves, and how one finds out that it is not who it was.
//! `CONSISTENCY.md`, section 11.3, is the argument.
//!
//! Once a second, and more often while it starts, each namenode tells every other one whose disk it has and how far
//! vote and log are certainly on it. The other one remembers the highest of that, and answers with what it remembers.
//! A node that has less than others remember of it has lost what it promised: it stops. Until it has heard enough
//! others a starting node takes part in nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{ErrorKind, NodeId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use super::links::Links;
use super::log_store::{Durable, LogStore};
use super::network::{self, RaftReply, RaftRequest};
use super::types::{LogId, Member, Metrics, Vote};
use crate::fail_stop::FailStop;
use crate::store::hash::{StateHash, odd_one_out};
use crate::store::state::StateStore;

/// Between two rounds; shorter until this node has been recognised.
const PERIOD: Duration = Duration::from_secs(1);
const PERIOD_STARTING: Duration = Duration::from_millis(50);
/// For one exchange.
const DEADLINE: Duration = Duration::from_millis(500);
/// A starting node that a majority has recognised waits so long for the rest: one of them may know more.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What a namenode says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// The number drawn when its data folder was made.
    pub disk: u64,
    /// Where its configuration says that it is reached.
    pub member: Member,
    /// Whether it has ever taken part in a group.
    pub initialized: bool,
    /// The highest vote that is on its disk.
    pub vote: Vote,
    /// Entries up to this one are committed, and on its disk.
    pub floor: Option<LogId>,
    /// The hashes of its state at the last entries where the log asked for one.
    pub checks: Vec<(u64, StateHash)>,
}

/// What others know of a namenode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opinion {
    pub role: Role,
    /// Whether the one that says so has ever taken part in a group.
    pub initialized: bool,
    pub memory: Option<Memory>,
    /// From a leader: under its vote the log up to this index was acknowledged.
    pub acknowledged: Option<(Vote, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    Member,
    /// No member, as far as is known there.
    Stranger,
    /// A member with another disk.
    OtherDisk,
    /// Was a member and is none for ever.
    Retired,
}

/// The highest that a namenode has told of itself. Kept beside the log, lazily.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    disk: u64,
    vote: Vote,
    floor: Option<LogId>,
}

impl Memory {
    /// `None` if it says nothing new.
    fn grown(old: Option<Memory>, said: &Presence) -> Option<Memory> {
        let said = Memory { disk: said.disk, vote: said.vote, floor: said.floor };
        let new = match old {
            Some(old) if old.disk == said.disk => {
                let vote = if said.vote > old.vote { said.vote } else { old.vote };
                Memory { vote, floor: old.floor.max(said.floor), ..old }
            }
            // Another disk under a number that is taken is not believed; the rows say whose the number is.
            Some(old) => old,
            None => said,
        };
        (old != Some(new)).then_some(new)
    }
}

/// Why a namenode must not be who it says it is: nothing has changed on its disk, and it has to be replaced.
pub fn judge(me: &Durable, disk: u64, opinion: &Opinion) -> Result<(), String> {
    match opinion.role {
        Role::Retired => {
            return Err("this namenode was removed from the group; its number is not used again".into());
        }
        Role::OtherDisk => {
            return Err(
                "the group knows this namenode with another disk, which is gone: this one would forget what it \
                        has promised"
                    .into(),
            );
        }
        Role::Member | Role::Stranger => {}
    }
    let less = |what: &str, known: String, have: String| {
        Err(format!(
            "the {what} on this disk is older than what this namenode has promised with it: others remember {known}, \
             here is {have}"
        ))
    };
    let shown = |id: Option<LogId>| id.map_or("nothing".to_owned(), |id| format!("entry {}", id.index));
    if let Some(memory) = opinion.memory {
        if memory.disk != disk {
            return Err("others remember this namenode with another disk, which is gone".into());
        }
        if me.vote.is_none_or(|vote| vote < memory.vote) && memory.vote != Vote::default() {
            let have = me.vote.map_or("none".to_owned(), |vote| format!("{vote}"));
            return less("vote", format!("{}", memory.vote), have);
        }
        if me.last < memory.floor {
            return less("log", shown(memory.floor), shown(me.last));
        }
    }
    // What another leader has truncated since is no loss: only what was acknowledged under the present vote counts.
    if let Some((vote, index)) = opinion.acknowledged
        && me.vote.is_some_and(|mine| mine.leader_id() == vote.leader_id())
        && me.last.is_none_or(|last| last.index < index)
    {
        return less("log", format!("entry {index}"), shown(me.last));
    }
    Ok(())
}

/// Whether a starting node has heard enough.
struct Start<'a> {
    me: u64,
    initialized: bool,
    voters: &'a [BTreeSet<u64>],
    /// Members and configured peers, without this node.
    others: &'a BTreeSet<u64>,
    /// What those that answered said.
    opinions: &'a BTreeMap<u64, Opinion>,
    waited: Duration,
}

impl Start<'_> {
    fn is_over(&self) -> bool {
        let all = self.others.iter().all(|id| self.opinions.contains_key(id));
        if !self.initialized {
            // Empty: either the group calls this node a member, or there is no group anywhere.
            let groups = self.opinions.values().filter(|opinion| opinion.initialized);
            let calls = groups.clone().any(|opinion| opinion.role == Role::Member);
            return calls || (all && groups.count() == 0);
        }
        let heard = |id: &u64| *id == self.me || self.opinions.contains_key(id);
        let majority = |set: &BTreeSet<u64>| set.iter().filter(|id| heard(id)).count() * 2 > set.len();
        // No voters: the membership has not been read from the log yet.
        !self.voters.is_empty() && (all || (self.waited >= PATIENCE && self.voters.iter().all(majority)))
    }
}

/// Who this process is.
#[derive(Clone, Debug)]
pub struct Own {
    pub node: u64,
    pub disk: u64,
    pub member: Member,
}

/// What this node knows of the others and of itself. Cheap to clone.
#[derive(Clone)]
pub struct Presences(Arc<Inner>);

struct Inner {
    own: Own,
    log: LogStore,
    state: Arc<StateStore>,
    metrics: watch::Receiver<Metrics>,
    fail: FailStop,
    /// Set once: this node has been recognised, and takes part.
    recognised: watch::Sender<bool>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Kept on the disk.
    memories: BTreeMap<u64, Memory>,
    /// What each said last, and when.
    said: BTreeMap<u64, (Presence, Instant)>,
    floor: Option<LogId>,
}

impl Presences {
    pub fn new(
        own: Own,
        log: LogStore,
        state: Arc<StateStore>,
        metrics: watch::Receiver<Metrics>,
        fail: FailStop,
    ) -> anyhow::Result<Presences> {
        let memories = log.memories()?;
        let known = Mutex::new(Known { memories, ..Known::default() });
        let recognised = watch::channel(false).0;
        Ok(Presences(Arc::new(Inner { own, log, state, metrics, fail, recognised, known })))
    }

    /// Whether this node takes part in votes and in the log.
    pub fn is_recognised(&self) -> bool {
        *self.0.recognised.borrow()
    }

    /// Returns when it does.
    pub async fn recognised(&self) {
        let mut recognised = self.0.recognised.subscribe();
        if recognised.wait_for(|recognised| *recognised).await.is_err() {
            // The sender lives in `self`.
            std::future::pending::<()>().await;
        }
    }

    /// What another node has said of itself lately.
    pub fn said(&self, node: u64) -> Option<Presence> {
        let known = self.0.known.lock();
        known.said.get(&node).filter(|(_, at)| at.elapsed() < 4 * PERIOD).map(|(said, _)| said.clone())
    }

    pub fn own(&self) -> &Own {
        &self.0.own
    }

    /// This node's presence.
    pub fn tell(&self) -> Presence {
        let inner = &self.0;
        let durable = inner.log.durable();
        let applied = inner.metrics.borrow().last_applied;
        let mut known = inner.known.lock();
        // Applied is committed, but perhaps on the disks of others only.
        if durable.last >= applied {
            known.floor = known.floor.max(applied);
        }
        Presence {
            disk: inner.own.disk,
            member: inner.own.member.clone(),
            initialized: durable.last.is_some() || durable.vote.is_some(),
            vote: durable.vote.unwrap_or_default(),
            floor: known.floor,
            checks: inner.state.checks(),
        }
    }

    /// What this node knows of `peer`.
    pub fn opinion(&self, peer: u64, disk: Option<u64>) -> Opinion {
        let inner = &self.0;
        let metrics = inner.metrics.borrow().clone();
        let ids = inner.state.read(dfs_meta::rows::namenode_ids).unwrap_or_else(|fault| {
            inner.fail.fail(fault.to_string());
            Default::default()
        });
        let row = ids.0.iter().find(|row| row.node == NodeId(peer));
        let member = metrics.membership_config.nodes().any(|(id, _)| *id == peer);
        let role = match row {
            Some(row) if row.retired => Role::Retired,
            Some(row) if disk.is_some_and(|disk| disk != row.disk) => Role::OtherDisk,
            _ if member => Role::Member,
            _ => Role::Stranger,
        };
        let matched = metrics.replication.as_ref().and_then(|all| all.get(&peer).copied().flatten());
        Opinion {
            role,
            initialized: inner.log.durable().last.is_some(),
            memory: inner.known.lock().memories.get(&peer).copied(),
            acknowledged: matched.map(|matched| (metrics.vote, matched.index)),
        }
    }

    /// A peer has told of itself and of what it knows of this node. Remembers the one and judges the other; the answer
    /// is the same the other way round.
    pub fn meet(&self, peer: u64, said: Presence, opinion: &Opinion) -> (Presence, Opinion) {
        let answer = (self.tell(), self.opinion(peer, Some(said.disk)));
        self.take_in(peer, said, opinion);
        answer
    }

    fn take_in(&self, peer: u64, said: Presence, opinion: &Opinion) {
        let inner = &self.0;
        if let Err(reason) = judge(&inner.log.durable(), inner.own.disk, opinion) {
            inner.fail.fail(format!(
                "namenode {peer} says: {reason}. `dfs namenode replace {}` puts another in its place",
                inner.own.member.name
            ));
        }
        let memories = {
            let mut known = inner.known.lock();
            let old = known.memories.get(&peer).copied();
            let grown = Memory::grown(old, &said);
            known.said.insert(peer, (said, Instant::now()));
            grown.map(|grown| {
                known.memories.insert(peer, grown);
                known.memories.clone()
            })
        };
        if let Some(memories) = memories {
            inner.log.remember(&memories);
        }
        self.compare_states();
    }

    /// Stops this node if a majority agrees on another state than the one it has.
    fn compare_states(&self) {
        let inner = &self.0;
        let metrics = inner.metrics.borrow().clone();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let others: Vec<_> = {
            let known = inner.known.lock();
            let voting = known.said.iter().filter(|(id, _)| voters.contains(id) && **id != inner.own.node);
            voting.map(|(_, (said, _))| said.checks.clone()).collect()
        };
        let Some(index) = odd_one_out(&inner.state.checks(), &others, voters.len()) else { return };
        let name = &inner.own.member.name;
        let reason = format!(
            "the state of {name} differs from that of the other namenodes at log entry {index}: it must not serve. \
             `dfs namenode replace {name}` puts another namenode in its place"
        );
        if inner.fail.reason().is_none()
            && let Err(error) = inner.state.condemn(&reason)
        {
            warn!(%error, "it cannot be written down that this state differs");
        }
        inner.fail.fail(reason);
    }

    /// Exchanges presences with everybody, until Raft ends.
    pub async fn run(self, links: Links) {
        let started = Instant::now();
        let mut metrics = self.0.metrics.clone();
        let mut opinions = BTreeMap::new();
        loop {
            let recognised = self.is_recognised();
            let asked = links.nodes().into_iter().filter(|id| recognised || !opinions.contains_key(id));
            let answers = futures::future::join_all(asked.map(|id| self.exchange(&links, id))).await;
            opinions.extend(answers.into_iter().flatten());
            if !recognised && self.0.fail.reason().is_none() && self.start(&links, &opinions, started).is_some() {
                info!(node = self.0.own.node, peers = opinions.len(), "recognised by the group");
                self.0.recognised.send_replace(true);
            }
            if !recognised {
                // What they said may change: whoever knew nobody may have joined a group.
                opinions.retain(|_, opinion| opinion.role == Role::Member);
            }
            tokio::time::sleep(if self.is_recognised() { PERIOD } else { PERIOD_STARTING }).await;
            if metrics.has_changed().is_err() {
                return;
            }
            metrics.mark_unchanged();
        }
    }

    /// Tells everybody once more, before this node stops: they then know exactly what it had.
    pub async fn say_goodbye(&self, links: &Links) {
        futures::future::join_all(links.nodes().into_iter().map(|id| self.exchange(links, id))).await;
    }

    /// `Some` if this node may take part from now on.
    fn start(&self, links: &Links, opinions: &BTreeMap<u64, Opinion>, started: Instant) -> Option<()> {
        let metrics = self.0.metrics.borrow().clone();
        let membership = metrics.membership_config.membership();
        let mut others: BTreeSet<u64> = links.nodes().into_iter().collect();
        others.extend(membership.nodes().map(|(id, _)| *id));
        others.remove(&self.0.own.node);
        let start = Start {
            me: self.0.own.node,
            initialized: self.0.log.durable().last.is_some(),
            voters: membership.get_joint_config(),
            others: &others,
            opinions,
            waited: started.elapsed(),
        };
        start.is_over().then_some(())
    }

    async fn exchange(&self, links: &Links, peer: u64) -> Option<(u64, Opinion)> {
        let disk = self.said(peer).map(|said| said.disk);
        let request = RaftRequest::Presence(Box::new((self.tell(), self.opinion(peer, disk))));
        match network::call(links, peer, &request, DEADLINE).await {
            Ok(RaftReply::Presence(told)) => {
                let (said, opinion) = *told;
                self.take_in(peer, said, &opinion);
                Some((peer, opinion))
            }
            Ok(_) => {
                warn!(peer, "a presence was answered with something else");
                None
            }
            // A program of before does not know the question, and remembers nothing.
            Err(error) if error.kind == ErrorKind::Malformed => {
                let member = Opinion { role: Role::Member, initialized: true, memory: None, acknowledged: None };
                Some((peer, member))
            }
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new(openraft::CommittedLeaderId::new(term, 1), index))
    }

    fn durable(term: u64, index: u64) -> Durable {
        Durable { vote: Some(Vote::new_committed(term, 1)), last: log_id(term, index), ahead: None }
    }

    fn memory(term: u64, index: u64) -> Option<Memory> {
        Some(Memory { disk: 7, vote: Vote::new_committed(term, 1), floor: log_id(term, index) })
    }

    fn opinion(memory: Option<Memory>) -> Opinion {
        Opinion { role: Role::Member, initialized: true, memory, acknowledged: None }
    }

    #[test]
    fn who_has_all_that_others_remember_is_itself() {
        for memory in [None, memory(4, 10), memory(5, 9), memory(5, 10)] {
            assert_eq!(judge(&durable(5, 10), 7, &opinion(memory)), Ok(()));
        }
        // An empty node of which nobody knows anything.
        let empty = Durable::default();
        let nothing = Some(Memory { disk: 7, vote: Vote::default(), floor: None });
        assert_eq!(judge(&empty, 7, &opinion(nothing)), Ok(()));
        assert_eq!(judge(&empty, 7, &Opinion { role: Role::Stranger, ..opinion(None) }), Ok(()));
    }

    #[test]
    fn an_older_copy_of_a_disk_is_found_out_by_its_vote_and_by_its_log() {
        assert!(judge(&durable(5, 10), 7, &opinion(memory(5, 11))).is_err());
        assert!(judge(&durable(5, 10), 7, &opinion(memory(6, 3))).is_err());
        // It voted for another one in the term in which it has now forgotten that.
        let voted = Memory { vote: Vote::new(6, 3), ..memory(5, 10).unwrap() };
        assert!(judge(&durable(5, 10), 7, &opinion(Some(voted))).is_err());
    }

    #[test]
    fn an_empty_disk_under_a_known_number_is_found_out() {
        let empty = Durable::default();
        assert!(judge(&empty, 8, &opinion(memory(5, 10))).is_err());
        assert!(judge(&empty, 7, &opinion(memory(5, 10))).is_err());
        for role in [Role::OtherDisk, Role::Retired] {
            assert!(judge(&empty, 8, &Opinion { role, ..opinion(None) }).is_err());
        }
    }

    #[test]
    fn what_the_present_leader_was_told_counts_and_what_a_deposed_one_was_told_may_be_gone() {
        let acknowledged =
            |term, index| Opinion { acknowledged: Some((Vote::new_committed(term, 1), index)), ..opinion(None) };
        assert!(judge(&durable(5, 10), 7, &acknowledged(5, 11)).is_err());
        assert_eq!(judge(&durable(5, 10), 7, &acknowledged(5, 10)), Ok(()));
        assert_eq!(judge(&durable(6, 10), 7, &acknowledged(5, 11)), Ok(()));
    }

    #[test]
    fn a_memory_only_grows_and_does_not_change_its_disk() {
        let said = |term, index, disk| Presence {
            disk,
            member: Member::default(),
            initialized: true,
            vote: Vote::new_committed(term, 1),
            floor: log_id(term, index),
            checks: Vec::new(),
        };
        let grown = Memory::grown(None, &said(5, 10, 7)).unwrap();
        assert_eq!(Some(grown), memory(5, 10));
        assert_eq!(Memory::grown(Some(grown), &said(5, 9, 7)), None);
        assert_eq!(Memory::grown(Some(grown), &said(9, 99, 8)), None);
        assert_eq!(Memory::grown(Some(grown), &said(6, 11, 7)), memory(6, 11));
    }

    fn start(initialized: bool, heard: &[(u64, Role, bool)], waited: Duration) -> bool {
        let opinions = heard.iter().map(|(id, role, initialized)| {
            (*id, Opinion { role: *role, initialized: *initialized, memory: None, acknowledged: None })
        });
        let voters = [BTreeSet::from([1, 2, 3])];
        let start = Start {
            me: 1,
            initialized,
            voters: if initialized { &voters } else { &[] },
            others: &BTreeSet::from([2, 3]),
            opinions: &opinions.collect(),
            waited,
        };
        start.is_over()
    }

    #[test]
    fn a_member_waits_for_all_others_and_for_a_majority_only_so_long() {
        let (two, three) = ((2, Role::Member, true), (3, Role::Member, true));
        assert!(start(true, &[two, three], Duration::ZERO));
        assert!(!start(true, &[two], Duration::ZERO));
        assert!(start(true, &[two], PATIENCE));
        assert!(!start(true, &[], 100 * PATIENCE));
    }

    #[test]
    fn an_empty_node_begins_with_a_group_that_knows_it_or_where_there_is_none() {
        let hour = Duration::from_secs(3600);
        assert!(start(false, &[(2, Role::Member, true)], Duration::ZERO));
        assert!(start(false, &[(2, Role::Stranger, false), (3, Role::Stranger, false)], Duration::ZERO));
        assert!(!start(false, &[(2, Role::Stranger, false)], hour));
        assert!(!start(false, &[(2, Role::Stranger, true), (3, Role::Stranger, false)], hour));
    }
}

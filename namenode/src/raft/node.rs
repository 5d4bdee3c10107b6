//! `Consensus`: what the rest of the namenode sees of Raft.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use dfs_meta::{Body, Event, Outcome};
use dfs_proto::{ErrorKind, Timestamp, WireError};
use dfs_rpc::Moment;
use openraft::error::{CheckIsLeaderError, ClientWriteError, Fatal, RaftError};
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::barrier::Barrier;
use super::batcher::{Batcher, Kept};
use super::clock::Clock;
use super::elections::{self, Ear, Timeouts};
use super::handover::Gate;
use super::lease::Lease;
use super::links::Links;
use super::log_store::LogStore;
use super::network::{Network, RaftServer};
use super::presence::{Own, Presences};
use super::snapshot::Snapshots;
use super::state_machine::StateMachine;
use super::types::{Member, Metrics, Raft};
use crate::fail_stop::FailStop;
use crate::leader::Watches;
use crate::store::log::LogDb;
use crate::store::state::StateStore;

/// How long a proposal may take. Without a quorum it cannot succeed; whether it is done is then unknown.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a snapshot that was asked for may take.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(60);
/// How often one is asked for again.
const SNAPSHOT_RETRY: Duration = Duration::from_secs(2);
/// How long Raft may take to stop.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// What Raft is told.
#[derive(Clone, Debug)]
pub struct Options {
    pub node: u64,
    /// Only shows in logs.
    pub cluster: String,
    pub heartbeat_interval_ms: u64,
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
    /// Entries applied since the last snapshot before the next one is taken.
    pub snapshot_log_entries: u64,
    /// Entries kept behind a snapshot.
    pub log_keep_entries: u64,
    /// The number of its data folder.
    pub disk: u64,
    /// Where it is reached, as its configuration says.
    pub member: Member,
}

/// Why a proposal or a read was not carried out here.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ProposeError {
    #[error("this namenode does not lead")]
    NotLeader { leader: Option<u64> },
    #[error("{0}")]
    Unavailable(String),
    /// Whether the command is or will be done is unknown.
    #[error("not committed within {} s: a majority of the namenodes cannot be reached", PROPOSE_DEADLINE.as_secs())]
    Timeout,
    /// Unknown as well, and nobody will find out by waiting.
    #[error("another namenode has led meanwhile")]
    Overtaken,
}

impl From<ProposeError> for WireError {
    fn from(error: ProposeError) -> WireError {
        let (kind, leader) = match &error {
            ProposeError::NotLeader { leader } => (ErrorKind::NotLeader, *leader),
            ProposeError::Unavailable(_) => (ErrorKind::Unavailable, None),
            ProposeError::Timeout | ProposeError::Overtaken => (ErrorKind::Timeout, None),
        };
        WireError { leader, ..WireError::new(kind, error.to_string()) }
    }
}

/// Where this node stands in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub node: u64,
    pub term: u64,
    pub leader: Option<u64>,
    pub last_log_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub purged_index: u64,
    pub members: BTreeMap<u64, Member>,
    /// The sets of which a decision needs a majority each: one, or two while the membership changes.
    pub voters: Vec<BTreeSet<u64>>,
    /// Where this node leads: the last log index known to be on each other one.
    pub matched: BTreeMap<u64, u64>,
}

impl Standing {
    pub fn leads(&self) -> bool {
        self.leader == Some(self.node)
    }

    /// A node that has not been recognised neither leads nor follows, whatever it did before it was started; nor does
    /// it know who leads until it has heard a leader: the one that its log names may be gone for good.
    fn of(metrics: &Metrics, recognised: bool, heard: bool) -> Standing {
        let matched = metrics.replication.iter().flatten();
        let leading = metrics.state == ServerState::Leader;
        Standing {
            node: metrics.id,
            term: metrics.current_term,
            // A node that has just lost the lead may still name itself.
            leader: metrics
                .current_leader
                .filter(|leader| recognised && if *leader == metrics.id { leading } else { heard }),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            applied_index: metrics.last_applied.map_or(0, |id| id.index),
            snapshot_index: metrics.snapshot.map_or(0, |id| id.index),
            purged_index: metrics.purged.map_or(0, |id| id.index),
            members: metrics.membership_config.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            voters: metrics.membership_config.membership().get_joint_config().clone(),
            matched: matched.filter_map(|(id, matched)| Some((*id, (*matched)?.index))).collect(),
        }
    }
}

/// This node's part in the group. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    pub(super) raft: Raft,
    pub(super) batcher: Batcher,
    barrier: Barrier,
    lease: Lease,
    clock: Clock,
    pub(super) links: Links,
    pub(super) gate: Gate,
    pub(super) presences: Presences,
    /// How long a follower that has accepted an append votes for nobody else.
    pub(super) promise: Duration,
    standing: watch::Receiver<Standing>,
}

impl Consensus {
    /// Opens the log in `data_dir`, recovers what was applied, and takes part from then on. `events` gets
    /// hints from what is applied. The server answers the other namenodes.
    ///
    /// # Errors
    /// When a store cannot be opened or is damaged: the node must then be rebuilt from its peers.
    pub async fn start(
        options: Options,
        data_dir: &Path,
        state: Arc<StateStore>,
        links: Links,
        events: mpsc::Sender<Event>,
        watches: Arc<Watches>,
        fail: FailStop,
    ) -> anyhow::Result<(Consensus, RaftServer)> {
        let config = config(&options)?;
        let log = LogDb::open(&data_dir.join("log"))?;
        let log = LogStore::open(options.node, log, fail.clone())?;
        let clock = Clock::default();
        let snapshots = Snapshots::open(data_dir)?;
        let disk = log.disk();
        let machine =
            StateMachine::new(state.clone(), disk.clone(), snapshots, clock.clone(), events, watches, fail.clone())?;
        let timeouts = Timeouts {
            heartbeat: Duration::from_millis(options.heartbeat_interval_ms),
            min: Duration::from_millis(options.election_timeout_min_ms),
            max: Duration::from_millis(options.election_timeout_max_ms),
        };
        let ear = Ear::new(timeouts, Instant::now());
        let lease = Lease::new(timeouts.max);
        let gate = Gate::default();
        let rides = Duration::from_millis(options.heartbeat_interval_ms) / 4;
        let network = Network::new(links.clone(), ear.clone(), lease.clone(), gate.clone(), disk, rides);
        let door = network.presences();
        let raft = Raft::new(options.node, Arc::new(config), network, log.clone(), machine)
            .await
            .context("raft cannot start from what is stored")?;
        let own = Own { node: options.node, disk: options.disk, member: options.member.clone() };
        let presences = Presences::new(own, log, state, raft.metrics(), fail.clone())?;
        // Nobody else has a hand on it.
        let _ = door.set(presences.clone());
        // A node that never took part has promised nothing to anybody.
        let promise = if raft.is_initialized().await? { timeouts.max } else { Duration::ZERO };
        let silent_until = Instant::now() + promise;
        let (standing, applied_term) = follow(&raft, &presences, &ear, options.snapshot_log_entries, fail);
        tokio::spawn(take_part(raft.clone(), presences.clone(), silent_until, ear.clone(), standing.clone()));
        tokio::spawn(follow_members(links.clone(), standing.clone()));
        tokio::spawn(presences.clone().run(links.clone()));
        let batcher = Batcher::start(raft.clone(), clock.clone(), applied_term);
        let (unrecognised, pause) = (presences.clone(), batcher.pause());
        tokio::spawn(async move {
            unrecognised.recognised().await;
            drop(pause);
        });
        let consensus = Consensus {
            lease: lease.clone(),
            batcher,
            barrier: Barrier::start(raft.clone()),
            clock,
            links,
            gate,
            presences: presences.clone(),
            promise: timeouts.max,
            standing: standing.clone(),
            raft: raft.clone(),
        };
        Ok((consensus, RaftServer::new(raft, ear, lease, presences, standing, silent_until)))
    }

    /// Stamps the time, replicates, applies, and returns what applying answered. `kept` is dropped when the command
    /// is applied or can no longer be while this node leads in this term, even if that is after the deadline.
    ///
    /// # Errors
    /// `NotLeader` and `Timeout` leave it open whether the command is done: repeat it where it is idempotent.
    pub async fn propose(&self, body: Body, kept: Option<Kept>) -> Result<Outcome, ProposeError> {
        let proposal = self.batcher.propose(body, kept);
        tokio::time::timeout(PROPOSE_DEADLINE, proposal).await.unwrap_or(Err(ProposeError::Timeout))
    }

    /// Returns when this node is known to lead and its state holds everything committed before the call.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        self.barrier.pass().await
    }

    /// For how long from `now` on this node certainly leads in `term`. If its state holds everything that
    /// was committed before that term, it then holds everything acknowledged so far, and a read needs no
    /// round.
    pub fn lease(&self, term: u64, now: Moment) -> Duration {
        let standing = self.standing.borrow();
        self.lease.remaining(standing.node, term, &standing.voters, now)
    }

    /// Who leads, as far as this node knows.
    pub fn leader(&self) -> Option<u64> {
        self.standing.borrow().leader
    }

    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }

    /// Follows the standing as it changes.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// The leader's clock.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Whether another namenode answers.
    pub fn reachable(&self, node: u64) -> bool {
        self.links.reachable(node)
    }

    /// Whether this node has ever taken part in a group.
    pub async fn is_initialized(&self) -> Result<bool, ProposeError> {
        self.raft.is_initialized().await.map_err(|e| ProposeError::Unavailable(e.to_string()))
    }

    /// Forms the group. Once in a cluster's life, on one node.
    ///
    /// # Errors
    /// `Exists` if this node has any Raft state; `InvalidArgument` if it is not among the members.
    pub async fn initialize(&self, members: BTreeMap<u64, Member>) -> Result<(), WireError> {
        self.raft.initialize(members).await.map_err(|error| match error {
            RaftError::APIError(openraft::error::InitializeError::NotAllowed(_)) => {
                WireError::new(ErrorKind::Exists, "this namenode already belongs to a group")
            }
            RaftError::APIError(error) => WireError::new(ErrorKind::InvalidArgument, error.to_string()),
            RaftError::Fatal(error) => WireError::new(ErrorKind::Internal, error.to_string()),
        })
    }

    /// Waits until this node leads; returns whether it does by the deadline.
    pub async fn wait_to_lead(&self, deadline: Duration) -> bool {
        let mut standing = self.standing.clone();
        let elected = tokio::time::timeout(deadline, standing.wait_for(Standing::leads)).await;
        matches!(elected, Ok(Ok(_)))
    }

    /// Takes a snapshot of what is applied now and purges the log behind it.
    pub async fn snapshot(&self) -> Result<(), ProposeError> {
        let failed = |error: Fatal<u64>| ProposeError::Unavailable(error.to_string());
        let applied = self.standing().applied_index;
        let mut standing = self.standing.clone();
        let taken = async {
            loop {
                // Ignored while another one is being taken, which may be of an earlier moment.
                self.raft.trigger().snapshot().await.map_err(failed)?;
                let done = standing.wait_for(|standing| standing.snapshot_index >= applied);
                match tokio::time::timeout(SNAPSHOT_RETRY, done).await {
                    Ok(Ok(_)) => return Ok(()),
                    Ok(Err(_)) => return Err(ProposeError::Unavailable("this namenode is stopping".into())),
                    Err(_) => {}
                }
            }
        };
        tokio::time::timeout(SNAPSHOT_DEADLINE, taken).await.map_err(|_| ProposeError::Timeout)??;
        self.raft.trigger().purge_log(applied).await.map_err(failed)
    }

    /// Stops taking part. Nothing is applied after this returns.
    pub async fn stop(&self) {
        if self.presences.is_recognised() {
            self.presences.say_goodbye(&self.links).await;
        }
        match tokio::time::timeout(STOP_DEADLINE, self.raft.shutdown()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "raft did not stop in order"),
            Err(_) => warn!("raft did not stop in time"),
        }
    }
}

/// openraft lets a node that has just started stand at once. It must not vote for itself either while a
/// leader may still count on a promise that it made before, nor before the others have recognised it.
async fn take_part(
    raft: Raft,
    presences: Presences,
    silent_until: Instant,
    ear: Ear,
    standing: watch::Receiver<Standing>,
) {
    presences.recognised().await;
    tokio::time::sleep_until(silent_until).await;
    raft.runtime_config().elect(true);
    elections::run(raft, ear, standing).await;
}

/// Keeps links to where the membership says that the others are.
async fn follow_members(links: Links, mut standing: watch::Receiver<Standing>) {
    let mut known = BTreeMap::new();
    loop {
        let members = standing.borrow_and_update().members.clone();
        if members != known {
            for (node, member) in &members {
                links.reach(*node, member.raft_addr);
            }
            links.forget_all_but(&members.keys().copied().collect());
            known = members;
        }
        if standing.changed().await.is_err() {
            return;
        }
    }
}

fn config(options: &Options) -> anyhow::Result<Config> {
    let config = Config {
        cluster_name: options.cluster.clone(),
        heartbeat_interval: options.heartbeat_interval_ms,
        election_timeout_min: options.election_timeout_min_ms,
        election_timeout_max: options.election_timeout_max_ms,
        // Until `allow_elections`.
        enable_elect: false,
        // Only reaches us as a hint; a transfer is bounded by its progress instead.
        install_snapshot_timeout: 60_000,
        // A payload is bounded by bytes as well: see `LogStore::limited_get_log_entries`.
        max_payload_entries: 1024,
        // A follower that is so far behind gets a snapshot even if the log would still reach.
        replication_lag_threshold: options.snapshot_log_entries.saturating_mul(10),
        // `follow` triggers them.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: options.log_keep_entries,
        purge_batch_size: 1024.min(options.snapshot_log_entries),
        ..Config::default()
    };
    config.validate().context("raft settings")
}

/// Turns openraft's metrics into our standing and the term of what was applied last, takes a snapshot when enough has been
/// applied, and latches when Raft has died. Ends with Raft.
fn follow(
    raft: &Raft,
    presences: &Presences,
    ear: &Ear,
    snapshot_log_entries: u64,
    fail: FailStop,
) -> (watch::Receiver<Standing>, watch::Receiver<u64>) {
    let mut metrics = raft.metrics();
    let mut any_leader = ear.any_leader();
    let presences = presences.clone();
    let raft = raft.clone();
    let (sender, receiver) = watch::channel(Standing::of(&metrics.borrow().clone(), false, false));
    let (applied, applied_term) = watch::channel(0);
    tokio::spawn(async move {
        // The index that the last trigger was for: metrics come often, and building takes a while.
        let mut triggered = 0;
        loop {
            // Cloned out at once: holding the borrow blocks Raft.
            let current = metrics.borrow_and_update().clone();
            let recognised = presences.is_recognised();
            let heard = *any_leader.borrow_and_update();
            let standing = Standing::of(&current, recognised, heard);
            if let Err(error) = &current.running_state {
                if !matches!(error, Fatal::Stopped) {
                    fail.fail(format!("raft stopped: {error}"));
                }
                sender.send_replace(Standing { leader: None, ..standing });
                return;
            }
            let behind = standing.applied_index.saturating_sub(standing.snapshot_index.max(triggered));
            if behind >= snapshot_log_entries {
                triggered = standing.applied_index;
                info!(applied = standing.applied_index, "taking a snapshot");
                if let Err(error) = raft.trigger().snapshot().await {
                    warn!(%error, "no snapshot was taken");
                }
            }
            let term = current.last_applied.map_or(0, |last| last.leader_id.term);
            applied.send_if_modified(|old| std::mem::replace(old, term) != term);
            sender.send_if_modified(|old| {
                let changed = *old != standing;
                *old = standing;
                changed
            });
            let changed = tokio::select! {
                changed = metrics.changed() => changed,
                () = presences.recognised(), if !recognised => Ok(()),
                changed = any_leader.changed(), if !heard => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    });
    (receiver, applied_term)
}

pub(super) fn write_error(error: RaftError<u64, ClientWriteError<u64, Member>>) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { leader: forward.leader_id }
        }
        other => ProposeError::Unavailable(other.to_string()),
    }
}

pub(super) fn read_error(error: RaftError<u64, CheckIsLeaderError<u64, Member>>) -> ProposeError {
    match error {
        RaftError::APIError(CheckIsLeaderError::ForwardToLeader(forward)) => {
            ProposeError::NotLeader { leader: forward.leader_id }
        }
        other => ProposeError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_that_a_log_names_is_nobody_until_one_is_heard() {
        let mut metrics = Metrics::new_initial(1);
        metrics.state = ServerState::Follower;
        metrics.current_leader = Some(2);
        assert_eq!(Standing::of(&metrics, true, false).leader, None);
        assert_eq!(Standing::of(&metrics, true, true).leader, Some(2));
        assert_eq!(Standing::of(&metrics, false, true).leader, None);
        // One that leads knows it by itself, and one that led before it was started does not lead.
        metrics.current_leader = Some(1);
        assert_eq!(Standing::of(&metrics, true, true).leader, None);
        metrics.state = ServerState::Leader;
        assert_eq!(Standing::of(&metrics, true, false).leader, Some(1));
    }
}

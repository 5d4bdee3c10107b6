//! Changes of the group of namenodes, one at a time. `raft::plan` decides what they consist of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_meta::{Body, rows};
use dfs_proto::{ErrorKind, NodeId, WireError};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::namenode::Namenode;
use crate::raft::{Change, Picture, Steps, plan};

/// How long one request waits for a change; whoever asked asks again then. Below the time that a request may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two comparisons of the states; each is an entry of the log.
const CHECK_PERIOD: Duration = Duration::from_secs(10);

/// The change that runs at this leader, if one does. Soft state: a new leader is asked again.
#[derive(Default)]
pub struct Changes {
    running: Mutex<Option<Running>>,
    /// When this namenode last had the states compared.
    checked: Mutex<Option<Instant>>,
}

#[derive(Clone)]
struct Running {
    change: Change,
    /// Entries that the newcomer lacks.
    lacks: Arc<AtomicU64>,
    outcome: watch::Receiver<Option<Result<(), WireError>>>,
}

impl Running {
    fn words(&self) -> String {
        match self.lacks.load(Ordering::Relaxed) {
            0 => self.change.words(),
            lacks => format!("{}, which lacks {lacks} log entries", self.change.words()),
        }
    }

    fn has_ended(&self) -> bool {
        self.outcome.borrow().is_some() || self.outcome.has_changed().is_err()
    }
}

impl Changes {
    /// Whether it is time to compare the states; then the next time is set.
    fn is_due(&self) -> bool {
        let mut checked = self.checked.lock();
        let due = checked.is_none_or(|at| at.elapsed() >= CHECK_PERIOD);
        if due {
            *checked = Some(Instant::now());
        }
        due
    }

    /// In words, what runs.
    pub fn words(&self) -> Option<String> {
        self.running.lock().as_ref().filter(|running| !running.has_ended()).map(Running::words)
    }
}

/// Starts a change, or joins it if it runs already, and waits for its end.
///
/// # Errors
/// `Unavailable` if it takes longer, or another one runs; what `raft::plan` refuses; what the steps fail with.
pub async fn change(namenode: &Arc<Namenode>, change: Change) -> Result<(), WireError> {
    namenode.leading()?;
    let mut outcome = {
        let mut current = namenode.changes.running.lock();
        match current.as_ref().filter(|running| !running.has_ended()) {
            Some(running) if running.change == change => running.outcome.clone(),
            Some(running) => {
                let text = format!("another change runs: {}", running.words());
                return Err(WireError::new(ErrorKind::InvalidArgument, text));
            }
            None => {
                let running = start(namenode, change);
                current.insert(running).outcome.clone()
            }
        }
    };
    match tokio::time::timeout(PATIENCE, outcome.wait_for(Option::is_some)).await {
        Ok(Ok(done)) => done.clone().unwrap_or(Ok(())),
        Ok(Err(_)) => Err(WireError::new(ErrorKind::Internal, "the change broke off")),
        Err(_) => Err(WireError::new(ErrorKind::Unavailable, "the change runs; ask again")),
    }
}

fn start(namenode: &Arc<Namenode>, change: Change) -> Running {
    let (sender, outcome) = watch::channel(None);
    let running = Running { change: change.clone(), lacks: Arc::default(), outcome };
    let (namenode, lacks) = (namenode.clone(), running.lacks.clone());
    tokio::spawn(async move {
        let done = run(&namenode, &change, &lacks).await;
        match &done {
            Ok(()) => info!(target: "audit", change = change.words(), "the group was changed"),
            Err(error) => warn!(change = change.words(), %error, "the group was not changed"),
        }
        sender.send_replace(Some(done));
    });
    running
}

async fn run(namenode: &Arc<Namenode>, change: &Change, lacks: &AtomicU64) -> Result<(), WireError> {
    namenode.read_barrier().await?;
    let steps = steps(namenode, change)?;
    if steps.hand_over {
        let leader = namenode.consensus.hand_over(None).await?;
        let error = WireError::new(ErrorKind::NotLeader, format!("namenode {leader} leads and does the rest"));
        return Err(WireError { leader: Some(leader), ..error });
    }
    if let Some((id, member)) = steps.learn {
        let said = namenode.consensus.contact(id, &member).await?;
        if said.initialized && !namenode.consensus.standing().members.contains_key(&id) {
            let text = format!("namenode {id} has data of its own: only one with an empty data folder can be added");
            return Err(WireError::new(ErrorKind::InvalidArgument, text));
        }
        namenode.propose(Body::AdmitNamenode { node: NodeId(id), disk: said.disk }).await?;
        namenode.consensus.teach(id, member, |entries| lacks.store(entries, Ordering::Relaxed)).await?;
        lacks.store(0, Ordering::Relaxed);
    }
    if steps.voters.is_some() {
        // Much may have happened while the newcomer caught up.
        if let Some(voters) = self::steps(namenode, change)?.voters {
            namenode.consensus.set_voters(voters).await?;
        }
    }
    if let Some(node) = steps.forget {
        namenode.consensus.forget(node).await?;
    }
    if let Some(node) = steps.retire {
        namenode.propose(Body::RetireNamenode { node: NodeId(node) }).await?;
    }
    namenode.consensus.forget_strangers();
    Ok(())
}

fn steps(namenode: &Arc<Namenode>, change: &Change) -> Result<Steps, WireError> {
    let used = used(namenode)?;
    let standing = namenode.consensus.standing();
    let reachable = |id| namenode.consensus.reachable(id);
    plan(change, &Picture { standing: &standing, used: &used, reachable: &reachable })
}

/// Every number that was ever used, and whether it is used up.
pub fn used(namenode: &Namenode) -> Result<BTreeMap<u64, bool>, WireError> {
    let ids = namenode.read(rows::namenode_ids)?;
    let mut used: BTreeMap<u64, bool> = ids.0.iter().map(|row| (row.node.0, row.retired)).collect();
    for id in namenode.consensus.standing().members.keys() {
        used.entry(*id).or_insert(false);
    }
    Ok(used)
}

/// Has the states compared now and then, unless nothing has been done since.
async fn check_state(namenode: &Arc<Namenode>) -> Result<(), WireError> {
    let last = namenode.state.checks().last().map_or(0, |(index, _)| *index);
    if namenode.consensus.standing().applied_index == last || !namenode.changes.is_due() {
        return Ok(());
    }
    namenode.propose(Body::CheckState).await.map(|_| ())
}

/// What a leader does for the group by itself: ends a change whose leader died between its two halves, notes the
/// disks of members, and writes down where they are now.
pub async fn tend(namenode: &Arc<Namenode>) -> Result<(), WireError> {
    if namenode.leading().is_err() || namenode.changes.words().is_some() {
        return Ok(());
    }
    let standing = namenode.consensus.standing();
    if let [_, .., last] = &standing.voters[..] {
        let last: BTreeSet<u64> = last.clone();
        info!(voters = ?last, "finishing a change of the group");
        return namenode.consensus.set_voters(last).await;
    }
    let ids = namenode.read(rows::namenode_ids)?;
    let unknown: Vec<u64> =
        standing.members.keys().copied().filter(|id| !ids.0.iter().any(|row| row.node == NodeId(*id))).collect();
    if !unknown.is_empty() {
        // A program of before tells nothing of itself, and could not read what is written here.
        let said: BTreeMap<_, _> =
            standing.members.keys().filter_map(|id| Some((*id, namenode.consensus.presence(*id)?.disk))).collect();
        if said.len() < standing.members.len() {
            return Ok(());
        }
        for id in unknown {
            namenode.propose(Body::AdmitNamenode { node: NodeId(id), disk: said[&id] }).await?;
        }
    }
    check_state(namenode).await?;
    for (id, member) in &standing.members {
        let Some(said) = namenode.consensus.presence(*id) else { continue };
        let reachable = !said.member.addr.ip().is_unspecified()
            && said.member.raft_addr.is_some_and(|addr| !addr.ip().is_unspecified());
        if reachable && said.member != *member {
            namenode.consensus.move_member(*id, said.member).await?;
        }
    }
    Ok(())
}

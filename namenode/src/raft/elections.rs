//! A second election timer, beside openraft's own.
//!
//! openraft 0.9 draws a node's election timeout once, when it starts, so two nodes with nearly the same
//! one split the vote again and again. A node that has lost an election because its log was shorter
//! waits two `election_timeout_max` longer each time until it has stood again, however long its log is
//! by then. And two candidates that met in one term, one with the longer log and one with the higher
//! id, refuse each other. When leaders are lost one after the other, that adds up to many seconds. So
//! each node also counts by itself how long it has heard from no leader, with a new draw each time, and
//! stands when it should; unless it knows that its log is the shorter one, because then it would only
//! be in the way.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::node::Standing;
use super::types::{LogId, Raft, Vote, VoteResponse};

/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(20);
/// Pause before standing again after meeting a candidate with a log that is no longer than ours.
const AGAIN: Range<Duration> = Duration::from_millis(50)..Duration::from_millis(250);

/// The bounds of openraft's own timer; `max` is also the lease of a leader that was heard, every `heartbeat` at least.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub heartbeat: Duration,
    pub min: Duration,
    pub max: Duration,
}

/// What this node has heard from the others that bears on standing for election.
#[derive(Clone)]
pub struct Ear {
    heard: Arc<Mutex<Heard>>,
    /// Set once: a leader has been heard since this node was started.
    any: Arc<watch::Sender<bool>>,
}

struct Heard {
    timeouts: Timeouts,
    /// When to stand if nothing is heard until then.
    stand_at: Instant,
    /// A leader that was heard counts on this node until then.
    promised_until: Instant,
    /// Somebody has a longer log than this node, which cannot win.
    behind: bool,
}

impl Ear {
    pub fn new(timeouts: Timeouts, now: Instant) -> Ear {
        let heard = Heard { timeouts, stand_at: now, promised_until: now, behind: false };
        let ear = Ear { heard: Arc::new(Mutex::new(heard)), any: Arc::new(watch::channel(false).0) };
        ear.put_off(now);
        ear
    }

    /// A leader was heard: its lease has to run out first.
    pub fn leader(&self, now: Instant) {
        self.any.send_if_modified(|any| !std::mem::replace(any, true));
        self.put_off(now);
    }

    /// Whether a leader has been heard since this node was started. What its log says of one before that is history.
    pub fn any_leader(&self) -> watch::Receiver<bool> {
        self.any.subscribe()
    }

    fn put_off(&self, now: Instant) {
        let mut heard = self.heard.lock();
        heard.behind = false;
        heard.promised_until = now + heard.timeouts.max;
        // Another one may have heard it up to a heartbeat later, and gives no vote before its own promise is over. The
        // range is many times what a vote takes, so two seldom stand at once. openraft by itself would wait from `min` to
        // `max` once more, drawn once for good.
        heard.stand_at = now + heard.timeouts.max + draw(heard.timeouts.heartbeat..2 * heard.timeouts.heartbeat);
    }

    /// This node stands, or has given its vote away: either may succeed if it gets the time.
    pub fn election(&self, now: Instant) {
        let mut heard = self.heard.lock();
        heard.stand_at = heard.stand_at.max(now + draw(heard.timeouts.min..heard.timeouts.max));
    }

    /// What a voter answered to this node as the candidate `vote` with the log up to `last`.
    pub fn answer(&self, vote: &Vote, last: Option<LogId>, response: &VoteResponse, now: Instant) {
        let mut heard = self.heard.lock();
        if response.last_log_id > last {
            heard.behind = true;
        } else if response.vote > *vote {
            // The answer may be old, and a leader may have been heard since.
            heard.stand_at = heard.stand_at.min(heard.promised_until.max(now + draw(AGAIN)));
        }
    }

    /// Whether it is time to stand; then the next time is set.
    fn is_due(&self, now: Instant) -> bool {
        let due = {
            let heard = self.heard.lock();
            !heard.behind && now >= heard.stand_at
        };
        if due {
            self.election(now);
        }
        due
    }
}

fn draw(range: Range<Duration>) -> Duration {
    rand::rng().random_range(range)
}

/// Runs until Raft ends.
pub async fn run(raft: Raft, ear: Ear, mut standing: watch::Receiver<Standing>) {
    loop {
        tokio::time::sleep(TICK).await;
        if standing.has_changed().is_err() {
            return;
        }
        let (leads, node) = {
            let current = standing.borrow_and_update();
            // Nobody else could lead, and nobody could hear us.
            let alone = current.members.len() <= 1 || !current.members.contains_key(&current.node);
            (current.leads() || alone, current.node)
        };
        if leads {
            ear.put_off(Instant::now());
        } else if ear.is_due(Instant::now()) {
            info!(node, "no leader is heard: this namenode stands");
            if raft.trigger().elect().await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(500);
    const MAX: Duration = Duration::from_millis(1000);
    const HEARTBEAT: Duration = Duration::from_millis(200);
    const TIMEOUTS: Timeouts = Timeouts { heartbeat: HEARTBEAT, min: MIN, max: MAX };

    fn log_id(term: u64, index: u64) -> Option<LogId> {
        Some(LogId::new(openraft::CommittedLeaderId::new(term, 1), index))
    }

    #[test]
    fn a_leaders_lease_runs_out_before_anybody_stands() {
        let start = Instant::now();
        let ear = Ear::new(TIMEOUTS, start);
        assert!(!ear.is_due(start + MAX + HEARTBEAT - TICK));
        ear.leader(start + MAX);
        assert!(!ear.is_due(start + 2 * MAX + HEARTBEAT - TICK));
        assert!(ear.is_due(start + 2 * MAX + 2 * HEARTBEAT));
        assert!(!ear.is_due(start + 2 * MAX + 2 * HEARTBEAT + MIN - TICK));
        assert!(ear.is_due(start + 3 * MAX + 2 * HEARTBEAT));
    }

    #[test]
    fn a_late_answer_to_an_old_candidature_does_not_break_the_promise_to_a_leader() {
        let start = Instant::now();
        let ear = Ear::new(TIMEOUTS, start);
        ear.leader(start + 3 * MAX);
        let theirs = VoteResponse::new(Vote::new(8, 3), log_id(6, 9), false);
        ear.answer(&Vote::new(8, 1), log_id(7, 9), &theirs, start + 3 * MAX);
        assert!(!ear.is_due(start + 4 * MAX - TICK));
        assert!(ear.is_due(start + 4 * MAX + AGAIN.end));
    }

    #[test]
    fn a_node_with_a_shorter_log_stands_back_and_one_that_lost_to_a_shorter_log_does_not() {
        let start = Instant::now();
        let (mine, theirs) = (Vote::new(8, 1), Vote::new(8, 3));
        let ear = Ear::new(TIMEOUTS, start);
        ear.election(start + 3 * MAX);
        ear.answer(&mine, log_id(7, 9), &VoteResponse::new(theirs, log_id(6, 9), false), start + 3 * MAX);
        assert!(ear.is_due(start + 3 * MAX + AGAIN.end));

        ear.answer(&mine, log_id(6, 9), &VoteResponse::new(theirs, log_id(7, 9), false), start + 4 * MAX);
        assert!(!ear.is_due(start + 100 * MAX));
        ear.leader(start + 100 * MAX);
        assert!(ear.is_due(start + 103 * MAX));
    }
}

//! Verifies every sealed replica by a deadline, slowly, one volume beside the other.
//!
//! A replica becomes due half a period after it last matched, and the due ones, oldest first, are spread
//! so that all replicas of a volume would fit into the other half. So each is verified at least once
//! a period, and seldom more than twice. An administrator's wish makes everything due at once that was not verified
//! since; it is kept over restarts.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::ChunkId;
use dfs_proto::limits::CHUNK_MAX;
use dfs_proto::msg::node::{Outcome, ScrubStatus};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span};

use crate::clock;
use crate::node::Node;
use crate::orders::rest;
use crate::store::{StoreError, Verdict};

/// The slowest a replica is read. Faster only if the deadline asks for it.
const BYTES_PER_S_MIN: u64 = 8 << 20;

/// How long to wait at most before looking again what is due.
const LOOK_INTERVAL_S: u64 = 60;

/// How fast a volume is read when somebody waits for it: most of what a disk gives, and service goes on.
const WISHED_BYTES_PER_S: u64 = 128 << 20;

/// A replica that could not be read for a reason that says nothing about it is left alone for so long.
const POSTPONED: Duration = Duration::from_secs(60);

/// How soon a volume that was added is scrubbed too.
const VOLUMES_LOOK: Duration = Duration::from_secs(5);

/// What the scrubber of a volume does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Verify this one, and begin with the next so much later.
    Verify(ChunkId, Duration),
    Rest(Duration),
}

/// Decides the next step from the sealed replicas of a volume and when each last matched (seconds since 1970).
/// What has not matched since `asked_s` is due at once.
fn next_step(replicas: &[(u64, ChunkId)], period_s: u64, asked_s: u64, now_s: u64) -> Step {
    let half = Duration::from_secs(period_s) / 2;
    let look = Duration::from_secs(LOOK_INTERVAL_S).min(half / 4);
    let Some((verified_s, chunk)) = replicas.iter().min() else { return Step::Rest(look) };
    if *verified_s < asked_s {
        return Step::Verify(*chunk, Duration::ZERO);
    }
    // A clock that was set back makes a replica young, not old.
    if Duration::from_secs(now_s.saturating_sub(*verified_s)) < half {
        return Step::Rest(look);
    }
    Step::Verify(*chunk, (half / replicas.len() as u32).min(look))
}

/// Scrubs every volume that is in use, and those that come into use, until `stop`.
pub async fn run_all(node: Arc<Node>, stop: CancellationToken) {
    let mut volumes = JoinSet::new();
    let mut started = BTreeSet::new();
    loop {
        for volume in node.store.usable_volumes() {
            if started.insert(volume) {
                volumes.spawn(run(node.clone(), volume));
            }
        }
        tokio::select! {
            // Dropping the set ends its tasks.
            () = stop.cancelled() => return,
            () = tokio::time::sleep(VOLUMES_LOOK) => {}
        }
    }
}

async fn run(node: Arc<Node>, volume: usize) {
    let mut postponed: HashMap<ChunkId, Instant> = HashMap::new();
    let mut wished = node.scrub.watch();
    loop {
        let asked_s = *wished.borrow_and_update();
        postponed.retain(|_, since| since.elapsed() < POSTPONED);
        let mut replicas = node.store.sealed_on(volume);
        replicas.retain(|(_, chunk)| !postponed.contains_key(chunk));
        let rest = match next_step(&replicas, node.config.scrub_period_s, asked_s, clock::now_s()) {
            Step::Rest(rest) => rest,
            Step::Verify(chunk, pause) => {
                // Fast enough to be done with a full chunk in half of the pause, which is counted from here.
                let rate = match pause.as_millis() as u64 {
                    0 => WISHED_BYTES_PER_S,
                    pause_ms => (2 * u64::from(CHUNK_MAX) * 1000 / pause_ms).max(BYTES_PER_S_MIN),
                };
                let begun = Instant::now();
                if !scrub(&node, chunk, rate).instrument(info_span!("scrub", %chunk, volume)).await {
                    postponed.insert(chunk, Instant::now());
                }
                pause.saturating_sub(begun.elapsed())
            }
        };
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            changed = wished.changed() => if changed.is_err() { return },
        }
    }
}

/// Verifies one replica; whether anything is known of it now.
async fn scrub(node: &Arc<Node>, chunk: ChunkId, bytes_per_s: u64) -> bool {
    match verify(node, chunk, bytes_per_s).await {
        Ok(Verdict::Damaged { epoch, reason }) => node.outcomes.push(Outcome::Bad { chunk, epoch, reason }),
        Ok(Verdict::Whole { .. }) => {}
        Ok(Verdict::Changed) => return false,
        Err(StoreError::Damaged { reason, .. }) => {
            if let Some(replica) = node.store.get(chunk) {
                node.outcomes.push(Outcome::Bad { chunk, epoch: replica.epoch, reason });
            }
        }
        Err(error) => {
            debug!(%error, "cannot scrub");
            return false;
        }
    }
    true
}

/// An administrator's wish that everything be verified now, kept in a file beside the volumes' register.
pub struct Wish {
    path: PathBuf,
    /// Which wish it is, by the leader's count: one that comes twice does not begin again.
    last: tokio::sync::Mutex<u64>,
    /// What has not been verified since then is due. Seconds since 1970 by this node's clock; 0: nobody asked.
    asked_s: watch::Sender<u64>,
    status: Mutex<ScrubStatus>,
}

impl Wish {
    /// What was wished before a restart. A file that cannot be read is none: the wish can be repeated.
    pub fn load(data_dir: &Path) -> Wish {
        let path = data_dir.join("SCRUB");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|word| word.parse().unwrap_or(0));
        let last = numbers.next().unwrap_or(0);
        let asked_s = watch::channel(numbers.next().unwrap_or(0)).0;
        Wish { path, last: last.into(), asked_s, status: Mutex::default() }
    }

    /// Takes a wish over and keeps it.
    ///
    /// # Errors
    /// It holds, but was not written to disk.
    pub async fn ask(&self, wish: u64, now_s: u64) -> io::Result<()> {
        let mut last = self.last.lock().await;
        if *last == wish {
            return Ok(());
        }
        *last = wish;
        // Times of verification are whole seconds: what was verified in this one may have been before the wish.
        let asked_s = now_s + 1;
        self.asked_s.send_replace(asked_s);
        let temporary = self.path.with_extension("new");
        tokio::fs::write(&temporary, format!("{wish} {asked_s}\n")).await?;
        tokio::fs::rename(&temporary, &self.path).await
    }

    fn watch(&self) -> watch::Receiver<u64> {
        self.asked_s.subscribe()
    }

    /// How far it is, as of the last `note`.
    pub fn status(&self) -> ScrubStatus {
        *self.status.lock()
    }

    /// Keeps how far it is. Counting visits every replica, which is too much for each heartbeat to each namenode.
    pub fn note(&self, status: ScrubStatus) {
        *self.status.lock() = status;
    }

    pub fn asked_s(&self) -> u64 {
        *self.asked_s.borrow()
    }
}

/// Reads one replica from the disk and verifies every frame, at a pace.
pub async fn verify(node: &Arc<Node>, chunk: ChunkId, bytes_per_s: u64) -> Result<Verdict, StoreError> {
    let mut verification = node.store.blocking(move |store| store.begin_verification(chunk)).await??;
    loop {
        let (back, more) = node
            .store
            .blocking(move |store| {
                let more = store.step_verification(&mut verification);
                (verification, more)
            })
            .await?;
        verification = back;
        if !more {
            return node.store.blocking(move |store| store.end_verification(verification)).await;
        }
        tokio::time::sleep(rest(1 << 20, bytes_per_s)).await;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_replica_is_verified_within_the_period_and_none_before_half_of_it(
            ages in prop::collection::vec(0u64..1000, 1..40), period_s in 2000u64..100_000,
        ) {
            let start = 1_000_000u64;
            let mut now = Duration::from_secs(start);
            let mut replicas: Vec<_> =
                ages.iter().enumerate().map(|(i, age)| (start - age, ChunkId(i as u64))).collect();
            while now.as_secs() < start + 3 * period_s {
                let rest = match next_step(&replicas, period_s, 0, now.as_secs()) {
                    Step::Rest(rest) => rest,
                    Step::Verify(chunk, rest) => {
                        let entry = &mut replicas[chunk.0 as usize];
                        prop_assert!(now.as_secs() - entry.0 >= period_s / 2);
                        entry.0 = now.as_secs();
                        rest
                    }
                };
                prop_assert!(rest > Duration::ZERO);
                now += rest;
                // What a look and the rounding to seconds may add.
                let slack = LOOK_INTERVAL_S + replicas.len() as u64 + 1;
                prop_assert!(replicas.iter().all(|(at, _)| now.as_secs() - at <= period_s + slack));
            }
        }
    }

    #[test]
    fn what_was_not_verified_since_the_wish_is_due_at_once_oldest_first() {
        let replicas = [(900, ChunkId(1)), (800, ChunkId(2)), (1000, ChunkId(3))];
        assert_eq!(next_step(&replicas, 1 << 20, 1000, 1000), Step::Verify(ChunkId(2), Duration::ZERO));
        assert!(matches!(next_step(&replicas[2..], 1 << 20, 1000, 1000), Step::Rest(_)));
    }

    #[tokio::test]
    async fn a_wish_is_kept_and_its_repetition_does_not_begin_again() {
        let dir = tempfile::tempdir().unwrap();
        let wish = Wish::load(dir.path());
        assert_eq!(*wish.watch().borrow(), 0);
        wish.ask(7, 100).await.unwrap();
        wish.ask(7, 200).await.unwrap();
        assert_eq!(*Wish::load(dir.path()).watch().borrow(), 101);
        wish.ask(8, 200).await.unwrap();
        assert_eq!(*wish.watch().borrow(), 201);
    }

    #[test]
    fn a_clock_that_was_set_back_verifies_nothing_twice() {
        assert!(matches!(next_step(&[(5000, ChunkId(1))], 1000, 0, 10), Step::Rest(_)));
    }
}

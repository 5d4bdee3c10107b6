//! Verifies every sealed replica by a deadline, slowly, one volume beside the other.
//!
//! A replica becomes due half a period after it last matched, and the due ones, oldest first, are spread
//! so that all replicas of a volume would fit into the other half. So each is verified at least once
//! a period, and seldom more than twice.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::ChunkId;
use dfs_proto::limits::CHUNK_MAX;
use dfs_proto::msg::node::Outcome;
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

/// What the scrubber of a volume does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Verify this one, and begin with the next so much later.
    Verify(ChunkId, Duration),
    Rest(Duration),
}

/// Decides the next step from the sealed replicas of a volume and when each last matched (seconds since 1970).
fn next_step(replicas: &[(u64, ChunkId)], period_s: u64, now_s: u64) -> Step {
    let half = Duration::from_secs(period_s) / 2;
    let look = Duration::from_secs(LOOK_INTERVAL_S).min(half / 4);
    let Some((verified_s, chunk)) = replicas.iter().min() else { return Step::Rest(look) };
    // A clock that was set back makes a replica young, not old.
    if Duration::from_secs(now_s.saturating_sub(*verified_s)) < half {
        return Step::Rest(look);
    }
    Step::Verify(*chunk, (half / replicas.len() as u32).min(look))
}

/// Scrubs one volume until `stop`.
pub async fn run(node: Arc<Node>, volume: usize, stop: CancellationToken) {
    let work = async {
        loop {
            let replicas = node.store.sealed_on(volume);
            let rest = match next_step(&replicas, node.config.scrub_period_s, clock::now_s()) {
                Step::Rest(rest) => rest,
                Step::Verify(chunk, pause) => {
                    // Fast enough to be done with a full chunk in half of the pause, which is counted from here.
                    let rate = 2 * u64::from(CHUNK_MAX) * 1000 / (pause.as_millis() as u64).max(1);
                    let begun = Instant::now();
                    let span = info_span!("scrub", %chunk, volume);
                    scrub(&node, chunk, rate.max(BYTES_PER_S_MIN)).instrument(span).await;
                    pause.saturating_sub(begun.elapsed())
                }
            };
            tokio::time::sleep(rest).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn scrub(node: &Arc<Node>, chunk: ChunkId, bytes_per_s: u64) {
    match verify(node, chunk, bytes_per_s).await {
        Ok(Verdict::Damaged { epoch, reason }) => node.outcomes.push(Outcome::Bad { chunk, epoch, reason }),
        Ok(verdict) => debug!(?verdict, "scrubbed"),
        Err(StoreError::Damaged { reason, .. }) => {
            if let Some(replica) = node.store.get(chunk) {
                node.outcomes.push(Outcome::Bad { chunk, epoch: replica.epoch, reason });
            }
        }
        Err(error) => debug!(%error, "cannot scrub"),
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
                let rest = match next_step(&replicas, period_s, now.as_secs()) {
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
    fn a_clock_that_was_set_back_verifies_nothing_twice() {
        assert!(matches!(next_step(&[(5000, ChunkId(1))], 1000, 10), Step::Rest(_)));
    }
}

//! What has to be done again and again: syncing what nobody asked to sync, looking how much room there
//! is, emptying the trash.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::clock;
use crate::node::Node;

/// Keeps written bytes from staying unsynced for longer than the interval and one sync.
pub async fn sync_lazily(node: Arc<Node>, stop: CancellationToken) {
    let mut rounds = Rounds::every(node.config.sync_interval_ms, stop);
    while rounds.next().await {
        if let Err(error) = node.store.blocking(|store| store.sync_all_open()).await {
            warn!(%error, "cannot sync open chunks");
        }
    }
}

/// Keeps the numbers in heartbeats fresh and the trash within its time.
pub async fn maintain_volumes(node: Arc<Node>, stop: CancellationToken) {
    let mut rounds = Rounds::every(node.config.heartbeat_interval_ms, stop);
    while rounds.next().await {
        let trash_before_s = clock::now_s().saturating_sub(node.config.trash_delay_s);
        let (period_s, asked_s) = (node.config.scrub_period_s, node.scrub.asked_s());
        let maintained = node.store.blocking(move |store| {
            store.maintain(trash_before_s);
            store.scrub_status(period_s, asked_s)
        });
        match maintained.await {
            Ok(status) => node.scrub.note(status),
            Err(error) => warn!(%error, "cannot maintain volumes"),
        }
    }
}

struct Rounds {
    ticks: Interval,
    stop: CancellationToken,
}

impl Rounds {
    fn every(interval_ms: u64, stop: CancellationToken) -> Rounds {
        let mut ticks = tokio::time::interval(Duration::from_millis(interval_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Rounds { ticks, stop }
    }

    /// Waits for the next round; `false` once everything stops.
    async fn next(&mut self) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            _ = self.ticks.tick() => true,
        }
    }
}

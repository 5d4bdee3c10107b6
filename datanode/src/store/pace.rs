//! How long syncs take on this node, for the leader to compare with other nodes.

use std::collections::VecDeque;
use std::time::Duration;

use dfs_proto::msg::node::Pace;
use parking_lot::Mutex;
use tokio::time::Instant;

/// What is older says nothing about how the node is now.
const WINDOW: Duration = Duration::from_secs(10);
/// Syncs kept: more change a decile no longer.
const KEPT: usize = 512;

/// The syncs of the last ten seconds. A lock that is held for a few instructions.
#[derive(Default)]
pub struct PaceMeter(Mutex<VecDeque<(Instant, Duration)>>);

impl PaceMeter {
    /// Notes a sync that took `took` and ended at `ended`.
    pub fn note(&self, took: Duration, ended: Instant) {
        let mut syncs = self.0.lock();
        if syncs.len() == KEPT {
            syncs.pop_front();
        }
        syncs.push_back((ended, took));
    }

    pub fn pace(&self, now: Instant) -> Pace {
        let mut times: Vec<Duration> = {
            let mut syncs = self.0.lock();
            while syncs.front().is_some_and(|(ended, _)| now.saturating_duration_since(*ended) > WINDOW) {
                syncs.pop_front();
            }
            syncs.iter().map(|(_, took)| *took).collect()
        };
        times.sort_unstable();
        // The one that nine of ten do not exceed.
        let decile = times.get((times.len() * 9).div_ceil(10).saturating_sub(1));
        Pace { syncs: times.len() as u32, sync_ms: decile.map_or(0, |took| took.as_millis() as u32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_of_ten_syncs_are_within_the_pace_and_old_ones_are_forgotten() {
        let meter = PaceMeter::default();
        let start = Instant::now();
        assert_eq!(meter.pace(start), Pace::default());
        meter.note(Duration::from_millis(900), start);
        assert_eq!(meter.pace(start), Pace { syncs: 1, sync_ms: 900 });
        let later = start + Duration::from_secs(5);
        (1..=19).for_each(|ms| meter.note(Duration::from_millis(ms), later));
        assert_eq!(meter.pace(later), Pace { syncs: 20, sync_ms: 18 });
        assert_eq!(meter.pace(start + WINDOW + Duration::from_secs(1)), Pace { syncs: 19, sync_ms: 18 });
        assert_eq!(meter.pace(later + WINDOW + Duration::from_secs(1)), Pace::default());
        (0..2 * KEPT).for_each(|_| meter.note(Duration::from_millis(1), later));
        assert_eq!(meter.pace(later).syncs as usize, KEPT);
    }
}

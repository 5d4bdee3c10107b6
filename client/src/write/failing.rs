//! How long to wait before another chunk is begun, when one after the other has failed before it took anything: nodes
//! that have just started refuse each at once, and each costs a number and two commands.

use std::time::Duration;

use tokio::time::Instant;

/// After the first; then twice as long each time.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// What failed longer ago says nothing any more.
const FORGOTTEN: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Failing {
    in_a_row: u32,
    last: Option<Instant>,
}

impl Failing {
    /// A chunk has ended. `took`: something was stored in it, or nothing was asked of it.
    pub fn ended(&mut self, took: bool, now: Instant) {
        if took {
            *self = Failing::default();
        } else {
            let before = if self.is_recent(now) { self.in_a_row } else { 0 };
            *self = Failing { in_a_row: before + 1, last: Some(now) };
        }
    }

    pub fn pause(&self, now: Instant) -> Duration {
        if !self.is_recent(now) {
            return Duration::ZERO;
        }
        let doublings = self.in_a_row.saturating_sub(1).min(16);
        (PAUSE_MIN * 2u32.pow(doublings)).min(PAUSE_MAX)
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) < FORGOTTEN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_chunk_waits_longer_after_each_that_took_nothing() {
        let (mut failing, now) = (Failing::default(), Instant::now());
        assert_eq!(failing.pause(now), Duration::ZERO);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            failing.ended(false, now);
            pauses.push(failing.pause(now).as_millis());
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 500, 500]);
        assert_eq!(failing.pause(now + FORGOTTEN), Duration::ZERO, "that was long ago");
        failing.ended(false, now + FORGOTTEN);
        assert_eq!(failing.pause(now + FORGOTTEN), PAUSE_MIN);
        failing.ended(true, now + FORGOTTEN);
        assert_eq!(failing.pause(now + FORGOTTEN), Duration::ZERO);
    }
}

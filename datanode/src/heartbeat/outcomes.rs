use std::collections::VecDeque;

use dfs_proto::msg::node::Outcome;
use parking_lot::Mutex;
use tracing::warn;

/// Outcomes that wait for a leader to hear of them. When there are more, the oldest are dropped:
/// digests and repeated orders bring up again what they said.
const PENDING_MAX: usize = 4096;

/// Outcomes in one heartbeat: with reasons of ordinary length far below `limits::CONTROL_FRAME_MAX`.
const CARRIED_MAX: usize = 512;

/// A reason is cut to this many bytes, so that a heartbeat's size is bounded.
const REASON_MAX: usize = 256;

/// What became of orders, and what was found damaged, until a leader has heard of it.
#[derive(Default)]
pub struct Outcomes {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    pending: VecDeque<(u64, Outcome)>,
    last: u64,
}

impl Outcomes {
    /// Adds an outcome, unless the same one is waiting.
    pub fn push(&self, mut outcome: Outcome) {
        if let Outcome::CopyFailed { reason, .. } | Outcome::GatherFailed { reason, .. } | Outcome::Bad { reason, .. } =
            &mut outcome
        {
            let end = (0..=REASON_MAX.min(reason.len())).rev().find(|end| reason.is_char_boundary(*end));
            reason.truncate(end.unwrap_or(0));
        }
        let mut queue = self.queue.lock();
        if queue.pending.iter().any(|(_, waiting)| *waiting == outcome) {
            return;
        }
        if queue.pending.len() == PENDING_MAX {
            warn!("too many outcomes wait for a leader, the oldest is dropped");
            queue.pending.pop_front();
        }
        queue.last += 1;
        let number = queue.last;
        queue.pending.push_back((number, outcome));
    }

    /// The outcomes for the next heartbeat, and the number of the last of them.
    pub fn pending(&self) -> (Vec<Outcome>, u64) {
        let queue = self.queue.lock();
        let carried: Vec<_> = queue.pending.iter().take(CARRIED_MAX).cloned().collect();
        let last = carried.last().map_or(0, |(number, _)| *number);
        (carried.into_iter().map(|(_, outcome)| outcome).collect(), last)
    }

    /// A leader has taken in the outcomes up to this number.
    pub fn acknowledged(&self, number: u64) {
        let mut queue = self.queue.lock();
        while queue.pending.front().is_some_and(|(waiting, _)| *waiting <= number) {
            queue.pending.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::{ChunkId, Epoch};

    use super::*;

    fn deleted(chunk: u64) -> Outcome {
        Outcome::Deleted { chunk: ChunkId(chunk), epoch: Epoch(1) }
    }

    #[test]
    fn an_outcome_stays_until_the_heartbeat_that_carried_it_is_acknowledged() {
        let outcomes = Outcomes::default();
        outcomes.push(deleted(1));
        let (carried, number) = outcomes.pending();
        assert_eq!(carried, [deleted(1)]);
        outcomes.push(deleted(2));
        outcomes.push(deleted(2));
        outcomes.acknowledged(number);
        assert_eq!(outcomes.pending().0, [deleted(2)]);
        assert_eq!(outcomes.pending().0, [deleted(2)]);
    }

    #[test]
    fn neither_the_queue_nor_a_reason_grows_without_bound() {
        let outcomes = Outcomes::default();
        (0..PENDING_MAX as u64 + 10).for_each(|chunk| outcomes.push(deleted(chunk)));
        assert_eq!(outcomes.pending().0[0], deleted(10));
        assert_eq!(outcomes.pending().0.len(), CARRIED_MAX);
        let outcomes = Outcomes::default();
        let (chunk, epoch, reason) = (ChunkId(1), Epoch(1), "ä".repeat(1000));
        outcomes.push(Outcome::Bad { chunk, epoch, reason: reason.clone() });
        outcomes.push(Outcome::GatherFailed { chunk, epoch, reason });
        let (waiting, _) = outcomes.pending();
        assert_eq!(waiting.len(), 2);
        for outcome in waiting {
            let (Outcome::Bad { reason, .. } | Outcome::GatherFailed { reason, .. }) = outcome else {
                panic!("another outcome")
            };
            assert!(reason.len() <= REASON_MAX);
        }
    }
}

//! Which datanodes are slower than their like. Soft state, from the heartbeats.
//!
//! A disk that is about to fail, or a machine that somebody else keeps busy, often does not fail: every sync on it takes
//! a hundred times longer, and with it every chain and every `fsync` that it is part of. What is slow depends on the
//! hardware, so a node is compared with the others at the same time: where all are slow nobody is.

use std::collections::HashMap;
use std::time::Duration;

use dfs_proto::NodeId;
use dfs_proto::msg::node::Pace;
use tokio::time::Instant;

/// Syncs of the last ten seconds below which nothing is concluded.
const SYNCS_MIN: u32 = 8;
/// Other nodes that must have synced as often: two, so that a single fast one does not make all others slow.
const OTHERS_MIN: usize = 2;
/// A sync within this is quick enough, however quick the others are, in milliseconds.
const QUICK_MS: u32 = 100;
/// How many times longer than the median of the others.
const FACTOR: u32 = 8;
/// A slow node gets nothing to sync, and so cannot show that it has recovered: it is tried again after this.
const PROBATION: Duration = Duration::from_secs(60);

/// The nodes found slow, and until when they count as such.
#[derive(Default)]
pub struct Laggards(HashMap<NodeId, Instant>);

impl Laggards {
    /// Takes in the pace of one node. `others` are those of the other nodes that were heard lately. Returns whether the
    /// node was found slow just now.
    pub fn take_in(&mut self, node: NodeId, pace: Pace, others: impl Iterator<Item = Pace>, now: Instant) -> bool {
        if !lags(pace, others) {
            return false;
        }
        let before = self.0.insert(node, now + PROBATION);
        before.is_none_or(|until| until <= now)
    }

    pub fn is_slow(&self, node: NodeId, now: Instant) -> bool {
        self.0.get(&node).is_some_and(|until| now < *until)
    }

    pub fn forget(&mut self, node: NodeId) {
        self.0.remove(&node);
    }
}

fn lags(pace: Pace, others: impl Iterator<Item = Pace>) -> bool {
    let enough = |pace: &Pace| pace.syncs >= SYNCS_MIN;
    let mut others: Vec<u32> = others.filter(enough).map(|pace| pace.sync_ms).collect();
    if !enough(&pace) || others.len() < OTHERS_MIN {
        return false;
    }
    others.sort_unstable();
    let median = others[others.len() / 2];
    pace.sync_ms >= QUICK_MS.max(median.saturating_mul(FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(sync_ms: u32) -> Pace {
        Pace { syncs: 20, sync_ms }
    }

    #[test]
    fn a_node_is_slow_only_beside_others_that_are_not() {
        assert!(lags(pace(300), [pace(3), pace(5), pace(4)].into_iter()));
        assert!(!lags(pace(90), [pace(1), pace(1)].into_iter()), "quick enough");
        assert!(!lags(pace(300), [pace(150), pace(200)].into_iter()), "everybody is slow");
        assert!(lags(pace(300), [pace(3), pace(310), pace(4)].into_iter()), "another slow one excuses nobody");
        assert!(!lags(pace(300), [pace(3)].into_iter()), "too few to compare with");
        let idle = Pace { syncs: 1, sync_ms: 1 };
        assert!(!lags(pace(300), [pace(3), idle].into_iter()), "what hardly syncs is no measure");
        assert!(!lags(Pace { syncs: 2, sync_ms: 300 }, [pace(3), pace(3)].into_iter()), "two syncs are no pattern");
    }

    #[test]
    fn a_slow_node_gets_another_chance() {
        let mut laggards = Laggards::default();
        let (node, start) = (NodeId(7), Instant::now());
        let others = || [pace(1), pace(2)].into_iter();
        assert!(laggards.take_in(node, pace(300), others(), start));
        assert!(!laggards.take_in(node, pace(300), others(), start), "told once");
        // Without work it shows nothing, and that is no recovery yet.
        assert!(!laggards.take_in(node, Pace::default(), others(), start));
        assert!(laggards.is_slow(node, start + PROBATION / 2));
        assert!(!laggards.is_slow(node, start + PROBATION));
        assert!(laggards.take_in(node, pace(300), others(), start + PROBATION));
    }
}

//! What this client has seen of the datanodes lately: who is busy, who has just failed, how long reads take.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use dfs_proto::NodeId;
use dfs_proto::msg::meta::ReplicaAt;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a node that failed is used only if there is no other, or until it has served again. By then the namenode
/// knows too.
const SUSPICION: Duration = Duration::from_secs(30);

/// Reads that are remembered, of all nodes together: enough for a twentieth of them to mean something.
const READS_KEPT: usize = 100;
/// Below so many nothing is known of what is usual.
const READS_MIN: usize = 20;

/// A second node is asked when a read takes twice as long as nineteen of twenty do; but never as soon as a slight delay of
/// the scheduler, and always when somebody begins to notice. After Dean and Barroso, "The Tail at Scale", 2013.
const HEDGE_MIN: Duration = Duration::from_millis(20);
const HEDGE_MAX: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Nodes {
    /// Bounded by the number of nodes there are.
    seen: Mutex<HashMap<NodeId, Seen>>,
    /// How long the last reads took.
    reads: Mutex<VecDeque<Duration>>,
}

#[derive(Default)]
struct Seen {
    reading: u32,
    failed: Option<Instant>,
    /// Reads started ever: spreads reads over nodes that are equally busy.
    reads: u64,
}

impl Seen {
    fn is_suspect(&self) -> bool {
        self.failed.is_some_and(|at| at.elapsed() < SUSPICION)
    }
}

impl Nodes {
    pub fn suspect(&self, node: NodeId) {
        self.seen.lock().entry(node).or_default().failed = Some(Instant::now());
    }

    pub fn trust(&self, node: NodeId) {
        if let Some(seen) = self.seen.lock().get_mut(&node) {
            seen.failed = None;
        }
    }

    pub fn is_suspect(&self, node: NodeId) -> bool {
        self.seen.lock().get(&node).is_some_and(Seen::is_suspect)
    }

    /// The one that failed last comes first: it is the least likely to be back.
    pub fn suspects(&self) -> Vec<NodeId> {
        let seen = self.seen.lock();
        let mut suspects: Vec<_> = seen.iter().filter(|(_, seen)| seen.is_suspect()).collect();
        suspects.sort_unstable_by_key(|&(node, seen)| (Reverse(seen.failed), *node));
        suspects.into_iter().map(|(&node, _)| node).collect()
    }

    /// Notes how long a read took that succeeded.
    pub fn read_took(&self, took: Duration) {
        let mut reads = self.reads.lock();
        if reads.len() == READS_KEPT {
            reads.pop_front();
        }
        reads.push_back(took);
    }

    /// How long a read may take before another node is asked as well.
    pub fn patience(&self) -> Duration {
        let mut times: Vec<Duration> = self.reads.lock().iter().copied().collect();
        if times.len() < READS_MIN {
            return HEDGE_MAX;
        }
        let at = times.len() * 19 / 20;
        let (_, slowest_usual, _) = times.select_nth_unstable(at);
        (2 * *slowest_usual).clamp(HEDGE_MIN, HEDGE_MAX)
    }

    /// Replicas in the order in which to ask them: not those that just failed, rather this host's, the
    /// least busy, the least used.
    pub fn order(&self, replicas: &[ReplicaAt]) -> Vec<ReplicaAt> {
        let seen = self.seen.lock();
        let mut order = replicas.to_vec();
        order.sort_by_key(|replica| {
            let far = !replica.addr.ip().is_loopback();
            match seen.get(&replica.node) {
                Some(node) => (node.is_suspect(), far, node.reading, node.reads),
                None => (false, far, 0, 0),
            }
        });
        order
    }

    /// Counts a read for as long as the guard lives.
    pub fn reading(&self, node: NodeId) -> Reading<'_> {
        let mut seen = self.seen.lock();
        let entry = seen.entry(node).or_default();
        entry.reading += 1;
        entry.reads += 1;
        Reading { nodes: self, node }
    }
}

pub(crate) struct Reading<'a> {
    nodes: &'a Nodes,
    node: NodeId,
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(seen) = self.nodes.seen.lock().get_mut(&self.node) {
            seen.reading -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(node: u64) -> ReplicaAt {
        ReplicaAt { node: NodeId(node), addr: "127.0.0.1:1".parse().unwrap() }
    }

    #[test]
    fn company_comes_after_twice_what_reads_usually_take() {
        let nodes = Nodes::default();
        let ms = Duration::from_millis;
        (1..READS_MIN).for_each(|_| nodes.read_took(ms(1)));
        assert_eq!(nodes.patience(), HEDGE_MAX, "too few to know");
        nodes.read_took(ms(1));
        assert_eq!(nodes.patience(), HEDGE_MIN);
        (0..READS_KEPT).for_each(|_| nodes.read_took(ms(40)));
        assert_eq!(nodes.patience(), ms(80), "those before are forgotten");
        (0..4).for_each(|_| nodes.read_took(ms(300)));
        assert_eq!(nodes.patience(), ms(80), "four in a hundred are no rule");
        (0..4).for_each(|_| nodes.read_took(ms(400)));
        assert_eq!(nodes.patience(), HEDGE_MAX);
    }

    #[tokio::test]
    async fn a_node_that_failed_is_asked_last_and_load_is_spread() {
        let nodes = Nodes::default();
        let replicas = [at(1), at(2), at(3)];
        nodes.suspect(NodeId(1));
        assert_eq!(nodes.order(&replicas)[2], at(1));
        let busy = nodes.reading(NodeId(2));
        assert_eq!(nodes.order(&replicas), [at(3), at(2), at(1)]);
        drop(busy);
        assert_eq!(nodes.order(&replicas)[0], at(3), "the one that has served less");
        nodes.suspect(NodeId(3));
        assert_eq!(nodes.suspects(), [NodeId(3), NodeId(1)]);
        nodes.trust(NodeId(1));
        assert_eq!(nodes.order(&replicas)[0], at(1));
        nodes.trust(NodeId(3));
        assert!(nodes.suspects().is_empty());
    }
}

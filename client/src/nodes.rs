//! What this client has seen of the datanodes lately: who is busy, who has just failed.

use std::collections::HashMap;
use std::time::Duration;

use dfs_proto::NodeId;
use dfs_proto::msg::meta::ReplicaAt;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a node that failed is used only if there is no other. By then the namenode knows too.
const SUSPICION: Duration = Duration::from_secs(30);

#[derive(Default)]
pub(crate) struct Nodes {
    /// Bounded by the number of nodes there are.
    seen: Mutex<HashMap<NodeId, Seen>>,
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

    pub fn suspects(&self) -> Vec<NodeId> {
        let mut suspects: Vec<_> =
            self.seen.lock().iter().filter(|(_, seen)| seen.is_suspect()).map(|(&node, _)| node).collect();
        suspects.sort_unstable();
        suspects
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
        nodes.trust(NodeId(1));
        assert_eq!(nodes.order(&replicas)[0], at(1));
        assert!(nodes.suspects().is_empty());
    }
}

//! Comparing what datanodes say they have with what the rows count, shard by shard.
//!
//! Heartbeats carry a digest per shard. One that differs for longer than orders need to arrive is asked
//! for in full; the report comes in pages and is put together here.

use std::collections::HashMap;

use dfs_proto::NodeId;
use dfs_proto::limits::DIGEST_SHARDS;
use dfs_proto::msg::node::ReplicaReport;
use parking_lot::Mutex;

/// Heartbeats in a row for which a digest must differ. A seal or a copy that has just been committed
/// shows in the node's digest one heartbeat later.
const PATIENCE: u8 = 2;
/// Shards asked for in one reply, so that a node that has lost much does not send everything at once.
const SHARDS_PER_REPLY: usize = 8;
/// Replicas of one shard that are put together: 256 shards of them are 256 million chunks on a node.
const REPORT_MAX: usize = 1 << 20;

#[derive(Default)]
pub struct Reports(Mutex<HashMap<NodeId, Node>>);

struct Node {
    /// Per shard: heartbeats in a row with a digest that differs.
    differing: Vec<u8>,
    partial: Option<Partial>,
}

struct Partial {
    shard: u16,
    next_page: u32,
    replicas: Vec<ReplicaReport>,
}

impl Default for Node {
    fn default() -> Self {
        Node { differing: vec![0; DIGEST_SHARDS], partial: None }
    }
}

impl Reports {
    /// Compares a heartbeat's digests with the rows' and returns the shards to ask for.
    pub fn compare(&self, node: NodeId, said: &[u64], counted: &[u64]) -> Vec<u16> {
        let mut nodes = self.0.lock();
        let differing = &mut nodes.entry(node).or_default().differing;
        let mut wanted = Vec::new();
        for (shard, count) in differing.iter_mut().enumerate() {
            *count = if said.get(shard) == counted.get(shard) { 0 } else { count.saturating_add(1) };
            if *count >= PATIENCE && wanted.len() < SHARDS_PER_REPLY {
                // Asked again only if it still differs some heartbeats later.
                *count = 0;
                wanted.push(shard as u16);
            }
        }
        wanted
    }

    /// Takes in one page; returns the whole report, sorted by chunk, with the last one. Pages out of
    /// order drop what has come so far: the shard is asked for again.
    pub fn page(
        &self,
        node: NodeId,
        shard: u16,
        page: u32,
        last: bool,
        replicas: Vec<ReplicaReport>,
    ) -> Option<Vec<ReplicaReport>> {
        let mut nodes = self.0.lock();
        let partial = &mut nodes.entry(node).or_default().partial;
        if page == 0 {
            *partial = Some(Partial { shard, next_page: 0, replicas: Vec::new() });
        }
        let fits = partial.as_ref().is_some_and(|so_far| {
            so_far.shard == shard && so_far.next_page == page && so_far.replicas.len() + replicas.len() <= REPORT_MAX
        });
        if !fits {
            *partial = None;
            return None;
        }
        let so_far = partial.as_mut()?;
        so_far.next_page += 1;
        so_far.replicas.extend(replicas);
        if !last {
            return None;
        }
        let mut whole = partial.take()?.replicas;
        whole.sort_unstable_by_key(|replica| replica.chunk);
        whole.dedup_by_key(|replica| replica.chunk);
        Some(whole)
    }

    /// Forgets everything: another namenode compares now.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::{ChunkId, Epoch};

    fn replica(chunk: u64) -> ReplicaReport {
        ReplicaReport { chunk: ChunkId(chunk), epoch: Epoch(1), len: 1, sealed: true }
    }

    #[test]
    fn a_shard_is_asked_for_only_when_it_keeps_differing() {
        let reports = Reports::default();
        let (said, mut counted) = (vec![0; DIGEST_SHARDS], vec![0; DIGEST_SHARDS]);
        counted[7] = 1;
        assert!(reports.compare(NodeId(1), &said, &counted).is_empty());
        assert!(reports.compare(NodeId(1), &said, &said).is_empty());
        assert!(reports.compare(NodeId(1), &said, &counted).is_empty());
        assert_eq!(reports.compare(NodeId(1), &said, &counted), [7]);
        assert!(reports.compare(NodeId(1), &said, &counted).is_empty());
    }

    #[test]
    fn pages_make_a_report_only_in_order_and_whole() {
        let reports = Reports::default();
        assert_eq!(reports.page(NodeId(1), 3, 0, false, vec![replica(259)]), None);
        assert_eq!(reports.page(NodeId(1), 3, 1, true, vec![replica(3)]), Some(vec![replica(3), replica(259)]));
        assert_eq!(reports.page(NodeId(1), 3, 0, false, vec![replica(259)]), None);
        assert_eq!(reports.page(NodeId(1), 3, 2, true, vec![replica(3)]), None);
        assert_eq!(reports.page(NodeId(1), 3, 1, true, vec![replica(3)]), None);
    }
}

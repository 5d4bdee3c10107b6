//! What nodes have said of the chunks that they are to gather. Soft state: a new leader asks again, and is told the same.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_proto::msg::admin::CompactionStatus;
use dfs_proto::{ChunkId, NodeId};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A node that has not answered gets the order again after so long: it may have been lost. One that is at it takes no
/// notice.
const ORDER_AGAIN: Duration = Duration::from_secs(20);
/// A chunk that takes longer is given up: as long as a copy, from slow sources.
const DEADLINE: Duration = Duration::from_secs(120);

#[derive(Default)]
pub struct Gatherings(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    chunks: BTreeMap<ChunkId, Gathering>,
    done: u64,
    freed_bytes: u64,
}

struct Gathering {
    since: Instant,
    ordered: BTreeMap<NodeId, Instant>,
    /// By node: the hash of what it has gathered, or why it could not.
    answers: BTreeMap<NodeId, Result<u64, String>>,
}

/// What is to be done about a chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Order these nodes to gather it; nobody if all of them are at it.
    Order(Vec<NodeId>),
    /// All of them have it, and have the same.
    Complete,
    GiveUp(String),
}

impl Gatherings {
    /// Forgets everything: a new reign begins.
    pub fn clear(&self) {
        *self.0.lock() = Inner::default();
    }

    /// A node has answered. Of no interest if it was not asked in this reign.
    pub fn answered(&self, chunk: ChunkId, node: NodeId, answer: Result<u64, String>) {
        if let Some(gathering) = self.0.lock().chunks.get_mut(&chunk)
            && gathering.ordered.contains_key(&node)
        {
            gathering.answers.insert(node, answer);
        }
    }

    /// How the chunk stands that `nodes` are to gather. Those that are to be ordered count as ordered from now on.
    pub fn next(&self, chunk: ChunkId, nodes: &[NodeId], now: Instant) -> Next {
        let mut inner = self.0.lock();
        let gathering = inner.chunks.entry(chunk).or_insert_with(|| Gathering {
            since: now,
            ordered: BTreeMap::new(),
            answers: BTreeMap::new(),
        });
        let failure = gathering.answers.iter().find_map(|(node, answer)| answer.as_ref().err().map(|why| (node, why)));
        if let Some((node, why)) = failure {
            return Next::GiveUp(format!("node {node}: {why}"));
        }
        let hashes: Vec<u64> =
            nodes.iter().filter_map(|node| gathering.answers.get(node)?.as_ref().ok().copied()).collect();
        if hashes.windows(2).any(|pair| pair[0] != pair[1]) {
            return Next::GiveUp("its nodes have gathered different bytes".into());
        }
        if hashes.len() == nodes.len() {
            return Next::Complete;
        }
        if now.saturating_duration_since(gathering.since) >= DEADLINE {
            return Next::GiveUp(format!("not done after {} s", DEADLINE.as_secs()));
        }
        let due = |node: &NodeId| {
            let ordered = gathering.ordered.get(node);
            !gathering.answers.contains_key(node)
                && ordered.is_none_or(|at| now.saturating_duration_since(*at) >= ORDER_AGAIN)
        };
        let due: Vec<NodeId> = nodes.iter().copied().filter(due).collect();
        gathering.ordered.extend(due.iter().map(|node| (*node, now)));
        Next::Order(due)
    }

    /// The compaction is over; `freed_bytes` is what its sources were longer than it, if they are gone, for each copy.
    pub fn ended(&self, chunk: ChunkId, freed_bytes: Option<u64>) {
        let mut inner = self.0.lock();
        inner.chunks.remove(&chunk);
        inner.done += u64::from(freed_bytes.is_some());
        inner.freed_bytes += freed_bytes.unwrap_or(0);
    }

    pub fn status(&self) -> CompactionStatus {
        let inner = self.0.lock();
        CompactionStatus { under_way: inner.chunks.len() as u64, done: inner.done, freed_bytes: inner.freed_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: ChunkId = ChunkId(5);
    const NODES: [NodeId; 2] = [NodeId(1), NodeId(2)];

    #[test]
    fn a_chunk_is_complete_when_all_its_nodes_have_the_same() {
        let (all, start) = (Gatherings::default(), Instant::now());
        all.answered(CHUNK, NODES[0], Ok(7));
        assert_eq!(all.next(CHUNK, &NODES, start), Next::Order(NODES.to_vec()), "what nobody asked for does not count");
        assert_eq!(all.next(CHUNK, &NODES, start), Next::Order(vec![]));
        all.answered(CHUNK, NODES[0], Ok(7));
        all.answered(CHUNK, NodeId(3), Err("nobody asked it".into()));
        assert_eq!(all.next(CHUNK, &NODES, start + ORDER_AGAIN), Next::Order(vec![NODES[1]]));
        all.answered(CHUNK, NODES[1], Ok(7));
        assert_eq!(all.next(CHUNK, &NODES, start + DEADLINE), Next::Complete);
        all.ended(CHUNK, Some(100));
        assert_eq!(all.status(), CompactionStatus { under_way: 0, done: 1, freed_bytes: 100 });
    }

    #[test]
    fn a_failure_a_difference_and_a_long_wait_end_it() {
        let (all, start) = (Gatherings::default(), Instant::now());
        let begin = |chunk| all.next(ChunkId(chunk), &NODES, start);
        for chunk in [1, 2, 3] {
            begin(chunk);
        }
        all.answered(ChunkId(1), NODES[0], Err("disk full".into()));
        all.answered(ChunkId(2), NODES[0], Ok(7));
        all.answered(ChunkId(2), NODES[1], Ok(8));
        let text = |chunk, now| match all.next(ChunkId(chunk), &NODES, now) {
            Next::GiveUp(why) => why,
            other => panic!("{other:?}"),
        };
        assert_eq!(text(1, start), "node 1: disk full");
        assert_eq!(text(2, start), "its nodes have gathered different bytes");
        assert_eq!(text(3, start + DEADLINE), "not done after 120 s");
        all.ended(ChunkId(1), None);
        assert_eq!(all.status(), CompactionStatus { under_way: 2, done: 0, freed_bytes: 0 });
        assert_eq!(begin(1), Next::Order(NODES.to_vec()), "it would be asked for anew");
    }
}

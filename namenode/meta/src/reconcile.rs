//! Judges what a datanode says it has against what the rows count.
//!
//! A report is always a little old: it may have been made before the last append, the last seal or the
//! last finished copy. So a verdict that costs something is passed only where time cannot turn it
//! round: a sealed replica never grows, a deleted chunk never comes back.

use dfs_proto::chunk::digest_shard;
use dfs_proto::msg::node::ReplicaReport;
use dfs_proto::{ChunkId, Epoch, NodeId};

use crate::rows::{self, ChunkRow};
use crate::view::{Fault, View};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// As counted.
    Agrees,
    /// Order: the chunk ends at `len`. The node answers `Bad` if it has fewer bytes.
    Seal { epoch: Epoch, len: u32 },
    /// Order: delete it, if its epoch is still at most this.
    Delete { epoch: Epoch },
    /// A whole copy of a chunk that has too few good ones: propose `AddReplica`.
    Adopt,
    /// Counted, sealed and too short: propose `DropReplica`, if good copies remain, and repair.
    Short,
    /// Nothing may be concluded.
    Ignore,
}

/// Judges one replica. `next_chunk` is the state's counter (`Totals::next_chunk`): a chunk below it
/// without a row has been deleted, one above it is not known here yet. `good` says of a node whether
/// its counted replica can be relied on now (node live, replica not reported bad).
///
/// Copies that have just been completed (`Outcome::Copied`) must be proposed before the same node's
/// report is judged, and chunks with a copy under way to `node` must not be judged at all.
pub fn judge(
    row: Option<&ChunkRow>,
    next_chunk: ChunkId,
    node: NodeId,
    report: &ReplicaReport,
    good: &dyn Fn(NodeId) -> bool,
) -> Verdict {
    let Some(row) = row else {
        return match report.chunk < next_chunk {
            true => Verdict::Delete { epoch: report.epoch },
            // From a later state than this one, or from another cluster.
            false => Verdict::Ignore,
        };
    };
    if report.epoch > row.epoch {
        return Verdict::Ignore;
    }
    match (row.is_sealed(), row.replicas.contains(&node)) {
        (true, true) => judge_counted(row, report),
        (true, false) => judge_uncounted(row, report, good),
        // How long an open replica is shows only at its seal.
        (false, true) => Verdict::Agrees,
        // Its writer went on without it. Until the others are sealed it may be of use.
        (false, false) => Verdict::Ignore,
    }
}

fn judge_counted(row: &ChunkRow, report: &ReplicaReport) -> Verdict {
    let sealed_alike = report.sealed && report.epoch == row.epoch;
    match report.len.cmp(&row.len) {
        std::cmp::Ordering::Equal if sealed_alike => Verdict::Agrees,
        std::cmp::Ordering::Less if sealed_alike => Verdict::Short,
        // An unsealed replica may have grown since the report: the order finds out.
        _ => Verdict::Seal { epoch: row.epoch, len: row.len },
    }
}

fn judge_uncounted(row: &ChunkRow, report: &ReplicaReport, good: &dyn Fn(NodeId) -> bool) -> Verdict {
    let good_copies = row.replicas.iter().filter(|replica| good(**replica)).count();
    let whole = report.sealed && report.epoch == row.epoch && report.len == row.len;
    if whole && good_copies < usize::from(row.target) {
        return Verdict::Adopt;
    }
    if good_copies == 0 {
        // Stale or short, but perhaps all that is left to look into.
        return Verdict::Ignore;
    }
    // Its own epoch: a whole copy that repair makes here later has a higher one and is not meant.
    Verdict::Delete { epoch: report.epoch }
}

/// Sealed chunks of a shard that are counted on `node` and not in its whole report (`reported` sorted).
/// Only for a node whose first scan is over; and a report made before the replica was sealed or
/// repaired may lack it, so ask the node to `Verify` before anything is dropped.
pub fn missing(
    view: &dyn View,
    node: NodeId,
    shard: usize,
    reported: &[ChunkId],
) -> Result<Vec<(ChunkId, ChunkRow)>, Fault> {
    let mut found = Vec::new();
    for chunk in rows::node_chunks_of_shard(view, node, shard)? {
        debug_assert_eq!(digest_shard(chunk), shard);
        if reported.binary_search(&chunk).is_ok() {
            continue;
        }
        let row = rows::chunk(view, chunk)?
            .ok_or_else(|| Fault(format!("node {node} is counted for chunk {chunk}, which does not exist")))?;
        if row.is_sealed() {
            found.push((chunk, row));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use dfs_proto::{InodeId, SessionId};

    use super::*;
    use crate::rows::ChunkState;
    use crate::testing::{NODES, Rig};

    const NEXT: ChunkId = ChunkId(10);

    fn row(state: ChunkState, epoch: u64) -> ChunkRow {
        let replicas = vec![NodeId(1), NodeId(2), NodeId(3)];
        ChunkRow { state, epoch: Epoch(epoch), len: 100, live_bytes: 100, target: 3, replicas }
    }

    fn report(epoch: u64, len: u32, sealed: bool) -> ReplicaReport {
        ReplicaReport { chunk: ChunkId(5), epoch: Epoch(epoch), len, sealed }
    }

    #[test]
    fn counted_replicas_of_a_sealed_chunk() {
        let sealed = row(ChunkState::Sealed, 2);
        let seal = Verdict::Seal { epoch: Epoch(2), len: 100 };
        for (reported, verdict) in [
            (report(2, 100, true), Verdict::Agrees),
            (report(2, 99, true), Verdict::Short),
            (report(2, 101, true), seal),
            (report(1, 100, false), seal),
            (report(1, 130, false), seal),
            (report(1, 30, false), seal),
            (report(3, 100, true), Verdict::Ignore),
        ] {
            assert_eq!(judge(Some(&sealed), NEXT, NodeId(1), &reported, &|_| true), verdict, "{reported:?}");
        }
    }

    #[test]
    fn uncounted_replicas_of_a_sealed_chunk() {
        let sealed = row(ChunkState::Sealed, 2);
        let delete = |epoch| Verdict::Delete { epoch: Epoch(epoch) };
        let all = |_: NodeId| true;
        let some = |node: NodeId| node == NodeId(1);
        let none = |_: NodeId| false;
        for (reported, good, verdict) in [
            (report(2, 100, true), &all as &dyn Fn(NodeId) -> bool, delete(2)),
            (report(2, 100, true), &some, Verdict::Adopt),
            (report(2, 100, true), &none, Verdict::Adopt),
            (report(1, 100, false), &some, delete(1)),
            (report(2, 99, true), &some, delete(2)),
            (report(1, 100, false), &none, Verdict::Ignore),
            (report(2, 99, true), &none, Verdict::Ignore),
            (report(3, 100, true), &all, Verdict::Ignore),
        ] {
            assert_eq!(judge(Some(&sealed), NEXT, NodeId(9), &reported, good), verdict, "{reported:?}");
        }
    }

    #[test]
    fn nothing_is_concluded_from_the_length_of_an_open_replica() {
        let open = row(ChunkState::Open { session: SessionId(1) }, 1);
        for len in [0, 50, 100, 500] {
            assert_eq!(judge(Some(&open), NEXT, NodeId(1), &report(1, len, false), &|_| true), Verdict::Agrees);
        }
        let stray = judge(Some(&open), NEXT, NodeId(9), &report(1, 100, false), &|_| true);
        assert_eq!(stray, Verdict::Ignore);
    }

    #[test]
    fn only_a_chunk_known_to_be_deleted_is_deleted() {
        let deleted = report(4, 100, true);
        assert_eq!(judge(None, NEXT, NodeId(1), &deleted, &|_| true), Verdict::Delete { epoch: Epoch(4) });
        let unknown = ReplicaReport { chunk: NEXT, ..deleted };
        assert_eq!(judge(None, NEXT, NodeId(1), &unknown, &|_| true), Verdict::Ignore);
    }

    #[test]
    fn a_counted_sealed_replica_that_is_not_reported_is_missing() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 10);
        let sealed = rig.extents(file)[0].chunk;
        let shard = digest_shard(sealed);
        let found = missing(&rig.state, NODES[0], shard, &[]).unwrap();
        assert_eq!(found.iter().map(|(chunk, _)| *chunk).collect::<Vec<_>>(), [sealed]);
        assert!(missing(&rig.state, NODES[0], shard, &[sealed]).unwrap().is_empty());
        assert!(missing(&rig.state, NODES[3], shard, &[]).unwrap().is_empty());
        let open = rig.allocate(1)[0];
        assert!(missing(&rig.state, NODES[0], digest_shard(open), &[]).unwrap().is_empty());
    }
}

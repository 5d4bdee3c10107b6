//! Judges what a datanode says it has against what the rows count.

use dfs_proto::msg::node::ReplicaReport;
use dfs_proto::{ChunkId, Epoch, NodeId};

use crate::rows::ChunkRow;
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
pub fn judge(
    _row: Option<&ChunkRow>,
    _next_chunk: ChunkId,
    _node: NodeId,
    _report: &ReplicaReport,
    _good: &dyn Fn(NodeId) -> bool,
) -> Verdict {
    unimplemented!()
}

/// Sealed chunks of a shard that are counted on `node` and not in its whole report (`reported` sorted).
/// Only for a node whose first scan is over.
pub fn missing(
    _view: &dyn View,
    _node: NodeId,
    _shard: usize,
    _reported: &[ChunkId],
) -> Result<Vec<(ChunkId, ChunkRow)>, Fault> {
    unimplemented!()
}

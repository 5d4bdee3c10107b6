//! Chooses nodes for a new chunk.

use dfs_proto::NodeId;
use dfs_proto::msg::admin::Liveness;

/// What placement knows of a datanode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeView {
    pub node: NodeId,
    pub liveness: Liveness,
    /// On its healthy volumes.
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// It has a volume that takes writes.
    pub writable: bool,
    /// Open chunks and copies under way there: any number that grows with its work.
    pub load: u32,
}

/// At most `count` different nodes, for one chunk. Fewer if there are not so many: whether that is
/// enough is for the caller (`min_copies`) to say. Nodes in `avoid` are taken only if there are no
/// others. The same arguments give the same nodes, in whatever order `nodes` comes.
pub fn choose(_nodes: &[NodeView], _count: usize, _avoid: &[NodeId], _seed: u64) -> Vec<NodeId> {
    unimplemented!()
}

/// Recounts a choice without choosing: says what is wrong with it.
pub fn check(_nodes: &[NodeView], _count: usize, _avoid: &[NodeId], _chosen: &[NodeId]) -> Result<(), String> {
    unimplemented!()
}

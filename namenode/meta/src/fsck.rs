//! Recounts everything from the rows.

use dfs_proto::msg::admin::FsckReport;
use dfs_proto::{InodeId, NodeId};

use crate::view::{Fault, View};

/// Recounts and compares. `root` limits it to what lies below one directory, or to one file; the
/// cluster's root means everything. `live` says whether a node answers.
pub fn check(_view: &dyn View, _root: InodeId, _live: &dyn Fn(NodeId) -> bool) -> Result<FsckReport, Fault> {
    unimplemented!()
}

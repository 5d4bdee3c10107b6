//! Linearizable reads: what clients ask, answered from one view.

use dfs_proto::msg::admin::{FileInfo, Liveness};
use dfs_proto::msg::meta::{Answer, Op, OpReply, Query, StatFs};
use dfs_proto::{Caller, InodeId, NodeId, SessionId, Timestamp, WireError};

use crate::placement::NodeView;
use crate::view::{Fault, View};

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub caller: &'a Caller,
    pub session: SessionId,
    /// Number of the client's certificate. Refused as `Forbidden` if the session is somebody else's.
    pub holder: NodeId,
    /// The leader's clock: capabilities run from here.
    pub now: Timestamp,
}

/// Answers a client's query. Capabilities are good for 10 minutes; replicas on live nodes come first.
/// `Query::StatFs` gets the number of files and zeros for the bytes: see [`stat_fs`].
pub fn answer(
    _view: &dyn View,
    _asker: &Asker<'_>,
    _query: &Query,
    _nodes: &dyn Fn(NodeId) -> Liveness,
) -> Result<Result<Answer, WireError>, Fault> {
    unimplemented!()
}

/// Whether the grants in a mutation are genuine, this session's and for the right inodes. The leader
/// asks before it proposes; `apply` relies on that.
pub fn check_grants(_view: &dyn View, _session: SessionId, _op: &Op) -> Result<Result<(), WireError>, Fault> {
    unimplemented!()
}

/// Puts append capabilities for the session's open chunks into a `Chunks` reply, and orders replicas.
/// The leader calls it on every reply it sends, also on one that was remembered.
pub fn sign_reply(
    _view: &dyn View,
    _asker: &Asker<'_>,
    _reply: &mut OpReply,
    _nodes: &dyn Fn(NodeId) -> Liveness,
) -> Result<(), Fault> {
    unimplemented!()
}

/// Space for `df`: of the live nodes' disks, divided by the default replication.
pub fn stat_fs(_view: &dyn View, _nodes: &[NodeView]) -> Result<StatFs, Fault> {
    unimplemented!()
}

/// The extents of a file and the replicas behind them, for administrators.
pub fn file_info(
    _view: &dyn View,
    _inode: InodeId,
    _nodes: &dyn Fn(NodeId) -> Liveness,
) -> Result<Result<FileInfo, WireError>, Fault> {
    unimplemented!()
}

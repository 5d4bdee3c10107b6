//! The meta plane: requests of clients, administrators and datanodes.

mod admin;
mod client;
mod datanode;
mod duties;
mod group;
mod locks;
pub mod opens;
mod status;

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::msg::admin::AdminRequest;
use dfs_proto::msg::group::GroupRequest;
use dfs_proto::msg::meta::{MetaReply, MetaRequest, Op};
use dfs_proto::{ErrorKind, PeerIdentity, Plane, Role, WireError};
use dfs_rpc::{Handler, RecvStream, SendStream};
use tracing::{Instrument, Span, debug, field, info_span};

use crate::namenode::Namenode;

/// How long a request may take to arrive once its stream is open: a stream that says nothing holds a task.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long answering may take; longer than a proposal's own deadline.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

pub struct Server {
    namenode: Arc<Namenode>,
}

impl Server {
    pub fn new(namenode: Arc<Namenode>) -> Server {
        Server { namenode }
    }

    async fn receive(&self, recv: &mut RecvStream) -> Result<MetaRequest, WireError> {
        tokio::time::timeout(REQUEST_DEADLINE, recv.recv::<MetaRequest>())
            .await
            .map_err(|_| WireError::new(ErrorKind::Timeout, "the request did not arrive in time"))?
            .map_err(|error| error.to_wire())
    }

    async fn answer(&self, peer: PeerIdentity, request: MetaRequest) -> Result<MetaReply, WireError> {
        let span = span_of(&request);
        async {
            self.check_peer(peer, &request)?;
            tokio::time::timeout(ANSWER_DEADLINE, self.dispatch(peer, request))
                .await
                .unwrap_or_else(|_| Err(WireError::new(ErrorKind::Timeout, "the request took too long")))
        }
        .instrument(span)
        .await
    }

    /// Whether this kind of peer may ask for that at all.
    fn check_peer(&self, peer: PeerIdentity, request: &MetaRequest) -> Result<(), WireError> {
        if peer.cluster != self.namenode.cluster {
            return Err(WireError::new(ErrorKind::Forbidden, "the certificate is of another cluster"));
        }
        if permitted(peer.role, request) {
            return Ok(());
        }
        tracing::info!(target: "audit", peer = %peer, "refused: wrong role");
        let role = peer.role.as_str();
        Err(WireError::new(ErrorKind::Forbidden, format!("a {role} certificate does not allow this request")))
    }

    async fn dispatch(&self, peer: PeerIdentity, request: MetaRequest) -> Result<MetaReply, WireError> {
        let namenode = &self.namenode;
        match request {
            MetaRequest::OpenSession { description } => client::open_session(namenode, peer.id, description).await,
            MetaRequest::Renew { session } => client::renew(namenode, peer.id, session),
            MetaRequest::Mutate { id, acked_below, caller, op } => {
                client::mutate(namenode, peer.id, id, acked_below, caller, op, None).await
            }
            MetaRequest::WatchedMutate { id, acked_below, caller, op, life } => {
                client::mutate(namenode, peer.id, id, acked_below, caller, op, Some(life)).await
            }
            MetaRequest::Query { session, caller, query } => {
                client::query(namenode, peer.id, session, caller, query).await
            }
            MetaRequest::WatchedQuery { session, caller, query, life } => {
                client::watched_query(namenode, peer.id, session, caller, query, life).await
            }
            MetaRequest::Watch { .. } => {
                Err(WireError::new(ErrorKind::Internal, "a watch stream is not answered like a request"))
            }
            MetaRequest::ReportBad { chunk, epoch, node, reason } => {
                client::report_bad(namenode, chunk, epoch, node, &reason).await
            }
            MetaRequest::AwaitLock { session, inode, claim, detect_deadlock, wait_ms } => {
                locks::wait(namenode, peer.id, session, inode, claim, detect_deadlock, wait_ms).await
            }
            MetaRequest::Closed { session, inodes } => opens::closed(namenode, peer.id, session, inodes).await,
            MetaRequest::Announce { session, inodes, last } => {
                opens::announce(namenode, peer.id, session, inodes, last).await
            }
            MetaRequest::Node(request) => datanode::answer(namenode, peer.id, request).await.map(MetaReply::Node),
            MetaRequest::Admin(request) => {
                admin::answer(namenode, request).await.map(|reply| MetaReply::Admin(Box::new(reply)))
            }
        }
    }
}

impl Handler for Server {
    async fn handle(&self, peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let reply = match self.receive(&mut recv).await {
            Ok(request @ MetaRequest::Watch { session }) => match self.check_peer(peer, &request) {
                Ok(()) => {
                    let span = span_of(&request);
                    return client::watch(&self.namenode, peer.id, session, send, recv).instrument(span).await;
                }
                Err(error) => Err(error),
            },
            Ok(request) => self.answer(peer, request).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &reply {
            debug!(peer = %peer.id, kind = ?error.kind, %error, "request refused");
        }
        // A peer that has gone meanwhile asks again, elsewhere or here.
        if send.send(&reply).await.is_ok() {
            send.finish();
        }
    }
}

/// Which roles may send which requests.
fn permitted(role: Role, request: &MetaRequest) -> bool {
    match request {
        MetaRequest::OpenSession { .. }
        | MetaRequest::Renew { .. }
        | MetaRequest::Mutate { .. }
        | MetaRequest::WatchedMutate { .. }
        | MetaRequest::Query { .. }
        | MetaRequest::WatchedQuery { .. }
        | MetaRequest::Watch { .. }
        | MetaRequest::AwaitLock { .. }
        | MetaRequest::Closed { .. }
        | MetaRequest::Announce { .. }
        | MetaRequest::ReportBad { .. } => matches!(role, Role::Client | Role::Admin),
        MetaRequest::Node(_) => role == Role::Datanode,
        MetaRequest::Admin(AdminRequest::Status) => matches!(role, Role::Client | Role::Admin | Role::Namenode),
        MetaRequest::Admin(AdminRequest::Fsck { .. } | AdminRequest::FileInfo { .. }) => {
            matches!(role, Role::Client | Role::Admin)
        }
        // Where the namenodes are is what everybody who may speak to one has to know.
        MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show)) => true,
        MetaRequest::Admin(
            AdminRequest::Initialize { .. }
            | AdminRequest::Snapshot
            | AdminRequest::ChangeDuty { .. }
            | AdminRequest::Scrub { .. }
            | AdminRequest::SetBalance(_)
            | AdminRequest::Group(_),
        ) => role == Role::Admin,
    }
}

/// A span per request, with what it is about.
fn span_of(request: &MetaRequest) -> Span {
    let span = info_span!("request", kind = field::Empty, session = field::Empty, inode = field::Empty);
    let kind = match request {
        MetaRequest::OpenSession { .. } => "open session",
        MetaRequest::Renew { session } => {
            span.record("session", session.0);
            "renew"
        }
        MetaRequest::Mutate { id, op, .. } | MetaRequest::WatchedMutate { id, op, .. } => {
            span.record("session", id.session.0);
            if let Some(inode) = inode_of_op(op) {
                span.record("inode", inode);
            }
            client::op_name(op)
        }
        MetaRequest::Query { session, query, .. } | MetaRequest::WatchedQuery { session, query, .. } => {
            span.record("session", session.0);
            if let Some(inode) = query.inode() {
                span.record("inode", inode.0);
            }
            "query"
        }
        MetaRequest::Watch { session } => {
            span.record("session", session.0);
            "watch"
        }
        MetaRequest::ReportBad { .. } => "report bad replica",
        MetaRequest::AwaitLock { session, inode, .. } => {
            span.record("session", session.0);
            span.record("inode", inode.0);
            "await lock"
        }
        MetaRequest::Closed { session, .. } | MetaRequest::Announce { session, .. } => {
            span.record("session", session.0);
            "open files"
        }
        MetaRequest::Node(_) => "datanode",
        MetaRequest::Admin(_) => "admin",
    };
    span.record("kind", kind);
    span
}

fn inode_of_op(op: &Op) -> Option<u64> {
    match op {
        Op::Make { parent, .. }
        | Op::MakeMasked { parent, .. }
        | Op::Unlink { parent, .. }
        | Op::Rmdir { parent, .. } => Some(parent.0),
        Op::Rename { from_parent, .. } => Some(from_parent.0),
        Op::Link { inode, .. }
        | Op::SetAttr { inode, .. }
        | Op::Fallocate { inode, .. }
        | Op::CloneRange { inode, .. }
        | Op::Open { inode, .. }
        | Op::Lock { inode, .. }
        | Op::Unlock { inode, .. }
        | Op::SetXattr { inode, .. }
        | Op::RemoveXattr { inode, .. } => Some(inode.0),
        Op::Commit { files, .. } => files.first().map(|file| file.inode.0),
        Op::Share { inodes } => inodes.first().map(|inode| inode.0),
        Op::Release { .. }
        | Op::AllocateChunks { .. }
        | Op::CloseSession
        | Op::NoteReads { .. }
        | Op::Reserve { .. }
        | Op::Sequence { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::msg::node::NodeRequest;
    use dfs_proto::{ClusterId, SessionId};

    #[test]
    fn each_role_may_do_its_own_and_no_more() {
        let renew = MetaRequest::Renew { session: SessionId(1) };
        let report = NodeRequest::ShardReport { shard: 0, digest: 0, page: 0, last: true, replicas: Vec::new() };
        let node = MetaRequest::Node(report);
        let status = MetaRequest::Admin(AdminRequest::Status);
        let initialize = MetaRequest::Admin(AdminRequest::Initialize {
            cluster: ClusterId([0; 16]),
            members: Vec::new(),
            default_replication: 3,
            min_copies: 2,
        });
        let show = MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show));
        assert!([Role::Client, Role::Admin, Role::Datanode, Role::Namenode].iter().all(|role| permitted(*role, &show)));
        let remove = MetaRequest::Admin(AdminRequest::Group(GroupRequest::Remove { node: dfs_proto::NodeId(1) }));
        assert!(permitted(Role::Admin, &remove) && !permitted(Role::Client, &remove));
        let may = |role| [&renew, &node, &status, &initialize].map(|request| permitted(role, request));
        assert_eq!(may(Role::Client), [true, false, true, false]);
        assert_eq!(may(Role::Admin), [true, false, true, true]);
        assert_eq!(may(Role::Datanode), [false, true, false, false]);
        assert_eq!(may(Role::Namenode), [false, false, true, false]);
    }
}

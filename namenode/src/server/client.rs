//! Sessions, mutations and queries.

use std::sync::Arc;
use std::time::Instant;

use dfs_meta::query::{self, Asker};
use dfs_meta::{Body, Reply, placement, rows};
use dfs_proto::limits::{ALLOCATE_MAX, GROUPS_MAX, REPLICATION_MAX};
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::meta::{Answer, MetaReply, Op, OpReply, Query};
use dfs_proto::msg::node::Order;
use dfs_proto::{Caller, ChunkId, Epoch, ErrorKind, NodeId, RequestId, SessionId, WireError};
use tracing::{debug, info};

use crate::namenode::Namenode;

/// A session's description, for people.
const DESCRIPTION_MAX: usize = 255;

pub async fn open_session(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    description: String,
) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    if description.len() > DESCRIPTION_MAX {
        return Err(WireError::new(ErrorKind::InvalidArgument, "the description is longer than 255 bytes"));
    }
    match namenode.propose(Body::OpenSession { description: description.clone(), holder }).await? {
        Reply::Session(grant) => {
            namenode.sessions.opened(grant.session, holder, Instant::now());
            info!(target: "audit", session = %grant.session, client = %holder, description, "session opened");
            Ok(MetaReply::Session(grant))
        }
        _ => Err(odd_reply()),
    }
}

pub fn renew(namenode: &Namenode, holder: NodeId, session: SessionId) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    namenode.sessions.renew(session, holder, Instant::now())?;
    Ok(MetaReply::Done)
}

/// Carries out a mutation exactly once: checks who asks, completes the command, replicates it, and signs
/// what the reply promises.
pub async fn mutate(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    id: RequestId,
    acked_below: u64,
    caller: Caller,
    op: Op,
) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    check_caller(&caller)?;
    namenode.sessions.renew(id.session, holder, Instant::now())?;
    let name = op_name(&op);
    let refused = |error: &WireError| {
        info!(target: "audit", request = id.number, session = %id.session, uid = caller.uid, op = name, %error, "mutation refused");
    };
    namenode
        .read(|view| {
            Ok(match query::check_session(view, id.session, holder)? {
                Ok(()) => query::check_grants(view, id.session, &op)?,
                Err(error) => Err(error),
            })
        })?
        .inspect_err(refused)?;
    let placement = place(namenode, &op).inspect_err(refused)?;
    let closes = matches!(op, Op::CloseSession);
    let command = Body::Client { id, acked_below, caller: caller.clone(), op, placement };
    let mut reply = match namenode.propose(command).await.inspect_err(refused)? {
        Reply::Op(reply) => reply,
        _ => return Err(odd_reply()),
    };
    if closes {
        namenode.sessions.closed(id.session);
    }
    debug!(target: "audit", request = id.number, session = %id.session, uid = caller.uid, op = name, "mutation done");
    if matches!(reply, OpReply::Chunks(_)) {
        let asker = Asker { caller: &caller, session: id.session, holder, now: namenode.consensus.now() };
        namenode.read(|view| query::sign_reply(view, &asker, &mut reply, &|node| namenode.liveness(node)))?;
    }
    Ok(MetaReply::Mutated(reply))
}

/// Chooses the nodes of new chunks; empty for other operations.
fn place(namenode: &Namenode, op: &Op) -> Result<Vec<Vec<NodeId>>, WireError> {
    let Op::AllocateChunks { count, replication, avoid } = op else {
        return Ok(Vec::new());
    };
    if *count == 0 || *count > ALLOCATE_MAX || *replication == 0 || *replication > REPLICATION_MAX {
        return Err(WireError::new(ErrorKind::InvalidArgument, "too many or no chunks or copies"));
    }
    let (datanodes, config) = namenode.read(|view| Ok((namenode.datanodes(view)?, rows::config(view)?)))?;
    let min_copies = config.map_or(1, |config| usize::from(config.min_copies)).min(usize::from(*replication));
    (0..*count)
        .map(|_| {
            let nodes = namenode.nodes.for_placement(&datanodes, Instant::now());
            let chosen = placement::choose(&nodes, usize::from(*replication), avoid, rand::random());
            if chosen.len() < min_copies {
                return Err(too_few(&nodes, min_copies));
            }
            chosen.iter().for_each(|node| namenode.nodes.placed(*node));
            Ok(chosen)
        })
        .collect()
}

/// Says whether room is lacking, which waiting does not cure, or nodes, which may come back.
fn too_few(nodes: &[placement::NodeView], wanted: usize) -> WireError {
    let live = nodes.iter().filter(|node| node.liveness == Liveness::Live && node.writable).count();
    if live >= wanted {
        return WireError::new(ErrorKind::NoSpace, format!("fewer than {wanted} datanodes have room"));
    }
    WireError::new(ErrorKind::Unavailable, format!("{live} datanodes take writes, and a write needs {wanted}"))
}

/// Answers a read from rows that hold everything committed before it came.
pub async fn query(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    session: SessionId,
    caller: Caller,
    query: Query,
) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    check_caller(&caller)?;
    namenode.sessions.renew(session, holder, Instant::now())?;
    namenode.read_barrier().await?;
    // Most answers are a few rows that are in memory: less work than a hop to another thread.
    let long = matches!(query, Query::ReadDir { .. } | Query::Locate { .. } | Query::StatFs | Query::ListXattrs { .. });
    let me = namenode.clone();
    let answer = move |view: &dyn dfs_meta::View| {
        let asker = Asker { caller: &caller, session, holder, now: me.consensus.now() };
        let answer = query::answer(view, &asker, &query, &|node| me.liveness(node))?;
        if let (Query::StatFs, Ok(_)) = (&query, &answer) {
            let nodes = me.nodes.for_placement(&me.datanodes(view)?, Instant::now());
            return Ok(Ok(Answer::StatFs(query::stat_fs(view, &nodes)?)));
        }
        Ok(answer)
    };
    let answer = match long {
        true => namenode.read_long(answer).await??,
        false => namenode.read(answer)??,
    };
    Ok(MetaReply::Answer(answer))
}

/// A client could not read a replica. What it says is not believed but looked into: the node reads the
/// replica again and answers in its next heartbeats.
pub async fn report_bad(
    namenode: &Arc<Namenode>,
    chunk: ChunkId,
    epoch: Epoch,
    node: NodeId,
    reason: &str,
) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    let row = namenode.read(|view| rows::chunk(view, chunk))?;
    if let Some(row) = row.filter(|row| row.is_sealed() && row.epoch == epoch && row.replicas.contains(&node)) {
        info!(%chunk, %node, reason, "a client reports a bad replica");
        namenode.orders.push(node, Order::Verify { chunk, epoch, len: row.len });
    }
    Ok(MetaReply::Done)
}

fn check_caller(caller: &Caller) -> Result<(), WireError> {
    if caller.groups.len() > GROUPS_MAX {
        return Err(WireError::new(ErrorKind::InvalidArgument, format!("more than {GROUPS_MAX} groups")));
    }
    Ok(())
}

fn odd_reply() -> WireError {
    WireError::new(ErrorKind::Internal, "the command answered something else than asked")
}

pub fn op_name(op: &Op) -> &'static str {
    match op {
        Op::Make { .. } => "make",
        Op::Link { .. } => "link",
        Op::Unlink { .. } => "unlink",
        Op::Rmdir { .. } => "rmdir",
        Op::Rename { .. } => "rename",
        Op::SetAttr { .. } => "set attributes",
        Op::Release { .. } => "release",
        Op::AllocateChunks { .. } => "allocate chunks",
        Op::Commit { .. } => "commit",
        Op::CloseSession => "close session",
        Op::MakeMasked { .. } => "make",
        Op::SetXattr { .. } => "set extended attribute",
        Op::RemoveXattr { .. } => "remove extended attribute",
    }
}

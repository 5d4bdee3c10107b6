//! Sessions, mutations and queries.

use std::sync::Arc;

use dfs_meta::locks::Holder;
use dfs_meta::private::{self, Touched};
use dfs_meta::query::{self, Asker};
use dfs_meta::{Body, Reply, placement, rows};
use dfs_proto::limits::{ALLOCATE_MAX, GROUPS_MAX, OPEN_AHEAD_MAX, REPLICATION_MAX};
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::meta::{Answer, MetaReply, Op, OpReply, Query, RenameMode, RevocationDone, Told};
use dfs_proto::msg::node::Order;
use dfs_proto::{
    Attr, Caller, ChunkId, Epoch, ErrorKind, FileKind, InodeId, Name, NodeId, RequestId, SessionId, WireError,
};
use dfs_rpc::{Moment, RecvStream, RpcError, SendStream};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::leader::{Knowledge, Recall};
use crate::namenode::Namenode;
use crate::raft::Kept;
use crate::server::opens;

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
    Ok(match namenode.opens.must_announce(session) {
        true => MetaReply::Announce,
        false => MetaReply::Done,
    })
}

/// Carries out a mutation exactly once, when every directory that it touches and another session has for itself is
/// shared. A session that names the `life` of its watch stream is told more than the reply.
pub async fn mutate(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    id: RequestId,
    acked_below: u64,
    caller: Caller,
    op: Op,
    life: Option<u64>,
) -> Result<MetaReply, WireError> {
    if Touched::by_op(&op) == Touched::default() {
        return mutate_once(namenode, holder, id, acked_below, caller, op, life).await;
    }
    let mut recall = Recall::new(namenode);
    loop {
        let in_the_way = |view: &dyn dfs_meta::View| private::in_the_way(view, id.session, &Touched::by_op(&op));
        if recall.shared(in_the_way).await? {
            match mutate_once(namenode, holder, id, acked_below, caller.clone(), op.clone(), life).await {
                // Made by another session in between.
                Err(error) if error.kind == ErrorKind::Private => {}
                outcome => return outcome,
            }
        }
    }
}

/// One attempt at a mutation: checks who asks, completes the command, replicates it, and signs
/// what the reply promises.
async fn mutate_once(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    id: RequestId,
    acked_below: u64,
    caller: Caller,
    op: Op,
    life: Option<u64>,
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
    require_room(namenode, &op).inspect_err(refused)?;
    let placement = place(namenode, &op).inspect_err(refused)?;
    let closes = matches!(op, Op::CloseSession);
    let shares = matches!(op, Op::Share { .. });
    let locks = match &op {
        Op::Lock { inode, claim } => Some((*inode, *claim)),
        _ => None,
    };
    let watching = life.map(|life| (life, names_in(&op)));
    // Both count until the command is decided, also if nobody waits for it so long.
    let making = opened_name(&op).map(|name| Arc::new(namenode.opens.making(name)));
    let (kept, command): (Option<Kept>, _) = match removed_name(&op) {
        Some(name) => {
            let expected = namenode.read(|view| rows::dentry(view, name.0, &name.1))?.map(|entry| entry.inode);
            let (guard, Knowledge { holders, undecided }) = namenode.opens.remove(name, expected);
            let removal = opens::Removal::new(namenode, guard, expected, holders.clone());
            let command = Body::Removal { id, acked_below, caller: caller.clone(), op, expected, holders, undecided };
            (Some(Box::new(removal)), command)
        }
        None => {
            let kept = making.clone().map(|making| Box::new(making) as Kept);
            (kept, Body::Client { id, acked_below, caller: caller.clone(), op, placement })
        }
    };
    let mut reply = match namenode.propose_keeping(command, kept).await.inspect_err(refused)? {
        Reply::Op(reply) => reply,
        _ => return Err(odd_reply()),
    };
    if let OpReply::Made { attr, grant: Some(_), .. } = &reply {
        opens::opened(namenode, id.session, attr.inode).await.inspect_err(refused)?;
    }
    drop(making);
    if shares {
        namenode.recalls.shared();
    }
    if closes {
        namenode.sessions.closed(id.session);
        namenode.opens.ended(id.session);
        namenode.recalls.shared();
    }
    if let Some((inode, claim)) = locks {
        namenode.lock_waits.leave(inode, Holder { session: id.session, owner: claim.owner }, &claim);
    }
    debug!(target: "audit", request = id.number, session = %id.session, uid = caller.uid, op = name, "mutation done");
    let changed = namenode.watches.consequences(id).await;
    if matches!(reply, OpReply::Chunks(_)) {
        let asker = Asker { caller: &caller, session: id.session, holder, now: namenode.consensus.now() };
        namenode.read(|view| query::sign_reply(view, &asker, &mut reply, &|node| namenode.liveness(node)))?;
    }
    if let Some((life, names)) = watching
        && let Some((told, valid_ms)) = tell(namenode, holder, id.session, &caller, life, &names).await?
    {
        return Ok(MetaReply::MutatedTold { reply, changed, told, valid_ms });
    }
    Ok(match changed.is_empty() {
        true => MetaReply::Mutated(reply),
        false => MetaReply::MutatedWatched { reply, changed },
    })
}

/// The names that an operation makes or takes away.
fn names_in(op: &Op) -> Vec<(InodeId, Name)> {
    match op {
        Op::Make { parent, name, .. }
        | Op::MakeMasked { parent, name, .. }
        | Op::Link { parent, name, .. }
        | Op::Unlink { parent, name, .. }
        | Op::Rmdir { parent, name } => vec![(*parent, name.clone())],
        Op::Rename { from_parent, from_name, to_parent, to_name, .. } => {
            vec![(*from_parent, from_name.clone()), (*to_parent, to_name.clone())]
        }
        _ => Vec::new(),
    }
}

/// What these names lead to and what their directories are, as an answer to be remembered: the session need not ask
/// for what its own change has made it forget. `None` if it may not remember it, or may not see all of it.
async fn tell(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    session: SessionId,
    caller: &Caller,
    life: u64,
    names: &[(InodeId, Name)],
) -> Result<Option<(Vec<Told>, u32)>, WireError> {
    if names.is_empty() {
        return Ok(None);
    }
    let look = || {
        let asker = Asker { caller, session, holder, now: namenode.consensus.now() };
        namenode.read(|view| told(view, &asker, names, &|node| namenode.liveness(node)))
    };
    let concerned = |told: &[Told]| -> Vec<InodeId> {
        told.iter()
            .flat_map(|told| [Some(&told.directory), told.leads_to.as_ref()])
            .flatten()
            .map(|a| a.inode)
            .collect()
    };
    let writes = namenode.watches.writes();
    let Some(mut told) = look()? else { return Ok(None) };
    let inodes = concerned(&told);
    let now = Moment::now();
    let Some(valid) = namenode.watches.watch(session, life, &inodes, namenode.lease(now), now) else {
        return Ok(None);
    };
    // As in `watched_query`: what was read before the session was noted may have changed in between unseen.
    if namenode.watches.writes() != writes {
        match look()?.filter(|told| concerned(told) == inodes) {
            Some(again) => told = again,
            None => return Ok(None),
        }
    }
    namenode.watches.settled(&inodes).await;
    Ok(Some((told, u32::try_from(valid.as_millis()).unwrap_or(0))))
}

fn told(
    view: &dyn dfs_meta::View,
    asker: &Asker<'_>,
    names: &[(InodeId, Name)],
    nodes: &dyn Fn(NodeId) -> Liveness,
) -> Result<Option<Vec<Told>>, dfs_meta::Fault> {
    let mut all = Vec::with_capacity(names.len());
    for (parent, name) in names {
        let directory = query::answer(view, asker, &Query::GetAttr { inode: *parent }, nodes)?;
        let leads_to = query::answer(view, asker, &Query::Lookup { parent: *parent, name: name.clone() }, nodes)?;
        let leads_to = match leads_to {
            Ok(Answer::Attr(attr)) => Some(attr),
            Err(error) if error.kind == ErrorKind::NotFound => None,
            _ => return Ok(None),
        };
        let Ok(Answer::Attr(directory)) = directory else { return Ok(None) };
        let empty = match leads_to.as_ref().filter(|attr| attr.kind == FileKind::Directory) {
            Some(Attr { inode, .. }) => {
                let first = Query::ReadDir { inode: *inode, after: 0, limit: 1, attrs: false };
                let page = query::answer(view, asker, &first, nodes)?;
                matches!(page, Ok(Answer::Page(page)) if page.end && page.entries.is_empty())
            }
            None => false,
        };
        all.push(Told { directory, name: name.clone(), leads_to, empty });
    }
    Ok(Some(all))
}

/// The name that an operation opens what it finds or makes under.
fn opened_name(op: &Op) -> Option<(InodeId, Name)> {
    match op {
        Op::Make { parent, name, open: Some(_), .. } | Op::MakeMasked { parent, name, open: Some(_), .. } => {
            Some((*parent, name.clone()))
        }
        _ => None,
    }
}

/// The name that an operation may take from a file.
fn removed_name(op: &Op) -> Option<(InodeId, Name)> {
    match op {
        Op::Unlink { parent, name, .. } => Some((*parent, name.clone())),
        Op::Rename { to_parent, to_name, mode: RenameMode::Replace, .. } => Some((*to_parent, to_name.clone())),
        _ => None,
    }
}

/// Refuses what makes the state grow while this namenode's disk is nearly full. What was begun is finished, and whatever
/// may make room goes on.
fn require_room(namenode: &Namenode, op: &Op) -> Result<(), WireError> {
    let grows = matches!(
        op,
        Op::Make { .. } | Op::MakeMasked { .. } | Op::Link { .. } | Op::SetXattr { .. } | Op::AllocateChunks { .. }
    );
    match grows && namenode.reserve.is_short() {
        true => Err(WireError::new(ErrorKind::NoSpace, "the disk of the leading namenode is nearly full")),
        false => Ok(()),
    }
}

/// Chooses the nodes of new chunks; empty for other operations.
fn place(namenode: &Namenode, op: &Op) -> Result<Vec<Vec<NodeId>>, WireError> {
    let Op::AllocateChunks { count, replication, avoid } = op else {
        return Ok(Vec::new());
    };
    if *count == 0 || *count > ALLOCATE_MAX || *replication == 0 || *replication > REPLICATION_MAX {
        return Err(WireError::new(ErrorKind::InvalidArgument, "too many or no chunks or copies"));
    }
    let (datanodes, duties, config) =
        namenode.read(|view| Ok((namenode.datanodes(view)?, rows::duties(view)?, rows::config(view)?)))?;
    let min_copies = config.map_or(1, |config| usize::from(config.min_copies)).min(usize::from(*replication));
    let mut avoid = avoid.clone();
    avoid.extend(namenode.nodes.slow(&datanodes, Instant::now()));
    (0..*count)
        .map(|_| {
            let nodes = namenode.nodes.for_placement(&datanodes, &duties, Instant::now());
            let chosen = placement::choose(&nodes, usize::from(*replication), &avoid, rand::random());
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
    let query = admit_query(namenode, holder, session, &caller, query).await?;
    let answer = read(namenode, holder, session, &caller, &query).await?;
    settled(namenode, &query, &answer).await;
    answer.map(MetaReply::Answer)
}

/// As `query`, and notes that the session remembers the answer.
pub async fn watched_query(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    session: SessionId,
    caller: Caller,
    query: Query,
    life: u64,
) -> Result<MetaReply, WireError> {
    let query = admit_query(namenode, holder, session, &caller, query).await?;
    let writes = namenode.watches.writes();
    let mut answer = read(namenode, holder, session, &caller, &query).await?;
    let mut valid = None;
    if let Some(inodes) = remembered(&query, &answer) {
        let now = Moment::now();
        valid = namenode.watches.watch(session, life, &inodes, namenode.lease(now), now);
        if valid.is_some() && namenode.watches.writes() != writes {
            // What was read before the session was noted may have changed in between unseen.
            answer = read(namenode, holder, session, &caller, &query).await?;
            valid = valid.filter(|_| remembered(&query, &answer).is_some_and(|again| again == inodes));
        }
    }
    settled(namenode, &query, &answer).await;
    let valid_ms = valid.map_or(0, |valid| u32::try_from(valid.as_millis()).unwrap_or(0));
    Ok(MetaReply::Watched { answer, valid_ms })
}

/// The inodes that somebody who remembers the answer has to hear of; `None` if it cannot be remembered.
fn remembered(query: &Query, answer: &Result<Answer, WireError>) -> Option<Vec<InodeId>> {
    match (query, answer) {
        (Query::Lookup { parent, .. }, Ok(Answer::Attr(attr))) => Some(vec![*parent, attr.inode]),
        (Query::Lookup { parent, .. }, Err(error)) if error.kind == ErrorKind::NotFound => Some(vec![*parent]),
        (Query::GetAttr { inode }, Ok(Answer::Attr(_))) => Some(vec![*inode]),
        (Query::ReadDir { inode, attrs: true, .. }, Ok(Answer::Page(page))) => {
            Some([*inode].into_iter().chain(page.entries.iter().map(|entry| entry.inode)).collect())
        }
        _ => None,
    }
}

/// Waits until nobody believes anything older than this answer.
async fn settled(namenode: &Namenode, query: &Query, answer: &Result<Answer, WireError>) {
    let mut inodes: Vec<InodeId> = query.inode().into_iter().collect();
    match answer {
        Ok(Answer::Attr(attr)) => inodes.push(attr.inode),
        Ok(Answer::Page(page)) => inodes.extend(page.entries.iter().map(|entry| entry.inode)),
        Ok(Answer::OpenedAhead { others, .. }) => inodes.extend(others.iter().map(|other| other.attr.inode)),
        _ => {}
    }
    namenode.watches.settled(&inodes).await;
}

/// Whether the session may ask, and everything committed so far is in the rows. What is left of the question: of files
/// that would only be opened on the way those that can be opened now.
async fn admit_query(
    namenode: &Namenode,
    holder: NodeId,
    session: SessionId,
    caller: &Caller,
    mut query: Query,
) -> Result<Query, WireError> {
    namenode.leading()?;
    check_caller(caller)?;
    namenode.sessions.renew(session, holder, Instant::now())?;
    match &mut query {
        Query::Open { inode, .. } => namenode.opens.open(session, *inode).await?,
        Query::OpenAhead { inode, others } => {
            if others.len() > OPEN_AHEAD_MAX {
                let message = format!("more than {OPEN_AHEAD_MAX} files at once");
                return Err(WireError::new(ErrorKind::InvalidArgument, message));
            }
            namenode.opens.open(session, *inode).await?;
            others.retain(|other| namenode.opens.open_now(session, *other));
        }
        _ => {}
    }
    namenode.read_barrier().await?;
    Ok(query)
}

async fn read(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    session: SessionId,
    caller: &Caller,
    query: &Query,
) -> Result<Result<Answer, WireError>, WireError> {
    // Most answers are a few rows that are in memory: less work than a hop to another thread.
    let long = matches!(
        query,
        Query::ReadDir { .. }
            | Query::Locate { .. }
            | Query::OpenAhead { .. }
            | Query::StatFs
            | Query::ListXattrs { .. }
    );
    let answer = {
        let (me, caller, query) = (namenode.clone(), caller.clone(), query.clone());
        move |view: &dyn dfs_meta::View| {
            let asker = Asker { caller: &caller, session, holder, now: me.consensus.now() };
            let answer = query::answer(view, &asker, &query, &|node| me.liveness(node))?;
            if let (Query::StatFs, Ok(_)) = (&query, &answer) {
                let nodes = me.nodes.for_placement(&me.datanodes(view)?, &rows::duties(view)?, Instant::now());
                return Ok((Ok(Answer::StatFs(query::stat_fs(view, &nodes)?)), Vec::new()));
            }
            let private = query::private_in_answer(view, session, &query, &answer)?;
            Ok((answer, private))
        }
    };
    let mut recall = Recall::new(namenode);
    loop {
        let (answer, private) = match long {
            true => namenode.read_long(answer.clone()).await?,
            false => namenode.read(&answer)?,
        };
        if recall.shared(|_| Ok(private)).await? {
            return Ok(answer);
        }
        // What is read next is read under a lease of its own.
        namenode.read_barrier().await?;
    }
}

/// Tells a session what it has to forget, until either side ends the stream.
pub async fn watch(
    namenode: &Arc<Namenode>,
    holder: NodeId,
    session: SessionId,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let admitted = namenode.leading().and_then(|_| namenode.sessions.renew(session, holder, Instant::now()));
    if let Err(error) = admitted {
        // A client that has gone meanwhile asks again.
        let _ = send.send(&Err::<MetaReply, _>(error)).await;
        return send.finish();
    }
    let (life, mut revocations) = namenode.watches.begin(session, Moment::now());
    let tell = async {
        send.send(&Ok::<_, WireError>(MetaReply::Watching { life })).await?;
        while let Some(revocation) = revocations.recv().await {
            send.send(&revocation).await?;
        }
        // Another stream took this one's place, or it did not keep up.
        Ok::<_, RpcError>(())
    };
    let hear = async {
        while let Some(RevocationDone { number }) = recv.recv_optional().await? {
            namenode.watches.done(session, life, number);
        }
        Ok::<_, RpcError>(())
    };
    let ended = tokio::select! {
        ended = tell => ended,
        ended = hear => ended,
    };
    debug!(%session, life, ?ended, "watch stream ended");
    namenode.watches.end(session, life);
    send.reset();
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
        Op::Fallocate { .. } => "fallocate",
        Op::CloneRange { .. } => "clone range",
        Op::NoteReads { .. } => "note reads",
        Op::Lock { .. } => "lock",
        Op::Unlock { .. } => "unlock",
        Op::MakeMasked { .. } => "make",
        Op::SetXattr { .. } => "set extended attribute",
        Op::RemoveXattr { .. } => "remove extended attribute",
        Op::Open { .. } => "open",
        Op::Reserve { .. } => "reserve inodes",
        Op::Sequence { .. } => "sequence",
        Op::Share { .. } => "share directories",
    }
}

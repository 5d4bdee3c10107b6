//! Dispatches commands. What each does is in its own file under `ops`.

use dfs_proto::msg::meta::{Op, OpReply};
use dfs_proto::{Caller, ErrorKind, InodeId, NodeId, RequestId, SessionId, Timestamp, WireError};

use crate::command::{Applied, Body, Command, Outcome, Reply};
use crate::dedup::{self, Request};
use crate::ops::make::Make;
use crate::ops::rename::Rename;
use crate::ops::{
    allocate, clone, commit, compact, datanode, fallocate, genesis, link, lock, namenode, note_reads, open, reclaim,
    release, replica, reserve, rmdir, sequence, session, set_attr, share, unlink, xattr,
};
use crate::private::{self, Touched};
use crate::tx::{Failure, Tx};
use crate::view::{Fault, View};

/// On whose behalf an operation is done.
pub(crate) struct Client<'a> {
    pub session: SessionId,
    pub caller: &'a Caller,
    pub now: Timestamp,
    pub knowledge: Option<Knowledge<'a>>,
    /// The number that the session has chosen for what this makes, out of those it has reserved.
    pub chosen: Option<InodeId>,
}

/// What the leader knew of who has a file open whose name is to be removed.
#[derive(Clone, Copy)]
pub(crate) struct Knowledge<'a> {
    pub expected: Option<InodeId>,
    pub holders: &'a [SessionId],
    pub undecided: bool,
}

/// Applies a batch. Later commands see what earlier ones did. A refused command changes nothing; a
/// fault ends everything, and none of the batch may be written.
pub fn apply(view: &dyn View, commands: &[Command]) -> Result<Applied, Fault> {
    let mut tx = Tx::open(view)?;
    let mut outcomes = Vec::with_capacity(commands.len());
    let mut changed = Vec::with_capacity(commands.len());
    for command in commands {
        outcomes.push(apply_one(&mut tx, command)?);
        changed.push(tx.keep());
    }
    let (changes, events) = tx.finish()?;
    Ok(Applied { outcomes, changes, events, changed })
}

fn apply_one(tx: &mut Tx<'_>, command: &Command) -> Result<Outcome, Fault> {
    let now = command.now;
    match &command.body {
        Body::Client { id, acked_below, caller, op, placement } => {
            let client = Client { session: id.session, caller, now, knowledge: None, chosen: None };
            let outcome = once(tx, *id, *acked_below, |tx| operate(tx, &client, op, placement))?;
            Ok(outcome.map(Reply::Op))
        }
        Body::Removal { id, acked_below, caller, op, expected, holders, undecided } => {
            let knowledge = Some(Knowledge { expected: *expected, holders, undecided: *undecided });
            let client = Client { session: id.session, caller, now, knowledge, chosen: None };
            let outcome = once(tx, *id, *acked_below, |tx| operate(tx, &client, op, &[]))?;
            Ok(outcome.map(Reply::Op))
        }
        body => tx.attempt(|tx| administer(tx, now, body)),
    }
}

/// Does a client's request unless it was done before.
fn once<'v>(
    tx: &mut Tx<'v>,
    id: RequestId,
    acked_below: u64,
    operate: impl FnOnce(&mut Tx<'v>) -> Result<OpReply, Failure>,
) -> Result<Result<OpReply, WireError>, Fault> {
    match dedup::admit(tx, id, acked_below)? {
        Request::Answered(outcome) => Ok(outcome),
        Request::New => {
            let outcome = tx.attempt(operate)?;
            // The leader has the directory shared and asks again, under the same number.
            if !matches!(&outcome, Err(error) if error.kind == ErrorKind::Private) {
                dedup::remember(tx, id, &outcome)?;
            }
            Ok(outcome)
        }
    }
}

/// `perform`, unless another session has one of the directories that it touches for itself.
fn operate(tx: &mut Tx<'_>, client: &Client<'_>, op: &Op, placement: &[Vec<NodeId>]) -> Result<OpReply, Failure> {
    match private::in_the_way(tx.view(), client.session, &Touched::by_op(op))?.first() {
        Some((inode, session)) => Err(private::refusal(*inode, *session)),
        None => perform(tx, client, op, placement),
    }
}

pub(crate) fn perform(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    op: &Op,
    placement: &[Vec<NodeId>],
) -> Result<OpReply, Failure> {
    match op {
        Op::Make { parent, name, node, mode, exclusive, open, replication } => Make {
            parent: *parent,
            name,
            node,
            mode: *mode,
            umask: 0,
            exclusive: *exclusive,
            open: *open,
            replication: *replication,
            private: false,
        }
        .apply(tx, client),
        Op::Link { inode, parent, name } => link::apply(tx, client, *inode, *parent, name),
        Op::Unlink { parent, name, hold } => unlink::apply(tx, client, *parent, name, *hold),
        Op::Rmdir { parent, name } => rmdir::apply(tx, client, *parent, name),
        Op::Rename { from_parent, from_name, to_parent, to_name, mode, hold } => {
            Rename { from_parent: *from_parent, from_name, to_parent: *to_parent, to_name, mode: *mode, hold: *hold }
                .apply(tx, client)
        }
        Op::SetAttr { inode, set, grant } => set_attr::apply(tx, client, *inode, set, grant.is_some()),
        Op::Release { inodes } => release::apply(tx, client, inodes),
        Op::AllocateChunks { count, replication, avoid: _ } => {
            allocate::apply(tx, client, *count, *replication, placement)
        }
        Op::Commit { chunks, files } => commit::apply(tx, client, chunks, files),
        Op::CloseSession => session::close(tx, client.session),
        Op::Fallocate { inode, grant: _, offset, len, zero, keep_size } => {
            fallocate::apply(tx, client, *inode, *offset, *len, *zero, *keep_size)
        }
        Op::CloneRange { source, source_grant: _, source_offset, inode, grant: _, offset, len } => {
            let source = clone::Place { inode: *source, offset: *source_offset };
            clone::apply(tx, client, source, clone::Place { inode: *inode, offset: *offset }, *len)
        }
        Op::NoteReads { reads } => note_reads::apply(tx, reads),
        Op::Lock { inode, claim } => lock::lock(tx, client, *inode, claim),
        Op::Unlock { inode, owner, range } => lock::unlock(tx, client, *inode, *owner, *range),
        Op::MakeMasked { parent, name, node, mode, umask, exclusive, open, replication, private } => Make {
            parent: *parent,
            name,
            node,
            mode: *mode,
            umask: *umask,
            exclusive: *exclusive,
            open: *open,
            replication: *replication,
            private: *private,
        }
        .apply(tx, client),
        Op::SetXattr { inode, name, value, mode } => xattr::set(tx, client, *inode, name, value, *mode),
        Op::RemoveXattr { inode, name } => xattr::remove(tx, client, *inode, name),
        Op::Open { inode, read, write } => open::apply(tx, client, *inode, *read, *write),
        Op::Reserve { count } => reserve::apply(tx, client, *count),
        Op::Sequence { steps } => sequence::apply(tx, client, steps),
        Op::Share { inodes } => share::apply(tx, client, inodes),
    }
}

fn administer(tx: &mut Tx<'_>, now: Timestamp, body: &Body) -> Result<Reply, Failure> {
    match body {
        Body::Genesis { cluster, default_replication, min_copies, lease_ms, key } => {
            genesis::apply(tx, now, *cluster, *default_replication, *min_copies, *lease_ms, key)
        }
        Body::OpenSession { description, holder } => session::open(tx, now, description, *holder),
        Body::ExpireSessions { sessions } => session::expire(tx, sessions),
        Body::PutDatanode { node, addr } => datanode::put(tx, *node, *addr),
        Body::AddReplica { chunk, epoch, len, node } => replica::add(tx, *chunk, *epoch, *len, *node),
        Body::DropReplica { chunk, epoch, node } => replica::drop(tx, *chunk, *epoch, *node),
        Body::RotateKey { key } => genesis::rotate_key(tx, key),
        Body::Reclaim { inodes, extents_max } => reclaim::apply(tx, inodes, *extents_max),
        Body::Holders { changes } => release::change_holders(tx, changes),
        Body::SetDuty { node, before, after } => datanode::set_duty(tx, *node, *before, *after),
        Body::AdmitNamenode { node, disk } => namenode::admit(tx, *node, *disk),
        Body::RetireNamenode { node } => namenode::retire(tx, *node),
        Body::CheckState => Ok(Reply::Done),
        Body::SetBalance(balance) => datanode::set_balance(tx, *balance),
        Body::CutChunk { chunk, epoch, len, replicas } => replica::cut(tx, *chunk, *epoch, *len, replicas),
        Body::BeginCompaction { sources, pieces, nodes } => compact::begin(tx, sources, pieces, nodes),
        Body::Relocate { chunk, extents } => compact::relocate(tx, *chunk, extents),
        Body::EndCompaction { chunk } => compact::end(tx, *chunk),
        Body::Client { .. } | Body::Removal { .. } => {
            Err(Failure::Fault(Fault("a client's request is not dispatched here".into())))
        }
    }
}

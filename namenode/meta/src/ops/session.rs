//! Sessions: opened, closed in order, or expired with everything they leave behind.

use dfs_proto::msg::meta::{OpReply, SessionGrant};
use dfs_proto::{ErrorKind, NodeId, SessionId, Timestamp};

use crate::chunks;
use crate::command::Reply;
use crate::ops::{lock, reclaim};
use crate::rows::{self, ReplyRow, SessionInodesRow, SessionRow};
use crate::tx::{Failure, Tx, refuse};
use crate::usage::shifted;
use crate::view::Fault;

/// In bytes; it is shown to people and kept as long as the session.
const DESCRIPTION_MAX: usize = 255;

pub(crate) fn open(tx: &mut Tx<'_>, now: Timestamp, description: &str, holder: NodeId) -> Result<Reply, Failure> {
    let config = tx.config()?;
    if description.len() > DESCRIPTION_MAX {
        let message = format!("a session's description has at most {DESCRIPTION_MAX} bytes");
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    let session = tx.totals.next_session;
    tx.totals.next_session = SessionId(session.0 + 1);
    tx.totals.counts.sessions += 1;
    let row = SessionRow { description: description.to_owned(), holder, opened: now, acked_below: 1 };
    tx.put(SessionRow::key(session), &row)?;
    Ok(Reply::Session(SessionGrant {
        session,
        lease_ms: config.lease_ms,
        min_copies: config.min_copies,
        default_replication: config.default_replication,
    }))
}

/// The session's own request to end.
pub(crate) fn close(tx: &mut Tx<'_>, session: SessionId) -> Result<OpReply, Failure> {
    end(tx, session)?;
    Ok(OpReply::Done)
}

/// Ends sessions that were not renewed. One that has ended already is passed over.
pub(crate) fn expire(tx: &mut Tx<'_>, sessions: &[SessionId]) -> Result<Reply, Failure> {
    for session in sessions {
        if rows::session(tx.view(), *session)?.is_some() {
            end(tx, *session)?;
        }
    }
    Ok(Reply::Done)
}

/// Seals what the session has open at the committed lengths, gives up what it held, forgets its replies.
fn end(tx: &mut Tx<'_>, session: SessionId) -> Result<(), Fault> {
    for chunk in rows::session_chunks(tx.view(), session)? {
        let row = rows::chunk(tx.view(), chunk)?
            .ok_or_else(|| Fault(format!("session {session} has chunk {chunk} open, which does not exist")))?;
        let replicas = row.replicas.clone();
        chunks::seal(tx, chunk, row, replicas)?;
    }
    for inode in rows::orphans(tx.view(), session, usize::MAX)? {
        reclaim::leave(tx, inode, session, false)?;
    }
    lock::forget_session(tx, session)?;
    for number in rows::replies_below(tx.view(), session, 0, u64::MAX)? {
        tx.delete(ReplyRow::key(session, number));
    }
    for (first, _) in rows::session_inodes(tx.view(), session)? {
        tx.delete(SessionInodesRow::key(session, first));
    }
    tx.delete(SessionRow::key(session));
    tx.totals.counts.sessions = shifted(tx.totals.counts.sessions, -1, "sessions")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::Op;
    use dfs_proto::{Epoch, InodeId};

    use super::*;
    use crate::command::{Body, Event};
    use crate::rows::RECLAIM_QUEUE;
    use crate::testing::{Rig, kind_of};

    #[test]
    fn an_expired_writer_leaves_its_chunk_sealed_at_the_committed_length() {
        let mut rig = Rig::new();
        let file = rig.create(InodeId::ROOT, "a").inode;
        let chunk = rig.allocate(1)[0];
        rig.commit_at(file, chunk, 0, 500, false).unwrap();

        rig.apply(Body::ExpireSessions { sessions: vec![rig.session] }).unwrap();

        let row = rows::chunk(&rig.state, chunk).unwrap().unwrap();
        assert!(row.is_sealed());
        assert_eq!((row.epoch, row.len, row.replicas.len()), (Epoch::FIRST.next(), 500, 3));
        let sealed = Event::Sealed { chunk, epoch: row.epoch, len: 500, replicas: row.replicas.clone() };
        assert!(rig.events.contains(&sealed));
        assert_eq!(kind_of(rig.op(Op::Release { inodes: vec![] })), Some(ErrorKind::SessionExpired));
    }

    #[test]
    fn a_chunk_that_nothing_was_committed_to_goes_with_its_session() {
        let mut rig = Rig::new();
        let chunk = rig.allocate(1)[0];
        rig.op(Op::CloseSession).unwrap();
        assert_eq!(rows::chunk(&rig.state, chunk).unwrap(), None);
        assert!(matches!(rig.events.last(), Some(Event::ChunkDeleted { .. })));
        assert_eq!(rig.totals().counts.chunks, 0);
    }

    #[test]
    fn what_a_session_held_goes_to_the_reclaim_queue_and_its_replies_go() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 100);
        rig.unlink(InodeId::ROOT, "a", Some(file)).unwrap();
        let session = rig.session;
        rig.op(Op::CloseSession).unwrap();
        assert_eq!(rows::orphans(&rig.state, RECLAIM_QUEUE, 9).unwrap(), [file]);
        assert_eq!(rows::session(&rig.state, session).unwrap(), None);
        assert!(rows::replies_below(&rig.state, session, 0, u64::MAX).unwrap().is_empty());
        assert_eq!(rig.totals().counts.sessions, 0);
        assert_eq!(kind_of(rig.try_attr(file)), Some(ErrorKind::Stale));
    }

    #[test]
    fn expiring_twice_is_expiring_once() {
        let mut rig = Rig::new();
        let mine = rig.session;
        rig.apply(Body::ExpireSessions { sessions: vec![mine, mine, SessionId(99)] }).unwrap();
        let before = rig.state.clone();
        rig.apply(Body::ExpireSessions { sessions: vec![mine] }).unwrap();
        assert_eq!(rig.state, before);
    }

    #[test]
    fn a_session_number_is_never_used_again() {
        let mut rig = Rig::new();
        let first = rig.session;
        rig.op(Op::CloseSession).unwrap();
        rig.open_session();
        assert!(rig.session > first);
        let long = Body::OpenSession { description: "x".repeat(256), holder: NodeId(1) };
        assert_eq!(kind_of(rig.apply(long)), Some(ErrorKind::InvalidArgument));
    }
}

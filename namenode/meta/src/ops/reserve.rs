//! Reserve: numbers of inodes that a session gives to what it makes in its private directories.

use dfs_proto::limits::RESERVE_MAX;
use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ErrorKind, InodeId, SessionId};

use crate::apply::Client;
use crate::rows::{self, SessionInodesRow};
use crate::tx::{Failure, Tx, refuse};

pub(crate) fn apply(tx: &mut Tx<'_>, client: &Client<'_>, count: u32) -> Result<OpReply, Failure> {
    let left: u64 =
        rows::session_inodes(tx.view(), client.session)?.iter().map(|(_, row)| row.end.0 - row.next.0).sum();
    if count == 0 || left + u64::from(count) > u64::from(RESERVE_MAX) {
        let message = format!("a session has at most {RESERVE_MAX} numbers of inodes in reserve, and {left} are left");
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    let first = tx.totals.next_inode;
    let end = InodeId(first.0 + u64::from(count));
    tx.totals.next_inode = end;
    tx.put(SessionInodesRow::key(client.session, first), &SessionInodesRow { next: first, end })?;
    Ok(OpReply::Reserved { first })
}

/// Uses up a number, and those below it that were reserved with it: none is ever used twice.
pub(crate) fn take(tx: &mut Tx<'_>, session: SessionId, chosen: InodeId) -> Result<InodeId, Failure> {
    for (first, row) in rows::session_inodes(tx.view(), session)? {
        if (row.next..row.end).contains(&chosen) {
            let next = InodeId(chosen.0 + 1);
            let key = SessionInodesRow::key(session, first);
            match next == row.end {
                true => tx.delete(key),
                false => tx.put(key, &SessionInodesRow { next, ..row })?,
            }
            return Ok(chosen);
        }
    }
    Err(refuse(ErrorKind::Malformed, format!("session {session} has not reserved inode {chosen}, or has used it")))
}

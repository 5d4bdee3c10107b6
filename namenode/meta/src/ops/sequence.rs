//! Sequence: what a session has done in its private directories, in the order in which it did it. By then its programs
//! have had their answers, so a step that is refused is a step that the session's copy of the rows has wrongly allowed.

use dfs_proto::ErrorKind;
use dfs_proto::limits::{GROUPS_MAX, SEQUENCE_MAX};
use dfs_proto::msg::meta::{Op, OpReply, Step};

use crate::apply::{Client, perform};
use crate::private::{self, Touched};
use crate::rows;
use crate::tx::{Failure, Tx, refuse};

pub(crate) fn apply(tx: &mut Tx<'_>, client: &Client<'_>, steps: &[Step]) -> Result<OpReply, Failure> {
    if steps.len() > SEQUENCE_MAX {
        return Err(refuse(ErrorKind::Malformed, format!("more than {SEQUENCE_MAX} steps in one sequence")));
    }
    let mut grants = Vec::new();
    for step in steps {
        if !may_be_step(&step.op) || step.caller.groups.len() > GROUPS_MAX {
            return Err(refuse(ErrorKind::Malformed, "this may not be part of a sequence"));
        }
        let touched = Touched::by_op(&step.op);
        if let Some((inode, other)) = private::in_the_way(tx.view(), client.session, &touched)?.first() {
            return Err(refuse(ErrorKind::Forbidden, format!("directory {inode} is private to session {other}")));
        }
        for (parent, _) in &touched.names {
            if rows::inode(tx.view(), *parent)?.and_then(|row| row.private()) != Some(client.session) {
                let message = format!("directory {parent} is not private to session {}", client.session);
                return Err(refuse(ErrorKind::Forbidden, message));
            }
        }
        let by =
            Client { session: client.session, caller: &step.caller, now: step.at, knowledge: None, chosen: step.inode };
        match perform(tx, &by, &step.op, &[]) {
            Ok(OpReply::Made { grant: Some(grant), .. } | OpReply::Opened { grant }) => grants.push(grant),
            // It changes nothing, and whoever needs the proof asks for it again.
            Err(Failure::Refused(_)) if matches!(step.op, Op::Open { .. }) => {}
            done => drop(done?),
        }
    }
    Ok(OpReply::Sequence { grants })
}

/// Whether a session may do this by itself: all that it reads and changes is in its copy of its private directories.
pub(crate) fn may_be_step(op: &Op) -> bool {
    match op {
        Op::MakeMasked { .. }
        | Op::Open { .. }
        | Op::Link { .. }
        | Op::Unlink { .. }
        | Op::Rmdir { .. }
        | Op::Rename { .. }
        | Op::SetXattr { .. }
        | Op::RemoveXattr { .. }
        | Op::Release { .. } => true,
        // The extents of its files a session does not have.
        Op::SetAttr { set, grant, .. } => set.size_bytes.is_none() && set.replication.is_none() && grant.is_none(),
        _ => false,
    }
}

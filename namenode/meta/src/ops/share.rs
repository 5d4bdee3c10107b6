//! Share: directories that were private to a session are everybody's.

use dfs_proto::ErrorKind;
use dfs_proto::InodeId;
use dfs_proto::limits::SEQUENCE_MAX;
use dfs_proto::msg::meta::OpReply;

use crate::apply::Client;
use crate::rows::{self, Content, InodeRow};
use crate::tx::{Failure, Tx, refuse};

pub(crate) fn apply(tx: &mut Tx<'_>, client: &Client<'_>, inodes: &[InodeId]) -> Result<OpReply, Failure> {
    if inodes.len() > SEQUENCE_MAX {
        return Err(refuse(ErrorKind::Malformed, format!("more than {SEQUENCE_MAX} directories to share at once")));
    }
    for inode in inodes {
        // What is gone meanwhile, or was shared before, needs nothing.
        let Some(mut row) = rows::inode(tx.view(), *inode)? else { continue };
        if row.private() == Some(client.session)
            && let Content::Directory { private, .. } = &mut row.content
        {
            *private = None;
            tx.put(InodeRow::key(*inode), &row)?;
        }
    }
    Ok(OpReply::Done)
}

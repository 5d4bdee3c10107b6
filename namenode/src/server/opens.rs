//! What clients say of the files they have open, and who holds what has lost its name.

use std::sync::Arc;
use std::time::Instant;

use dfs_meta::rows::{self, UNDECIDED};
use dfs_meta::{Body, HolderChange};
use dfs_proto::msg::meta::MetaReply;
use dfs_proto::{InodeId, NodeId, SessionId, WireError};
use tracing::warn;

use crate::namenode::Namenode;

/// Inodes in one command.
const CHANGES_MAX: usize = 256;

/// Files that a session has closed. What it held of them goes.
pub async fn closed(
    namenode: &Arc<Namenode>,
    client: NodeId,
    session: SessionId,
    inodes: Vec<InodeId>,
) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    namenode.sessions.renew(session, client, Instant::now())?;
    namenode.opens.closed(session, &inodes);
    let held = namenode.read(|view| {
        let mut held = Vec::new();
        for inode in inodes {
            if rows::get(view, &rows::OrphanRow::key(session, inode))?.is_some() {
                held.push(inode);
            }
        }
        Ok(held)
    })?;
    leave(namenode, held.into_iter().map(|inode| (inode, session)).collect()).await?;
    Ok(MetaReply::Done)
}

/// A page of what a session has open.
pub async fn announce(
    namenode: &Arc<Namenode>,
    client: NodeId,
    session: SessionId,
    inodes: Vec<InodeId>,
    last: bool,
) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    namenode.sessions.renew(session, client, Instant::now())?;
    namenode.opens.announced(session, &inodes, last)?;
    if last {
        // What it closed while nobody listened.
        let held = namenode.read(|view| rows::orphans(view, session, usize::MAX))?;
        let closed = held.into_iter().filter(|inode| !namenode.opens.is_open(session, *inode));
        leave(namenode, closed.map(|inode| (inode, session)).collect()).await?;
    }
    Ok(MetaReply::Done)
}

/// After an inode has become an orphan: whoever closed it on the way no longer holds it.
pub fn recheck(namenode: &Arc<Namenode>, inode: InodeId, holders: Vec<SessionId>) {
    let closed = holders.into_iter().filter(|session| !namenode.opens.is_open(*session, inode));
    let closed: Vec<_> = closed.map(|session| (inode, session)).collect();
    if closed.is_empty() {
        return;
    }
    let namenode = namenode.clone();
    tokio::spawn(async move {
        if let Err(error) = leave(&namenode, closed).await {
            // The next announcement of the session, or its end, does it.
            warn!(%inode, %error, "a nameless inode is still held");
        }
    });
}

/// Decides about inodes that lost their names while it was not known who had them open. Returns whether
/// there were any.
pub async fn settle(namenode: &Arc<Namenode>) -> Result<bool, WireError> {
    if !namenode.opens.is_complete() {
        return Ok(false);
    }
    let inodes = namenode.read(|view| rows::orphans(view, UNDECIDED, CHANGES_MAX))?;
    if inodes.is_empty() {
        return Ok(false);
    }
    let (mut guards, mut changes) = (Vec::new(), Vec::new());
    for inode in inodes {
        let (guard, join) = namenode.opens.settle(inode);
        guards.push(guard);
        changes.push(HolderChange { inode, leave: vec![UNDECIDED], join });
    }
    namenode.propose(Body::Holders { changes: changes.clone() }).await?;
    drop(guards);
    for change in changes {
        recheck(namenode, change.inode, change.join);
    }
    Ok(true)
}

async fn leave(namenode: &Namenode, held: Vec<(InodeId, SessionId)>) -> Result<(), WireError> {
    for page in held.chunks(CHANGES_MAX) {
        let change = |(inode, session): &(InodeId, SessionId)| HolderChange {
            inode: *inode,
            leave: vec![*session],
            join: Vec::new(),
        };
        namenode.propose(Body::Holders { changes: page.iter().map(change).collect() }).await?;
    }
    Ok(())
}

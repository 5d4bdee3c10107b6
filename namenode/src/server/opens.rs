//! What clients say of the files they have open, and who holds what has lost its name.

use std::sync::Arc;

use dfs_meta::rows::{self, UNDECIDED};
use dfs_meta::{Body, HolderChange, query};
use dfs_proto::msg::meta::MetaReply;
use dfs_proto::{ErrorKind, InodeId, NodeId, SessionId, WireError};
use tokio::time::Instant;
use tracing::warn;

use crate::leader::{Leaving, Removing};
use crate::namenode::Namenode;
use crate::raft::Kept;

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

/// Notes that a command has found or made a file and opened it for a session. Nobody knew which file that would be
/// before, so its names may be gone by now, and the file with them.
///
/// # Errors
/// `Stale` if it is: whoever asked may ask again, with a new request, for what the name leads to then.
pub async fn opened(namenode: &Namenode, session: SessionId, inode: InodeId) -> Result<(), WireError> {
    // From here on every removal knows of it; what those under way have done shows in the rows.
    namenode.opens.open(session, inode).await?;
    let held = namenode.read(|view| query::is_kept(view, inode, session))?;
    if !held {
        namenode.opens.closed(session, &[inode]);
        return Err(WireError::new(ErrorKind::Stale, format!("inode {inode} was removed before it was opened")));
    }
    Ok(())
}

/// The removal of a name until it is decided. While it lasts nobody opens the inode that was seen behind the name;
/// when it is over, whoever has closed that inode on the way no longer holds it.
pub struct Removal {
    namenode: Arc<Namenode>,
    guard: Option<Removing>,
    inode: Option<InodeId>,
    holders: Vec<SessionId>,
}

impl Removal {
    pub fn new(namenode: &Arc<Namenode>, guard: Removing, inode: Option<InodeId>, holders: Vec<SessionId>) -> Removal {
        Removal { namenode: namenode.clone(), guard: Some(guard), inode, holders }
    }
}

impl Drop for Removal {
    fn drop(&mut self) {
        if let Some(inode) = self.inode {
            recheck(&self.namenode, inode, std::mem::take(&mut self.holders));
        }
        self.guard = None;
    }
}

/// After an inode has become an orphan: whoever closed it on the way no longer holds it. Called while nobody can open
/// it, and until they have let go nobody can: an open in between would be answered, and the file gone.
fn recheck(namenode: &Arc<Namenode>, inode: InodeId, holders: Vec<SessionId>) {
    let held: Vec<_> = holders.into_iter().map(|session| (inode, session)).collect();
    let leaving = namenode.opens.leaving(&held);
    if leaving.is_empty() {
        return;
    }
    // Without a runtime this process ends, and the next leader asks everybody.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let namenode = namenode.clone();
    runtime.spawn(async move {
        if let Err(error) = let_go(&namenode, leaving).await {
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
        guards.push(Removal::new(namenode, guard, Some(inode), join.clone()));
        changes.push(HolderChange { inode, leave: vec![UNDECIDED], join });
    }
    let kept: Kept = Box::new(guards);
    namenode.propose_keeping(Body::Holders { changes }, Some(kept)).await?;
    Ok(true)
}

async fn leave(namenode: &Namenode, held: Vec<(InodeId, SessionId)>) -> Result<(), WireError> {
    for page in held.chunks(CHANGES_MAX) {
        let_go(namenode, namenode.opens.leaving(page)).await?;
    }
    Ok(())
}

async fn let_go(namenode: &Namenode, leaving: Vec<Leaving>) -> Result<(), WireError> {
    if leaving.is_empty() {
        return Ok(());
    }
    let change =
        |leaving: &Leaving| HolderChange { inode: leaving.inode, leave: vec![leaving.session], join: Vec::new() };
    let changes = leaving.iter().map(change).collect();
    let kept: Kept = Box::new(leaving);
    namenode.propose_keeping(Body::Holders { changes }, Some(kept)).await?;
    Ok(())
}

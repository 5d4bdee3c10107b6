//! Waits until sessions have shared what they had for themselves.
//!
//! That a directory is private is in the rows; who waits for it is soft state, and decides nothing. The session is asked
//! on its watch stream, again and again, because it may be without one for a moment. What bounds the wait of everybody
//! else is the session's lease: a session that has ended has nothing for itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::{Fault, View};
use dfs_proto::{ErrorKind, InodeId, SessionId, WireError};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::namenode::Namenode;

/// After so long the session is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Whoever waits is told to come again after so long.
const WAIT: Duration = Duration::from_secs(10);

#[derive(Default)]
pub struct Recalls {
    /// Something was shared, or a session has ended.
    progress: Notify,
}

impl Recalls {
    pub fn shared(&self) {
        self.progress.notify_waiters();
    }
}

/// One request that waits.
pub struct Recall<'a> {
    namenode: &'a Arc<Namenode>,
    until: Instant,
}

impl<'a> Recall<'a> {
    pub fn new(namenode: &'a Arc<Namenode>) -> Recall<'a> {
        Recall { namenode, until: Instant::now() + WAIT }
    }

    /// Whether nothing is in the way. If something is, the sessions that have it are asked to share it, and the answer
    /// comes when it is worth looking again.
    pub async fn shared(
        &mut self,
        in_the_way: impl FnOnce(&dyn View) -> Result<Vec<(InodeId, SessionId)>, Fault>,
    ) -> Result<bool, WireError> {
        let progress = self.namenode.recalls.progress.notified();
        tokio::pin!(progress);
        // From here on nothing is missed.
        progress.as_mut().enable();
        let private = self.namenode.read(in_the_way)?;
        if private.is_empty() {
            return Ok(true);
        }
        if Instant::now() >= self.until {
            let message = "another client has this directory for itself and does not answer";
            return Err(WireError::new(ErrorKind::Timeout, message));
        }
        let mut by_session: BTreeMap<SessionId, Vec<InodeId>> = BTreeMap::new();
        for (inode, session) in private {
            by_session.entry(session).or_default().push(inode);
        }
        for (session, inodes) in by_session {
            self.namenode.watches.recall(session, &inodes);
        }
        tokio::select! {
            () = progress => {}
            () = tokio::time::sleep(ASK_AGAIN) => {}
        }
        Ok(false)
    }
}

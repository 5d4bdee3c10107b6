//! Locks of files. They belong to the session: what it held is gone when it has ended, and whoever relied
//! on a lock must ask `holds_session` before it goes on.

use std::time::Duration;

use dfs_proto::limits::LOCK_WAIT_MAX_MS;
use dfs_proto::msg::meta::{Answer, LockClaim, LockOwner, LockRange, MetaReply, MetaRequest, Op, Query};
use dfs_proto::{Caller, ErrorKind, InodeId, SessionId};
use tracing::debug;

use crate::deadline::Deadline;
use crate::dfs::Dfs;
use crate::error::{Error, Result, unexpected_answer};
use crate::leader::ATTEMPT;

/// What came of waiting for a lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Chance {
    /// Ask for the lock now.
    Now,
    /// Wait again: the place in the queue is kept for a moment.
    NotYet,
}

impl Dfs {
    /// The session that locks are taken in from now on.
    pub async fn lock_session(&self) -> Result<SessionId> {
        self.client.session(self.client.deadline()).await.map(|session| session.id())
    }

    /// Takes a lock in this very session, or fails with `WouldBlock`.
    pub async fn lock(&self, session: SessionId, inode: InodeId, claim: LockClaim) -> Result<()> {
        self.change_locks(session, Op::Lock { inode, claim }).await
    }

    /// Gives locks of this very session back.
    pub async fn unlock(&self, session: SessionId, inode: InodeId, owner: LockOwner, range: LockRange) -> Result<()> {
        self.change_locks(session, Op::Unlock { inode, owner, range }).await
    }

    /// The first lock in the way of a claim, and whether it is this client's.
    pub async fn test_lock(&self, inode: InodeId, claim: LockClaim) -> Result<Option<(LockClaim, bool)>> {
        match self.client.query(&Caller::ROOT, Query::TestLock { inode, claim }).await? {
            Answer::Lock(found) => {
                let own = self.client.sessions.current().map(|session| session.id());
                Ok(found.map(|(session, claim)| (claim, Some(session) == own)))
            }
            _ => Err(unexpected_answer("TestLock")),
        }
    }

    /// Waits until a claim has a chance, some seconds at most. Dropped in the middle, it leaves a place in
    /// the queue that is soon given up; `stop_waiting` gives it up at once.
    pub async fn await_lock(
        &self,
        session: SessionId,
        inode: InodeId,
        claim: LockClaim,
        detect_deadlock: bool,
    ) -> Result<Chance> {
        let wait_ms = LOCK_WAIT_MAX_MS;
        let request = MetaRequest::AwaitLock { session, inode, claim, detect_deadlock, wait_ms };
        let attempt = ATTEMPT + Duration::from_millis(wait_ms);
        match self.client.group.call(&request, attempt, self.client.deadline()).await {
            Ok(MetaReply::Done) => Ok(Chance::Now),
            Ok(_) => Err(unexpected_answer("AwaitLock")),
            Err(failed) if failed.error.kind == ErrorKind::WouldBlock => Ok(Chance::NotYet),
            Err(failed) => Err(self.lock_error(session, failed.error)),
        }
    }

    /// Says, in the background, that nobody waits for a claim any more.
    pub fn stop_waiting(&self, session: SessionId, inode: InodeId, claim: LockClaim) {
        let client = self.client.clone();
        tokio::spawn(async move {
            let request = MetaRequest::AwaitLock { session, inode, claim, detect_deadlock: false, wait_ms: 0 };
            if let Err(failed) = client.group.call(&request, ATTEMPT, Deadline::after(ATTEMPT)).await {
                debug!(%inode, error = %failed.error, "place in a queue not given up");
            }
        });
    }

    /// Whether what this session holds is certainly still held. Costs nothing while the lease is fresh; a
    /// client that was cut off for longer asks first.
    pub async fn holds_session(&self, session: SessionId) -> Result<bool> {
        let Some(current) = self.client.sessions.current().filter(|current| current.id() == session) else {
            return Ok(false);
        };
        if current.lease_lasts() {
            return Ok(true);
        }
        let deadline = self.client.deadline();
        while !current.lease_lasts() {
            // What is open is announced with the next renewal.
            if let Err(error) = self.client.sessions.renew(&current).await {
                debug!(%session, %error, "locks are lost");
                self.client.session_expired(session);
                return Ok(false);
            }
            if deadline.passed() {
                return Err(Error::new(ErrorKind::Timeout, "it is not known whether locks are still held"));
            }
        }
        Ok(true)
    }

    async fn change_locks(&self, session: SessionId, op: Op) -> Result<()> {
        let Some(current) = self.client.sessions.current().filter(|current| current.id() == session) else {
            return Err(lost());
        };
        let deadline = self.client.deadline();
        if let Op::Lock { inode, .. } | Op::Unlock { inode, .. } = &op {
            self.client.told_of(*inode).await?;
        }
        match self.client.mutate_in(&current, &Caller::ROOT, op, deadline).await {
            Ok(_) => Ok(()),
            Err(failed) => Err(self.lock_error(session, failed.error)),
        }
    }

    fn lock_error(&self, session: SessionId, error: Error) -> Error {
        if error.kind != ErrorKind::SessionExpired {
            return error;
        }
        self.client.session_expired(session);
        lost()
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::NoLocks, "the session with the cluster expired, and its locks with it")
}

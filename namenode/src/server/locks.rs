//! Waiting for a lock. Taking it is a mutation like every other.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::locks::Holder;
use dfs_meta::rows;
use dfs_proto::limits::LOCK_WAIT_MAX_MS;
use dfs_proto::msg::meta::{LockClaim, MetaReply};
use dfs_proto::{ErrorKind, InodeId, NodeId, SessionId, WireError};
use tokio::time::Instant;

use crate::leader::Verdict;
use crate::namenode::Namenode;

/// How often one who waits looks by itself: hints may be lost, and turns pass.
const RECHECK: Duration = Duration::from_millis(500);

/// Answers when the claim has a chance, or when the time is over. Reads no barrier: the mutation that
/// follows decides, and a look at old rows only costs it a try.
pub async fn wait(
    namenode: &Arc<Namenode>,
    client: NodeId,
    session: SessionId,
    inode: InodeId,
    claim: LockClaim,
    detect_deadlock: bool,
    wait_ms: u64,
) -> Result<MetaReply, WireError> {
    namenode.leading()?;
    namenode.sessions.renew(session, client, Instant::now())?;
    let waits = &namenode.lock_waits;
    let holder = Holder { session, owner: claim.owner };
    if wait_ms == 0 {
        waits.leave(inode, holder, &claim);
        return Ok(MetaReply::Done);
    }
    let deadline = Instant::now() + Duration::from_millis(wait_ms.min(LOCK_WAIT_MAX_MS));
    loop {
        let changed = waits.join(inode, holder, claim, detect_deadlock, Instant::now())?;
        let mut changed = pin!(changed.notified());
        // Counts what happens from here on, so that nothing is missed between the look and the wait.
        changed.as_mut().enable();
        match namenode.read(|view| waits.judge(inode, holder, &claim, &|inode| rows::locks(view, inode)))? {
            Verdict::Go => return Ok(MetaReply::Done),
            Verdict::Deadlock => {
                waits.leave(inode, holder, &claim);
                return Err(WireError::new(ErrorKind::Deadlock, "the owners of these locks wait for each other"));
            }
            Verdict::Wait => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(WireError::new(ErrorKind::WouldBlock, format!("inode {inode} is locked there")));
        }
        // Woken or not, the rows are looked at again.
        let _ = tokio::time::timeout(left.min(RECHECK), changed).await;
        namenode.leading()?;
    }
}

//! Takes apart inodes that nobody can name any more, piece by piece.

use std::sync::Arc;
use std::time::Duration;

use dfs_meta::{Body, rows};
use dfs_proto::WireError;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::namenode::Namenode;

/// How often the queue is looked at without a hint.
const TICK: Duration = Duration::from_secs(5);
/// Inodes and extents of one command: small beside what clients propose meanwhile.
const INODES_MAX: usize = 64;
const EXTENTS_MAX: u32 = 4096;

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = namenode.reclaim_wanted.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        while namenode.leading().is_ok() && !shutdown.is_cancelled() {
            match reclaim(&namenode).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    warn!(%error, "reclaiming is delayed");
                    break;
                }
            }
        }
    }
}

/// One step; returns whether there was anything to do.
async fn reclaim(namenode: &Namenode) -> Result<bool, WireError> {
    let inodes = namenode.read(|view| rows::orphans(view, rows::RECLAIM_QUEUE, INODES_MAX))?;
    if inodes.is_empty() {
        return Ok(false);
    }
    namenode.propose(Body::Reclaim { inodes, extents_max: EXTENTS_MAX }).await?;
    Ok(true)
}

//! Ends sessions whose lease has run out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_meta::Body;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::namenode::Namenode;

const TICK: Duration = Duration::from_millis(500);
/// Sessions ended by one command: each may have many open chunks to seal.
const SESSIONS_MAX: usize = 64;

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        namenode.notice_pause();
        if namenode.leading().is_ok() {
            expire(&namenode).await;
        }
    }
}

async fn expire(namenode: &Namenode) {
    let sessions = namenode.sessions.expired(SESSIONS_MAX, Instant::now());
    if sessions.is_empty() {
        return;
    }
    match namenode.propose(Body::ExpireSessions { sessions: sessions.clone() }).await {
        Ok(_) => {
            for session in sessions {
                info!(target: "audit", %session, "session expired");
                namenode.sessions.closed(session);
            }
        }
        Err(error) => warn!(%error, "sessions not expired yet"),
    }
}

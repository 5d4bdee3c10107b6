//! Ends sessions whose lease has run out.

use std::sync::Arc;
use std::time::Duration;

use dfs_meta::{Body, rows};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::namenode::Namenode;
use crate::server::opens;

const TICK: Duration = Duration::from_millis(500);
/// Sessions ended by one command: each may have many open chunks to seal.
const SESSIONS_MAX: usize = 64;

/// Ticks between two looks at the rows.
const ADOPT_EVERY: u32 = 20;

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    let mut tick: u32 = 0;
    loop {
        tick = tick.wrapping_add(1);
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        namenode.notice_pause();
        if namenode.leading().is_err() {
            continue;
        }
        if tick.is_multiple_of(ADOPT_EVERY)
            && let Ok(sessions) = namenode.read(rows::sessions)
        {
            let sessions = sessions.into_iter().map(|(session, row)| (session, row.holder));
            namenode.sessions.adopt(sessions, Instant::now());
        }
        expire(&namenode).await;
        settle(&namenode).await;
    }
}

/// Decides what could not be decided before.
async fn settle(namenode: &Arc<Namenode>) {
    loop {
        match opens::settle(namenode).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return warn!(%error, "nameless inodes wait"),
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
                namenode.opens.ended(session);
            }
            namenode.recalls.shared();
        }
        Err(error) => warn!(%error, "sessions not expired yet"),
    }
}

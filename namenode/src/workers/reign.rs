//! Takes up and gives up the lead.

use std::sync::Arc;
use std::time::Duration;

use dfs_meta::rows;
use dfs_proto::WireError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::namenode::Namenode;

/// How soon a beginning that failed is tried again.
const RETRY: Duration = Duration::from_millis(50);

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    let mut standing = namenode.consensus.watch();
    loop {
        let current = standing.borrow_and_update().clone();
        let reigning = namenode.reign.term();
        let elected = current.leads() && reigning != Some(current.term);
        if elected || (reigning.is_some() && !current.leads()) {
            namenode.reign.end();
            namenode.watches.clear();
        }
        if elected {
            match begin(&namenode, current.term).await {
                Ok(true) => info!(term = current.term, "this namenode leads"),
                Ok(false) => {}
                Err(error) => warn!(term = current.term, %error, "not ready to lead yet"),
            }
        } else if reigning.is_some() && !current.leads() {
            info!(term = current.term, leader = ?current.leader, "this namenode no longer leads");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = standing.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if elected => {}
        }
    }
}

/// Gets ready to lead: applies what was committed before, gives each session a full lease, and forgets
/// what belonged to an earlier reign. Returns false if there is no cluster yet, or the term has passed.
async fn begin(namenode: &Arc<Namenode>, term: u64) -> Result<bool, WireError> {
    namenode.consensus.read_barrier().await?;
    let (config, sessions) = namenode.read(|view| Ok((rows::config(view)?, rows::sessions(view)?)))?;
    let Some(config) = config else {
        return Ok(false);
    };
    let lease = Duration::from_millis(config.lease_ms);
    namenode.opens.begin(sessions.iter().map(|(session, _)| *session));
    let sessions = sessions.into_iter().map(|(session, row)| (session, row.holder));
    namenode.sessions.begin(sessions, lease, Instant::now());
    namenode.orders.clear();
    namenode.reports.clear();
    namenode.board.clear();
    namenode.gatherings.clear();
    namenode.lock_waits.clear();
    let standing = namenode.consensus.standing();
    if !standing.leads() || standing.term != term {
        return Ok(false);
    }
    namenode.reign.begin(term);
    namenode.repair_wanted.notify_one();
    namenode.reclaim_wanted.notify_one();
    namenode.compaction_wanted.notify_one();
    Ok(true)
}

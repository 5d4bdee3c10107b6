//! Keeps room on this namenode's disk, whether it leads or not.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::namenode::Namenode;

/// Within this time a disk must not fill by more than what RocksDB has set aside for its logs.
const TICK: Duration = Duration::from_millis(250);

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    let mut failed = false;
    loop {
        let me = namenode.clone();
        let looked = tokio::task::spawn_blocking(move || me.reserve.look()).await;
        if let Ok(Err(error)) = &looked
            && !failed
        {
            warn!(%error, "no room can be kept for a full disk");
        }
        failed = matches!(looked, Ok(Err(_)));
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

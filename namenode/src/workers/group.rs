//! Tends the group of namenodes while this one leads.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::group;
use crate::namenode::Namenode;

const PERIOD: Duration = Duration::from_millis(500);

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        // What failed is looked at again.
        if let Err(error) = group::tend(&namenode).await {
            debug!(%error, "the group could not be tended");
        }
    }
}

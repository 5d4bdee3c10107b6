//! What follows from the datanodes' duties without anybody asking again: writers are moved off nodes that are to
//! leave, an emptied node is done, a maintenance ends. All of it is found in the rows, so it goes on under the next
//! leader.

use std::sync::Arc;
use std::time::Duration;

use dfs_meta::{Body, duty, rows};
use dfs_proto::WireError;
use dfs_proto::msg::admin::Duty;
use dfs_proto::msg::node::Order;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::namenode::Namenode;

const TICK: Duration = Duration::from_secs(1);
/// Writers that are asked to move by one step; the next step asks the rest, and again those that have not moved.
const WRITERS_MAX: usize = 4096;

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
        if namenode.leading().is_ok()
            && let Err(error) = step(&namenode).await
        {
            warn!(%error, "changes of duty are delayed");
        }
    }
}

async fn step(namenode: &Arc<Namenode>) -> Result<(), WireError> {
    let now = namenode.consensus.now();
    let (due, writers) = namenode
        .read_long(move |view| {
            Ok((duty::due(view, now)?, duty::open_on_leaving(view, &rows::duties(view)?, WRITERS_MAX)?))
        })
        .await?;
    for (node, chunk, row) in writers {
        namenode.orders.push(node, Order::EndAppends { chunk, epoch: row.epoch });
    }
    for body in due {
        let Body::SetDuty { node, after, .. } = body else { continue };
        namenode.propose(body).await?;
        info!(target: "audit", %node, duty = duty::name(&after), "duty changed");
        if let Duty::Removed { .. } = after {
            namenode.nodes.forget(node);
        }
    }
    Ok(())
}

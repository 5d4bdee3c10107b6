//! What follows from the datanodes' duties without anybody asking again: writers are moved off nodes that are to
//! leave, an emptied node is done, a maintenance ends. All of it is found in the rows, so it goes on under the next
//! leader. Writers are also moved off nodes that are slow beside the others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::placement::NodeView;
use dfs_meta::{Body, duty, rows};
use dfs_proto::msg::admin::{Duty, Liveness};
use dfs_proto::msg::node::Order;
use dfs_proto::{NodeId, WireError};
use tokio::time::Instant;
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
    let me = namenode.clone();
    let (due, writers) = namenode
        .read_long(move |view| {
            let duties = rows::duties(view)?;
            let mut writers = duty::open_on(view, &duty::leaving(&duties), WRITERS_MAX)?;
            // Where a chunk has fewer nodes to go to than it wants copies, it is better slow than short.
            let (slow, quick) = by_pace(&me, &me.datanodes(view)?, &duties);
            let slow = duty::open_on(view, &slow, WRITERS_MAX)?;
            writers.extend(slow.into_iter().filter(|(_, _, row)| usize::from(row.target) <= quick));
            Ok((duty::due(view, now)?, writers))
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

/// The nodes that are slow beside the others, and how many others take new chunks.
fn by_pace(namenode: &Namenode, datanodes: &[NodeId], duties: &BTreeMap<NodeId, Duty>) -> (BTreeSet<NodeId>, usize) {
    let now = Instant::now();
    let slow: BTreeSet<NodeId> = namenode.nodes.slow(datanodes, now).into_iter().collect();
    let nodes = namenode.nodes.for_placement(datanodes, duties, now);
    let takes = |node: &&NodeView| node.liveness == Liveness::Live && node.writable && !slow.contains(&node.node);
    let quick = nodes.iter().filter(takes).count();
    (slow, quick)
}

//! What administrators ask of datanodes: another duty, a scrub now, to be about equally full.

use std::sync::Arc;

use dfs_meta::{Body, duty, rows};
use dfs_proto::msg::admin::{AdminReply, Balance, Duty, DutyChange, DutyPlan, Liveness};
use dfs_proto::msg::node::Order;
use dfs_proto::{ErrorKind, NodeId, WireError};
use tokio::time::Instant;
use tracing::info;

use crate::namenode::Namenode;

/// Plans a change and, unless it is only to be looked at, makes it.
///
/// # Errors
/// The plan's refusal; `NotEmpty` for a removal that would lose data; `Unavailable` for the second of two changes
/// at a time.
pub async fn change(
    namenode: &Arc<Namenode>,
    node: NodeId,
    change: DutyChange,
    dry_run: bool,
) -> Result<AdminReply, WireError> {
    namenode.leading()?;
    namenode.read_barrier().await?;
    let (me, clock) = (namenode.clone(), namenode.consensus.now());
    let plan = namenode
        .read_long(move |view| {
            let nodes = me.nodes.for_repair(&me.datanodes(view)?, &rows::duties(view)?, Instant::now());
            duty::plan(view, node, change, &nodes, &|chunk, node| me.board.is_bad(chunk, node), clock)
        })
        .await??;
    let DutyPlan { before, after, lost, .. } = plan;
    if dry_run || before == after {
        return Ok(AdminReply::DutyPlan(Box::new(plan)));
    }
    if change == DutyChange::Remove && lost > 0 {
        let message = format!("{lost} chunks have no good replica but on node {node}: removing it would lose them");
        return Err(WireError::new(ErrorKind::NotEmpty, message));
    }
    namenode.propose(Body::SetDuty { node, before, after }).await?;
    info!(target: "audit", %node, before = duty::name(&before), after = duty::name(&after), "duty changed");
    if let Duty::Removed { .. } = after {
        namenode.nodes.forget(node);
    }
    namenode.repair_wanted.notify_one();
    Ok(AdminReply::DutyPlan(Box::new(plan)))
}

/// Has datanodes verify everything again. The wish travels with the next heartbeat's answer and is kept by the
/// datanode; what comes back with the heartbeats shows how far it is.
///
/// # Errors
/// `NotFound` for a node that is not registered, `Unavailable` for one that does not answer.
pub async fn scrub(namenode: &Arc<Namenode>, nodes: Vec<NodeId>) -> Result<AdminReply, WireError> {
    namenode.leading()?;
    let known = namenode.read(|view| namenode.datanodes(view))?;
    let live = |node: &NodeId| namenode.liveness(*node) == Liveness::Live;
    let wanted: Vec<NodeId> = match nodes.is_empty() {
        true => known.iter().copied().filter(live).collect(),
        false => nodes,
    };
    for node in &wanted {
        if !known.contains(node) {
            return Err(WireError::new(ErrorKind::NotFound, format!("there is no datanode {node}")));
        }
        if !live(node) {
            return Err(WireError::new(ErrorKind::Unavailable, format!("datanode {node} does not answer")));
        }
    }
    let wish = namenode.consensus.now().as_millis().max(0) as u64;
    for node in wanted {
        namenode.orders.push(node, Order::Scrub { wish });
        info!(target: "audit", %node, "scrub asked for");
    }
    Ok(AdminReply::Done)
}

/// Says when chunks are moved from full datanodes to empty ones. What is under way is still carried out.
///
/// # Errors
/// `InvalidArgument` for a threshold that nobody can want.
pub async fn set_balance(namenode: &Arc<Namenode>, wanted: Balance) -> Result<AdminReply, WireError> {
    namenode.leading()?;
    namenode.propose(Body::SetBalance(wanted)).await?;
    info!(target: "audit", on = wanted.on, points = wanted.points, "balance set");
    namenode.board.balance(wanted, namenode.board.balance_status(Instant::now()).left_bytes);
    namenode.repair_wanted.notify_one();
    Ok(AdminReply::Done)
}

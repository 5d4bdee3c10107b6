//! Heartbeats and reports of datanodes, and the orders that go back.

use std::sync::Arc;

use dfs_meta::reconcile::{self, Verdict};
use dfs_meta::{Body, duty, rows};
use dfs_proto::chunk::{digest_shard, replica_digest};
use dfs_proto::limits::{DIGEST_SHARDS, ORDERS_MAX, SHARD_PAGE_MAX};
use dfs_proto::msg::admin::{Duty, Liveness};
use dfs_proto::msg::node::{Heartbeat, HeartbeatReply, NodeReply, NodeRequest, Order, Outcome, ReplicaReport};
use dfs_proto::{ChunkId, Epoch, ErrorKind, NodeId, WireError};
use futures::StreamExt;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::namenode::Namenode;
use crate::raft::machine_time;

/// Open replicas and order outcomes in one heartbeat.
const ITEMS_MAX: usize = 4096;
/// Disks of one node.
const VOLUMES_MAX: usize = 256;

/// Replicas of one report that are proposed at a time.
const ADOPTIONS: usize = 64;

/// The peer's certificate says which node it is; no message names one.
pub async fn answer(namenode: &Arc<Namenode>, node: NodeId, request: NodeRequest) -> Result<NodeReply, WireError> {
    match request {
        NodeRequest::Heartbeat(heartbeat) => {
            let reply = heartbeat_came(namenode, node, *heartbeat).await?;
            Ok(NodeReply::Heartbeat(Box::new(reply)))
        }
        NodeRequest::ShardReport { shard, digest, page, last, replicas } => {
            namenode.leading()?;
            if usize::from(shard) >= DIGEST_SHARDS || replicas.len() > SHARD_PAGE_MAX {
                return Err(WireError::new(ErrorKind::Malformed, "no such shard, or too many replicas"));
            }
            if let Some(report) = namenode.reports.page(node, shard, page, last, replicas) {
                report_came(namenode, node, shard, digest, report).await?;
            }
            Ok(NodeReply::Done)
        }
    }
}

async fn heartbeat_came(
    namenode: &Arc<Namenode>,
    node: NodeId,
    heartbeat: Heartbeat,
) -> Result<HeartbeatReply, WireError> {
    check(&heartbeat)?;
    let received = machine_time();
    if let Duty::Removed { .. } = namenode.read(|view| rows::duty(view, node))? {
        return Err(WireError::new(ErrorKind::Forbidden, duty::removed(node)));
    }
    let now = Instant::now();
    let before = namenode.liveness(node);
    if namenode.nodes.heard(node, &heartbeat, now, received) {
        info!(%node, "datanode started anew");
    }
    let after = namenode.liveness(node);
    if before != after {
        info!(%node, ?before, ?after, "datanode changed");
        namenode.repair_wanted.notify_one();
    }
    let Ok(term) = namenode.leading() else {
        let standing = namenode.consensus.standing();
        return Ok(HeartbeatReply {
            leading: false,
            term: standing.term,
            orders: Vec::new(),
            keys: Vec::new(),
            want_shards: Vec::new(),
            received,
            sent: machine_time(),
        });
    };
    register(namenode, node, &heartbeat).await?;
    namenode.board.copying(node, &heartbeat.copying, now);
    for outcome in heartbeat.outcomes {
        outcome_came(namenode, node, outcome).await;
    }
    let (keys, counted) =
        namenode.read(|view| Ok((rows::capability_keys(view)?.0, rows::node_digests(view, node)?)))?;
    let want_shards = match heartbeat.scanned {
        true => namenode.reports.compare(node, &heartbeat.digests, &counted),
        // Nothing may be concluded from what a node that is still scanning does not list.
        false => Vec::new(),
    };
    let orders = namenode.orders.take(node, ORDERS_MAX);
    Ok(HeartbeatReply { leading: true, term, orders, keys, want_shards, received, sent: machine_time() })
}

fn check(heartbeat: &Heartbeat) -> Result<(), WireError> {
    let sound = heartbeat.digests.len() == DIGEST_SHARDS
        && heartbeat.open.len() <= ITEMS_MAX
        && heartbeat.copying.len() <= ITEMS_MAX
        && heartbeat.volumes.len() <= VOLUMES_MAX
        && !heartbeat.addr.ip().is_unspecified()
        && heartbeat.addr.port() != 0;
    sound.then_some(()).ok_or_else(|| {
        WireError::new(ErrorKind::Malformed, "the heartbeat has too many items, or an address nobody can reach")
    })
}

/// Makes the node known, or known at its new address.
async fn register(namenode: &Arc<Namenode>, node: NodeId, heartbeat: &Heartbeat) -> Result<(), WireError> {
    let known = namenode.read(|view| rows::datanode(view, node))?;
    if known.is_none_or(|row| row.addr != heartbeat.addr) {
        namenode.propose(Body::PutDatanode { node, addr: heartbeat.addr }).await?;
        info!(%node, addr = %heartbeat.addr, "datanode registered");
    }
    Ok(())
}

/// Takes in how an order ended. A failed proposal is no loss: the replica then differs from the rows,
/// and the digests say so.
async fn outcome_came(namenode: &Arc<Namenode>, node: NodeId, outcome: Outcome) {
    match outcome {
        Outcome::Copied { chunk, epoch, len } => {
            adopt(namenode, node, chunk, epoch, len).await;
            namenode.board.copy_ended(chunk, node);
        }
        Outcome::CopyFailed { chunk, epoch, reason, bad_sources } => {
            warn!(%chunk, %node, reason, "a copy failed");
            namenode.board.copy_ended(chunk, node);
            // Matters only where the planner has nothing but damaged replicas to copy from.
            if !bad_sources.is_empty() {
                namenode.board.copy_hopeless(chunk, Instant::now());
            }
            for source in bad_sources {
                verify(namenode, source, chunk, epoch);
            }
        }
        Outcome::Bad { chunk, epoch, reason } => {
            if counts(namenode, node, chunk, epoch) {
                warn!(%chunk, %node, reason, "a replica is bad");
                namenode.board.found_bad(chunk, node, epoch, None);
            }
        }
        Outcome::Short { chunk, epoch, len } => {
            if counts(namenode, node, chunk, epoch) {
                warn!(%chunk, %node, len, "a replica is short");
                namenode.board.found_bad(chunk, node, epoch, Some(len));
            }
        }
        Outcome::Verified { chunk, .. } => namenode.board.found_good(chunk, node),
        Outcome::Deleted { chunk, .. } => namenode.board.deleted(chunk, node),
        Outcome::Unwanted { chunk, .. } => namenode.board.unwanted(chunk, node, Instant::now()),
        Outcome::Gathered { chunk, hash, .. } => gathered(namenode, node, chunk, Ok(hash)),
        Outcome::GatherFailed { chunk, reason, .. } => gathered(namenode, node, chunk, Err(reason)),
    }
    namenode.repair_wanted.notify_one();
}

fn gathered(namenode: &Namenode, node: NodeId, chunk: ChunkId, answer: Result<u64, String>) {
    namenode.gatherings.answered(chunk, node, answer);
    namenode.compaction_wanted.notify_one();
}

/// Whether a node's replica counts, for a sealed chunk of this epoch.
fn counts(namenode: &Namenode, node: NodeId, chunk: ChunkId, epoch: Epoch) -> bool {
    let counted = namenode.read(|view| rows::chunk(view, chunk)).ok().flatten();
    counted.is_some_and(|row| row.is_sealed() && row.epoch == epoch && row.replicas.contains(&node))
}

/// Counts a verified copy.
async fn adopt(namenode: &Arc<Namenode>, node: NodeId, chunk: ChunkId, epoch: Epoch, len: u32) {
    match namenode.propose(Body::AddReplica { chunk, epoch, len, node }).await {
        Ok(_) => {
            info!(%chunk, %node, len, "replica added");
            namenode.board.found_good(chunk, node);
            namenode.board.copied(chunk, node, len);
        }
        Err(error) => info!(%chunk, %node, %error, "replica not added"),
    }
}

/// Has a node read its replica again, if it counts.
fn verify(namenode: &Namenode, node: NodeId, chunk: ChunkId, epoch: Epoch) {
    let Ok(Some(row)) = namenode.read(|view| rows::chunk(view, chunk)) else {
        return;
    };
    if row.is_sealed() && row.epoch == epoch && row.replicas.contains(&node) {
        namenode.orders.push(node, Order::Verify { chunk, epoch, len: row.len });
    }
}

/// Judges a whole report of one shard against the rows.
async fn report_came(
    namenode: &Arc<Namenode>,
    node: NodeId,
    shard: u16,
    digest: u64,
    report: Vec<ReplicaReport>,
) -> Result<(), WireError> {
    let sealed = report.iter().filter(|replica| replica.sealed);
    let sum = sealed.fold(0, |sum, replica| sum ^ replica_digest(replica.chunk, replica.epoch, replica.len));
    if sum != digest || report.iter().any(|replica| digest_shard(replica.chunk) != usize::from(shard)) {
        return Err(WireError::new(ErrorKind::Malformed, "the report does not add up to its digest"));
    }
    // The rows must be at least as new as what the node was told by anybody.
    namenode.read_barrier().await?;
    let judge = namenode.clone();
    let (verdicts, missing) = namenode
        .read_long(move |view| {
            let next_chunk = rows::totals(view)?.next_chunk;
            let mut verdicts = Vec::new();
            for replica in &report {
                if judge.board.copy_under_way(replica.chunk, node) {
                    continue;
                }
                let row = rows::chunk(view, replica.chunk)?;
                let good = |other| judge.liveness(other) == Liveness::Live && !judge.board.is_bad(replica.chunk, other);
                let verdict = reconcile::judge(row.as_ref(), next_chunk, node, replica, &good);
                verdicts.push((*replica, verdict));
            }
            let reported: Vec<ChunkId> = report.iter().map(|replica| replica.chunk).collect();
            Ok((verdicts, reconcile::missing(view, node, usize::from(shard), &reported)?))
        })
        .await?;
    info!(%node, shard, replicas = verdicts.len(), missing = missing.len(), "shard compared");
    let mut whole = Vec::new();
    for (replica, verdict) in verdicts {
        let ReplicaReport { chunk, epoch: own_epoch, len, .. } = replica;
        match verdict {
            Verdict::Agrees | Verdict::Ignore => {}
            Verdict::Seal { epoch, len } => {
                namenode.orders.push(node, Order::Seal { chunk, epoch, len });
            }
            Verdict::Delete { epoch } => {
                namenode.board.deletion_ordered(chunk, node, Instant::now());
                namenode.orders.push(node, Order::Delete { chunk, epoch });
            }
            Verdict::Adopt => whole.push((chunk, own_epoch, len)),
            Verdict::Short => {
                warn!(%chunk, %node, len, "a sealed replica is short");
                namenode.board.found_bad(chunk, node, own_epoch, None);
            }
        }
    }
    // The report may be older than the rows, so the node is asked before anything is concluded.
    for (chunk, row) in missing {
        namenode.orders.push(node, Order::Verify { chunk, epoch: row.epoch, len: row.len });
    }
    // Together, so that they share log entries.
    futures::stream::iter(whole)
        .for_each_concurrent(ADOPTIONS, |(chunk, epoch, len)| adopt(namenode, node, chunk, epoch, len))
        .await;
    namenode.repair_wanted.notify_one();
    Ok(())
}

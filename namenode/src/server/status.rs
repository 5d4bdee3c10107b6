//! What `dfs status` shows.

use std::sync::Arc;

use dfs_meta::{Fault, View, duty, rows};
use dfs_proto::msg::admin::{Counts, DatanodeStatus, Duty, NamenodeStatus, RepairStatus, Status};
use dfs_proto::msg::node::Pace;
use dfs_proto::{NodeId, SessionId, WireError};
use tokio::time::Instant;

use crate::namenode::Namenode;
use crate::raft::Standing;

/// Answered by any namenode from what it knows; what only a leader knows stays empty elsewhere.
pub async fn status(namenode: &Arc<Namenode>) -> Result<Status, WireError> {
    let me = namenode.clone();
    let leader = namenode.known_leader().await;
    let standing = namenode.consensus.standing();
    let leading = leader == Some(namenode.config.node) && namenode.leading().is_ok();
    let silent = namenode.sessions.silent(Instant::now());
    let (config, counts, (datanodes, removed), unattended) = namenode
        .read_long(move |view| {
            let datanodes = if leading { datanodes(&me, view)? } else { Default::default() };
            let counts = if leading { rows::totals(view)?.counts } else { Counts::default() };
            let unattended = if leading { open_chunks(view, &silent)? } else { 0 };
            Ok((rows::config(view)?, counts, datanodes, unattended))
        })
        .await?;
    let now = Instant::now();
    let (chunks, repair, balance) = match leading {
        true => {
            let repair = RepairStatus { unattended, ..namenode.board.status(now) };
            (namenode.board.health(now), repair, namenode.board.balance_status(now))
        }
        false => Default::default(),
    };
    Ok(Status {
        cluster: config.map(|config| config.cluster),
        from: NodeId(namenode.config.node),
        leader: leader.map(NodeId),
        term: standing.term,
        namenodes: namenodes(namenode, &standing),
        datanodes,
        counts,
        chunks,
        repair,
        compaction: namenode.gatherings.status(),
        balance,
        default_replication: config.map_or(0, |config| config.default_replication),
        min_copies: config.map_or(0, |config| config.min_copies),
        removed,
    })
}

/// Chunks that have bytes and are open for one of these sessions.
fn open_chunks(view: &dyn View, sessions: &[SessionId]) -> Result<u64, Fault> {
    let mut open = 0;
    for session in sessions {
        for chunk in rows::session_chunks(view, *session)? {
            open += u64::from(rows::chunk(view, chunk)?.is_some_and(|row| row.len > 0));
        }
    }
    Ok(open)
}

fn namenodes(namenode: &Namenode, standing: &Standing) -> Vec<NamenodeStatus> {
    let me = namenode.config.node;
    let one = |(id, member): (&u64, &crate::raft::Member)| {
        let own = *id == me;
        let configured = namenode.config.peers.iter().find(|peer| peer.id == *id);
        NamenodeStatus {
            node: NodeId(*id),
            addr: configured.map_or(member.addr, |peer| peer.addr),
            reachable: own || namenode.consensus.reachable(*id),
            matched_index: if own { Some(standing.last_log_index) } else { standing.matched.get(id).copied() },
            last_log_index: if own { standing.last_log_index } else { 0 },
            applied_index: if own { standing.applied_index } else { 0 },
            snapshot_index: if own { standing.snapshot_index } else { 0 },
        }
    };
    standing.members.iter().map(one).collect()
}

/// The registered ones, and those that were removed.
fn datanodes(namenode: &Namenode, view: &dyn View) -> Result<(Vec<DatanodeStatus>, Vec<NodeId>), Fault> {
    let now = Instant::now();
    let duties = rows::duties(view)?;
    let mut found = Vec::new();
    for (node, row) in rows::datanodes(view)? {
        let seen = namenode.nodes.seen(node);
        let counted = rows::node_digests(view, node)?;
        let duty = duties.get(&node).copied().unwrap_or_default();
        found.push(DatanodeStatus {
            node,
            addr: row.addr,
            liveness: namenode.nodes.liveness(node, now),
            silent_ms: namenode.nodes.silent(node, now).as_millis() as u64,
            replicas: rows::node_chunks(view, node, usize::MAX)?.len() as u64,
            digest_agrees: seen.as_ref().is_some_and(|seen| seen.scanned && seen.digests == counted),
            skew_ms: seen.as_ref().map_or(0, |seen| seen.skew_ms),
            duty,
            drain: duty::drain(view, node, &duty)?,
            scrub: seen.as_ref().map(|seen| seen.scrub),
            pace: seen.as_ref().map_or_else(Pace::default, |seen| seen.pace),
            slow: !namenode.nodes.slow(&[node], now).is_empty(),
            volumes: seen.map_or_else(Vec::new, |seen| seen.volumes),
        });
    }
    let removed = duties.iter().filter(|(_, duty)| matches!(duty, Duty::Removed { .. }));
    Ok((found, removed.map(|(node, _)| *node).collect()))
}

//! What datanodes are meant to do: which change may follow which, what a change would mean, and when one is due.
//! The rules are told in `CONSISTENCY.md`, section 9.1.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::msg::admin::{Drain, Duty, DutyChange, DutyPlan, Liveness};
use dfs_proto::{ChunkId, ErrorKind, NodeId, Timestamp, WireError};

use crate::command::Body;
use crate::fsck;
use crate::repair::NodeView;
use crate::rows::{self, ChunkRow};
use crate::view::{Fault, View};

/// How long a maintenance may take: whoever needs longer decommissions the node.
pub const MAINTENANCE_MAX_MS: u64 = 7 * 24 * 3600 * 1000;

/// Files named in a plan.
const FILES_MAX: usize = 10;

/// Whether the node is to hold nothing in the end.
pub fn leaves(duty: &Duty) -> bool {
    match duty {
        Duty::Serving | Duty::Maintenance { .. } => false,
        Duty::Decommissioning { .. } | Duty::Decommissioned { .. } | Duty::Removing { .. } | Duty::Removed { .. } => {
            true
        }
    }
}

/// What a node hears whose number has been given up.
pub fn removed(node: NodeId) -> String {
    format!(
        "node {node} was removed from the cluster, and its number is never used again: start it anew with another number, another certificate and empty folders"
    )
}

/// Refuses a step that skips something.
pub(crate) fn check_step(node: NodeId, before: Duty, after: Duty) -> Result<(), WireError> {
    let allowed = match before {
        Duty::Serving | Duty::Maintenance { .. } => {
            matches!(
                after,
                Duty::Serving | Duty::Maintenance { .. } | Duty::Decommissioning { .. } | Duty::Removing { .. }
            )
        }
        Duty::Decommissioning { .. } => {
            matches!(after, Duty::Serving | Duty::Decommissioned { .. } | Duty::Removing { .. })
        }
        Duty::Decommissioned { .. } => matches!(after, Duty::Serving | Duty::Removed { .. }),
        Duty::Removing { .. } => matches!(after, Duty::Serving | Duty::Removed { .. }),
        Duty::Removed { .. } => false,
    };
    let message = || format!("node {node} is {}, and cannot become {} from that", name(&before), name(&after));
    allowed.then_some(()).ok_or_else(|| WireError::new(ErrorKind::InvalidArgument, message()))
}

/// One word for people.
pub fn name(duty: &Duty) -> &'static str {
    match duty {
        Duty::Serving => "in service",
        Duty::Maintenance { .. } => "in maintenance",
        Duty::Decommissioning { .. } => "being decommissioned",
        Duty::Decommissioned { .. } => "decommissioned",
        Duty::Removing { .. } => "being removed",
        Duty::Removed { .. } => "removed",
    }
}

/// What is left on a node that is to leave; `None` for others.
pub fn drain(view: &dyn View, node: NodeId, duty: &Duty) -> Result<Option<Drain>, Fault> {
    if !matches!(duty, Duty::Decommissioning { .. } | Duty::Removing { .. }) {
        return Ok(None);
    }
    let mut drain = Drain::default();
    each_replica(view, node, &mut |_, row| {
        drain.chunks += 1;
        drain.bytes += u64::from(row.len);
        drain.open += u64::from(!row.is_sealed());
    })?;
    Ok(Some(drain))
}

/// The changes that nobody has to ask for: a maintenance whose time is over, a node that has been emptied.
pub fn due(view: &dyn View, now: Timestamp) -> Result<Vec<Body>, Fault> {
    let mut due = Vec::new();
    for (node, before) in rows::duties(view)? {
        let after = match before {
            Duty::Maintenance { until } if until <= now => Duty::Serving,
            Duty::Decommissioning { .. } if rows::node_chunks(view, node, 1)?.is_empty() => {
                Duty::Decommissioned { since: now }
            }
            Duty::Removing { .. } if rows::node_chunks(view, node, 1)?.is_empty() => Duty::Removed { since: now },
            _ => continue,
        };
        due.push(Body::SetDuty { node, before, after });
    }
    Ok(due)
}

/// The nodes that are to hold nothing in the end.
pub fn leaving(duties: &BTreeMap<NodeId, Duty>) -> BTreeSet<NodeId> {
    duties.iter().filter(|(_, duty)| leaves(duty)).map(|(node, _)| *node).collect()
}

/// Open chunks with a replica on one of these nodes, at most `limit`: their writers have to move.
pub fn open_on(
    view: &dyn View,
    wanted: &BTreeSet<NodeId>,
    limit: usize,
) -> Result<Vec<(NodeId, ChunkId, ChunkRow)>, Fault> {
    let mut found = Vec::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    // Through the sessions: there are few open chunks, and a node may have a million sealed ones.
    for (session, _) in rows::sessions(view)? {
        for chunk in rows::session_chunks(view, session)? {
            let Some(row) = rows::chunk(view, chunk)? else { continue };
            let nodes: Vec<NodeId> = row.replicas.iter().copied().filter(|node| wanted.contains(node)).collect();
            found.extend(nodes.into_iter().map(|node| (node, chunk, row.clone())));
            if found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// What a change would mean, and whether it may be made. `nodes` are all registered ones with the duties they have,
/// `bad` says which replicas are known to be damaged.
///
/// # Errors
/// The refusal in words: no such node, a step that cannot be taken, data that would be lost.
pub fn plan(
    view: &dyn View,
    node: NodeId,
    change: DutyChange,
    nodes: &[NodeView],
    bad: &dyn Fn(ChunkId, NodeId) -> bool,
    now: Timestamp,
) -> Result<Result<DutyPlan, WireError>, Fault> {
    let before = rows::duty(view, node)?;
    if let Duty::Removed { .. } = before {
        return Ok(Err(WireError::new(ErrorKind::NotFound, format!("node {node} was removed"))));
    }
    let Some(own) = nodes.iter().find(|view| view.node == node) else {
        return Ok(Err(WireError::new(ErrorKind::NotFound, format!("there is no datanode {node}"))));
    };
    let weighed = weigh(view, node, nodes, bad)?;
    let Weighed { chunks, bytes, .. } = weighed;
    let after = match change {
        DutyChange::Recommission => Duty::Serving,
        DutyChange::Maintenance { for_ms } => {
            if for_ms == 0 || for_ms > MAINTENANCE_MAX_MS {
                let message = "a maintenance takes up to 7 days; for longer, decommission the node";
                return Ok(Err(WireError::new(ErrorKind::InvalidArgument, message)));
            }
            Duty::Maintenance { until: later(now, for_ms) }
        }
        // Asked for again: goes on as it is.
        DutyChange::Decommission if matches!(before, Duty::Decommissioning { .. } | Duty::Decommissioned { .. }) => {
            before
        }
        DutyChange::Decommission => Duty::Decommissioning { since: now, chunks, bytes },
        DutyChange::Remove if matches!(before, Duty::Removing { .. }) => before,
        DutyChange::Remove if chunks == 0 && matches!(before, Duty::Decommissioned { .. }) => {
            Duty::Removed { since: now }
        }
        DutyChange::Remove if own.liveness == Liveness::Dead => Duty::Removing { since: now, chunks, bytes },
        DutyChange::Remove => {
            let message = format!(
                "node {node} is {} and not dead: it can be removed once it is decommissioned, or dead",
                name(&before)
            );
            return Ok(Err(WireError::new(ErrorKind::InvalidArgument, message)));
        }
    };
    if after != before
        && let Err(refused) = check_step(node, before, after)
    {
        return Ok(Err(refused));
    }
    let lost_files = if weighed.lost_in.is_empty() { Vec::new() } else { fsck::paths(view, &weighed.lost_in)? };
    Ok(Ok(DutyPlan {
        before,
        after,
        chunks,
        bytes,
        open: weighed.open,
        room_bytes: receivers(node, nodes).map(|view| view.free_bytes).sum(),
        stuck: weighed.stuck,
        lost: weighed.lost,
        lost_files,
        one_copy: weighed.one_copy,
    }))
}

/// What hangs on one node.
#[derive(Default)]
struct Weighed {
    chunks: u64,
    bytes: u64,
    open: u64,
    stuck: u64,
    lost: u64,
    lost_in: BTreeSet<dfs_proto::InodeId>,
    one_copy: u64,
}

fn weigh(
    view: &dyn View,
    node: NodeId,
    nodes: &[NodeView],
    bad: &dyn Fn(ChunkId, NodeId) -> bool,
) -> Result<Weighed, Fault> {
    let duties = rows::duties(view)?;
    let stays = |other: NodeId| other != node && !duties.get(&other).is_some_and(leaves);
    let live: BTreeSet<NodeId> =
        nodes.iter().filter(|view| view.liveness == Liveness::Live && stays(view.node)).map(|view| view.node).collect();
    let receivers: BTreeSet<NodeId> = receivers(node, nodes).map(|view| view.node).collect();
    let mut weighed = Weighed::default();
    let mut lost = Vec::new();
    each_replica(view, node, &mut |chunk, row| {
        weighed.chunks += 1;
        weighed.bytes += u64::from(row.len);
        weighed.open += u64::from(!row.is_sealed());
        let others = row.replicas.iter().filter(|other| live.contains(other) && !bad(chunk, **other)).count();
        let possible = others + receivers.iter().filter(|other| !row.replicas.contains(other)).count();
        weighed.stuck += u64::from(possible < usize::from(row.target));
        match others {
            0 if row.len > 0 => lost.push(chunk),
            1 => weighed.one_copy += u64::from(row.target > 1),
            _ => {}
        }
    })?;
    weighed.lost = lost.len() as u64;
    for chunk in lost {
        if weighed.lost_in.len() >= FILES_MAX {
            break;
        }
        rows::chunk_files(view, chunk, &mut |inode, _| {
            weighed.lost_in.insert(inode);
            weighed.lost_in.len() < FILES_MAX
        })?;
    }
    Ok(weighed)
}

/// The other nodes that take copies.
fn receivers(node: NodeId, nodes: &[NodeView]) -> impl Iterator<Item = &NodeView> {
    nodes.iter().filter(move |view| view.node != node && view.liveness == Liveness::Live && view.writable)
}

/// Visits the chunks of a node; the rows are collected page by page, as nothing may be read within a scan.
fn each_replica(view: &dyn View, node: NodeId, visit: &mut dyn FnMut(ChunkId, ChunkRow)) -> Result<(), Fault> {
    for chunk in rows::node_chunks(view, node, usize::MAX)? {
        let row = rows::chunk(view, chunk)?
            .ok_or_else(|| Fault(format!("node {node} is counted for chunk {chunk}, which does not exist")))?;
        visit(chunk, row);
    }
    Ok(())
}

fn later(now: Timestamp, ms: u64) -> Timestamp {
    let nanos = now.nanos + (ms % 1000) as u32 * 1_000_000;
    let carry = nanos / 1_000_000_000;
    Timestamp { secs: now.secs + (ms / 1000) as i64 + i64::from(carry), nanos: nanos % 1_000_000_000 }
}

#[cfg(test)]
mod tests;

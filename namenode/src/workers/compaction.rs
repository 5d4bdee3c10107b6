//! Has what lives in mostly dead chunks gathered into new ones: finds the chunks, gives the orders, relocates extents.
//! `dfs_meta::compaction` plans; what is under way is in the rows, so the next leader goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::compaction::{self, Candidate, GatherPlan};
use dfs_meta::repair::Known;
use dfs_meta::rows::{ChunkRow, ChunkState, CompactionRow};
use dfs_meta::{Body, duty, placement, rows};
use dfs_proto::limits::{CHUNK_MAX, RANGE_EXTENTS_MAX};
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::msg::node::{GatherSource, Order};
use dfs_proto::{Access, Capability, ChunkId, ErrorKind, NodeId, Timestamp, WireError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::leader::Next;
use crate::namenode::Namenode;

/// Time between two steps without a hint.
const TICK: Duration = Duration::from_secs(2);
/// Looking through all chunks takes at most one part in so many of this worker's time.
const LOOK_SHARE: u32 = 20;
/// Chunks of which one look takes note; the next one sees the rest.
const CANDIDATES_MAX: usize = 4096;
/// Sources of a compaction that was given up are left alone for so long.
const GIVEN_UP: Duration = Duration::from_secs(60);
/// Compactions at a time, at most one for each three nodes: they are for the background. The orders of all of them to one
/// node fit into half of an answer to a heartbeat.
const UNDER_WAY_MAX: usize = 5;
const NODES_EACH: usize = 3;
/// Extents that are looked for at a time.
const LEFT_MAX: usize = 64 << 10;
/// How long an order's capabilities are good for; longer than gathering may take.
const CAPABILITY_SECS: i64 = 600;

pub async fn run(namenode: Arc<Namenode>, shutdown: CancellationToken) {
    let mut search = Search::default();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = namenode.compaction_wanted.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        if namenode.leading().is_ok()
            && let Err(error) = step(&namenode, &mut search).await
        {
            warn!(%error, "compaction is delayed");
        }
    }
}

/// What this worker remembers of chunks that are mostly dead.
#[derive(Default)]
struct Search {
    next: Option<Instant>,
    /// Since when each is known, or will be taken for settled: in the future after a failure.
    since: BTreeMap<ChunkId, Instant>,
}

async fn step(namenode: &Arc<Namenode>, search: &mut Search) -> Result<(), WireError> {
    let under_way = namenode
        .read_long(|view| {
            let rows = rows::compactions(view)?.into_iter();
            rows.map(|(chunk, row)| Ok((chunk, row, rows::chunk(view, chunk)?))).collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let count = under_way.len();
    for (chunk, compaction, row) in under_way {
        let Some(row) = row else { continue };
        advance(namenode, search, chunk, &compaction, &row).await?;
    }
    let now = Instant::now();
    if search.next.is_some_and(|next| now < next) {
        return Ok(());
    }
    let began = begin(namenode, search, count).await;
    search.next = Some(Instant::now() + (now.elapsed() * LOOK_SHARE).max(TICK));
    began
}

/// The next step of a compaction that is in the rows.
async fn advance(
    namenode: &Arc<Namenode>,
    search: &mut Search,
    chunk: ChunkId,
    compaction: &CompactionRow,
    row: &ChunkRow,
) -> Result<(), WireError> {
    if row.state != ChunkState::Gathering {
        return relocate(namenode, chunk, compaction, row).await;
    }
    let next = match unfit(namenode, &row.replicas)? {
        Some(reason) => Next::GiveUp(reason),
        None => namenode.gatherings.next(chunk, &row.replicas, Instant::now()),
    };
    match next {
        Next::Order(nodes) if nodes.is_empty() => Ok(()),
        Next::Order(nodes) => order(namenode, chunk, compaction, row, &nodes),
        Next::Complete => relocate(namenode, chunk, compaction, row).await,
        Next::GiveUp(reason) => {
            warn!(%chunk, reason, "a chunk could not be gathered");
            let later = Instant::now() + GIVEN_UP;
            search.since.extend(compaction.sources.iter().map(|(source, _)| (*source, later)));
            end(namenode, chunk, None).await
        }
    }
}

/// Why nodes cannot take the chunk any more, if one of them cannot.
fn unfit(namenode: &Namenode, nodes: &[NodeId]) -> Result<Option<String>, WireError> {
    let duties = namenode.read(rows::duties)?;
    let reason = |node: &NodeId| match duties.get(node) {
        Some(duty) if duty::leaves(duty) => Some(format!("node {node} is to leave")),
        _ if namenode.liveness(*node) == Liveness::Dead => Some(format!("node {node} does not answer")),
        _ => None,
    };
    Ok(nodes.iter().find_map(reason))
}

fn order(
    namenode: &Arc<Namenode>,
    chunk: ChunkId,
    compaction: &CompactionRow,
    row: &ChunkRow,
    nodes: &[NodeId],
) -> Result<(), WireError> {
    let (key, addrs, sources) = namenode.read(|view| {
        let addrs: BTreeMap<NodeId, ReplicaAt> =
            rows::datanodes(view)?.into_iter().map(|(node, row)| (node, ReplicaAt { node, addr: row.addr })).collect();
        let sources = compaction.sources.iter().map(|(source, epoch)| {
            let replicas = rows::chunk(view, *source)?.map_or_else(Vec::new, |row| row.replicas);
            Ok((*source, *epoch, replicas))
        });
        Ok((rows::capability_keys(view)?.0.pop(), addrs, sources.collect::<Result<Vec<_>, _>>()?))
    })?;
    let Some(key) = key else { return Ok(()) };
    let now = namenode.consensus.now();
    let expires = Timestamp { secs: now.secs + CAPABILITY_SECS, ..now };
    for node in nodes {
        let source = |(source, epoch, replicas): &(ChunkId, _, Vec<NodeId>)| GatherSource {
            chunk: *source,
            epoch: *epoch,
            replicas: replicas.iter().filter_map(|node| addrs.get(node).copied()).collect(),
            capability: Capability::sign(&key, *source, Access::Read, *node, expires),
        };
        let sources = sources.iter().map(source).collect();
        let pieces = compaction.pieces.clone();
        namenode.orders.push(*node, Order::Gather { chunk, epoch: row.epoch, pieces, sources });
    }
    Ok(())
}

/// Points everything that lives to the new chunk; then the compaction is over.
async fn relocate(
    namenode: &Arc<Namenode>,
    chunk: ChunkId,
    compaction: &CompactionRow,
    row: &ChunkRow,
) -> Result<(), WireError> {
    let before = lengths(namenode, compaction)?;
    let mut relocated = row.state == ChunkState::Sealed;
    loop {
        let looked_for = compaction.clone();
        let left = namenode.read_long(move |view| compaction::left(view, chunk, &looked_for, LEFT_MAX)).await?;
        let mut moved = false;
        for extents in left.chunks(RANGE_EXTENTS_MAX) {
            match namenode.propose(Body::Relocate { chunk, extents: extents.to_vec() }).await {
                Ok(_) => moved = true,
                // All of them have changed meanwhile.
                Err(error) if error.kind == ErrorKind::Stale => {}
                Err(error) => return Err(error),
            }
        }
        relocated |= moved;
        if !moved {
            break;
        }
    }
    if !relocated {
        info!(%chunk, "nothing lives any more of what was gathered");
        return end(namenode, chunk, None).await;
    }
    let after = lengths(namenode, compaction)?;
    let gone = before.iter().filter(|(source, _)| !after.contains_key(source)).map(|(_, len)| u64::from(*len));
    let freed_bytes = gone.sum::<u64>().saturating_sub(u64::from(row.len));
    info!(%chunk, bytes = row.len, sources = compaction.sources.len(), freed_bytes, "chunks compacted");
    end(namenode, chunk, Some(freed_bytes)).await
}

/// Of the sources that are still there.
fn lengths(namenode: &Namenode, compaction: &CompactionRow) -> Result<BTreeMap<ChunkId, u32>, WireError> {
    namenode.read(|view| {
        let mut found = BTreeMap::new();
        for (source, _) in &compaction.sources {
            found.extend(rows::chunk(view, *source)?.map(|row| (*source, row.len)));
        }
        Ok(found)
    })
}

/// `freed_bytes` if it has come to its end.
async fn end(namenode: &Arc<Namenode>, chunk: ChunkId, freed_bytes: Option<u64>) -> Result<(), WireError> {
    namenode.propose(Body::EndCompaction { chunk }).await?;
    namenode.gatherings.ended(chunk, freed_bytes);
    Ok(())
}

/// Looks for mostly dead chunks and begins to gather what lives in some of them.
async fn begin(namenode: &Arc<Namenode>, search: &mut Search, under_way: usize) -> Result<(), WireError> {
    let me = namenode.clone();
    let (live_nodes, candidates) = namenode
        .read_long(move |view| {
            let datanodes = me.datanodes(view)?;
            let live = |node| me.liveness(node) == Liveness::Live;
            let bad = |chunk, node| me.board.is_bad(chunk, node);
            let live_nodes = datanodes.iter().filter(|node| live(**node)).count();
            let known = Known { live: &live, bad: &bad };
            Ok((live_nodes, compaction::candidates(view, known, live_nodes, CANDIDATES_MAX)?))
        })
        .await?;
    let now = Instant::now();
    let found: BTreeSet<ChunkId> = candidates.iter().map(|candidate| candidate.chunk).collect();
    search.since.retain(|chunk, since| found.contains(chunk) || *since > now);
    for chunk in found {
        search.since.entry(chunk).or_insert(now);
    }
    if under_way >= (live_nodes / NODES_EACH).clamp(1, UNDER_WAY_MAX) {
        return Ok(());
    }
    let (datanodes, duties) = namenode.read(|view| Ok((namenode.datanodes(view)?, rows::duties(view)?)))?;
    let nodes = namenode.nodes.for_placement(&datanodes, &duties, now);
    let room = |copies| compaction::room(&nodes, copies);
    let settled_after = Duration::from_millis(namenode.config.timers.compaction_after_ms);
    // Where writers get no chunk any more there is no time to wait.
    let settled = |candidate: &Candidate| {
        let since = search.since.get(&candidate.chunk).copied().unwrap_or(now);
        now >= since && (room(candidate.target) < CHUNK_MAX || now >= since + settled_after)
    };
    let chosen = compaction::choose(candidates.into_iter().filter(settled).collect(), &room);
    if chosen.is_empty() {
        return Ok(());
    }
    let plan = namenode.read_long(move |view| compaction::plan(view, &chosen)).await?;
    let Some(GatherPlan { sources, pieces, target, needed }) = plan else { return Ok(()) };
    let bytes = pieces.iter().map(|piece| u64::from(piece.len)).sum();
    let avoid = namenode.nodes.slow(&datanodes, now);
    let nodes = placement::choose_for(bytes, &nodes, usize::from(target), &avoid, rand::random());
    if nodes.len() < usize::from(needed) {
        return Ok(());
    }
    nodes.iter().for_each(|node| namenode.nodes.placed(*node));
    info!(sources = sources.len(), pieces = pieces.len(), ?nodes, "chunks are compacted");
    namenode.propose(Body::BeginCompaction { sources, pieces, nodes }).await?;
    namenode.compaction_wanted.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use dfs_proto::limits::{CHUNK_MAX, CONTROL_FRAME_MAX, GATHER_PIECES_MAX, GATHER_SOURCES_MAX, REPLICATION_MAX};
    use dfs_proto::msg::node::Piece;
    use dfs_proto::{CapabilityKey, Epoch, codec};

    use super::*;

    #[test]
    fn the_largest_orders_of_all_compactions_fit_into_one_answer_to_a_heartbeat() {
        let key = CapabilityKey { number: u32::MAX, secret: [7; 32] };
        let at = |node| ReplicaAt { node: NodeId(node), addr: "[2001:db8::1]:65535".parse().unwrap() };
        let far = Timestamp { secs: i64::MAX, nanos: u32::MAX };
        let source = |number| GatherSource {
            chunk: ChunkId(u64::MAX - number),
            epoch: Epoch(u64::MAX),
            replicas: (0..u64::from(REPLICATION_MAX)).map(|node| at(u64::MAX - node)).collect(),
            capability: Capability::sign(&key, ChunkId(number), Access::Read, NodeId(u64::MAX), far),
        };
        let piece =
            |number| Piece { source: 63, offset: CHUNK_MAX - number, len: CHUNK_MAX / GATHER_PIECES_MAX as u32 };
        let order = Order::Gather {
            chunk: ChunkId(u64::MAX),
            epoch: Epoch(u64::MAX),
            pieces: (0..GATHER_PIECES_MAX as u32).map(piece).collect(),
            sources: (0..GATHER_SOURCES_MAX as u64).map(source).collect(),
        };
        let bytes = codec::encode(&order).unwrap().len();
        // The other half is for orders of other kinds.
        assert!(bytes * UNDER_WAY_MAX <= CONTROL_FRAME_MAX / 2, "{bytes} bytes each");
    }
}

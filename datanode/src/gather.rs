//! Makes a replica here out of pieces of other chunks, on the namenode's order.
//!
//! The bytes are read from this node's own replicas, or from others' where there is none that is good. Each frame of a
//! source is verified, and then its bytes get new frames with digests for their new place. In between nothing vouches
//! for them but this process; so every node that makes the chunk tells a hash of all of it, and the namenode compares.

mod framing;
mod runs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_proto::limits::{CHUNK_MAX, GATHER_PIECES_MAX, GATHER_SOURCES_MAX};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::msg::node::{GatherSource, Outcome, Piece};
use dfs_proto::{ChunkId, Epoch, NodeId};
use dfs_rpc::RpcError;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::{Instrument, Span, debug, info, warn};

use crate::node::Node;
use crate::orders::rest;
use crate::replicate::VERIFY_BYTES_PER_S;
use crate::source::{self, SourceError, Wanted};
use crate::store::{Incoming, Reader, Store, StoreError};
use framing::{Framer, Part};
use runs::{Cut, Run, Runs};

/// Runs that are asked of other nodes at once: where pieces are small, it is the round trips that take the time. With
/// the frames that reach over their ends they take 3 MiB of memory, beside a batch of 1 MiB that is read and one that
/// is written.
const FETCHES_AT_ONCE: usize = 8;

pub struct GatherOrder {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub pieces: Vec<Piece>,
    pub sources: Vec<GatherSource>,
}

/// Carries out a gather order: a verified, synced replica here and a hash of its bytes, or the reason why not.
pub async fn gather(node: &Arc<Node>, order: GatherOrder) -> Outcome {
    let GatherOrder { chunk, epoch, .. } = order;
    match make(node, order).await {
        Ok(hash) => Outcome::Gathered { chunk, epoch, hash },
        Err(reason) => {
            warn!(%epoch, reason, "chunk could not be gathered");
            Outcome::GatherFailed { chunk, epoch, reason }
        }
    }
}

/// The replica's length in bytes, if the order makes sense.
fn length(order: &GatherOrder) -> Result<u32, String> {
    let malformed = |what: &str| Err(format!("malformed order: {what}"));
    if order.pieces.is_empty() || order.pieces.len() > GATHER_PIECES_MAX {
        return malformed(&format!("{} pieces", order.pieces.len()));
    }
    if order.sources.len() > GATHER_SOURCES_MAX {
        return malformed(&format!("{} sources", order.sources.len()));
    }
    let mut total = 0;
    for piece in &order.pieces {
        if usize::from(piece.source) >= order.sources.len() {
            return malformed("a piece of no source");
        }
        if piece.len == 0 || piece.offset.checked_add(piece.len).is_none_or(|end| end > CHUNK_MAX) {
            return malformed("a piece that is no part of a chunk");
        }
        total += u64::from(piece.len);
    }
    match u32::try_from(total) {
        Ok(total) if total <= CHUNK_MAX => Ok(total),
        _ => malformed(&format!("{total} bytes in one chunk")),
    }
}

/// Makes the replica, unless it is here. The hash of its bytes.
async fn make(node: &Arc<Node>, order: GatherOrder) -> Result<u64, String> {
    let (chunk, epoch, len) = (order.chunk, order.epoch, length(&order)?);
    match already_here(node, &order, len).await {
        Ok(None) => {}
        Ok(Some(hash)) => return Ok(hash),
        Err(error) => warn!(%epoch, %error, "the replica that is here cannot be used, it is gathered anew"),
    }
    let begin = node.store.blocking(move |store| store.begin_copy(chunk, epoch, len)).await;
    let incoming = begin.and_then(|incoming| incoming).map_err(|error| error.to_string())?;
    let framer = Framer::new(chunk, order.pieces.len() as u32, len);
    let mut making = Making { incoming, framer, hasher: blake3::Hasher::new() };
    let sources = Arc::new(Sources { list: order.sources, known: Mutex::default() });
    let mut runs = Runs::new(&order.pieces);
    let mut parts = read(node, &sources, runs.next_batch()).await?;
    while !parts.is_empty() {
        // One batch is written while the next is read. Both end before a failure is told: then nothing is left behind.
        let next = read(node, &sources, runs.next_batch());
        let (written, read) = tokio::join!(write(node, making, parts), next);
        (making, parts) = (written?, read?);
    }
    let Making { incoming, hasher, .. } = making;
    let publish = node.store.blocking(move |store| store.publish(incoming)).await;
    publish.and_then(|published| published).map_err(|error| error.to_string())?;
    info!(%epoch, len, "chunk gathered");
    Ok(short_hash(&hasher))
}

/// A replica that is being made.
struct Making {
    incoming: Incoming,
    framer: Framer,
    /// Of all bytes so far.
    hasher: blake3::Hasher,
}

async fn write(node: &Arc<Node>, mut making: Making, parts: Vec<Part>) -> Result<Making, String> {
    let written = node.store.blocking(move |store| {
        let mut frames = Vec::new();
        for part in &parts {
            making.hasher.update(&part.bytes);
            making.framer.take(part, &mut frames);
        }
        store.copy_frames(&mut making.incoming, &frames)?;
        Ok(making)
    });
    written.await.and_then(|written| written).map_err(|error: StoreError| error.to_string())
}

/// First eight bytes, little-endian.
fn short_hash(hasher: &blake3::Hasher) -> u64 {
    u64::from_le_bytes(*hasher.finalize().as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

/// The hash of the very replica, if it is here. All of it is read and verified again.
///
/// # Errors
/// It is here, and not good.
async fn already_here(node: &Arc<Node>, order: &GatherOrder, len: u32) -> Result<Option<u64>, StoreError> {
    let &GatherOrder { chunk, epoch, .. } = order;
    if !node.store.has_sealed(chunk, epoch, len) {
        return Ok(None);
    }
    let reader = node.store.blocking(move |store| store.reader(chunk, epoch, 0, len)).await??;
    let mut rereading = Rereading { chunk, reader, hasher: blake3::Hasher::new(), have: 0 };
    loop {
        let (back, more) = node.store.blocking(move |_| rereading.step().map(|more| (rereading, more))).await??;
        rereading = back;
        if !more {
            break;
        }
        tokio::time::sleep(rest(1 << 20, VERIFY_BYTES_PER_S)).await;
    }
    match rereading.have {
        have if have == len => Ok(Some(short_hash(&rereading.hasher))),
        here => Err(StoreError::Short { chunk, here, asked: len }),
    }
}

struct Rereading {
    chunk: ChunkId,
    reader: Reader,
    hasher: blake3::Hasher,
    /// Bytes from the start that were read and matched.
    have: u32,
}

impl Rereading {
    /// Reads about a mebibyte more; whether there is more to do.
    fn step(&mut self) -> Result<bool, StoreError> {
        let chunk = self.chunk;
        let Some(batch) = self.reader.next_batch()? else { return Ok(false) };
        for (frame, bytes) in batch.iter() {
            if frame.offset != self.have {
                return Err(StoreError::NotContiguous { chunk, end: self.have, found: frame.offset });
            }
            if !frame.matches(chunk, &bytes) {
                return Err(StoreError::WrongDigest { chunk, offset: frame.offset });
            }
            self.hasher.update(&bytes);
            self.have = frame.end();
        }
        Ok(true)
    }
}

/// Where the bytes come from, and what came to be known of that on the way.
struct Sources {
    list: Vec<GatherSource>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Nodes that did not answer, and why. They are not asked again, which would cost a deadline for each run.
    silent: BTreeMap<NodeId, String>,
    /// Replicas, by source and node, that have failed for a run. For another run they may be the good ones, but the
    /// others are asked first.
    failed: BTreeSet<(usize, NodeId)>,
    /// Sources of which the node's own replica is to be verified.
    suspected: BTreeSet<usize>,
}

impl Sources {
    /// The replicas of a source on other nodes, in the order in which to ask them.
    fn in_turn(&self, source: usize, me: NodeId) -> Vec<ReplicaAt> {
        let known = self.known.lock();
        let others = self.list[source].replicas.iter().filter(|replica| replica.node != me);
        let mut others: Vec<_> = others.cloned().collect();
        others.sort_by_key(|replica| known.failed.contains(&(source, replica.node)));
        others
    }

    fn silence(&self, node: NodeId) -> Option<String> {
        self.known.lock().silent.get(&node).cloned()
    }

    fn note_failure(&self, source: usize, node: NodeId, error: &SourceError) {
        let mut known = self.known.lock();
        match error {
            SourceError::Here(_) => {}
            // It answers, if not about this chunk.
            SourceError::Bad(_) | SourceError::Away(RpcError::Refused(_)) => {
                known.failed.insert((source, node));
            }
            SourceError::Away(error) => {
                known.silent.insert(node, error.to_string());
            }
        }
    }

    /// Has the node's own replica of a source verified as a whole if it could not be read for its own fault; what is
    /// found is reported.
    fn suspect(&self, node: &Node, source: usize, error: &StoreError) {
        use StoreError::{Damaged, NotContiguous, WrongDigest};
        let damaged = matches!(error, Damaged { .. } | NotContiguous { .. } | WrongDigest { .. });
        if damaged && self.known.lock().suspected.insert(source) {
            info!(%error, "own replica of a source could not be used");
            node.orders.suspect(self.list[source].chunk);
        }
    }
}

/// Reads runs, from the replicas here in one go, and what these do not give from other nodes. The parts of all runs, in
/// order.
///
/// # Errors
/// The reason why a run cannot be had from anywhere.
async fn read(node: &Arc<Node>, sources: &Arc<Sources>, batch: Vec<Run>) -> Result<Vec<Part>, String> {
    let own = sources.clone();
    let here = node.store.blocking(move |store| {
        let one = |run| (read_here(store, &own, &run), run);
        batch.into_iter().map(one).collect::<Vec<_>>()
    });
    let mut runs = Vec::new();
    // Dropped, it ends what is under way.
    let mut fetches = JoinSet::new();
    for (number, (found, run)) in here.await.map_err(|error| error.to_string())?.into_iter().enumerate() {
        match found {
            Ok(parts) => runs.push(parts),
            Err(error) => {
                runs.push(Vec::new());
                sources.suspect(node, run.source, &error);
                if fetches.len() == FETCHES_AT_ONCE {
                    keep_next(&mut fetches, &mut runs).await?;
                }
                let fetch = fetch(node.clone(), sources.clone(), run, error);
                let fetch = async move { fetch.await.map(|parts| (number, parts)) };
                fetches.spawn(fetch.instrument(Span::current()));
            }
        }
    }
    while !fetches.is_empty() {
        keep_next(&mut fetches, &mut runs).await?;
    }
    Ok(runs.into_iter().flatten().collect())
}

/// Waits for the next fetch that ends, and puts its parts in their place.
async fn keep_next(
    fetches: &mut JoinSet<Result<(usize, Vec<Part>), String>>,
    runs: &mut [Vec<Part>],
) -> Result<(), String> {
    if let Some(fetched) = fetches.join_next().await {
        let (number, parts) = fetched.map_err(|error| error.to_string())??;
        runs[number] = parts;
    }
    Ok(())
}

/// Reads a run from this node's own replica.
fn read_here(store: &Store, sources: &Sources, run: &Run) -> Result<Vec<Part>, StoreError> {
    let source = &sources.list[run.source];
    let mut cut = Cut::new(source.chunk, run);
    let mut reader = store.reader(source.chunk, source.epoch, run.offset(), run.span())?;
    while !cut.is_complete()
        && let Some(batch) = reader.next_batch()?
    {
        batch.iter().try_for_each(|(frame, bytes)| cut.take(frame, &bytes))?;
    }
    cut.finish()
}

/// Reads a run from other nodes' replicas, one after the other until one has it whole. `here` is why this node has not.
async fn fetch(node: Arc<Node>, sources: Arc<Sources>, run: Run, here: StoreError) -> Result<Vec<Part>, String> {
    let mut reasons = Vec::new();
    for replica in sources.in_turn(run.source, node.id()) {
        if let Some(silence) = sources.silence(replica.node) {
            reasons.push(format!("node {}: {silence}", replica.node));
            continue;
        }
        match fetch_from(&node, &sources.list[run.source], &run, &replica).await {
            Ok(parts) => return Ok(parts),
            Err(error) => {
                debug!(source = %replica.node, offset = run.offset(), %error, "source failed");
                sources.note_failure(run.source, replica.node, &error);
                reasons.push(format!("node {}: {error}", replica.node));
            }
        }
    }
    reasons.push(format!("here: {here}"));
    let chunk = sources.list[run.source].chunk;
    Err(format!("chunk {chunk} from byte {} on: {}", run.offset(), reasons.join("; ")))
}

async fn fetch_from(
    node: &Arc<Node>,
    source: &GatherSource,
    run: &Run,
    replica: &ReplicaAt,
) -> Result<Vec<Part>, SourceError> {
    let &GatherSource { chunk, epoch, ref capability, .. } = source;
    let wanted = Wanted { chunk, epoch, offset: run.offset(), len: run.span(), capability };
    let mut recv = source::request(node, &wanted, replica).await?;
    // One call has room for a run with the frames that reach over its ends.
    let (frames, end) = source::receive_frames(&mut recv).await;
    let mut cut = Cut::new(chunk, run);
    let cutting = node.store.blocking(move |_| {
        frames.iter().try_for_each(|(frame, bytes)| cut.take(frame, bytes))?;
        cut.finish()
    });
    match (cutting.await?, end) {
        (Ok(parts), _) => Ok(parts),
        (Err(StoreError::Short { .. }), Some(Err(broke_off))) => Err(broke_off),
        (Err(error), _) => Err(SourceError::Bad(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::{Access, Capability, CapabilityKey, Timestamp};

    use super::*;

    #[test]
    fn an_order_that_makes_no_sense_is_refused() {
        let key = CapabilityKey { number: 1, secret: [9; 32] };
        let capability = Capability::sign(&key, ChunkId(1), Access::Read, NodeId(1), Timestamp { secs: 0, nanos: 0 });
        let source = GatherSource { chunk: ChunkId(1), epoch: Epoch(2), replicas: Vec::new(), capability };
        let order = |pieces: Vec<(u16, u32, u32)>, sources: usize| GatherOrder {
            chunk: ChunkId(9),
            epoch: Epoch(2),
            pieces: pieces.into_iter().map(|(source, offset, len)| Piece { source, offset, len }).collect(),
            sources: vec![source.clone(); sources],
        };
        assert_eq!(length(&order(vec![(0, 0, CHUNK_MAX)], 1)), Ok(CHUNK_MAX));
        assert_eq!(length(&order(vec![(63, CHUNK_MAX - 2, 2); GATHER_PIECES_MAX], GATHER_SOURCES_MAX)), Ok(16_384));
        let malformed = [
            order(vec![], 1),
            order(vec![(0, 0, 1); GATHER_PIECES_MAX + 1], 1),
            order(vec![(0, 0, 1)], GATHER_SOURCES_MAX + 1),
            order(vec![(1, 0, 1)], 1),
            order(vec![(0, 0, 1)], 0),
            order(vec![(0, 0, 0)], 1),
            order(vec![(0, u32::MAX, 2)], 1),
            order(vec![(0, 1, CHUNK_MAX)], 1),
            order(vec![(0, 0, CHUNK_MAX), (0, 0, 1)], 1),
            order(vec![(0, 0, CHUNK_MAX); 65], 1),
        ];
        for order in malformed {
            assert!(length(&order).unwrap_err().starts_with("malformed order: "), "{:?}", order.pieces.first());
        }
    }
}

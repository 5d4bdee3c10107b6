//! What the leading namenode orders, carried out. Doing an order twice is the same as doing it once,
//! and what is not done shows in the digests and is ordered again; so an order that finds its queue full is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::msg::node::{Order, Outcome};
use dfs_proto::{ChunkId, Epoch};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::clock;
use crate::gather;
use crate::node::Node;
use crate::replicate;
use crate::scrub;
use crate::store::{Deleted, StoreError, Verdict};

/// Orders of one kind that wait: two heartbeat replies full of them (`limits::ORDERS_MAX`).
const QUEUE_ORDERS: usize = 1024;

/// Seals and deletes at once. A seal waits for the disk, so a few overlap well; more would only queue there.
const QUICK_PARALLEL: usize = 4;

/// How fast a replica is read when it is suspected or the leader asks: fast, but not at the price of service.
const VERIFY_BYTES_PER_S: u64 = 128 << 20;

/// Orders that were accepted and are not done.
pub struct Orders {
    accepted: Mutex<BTreeSet<(Kind, ChunkId)>>,
    quick: mpsc::Sender<Order>,
    copies: mpsc::Sender<Order>,
    verifications: mpsc::Sender<Order>,
}

/// Where the workers take orders from.
pub struct Queues {
    quick: mpsc::Receiver<Order>,
    copies: mpsc::Receiver<Order>,
    verifications: mpsc::Receiver<Order>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Seal,
    Delete,
    Copy,
    Verify,
    EndAppends,
    Scrub,
    Gather,
}

impl Orders {
    pub fn new() -> (Orders, Queues) {
        let (quick, quick_queue) = mpsc::channel(QUEUE_ORDERS);
        let (copies, copies_queue) = mpsc::channel(QUEUE_ORDERS);
        let (verifications, verifications_queue) = mpsc::channel(QUEUE_ORDERS);
        let queues = Queues { quick: quick_queue, copies: copies_queue, verifications: verifications_queue };
        (Orders { accepted: Mutex::default(), quick, copies, verifications }, queues)
    }

    /// Queues an order, unless the same one waits or runs.
    pub fn accept(&self, order: Order) {
        let key = key(&order);
        if !self.accepted.lock().insert(key) {
            return;
        }
        let queue = match key.0 {
            Kind::Seal | Kind::Delete | Kind::EndAppends | Kind::Scrub => &self.quick,
            Kind::Copy | Kind::Gather => &self.copies,
            Kind::Verify => &self.verifications,
        };
        if queue.try_send(order).is_err() {
            self.accepted.lock().remove(&key);
            warn!(chunk = %key.1, kind = ?key.0, "too many orders wait, one is dropped until it is repeated");
        }
    }

    /// Has a replica verified that could not be read, as if it had been ordered.
    pub fn suspect(&self, chunk: ChunkId) {
        // Epoch and length of any: it is the replica as it stands that is examined.
        self.accept(Order::Verify { chunk, epoch: ANY_EPOCH, len: 0 });
    }

    /// Chunks whose copies wait or are under way.
    pub fn copying(&self) -> Vec<ChunkId> {
        let accepted = self.accepted.lock();
        accepted.iter().filter(|(kind, _)| *kind == Kind::Copy).map(|(_, chunk)| *chunk).collect()
    }

    fn done(&self, key: (Kind, ChunkId)) {
        self.accepted.lock().remove(&key);
    }
}

/// Marks a verification that nobody ordered. The namenode counts epochs from 1.
const ANY_EPOCH: Epoch = Epoch(0);

fn key(order: &Order) -> (Kind, ChunkId) {
    match order {
        Order::Seal { chunk, .. } => (Kind::Seal, *chunk),
        Order::Delete { chunk, .. } => (Kind::Delete, *chunk),
        Order::Copy { chunk, .. } => (Kind::Copy, *chunk),
        Order::Verify { chunk, .. } => (Kind::Verify, *chunk),
        Order::EndAppends { chunk, .. } => (Kind::EndAppends, *chunk),
        // Of the whole node.
        Order::Scrub { .. } => (Kind::Scrub, ChunkId(0)),
        Order::Gather { chunk, .. } => (Kind::Gather, *chunk),
    }
}

/// Starts the workers. They begin when the volumes have been read, and end with `stop`.
pub fn start(node: &Arc<Node>, queues: Queues, tasks: &mut JoinSet<()>, stop: &CancellationToken) {
    let Queues { quick, copies, verifications } = queues;
    let parallel = [(quick, QUICK_PARALLEL), (copies, node.config.copy_parallel), (verifications, 1)];
    for (queue, workers) in parallel {
        let queue = Arc::new(tokio::sync::Mutex::new(queue));
        for _ in 0..workers {
            tasks.spawn(work(node.clone(), queue.clone(), stop.clone()));
        }
    }
}

async fn work(node: Arc<Node>, queue: Arc<tokio::sync::Mutex<mpsc::Receiver<Order>>>, stop: CancellationToken) {
    // Before the scan is over nothing is known about what is absent.
    let mut scanned = node.scanned.subscribe();
    tokio::select! {
        () = stop.cancelled() => return,
        scanned = scanned.wait_for(|scanned| *scanned) => if scanned.is_err() { return },
    }
    let next = || async { queue.lock().await.recv().await };
    loop {
        let order = tokio::select! {
            () = stop.cancelled() => return,
            order = next() => match order {
                Some(order) => order,
                None => return,
            },
        };
        let key = key(&order);
        let span = info_span!("order", kind = ?key.0, chunk = %key.1);
        tokio::select! {
            () = stop.cancelled() => return,
            () = carry_out(&node, order).instrument(span) => {}
        }
        node.orders.done(key);
    }
}

async fn carry_out(node: &Arc<Node>, order: Order) {
    let outcome = match order {
        Order::Seal { chunk, epoch, len } => seal(node, chunk, epoch, len).await,
        Order::Delete { chunk, epoch } => delete(node, chunk, epoch).await,
        Order::Verify { chunk, epoch, len } => verify(node, chunk, epoch, len).await,
        Order::Copy { chunk, epoch, len, sources, capability } => {
            let copy = replicate::CopyOrder { chunk, epoch, len, sources, capability };
            Some(replicate::copy(node, copy).await)
        }
        Order::Gather { chunk, epoch, pieces, sources } => {
            Some(gather::gather(node, gather::GatherOrder { chunk, epoch, pieces, sources }).await)
        }
        Order::EndAppends { chunk, epoch } => {
            node.store.end_appends(chunk, epoch);
            None
        }
        Order::Scrub { wish } => {
            if let Err(error) = node.scrub.ask(wish, clock::now_s()).await {
                warn!(%error, "the wish for a scrub is not kept over a restart");
            }
            None
        }
    };
    if let Some(outcome) = outcome {
        node.outcomes.push(outcome);
    }
}

/// A seal that succeeds shows in the digests; one that cannot succeed is a bad replica.
async fn seal(node: &Arc<Node>, chunk: ChunkId, epoch: Epoch, len: u32) -> Option<Outcome> {
    match node.store.blocking(move |store| store.seal(chunk, epoch, len)).await.and_then(|sealed| sealed) {
        Ok(sealed) => {
            debug!(?sealed, %epoch, len, "seal order");
            None
        }
        Err(StoreError::Short { here, .. }) => Some(Outcome::Short { chunk, epoch, len: here }),
        Err(error) if says_something(&error) => Some(Outcome::Bad { chunk, epoch, reason: error.to_string() }),
        Err(error) => {
            warn!(%error, "cannot seal");
            None
        }
    }
}

async fn delete(node: &Arc<Node>, chunk: ChunkId, epoch: Epoch) -> Option<Outcome> {
    match node.store.blocking(move |store| store.delete(chunk, epoch)).await.and_then(|deleted| deleted) {
        Ok(Deleted::Gone) => Some(Outcome::Deleted { chunk, epoch }),
        Ok(Deleted::Outdated) => None,
        Err(error) => {
            warn!(%error, "cannot delete");
            None
        }
    }
}

async fn verify(node: &Arc<Node>, chunk: ChunkId, epoch: Epoch, len: u32) -> Option<Outcome> {
    let asked = epoch != ANY_EPOCH;
    // Bad is said of the epoch that the leader counts: this replica is no good one of that.
    let bad = |here: Epoch, reason: String| Some(Outcome::Bad { chunk, epoch: here.max(epoch), reason });
    let verdict = match scrub::verify(node, chunk, VERIFY_BYTES_PER_S).await {
        Ok(verdict) => verdict,
        Err(error) if says_something(&error) => {
            let here = node.store.get(chunk).map_or(epoch, |replica| replica.epoch);
            return bad(here, error.to_string());
        }
        Err(error) => {
            warn!(%error, "cannot verify");
            return None;
        }
    };
    match verdict {
        // It missed the end of the chunk. What that makes of it shows when it is sealed there.
        Verdict::Whole { epoch: here, len: found } if asked && found < len && here < epoch => {
            seal(node, chunk, epoch, len).await
        }
        // One that is not sealed yet may be longer; its seal order cuts it.
        Verdict::Whole { epoch: here, len: found }
            if asked && (found < len && here <= epoch || found != len && here == epoch) =>
        {
            bad(here, format!("{found} bytes are here, and it should be {len}"))
        }
        Verdict::Whole { epoch, len } => asked.then_some(Outcome::Verified { chunk, epoch, len }),
        Verdict::Damaged { epoch: here, reason } => {
            info!(reason, "replica is damaged");
            bad(here, reason)
        }
        Verdict::Changed => None,
    }
}

/// Whether an error says that this replica is bad, and not only that the work has to wait.
fn says_something(error: &StoreError) -> bool {
    matches!(error, StoreError::NotHere(_) | StoreError::Damaged { .. } | StoreError::VolumeFailed { .. })
}

/// How long to rest after reading so many bytes, to keep to a rate.
pub fn rest(bytes: u64, bytes_per_s: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(1) as f64)
}

//! One append stream: frames come in, are verified and written here, and go on down the chain.
//!
//! Four things happen at once, each a future: frames are taken in (`intake`), written (`write_local`), passed
//! on with the answers coming back (`Downstream::run`), and what holds for this node and all behind it is
//! told upstream (the loop in `pump`). They share two queues and a window of bytes: a frame holds its
//! part of the window until it is both written and passed on, so that a slow disk or a slow neighbour
//! makes the sender wait instead of filling memory.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::limits::REPLICATION_MAX;
use dfs_proto::msg::data::{AppendEvent, FRAME_HEADER_LEN, append_item};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::{Access, Capability, ChunkId, Epoch, ErrorKind, FrameHeader, NodeId, PeerIdentity, WireError};
use dfs_rpc::{RecvStream, RpcError, SendStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tracing::{debug, info};

use super::downstream::Downstream;
use crate::node::Node;
use crate::store::{OpenChunk, StoreError};

/// Bytes of a stream that may be in this node's memory.
pub const WINDOW_BYTES: u32 = 4 << 20;

/// What the smallest frame takes of the window: bounds the number of frames in memory too.
const FRAME_CHARGE_MIN: u32 = 4 << 10;

/// Items in each queue: as many of the smallest frames as the window has room for. Syncs count as well,
/// and make the sender wait when the queue is full of them.
const QUEUE_ITEMS: usize = (WINDOW_BYTES / FRAME_CHARGE_MIN) as usize;

/// Frames written by one call: as much as keeps a disk thread busy for about a millisecond.
const WRITE_BYTES: usize = 1 << 20;

/// A writer that sends nothing for so long has to seal the chunk and open another. As long as a capability lives.
const IDLE_DEADLINE: Duration = Duration::from_secs(600);

/// From the first byte of an item to its last.
const ITEM_DEADLINE: Duration = Duration::from_secs(30);

/// For opening the chunk, and for a batch of frames, on this node's disk. The chain allows its nodes more the more
/// of them lie behind, so that the one nearest to the trouble speaks up first and names it.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(4);

/// Bytes that are synced in so long need not be acknowledged before.
const QUICK: Duration = Duration::from_millis(200);

/// As `WRITE_DEADLINE`, where the disk has to sync.
pub const SYNC_DEADLINE: Duration = Duration::from_secs(10);

/// For an event to find room in the stream's buffer.
const EVENT_DEADLINE: Duration = Duration::from_secs(5);

pub struct Request {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub capability: Capability,
    pub chain: Vec<ReplicaAt>,
}

/// Why a stream is over, and on whose account.
#[derive(Debug)]
pub struct Failure {
    pub node: NodeId,
    pub error: WireError,
}

/// One item on its way through this node.
#[derive(Clone)]
pub enum Item {
    Frame {
        header: FrameHeader,
        bytes: Bytes,
        /// Gives the window back when the last of the two queues is done with the frame.
        _room: Arc<OwnedSemaphorePermit>,
    },
    Sync,
}

pub async fn serve(node: &Arc<Node>, peer: PeerIdentity, request: Request, mut send: SendStream, recv: RecvStream) {
    match run(node, peer, request, &mut send, recv).await {
        Ok(()) => debug!("append stream ended"),
        Err(Failure { node: failed, error }) => {
            info!(node = %failed, kind = ?error.kind, error = error.message, "append stream failed");
            let event = AppendEvent::Failed { node: failed, error };
            let _ = tokio::time::timeout(EVENT_DEADLINE, send.send(&event)).await;
        }
    }
    send.finish();
}

async fn run(
    node: &Arc<Node>,
    peer: PeerIdentity,
    request: Request,
    send: &mut SendStream,
    recv: RecvStream,
) -> Result<(), Failure> {
    let here = |error| Failure { node: node.id(), error };
    node.admit(&peer, &request.capability, request.chunk, Access::Append).map_err(here)?;
    if request.chain.len() >= REPLICATION_MAX as usize || request.chain.iter().any(|next| next.node == node.id()) {
        return Err(here(WireError::new(ErrorKind::InvalidArgument, "the chain is too long or leads back here")));
    }
    let overload = || WireError::new(ErrorKind::Unavailable, "too many append streams at once");
    let _place = node.append_streams.try_acquire().map_err(|_| here(overload()))?;

    // Not the first error of the two: a chunk that is made although the chain cannot be opened must still
    // get its end of stream.
    let (local, downstream) = tokio::join!(open_local(node, &request), Downstream::open(node, &request));
    let (local, downstream) = (local?, downstream?);
    tell(node, send, &AppendEvent::Ready).await?;
    pump(node, local, downstream, send, recv).await
}

/// Runs an opened stream to its end.
async fn pump(
    node: &Arc<Node>,
    local: Local,
    downstream: Option<Downstream>,
    send: &mut SendStream,
    recv: RecvStream,
) -> Result<(), Failure> {
    let progress = Progress::default();
    if downstream.is_none() {
        progress.behind_written.store(u32::MAX, Ordering::Release);
        progress.behind_synced.store(u32::MAX, Ordering::Release);
    }
    let (to_disk, for_disk) = mpsc::channel(QUEUE_ITEMS);
    let (to_chain, for_chain) = mpsc::channel(QUEUE_ITEMS);
    let to_chain = downstream.is_some().then_some(to_chain);
    let chain = async {
        match downstream {
            Some(downstream) => downstream.run(for_chain, &progress).await,
            None => Ok(()),
        }
    };
    let disk = write_local(node, &local, for_disk, &progress);
    let work = async { tokio::try_join!(intake(node, recv, to_disk, to_chain), disk, chain) };
    tokio::pin!(work);
    let mut told = (0, 0, 0);
    loop {
        let done = tokio::select! {
            done = &mut work => Some(done),
            () = progress.moved.notified() => None,
            () = node.leaving.cancelled() => {
                let error = WireError::new(ErrorKind::Unavailable, "this node is about to stop");
                Some(Err(Failure { node: node.id(), error }))
            }
            () = local.0.evicted.cancelled() => {
                let error = WireError::new(ErrorKind::Unavailable, "this replica is to be elsewhere");
                Some(Err(Failure { node: node.id(), error }))
            }
        };
        let holds = progress.holds(&local.0);
        if holds != told {
            // The work rests while this is sent: an upstream that takes no answers gets no service.
            tell(node, send, &AppendEvent::Ack { written: holds.0, synced: holds.1 }).await?;
            told = holds;
        }
        if let Some(done) = done {
            return done.map(drop);
        }
    }
}

/// What has been reached here, and behind this node in the chain.
#[derive(Default)]
pub struct Progress {
    written: AtomicU32,
    /// Counts answered syncs: each is acknowledged, also one that had nothing to do.
    syncs: AtomicU32,
    pub behind_written: AtomicU32,
    pub behind_synced: AtomicU32,
    pub moved: Notify,
}

impl Progress {
    /// Bytes written and bytes synced on this node and every one behind it, and the syncs answered.
    fn holds(&self, open: &OpenChunk) -> (u32, u32, u32) {
        let written = self.written.load(Ordering::Acquire).min(self.behind_written.load(Ordering::Acquire));
        let synced = open.synced().min(self.behind_synced.load(Ordering::Acquire));
        (written, synced.min(written), self.syncs.load(Ordering::Acquire))
    }
}

/// The chunk as opened here; its stream ends when this is dropped, however that comes about.
struct Local(Arc<OpenChunk>);

impl Drop for Local {
    fn drop(&mut self) {
        self.0.end_of_stream();
    }
}

async fn open_local(node: &Arc<Node>, request: &Request) -> Result<Local, Failure> {
    let &Request { chunk, epoch, .. } = request;
    let open = node.store.blocking(move |store| store.create(chunk, epoch).map(Local));
    disk(node.id(), WRITE_DEADLINE, open).await
}

/// Takes items off the wire and puts each into both queues.
async fn intake(
    node: &Arc<Node>,
    mut recv: RecvStream,
    to_disk: mpsc::Sender<Item>,
    to_chain: Option<mpsc::Sender<Item>>,
) -> Result<(), Failure> {
    let here = |error| Failure { node: node.id(), error };
    let window = Arc::new(Semaphore::new(WINDOW_BYTES as usize));
    let mut kind = [0];
    loop {
        let more = tokio::time::timeout(IDLE_DEADLINE, recv.read_exact_or_end(&mut kind)).await;
        let more = more.map_err(|_| here(WireError::new(ErrorKind::Timeout, "the writer was idle for too long")))?;
        if !more.map_err(|error| here(error.to_wire()))? {
            return Ok(());
        }
        let item = match kind[0] {
            append_item::FRAME => {
                let frame = tokio::time::timeout(ITEM_DEADLINE, receive_frame(&mut recv, &window)).await;
                let late = || RpcError::Timeout(ITEM_DEADLINE.as_millis());
                frame.unwrap_or_else(|_| Err(late())).map_err(|error| here(error.to_wire()))?
            }
            append_item::SYNC => Item::Sync,
            other => return Err(here(WireError::new(ErrorKind::Malformed, format!("no append item: {other}")))),
        };
        // A queue that is closed belongs to a part that has failed and says why itself.
        if let Some(to_chain) = &to_chain {
            let _ = to_chain.send(item.clone()).await;
        }
        let _ = to_disk.send(item).await;
    }
}

async fn receive_frame(recv: &mut RecvStream, window: &Arc<Semaphore>) -> Result<Item, RpcError> {
    let mut header = [0; FRAME_HEADER_LEN];
    recv.read_exact(&mut header).await?;
    let header = FrameHeader::from_bytes(&header).ok_or_else(|| RpcError::Malformed("frame header".into()))?;
    let room = window.clone().acquire_many_owned(header.len.max(FRAME_CHARGE_MIN)).await;
    let room = room.map_err(|error| RpcError::Closed(error.to_string()))?;
    let bytes = recv.read_whole(header.len as usize).await?;
    Ok(Item::Frame { header, bytes, _room: Arc::new(room) })
}

/// Verifies and writes what is queued, as much at once as is there, and syncs once for all syncs in it. A sync behind its
/// bytes is one job with them for the disk's thread, and answered once.
async fn write_local(
    node: &Arc<Node>,
    local: &Local,
    mut queue: mpsc::Receiver<Item>,
    progress: &Progress,
) -> Result<(), Failure> {
    while let Some(first) = queue.recv().await {
        let (mut frames, mut rooms, mut bytes_taken, mut syncs) = (Vec::new(), Vec::new(), 0, 0);
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Item::Frame { header, bytes, _room } => {
                    bytes_taken += bytes.len();
                    frames.push((header, bytes));
                    rooms.push(_room);
                }
                Item::Sync => syncs += 1,
            }
            next = if bytes_taken < WRITE_BYTES { queue.try_recv().ok() } else { None };
        }
        if !frames.is_empty() {
            let (open, sync) = (local.0.clone(), syncs > 0);
            let (wrote, written) = oneshot::channel();
            let work = node.store.blocking(move |store| {
                let end = store.append(&open, &frames)?;
                // Nobody listens if it is quick.
                let _ = wrote.send(end);
                if sync { store.sync_open(&open).map(|_| end) } else { Ok(end) }
            });
            let end = in_two_steps(node.id(), work, written, progress).await?;
            progress.written.store(end, Ordering::Release);
        } else if syncs > 0 {
            let open = local.0.clone();
            disk(node.id(), SYNC_DEADLINE, node.store.blocking(move |store| store.sync_open(&open))).await?;
        }
        drop(rooms);
        progress.syncs.fetch_add(syncs, Ordering::AcqRel);
        progress.moved.notify_one();
    }
    Ok(())
}

/// Waits for work that writes and may then sync. Where the sync is slow, what is written is acknowledged before it: whoever
/// waits for that has less patience.
async fn in_two_steps(
    node: NodeId,
    work: impl Future<Output = Result<Result<u32, StoreError>, StoreError>>,
    written: oneshot::Receiver<u32>,
    progress: &Progress,
) -> Result<u32, Failure> {
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(QUICK, &mut work).await {
        return disk(node, WRITE_DEADLINE, std::future::ready(done)).await;
    }
    if let Ok(end) = disk(node, WRITE_DEADLINE - QUICK, async { Ok(Ok(written.await)) }).await? {
        progress.written.store(end, Ordering::Release);
        progress.moved.notify_one();
    }
    disk(node, SYNC_DEADLINE, work).await
}

/// Waits for the disk, but not for ever.
async fn disk<T>(
    node: NodeId,
    deadline: Duration,
    work: impl Future<Output = Result<Result<T, StoreError>, StoreError>>,
) -> Result<T, Failure> {
    let error = match tokio::time::timeout(deadline, work).await {
        Ok(Ok(Ok(value))) => return Ok(value),
        Ok(Ok(Err(error)) | Err(error)) => error.to_wire(),
        Err(_) => WireError::new(ErrorKind::Timeout, format!("the disk took more than {} ms", deadline.as_millis())),
    };
    Err(Failure { node, error })
}

async fn tell(node: &Arc<Node>, send: &mut SendStream, event: &AppendEvent) -> Result<(), Failure> {
    let sent = tokio::time::timeout(EVENT_DEADLINE, send.send(event)).await;
    let late = || Err(RpcError::Timeout(EVENT_DEADLINE.as_millis()));
    sent.unwrap_or_else(|_| late()).map_err(|error| Failure { node: node.id(), error: error.to_wire() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: NodeId = NodeId(1);

    /// Work that has written 7 bytes at once and takes so long in all.
    async fn steps(takes: Duration, progress: &Progress) -> Result<u32, ErrorKind> {
        let (wrote, written) = oneshot::channel();
        wrote.send(7).unwrap();
        let work = async {
            tokio::time::sleep(takes).await;
            Ok(Ok(7))
        };
        in_two_steps(HERE, work, written, progress).await.map_err(|failure| failure.error.kind)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_is_told_before_a_slow_sync_and_together_with_a_quick_one() {
        let told = |progress: &Progress| progress.written.load(Ordering::Acquire);
        let progress = Progress::default();
        assert_eq!(steps(QUICK / 2, &progress).await, Ok(7));
        assert_eq!(told(&progress), 0, "by whoever waits for it");

        let slow = steps(WRITE_DEADLINE + QUICK, &progress);
        let mut slow = pin!(slow);
        assert!(tokio::time::timeout(2 * QUICK, &mut slow).await.is_err());
        assert_eq!(told(&progress), 7);
        tokio::time::timeout(QUICK, progress.moved.notified()).await.unwrap();
        assert_eq!(slow.await, Ok(7), "a sync has longer than a write");
        assert_eq!(steps(2 * SYNC_DEADLINE, &progress).await, Err(ErrorKind::Timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_does_not_write_in_time_is_not_waited_for_as_if_it_synced() {
        let (_wrote, written) = oneshot::channel();
        let started = tokio::time::Instant::now();
        let failed = in_two_steps(HERE, std::future::pending(), written, &Progress::default()).await;
        assert_eq!(failed.map_err(|failure| failure.error.kind).unwrap_err(), ErrorKind::Timeout);
        assert_eq!(started.elapsed(), WRITE_DEADLINE);
    }
}

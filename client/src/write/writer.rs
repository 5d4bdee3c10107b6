//! Drives one open chunk: a task per append stream, around the `AppendState` that decides.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use dfs_proto::limits::FRAME_MAX;
use dfs_proto::msg::data::{AppendEvent, DataRequest, FRAME_HEADER_LEN, append_item};
use dfs_proto::msg::meta::{ChunkCommit, ChunkLocation, ReplicaAt};
use dfs_proto::{ChunkId, FrameHeader, NodeId, Plane, Role};
use dfs_rpc::{Connection, RecvStream, RpcError, SendStream, Target};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::client::Client;
use crate::open::FileState;
use crate::write::append::{AppendState, PieceId, Settled, frame_bounds};
use crate::write::state::UploadId;

/// Bytes placed in one chunk and not acknowledged. Several round trips at full speed; it also bounds the
/// lanes' queues, as every piece counts for at least `PIECE_COST_MIN`.
const WINDOW: usize = 8 << 20;
const PIECE_COST_MIN: usize = 4 << 10;

/// A lane that owes bytes and shows no progress for so long has failed. A chain gets more for each of
/// its nodes, as its nodes do, so that the one nearest to the trouble speaks up first and names it.
const PROGRESS: Duration = Duration::from_secs(5);
const PROGRESS_HOP: Duration = Duration::from_secs(1);

/// A lane that owes only a sync gets longer: a busy disk takes its time.
const PROGRESS_SYNC: Duration = Duration::from_secs(30);

/// A lane of a node that has just failed another lane gets no more than this, for bytes or a sync.
const PROGRESS_SUSPECT: Duration = Duration::from_secs(3);

/// How often a waiting lane looks whether its node has come under suspicion, and whether it is heard at all.
const CHECK: Duration = Duration::from_millis(500);

/// A node that owes something and is not heard at so many checks in a row is gone: who lives says something once a second,
/// and may be late by as much again. Its connection would notice later. Checks are counted, and not time, because this
/// process may have stood still itself.
const SILENT_CHECKS: u32 = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    Chain,
    FanOut,
}

/// Who is told what becomes of a piece.
pub(crate) enum Owner {
    File(Arc<FileState>, UploadId),
    /// Hears where the piece is; the sender is dropped if the piece failed.
    Direct(oneshot::Sender<Stored>),
}

/// A piece that is stored. The chunk is not sealed while this lives, so that it can be committed.
pub(crate) struct Stored {
    pub writer: Arc<ChunkWriter>,
    /// Where it starts in the chunk.
    pub at: u32,
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.writer.state.lock().untold -= 1;
    }
}

/// Bytes to append in a row.
pub(crate) struct Piece {
    pub owner: Owner,
    pub bytes: Vec<Bytes>,
    /// Somebody waits until it is synced: the disks are told so right behind it, and not a round trip later.
    pub sync: bool,
}

pub(crate) struct ChunkWriter {
    pub location: ChunkLocation,
    pub shape: Shape,
    state: Mutex<State>,
    /// Held while a piece is placed, hashed and queued, so that lanes get pieces in chunk order.
    order: tokio::sync::Mutex<()>,
    window: Arc<Semaphore>,
    lanes: Vec<LaneHandle>,
    /// Cancelled when the chunk ends by a failure: lanes stop where they are.
    stop: CancellationToken,
    /// Something was synced, or the chunk ended.
    progress: Notify,
}

struct State {
    append: AppendState,
    owners: HashMap<PieceId, Placed>,
    /// Bytes that the namenode has committed.
    committed: u32,
    /// Acknowledged pieces whose owners have not heard of it yet: not the time to seal.
    untold: usize,
    last_used: Instant,
}

impl State {
    fn note(&mut self, settled: Settled) -> Settled {
        self.untold += settled.acked.len();
        settled
    }
}

struct Placed {
    owner: Owner,
    at: u32,
    len: u32,
    _window: OwnedSemaphorePermit,
}

struct LaneHandle {
    /// Unbounded as a type; `WINDOW` bounds what is in it.
    queue: mpsc::UnboundedSender<LaneItem>,
    /// The lane owes something from here on.
    owing: Notify,
}

const SYNC: Bytes = Bytes::from_static(&[append_item::SYNC]);

enum LaneItem {
    Records(Vec<Bytes>),
    Sync,
    Finish,
}

/// Why a lane ended, and whose fault it is.
struct LaneFailure {
    node: NodeId,
    reason: String,
}

impl ChunkWriter {
    /// Starts the append streams of a chunk just allocated.
    pub fn open(client: &Arc<Client>, location: ChunkLocation, shape: Shape, required: usize) -> Arc<ChunkWriter> {
        let replicas = &location.replicas;
        let routes: Vec<(ReplicaAt, Vec<ReplicaAt>)> = match shape {
            Shape::Chain => replicas.split_first().map(|(&head, rest)| (head, rest.to_vec())).into_iter().collect(),
            Shape::FanOut => replicas.iter().map(|&replica| (replica, Vec::new())).collect(),
        };
        let nodes = |(head, rest): &(ReplicaAt, Vec<ReplicaAt>)| {
            std::iter::once(head).chain(rest).map(|replica| replica.node).collect()
        };
        let append = AppendState::new(routes.iter().map(nodes).collect(), required);
        let (lanes, queues): (Vec<_>, Vec<_>) = routes
            .iter()
            .map(|_| mpsc::unbounded_channel())
            .map(|(queue, items)| (LaneHandle { queue, owing: Notify::new() }, items))
            .unzip();
        let writer = Arc::new(ChunkWriter {
            location,
            shape,
            state: Mutex::new(State {
                append,
                owners: HashMap::new(),
                committed: 0,
                untold: 0,
                last_used: Instant::now(),
            }),
            order: tokio::sync::Mutex::new(()),
            window: Arc::new(Semaphore::new(WINDOW)),
            lanes,
            stop: CancellationToken::new(),
            progress: Notify::new(),
        });
        for (lane, (route, items)) in routes.into_iter().zip(queues).enumerate() {
            let span = info_span!("append", chunk = %writer.chunk(), node = %route.0.node);
            tokio::spawn(run_lane(client.clone(), writer.clone(), lane, route, items).instrument(span));
        }
        writer
    }

    pub fn chunk(&self) -> ChunkId {
        self.location.chunk
    }

    /// Queues a piece behind those before it. Waits while the window is full. Gives the piece back if the chunk does not
    /// take it: it is full, closed or has failed.
    pub async fn append(&self, piece: Piece) -> Result<(), Piece> {
        let len: usize = piece.bytes.iter().map(Bytes::len).sum();
        let cost = len.clamp(PIECE_COST_MIN, WINDOW) as u32;
        // Closed when the chunk takes no more.
        let Ok(permit) = self.window.clone().acquire_many_owned(cost).await else {
            return Err(piece);
        };
        let _order = self.order.lock().await;
        let (at, sync) = {
            let mut state = self.state.lock();
            let Some((id, at)) = state.append.place(len as u32) else {
                return Err(piece);
            };
            state.last_used = Instant::now();
            state.owners.insert(id, Placed { owner: piece.owner, at, len: len as u32, _window: permit });
            (at, piece.sync && state.append.want_sync(at + len as u32))
        };
        // At most 1 MiB, a quarter of a millisecond: not worth another thread.
        let mut records = frame_records(self.chunk(), at, piece.bytes);
        if sync {
            // In one go with the bytes: a node that finds both writes and syncs without a wait in between.
            records.push(SYNC);
        }
        for lane in &self.lanes {
            // Fails only if the lane has ended, and then the piece has been settled as failed.
            let _ = lane.queue.send(LaneItem::Records(records.clone()));
            lane.owing.notify_one();
        }
        Ok(())
    }

    /// Takes no more pieces; what is placed is finished and synced, then the chunk is sealed.
    pub async fn close(&self) {
        // Behind whoever is placing a piece, so that its frames go before the end.
        let _order = self.order.lock().await;
        if self.state.lock().append.close() {
            self.finish_lanes();
        }
    }

    /// For whoever closed the chunk and holds `order`. Lanes that have failed do not hear it.
    fn finish_lanes(&self) {
        self.window.close();
        for lane in &self.lanes {
            let _ = lane.queue.send(LaneItem::Sync);
            let _ = lane.queue.send(LaneItem::Finish);
            lane.owing.notify_one();
        }
    }

    /// Ends the append streams where they are.
    pub fn halt(&self) {
        self.stop.cancel();
    }

    /// Waits until enough replicas have synced everything up to `end`. `false` if that cannot be told any
    /// more, because the chunk failed.
    pub async fn sync(&self, end: u32) -> bool {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let ask = {
                let mut state = self.state.lock();
                if state.append.is_synced(end) {
                    return true;
                }
                if state.append.end().is_some() {
                    return false;
                }
                state.append.want_sync(end)
            };
            if ask {
                for lane in &self.lanes {
                    let _ = lane.queue.send(LaneItem::Sync);
                    lane.owing.notify_one();
                }
            }
            progress.await;
        }
    }

    /// Bytes of the chunk that are on every live replica.
    pub fn acked(&self) -> u32 {
        self.state.lock().append.acked()
    }

    pub fn is_synced(&self, end: u32) -> bool {
        self.state.lock().append.is_synced(end)
    }

    /// Nothing under way, nothing placed for `age`, and open.
    pub fn is_idle_since(&self, age: Duration) -> bool {
        let state = self.state.lock();
        state.append.is_idle() && !state.append.is_closing() && state.last_used.elapsed() >= age
    }

    /// Whether a lane may end: it owes nothing and will get nothing.
    fn is_over(&self, lane: usize) -> bool {
        let state = self.state.lock();
        state.append.end().is_some() || (state.append.is_closing() && state.append.owes(lane) == (false, false))
    }

    /// Too few replicas are left for what is not committed.
    pub fn is_lost(&self) -> bool {
        self.state.lock().append.end().is_some_and(|end| end.lost)
    }

    /// Whether the chunk has ended and every owner has heard what became of its piece.
    pub fn is_settled(&self) -> bool {
        let state = self.state.lock();
        state.append.end().is_some() && state.untold == 0
    }

    /// What a commit says about this chunk. With `used` it makes extents of it part of files; `seal` is
    /// for a chunk that has ended.
    pub fn chunk_commit(&self, used: bool, seal: bool) -> ChunkCommit {
        let state = self.state.lock();
        // A lost chunk is sealed where it was committed last: then all its replicas had everything.
        let lost = state.append.end().is_some_and(|end| end.lost);
        let len = if lost && !used { state.committed } else { state.append.acked() };
        let len = len.max(state.committed);
        let replicas = state.append.counted().to_vec();
        ChunkCommit { chunk: self.chunk(), epoch: self.location.epoch, len, replicas, seal }
    }

    pub fn handle_committed(&self, len: u32) {
        let mut state = self.state.lock();
        state.committed = state.committed.max(len);
    }

    /// The namenode no longer lets this client write here: as if too few replicas were left.
    pub fn abandon(self: &Arc<Self>, client: &Arc<Client>, reason: &str) {
        let settled = self.state.lock().append.abandon();
        if settled.ended {
            info!(chunk = %self.chunk(), reason, "chunk abandoned");
            self.settle(client, settled);
        }
    }

    fn handle_ack(self: &Arc<Self>, client: &Arc<Client>, lane: usize, written: u32, synced: u32) {
        let settled = {
            let mut state = self.state.lock();
            let settled = state.append.handle_ack(lane, written, synced);
            state.note(settled)
        };
        self.settle(client, settled);
    }

    async fn handle_failure(self: &Arc<Self>, client: &Arc<Client>, lane: usize, failure: LaneFailure) {
        let settled = {
            let mut state = self.state.lock();
            if state.append.end().is_some() {
                return;
            }
            let settled = state.append.handle_failure(lane, failure.node);
            state.note(settled)
        };
        client.nodes.suspect(failure.node);
        warn!(
            chunk = %self.chunk(),
            node = %failure.node,
            reason = failure.reason,
            resent = settled.failed.len(),
            "append failed: seal and switch"
        );
        if settled.closed {
            // Behind whoever is placing a piece, as in `close`.
            let _order = self.order.lock().await;
            self.finish_lanes();
        }
        self.settle(client, settled);
    }

    /// Tells the owners. No lock is held meanwhile: they have their own.
    fn settle(self: &Arc<Self>, client: &Arc<Client>, settled: Settled) {
        if settled.ended {
            self.window.close();
            // The lanes of a chunk that ended well end by themselves.
            if !self.state.lock().append.is_closing() || !settled.failed.is_empty() || self.is_lost() {
                self.stop.cancel();
            }
        }
        for id in settled.acked {
            let Some(placed) = self.state.lock().owners.remove(&id) else { continue };
            match placed.owner {
                Owner::File(file, upload) => {
                    client.upload_acked(&file, upload, self, placed.at, placed.len);
                    self.state.lock().untold -= 1;
                }
                // Comes back and is dropped if the receiver gave up waiting.
                Owner::Direct(reply) => drop(reply.send(Stored { writer: self.clone(), at: placed.at })),
            }
        }
        if settled.ended {
            client.chunk_ended(self);
        }
        for id in settled.failed {
            let Some(placed) = self.state.lock().owners.remove(&id) else { continue };
            match placed.owner {
                Owner::File(file, upload) => client.upload_failed(&file, upload),
                Owner::Direct(reply) => drop(reply),
            }
        }
        self.progress.notify_waiters();
    }
}

async fn run_lane(
    client: Arc<Client>,
    writer: Arc<ChunkWriter>,
    lane: usize,
    (head, chain): (ReplicaAt, Vec<ReplicaAt>),
    items: mpsc::UnboundedReceiver<LaneItem>,
) {
    let work = async {
        let blame = |error: RpcError| LaneFailure { node: head.node, reason: error.to_string() };
        let (connection, send, recv) = start(&client, &writer, head, chain.clone()).await.map_err(blame)?;
        let sending = async { send_items(send, items).await.map_err(blame) };
        let route: Vec<ReplicaAt> = std::iter::once(head).chain(chain).collect();
        let receiving = receive_events(&client, &writer, lane, &route, &connection, recv);
        tokio::try_join!(sending, receiving).map(|_| ())
    };
    tokio::select! {
        () = writer.stop.cancelled() => debug!("append stream given up"),
        outcome = work => match outcome {
            Ok(()) => debug!("append stream finished"),
            Err(failure) => writer.handle_failure(&client, lane, failure).await,
        }
    }
}

async fn start(
    client: &Client,
    writer: &ChunkWriter,
    head: ReplicaAt,
    chain: Vec<ReplicaAt>,
) -> Result<(Connection, SendStream, RecvStream), RpcError> {
    let target = Target { plane: Plane::Data, role: Role::Datanode, node: head.node, addr: head.addr };
    let capability = writer
        .location
        .capability
        .clone()
        .ok_or_else(|| RpcError::Malformed("the namenode sent no append capability".into()))?;
    let request = DataRequest::Append { chunk: writer.chunk(), epoch: writer.location.epoch, capability, chain };
    let patience = if client.nodes.is_suspect(head.node) { PROGRESS_SUSPECT } else { PROGRESS };
    tokio::time::timeout(patience, async {
        let connection = client.data.get(&target).await?;
        let (mut send, recv) = connection.open_near().await?;
        send.send(&request).await?;
        Ok((connection, send, recv))
    })
    .await
    .unwrap_or(Err(RpcError::Timeout(patience.as_millis())))
}

/// Whether the node keeps up is watched where its acknowledgements arrive.
async fn send_items(mut send: SendStream, mut items: mpsc::UnboundedReceiver<LaneItem>) -> Result<(), RpcError> {
    while let Some(item) = items.recv().await {
        match item {
            LaneItem::Records(mut records) => send.send_raw_all(&mut records).await?,
            LaneItem::Sync => send.send_raw(SYNC).await?,
            LaneItem::Finish => {
                send.finish();
                break;
            }
        }
    }
    Ok(())
}

async fn receive_events(
    client: &Arc<Client>,
    writer: &Arc<ChunkWriter>,
    lane: usize,
    route: &[ReplicaAt],
    connection: &Connection,
    recv: RecvStream,
) -> Result<(), LaneFailure> {
    let head = route[0].node;
    let mut last_progress = Instant::now();
    let mut silence = Silence::default();
    let mut next_check = last_progress + CHECK;
    let mut event = Box::pin(next_event(recv));
    loop {
        let (owes_bytes, owes_sync) = writer.state.lock().append.owes(lane);
        let patience = match (owes_bytes, owes_sync, writer.shape) {
            (true, _, Shape::FanOut) => Some(PROGRESS),
            (true, _, Shape::Chain) => Some(PROGRESS + PROGRESS_HOP * writer.location.replicas.len() as u32),
            (false, true, _) => Some(PROGRESS_SYNC),
            (false, false, _) => None,
        };
        let patience = match patience {
            Some(patience) if client.nodes.is_suspect(head) => Some(patience.min(PROGRESS_SUSPECT)),
            patience => patience,
        };
        let check = async {
            match patience {
                Some(patience) => {
                    let too_late = last_progress + patience;
                    tokio::time::sleep_until(too_late.min(next_check)).await;
                    Instant::now() >= too_late
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (received, recv) = &mut event => {
                match received {
                    // They have made the chunk and synced it: whatever they were suspected of is over.
                    Ok(Some(AppendEvent::Ready)) => route.iter().for_each(|replica| client.nodes.trust(replica.node)),
                    Ok(Some(AppendEvent::Ack { written, synced })) => writer.handle_ack(client, lane, written, synced),
                    Ok(Some(AppendEvent::Failed { node, error })) => {
                        return Err(LaneFailure { node, reason: error.to_string() });
                    }
                    Ok(None) if writer.is_over(lane) => return Ok(()),
                    Ok(None) => {
                        return Err(LaneFailure { node: head, reason: "append stream ended early".into() });
                    }
                    Err(error) => return Err(LaneFailure { node: head, reason: error.to_string() }),
                }
                last_progress = Instant::now();
                event = Box::pin(next_event(recv));
            }
            // The clock starts when the lane begins to owe something.
            () = writer.lanes[lane].owing.notified() => if patience.is_none() {
                last_progress = Instant::now();
                silence = Silence::default();
                next_check = last_progress + CHECK;
            },
            too_late = check => {
                if too_late {
                    // In a chain, the first node would have named another one by now.
                    return Err(LaneFailure { node: head, reason: "no progress within the deadline".into() });
                }
                next_check = Instant::now() + CHECK;
                if silence.lasts(connection.received()) {
                    // So that nobody else waits for it.
                    connection.close();
                    return Err(LaneFailure { node: head, reason: "not heard any more".into() });
                }
            }
        }
    }
}

/// Checks at which nothing new had been received.
#[derive(Default)]
struct Silence {
    received: u64,
    checks: u32,
}

impl Silence {
    fn lasts(&mut self, received: u64) -> bool {
        self.checks = if received == self.received { self.checks + 1 } else { 0 };
        self.received = received;
        self.checks >= SILENT_CHECKS
    }
}

/// The next event together with the stream: receiving cannot be broken off and taken up again.
async fn next_event(mut recv: RecvStream) -> (Result<Option<AppendEvent>, RpcError>, RecvStream) {
    (recv.recv_optional().await, recv)
}

/// The frame records of a piece, ready to send: item byte and header, then the frame's bytes, without a
/// copy wherever the writer's buffers are large enough.
fn frame_records(chunk: ChunkId, at: u32, pieces: Vec<Bytes>) -> Vec<Bytes> {
    let len = pieces.iter().map(Bytes::len).sum::<usize>() as u32;
    let mut source = Rope { pieces: pieces.into_iter(), current: Bytes::new() };
    let mut records = Vec::with_capacity(2 * (len.div_ceil(FRAME_MAX) as usize + 1));
    for (start, end) in frame_bounds(at, len) {
        let bytes = source.take((end - start) as usize);
        let header = FrameHeader::new(chunk, at + start, &bytes);
        let mut head = BytesMut::with_capacity(1 + FRAME_HEADER_LEN);
        head.put_u8(append_item::FRAME);
        head.put_slice(&header.to_bytes());
        records.push(head.freeze());
        records.push(bytes);
    }
    records
}

struct Rope {
    pieces: std::vec::IntoIter<Bytes>,
    current: Bytes,
}

impl Rope {
    /// The next `len` bytes, which must be there.
    fn take(&mut self, len: usize) -> Bytes {
        while self.current.is_empty() {
            match self.pieces.next() {
                Some(next) => self.current = next,
                None => return Bytes::new(),
            }
        }
        if self.current.len() >= len {
            return self.current.split_to(len);
        }
        let mut gathered = BytesMut::with_capacity(len);
        while gathered.len() < len {
            if self.current.is_empty() {
                match self.pieces.next() {
                    Some(next) => self.current = next,
                    None => break,
                }
            }
            let part = self.current.split_to(self.current.len().min(len - gathered.len()));
            gathered.extend_from_slice(&part);
        }
        gathered.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_gone_when_it_was_not_heard_at_four_checks_in_a_row() {
        let mut silence = Silence::default();
        let heard = [7, 7, 7, 7, 8, 8, 8, 8, 8, 9];
        let gone = heard.map(|received| silence.lasts(received));
        assert_eq!(gone.iter().position(|gone| *gone), Some(8));
        assert!(!gone[9], "it has been heard");
    }

    #[test]
    fn frame_records_carry_every_byte_with_its_digest() {
        let chunk = ChunkId(9);
        let pieces: Vec<Bytes> = [10usize, 70_000, 1, 64 << 10, 3]
            .iter()
            .enumerate()
            .map(|(i, &len)| Bytes::from(vec![i as u8 + 1; len]))
            .collect();
        let all: Vec<u8> = pieces.iter().flatten().copied().collect();
        let at = 1000;
        let records = frame_records(chunk, at, pieces);
        let mut seen = Vec::new();
        for pair in records.chunks(2) {
            assert_eq!(pair[0][0], append_item::FRAME);
            let header = FrameHeader::from_bytes(pair[0][1..].try_into().unwrap()).unwrap();
            assert_eq!(header.offset, at + seen.len() as u32);
            assert!(header.matches(chunk, &pair[1]));
            seen.extend_from_slice(&pair[1]);
        }
        assert!(seen == all);
    }
}

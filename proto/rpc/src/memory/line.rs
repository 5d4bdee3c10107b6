use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, sleep_until};
use tokio_util::sync::CancellationToken;

use super::fabric::Fabric;
use super::stream::{Pipe, RecvStream, SendStream};
use crate::error::RpcError;
use crate::transport::STREAMS_MAX;

/// How often each side asks itself whether it still hears the other one.
const TICK: Duration = Duration::from_millis(500);

/// One side of a connection. Clones share it, and the streams hold it: it ends when the last of them is dropped.
#[derive(Clone)]
pub(crate) struct Connection(Arc<Handle>);

pub(super) struct Handle {
    line: Arc<Line>,
    side: usize,
}

/// What the two sides share: 0 has dialled, 1 was dialled.
struct Line {
    fabric: Fabric,
    addrs: [SocketAddr; 2],
    /// What each side sends goes in here. The streams' windows and their number bound it.
    ways: [mpsc::UnboundedSender<(Instant, Packet)>; 2],
    ends: [End; 2],
}

struct End {
    closed: CancellationToken,
    why: OnceLock<String>,
    /// Streams that this side may open.
    places: Arc<Semaphore>,
    /// Streams that the other side has opened.
    opened: Mutex<VecDeque<Opened>>,
    more_opened: Notify,
    heard: Mutex<Instant>,
    received: AtomicU64,
}

/// A stream that the peer has opened: what it sends, what it hears, and its place among those it may open.
struct Opened {
    to_us: Arc<Pipe>,
    from_us: Arc<Pipe>,
    place: Arc<OwnedSemaphorePermit>,
}

/// What one side tells the other.
pub(super) enum Packet {
    Opened {
        to_peer: Arc<Pipe>,
        from_peer: Arc<Pipe>,
        place: OwnedSemaphorePermit,
    },
    Data(Arc<Pipe>, Bytes),
    Finish(Arc<Pipe>),
    Reset(Arc<Pipe>),
    Stop(Arc<Pipe>),
    /// So many more bytes may be sent.
    Credit(Arc<Pipe>, usize),
    Close(String),
}

impl Connection {
    /// The two sides of a new connection, which times out after the silence `idle`.
    pub fn pair(fabric: &Fabric, addrs: [SocketAddr; 2], idle: Duration) -> (Connection, Connection) {
        let ((way0, sent0), (way1, sent1)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let line = Line { fabric: fabric.clone(), addrs, ways: [way0, way1], ends: [End::new(), End::new()] };
        let line = Arc::new(line);
        tokio::spawn(carry(line.clone(), 0, sent0));
        tokio::spawn(carry(line.clone(), 1, sent1));
        tokio::spawn(listen_for_silence(line.clone(), idle));
        let side = |side| Connection(Arc::new(Handle { line: line.clone(), side }));
        (side(0), side(1))
    }

    pub async fn open(&self) -> Result<(SendStream, RecvStream), RpcError> {
        let end = self.0.end();
        let place = end.places.clone().acquire_owned();
        let place = tokio::select! {
            biased;
            () = end.closed.cancelled() => return Err(end.lost()),
            place = place => place.map_err(|_| end.lost())?,
        };
        let (to_peer, from_peer) = (Arc::new(Pipe::default()), Arc::new(Pipe::default()));
        self.0.send(Packet::Opened { to_peer: to_peer.clone(), from_peer: from_peer.clone(), place });
        Ok((SendStream::new(self.0.clone(), to_peer, None), RecvStream::new(self.0.clone(), from_peer, None)))
    }

    pub async fn accept(&self) -> Result<(SendStream, RecvStream), RpcError> {
        let end = self.0.end();
        loop {
            let more = end.more_opened.notified();
            if let Some(opened) = end.opened.lock().pop_front() {
                let Opened { to_us, from_us, place } = opened;
                let send = SendStream::new(self.0.clone(), from_us, Some(place.clone()));
                return Ok((send, RecvStream::new(self.0.clone(), to_us, Some(place))));
            }
            if end.closed.is_cancelled() {
                return Err(end.lost());
            }
            tokio::select! {
                () = more => {}
                () = end.closed.cancelled() => {}
            }
        }
    }

    pub fn is_local(&self) -> bool {
        let [dialled, accepted] = self.0.line.addrs;
        dialled.ip() == accepted.ip()
    }

    pub fn is_closed(&self) -> bool {
        self.0.end().closed.is_cancelled()
    }

    pub fn received(&self) -> u64 {
        self.0.end().received.load(Ordering::Relaxed)
    }

    pub fn close(&self, reason: &str) {
        self.0.close(reason);
    }

    pub(super) fn downgrade(&self) -> Weak<Handle> {
        Arc::downgrade(&self.0)
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({:?}, side {})", self.0.line.addrs, self.0.side)
    }
}

impl Handle {
    fn end(&self) -> &End {
        &self.line.ends[self.side]
    }

    /// Sends a packet, unless the connection is over.
    pub fn send(&self, packet: Packet) {
        if !self.end().closed.is_cancelled() {
            self.line.send(self.side, packet);
        }
    }

    /// Ended when this side knows that the connection is over.
    pub fn closed(&self) -> &CancellationToken {
        &self.end().closed
    }

    pub fn lost(&self) -> RpcError {
        self.end().lost()
    }

    /// Ends the connection and tells the peer.
    pub fn close(&self, reason: &str) {
        let end = self.end();
        if end.why.set("closed by this side".to_owned()).is_ok() {
            // First the word, and then the end: whoever carries it stops when nothing is left to carry.
            self.line.send(self.side, Packet::Close(reason.to_owned()));
            end.closed.cancel();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close("nobody uses it any more");
    }
}

impl End {
    fn new() -> End {
        End {
            closed: CancellationToken::new(),
            why: OnceLock::new(),
            places: Arc::new(Semaphore::new(STREAMS_MAX as usize)),
            opened: Mutex::default(),
            more_opened: Notify::new(),
            heard: Mutex::new(Instant::now()),
            received: AtomicU64::new(0),
        }
    }

    fn close(&self, reason: &str) {
        // The first reason stands.
        if self.why.set(reason.to_owned()).is_ok() {
            self.closed.cancel();
        }
    }

    fn lost(&self) -> RpcError {
        RpcError::Closed(self.why.get().cloned().unwrap_or_default())
    }

    fn hear(&self) {
        *self.heard.lock() = Instant::now();
        self.received.fetch_add(1, Ordering::Relaxed);
    }
}

impl Line {
    fn send(&self, side: usize, packet: Packet) {
        let delay = self.fabric.draw_delay(self.addrs[side].ip(), self.addrs[1 - side].ip());
        // The task that carries it has ended with both sides.
        let _ = self.ways[side].send((Instant::now() + delay, packet));
    }

    fn is_cut(&self, from: usize) -> bool {
        self.fabric.is_cut(self.addrs[from].ip(), self.addrs[1 - from].ip())
    }

    fn deliver(&self, to: usize, packet: Packet) {
        let end = &self.ends[to];
        if end.closed.is_cancelled() {
            return;
        }
        end.hear();
        match packet {
            Packet::Opened { to_peer, from_peer, place } => {
                end.opened.lock().push_back(Opened { to_us: to_peer, from_us: from_peer, place: Arc::new(place) });
                end.more_opened.notify_one();
            }
            Packet::Data(pipe, bytes) => pipe.data_arrived(bytes),
            Packet::Finish(pipe) => pipe.finish_arrived(),
            Packet::Reset(pipe) => pipe.reset_arrived(),
            Packet::Stop(pipe) => pipe.stop_arrived(),
            Packet::Credit(pipe, bytes) => pipe.credit_arrived(bytes),
            Packet::Close(reason) => end.close(&format!("closed by peer: {reason}")),
        }
    }
}

/// Brings what `from` sends to the other side, in its order.
async fn carry(line: Arc<Line>, from: usize, mut sent: mpsc::UnboundedReceiver<(Instant, Packet)>) {
    let to = 1 - from;
    let (from_ip, to_ip) = (line.addrs[from].ip(), line.addrs[to].ip());
    loop {
        let (at, packet) = tokio::select! {
            biased;
            Some(next) = sent.recv() => next,
            // What it has sent before it closed has been carried.
            () = line.ends[from].closed.cancelled() => return,
        };
        let arrives = async {
            sleep_until(at).await;
            line.fabric.arrives(from_ip, to_ip).await;
        };
        tokio::select! {
            () = arrives => line.deliver(to, packet),
            // Nobody is there to hear it.
            () = line.ends[to].closed.cancelled() => {}
        }
    }
}

/// Ends a side that has heard nothing for `idle`. Whoever lives says something every second, which is not sent here but
/// taken as said; and whoever knows nothing of the connection any more says that to a peer that speaks to it.
async fn listen_for_silence(line: Arc<Line>, idle: Duration) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for side in [0, 1] {
            let (end, peer) = (&line.ends[side], &line.ends[1 - side]);
            if end.closed.is_cancelled() {
                continue;
            }
            if !line.is_cut(1 - side) && !peer.closed.is_cancelled() {
                end.hear();
            } else if !line.is_cut(side) && !line.is_cut(1 - side) && peer.closed.is_cancelled() {
                end.close("reset by peer");
            } else if end.heard.lock().elapsed() >= idle {
                end.close("timed out");
            }
        }
        if line.ends.iter().all(|end| end.closed.is_cancelled()) {
            return;
        }
    }
}

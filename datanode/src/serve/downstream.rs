//! The rest of the chain, as seen from one node in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use dfs_proto::msg::data::{AppendEvent, DataRequest, FRAME_HEADER_LEN, append_item};
use dfs_proto::{ErrorKind, NodeId, WireError};
use dfs_rpc::{RecvStream, RpcError, SendStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::append::{Failure, Item, Progress, Request, SYNC_DEADLINE, WRITE_DEADLINE};
use crate::node::{Node, data_target};

/// What each node of the chain is allowed on top of the one behind it.
const HOP_DEADLINE: Duration = Duration::from_secs(1);

/// For dialling the next node: what `dfs_rpc` allows a handshake.
const DIAL_DEADLINE: Duration = Duration::from_secs(3);

/// How often it is looked whether the chain owes an answer for too long.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// After sending failed: for the event that tells why, which is on its way against the stream.
const REASON_DEADLINE: Duration = Duration::from_secs(1);

/// Items passed on by one call.
const FORWARD_ITEMS: usize = 32;

const ENDED_EARLY: &str = "the stream ended before everything was acknowledged";

pub struct Downstream {
    /// The next node; failures without a better name are its.
    next: NodeId,
    send: SendStream,
    recv: RecvStream,
    /// On top of what a disk is allowed.
    allowance: Duration,
}

/// What was passed on and is not answered yet.
#[derive(Default)]
struct Owed {
    written: AtomicU32,
    synced: AtomicU32,
}

impl Downstream {
    /// Opens the chunk on every node behind this one; `None` at the end of the chain.
    pub async fn open(node: &Arc<Node>, request: &Request) -> Result<Option<Downstream>, Failure> {
        let Some((next, behind)) = request.chain.split_first() else { return Ok(None) };
        let allowance = HOP_DEADLINE * request.chain.len() as u32;
        let target = data_target(next);
        let opened = async {
            let (mut send, mut recv) = node.pool.get(&target).await?.open_near().await?;
            let append = DataRequest::Append {
                chunk: request.chunk,
                epoch: request.epoch,
                capability: request.capability.clone(),
                chain: behind.to_vec(),
            };
            send.send(&append).await?;
            let event = recv.recv::<AppendEvent>().await?;
            Ok((send, recv, event))
        };
        let deadline = DIAL_DEADLINE * request.chain.len() as u32 + WRITE_DEADLINE + allowance;
        let opened: Result<_, RpcError> = tokio::time::timeout(deadline, opened)
            .await
            .unwrap_or_else(|_| Err(RpcError::Timeout(deadline.as_millis())));
        match opened {
            Ok((send, recv, AppendEvent::Ready)) => Ok(Some(Downstream { next: next.node, send, recv, allowance })),
            Ok((_, _, AppendEvent::Failed { node, error })) => Err(Failure { node, error }),
            Ok((_, _, AppendEvent::Ack { .. })) => {
                Err(Failure { node: next.node, error: WireError::new(ErrorKind::Malformed, "acknowledged too early") })
            }
            Err(error) => {
                // A node that took so long is dead as far as anyone can tell: the next attempt dials anew.
                // Nor is an address kept that only a client has told, and that nobody answers at.
                if matches!(error, RpcError::Timeout(_) | RpcError::Unreachable { .. }) {
                    node.pool.forget(&target);
                }
                Err(Failure { node: next.node, error: error.to_wire() })
            }
        }
    }

    /// Passes on what is queued and takes in the answers, until both have ended.
    pub async fn run(self, queue: mpsc::Receiver<Item>, progress: &Progress) -> Result<(), Failure> {
        let Downstream { next, send, recv, allowance } = self;
        let owed = Owed::default();
        tokio::try_join!(
            async {
                let Err(error) = forward(send, queue, &owed, allowance).await else { return Ok(()) };
                // A node that fails stops the stream and says who is to blame: let that arrive first.
                tokio::time::sleep(REASON_DEADLINE).await;
                Err(Failure { node: next, error: error.to_wire() })
            },
            acks(next, recv, &owed, progress, allowance),
        )?;
        if progress.behind_written.load(Ordering::Acquire) < owed.written.load(Ordering::Acquire) {
            return Err(Failure { node: next, error: WireError::new(ErrorKind::Unavailable, ENDED_EARLY) });
        }
        Ok(())
    }
}

async fn forward(
    mut send: SendStream,
    mut queue: mpsc::Receiver<Item>,
    owed: &Owed,
    allowance: Duration,
) -> Result<(), RpcError> {
    let mut items = Vec::with_capacity(FORWARD_ITEMS);
    while queue.recv_many(&mut items, FORWARD_ITEMS).await > 0 {
        let mut pieces = Vec::with_capacity(2 * items.len());
        for item in &items {
            match item {
                Item::Frame { header, bytes, .. } => {
                    let mut head = BytesMut::with_capacity(1 + FRAME_HEADER_LEN);
                    head.put_u8(append_item::FRAME);
                    head.extend_from_slice(&header.to_bytes());
                    pieces.extend([head.freeze(), bytes.clone()]);
                    owed.written.store(header.end(), Ordering::Release);
                }
                Item::Sync => {
                    pieces.push(Bytes::from_static(&[append_item::SYNC]));
                    owed.synced.store(owed.written.load(Ordering::Acquire), Ordering::Release);
                }
            }
        }
        let deadline = SYNC_DEADLINE + allowance;
        tokio::time::timeout(deadline, send.send_raw_all(&mut pieces))
            .await
            .unwrap_or(Err(RpcError::Timeout(deadline.as_millis())))?;
        // Only here do the frames give back their part of the window.
        items.clear();
    }
    send.finish();
    Ok(())
}

/// Takes in what the chain acknowledges, and fails when it owes an answer for too long.
async fn acks(
    next: NodeId,
    mut recv: RecvStream,
    owed: &Owed,
    progress: &Progress,
    allowance: Duration,
) -> Result<(), Failure> {
    let failed = |kind, text: &str| Failure { node: next, error: WireError::new(kind, text) };
    let (mut written, mut synced) = (0, 0);
    let mut quiet_since = Instant::now();
    let mut event = Box::pin(receive(recv));
    loop {
        let received = tokio::time::timeout(LOOK_INTERVAL, &mut event).await;
        let (owes_bytes, owes_sync) =
            (owed.written.load(Ordering::Acquire) > written, owed.synced.load(Ordering::Acquire) > synced);
        let Ok((back, received)) = received else {
            let disk = if owes_sync { SYNC_DEADLINE } else { WRITE_DEADLINE };
            if !owes_bytes && !owes_sync {
                quiet_since = Instant::now();
            } else if quiet_since.elapsed() > disk + allowance {
                return Err(failed(ErrorKind::Timeout, "the next node in the chain does not answer"));
            }
            continue;
        };
        recv = back;
        quiet_since = Instant::now();
        match received.map_err(|error| Failure { node: next, error: error.to_wire() })? {
            Some(AppendEvent::Ack { written: w, synced: s }) => {
                if w < written || s < synced || s > w || w > owed.written.load(Ordering::Acquire) {
                    return Err(failed(ErrorKind::Malformed, "acknowledged what was not sent"));
                }
                (written, synced) = (w, s);
                progress.behind_written.store(written, Ordering::Release);
                progress.behind_synced.store(synced, Ordering::Release);
                progress.moved.notify_one();
            }
            Some(AppendEvent::Failed { node, error }) => return Err(Failure { node, error }),
            Some(AppendEvent::Ready) => return Err(failed(ErrorKind::Malformed, "ready twice")),
            None if owes_bytes || owes_sync => return Err(failed(ErrorKind::Unavailable, ENDED_EARLY)),
            None => return Ok(()),
        }
        event = Box::pin(receive(recv));
    }
}

/// Receives one event. Owns the stream, so that it can be waited for piecewise without losing bytes.
async fn receive(mut recv: RecvStream) -> (RecvStream, Result<Option<AppendEvent>, RpcError>) {
    let event = recv.recv_optional().await;
    (recv, event)
}

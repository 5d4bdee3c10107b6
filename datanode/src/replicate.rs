//! Makes a replica here by copying it from others, on the namenode's order.
//!
//! Every frame is verified on arrival, so that what one source has served well is kept when it fails: the
//! next source goes on from there. Three sources, each damaged in another place, still make a whole copy.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::msg::data::{DataRequest, FRAME_HEADER_LEN, ReadReply};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::msg::node::Outcome;
use dfs_proto::{Capability, ChunkId, Epoch, ErrorKind, FrameHeader, NodeId, WireError};
use dfs_rpc::{RecvStream, RpcError};
use tracing::{debug, info, warn};

use crate::node::{Node, data_target};
use crate::scrub;
use crate::serve::receive_bytes;
use crate::store::{Incoming, State, StoreError, Verdict};

/// A source that sends nothing for so long is given up.
const SOURCE_DEADLINE: Duration = Duration::from_secs(10);

/// Frames verified and written by one call.
const WRITE_BYTES: usize = 1 << 20;

/// How fast a replica that is already here is verified before it is reported as copied.
const VERIFY_BYTES_PER_S: u64 = 256 << 20;

pub struct CopyOrder {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub len: u32,
    /// To try in this order.
    pub sources: Vec<ReplicaAt>,
    pub capability: Capability,
}

/// Why a source did not bring the copy to its end.
#[derive(Debug, thiserror::Error)]
enum SourceError {
    /// It could not be reached, or broke off: says nothing about its replica.
    #[error("{0}")]
    Away(RpcError),
    /// It served wrong bytes, or said itself that its replica is bad.
    #[error("{0}")]
    Bad(String),
    /// The disk here.
    #[error(transparent)]
    Here(#[from] StoreError),
}

/// Carries out a copy order: a verified, synced replica here, or the reason why not.
pub async fn copy(node: &Arc<Node>, order: CopyOrder) -> Outcome {
    let &CopyOrder { chunk, epoch, len, .. } = &order;
    if already_here(node, &order).await {
        return Outcome::Copied { chunk, epoch, len };
    }
    let mut bad_sources = Vec::new();
    match fetch(node, &order, &mut bad_sources).await {
        Ok(()) => {
            info!(%epoch, len, "chunk copied");
            Outcome::Copied { chunk, epoch, len }
        }
        Err(reason) => {
            warn!(%epoch, reason, ?bad_sources, "chunk could not be copied");
            Outcome::CopyFailed { chunk, epoch, reason, bad_sources }
        }
    }
}

/// Whether the very replica is here and whole.
async fn already_here(node: &Arc<Node>, order: &CopyOrder) -> bool {
    let wanted = (State::Sealed, order.epoch, order.len, false);
    if !node.store.get(order.chunk).is_some_and(|r| (r.state, r.epoch, r.len, r.lost) == wanted) {
        return false;
    }
    let verdict = scrub::verify(node, order.chunk, VERIFY_BYTES_PER_S).await;
    matches!(verdict, Ok(Verdict::Whole { epoch, len }) if (epoch, len) == (order.epoch, order.len))
}

async fn fetch(node: &Arc<Node>, order: &CopyOrder, bad_sources: &mut Vec<NodeId>) -> Result<(), String> {
    let &CopyOrder { chunk, epoch, len, .. } = order;
    let begin = node.store.blocking(move |store| store.begin_copy(chunk, epoch, len)).await;
    let mut incoming = begin.and_then(|incoming| incoming).map_err(|error| error.to_string())?;
    let mut reasons = Vec::new();
    let sources: Vec<_> = order.sources.iter().filter(|source| source.node != node.id()).collect();
    // Round after round, as long as a round brings something: a source that is damaged in one place may
    // be the good one for the next.
    let mut before_round = None;
    while incoming.have() < len && before_round != Some(incoming.have()) {
        before_round = Some(incoming.have());
        reasons.clear();
        for source in &sources {
            let (back, result) = fetch_from(node, order, source, incoming).await;
            incoming = back.ok_or("the disk thread is gone")?;
            match result {
                Ok(()) => {}
                Err(SourceError::Here(error)) => return Err(error.to_string()),
                Err(error) => {
                    debug!(source = %source.node, have = incoming.have(), %error, "source failed");
                    if matches!(error, SourceError::Bad(_)) && !bad_sources.contains(&source.node) {
                        bad_sources.push(source.node);
                    }
                    reasons.push(format!("node {}: {error}", source.node));
                }
            }
            if incoming.have() == len {
                break;
            }
        }
    }
    if incoming.have() < len {
        return Err(if reasons.is_empty() { "no source".into() } else { reasons.join("; ") });
    }
    let publish = node.store.blocking(move |store| store.publish(incoming)).await;
    publish.and_then(|published| published).map_err(|error| error.to_string())
}

/// Fetches from where the copy stands to its end, from one source. Gives the copy back with what it has got;
/// `None` only if the thread that held it is gone.
async fn fetch_from(
    node: &Arc<Node>,
    order: &CopyOrder,
    source: &ReplicaAt,
    incoming: Incoming,
) -> (Option<Incoming>, Result<(), SourceError>) {
    let mut recv = match request(node, order, source, incoming.have()).await {
        Ok(recv) => recv,
        Err(error) => return (Some(incoming), Err(error)),
    };
    let mut incoming = incoming;
    loop {
        let received = receive_frames(&mut recv).await;
        let (frames, end) = match received {
            Ok((frames, ended)) => (frames, ended.then_some(Ok(()))),
            Err((frames, error)) => (frames, Some(Err(error))),
        };
        let written = node.store.blocking(move |store| {
            let result = store.copy_frames(&mut incoming, &frames);
            (incoming, result)
        });
        let result = match written.await {
            Ok((back, result)) => {
                incoming = back;
                result
            }
            Err(error) => return (None, Err(error.into())),
        };
        match result {
            Ok(()) => {}
            Err(error @ (StoreError::WrongDigest { .. } | StoreError::NotContiguous { .. } | StoreError::Full(_))) => {
                return (Some(incoming), Err(SourceError::Bad(error.to_string())));
            }
            Err(error) => return (Some(incoming), Err(error.into())),
        }
        match end {
            None => {}
            Some(Ok(())) if incoming.have() < order.len => {
                let short = format!("ends at {} of {} bytes", incoming.have(), order.len);
                return (Some(incoming), Err(SourceError::Bad(short)));
            }
            Some(result) => return (Some(incoming), result),
        }
    }
}

/// Asks a source for the chunk from `have` on.
async fn request(
    node: &Arc<Node>,
    order: &CopyOrder,
    source: &ReplicaAt,
    have: u32,
) -> Result<RecvStream, SourceError> {
    let target = data_target(source);
    let asked = async {
        let (mut send, mut recv) = node.pool.get(&target).await?.open().await?;
        let read = DataRequest::Read {
            chunk: order.chunk,
            epoch: order.epoch,
            offset: have,
            len: order.len - have,
            capability: order.capability.clone(),
        };
        send.send(&read).await?;
        send.finish();
        let reply = recv.recv::<Result<ReadReply, WireError>>().await?;
        Ok((recv, reply))
    };
    let asked: Result<_, RpcError> = within(asked).await;
    match asked.map_err(SourceError::Away)? {
        (recv, Ok(_)) => Ok(recv),
        (_, Err(error)) if error.kind == ErrorKind::BadReplica => Err(SourceError::Bad(error.message)),
        (_, Err(error)) => Err(SourceError::Away(RpcError::Refused(error))),
    }
}

/// Frames as they arrive, and whether the stream has ended; what arrived before an error comes with it.
type Received = Result<(Vec<(FrameHeader, Bytes)>, bool), (Vec<(FrameHeader, Bytes)>, SourceError)>;

/// Receives about `WRITE_BYTES` of frames.
async fn receive_frames(recv: &mut RecvStream) -> Received {
    let mut frames = Vec::new();
    let mut bytes = 0;
    while bytes < WRITE_BYTES {
        let mut header = [0; FRAME_HEADER_LEN];
        match within(recv.read_exact_or_end(&mut header)).await {
            Ok(true) => {}
            Ok(false) => return Ok((frames, true)),
            Err(error) => return Err((frames, SourceError::Away(error))),
        }
        let Some(header) = FrameHeader::from_bytes(&header) else {
            return Err((frames, SourceError::Bad("sends what is no frame".into())));
        };
        match within(receive_bytes(recv, header.len)).await {
            Ok(data) => frames.push((header, data)),
            Err(error) => return Err((frames, SourceError::Away(error))),
        }
        bytes += header.len as usize;
    }
    Ok((frames, false))
}

async fn within<T>(work: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    let late = || Err(RpcError::Timeout(SOURCE_DEADLINE.as_millis()));
    tokio::time::timeout(SOURCE_DEADLINE, work).await.unwrap_or_else(|_| late())
}

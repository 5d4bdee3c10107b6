//! Makes a replica here by copying it from others, on the namenode's order.
//!
//! Every frame is verified on arrival, so that what one source has served well is kept when it fails: the
//! next source goes on from there. Three sources, each damaged in another place, still make a whole copy.

use std::sync::Arc;

use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::msg::node::Outcome;
use dfs_proto::{Capability, ChunkId, Epoch, NodeId};
use tracing::{debug, info, warn};

use crate::node::Node;
use crate::scrub;
use crate::source::{self, SourceError, Wanted};
use crate::store::{Incoming, StoreError, Verdict};

/// How fast a replica that is already here is verified before it is reported as copied or gathered.
pub const VERIFY_BYTES_PER_S: u64 = 256 << 20;

pub struct CopyOrder {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub len: u32,
    /// To try in this order.
    pub sources: Vec<ReplicaAt>,
    pub capability: Capability,
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
    if !node.store.has_sealed(order.chunk, order.epoch, order.len) {
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
    let &CopyOrder { chunk, epoch, len, ref capability, .. } = order;
    let have = incoming.have();
    let wanted = Wanted { chunk, epoch, offset: have, len: len - have, capability };
    let mut recv = match source::request(node, &wanted, source).await {
        Ok(recv) => recv,
        Err(error) => return (Some(incoming), Err(error)),
    };
    let mut incoming = incoming;
    loop {
        let (frames, end) = source::receive_frames(&mut recv).await;
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
            Some(Ok(())) if incoming.have() < len => {
                let short = format!("ends at {} of {len} bytes", incoming.have());
                return (Some(incoming), Err(SourceError::Bad(short)));
            }
            Some(result) => return (Some(incoming), result),
        }
    }
}

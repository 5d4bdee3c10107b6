//! Sends the frames that overlap a range.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::limits::{CHUNK_MAX, FRAME_MAX};
use dfs_proto::msg::data::{FRAME_HEADER_LEN, ReadReply};
use dfs_proto::{Access, Capability, ChunkId, Epoch, ErrorKind, PeerIdentity, WireError};
use dfs_rpc::SendStream;
use tracing::{debug, info};

use crate::node::Node;
use crate::store::{Batch, Reader, State, StoreError};

/// A reader that takes nothing for so long is given up, so that it does not hold memory.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// How long a read waits for memory that other reads hold.
const MEMORY_DEADLINE: Duration = Duration::from_secs(10);

/// Memory that a batch may take: what it aims at, and the frame that goes over it.
const BATCH_MEMORY: u32 = (1 << 20) + FRAME_MAX;

pub struct Request {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub offset: u32,
    pub len: u32,
    pub capability: Capability,
}

pub async fn serve(node: &Arc<Node>, peer: PeerIdentity, request: Request, mut send: SendStream) {
    let memory = (2 * request.len.min(BATCH_MEMORY) + FRAME_MAX).min(2 * BATCH_MEMORY);
    let opened = async {
        node.admit(&peer, &request.capability, request.chunk, Access::Read)?;
        if request.len == 0 || request.offset.checked_add(request.len).is_none_or(|end| end > CHUNK_MAX) {
            return Err(WireError::new(ErrorKind::InvalidArgument, "the range leaves the chunk"));
        }
        // For the batch that is being sent and the one that is being read meanwhile.
        let memory = tokio::time::timeout(MEMORY_DEADLINE, node.read_memory.acquire_many(memory)).await;
        let memory = memory.ok().and_then(Result::ok);
        let memory = memory.ok_or_else(|| WireError::new(ErrorKind::Unavailable, "too many reads at once"))?;
        let (reader, first) = open(node, &request).await.map_err(|error| {
            suspect(node, &request, &error);
            error.to_wire()
        })?;
        Ok((memory, reader, first))
    };
    let (_memory, reader, first) = match opened.await {
        Ok(opened) => opened,
        Err(error) => {
            debug!(kind = ?error.kind, error = error.message, "read refused");
            let _ = tokio::time::timeout(SEND_DEADLINE, send.send(&Err::<ReadReply, WireError>(error))).await;
            return send.finish();
        }
    };
    let reply = ReadReply { len: reader.replica().len, sealed: reader.replica().state == State::Sealed };
    if let Ok(Ok(())) = tokio::time::timeout(SEND_DEADLINE, send.send(&Ok::<ReadReply, WireError>(reply))).await {
        stream(node, &request, reader, first, send).await;
    }
}

/// Sends one batch while the next is read from disk.
async fn stream(node: &Arc<Node>, request: &Request, mut reader: Reader, first: Option<Batch>, mut send: SendStream) {
    let mut current = first;
    while let Some(batch) = current {
        let next = tokio::task::spawn_blocking(move || {
            let next = reader.next_batch();
            (reader, next)
        });
        match tokio::time::timeout(SEND_DEADLINE, send.send_raw_all(&mut records(&batch))).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(%error, "reader has gone"),
            Err(_) => {
                info!("reader takes nothing");
                return send.reset();
            }
        }
        current = match next.await {
            Ok((back, Ok(next))) => {
                reader = back;
                next
            }
            // The frames that were promised cannot be sent: the reader must not take this for the end.
            Ok((_, Err(error))) => {
                suspect(node, request, &error);
                info!(%error, "read broke off");
                return send.reset();
            }
            Err(error) => {
                info!(%error, "read broke off");
                return send.reset();
            }
        };
    }
    send.finish();
}

async fn open(node: &Arc<Node>, request: &Request) -> Result<(Reader, Option<Batch>), StoreError> {
    let &Request { chunk, epoch, offset, len, .. } = request;
    node.store
        .blocking(move |store| {
            let mut reader = store.reader(chunk, epoch, offset, len)?;
            let first = reader.next_batch()?;
            Ok((reader, first))
        })
        .await?
}

/// Has a replica that could not be read verified as a whole; what is found is reported.
fn suspect(node: &Arc<Node>, request: &Request, error: &StoreError) {
    if let StoreError::Damaged { reason, .. } = error {
        info!(reason, "replica could not be served");
        node.orders.suspect(request.chunk);
    }
}

/// The frame records of a batch: headers in one allocation, bytes as they were read.
fn records(batch: &Batch) -> Vec<Bytes> {
    let mut headers = BytesMut::with_capacity(batch.frames.len() * FRAME_HEADER_LEN);
    batch.frames.iter().for_each(|frame| headers.extend_from_slice(&frame.to_bytes()));
    let mut headers = headers.freeze();
    batch.iter().flat_map(|(_, bytes)| [headers.split_to(FRAME_HEADER_LEN), bytes]).collect()
}

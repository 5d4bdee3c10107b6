//! Frames of a chunk as another node's replica serves them, for whatever is made here of the replicas of others.
//! Their digests are not checked here.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::msg::data::{DataRequest, FRAME_HEADER_LEN, ReadReply};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::{Capability, ChunkId, Epoch, ErrorKind, FrameHeader, WireError};
use dfs_rpc::{RecvStream, RpcError};

use crate::node::{Node, data_target};
use crate::store::StoreError;

/// A source that sends nothing for so long is given up.
const SOURCE_DEADLINE: Duration = Duration::from_secs(10);

/// Frames received by one call: as many as are verified and written by one.
const RECEIVE_BYTES: usize = 1 << 20;

/// A range that is asked of a source.
pub struct Wanted<'a> {
    pub chunk: ChunkId,
    /// The lowest that is good enough.
    pub epoch: Epoch,
    pub offset: u32,
    pub len: u32,
    pub capability: &'a Capability,
}

/// Why a source did not bring what was wanted of it.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
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

/// Asks a source for the frames that overlap a range; `receive_frames` then takes them in.
pub async fn request(node: &Arc<Node>, wanted: &Wanted<'_>, source: &ReplicaAt) -> Result<RecvStream, SourceError> {
    let target = data_target(source);
    let asked = async {
        let (mut send, mut recv) = node.pool.get(&target).await?.open_near().await?;
        let read = DataRequest::Read {
            chunk: wanted.chunk,
            epoch: wanted.epoch,
            offset: wanted.offset,
            len: wanted.len,
            capability: wanted.capability.clone(),
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

/// Receives about `RECEIVE_BYTES` of frames, and tells how the stream ended, if it has: what arrived before an error is
/// as good as any.
pub async fn receive_frames(recv: &mut RecvStream) -> (Vec<(FrameHeader, Bytes)>, Option<Result<(), SourceError>>) {
    let mut frames = Vec::new();
    let mut bytes = 0;
    while bytes < RECEIVE_BYTES {
        let mut header = [0; FRAME_HEADER_LEN];
        match within(recv.read_exact_or_end(&mut header)).await {
            Ok(true) => {}
            Ok(false) => return (frames, Some(Ok(()))),
            Err(error) => return (frames, Some(Err(SourceError::Away(error)))),
        }
        let Some(header) = FrameHeader::from_bytes(&header) else {
            return (frames, Some(Err(SourceError::Bad("sends what is no frame".into()))));
        };
        match within(recv.read_whole(header.len as usize)).await {
            Ok(data) => frames.push((header, data)),
            Err(error) => return (frames, Some(Err(SourceError::Away(error)))),
        }
        bytes += header.len as usize;
    }
    (frames, None)
}

async fn within<T>(work: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    let late = || Err(RpcError::Timeout(SOURCE_DEADLINE.as_millis()));
    tokio::time::timeout(SOURCE_DEADLINE, work).await.unwrap_or_else(|_| late())
}

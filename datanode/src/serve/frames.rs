use bytes::{Bytes, BytesMut};
use dfs_rpc::{RecvStream, RpcError};

/// Receives the `len` bytes of a frame into one piece of memory: hashing and writing want them in one piece.
pub async fn receive_bytes(recv: &mut RecvStream, len: u32) -> Result<Bytes, RpcError> {
    let len = len as usize;
    let mut bytes = BytesMut::with_capacity(len);
    while bytes.len() < len {
        match recv.read_chunk(len - bytes.len()).await? {
            Some(piece) => bytes.extend_from_slice(&piece),
            None => return Err(RpcError::Closed("stream ended within a frame".into())),
        }
    }
    Ok(bytes.freeze())
}

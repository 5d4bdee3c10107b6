//! One stream: messages framed by a length, and raw bytes that never pass through the codec.

use std::pin::pin;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};
use dfs_proto::codec;
use dfs_proto::limits::{CONTROL_FRAME_MAX, RAFT_FRAME_MAX};
use quinn::VarInt;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::RpcError;
use crate::local::{LocalRecv, LocalSend};
use crate::memory;

/// The sending half. Dropped without `finish`, it ends the stream in order all the same.
pub struct SendStream {
    inner: Sending,
}

enum Sending {
    Quic(quinn::SendStream),
    Local(LocalSend),
    Memory(memory::SendStream),
}

impl SendStream {
    pub(crate) fn quic(inner: quinn::SendStream) -> SendStream {
        SendStream { inner: Sending::Quic(inner) }
    }

    pub(crate) fn local(inner: LocalSend) -> SendStream {
        SendStream { inner: Sending::Local(inner) }
    }

    pub(crate) fn memory(inner: memory::SendStream) -> SendStream {
        SendStream { inner: Sending::Memory(inner) }
    }

    /// Sends a message: its length in four little-endian bytes, then the codec's bytes.
    pub async fn send<T: Serialize>(&mut self, value: &T) -> Result<(), RpcError> {
        let body = codec::encode(value).map_err(|e| RpcError::Malformed(e.to_string()))?;
        let mut framed = Vec::with_capacity(4 + body.len());
        framed.extend_from_slice(&(body.len() as u32).to_le_bytes());
        framed.extend_from_slice(&body);
        self.send_raw(Bytes::from(framed)).await
    }

    /// Sends bulk bytes as they are, without a copy.
    pub async fn send_raw(&mut self, bytes: Bytes) -> Result<(), RpcError> {
        match &mut self.inner {
            Sending::Quic(stream) => Ok(stream.write_chunk(bytes).await?),
            Sending::Local(stream) => stream.write(bytes).await,
            Sending::Memory(stream) => stream.write(bytes).await,
        }
    }

    /// Sends several pieces in order, without a copy.
    pub async fn send_raw_all(&mut self, pieces: &mut [Bytes]) -> Result<(), RpcError> {
        match &mut self.inner {
            Sending::Quic(stream) => Ok(stream.write_all_chunks(pieces).await?),
            Sending::Local(stream) => stream.write_all(pieces).await,
            Sending::Memory(stream) => {
                for piece in pieces {
                    stream.write(std::mem::take(piece)).await?;
                }
                Ok(())
            }
        }
    }

    /// Nothing more will be sent.
    pub fn finish(&mut self) {
        match &mut self.inner {
            // Fails only if the stream is finished or reset already.
            Sending::Quic(stream) => _ = stream.finish(),
            Sending::Local(stream) => stream.finish(),
            Sending::Memory(stream) => stream.finish(),
        }
    }

    /// Returns when the peer does not want to read any more, or is gone.
    pub async fn abandoned(&mut self) {
        match &mut self.inner {
            // However it ended, nobody reads.
            Sending::Quic(stream) => _ = stream.stopped().await,
            Sending::Local(stream) => stream.stopped().await,
            Sending::Memory(stream) => stream.stopped().await,
        }
    }

    /// Gives the stream up: what is under way is dropped, and the peer sees an error.
    pub fn reset(&mut self) {
        match &mut self.inner {
            // Fails only if the stream is reset already.
            Sending::Quic(stream) => _ = stream.reset(VarInt::from_u32(1)),
            Sending::Local(stream) => stream.reset(),
            Sending::Memory(stream) => stream.reset(),
        }
    }
}

impl Drop for RecvStream {
    /// Who has read the last message has not read that it was the last one. quinn would tell the peer to stop sending what
    /// it has long sent: a packet each way that wakes threads for nothing. Mostly the end is here by now.
    fn drop(&mut self) {
        if let Receiving::Quic(stream) = &mut self.inner {
            let mut context = Context::from_waker(Waker::noop());
            _ = pin!(stream.read_chunk(1, true)).poll(&mut context);
        }
    }
}

/// The receiving half. Dropped early, it tells the peer to stop sending.
pub struct RecvStream {
    inner: Receiving,
}

enum Receiving {
    Quic(quinn::RecvStream),
    Local(LocalRecv),
    Memory(memory::RecvStream),
}

impl RecvStream {
    pub(crate) fn quic(inner: quinn::RecvStream) -> RecvStream {
        RecvStream { inner: Receiving::Quic(inner) }
    }

    pub(crate) fn local(inner: LocalRecv) -> RecvStream {
        RecvStream { inner: Receiving::Local(inner) }
    }

    pub(crate) fn memory(inner: memory::RecvStream) -> RecvStream {
        RecvStream { inner: Receiving::Memory(inner) }
    }

    /// Receives a control message of at most `limits::CONTROL_FRAME_MAX` bytes.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, RpcError> {
        self.recv_optional().await?.ok_or_else(|| RpcError::Closed("stream ended before the message".into()))
    }

    /// As `recv`; `None` if the stream ends before the message starts.
    pub async fn recv_optional<T: DeserializeOwned>(&mut self) -> Result<Option<T>, RpcError> {
        match self.frame(CONTROL_FRAME_MAX).await? {
            Some(body) => codec::decode(&body).map(Some).map_err(|e| RpcError::Malformed(e.to_string())),
            None => Ok(None),
        }
    }

    /// Receives a Raft message of at most `limits::RAFT_FRAME_MAX` bytes.
    pub async fn recv_large<T: DeserializeOwned>(&mut self) -> Result<T, RpcError> {
        let body = self.frame(RAFT_FRAME_MAX).await?;
        let body = body.ok_or_else(|| RpcError::Closed("stream ended before the message".into()))?;
        codec::decode_large(&body).map_err(|e| RpcError::Malformed(e.to_string()))
    }

    async fn frame(&mut self, limit: usize) -> Result<Option<Vec<u8>>, RpcError> {
        let mut len = [0; 4];
        if !self.read_exact_or_end(&mut len).await? {
            return Ok(None);
        }
        let len = u32::from_le_bytes(len) as usize;
        if len > limit {
            self.stop();
            return Err(RpcError::Malformed(format!("message of {len} bytes, at most {limit} are allowed")));
        }
        // Memory grows with what arrives, not with what was announced.
        let mut body = Vec::with_capacity(len.min(64 << 10));
        while body.len() < len {
            match self.read_chunk(len - body.len()).await? {
                Some(bytes) => body.extend_from_slice(&bytes),
                None => return Err(RpcError::Closed("stream ended within a message".into())),
            }
        }
        Ok(Some(body))
    }

    /// Fills `buf` with raw bytes.
    pub async fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), RpcError> {
        match self.read_exact_or_end(buf).await? {
            true => Ok(()),
            false => Err(RpcError::Closed("stream ended too early".into())),
        }
    }

    /// Fills `buf`, or returns `false` if the stream ends before its first byte.
    pub async fn read_exact_or_end(&mut self, buf: &mut [u8]) -> Result<bool, RpcError> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.read_slice(&mut buf[filled..]).await? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(RpcError::Closed("stream ended too early".into())),
                read => filled += read,
            }
        }
        Ok(true)
    }

    /// Puts whatever has arrived next at the start of `buf`; 0 at the end.
    async fn read_slice(&mut self, buf: &mut [u8]) -> Result<usize, RpcError> {
        if let Receiving::Local(stream) = &mut self.inner {
            return stream.read_slice(buf).await;
        }
        let bytes = self.read_chunk(buf.len()).await?.unwrap_or_default();
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    /// Whatever has arrived next, in order, at most `max` bytes, without a copy; `None` at the end.
    pub async fn read_chunk(&mut self, max: usize) -> Result<Option<Bytes>, RpcError> {
        match &mut self.inner {
            Receiving::Quic(stream) => match stream.read_chunk(max, true).await {
                Ok(chunk) => Ok(chunk.map(|chunk| chunk.bytes)),
                Err(error) => Err(RpcError::Closed(error.to_string())),
            },
            Receiving::Local(stream) => stream.read(max).await,
            Receiving::Memory(stream) => stream.read(max).await,
        }
    }

    /// The next `len` bytes in one piece of memory.
    pub async fn read_whole(&mut self, len: usize) -> Result<Bytes, RpcError> {
        let mut bytes = BytesMut::with_capacity(len);
        while bytes.len() < len {
            let missing = len - bytes.len();
            let read = match &mut self.inner {
                Receiving::Local(stream) => stream.read_into(&mut bytes, missing).await?,
                Receiving::Quic(_) | Receiving::Memory(_) => {
                    let piece = self.read_chunk(missing).await?.unwrap_or_default();
                    bytes.extend_from_slice(&piece);
                    piece.len()
                }
            };
            if read == 0 {
                return Err(RpcError::Closed("stream ended too early".into()));
            }
        }
        Ok(bytes.freeze())
    }

    /// Tells the peer that nothing more is wanted.
    pub fn stop(&mut self) {
        match &mut self.inner {
            // Fails only if the stream is over already.
            Receiving::Quic(stream) => _ = stream.stop(VarInt::from_u32(1)),
            Receiving::Local(stream) => stream.stop(),
            Receiving::Memory(stream) => stream.stop(),
        }
    }
}

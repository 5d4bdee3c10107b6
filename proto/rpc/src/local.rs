//! Streams between processes of one machine. Unlike QUIC they can carry open files.

mod stream;

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net;

use dfs_proto::codec;
use dfs_proto::limits::CONTROL_FRAME_MAX;
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};

use crate::endpoint::Connection;
use crate::error::RpcError;
use crate::stream::{RecvStream, SendStream};
pub(crate) use stream::{RecvStream as LocalRecv, SendStream as LocalSend};

/// Bytes that wait in a socket for their reader. The kernel's usual size makes the two take turns five times a MiB.
const SOCKET_BUFFER: usize = 1 << 20;

/// Waits for connections from this machine, or rather from this network namespace.
pub struct LocalListener {
    inner: UnixListener,
}

/// A connection within this machine. The peer is nobody in particular: a ticket has to say who it is.
pub struct LocalStream {
    inner: UnixStream,
}

impl LocalListener {
    /// Listens under a name of the abstract namespace. Must be called within a tokio runtime.
    pub fn bind(name: &str) -> Result<LocalListener, RpcError> {
        let bind = || {
            let listener = net::UnixListener::bind_addr(&net::SocketAddr::from_abstract_name(name)?)?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let failed = |e: std::io::Error| RpcError::Io { what: format!("Unix socket {name}"), reason: e.to_string() };
        Ok(LocalListener { inner: bind().map_err(failed)? })
    }

    pub async fn accept(&self) -> Result<LocalStream, RpcError> {
        let (inner, _) = self.inner.accept().await.map_err(lost)?;
        Ok(LocalStream { inner })
    }
}

impl LocalStream {
    /// Connects to a listener of this name. Must be called within a tokio runtime.
    pub fn connect(name: &str) -> Result<LocalStream, RpcError> {
        let connect = || {
            // A listener on this machine accepts, or refuses, without a wait.
            let stream = net::UnixStream::connect_addr(&net::SocketAddr::from_abstract_name(name)?)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        Ok(LocalStream { inner: connect().map_err(lost)? })
    }

    /// Sends a message, framed as in `SendStream::send`.
    pub async fn send<T: Serialize>(&mut self, value: &T) -> Result<(), RpcError> {
        let body = codec::encode(value).map_err(|e| RpcError::Malformed(e.to_string()))?;
        let mut framed = Vec::with_capacity(4 + body.len());
        framed.extend_from_slice(&(body.len() as u32).to_le_bytes());
        framed.extend_from_slice(&body);
        self.send_raw(&framed).await
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) -> Result<(), RpcError> {
        self.inner.write_all(bytes).await.map_err(lost)
    }

    /// Sends one byte, which carries the file.
    pub async fn send_file(&mut self, file: impl AsFd) -> Result<(), RpcError> {
        let files = [file.as_fd()];
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&files));
            Ok(sendmsg(&self.inner, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?)
        };
        self.inner.async_io(Interest::WRITABLE, send).await.map_err(lost).map(drop)
    }

    /// Receives a message of at most `limits::CONTROL_FRAME_MAX` bytes.
    pub async fn recv<T: DeserializeOwned>(&mut self) -> Result<T, RpcError> {
        let mut len = [0; 4];
        self.read_exact(&mut len).await?;
        let len = u32::from_le_bytes(len) as usize;
        if len > CONTROL_FRAME_MAX {
            return Err(RpcError::Malformed(format!(
                "message of {len} bytes, at most {CONTROL_FRAME_MAX} are allowed"
            )));
        }
        let mut body = vec![0; len];
        self.read_exact(&mut body).await?;
        codec::decode(&body).map_err(|e| RpcError::Malformed(e.to_string()))
    }

    pub async fn read_exact(&mut self, buf: &mut [u8]) -> Result<(), RpcError> {
        self.inner.read_exact(buf).await.map_err(lost).map(drop)
    }

    /// Waits until the peer has gone, or speaks although nothing is expected of it. Nothing is lost if the wait is given
    /// up while the peer is there and silent.
    pub async fn ended(&mut self) {
        // Whatever comes of it, bytes or none or an error, the stream cannot be used any more.
        let _ = self.inner.read_u8().await;
    }

    /// Makes it a stream like those of a connection.
    pub fn into_halves(self) -> (SendStream, RecvStream) {
        self.into_halves_beside(None)
    }

    /// As `into_halves`; the stream breaks off with the connection beside it, by which a silent peer is noticed.
    pub(crate) fn into_halves_beside(self, connection: Option<Connection>) -> (SendStream, RecvStream) {
        // Who may not have more than others gets as much as they. A smaller one costs time and no more.
        if set_socket_send_buffer_size_force(&self.inner, SOCKET_BUFFER).is_err() {
            _ = set_socket_send_buffer_size(&self.inner, SOCKET_BUFFER);
        }
        let (send, recv) = stream::split(self.inner, connection);
        (SendStream::local(send), RecvStream::local(recv))
    }

    /// Receives the byte that carries a file.
    pub async fn recv_file(&mut self) -> Result<OwnedFd, RpcError> {
        let receive = || {
            let mut byte = [0];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(&self.inner, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
            let mut file = None;
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    file = files.last().or(file);
                }
            }
            Ok((received.bytes, received.flags.contains(ReturnFlags::CTRUNC), file))
        };
        match self.inner.async_io(Interest::READABLE, receive).await.map_err(lost)? {
            (1, false, Some(file)) => Ok(file),
            (0, ..) => Err(RpcError::Closed("stream ended before the file".into())),
            // No descriptor was free, for example.
            _ => Err(RpcError::Malformed("a file was announced and none arrived".into())),
        }
    }
}

fn lost(error: std::io::Error) -> RpcError {
    RpcError::Closed(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    /// Two ends of a connection.
    async fn pair(name: &str) -> (LocalStream, LocalStream) {
        let name = format!("dfs-test-{name}-{}", std::process::id());
        let listener = LocalListener::bind(&name).unwrap();
        let near = LocalStream::connect(&name).unwrap();
        (near, listener.accept().await.unwrap())
    }

    #[tokio::test]
    async fn a_file_arrives_between_messages() {
        let (mut near, mut far) = pair("file").await;
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("file"), "content").unwrap();
        near.send(&7u32).await.unwrap();
        near.send_file(File::open(home.path().join("file")).unwrap()).await.unwrap();
        near.send(&8u32).await.unwrap();
        assert_eq!(far.recv::<u32>().await.unwrap(), 7);
        let mut content = String::new();
        File::from(far.recv_file().await.unwrap()).read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        assert_eq!(far.recv::<u32>().await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_missing_file_and_a_huge_message_are_errors() {
        let (mut near, mut far) = pair("bad").await;
        near.send_raw(&[0]).await.unwrap();
        assert!(matches!(far.recv_file().await, Err(RpcError::Malformed(_))));
        near.send_raw(&u32::MAX.to_le_bytes()).await.unwrap();
        assert!(matches!(far.recv::<u32>().await, Err(RpcError::Malformed(_))));
        drop(near);
        assert!(matches!(far.recv_file().await, Err(RpcError::Closed(_))));
    }

    #[tokio::test]
    async fn the_end_of_the_peer_is_noticed_and_its_silence_is_not_the_end() {
        let (mut near, far) = pair("end").await;
        let silence = std::time::Duration::from_millis(20);
        assert!(tokio::time::timeout(silence, near.ended()).await.is_err());
        drop(far);
        near.ended().await;
    }

    #[tokio::test]
    async fn nobody_listens() {
        assert!(LocalStream::connect("dfs-test-nobody").is_err());
    }
}

//! The two halves of a stream within this machine. A socket that ends does not say whether its process meant it: so bytes go
//! in runs, each behind its length in four little-endian bytes, and a run of no bytes is the end of the stream.

use std::io::{self, IoSlice};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::lost;
use crate::endpoint::Connection;
use crate::error::RpcError;

const HEADER: usize = 4;

const END: [u8; HEADER] = [0; HEADER];

/// Pieces of one system call; the kernel takes 1024.
const PIECES_MAX: usize = 512;

/// Read at once where nobody has said how much is wanted: messages, and the headers between bulk bytes. These are read to
/// where they belong, without a copy.
const READ_AHEAD: usize = 4 << 10;

/// For the end of a stream whose reader takes nothing.
const END_DEADLINE: Duration = Duration::from_secs(30);

/// How often it is looked whether the peer still reads: the kernel does not tell.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct SendStream {
    /// `None` once it is finished or given up.
    half: Option<OwnedWriteHalf>,
    /// A run was begun, and given up before its end: nothing can follow it.
    broken: bool,
    beside: Option<Connection>,
}

pub(crate) struct RecvStream {
    half: OwnedReadHalf,
    /// Received, of this run and behind it.
    ahead: BytesMut,
    /// What this run still has.
    run: usize,
    ended: bool,
    beside: Option<Connection>,
}

pub(super) fn split(stream: UnixStream, beside: Option<Connection>) -> (SendStream, RecvStream) {
    let (read, write) = stream.into_split();
    let send = SendStream { half: Some(write), broken: false, beside: beside.clone() };
    (send, RecvStream { half: read, ahead: BytesMut::new(), run: 0, ended: false, beside })
}

/// Does what may have to wait for the peer, unless the connection beside the stream ends meanwhile.
async fn beside<T>(connection: &Option<Connection>, work: impl Future<Output = io::Result<T>>) -> Result<T, RpcError> {
    let Some(connection) = connection else { return work.await.map_err(lost) };
    tokio::select! {
        biased;
        done = work => done.map_err(lost),
        () = connection.closed() => Err(RpcError::Closed("the connection beside the stream has ended".into())),
    }
}

impl SendStream {
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), RpcError> {
        self.write_all(&mut [bytes]).await
    }

    /// Sends several pieces in order, without a copy. A call that is given up breaks the stream.
    pub async fn write_all(&mut self, pieces: &mut [Bytes]) -> Result<(), RpcError> {
        let Some(half) = self.half.as_mut().filter(|_| !self.broken) else {
            return Err(RpcError::Closed("the stream was given up".into()));
        };
        for pieces in pieces.chunks_mut(PIECES_MAX) {
            let len = pieces.iter().map(Bytes::len).sum::<usize>();
            if len == 0 {
                continue;
            }
            let len = u32::try_from(len).map_err(|_| RpcError::Malformed(format!("{len} bytes in one run")))?;
            let header = len.to_le_bytes();
            let mut slices: Vec<IoSlice<'_>> =
                std::iter::once(IoSlice::new(&header)).chain(pieces.iter().map(|piece| IoSlice::new(piece))).collect();
            let mut left = &mut slices[..];
            while !left.is_empty() {
                match beside(&self.beside, half.write_vectored(left)).await? {
                    0 => return Err(lost(io::ErrorKind::WriteZero.into())),
                    written => IoSlice::advance_slices(&mut left, written),
                }
                self.broken = !left.is_empty();
            }
            pieces.iter_mut().for_each(Bytes::clear);
        }
        Ok(())
    }

    pub fn finish(&mut self) {
        // What was broken off must not look like something that has ended.
        let Some(mut half) = self.half.take().filter(|_| !self.broken) else { return };
        let written = half.try_write(&END).unwrap_or(0);
        if written < HEADER
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // There is no room now. Ends with the reader, or with its silence.
            runtime.spawn(async move {
                _ = tokio::time::timeout(END_DEADLINE, half.write_all(&END[written..])).await;
            });
        }
    }

    /// Returns when the peer does not want to read any more, or is gone.
    pub async fn stopped(&mut self) {
        // Refused as soon as nobody reads, though it brings nothing.
        let is_read = |half: &OwnedWriteHalf| send(half.as_ref(), &[], SendFlags::NOSIGNAL) != Err(Errno::PIPE);
        while self.half.as_ref().is_some_and(is_read) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// The peer sees that the stream broke off.
    pub fn reset(&mut self) {
        self.half = None;
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.finish();
    }
}

impl RecvStream {
    /// Whatever has arrived next, at most `max` bytes; `None` at the end.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, RpcError> {
        if !self.next_run().await? {
            return Ok(None);
        }
        if self.ahead.is_empty() {
            self.receive().await?;
        }
        let len = max.min(self.run).min(self.ahead.len());
        self.run -= len;
        Ok(Some(self.ahead.split_to(len).freeze()))
    }

    /// Puts what has arrived next at the start of `buf`; 0 at the end.
    pub async fn read_slice(&mut self, buf: &mut [u8]) -> Result<usize, RpcError> {
        if !self.next_run().await? {
            return Ok(0);
        }
        if self.ahead.is_empty() {
            self.receive().await?;
        }
        let len = buf.len().min(self.run).min(self.ahead.len());
        self.ahead.copy_to_slice(&mut buf[..len]);
        self.run -= len;
        Ok(len)
    }

    /// Appends what has arrived next to `target`, at most `max` bytes; 0 at the end.
    pub async fn read_into(&mut self, target: &mut BytesMut, max: usize) -> Result<usize, RpcError> {
        if !self.next_run().await? {
            return Ok(0);
        }
        let max = max.min(self.run);
        let len = if self.ahead.is_empty() {
            match beside(&self.beside, self.half.read_buf(&mut target.limit(max))).await? {
                0 => return Err(broken_off()),
                len => len,
            }
        } else {
            let len = max.min(self.ahead.len());
            target.extend_from_slice(&self.ahead[..len]);
            self.ahead.advance(len);
            len
        };
        self.run -= len;
        Ok(len)
    }

    /// Goes on to the next run if this one is over; `false` at the end of the stream.
    async fn next_run(&mut self) -> Result<bool, RpcError> {
        while self.run == 0 && !self.ended {
            match self.ahead.first_chunk::<HEADER>() {
                Some(header) => {
                    self.run = u32::from_le_bytes(*header) as usize;
                    self.ended = self.run == 0;
                    self.ahead.advance(HEADER);
                }
                None => self.receive().await?,
            }
        }
        Ok(!self.ended)
    }

    async fn receive(&mut self) -> Result<(), RpcError> {
        self.ahead.reserve(READ_AHEAD);
        let mut room = (&mut self.ahead).limit(READ_AHEAD);
        match beside(&self.beside, self.half.read_buf(&mut room)).await? {
            0 => Err(broken_off()),
            _ => Ok(()),
        }
    }

    /// Tells the peer that nothing more is wanted.
    pub fn stop(&mut self) {
        // Fails only if the peer is gone.
        _ = shutdown(self.half.as_ref(), Shutdown::Read);
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        if !self.ended {
            self.stop();
        }
    }
}

fn broken_off() -> RpcError {
    RpcError::Closed("the peer has gone, or given the stream up".into())
}

#[cfg(test)]
mod tests {
    use crate::stream::{RecvStream, SendStream};

    use super::*;

    /// One direction of a stream.
    fn pair() -> (SendStream, RecvStream) {
        let (near, far) = UnixStream::pair().unwrap();
        let ((send, _), (_, recv)) = (split_whole(near), split_whole(far));
        (send, recv)
    }

    fn split_whole(stream: UnixStream) -> (SendStream, RecvStream) {
        let (send, recv) = split(stream, None);
        (SendStream::local(send), RecvStream::local(recv))
    }

    fn noise(len: usize) -> Bytes {
        (0..len).map(|i| (i * i / 7 + i) as u8).collect()
    }

    /// Waits so long for what must not happen.
    const MOMENT: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn pieces_arrive_in_order_however_they_are_read() {
        let (near, far) = UnixStream::pair().unwrap();
        let ((mut send, _back), (_forth, mut recv)) = (split_whole(near), split_whole(far));
        let long = noise(3 << 20);
        let sent = long.clone();
        let sending = tokio::spawn(async move {
            send.send(&"first").await.unwrap();
            for len in [1, 70_000, 0, 5, 1 << 20] {
                let mut many: Vec<Bytes> = sent.slice(..len).chunks(3001).map(Bytes::copy_from_slice).collect();
                send.send_raw_all(&mut many).await.unwrap();
            }
            send.send_raw(sent).await.unwrap();
            send.send_raw(Bytes::new()).await.unwrap();
            send.send(&"last").await.unwrap();
        });
        assert_eq!(recv.recv::<String>().await.unwrap(), "first");
        let mut small = [0; 30_000];
        recv.read_exact(&mut small[..1]).await.unwrap();
        recv.read_exact(&mut small).await.unwrap();
        assert!(small[..] == long[..30_000]);
        assert!(recv.read_whole(40_002).await.unwrap()[..] == [&long[30_000..70_000], &long[..2]].concat());
        assert!(recv.read_whole(3).await.unwrap() == long[2..5]);
        let mut seen = Vec::new();
        while seen.len() < 1 << 20 {
            let chunk = recv.read_chunk((1 << 20) - seen.len()).await.unwrap().unwrap();
            seen.extend_from_slice(&chunk);
        }
        assert!(seen == long[..1 << 20]);
        assert!(recv.read_whole(3 << 20).await.unwrap() == long);
        assert_eq!(recv.recv_optional::<String>().await.unwrap().unwrap(), "last");
        assert!(recv.recv_optional::<String>().await.unwrap().is_none(), "the end, in order");
        assert!(recv.read_chunk(1).await.unwrap().is_none());
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn a_sender_that_goes_is_told_from_one_that_has_ended() {
        let (mut send, mut recv) = pair();
        send.send_raw(noise(10)).await.unwrap();
        send.reset();
        assert_eq!(recv.read_whole(10).await.unwrap(), noise(10));
        assert!(recv.read_exact_or_end(&mut [0]).await.is_err(), "given up");

        let (mut near, far) = UnixStream::pair().unwrap();
        let (_, mut recv) = split_whole(far);
        near.write_all(&[3, 0, 0, 0, 7]).await.unwrap();
        drop(near);
        let mut bytes = [0; 1];
        recv.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, [7]);
        assert!(recv.read_exact_or_end(&mut bytes).await.is_err(), "within a run");
        assert!(recv.read_whole(1).await.is_err());
    }

    #[tokio::test]
    async fn a_send_that_was_given_up_half_way_is_no_end() {
        let (mut send, mut recv) = pair();
        let all = noise(64 << 20);
        assert!(tokio::time::timeout(MOMENT, send.send_raw(all.clone())).await.is_err(), "nobody reads");
        assert!(send.send_raw(noise(1)).await.is_err(), "nothing can follow");
        drop(send);
        assert!(recv.read_whole(all.len()).await.is_err());
        assert!(recv.read_exact_or_end(&mut [0]).await.is_err());
    }

    #[tokio::test]
    async fn the_end_arrives_although_there_was_no_room_for_it() {
        let (mut send, mut recv) = pair();
        let mut sent = 0;
        while tokio::time::timeout(MOMENT, send.send_raw(Bytes::from_static(b"x"))).await.is_ok() {
            sent += 1;
        }
        send.finish();
        let mut bytes = vec![0; sent];
        recv.read_exact(&mut bytes).await.unwrap();
        assert!(!recv.read_exact_or_end(&mut [0]).await.unwrap());
    }

    #[tokio::test]
    async fn who_does_not_want_more_is_not_sent_more() {
        let (mut send, mut recv) = pair();
        assert!(tokio::time::timeout(3 * LOOK_INTERVAL, send.abandoned()).await.is_err(), "still read");
        recv.stop();
        send.abandoned().await;
        assert!(send.send_raw(noise(1)).await.is_err());

        let (mut send, recv) = pair();
        send.send_raw(noise(1)).await.unwrap();
        drop(recv);
        assert!(send.send_raw(noise(1)).await.is_err());
    }
}

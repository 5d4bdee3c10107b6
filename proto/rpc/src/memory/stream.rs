use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::line::{Handle, Packet};
use crate::error::RpcError;
use crate::transport::STREAM_WINDOW;

/// Read bytes are made known to the sender when they are that many: a packet for each read would cost more than it tells.
const CREDIT: usize = STREAM_WINDOW as usize / 8;

/// One direction of a stream: what its two ends know.
pub(super) struct Pipe {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    // At the sender.
    /// Bytes that may still be sent.
    room: usize,
    /// The receiver wants no more.
    stopped: bool,
    /// Finished or reset: nothing more may be sent.
    over: bool,
    /// The receiver has everything.
    all_arrived: bool,
    // At the receiver.
    arrived: VecDeque<Bytes>,
    ending: Option<Ending>,
    /// Bytes read that the sender has not been told of.
    read: usize,
    /// The reader has seen the end, or wants no more.
    read_to_end: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Finished,
    Reset,
}

impl Default for Pipe {
    fn default() -> Pipe {
        let state = State {
            room: STREAM_WINDOW as usize,
            stopped: false,
            over: false,
            all_arrived: false,
            arrived: VecDeque::new(),
            ending: None,
            read: 0,
            read_to_end: false,
        };
        Pipe { state: Mutex::new(state), changed: Notify::new() }
    }
}

impl Pipe {
    pub fn data_arrived(&self, bytes: Bytes) {
        self.change(|state| {
            if state.ending.is_none() && !state.read_to_end {
                state.arrived.push_back(bytes);
            }
        });
    }

    pub fn finish_arrived(&self) {
        self.change(|state| {
            state.ending.get_or_insert(Ending::Finished);
            state.all_arrived = true;
        });
    }

    /// What has not been read is lost with it.
    pub fn reset_arrived(&self) {
        self.change(|state| {
            state.arrived.clear();
            state.ending = Some(Ending::Reset);
        });
    }

    pub fn stop_arrived(&self) {
        self.change(|state| state.stopped = true);
    }

    pub fn credit_arrived(&self, bytes: usize) {
        self.change(|state| state.room += bytes);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_waiters();
    }

    /// Waits until `found` finds something; `None` if the connection ends before.
    async fn when<T>(&self, line: &Handle, mut found: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            // Looked at first: what is there stays there when the connection ends.
            let over = line.closed().is_cancelled();
            let now = found(&mut self.state.lock());
            if now.is_some() || over {
                return now;
            }
            tokio::select! {
                () = changed => {}
                () = line.closed().cancelled() => {}
            }
        }
    }
}

pub(crate) struct SendStream {
    line: Arc<Handle>,
    pipe: Arc<Pipe>,
    /// Of a stream that the peer has opened.
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl SendStream {
    pub(super) fn new(line: Arc<Handle>, pipe: Arc<Pipe>, place: Option<Arc<OwnedSemaphorePermit>>) -> SendStream {
        SendStream { line, pipe, _place: place }
    }

    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), RpcError> {
        while !bytes.is_empty() {
            if self.line.closed().is_cancelled() {
                return Err(self.line.lost());
            }
            let len = bytes.len();
            let room = self.pipe.when(&self.line, |state| match state {
                _ if state.over => Some(Err("the stream is finished")),
                _ if state.stopped => Some(Err("the peer has stopped reading")),
                _ if state.room == 0 => None,
                _ => {
                    let now = len.min(state.room);
                    state.room -= now;
                    Some(Ok(now))
                }
            });
            match room.await {
                Some(Ok(now)) => self.line.send(Packet::Data(self.pipe.clone(), bytes.split_to(now))),
                Some(Err(why)) => return Err(RpcError::Closed(why.into())),
                None => return Err(self.line.lost()),
            }
        }
        Ok(())
    }

    pub fn finish(&mut self) {
        if !std::mem::replace(&mut self.pipe.state.lock().over, true) {
            self.line.send(Packet::Finish(self.pipe.clone()));
        }
    }

    /// Returns when the peer wants no more, has everything, or is gone.
    pub async fn stopped(&mut self) {
        self.pipe.when(&self.line, |state| (state.stopped || state.all_arrived).then_some(())).await;
    }

    pub fn reset(&mut self) {
        let mut state = self.pipe.state.lock();
        // Also after a finish, whose bytes may be under way.
        if !state.all_arrived {
            state.over = true;
            self.line.send(Packet::Reset(self.pipe.clone()));
        }
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.finish();
    }
}

pub(crate) struct RecvStream {
    line: Arc<Handle>,
    pipe: Arc<Pipe>,
    _place: Option<Arc<OwnedSemaphorePermit>>,
}

impl RecvStream {
    pub(super) fn new(line: Arc<Handle>, pipe: Arc<Pipe>, place: Option<Arc<OwnedSemaphorePermit>>) -> RecvStream {
        RecvStream { line, pipe, _place: place }
    }

    /// Whatever has arrived next, at most `max` bytes; `None` at the end.
    pub async fn read(&mut self, max: usize) -> Result<Option<Bytes>, RpcError> {
        let next = self.pipe.when(&self.line, |state| {
            if state.read_to_end {
                let finished = state.ending == Some(Ending::Finished);
                return Some(if finished { Ok(None) } else { Err("nothing more was wanted") });
            }
            let Some(first) = state.arrived.front_mut() else {
                state.ending?;
                state.read_to_end = true;
                return Some(if state.ending == Some(Ending::Reset) { Err("stream reset by peer") } else { Ok(None) });
            };
            let bytes = first.split_to(max.min(first.len()));
            if first.is_empty() {
                state.arrived.pop_front();
            }
            state.read += bytes.len();
            let credit = if state.read >= CREDIT { std::mem::take(&mut state.read) } else { 0 };
            Some(Ok(Some((bytes, credit))))
        });
        match next.await {
            Some(Ok(Some((bytes, credit)))) => {
                if credit > 0 {
                    self.line.send(Packet::Credit(self.pipe.clone(), credit));
                }
                Ok(Some(bytes))
            }
            Some(Ok(None)) => Ok(None),
            Some(Err(why)) => Err(RpcError::Closed(why.into())),
            None => Err(self.line.lost()),
        }
    }

    pub fn stop(&mut self) {
        let mut state = self.pipe.state.lock();
        if !state.read_to_end {
            state.read_to_end = true;
            state.arrived.clear();
            self.line.send(Packet::Stop(self.pipe.clone()));
        }
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        self.stop();
    }
}

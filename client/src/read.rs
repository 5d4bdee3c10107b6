//! Reading: this client's uncommitted bytes laid over what is committed, which comes verified from
//! datanodes, ahead of need where a handle reads in sequence. Lost bytes are an error, never zeros.

pub(crate) mod atime;
pub(crate) mod blocks;
mod fetch;
mod local;
mod locate;
pub(crate) mod map;
mod seek;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::msg::meta::ChunkLocation;
use dfs_proto::{ChunkId, ErrorKind, InodeId, NodeId};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::client::Client;
use crate::config::Options;
use crate::deadline::timed_out;
use crate::error::{Error, Result};
use crate::open::{FileState, Handle};
use crate::read::blocks::BLOCK;
use crate::read::fetch::Moved;
use crate::read::local::Local;

/// Locations remembered; when there are more all are forgotten and asked again. About 20 MiB.
const LOCATIONS_MAX: usize = 64 << 10;

/// Pieces of one read that are fetched at the same time.
const FETCHES: usize = 16;

/// Before looking again where the bytes are, after their chunk was found gone.
const PAUSE: Duration = Duration::from_millis(50);

/// The bytes of a range from its start on: all of them, or those in front of the first that cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub bytes: Bytes,
    /// Why there are no more.
    pub rest: Option<Error>,
}

impl Front {
    pub fn all(bytes: Bytes) -> Front {
        Front { bytes, rest: None }
    }

    /// The whole range, or what is wrong with it.
    pub fn complete(self) -> Result<Bytes> {
        self.rest.map_or(Ok(self.bytes), Err)
    }

    /// What there is of it; an error if that is nothing.
    pub fn some(self) -> Result<Bytes> {
        match self.rest {
            Some(error) if self.bytes.is_empty() => Err(error),
            _ => Ok(self.bytes),
        }
    }

    /// Several that lie one behind the other, up to the first that is not complete.
    fn join(fronts: Vec<Front>) -> Front {
        let rest = fronts.iter().find_map(|front| front.rest.clone());
        let many = fronts.iter().position(|front| front.rest.is_some()).map_or(fronts.len(), |at| at + 1);
        let mut parts: Vec<Bytes> = fronts.into_iter().take(many).map(|front| front.bytes).collect();
        let bytes = if parts.len() == 1 { parts.swap_remove(0) } else { Bytes::from(parts.concat()) };
        Front { bytes, rest }
    }
}

/// The read side of one client.
pub(crate) struct Reads {
    locations: Mutex<HashMap<ChunkId, ChunkLocation>>,
    /// Where chunks end whose end was cut off, as the namenode has said: what a file has behind that is lost. An end
    /// never comes back, so nothing here is ever out of date in a way that matters.
    ends: Mutex<HashMap<ChunkId, u32>>,
    local: Local,
    /// Bytes that may be read ahead.
    ahead: Arc<Semaphore>,
    /// Files whose atime the namenode is to be told. Taken while a file's `inner` is held, never the other way round.
    noted: Mutex<HashMap<InodeId, Arc<FileState>>>,
    telling: AtomicBool,
}

impl Reads {
    pub fn new(options: &Options) -> Reads {
        Reads {
            locations: Mutex::default(),
            ends: Mutex::default(),
            local: Local::default(),
            ahead: Arc::new(Semaphore::new(options.readahead_max_bytes.min(Semaphore::MAX_PERMITS))),
            noted: Mutex::default(),
            telling: AtomicBool::new(false),
        }
    }

    pub fn remember(&self, location: ChunkLocation) {
        let mut locations = self.locations.lock();
        if locations.len() >= LOCATIONS_MAX {
            locations.clear();
        }
        locations.insert(location.chunk, location);
    }

    /// Only these replicas count from here on.
    pub fn replicas_are(&self, chunk: ChunkId, nodes: &[NodeId]) {
        if let Some(location) = self.locations.lock().get_mut(&chunk) {
            location.replicas.retain(|replica| nodes.contains(&replica.node));
        }
    }

    /// The chunk has no more bytes than this, although files name some behind them.
    fn ends_at(&self, chunk: ChunkId, end: u32) {
        let mut ends = self.ends.lock();
        if ends.len() >= LOCATIONS_MAX {
            ends.clear();
        }
        ends.insert(chunk, end);
    }

    fn end_of(&self, chunk: ChunkId) -> Option<u32> {
        self.ends.lock().get(&chunk).copied()
    }

    fn location(&self, chunk: ChunkId) -> Option<ChunkLocation> {
        self.locations.lock().get(&chunk).cloned()
    }
}

impl Client {
    /// The bytes at `offset`, `len` of them, or fewer at the end of the file; or those in front of what cannot be read.
    pub(crate) async fn read(self: &Arc<Self>, handle: &Handle, offset: u64, len: usize) -> Result<Front> {
        let file = &handle.file;
        self.grant(file, false).await?;
        if !handle.mode.no_atime && len > 0 {
            self.note_read(file);
        }
        // What is committed after this moment is at least as new as what is laid over it.
        let (end, overlay) = {
            let inner = file.inner.lock();
            let size = inner.attr.size_bytes.max(inner.writes.end());
            let end = size.min(offset.saturating_add(len as u64));
            (end, if offset < end { inner.writes.overlay(offset, end) } else { Vec::new() })
        };
        if offset >= end {
            return Ok(Front::all(Bytes::new()));
        }
        let ahead = handle.sequential.lock().advance(offset, end);
        match &overlay[..] {
            [] => return self.read_around(file, offset, end, ahead).await,
            [(at, bytes)] if *at == offset && bytes.len() as u64 == end - offset => {
                return Ok(Front::all(bytes.clone()));
            }
            _ => {}
        }
        let mut parts = Vec::new();
        let mut reached = offset;
        for (at, bytes) in overlay {
            if reached < at {
                parts.push(self.read_around(file, reached, at, 0).await?);
            }
            reached = at + bytes.len() as u64;
            parts.push(Front::all(bytes));
        }
        if reached < end {
            parts.push(self.read_around(file, reached, end, 0).await?);
        }
        Ok(Front::join(parts))
    }

    /// Committed bytes, through the blocks read ahead if `ahead` says how many more are wanted.
    async fn read_around(self: &Arc<Self>, file: &Arc<FileState>, start: u64, end: u64, ahead: u64) -> Result<Front> {
        if ahead == 0 {
            return self.read_committed(file, start, end).await;
        }
        let (first, last) = (start / BLOCK, (end - 1) / BLOCK);
        let wanted: Vec<_> = (first..=last).map(|index| self.block(file, index)).collect();
        for index in last + 1..=last + ahead {
            if self.block(file, index).is_none() {
                break;
            }
        }
        let mut parts = Vec::with_capacity(wanted.len());
        for (index, block) in (first..=last).zip(wanted) {
            let from = start.max(index * BLOCK);
            let to = end.min((index + 1) * BLOCK);
            let in_block = (from - index * BLOCK) as usize..(to - index * BLOCK) as usize;
            let front = match block {
                Some(block) => block.await,
                None => Ok(Front::all(Bytes::new())),
            };
            let part = match front {
                Ok(front) if front.bytes.len() >= in_block.end => Front::all(front.bytes.slice(in_block)),
                // No room to read ahead, the file has grown since, or the attempt failed.
                other => {
                    // A block with lost bytes stays: to read it again would take as long again, and would not help the
                    // pieces of it that are good.
                    let lost = |error: &Error| error.kind == ErrorKind::Corrupt;
                    if !other.is_ok_and(|front| front.rest.as_ref().is_some_and(lost)) {
                        file.inner.lock().blocks.remove(index);
                    }
                    self.read_committed(file, from, to).await?
                }
            };
            let ends = part.rest.is_some();
            parts.push(part);
            if ends {
                break;
            }
        }
        Ok(Front::join(parts))
    }

    /// The committed bytes of exactly `[start, end)`, or those in front of what cannot be read; zeros where nothing was
    /// ever written.
    pub(crate) async fn read_committed(self: &Arc<Self>, file: &Arc<FileState>, start: u64, end: u64) -> Result<Front> {
        let deadline = self.deadline();
        loop {
            let extents = self.extents(file, start, end).await?;
            let fetched = match &extents[..] {
                [] => return Ok(Front::all(BytesMut::zeroed((end - start) as usize).freeze())),
                [one] if one.file_offset == start && one.file_end() == end => self.fetch(file, one, deadline).await,
                _ => {
                    let mut buffer = BytesMut::zeroed((end - start) as usize);
                    let mut pieces = stream::iter(extents)
                        .map(|extent| async move { (extent, self.fetch(file, &extent, deadline).await) })
                        .buffered(FETCHES);
                    // In order, so that what lies in front of a failure is known when it is met.
                    let mut outcome = Ok(None);
                    while let Some((extent, fetched)) = pieces.next().await {
                        match fetched {
                            Ok(Front { bytes, rest }) => {
                                let at = (extent.file_offset - start) as usize;
                                buffer[at..at + bytes.len()].copy_from_slice(&bytes);
                                if rest.is_some() {
                                    buffer.truncate(at + bytes.len());
                                    outcome = Ok(rest);
                                    break;
                                }
                            }
                            Err(Moved) => {
                                outcome = Err(Moved);
                                break;
                            }
                        }
                    }
                    outcome.map(|rest| Front { bytes: buffer.freeze(), rest })
                }
            };
            match fetched {
                Ok(front) => return Ok(front),
                // Overwritten or rewritten by somebody: the bytes are elsewhere now.
                Err(Moved) => file.inner.lock().map.clear(),
            }
            if deadline.passed() {
                return Err(timed_out("looking for the file's bytes"));
            }
            tokio::time::sleep(deadline.cap(PAUSE)).await;
        }
    }
}

/// Kinds that say "ask the namenode again", not "this replica is bad".
fn is_outdated(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::CapabilityExpired | ErrorKind::StaleEpoch | ErrorKind::Forbidden)
}

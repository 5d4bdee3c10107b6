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
use futures::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::client::Client;
use crate::config::Options;
use crate::deadline::timed_out;
use crate::error::Result;
use crate::open::{FileState, Handle};
use crate::read::blocks::BLOCK;
use crate::read::fetch::FetchError;
use crate::read::local::Local;

/// Locations remembered; when there are more all are forgotten and asked again. About 20 MiB.
const LOCATIONS_MAX: usize = 64 << 10;

/// Pieces of one read that are fetched at the same time.
const FETCHES: usize = 16;

/// Before looking again where the bytes are, after their chunk was found gone.
const PAUSE: Duration = Duration::from_millis(50);

/// The read side of one client.
pub(crate) struct Reads {
    locations: Mutex<HashMap<ChunkId, ChunkLocation>>,
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

    fn location(&self, chunk: ChunkId) -> Option<ChunkLocation> {
        self.locations.lock().get(&chunk).cloned()
    }
}

impl Client {
    /// The bytes at `offset`, `len` of them; fewer only at the end of the file.
    pub async fn read(self: &Arc<Self>, handle: &Handle, offset: u64, len: usize) -> Result<Bytes> {
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
            return Ok(Bytes::new());
        }
        let ahead = handle.sequential.lock().advance(offset, end);
        match &overlay[..] {
            [] => return self.read_around(file, offset, end, ahead).await,
            [(at, bytes)] if *at == offset && bytes.len() as u64 == end - offset => return Ok(bytes.clone()),
            _ => {}
        }
        let mut buffer = BytesMut::zeroed((end - offset) as usize);
        let mut place = |at: u64, bytes: &[u8]| {
            let start = (at - offset) as usize;
            buffer[start..start + bytes.len()].copy_from_slice(bytes);
        };
        let mut reached = offset;
        for (at, bytes) in &overlay {
            if reached < *at {
                place(reached, &self.read_around(file, reached, *at, 0).await?);
            }
            place(*at, bytes);
            reached = at + bytes.len() as u64;
        }
        if reached < end {
            place(reached, &self.read_around(file, reached, end, 0).await?);
        }
        Ok(buffer.freeze())
    }

    /// Committed bytes, through the blocks read ahead if `ahead` says how many more are wanted.
    async fn read_around(self: &Arc<Self>, file: &Arc<FileState>, start: u64, end: u64, ahead: u64) -> Result<Bytes> {
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
            let bytes = match block {
                Some(block) => block.await,
                None => Ok(Bytes::new()),
            };
            parts.push(match bytes {
                Ok(bytes) if bytes.len() >= in_block.end => bytes.slice(in_block),
                // No room to read ahead, the file has grown since, or the attempt failed.
                _ => {
                    file.inner.lock().blocks.remove(index);
                    self.read_committed(file, from, to).await?
                }
            });
        }
        Ok(match parts.len() {
            1 => parts.swap_remove(0),
            _ => Bytes::from(parts.concat()),
        })
    }

    /// The committed bytes of exactly `[start, end)`; zeros where nothing was ever written.
    pub async fn read_committed(self: &Arc<Self>, file: &Arc<FileState>, start: u64, end: u64) -> Result<Bytes> {
        let deadline = self.deadline();
        loop {
            let extents = self.extents(file, start, end).await?;
            let fetched = match &extents[..] {
                [] => return Ok(BytesMut::zeroed((end - start) as usize).freeze()),
                [one] if one.file_offset == start && one.file_end() == end => self.fetch(file, one, deadline).await,
                _ => {
                    let mut buffer = BytesMut::zeroed((end - start) as usize);
                    let mut pieces = stream::iter(extents)
                        .map(|extent| async move { Ok((extent, self.fetch(file, &extent, deadline).await?)) })
                        .buffer_unordered(FETCHES);
                    let mut outcome = Ok(());
                    loop {
                        match pieces.try_next().await {
                            Ok(Some((extent, bytes))) => {
                                let at = (extent.file_offset - start) as usize;
                                buffer[at..at + bytes.len()].copy_from_slice(&bytes);
                            }
                            Ok(None) => break,
                            Err(error) => {
                                outcome = Err(error);
                                break;
                            }
                        }
                    }
                    outcome.map(|()| buffer.freeze())
                }
            };
            match fetched {
                Ok(bytes) => return Ok(bytes),
                Err(FetchError::Failed(error)) => return Err(error),
                // Overwritten or rewritten by somebody: the bytes are elsewhere now.
                Err(FetchError::Moved) => file.inner.lock().map.clear(),
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

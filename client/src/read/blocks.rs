//! What is read ahead of a handle that reads in sequence.
//!
//! A single request to a datanode is bound by its round trip; several aligned blocks under way at once
//! are bound by the link. Blocks hold verified, committed bytes of one version of the file.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_proto::ErrorKind;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::OwnedSemaphorePermit;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::open::FileState;
use crate::read::Front;

/// Bytes of a block: one stream's worth of a datanode's time, and what the kernel asks for at once.
pub(crate) const BLOCK: u64 = 1 << 20;

/// Blocks ahead at most: 8 MiB, a few round trips at full speed.
const AHEAD_MAX: u64 = 8;

/// Blocks kept of one file. More than are ahead, as several threads of the kernel read out of order.
const KEPT_MAX: usize = 16;

/// How far from the expected place a read may be and still count as going on: reads of one application
/// arrive out of order through the kernel's threads.
const SLACK: u64 = 2 * BLOCK;

pub(crate) type Reading = Shared<BoxFuture<'static, Result<Front>>>;

/// Where a handle has been reading.
#[derive(Default, Debug)]
pub(crate) struct Sequential {
    /// Where the furthest read ended.
    next: u64,
    /// Blocks to read ahead; doubles while reads go on.
    ahead: u64,
}

impl Sequential {
    /// Notes a read of `[start, end)`. Returns how many blocks behind it are worth reading ahead.
    pub fn advance(&mut self, start: u64, end: u64) -> u64 {
        let goes_on = start + SLACK >= self.next && start <= self.next + SLACK;
        if !goes_on {
            self.next = end;
            self.ahead = 0;
            return 0;
        }
        // The first read of a handle at the start of a file may be its only one.
        let first = self.next == 0;
        self.next = self.next.max(end);
        self.ahead = if first { 0 } else { (self.ahead * 2).clamp(1, AHEAD_MAX) };
        self.ahead
    }
}

#[derive(Default)]
pub(crate) struct Blocks {
    blocks: BTreeMap<u64, Block>,
    clock: u64,
}

struct Block {
    reading: Reading,
    used: u64,
    _room: OwnedSemaphorePermit,
}

impl Blocks {
    pub fn clear(&mut self) {
        self.blocks.clear();
    }

    pub fn remove(&mut self, index: u64) {
        self.blocks.remove(&index);
    }

    fn get(&mut self, index: u64) -> Option<Reading> {
        self.clock += 1;
        let block = self.blocks.get_mut(&index)?;
        block.used = self.clock;
        Some(block.reading.clone())
    }

    fn insert(&mut self, index: u64, reading: Reading, room: OwnedSemaphorePermit) {
        if self.blocks.len() >= KEPT_MAX
            && let Some(oldest) = self.blocks.iter().min_by_key(|(_, block)| block.used).map(|(&index, _)| index)
        {
            self.blocks.remove(&oldest);
        }
        self.blocks.insert(index, Block { reading, used: self.clock, _room: room });
    }
}

impl Client {
    /// The block, whose reading starts if it has not. `None` behind the end of the file, or if there is no
    /// room to read ahead.
    pub(super) fn block(self: &Arc<Self>, file: &Arc<FileState>, index: u64) -> Option<Reading> {
        let mut inner = file.inner.lock();
        if let Some(reading) = inner.blocks.get(index) {
            return Some(reading);
        }
        let start = index * BLOCK;
        let end = inner.attr.size_bytes.min(start + BLOCK);
        if start >= end {
            return None;
        }
        let room = self.reads.ahead.clone().try_acquire_many_owned((end - start) as u32).ok()?;
        let (client, of) = (self.clone(), file.clone());
        let task = tokio::spawn(async move { client.read_committed(&of, start, end).await });
        let stopped = |_| Err(Error::new(ErrorKind::Internal, "reading ahead was broken off"));
        let reading = task.map(move |outcome| outcome.unwrap_or_else(stopped)).boxed().shared();
        inner.blocks.insert(index, reading.clone(), room);
        Some(reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ahead_grows_with_a_sequence_and_stops_with_it() {
        let mut sequential = Sequential::default();
        let step = 256 << 10;
        let ahead: Vec<u64> = (0..6).map(|i| sequential.advance(i * step, (i + 1) * step)).collect();
        assert_eq!(ahead, [0, 1, 2, 4, 8, 8]);
        assert_eq!(sequential.advance(7 * step, 8 * step), 8, "two reads swapped by the kernel");
        assert_eq!(sequential.advance(6 * step, 7 * step), 8);
        assert_eq!(sequential.advance(1 << 40, (1 << 40) + 4096), 0, "a jump");
        assert_eq!(sequential.advance((1 << 40) + 4096, (1 << 40) + 8192), 1);
    }
}

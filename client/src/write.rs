//! Writing: bytes are taken into memory, uploaded into chunks in the background, and committed in groups.
//!
//! `state` and `append` decide, one for a file and one for a chunk. The rest acts: `writer` drives a
//! chunk's append streams, `slot` finds a chunk for an upload, `upload` moves a file's bytes, `commit`
//! makes them part of their files, and `file` is what an open file does with all of this. `reshape`
//! changes ranges of a file without moving bytes.

pub(crate) mod append;
mod commit;
mod failing;
pub(crate) mod file;
mod reshape;
pub(crate) mod slot;
pub(crate) mod state;
mod stock;
mod upload;
pub(crate) mod writer;

use std::collections::HashMap;
use std::sync::Arc;

use dfs_proto::{ChunkId, InodeId};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::config::Options;
use crate::open::FileState;
use crate::write::commit::Committer;
use crate::write::failing::Failing;
use crate::write::slot::Slot;
use crate::write::stock::Stock;
use crate::write::writer::ChunkWriter;

/// The write side of one client. None of its locks is held while another of them, or an `await`, is
/// waited for; a file's `inner` may be held while `dirty` is taken, never the other way round.
pub(crate) struct Writes {
    /// Bytes that may still be taken into memory. Permits are forgotten by `write` and come back when
    /// the bytes are committed, replaced or dropped.
    budget: Semaphore,
    budget_max: usize,
    /// Files with uncommitted bytes.
    dirty: Mutex<HashMap<InodeId, Arc<FileState>>>,
    /// Chunks that take appends or are still to be sealed.
    writers: Mutex<HashMap<ChunkId, Arc<ChunkWriter>>>,
    /// The shared chunks for small pieces, by number of copies.
    packs: Mutex<HashMap<u8, Arc<Slot>>>,
    stock: Stock,
    failing: Mutex<Failing>,
    committer: Committer,
}

impl Writes {
    pub fn new(options: &Options) -> Writes {
        // Less than a few uploads could not make progress.
        let budget_max = options.dirty_max_bytes.clamp(4 << 20, u32::MAX as usize);
        Writes {
            budget: Semaphore::new(budget_max),
            budget_max,
            dirty: Mutex::default(),
            writers: Mutex::default(),
            packs: Mutex::default(),
            stock: Stock::default(),
            failing: Mutex::default(),
            committer: Committer::default(),
        }
    }

    pub fn dirty_files(&self) -> Vec<Arc<FileState>> {
        self.dirty.lock().values().cloned().collect()
    }

    fn open_writers(&self) -> Vec<Arc<ChunkWriter>> {
        self.writers.lock().values().cloned().collect()
    }

    fn pack(&self, replication: u8) -> Arc<Slot> {
        self.packs.lock().entry(replication).or_default().clone()
    }
}

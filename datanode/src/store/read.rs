//! Reading a range of a chunk. Digests are not checked here: they travel with the frames, and whoever
//! reads checks them.

use std::io;

use dfs_proto::{ChunkId, Epoch};

use super::chunk_file::{BATCH_BYTES, Batch, ChunkFile, ReadFault};
use super::error::StoreError;
use super::format::State;
use super::{Replica, Store};

/// Goes through the frames that overlap a range. Holds the file: what is deleted meanwhile can be read on.
pub struct Reader {
    chunk: ChunkId,
    file: ChunkFile,
    replica: Replica,
    /// Number of the frame to read next.
    next: u32,
    /// Where the range ends, in the chunk.
    end: u32,
}

impl Store {
    /// Opens `[offset, offset + len)` of a chunk for reading; what lies behind a sealed chunk's end is
    /// left out.
    ///
    /// `epoch` is the lowest that is good enough of a sealed one. An open replica lags by one between the commit that
    /// seals the chunk and its own seal order, or for good if it is short or damaged; the bytes it has are the same, so
    /// it serves what it has of the range, and `Short` if that is nothing.
    pub fn reader(&self, chunk: ChunkId, epoch: Epoch, offset: u32, len: u32) -> Result<Reader, StoreError> {
        let replica = self.chunks.get(chunk).ok_or_else(|| match self.is_scanned() {
            true => StoreError::NotHere(chunk),
            false => StoreError::NotScanned,
        })?;
        let end = offset.saturating_add(len);
        if replica.epoch < epoch && replica.state == State::Sealed {
            return Err(StoreError::StaleEpoch { chunk, here: replica.epoch, asked: epoch });
        }
        if replica.state == State::Open && replica.len < end && offset >= replica.len {
            return Err(StoreError::Short { chunk, here: replica.len, asked: end });
        }
        let path = self.volume_of(&replica).chunk_path(chunk);
        let file = ChunkFile::open_read_only(&path, chunk).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::Damaged { chunk, reason: "its file is gone".into() },
            _ => StoreError::Io { what: "opening", source },
        })?;
        let next =
            file.find_frame(offset, replica.frames, replica.len).map_err(|fault| StoreError::damaged(chunk, &fault))?;
        Ok(Reader { chunk, file, replica, next, end })
    }
}

impl Reader {
    /// What was known of the replica when it was opened.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The next frames of the range, about a mebibyte of them; `None` at its end.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, StoreError> {
        if self.next >= self.replica.frames {
            return Ok(None);
        }
        let batch = self.file.load(self.next, self.replica.frames, self.end, BATCH_BYTES);
        let batch = batch.map_err(|fault| match fault {
            ReadFault::Io(source) if super::error::is_shortage(&source) => StoreError::Io { what: "reading", source },
            fault => StoreError::damaged(self.chunk, &fault),
        })?;
        self.next = batch.next();
        // The first frame of a batch is loaded wherever it lies: here it may lie behind the range.
        let overlaps = batch.frames.first().is_some_and(|frame| frame.offset < self.end);
        Ok(overlaps.then_some(batch))
    }
}

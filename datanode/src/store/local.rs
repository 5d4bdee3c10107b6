//! A chunk as a file, for readers on this machine.

use std::fs::File;
use std::io;

use dfs_proto::msg::data::LocalChunk;
use dfs_proto::{ChunkId, FrameHeader};

use super::Store;
use super::chunk_file::ChunkFile;
use super::error::StoreError;
use super::format::{State, data_offset};

impl Store {
    /// Opens a chunk for reading, with all frame headers that it has now. What is behind them in an open one belongs to
    /// frames that nobody was told of yet. `NotSealed` for a damaged one, of which single frames may be good.
    pub fn local_file(&self, chunk: ChunkId) -> Result<(LocalChunk, File, Vec<FrameHeader>), StoreError> {
        let replica = self.chunks.get(chunk).ok_or_else(|| match self.is_scanned() {
            true => StoreError::NotHere(chunk),
            false => StoreError::NotScanned,
        })?;
        if replica.state == State::Damaged {
            return Err(StoreError::NotSealed(chunk));
        }
        let path = self.volume_of(&replica).chunk_path(chunk);
        let file = ChunkFile::open_read_only(&path, chunk).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::Damaged { chunk, reason: "its file is gone".into() },
            _ => StoreError::Io { what: "opening", source },
        })?;
        let frames = file.index(replica.frames).map_err(|fault| StoreError::damaged(chunk, &fault))?;
        let described = LocalChunk { len: replica.len, data_start: data_offset(0), frames: replica.frames };
        Ok((described, file.into_file(), frames))
    }
}

//! What chunks are gathered from.

use std::collections::BTreeMap;

use dfs_proto::msg::node::Piece;
use dfs_proto::{ChunkId, Epoch};
use serde::{Deserialize, Serialize};

use super::{Key, Row, get, number_at, scan_prefix};
use crate::view::{Fault, Table, View};

/// The map from the sources into the new chunk, which is the key: the pieces lie in it one behind the other.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct CompactionRow {
    /// As they were when the compaction began. By now they may be cut, or gone.
    pub sources: Vec<(ChunkId, Epoch)>,
    pub pieces: Vec<Piece>,
}

impl Row for CompactionRow {
    const TABLE: Table = Table::Compactions;
}

impl CompactionRow {
    pub fn key(chunk: ChunkId) -> Key<CompactionRow> {
        Key::new(chunk.0.to_be_bytes().to_vec())
    }

    /// In all pieces.
    pub fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.len)).sum()
    }
}

pub fn compaction(view: &dyn View, chunk: ChunkId) -> Result<Option<CompactionRow>, Fault> {
    get(view, &CompactionRow::key(chunk))
}

/// All compactions under way, by the chunk that is gathered.
pub fn compactions(view: &dyn View) -> Result<BTreeMap<ChunkId, CompactionRow>, Fault> {
    let mut found = Vec::new();
    scan_prefix::<CompactionRow>(view, &[], &mut |key, row| {
        found.push(number_at(Table::Compactions, key, 0).map(|chunk| (ChunkId(chunk), row)));
        true
    })?;
    found.into_iter().collect()
}

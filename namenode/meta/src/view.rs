//! The state as ordered tables of bytes: what `apply` reads, and the changes it answers with.
//!
//! Nothing in this crate writes: it reads through a [`View`] and returns [`Change`]s. The store
//! implements `View` over RocksDB, tests and simulations over a [`MemoryView`].

mod overlay;

use std::collections::BTreeMap;

pub use overlay::{Mark, Overlay};

/// A table of the state; the store keeps each as a column family of its own. What the rows of each
/// mean, and how their keys are built, is in [`crate::rows`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Table {
    /// The store's own rows (last applied index, membership, row version). Never read or written here.
    Meta,
    Inodes,
    Dentries,
    DirIndex,
    Extents,
    Chunks,
    ChunkFiles,
    NodeChunks,
    NodeDigests,
    Datanodes,
    Sessions,
    SessionChunks,
    Replies,
    Orphans,
    Attention,
    Counters,
    Locks,
    SessionLocks,
    Holders,
    Xattrs,
    Duties,
    LostEnds,
    SessionInodes,
    Compactions,
}

impl Table {
    pub const ALL: [Table; 24] = [
        Table::Meta,
        Table::Inodes,
        Table::Dentries,
        Table::DirIndex,
        Table::Extents,
        Table::Chunks,
        Table::ChunkFiles,
        Table::NodeChunks,
        Table::NodeDigests,
        Table::Datanodes,
        Table::Sessions,
        Table::SessionChunks,
        Table::Replies,
        Table::Orphans,
        Table::Attention,
        Table::Counters,
        Table::Locks,
        Table::SessionLocks,
        Table::Holders,
        Table::Xattrs,
        Table::Duties,
        Table::LostEnds,
        Table::SessionInodes,
        Table::Compactions,
    ];

    /// The name on disk. Never changes for a table that exists.
    pub fn name(self) -> &'static str {
        match self {
            Table::Meta => "meta",
            Table::Inodes => "inodes",
            Table::Dentries => "dentries",
            Table::DirIndex => "dir_index",
            Table::Extents => "extents",
            Table::Chunks => "chunks",
            Table::ChunkFiles => "chunk_files",
            Table::NodeChunks => "node_chunks",
            Table::NodeDigests => "node_digests",
            Table::Datanodes => "datanodes",
            Table::Sessions => "sessions",
            Table::SessionChunks => "session_chunks",
            Table::Replies => "replies",
            Table::Orphans => "orphans",
            Table::Attention => "attention",
            Table::Counters => "counters",
            Table::Locks => "locks",
            Table::SessionLocks => "session_locks",
            Table::Holders => "holders",
            Table::Xattrs => "xattrs",
            Table::Duties => "duties",
            Table::LostEnds => "lost_ends",
            Table::SessionInodes => "session_inodes",
            Table::Compactions => "compactions",
        }
    }
}

/// The state could not be read, or a row of it does not decode. Not an answer to anybody: the node
/// that meets one must stop, because going on would make its state differ from the others'.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the state cannot be read: {0}")]
pub struct Fault(pub String);

/// The state at one log index.
pub trait View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault>;

    /// Visits the rows with `start <= key < end` in key order until `visit` returns false.
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault>;

    /// As `scan`, from the last row to the first.
    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault>;
}

/// One row written (`Some`) or deleted (`None`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub table: Table,
    pub key: Vec<u8>,
    pub value: Option<Vec<u8>>,
}

/// A state in memory, for tests and simulations.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct MemoryView {
    rows: BTreeMap<(Table, Vec<u8>), Vec<u8>>,
}

impl MemoryView {
    pub fn new() -> MemoryView {
        MemoryView::default()
    }

    /// Takes over the changes of one `apply`.
    pub fn write(&mut self, changes: Vec<Change>) {
        for Change { table, key, value } in changes {
            match value {
                Some(value) => self.rows.insert((table, key), value),
                None => self.rows.remove(&(table, key)),
            };
        }
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Every row, by table and key.
    pub fn rows(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        self.rows.iter().map(|((table, key), value)| (*table, key.as_slice(), value.as_slice()))
    }
}

impl View for MemoryView {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        Ok(self.rows.get(&(table, key.to_vec())).cloned())
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        for ((_, key), value) in self.rows.range((table, start.to_vec())..(table, end.to_vec())) {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        for ((_, key), value) in self.rows.range((table, start.to_vec())..(table, end.to_vec())).rev() {
            if !visit(key, value) {
                break;
            }
        }
        Ok(())
    }
}

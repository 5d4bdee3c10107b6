//! The rows of each table, with types. Keys are big-endian numbers one after the other, so that byte
//! order is number order; values go through the one codec.
//!
//! | table | key | row |
//! |---|---|---|
//! | `Inodes` | inode | [`InodeRow`] |
//! | `Dentries` | parent, name bytes | [`DentryRow`]: finds a name |
//! | `DirIndex` | parent, cookie | [`DirIndexRow`]: lists a directory in a stable order |
//! | `Extents` | inode, *end* of the file range | [`ExtentRow`] |
//! | `Chunks` | chunk | [`ChunkRow`] |
//! | `ChunkFiles` | chunk, inode | [`ChunkFileRow`]: which files a chunk serves |
//! | `NodeChunks` | node, shard (u16), chunk | [`NodeChunkRow`]: what a node keeps |
//! | `NodeDigests` | node, shard (u16) | [`NodeDigestRow`]: what a node's report must add up to |
//! | `Datanodes` | node | [`DatanodeRow`] |
//! | `Sessions` | session | [`SessionRow`] |
//! | `SessionChunks` | session, chunk | [`SessionChunkRow`]: open chunks |
//! | `Replies` | session, request number | [`ReplyRow`] |
//! | `Orphans` | session, inode | [`OrphanRow`]: held without a name; session 0 is the reclaim queue |
//! | `Holders` | inode, session | [`HolderRow`]: `Orphans` the other way round, without the queue |
//! | `Attention` | chunk | [`AttentionRow`]: sealed, replicas differ in number from the target |
//! | `Locks` | inode, session, space (u8), owner, first byte | [`LockRow`] |
//! | `SessionLocks` | session, inode (or 0 for all) | [`SessionLocksRow`]: how many locks |
//! | `Counters` | `config`, `keys`, `totals` | [`Config`], [`CapabilityKeys`], [`Totals`] |
//! | `Counters` | `namenodes`, `balance` | [`NamenodeIds`], [`BalanceRow`] |
//! | `Xattrs` | inode, name bytes | [`XattrRow`]: an extended attribute |
//! | `Duties` | node | [`DutyRow`]: of datanodes that do not simply serve; a removed one's stays for ever |
//! | `SessionInodes` | session, first inode | [`SessionInodesRow`]: numbers that the session may give to what it makes |
//! | `LostEnds` | chunk | [`LostEndRow`]: committed bytes behind the chunk's end, which was cut off |
//! | `Compactions` | chunk | [`CompactionRow`]: what the chunk is, or was lately, gathered from |
//!
//! Extents are keyed by their end because the first extent that reaches past an offset is then found
//! by one forward seek. By their start it would take a backward seek, or a walk over everything that
//! starts within one chunk's length before the offset.

mod chunks;
mod cluster;
mod compactions;
mod duties;
mod files;
mod locks;
mod sessions;
mod xattrs;

use std::marker::PhantomData;

use dfs_proto::codec;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::view::{Fault, Table, View};

pub use chunks::{
    AttentionRow, ChunkFileRow, ChunkRow, ChunkState, DatanodeRow, LostEndRow, NodeChunkRow, NodeDigestRow, attention,
    chunk, chunk_files, chunks, datanode, datanodes, lost_end, lost_ends, node_chunks, node_chunks_of_shard,
    node_digests,
};
pub use cluster::{
    BalanceRow, CapabilityKeys, Config, NamenodeIdRow, NamenodeIds, Totals, balance, capability_keys, config,
    namenode_ids, totals,
};
pub use compactions::{CompactionRow, compaction, compactions};
pub use duties::{DutyRow, duties, duty};
pub use files::{
    Content, DentryRow, DirIndexRow, ExtentRow, FIRST_COOKIE, FileSpan, InodeRow, dentry, extents_back, extents_past,
    extents_touching, has_entries, inode, inodes, list_dir,
};
pub use locks::{ALL_INODES, LockRow, SessionLocksRow, locked_inodes, locks, session_locks};
pub use sessions::{
    HolderRow, OrphanRow, RECLAIM_QUEUE, ReplyRow, SessionChunkRow, SessionInodesRow, SessionRow, UNDECIDED, holders,
    orphans, replies_below, session, session_chunks, session_inodes, sessions,
};
pub(crate) use xattrs::xattr_key;
pub use xattrs::{XattrRow, xattr, xattrs};

/// A type that is stored as the rows of one table.
pub trait Row: Serialize + DeserializeOwned {
    const TABLE: Table;
}

/// The key of a row of type `R`.
pub struct Key<R> {
    bytes: Vec<u8>,
    row: PhantomData<fn() -> R>,
}

impl<R: Row> Key<R> {
    fn new(bytes: Vec<u8>) -> Key<R> {
        Key { bytes, row: PhantomData }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// The row under `key`, if there is one.
pub fn get<R: Row>(view: &dyn View, key: &Key<R>) -> Result<Option<R>, Fault> {
    match view.get(R::TABLE, &key.bytes)? {
        Some(bytes) => decode::<R>(&key.bytes, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Visits the rows with `start <= key < end` in order, with their keys' bytes, until `visit` says false.
fn scan<R: Row>(
    view: &dyn View,
    start: &[u8],
    end: &[u8],
    visit: &mut dyn FnMut(&[u8], R) -> bool,
) -> Result<(), Fault> {
    let mut fault = None;
    view.scan(R::TABLE, start, end, &mut |key, bytes| match decode::<R>(key, bytes) {
        Ok(row) => visit(key, row),
        Err(damage) => {
            fault = Some(damage);
            false
        }
    })?;
    fault.map_or(Ok(()), Err)
}

/// `scan` over every key that begins with `prefix`; an empty prefix means the whole table.
fn scan_prefix<R: Row>(view: &dyn View, prefix: &[u8], visit: &mut dyn FnMut(&[u8], R) -> bool) -> Result<(), Fault> {
    scan(view, prefix, &prefix_end(prefix), visit)
}

/// Visits a whole table with its keys' bytes. For checks; everything else knows where to look.
pub(crate) fn scan_all<R: Row>(view: &dyn View, visit: &mut dyn FnMut(&[u8], R)) -> Result<(), Fault> {
    scan_prefix::<R>(view, &[], &mut |key, row| {
        visit(key, row);
        true
    })
}

/// The lowest key behind every key that begins with `prefix`.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Nothing can be behind: longer than any key, whose longest is a parent and a name.
    vec![u8::MAX; 8 + dfs_proto::limits::NAME_MAX + 1]
}

/// A row that does not decode is damage (or a newer version's): nothing may be concluded from it.
fn decode<R: Row>(key: &[u8], bytes: &[u8]) -> Result<R, Fault> {
    codec::decode(bytes).map_err(|error| Fault(format!("{} row {key:02x?}: {error}", R::TABLE.name())))
}

/// The bytes of a row.
pub(crate) fn encode<R: Row>(row: &R) -> Result<Vec<u8>, Fault> {
    codec::encode(row).map_err(|error| Fault(format!("{} row: {error}", R::TABLE.name())))
}

/// Two numbers as a key.
fn pair(first: u64, second: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    key.extend_from_slice(&first.to_be_bytes());
    key.extend_from_slice(&second.to_be_bytes());
    key
}

/// The number at byte `at` of a key.
fn number_at(table: Table, key: &[u8], at: usize) -> Result<u64, Fault> {
    let bytes = key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| Fault(format!("{} key {key:02x?} is too short", table.name())))
}

/// The numbers at byte `at` of the keys that `scan` visits, at most `limit`.
fn numbers<R: Row>(view: &dyn View, prefix: &[u8], at: usize, limit: usize) -> Result<Vec<u64>, Fault> {
    let mut found = Vec::new();
    if limit > 0 {
        scan_prefix::<R>(view, prefix, &mut |key, _| {
            found.push(number_at(R::TABLE, key, at));
            found.len() < limit
        })?;
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_behind_its_longest_key_and_before_the_next_prefix() {
        assert_eq!(prefix_end(&[1, 2]), [1, 3]);
        assert_eq!(prefix_end(&[1, 0xff]), [2]);
        assert!(prefix_end(&[0xff; 8]) > [&[0xff; 8][..], &[0xff; 255][..]].concat());
        assert!(prefix_end(&[]) > [&[0xff; 8][..], &[0xff; 255][..]].concat());
    }
}

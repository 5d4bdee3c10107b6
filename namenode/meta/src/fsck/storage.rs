//! Extents, chunks and replicas.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::chunk::{digest_shard, replica_digest};
use dfs_proto::limits::{CHUNK_MAX, REPLICATION_MAX};
use dfs_proto::msg::admin::{Duty, ProblemKind};
use dfs_proto::{ChunkId, Extent, InodeId, NodeId};

use super::Findings;
use super::tree::{Tree, number_at};
use crate::extents;
use crate::repair::Known;
use crate::rows::{
    self, AttentionRow, ChunkFileRow, ChunkRow, ChunkState, Content, ExtentRow, NodeChunkRow, NodeDigestRow,
};
use crate::view::{Fault, View};

pub(super) struct Storage {
    pub chunks: BTreeMap<ChunkId, ChunkRow>,
    /// Chunks that were cut off, and the bytes behind their ends.
    pub lost_ends: BTreeMap<ChunkId, u32>,
    /// Bytes of each file that lie behind the end of a chunk, counted from the extents.
    lost: BTreeMap<(ChunkId, InodeId), u64>,
    /// Bytes of each chunk that each file uses, counted from the extents.
    usage: BTreeMap<(ChunkId, InodeId), u64>,
}

impl Storage {
    /// Reads extents and chunks, and checks every table about them.
    pub fn load(view: &dyn View, tree: &Tree, found: &mut Findings) -> Result<Storage, Fault> {
        let mut storage = Storage {
            chunks: BTreeMap::new(),
            lost_ends: rows::lost_ends(view)?,
            lost: BTreeMap::new(),
            usage: BTreeMap::new(),
        };
        rows::chunks(view, &mut |chunk, row| {
            storage.chunks.insert(chunk, row);
        })?;
        storage.check_extents(view, tree, found)?;
        storage.check_chunks(view, tree, found)?;
        storage.check_compactions(view, found)?;
        storage.check_nodes(view, found)?;
        storage.check_attention(view, found)?;
        Ok(storage)
    }

    /// Chunks that any of the files uses.
    pub fn used_by(&self, inodes: &BTreeSet<InodeId>) -> BTreeSet<ChunkId> {
        self.usage.keys().filter(|(_, inode)| inodes.contains(inode)).map(|(chunk, _)| *chunk).collect()
    }

    /// Which files are hurt by replicas that do not answer or are damaged.
    pub fn check_files(&self, tree: &Tree, known: Known<'_>, found: &mut Findings) {
        for (chunk, row) in &self.chunks {
            let copies = known.good(*chunk, row);
            let damaged: Vec<NodeId> = row.replicas.iter().copied().filter(|node| (known.live)(*node)).collect();
            let users = || self.usage.range((*chunk, InodeId(0))..=(*chunk, InodeId(u64::MAX)));
            if copies == 0 {
                for ((_, inode), bytes) in users() {
                    let kind = tree.inodes.get(inode).map(|row| row.kind());
                    let why = match damaged.is_empty() {
                        true => format!("none of its nodes {} answers", list(&row.replicas)),
                        // A frame that is good in any of them is still served; the rest is an error, never zeros.
                        false => format!("its replicas on nodes {} are damaged, and no other answers", list(&damaged)),
                    };
                    let text = format!("{bytes} bytes of {kind:?} {inode} are in chunk {chunk}, and {why}");
                    found.chunk(ProblemKind::Missing, *chunk, Some(*inode), text);
                }
            } else if row.is_sealed() && copies < usize::from(row.target) {
                let first = users().next().map(|((_, inode), _)| *inode);
                let text = format!(
                    "chunk {chunk} has {copies} good copies of {} wanted, and {} files use it",
                    row.target,
                    users().count(),
                );
                found.chunk(ProblemKind::UnderReplicated, *chunk, first, text);
            }
        }
    }

    /// Which files have bytes that were cut off with the end of a chunk.
    pub fn check_lost(&self, tree: &Tree, found: &mut Findings) {
        for ((chunk, inode), bytes) in &self.lost {
            let kind = tree.inodes.get(inode).map(|row| row.kind());
            let text = format!(
                "{bytes} bytes of {kind:?} {inode} were committed to chunk {chunk} and on no disk when the power went: \
                 reading them gives an error, until they are overwritten or the file is deleted"
            );
            found.chunk(ProblemKind::Lost, *chunk, Some(*inode), text);
        }
    }

    fn check_extents(&mut self, view: &dyn View, tree: &Tree, found: &mut Findings) -> Result<(), Fault> {
        let mut files: BTreeMap<InodeId, Vec<Extent>> = BTreeMap::new();
        rows::scan_all::<ExtentRow>(view, &mut |key, row| {
            let end = number_at(key, 8);
            let start = end.and_then(|end| end.checked_sub(u64::from(row.len)));
            match number_at(key, 0).map(InodeId).zip(start) {
                None => found.broken(format!("extent key {key:02x?} does not fit its row {row:?}")),
                Some((inode, file_offset)) => {
                    let ExtentRow { chunk, chunk_offset, len } = row;
                    let extent = Extent { file_offset, chunk, chunk_offset, len };
                    if let Some(end) = self.chunks.get(&chunk).filter(|_| self.lost_ends.contains_key(&chunk)) {
                        let readable = end.len.saturating_sub(chunk_offset).min(len);
                        if readable < len {
                            *self.lost.entry((chunk, inode)).or_default() += u64::from(len - readable);
                        }
                    }
                    files.entry(inode).or_default().push(extent);
                    *self.usage.entry((chunk, inode)).or_default() += u64::from(len);
                }
            }
        })?;
        let lost = |chunk| self.lost_ends.get(&chunk).copied().unwrap_or(0);
        let committed = |chunk| self.chunks.get(&chunk).map(|row| row.len.saturating_add(lost(chunk)));
        for (inode, row) in &tree.inodes {
            let extents = files.remove(inode).unwrap_or_default();
            match row.content {
                Content::File { size_bytes, mapped_bytes, .. } => {
                    if let Err(what) = extents::check(&extents, size_bytes, &committed) {
                        found.broken_inode(*inode, what);
                    }
                    let recounted = extents::mapped_bytes(&extents);
                    if recounted != mapped_bytes {
                        let text = format!("inode {inode} counts {mapped_bytes} mapped bytes and has {recounted}");
                        found.broken_inode(*inode, text);
                    }
                }
                _ if !extents.is_empty() => {
                    found.broken_inode(*inode, format!("inode {inode} has extents and is no file"))
                }
                _ => {}
            }
        }
        for inode in files.keys() {
            found.broken_inode(*inode, format!("there are extents of inode {inode}, which is gone"));
        }
        Ok(())
    }

    /// Chunk rows, and the files that each serves.
    fn check_chunks(&self, view: &dyn View, tree: &Tree, found: &mut Findings) -> Result<(), Fault> {
        let mut kept: BTreeMap<(ChunkId, InodeId), u64> = BTreeMap::new();
        rows::scan_all::<ChunkFileRow>(view, &mut |key, row| match number_at(key, 0).zip(number_at(key, 8)) {
            Some((chunk, inode)) => {
                kept.insert((ChunkId(chunk), InodeId(inode)), row.bytes);
            }
            None => found.broken(format!("chunk-file key {key:02x?} is too short")),
        })?;
        for key in self.usage.keys().chain(kept.keys()).collect::<BTreeSet<_>>() {
            if self.usage.get(key) != kept.get(key) {
                let text = format!(
                    "inode {} uses {:?} bytes of chunk {} and is counted for {:?}",
                    key.1,
                    self.usage.get(key),
                    key.0,
                    kept.get(key),
                );
                found.chunk(ProblemKind::Inconsistent, key.0, Some(key.1), text);
            }
        }

        let next_chunk = rows::totals(view)?.next_chunk;
        let mut live: BTreeMap<ChunkId, (u64, u8)> = BTreeMap::new();
        for ((chunk, inode), bytes) in &self.usage {
            let (live, wanted) = live.entry(*chunk).or_default();
            *live += bytes;
            *wanted = tree.inodes.get(inode).map_or(*wanted, |row| row.attr(*inode).replication.max(*wanted));
        }
        for (chunk, row) in &self.chunks {
            let (live, wanted) = live.remove(chunk).unwrap_or_default();
            if row.live_bytes != live {
                found
                    .broken_chunk(*chunk, format!("chunk {chunk} counts {} live bytes and has {live}", row.live_bytes));
            }
            if row.is_sealed() && live == 0 {
                found.broken_chunk(*chunk, format!("chunk {chunk} is sealed and serves no file"));
            }
            if row.len > CHUNK_MAX {
                found.broken_chunk(*chunk, format!("chunk {chunk} has {} bytes", row.len));
            }
            if row.target < wanted.max(1) || row.target > REPLICATION_MAX {
                let text = format!("chunk {chunk} is to have {} copies and its files want {wanted}", row.target);
                found.broken_chunk(*chunk, text);
            }
            if row.replicas.is_empty() || row.replicas.iter().collect::<BTreeSet<_>>().len() != row.replicas.len() {
                found.broken_chunk(*chunk, format!("chunk {chunk} is on nodes {}", list(&row.replicas)));
            }
            if *chunk >= next_chunk {
                found.broken_chunk(*chunk, format!("chunk {chunk} has a number that was not given out"));
            }
        }
        for (chunk, lost) in &self.lost_ends {
            let row = self.chunks.get(chunk).filter(|row| row.is_sealed());
            let fits = |row: &ChunkRow| row.len.checked_add(*lost).is_some_and(|end| end <= CHUNK_MAX);
            if *lost == 0 || !row.is_some_and(fits) {
                found.broken_chunk(*chunk, format!("chunk {chunk}, {row:?}, cannot have lost {lost} bytes"));
            }
        }
        for chunk in live.keys() {
            found.broken_chunk(*chunk, format!("extents name chunk {chunk}, which does not exist"));
        }
        Ok(())
    }

    /// Chunks that are gathered, and what from.
    fn check_compactions(&self, view: &dyn View, found: &mut Findings) -> Result<(), Fault> {
        let compactions = rows::compactions(view)?;
        for (chunk, compaction) in &compactions {
            let wrong = match self.chunks.get(chunk) {
                None => Some("does not exist".to_string()),
                Some(row) if row.state == ChunkState::Gathering && u64::from(row.len) != compaction.bytes() => {
                    Some(format!("has {} bytes, and its pieces {}", row.len, compaction.bytes()))
                }
                Some(row) if matches!(row.state, ChunkState::Open { .. }) => Some("is open for a session".into()),
                Some(_) => None,
            };
            if let Some(wrong) = wrong {
                found.broken_chunk(*chunk, format!("chunk {chunk} is gathered from others and {wrong}"));
            }
        }
        for (chunk, row) in &self.chunks {
            if row.state == ChunkState::Gathering && (row.live_bytes > 0 || !compactions.contains_key(chunk)) {
                let text = format!("chunk {chunk} is to be gathered, has {} live bytes, and", row.live_bytes);
                found.broken_chunk(*chunk, format!("{text} its pieces are known: {}", compactions.contains_key(chunk)));
            }
        }
        Ok(())
    }

    /// What each node keeps, and its digests.
    fn check_nodes(&self, view: &dyn View, found: &mut Findings) -> Result<(), Fault> {
        let mut expected: BTreeSet<Vec<u8>> = BTreeSet::new();
        let mut digests: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let registered: BTreeSet<NodeId> = rows::datanodes(view)?.into_iter().map(|(node, _)| node).collect();
        for (chunk, row) in &self.chunks {
            for node in &row.replicas {
                if !registered.contains(node) {
                    found.broken_chunk(*chunk, format!("chunk {chunk} is on node {node}, which is not registered"));
                }
                expected.insert(NodeChunkRow::key(*node, *chunk).into_bytes());
                if row.is_sealed() {
                    let shard = NodeDigestRow::key(*node, digest_shard(*chunk)).into_bytes();
                    *digests.entry(shard).or_default() ^= replica_digest(*chunk, row.epoch, row.len);
                }
            }
        }
        digests.retain(|_, digest| *digest != 0);
        for (node, duty) in rows::duties(view)? {
            let has_left = matches!(duty, Duty::Decommissioned { .. } | Duty::Removed { .. });
            if has_left && self.chunks.values().any(|row| row.replicas.contains(&node)) {
                found.broken(format!("node {node} is {duty:?} and has replicas that count"));
            }
            if registered.contains(&node) == matches!(duty, Duty::Removed { .. }) {
                found.broken(format!("node {node} is {duty:?}, and whether it is registered says otherwise"));
            }
        }

        rows::scan_all::<NodeChunkRow>(view, &mut |key, _| {
            if !expected.remove(key) {
                found.broken(format!("a node is counted for a chunk that it does not have: {key:02x?}"));
            }
        })?;
        for key in expected {
            found.broken(format!("a node is not counted for a chunk that it has: {key:02x?}"));
        }
        rows::scan_all::<NodeDigestRow>(view, &mut |key, row| {
            let recounted = digests.remove(key).unwrap_or(0);
            if recounted != row.digest {
                found.broken(format!("digest {key:02x?} is {:x} and adds up to {recounted:x}", row.digest));
            }
        })?;
        for key in digests.keys() {
            found.broken(format!("digest {key:02x?} is missing"));
        }
        Ok(())
    }

    fn check_attention(&self, view: &dyn View, found: &mut Findings) -> Result<(), Fault> {
        let mut noted = BTreeSet::new();
        rows::scan_all::<AttentionRow>(view, &mut |key, _| noted.extend(number_at(key, 0).map(ChunkId)))?;
        let needing = self.chunks.iter().filter(|(_, row)| row.needs_attention()).map(|(chunk, _)| *chunk);
        let needing: BTreeSet<ChunkId> = needing.collect();
        for chunk in noted.symmetric_difference(&needing) {
            found.broken_chunk(*chunk, format!("whether chunk {chunk} needs attention is noted wrongly"));
        }
        Ok(())
    }
}

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(|node| node.to_string()).collect::<Vec<_>>().join(", ")
}

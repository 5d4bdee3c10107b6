//! Keeps three tables in step: extents, which files use a chunk, and how many of its bytes live.

use std::collections::BTreeMap;

use dfs_proto::limits::RANGE_EXTENTS_MAX;
use dfs_proto::{ChunkId, Extent, InodeId};

use crate::rows::{self, ChunkFileRow, ChunkRow, ExtentRow, FileSpan};
use crate::tx::Tx;
use crate::view::{Fault, View};
use crate::{chunks, extents};

/// Extents in one piece. Few in tests, so that small files already take several commands.
pub(crate) const PIECE_EXTENTS_MAX: usize = if cfg!(test) { 5 } else { RANGE_EXTENTS_MAX };

/// Bytes of chunks that files began or ceased to use during one command. The extent rows are changed
/// at once; the chunks' rows when all is known, in [`Usage::settle`].
#[derive(Default)]
pub(crate) struct Usage {
    files: BTreeMap<(ChunkId, InodeId), Delta>,
}

#[derive(Default)]
struct Delta {
    bytes: i64,
    /// Of the file, where it began to use bytes: the chunk gets at least so many copies.
    replication: u8,
}

impl Usage {
    /// Writes `new` over what the file has, and answers by how many bytes the mapped part grew.
    /// `empty` says that the file has no extent at all, which spares the look.
    pub fn write(
        &mut self,
        tx: &mut Tx<'_>,
        file: FileSpan,
        replication: u8,
        new: &Extent,
        empty: bool,
    ) -> Result<i64, Fault> {
        let touching = match empty {
            true => Vec::new(),
            false => rows::extents_touching(tx.view(), file, new.file_offset, new.file_end())?,
        };
        let after = extents::replace(&touching, new);
        self.rewrite(tx, file.inode, replication, &touching, &after)
    }

    /// Cuts the file's extents from its end down to `size_bytes`, a piece of them if there are many. Answers by
    /// how many bytes the mapped part grew (0 or less), and above which offset nothing is left.
    pub fn cut(&mut self, tx: &mut Tx<'_>, file: FileSpan, size_bytes: u64) -> Result<(i64, u64), Fault> {
        let mut behind = Vec::new();
        let mut end = size_bytes;
        rows::extents_back(tx.view(), file, size_bytes, &mut |extent| {
            if behind.len() == PIECE_EXTENTS_MAX {
                end = extent.file_end();
                return false;
            }
            behind.push(extent);
            true
        })?;
        behind.reverse();
        let after = extents::punch(&behind, end, u64::MAX);
        Ok((self.rewrite(tx, file.inode, 0, &behind, &after)?, end))
    }

    /// Takes the range's bytes out of the file's map, a piece of them if they are in many extents. Answers by how
    /// many bytes the mapped part grew (0 or less), and up to where the range is empty.
    pub fn punch(&mut self, tx: &mut Tx<'_>, file: FileSpan, start: u64, end: u64) -> Result<(i64, u64), Fault> {
        let (found, done_to) = in_range(tx.view(), file, start, end)?;
        let after = extents::punch(&found, start, done_to);
        Ok((self.rewrite(tx, file.inode, 0, &found, &after)?, done_to))
    }

    /// Takes away the first extents of the file, at most `limit`. Answers how many, and how many bytes they mapped.
    pub fn take(&mut self, tx: &mut Tx<'_>, file: FileSpan, limit: usize) -> Result<(usize, u64), Fault> {
        let mut found = Vec::new();
        if limit > 0 {
            rows::extents_past(tx.view(), file, 0, &mut |extent| {
                found.push(extent);
                found.len() < limit
            })?;
        }
        self.rewrite(tx, file.inode, 0, &found, &[])?;
        Ok((found.len(), extents::mapped_bytes(&found)))
    }

    /// Brings the chunks' rows up to date. A sealed chunk that nobody uses any more is deleted.
    pub fn settle(self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        let mut deltas = self.files.into_iter().peekable();
        while let Some((chunk, _)) = deltas.peek().map(|(key, _)| *key) {
            let mut row = tx
                .get(&ChunkRow::key(chunk))?
                .ok_or_else(|| Fault(format!("an extent names chunk {chunk}, which does not exist")))?;
            let target = row.target;
            while let Some(((_, inode), delta)) = deltas.next_if(|((next, _), _)| *next == chunk) {
                row.live_bytes = shifted(row.live_bytes, delta.bytes, "live bytes of a chunk")?;
                tx.totals.counts.mapped_bytes =
                    shifted(tx.totals.counts.mapped_bytes, delta.bytes, "mapped bytes of the cluster")?;
                if delta.bytes > 0 {
                    row.target = row.target.max(delta.replication);
                }
                count_file(tx, chunk, inode, delta.bytes)?;
            }
            if row.is_sealed() && row.live_bytes == 0 {
                chunks::delete(tx, chunk, &row)?;
            } else {
                tx.put(ChunkRow::key(chunk), &row)?;
                if row.target != target {
                    chunks::note_attention(tx, chunk, &row)?;
                }
            }
        }
        Ok(())
    }

    fn rewrite(
        &mut self,
        tx: &mut Tx<'_>,
        inode: InodeId,
        replication: u8,
        before: &[Extent],
        after: &[Extent],
    ) -> Result<i64, Fault> {
        // Rows that are the same before and after are left alone; both lists are in order.
        for extent in before.iter().filter(|extent| !after.contains(extent)) {
            tx.delete(ExtentRow::key(inode, extent));
            self.delta(extent, inode).bytes -= i64::from(extent.len);
        }
        for extent in after.iter().filter(|extent| !before.contains(extent)) {
            tx.put(ExtentRow::key(inode, extent), &ExtentRow::of(extent))?;
            let delta = self.delta(extent, inode);
            delta.bytes += i64::from(extent.len);
            delta.replication = delta.replication.max(replication);
        }
        Ok(extents::mapped_bytes(after) as i64 - extents::mapped_bytes(before) as i64)
    }

    fn delta(&mut self, extent: &Extent, inode: InodeId) -> &mut Delta {
        self.files.entry((extent.chunk, inode)).or_default()
    }
}

/// The extents that overlap `[start, end)`, whole, a piece of them if there are many; and up to where these
/// are all.
pub(crate) fn in_range(view: &dyn View, file: FileSpan, start: u64, end: u64) -> Result<(Vec<Extent>, u64), Fault> {
    let mut found = Vec::new();
    let mut complete_to = end;
    if start < end {
        rows::extents_past(view, file, start, &mut |extent| {
            if extent.file_offset >= end {
                return false;
            }
            if found.len() == PIECE_EXTENTS_MAX {
                complete_to = extent.file_offset;
                return false;
            }
            found.push(extent);
            true
        })?;
    }
    Ok((found, complete_to))
}

/// Keeps the row that says how much of the chunk the file uses.
fn count_file(tx: &mut Tx<'_>, chunk: ChunkId, inode: InodeId, bytes: i64) -> Result<(), Fault> {
    if bytes == 0 {
        return Ok(());
    }
    let before = tx.get(&ChunkFileRow::key(chunk, inode))?.map_or(0, |row| row.bytes);
    match shifted(before, bytes, "bytes of a chunk that a file uses")? {
        0 => tx.delete(ChunkFileRow::key(chunk, inode)),
        bytes => tx.put(ChunkFileRow::key(chunk, inode), &ChunkFileRow { bytes })?,
    }
    Ok(())
}

/// A counter after a change. One that would go below zero has been kept wrongly: damage.
pub(crate) fn shifted(counter: u64, by: i64, what: &str) -> Result<u64, Fault> {
    counter.checked_add_signed(by).ok_or_else(|| Fault(format!("{what}: {counter} cannot change by {by}")))
}

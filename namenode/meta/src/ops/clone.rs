//! CloneRange: a file gets the extents of another range, of this or another file. No byte is copied.

use std::collections::BTreeMap;

use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ChunkId, ErrorKind, Extent, InodeId, SessionId};

use super::fallocate::{range_end, touched};
use crate::apply::Client;
use crate::rows::{self, ChunkState, Content, FileSpan, InodeRow};
use crate::tree;
use crate::tx::{Failure, Tx, refuse};
use crate::usage::{Usage, in_range, shifted};
use crate::view::{Fault, View};

/// Where a range begins.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub inode: InodeId,
    pub offset: u64,
}

/// The leader has verified the grants: to read the source, to write the other.
pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    source: Place,
    to: Place,
    len: u64,
) -> Result<OpReply, Failure> {
    range_end(source.offset, len)?;
    range_end(to.offset, len)?;
    let Content::File { size_bytes: source_size, .. } = tree::live_inode(tx.view(), source.inode)?.content else {
        return Err(no_file(source.inode));
    };
    let mut row = tree::live_inode(tx.view(), to.inode)?;
    let Content::File { size_bytes, mapped_bytes, replication } = &mut row.content else {
        return Err(no_file(to.inode));
    };
    let len = len.min(source_size.saturating_sub(source.offset));
    if source.inode == to.inode && source.offset < to.offset + len && to.offset < source.offset + len {
        return Err(refuse(ErrorKind::InvalidArgument, "the ranges overlap"));
    }

    let source_file = FileSpan { inode: source.inode, size_bytes: source_size };
    let (shared, shared_to) = shareable(tx.view(), client.session, source_file, source.offset, source.offset + len)?;
    let mut done_bytes = shared_to - source.offset;
    if done_bytes > 0 {
        let (mut usage, mut file) = (Usage::default(), FileSpan { inode: to.inode, size_bytes: *size_bytes });
        let (mut grown, emptied_to) = usage.punch(tx, file, to.offset, to.offset + done_bytes)?;
        done_bytes = emptied_to - to.offset;
        for extent in shared.iter().filter_map(|extent| extent.clip(source.offset, source.offset + done_bytes)) {
            let moved = Extent { file_offset: extent.file_offset - source.offset + to.offset, ..extent };
            grown += usage.write(tx, file, *replication, &moved, false)?;
            file.size_bytes = file.size_bytes.max(moved.file_end());
        }
        usage.settle(tx)?;
        *mapped_bytes = shifted(*mapped_bytes, grown, "mapped bytes of a file")?;
        *size_bytes = (*size_bytes).max(to.offset + done_bytes);
        row.version += 1;
        touched(client, &mut row);
        tx.put(InodeRow::key(to.inode), &row)?;
    }
    Ok(OpReply::Ranged { attr: row.attr(to.inode), done_bytes })
}

/// The source's extents in the range that may be shared, and up to where these are all.
fn shareable(
    view: &dyn View,
    session: SessionId,
    source: FileSpan,
    start: u64,
    end: u64,
) -> Result<(Vec<Extent>, u64), Fault> {
    let (mut extents, complete_to) = in_range(view, source, start, end)?;
    let mut chunks: BTreeMap<ChunkId, bool> = BTreeMap::new();
    for (number, extent) in extents.iter().enumerate() {
        let may = match chunks.get(&extent.chunk) {
            Some(may) => *may,
            None => {
                let row = rows::chunk(view, extent.chunk)?
                    .ok_or_else(|| Fault(format!("an extent names chunk {}, which does not exist", extent.chunk)))?;
                // Only its own session can see to it that an open chunk is synced.
                let may = row.is_sealed() || row.state == ChunkState::Open { session };
                chunks.insert(extent.chunk, may);
                may
            }
        };
        if !may {
            let reached = extent.file_offset.max(start);
            extents.truncate(number);
            return Ok((extents, reached));
        }
    }
    Ok((extents, complete_to))
}

fn no_file(inode: InodeId) -> Failure {
    refuse(ErrorKind::InvalidArgument, format!("inode {inode} is not a regular file"))
}

#[cfg(test)]
mod tests;

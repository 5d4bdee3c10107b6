//! Commit: appended bytes become part of files, and chunks are sealed. All of it or nothing, but for
//! files that have vanished meanwhile: they are passed over, so that deleting one file does not fail
//! the writing of others that share its pack.

use std::collections::BTreeSet;

use dfs_proto::limits::{CHUNK_MAX, COMMIT_CHUNKS_MAX, COMMIT_EXTENTS_MAX, COMMIT_FILES_MAX, FILE_MAX};
use dfs_proto::msg::meta::{ChunkCommit, FileCommit, OpReply};
use dfs_proto::{Attr, ChunkId, ErrorKind, Extent, FileKind, InodeId, SessionId, Timestamp, XattrKinds};

use crate::apply::Client;
use crate::permission::without_set_id;
use crate::rows::{self, ChunkRow, ChunkState, Content, FileSpan, InodeRow, NodeChunkRow, RECLAIM_QUEUE};
use crate::tx::{Failure, Tx, refuse};
use crate::usage::{Usage, shifted};
use crate::view::Fault;
use crate::{chunks, extents, xattrs};

pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    chunk_commits: &[ChunkCommit],
    file_commits: &[FileCommit],
) -> Result<OpReply, Failure> {
    require_bounds(chunk_commits, file_commits)?;
    for commit in chunk_commits {
        lengthen(tx, client.session, commit)?;
    }
    let mut usage = Usage::default();
    for commit in file_commits {
        change_file(tx, client, commit, &mut usage)?;
    }
    usage.settle(tx)?;
    // Last, when it is known whether anything in the chunk lives.
    for commit in chunk_commits.iter().filter(|commit| commit.seal) {
        let row = open_chunk(tx, client.session, commit.chunk)?;
        chunks::seal(tx, commit.chunk, row, commit.replicas.clone())?;
    }
    let files = file_commits.iter().map(|commit| attr_after(tx, commit.inode)).collect::<Result<_, _>>()?;
    Ok(OpReply::Committed { files })
}

fn require_bounds(chunk_commits: &[ChunkCommit], file_commits: &[FileCommit]) -> Result<(), Failure> {
    let extents: usize = file_commits.iter().map(|commit| commit.extents.len()).sum();
    if chunk_commits.len() > COMMIT_CHUNKS_MAX || file_commits.len() > COMMIT_FILES_MAX || extents > COMMIT_EXTENTS_MAX
    {
        return Err(refuse(ErrorKind::Malformed, "too many chunks, files or extents in one commit"));
    }
    let chunks: BTreeSet<ChunkId> = chunk_commits.iter().map(|commit| commit.chunk).collect();
    if chunks.len() != chunk_commits.len() {
        return Err(refuse(ErrorKind::Malformed, "a chunk is committed twice"));
    }
    Ok(())
}

/// Moves the committed length on.
fn lengthen(tx: &mut Tx<'_>, session: SessionId, commit: &ChunkCommit) -> Result<(), Failure> {
    let mut row = open_chunk(tx, session, commit.chunk)?;
    let chunk = commit.chunk;
    if row.epoch != commit.epoch {
        let message = format!("chunk {chunk} is at epoch {}, not {}", row.epoch, commit.epoch);
        return Err(refuse(ErrorKind::StaleEpoch, message));
    }
    if commit.len < row.len || commit.len > CHUNK_MAX {
        let message = format!("chunk {chunk} has {} bytes committed and cannot have {}", row.len, commit.len);
        return Err(refuse(ErrorKind::Malformed, message));
    }
    let named: BTreeSet<_> = commit.replicas.iter().collect();
    if named.is_empty()
        || named.len() != commit.replicas.len()
        || commit.replicas.iter().any(|node| !row.replicas.contains(node))
    {
        return Err(refuse(
            ErrorKind::Malformed,
            format!("the replicas of chunk {chunk} are not among those allocated"),
        ));
    }
    // The bytes may have been acknowledged to an application by now, on the strength of so many copies.
    let required = usize::from(tx.config()?.min_copies).min(row.replicas.len());
    if named.len() < required {
        let message = format!("chunk {chunk} would be left with {} replicas, and {required} are required", named.len());
        return Err(refuse(ErrorKind::Malformed, message));
    }
    // Those left out count no more. A seal tells them so itself; until there is one they stay where they are.
    if !commit.seal {
        for node in row.replicas.extract_if(.., |node| !named.contains(node)) {
            tx.delete(NodeChunkRow::key(node, chunk));
        }
    }
    row.len = commit.len;
    tx.put(ChunkRow::key(chunk), &row)?;
    Ok(())
}

/// A chunk that this session may append to.
fn open_chunk(tx: &Tx<'_>, session: SessionId, chunk: ChunkId) -> Result<ChunkRow, Failure> {
    match rows::chunk(tx.view(), chunk)? {
        Some(row) if row.state == ChunkState::Open { session } => Ok(row),
        _ => Err(refuse(ErrorKind::StaleEpoch, format!("chunk {chunk} is not open for this session"))),
    }
}

fn change_file(tx: &mut Tx<'_>, client: &Client<'_>, commit: &FileCommit, usage: &mut Usage) -> Result<(), Failure> {
    let inode = commit.inode;
    let Some(mut row) = committable(tx, inode)? else { return Ok(()) };
    let Content::File { mut size_bytes, mut mapped_bytes, replication } = row.content else {
        return Err(refuse(ErrorKind::InvalidArgument, format!("inode {inode} is not a regular file")));
    };

    for extent in placed(tx, client.session, commit, size_bytes)? {
        let grown = usage.write(tx, FileSpan { inode, size_bytes }, replication, &extent, mapped_bytes == 0)?;
        mapped_bytes = shifted(mapped_bytes, grown, "mapped bytes of a file")?;
        size_bytes = size_bytes.max(extent.file_end());
    }

    row.content = Content::File { size_bytes, mapped_bytes, replication };
    if !commit.extents.is_empty() {
        row.version += 1;
        if client.caller.uid != 0 {
            row.mode = without_set_id(row.mode);
        }
        xattrs::drop_capability(tx, inode, &mut row)?;
    }
    row.mtime = commit.mtime.unwrap_or(row.mtime);
    row.ctime = client.now;
    tx.put(InodeRow::key(inode), &row)?;
    Ok(())
}

/// The extents of one file in order, at their places in the file, found sound.
fn placed(tx: &Tx<'_>, session: SessionId, commit: &FileCommit, size_bytes: u64) -> Result<Vec<Extent>, Failure> {
    let base = if commit.append { size_bytes } else { 0 };
    let mut found = Vec::with_capacity(commit.extents.len());
    for extent in &commit.extents {
        let end = extent.file_offset.checked_add(base).and_then(|start| start.checked_add(u64::from(extent.len)));
        if end.is_none_or(|end| end > FILE_MAX) {
            return Err(refuse(ErrorKind::FileTooLarge, format!("a file has at most {FILE_MAX} bytes")));
        }
        let extent = Extent { file_offset: base + extent.file_offset, ..*extent };
        if !extent.is_sound() || extent.chunk_end() > open_chunk(tx, session, extent.chunk)?.len {
            return Err(refuse(ErrorKind::Malformed, format!("{extent:?} is not within committed bytes")));
        }
        found.push(extent);
    }
    found.sort_by_key(|extent| extent.file_offset);
    if found.windows(2).any(|pair| pair[0].file_end() > pair[1].file_offset) {
        return Err(refuse(ErrorKind::Malformed, format!("extents of inode {} overlap", commit.inode)));
    }
    Ok(extents::coalesce(found))
}

/// The file, unless it has vanished. One without a name that somebody holds open has not.
fn committable(tx: &Tx<'_>, inode: InodeId) -> Result<Option<InodeRow>, Fault> {
    Ok(rows::inode(tx.view(), inode)?.filter(|row| row.orphan != Some(RECLAIM_QUEUE)))
}

/// What the client is told of the file. One that has vanished shows no links and no bytes.
fn attr_after(tx: &Tx<'_>, inode: InodeId) -> Result<Attr, Fault> {
    Ok(committable(tx, inode)?.map_or_else(|| vanished(inode), |row| row.attr(inode)))
}

fn vanished(inode: InodeId) -> Attr {
    let never = Timestamp::default();
    Attr {
        inode,
        kind: FileKind::File,
        mode: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        size_bytes: 0,
        mapped_bytes: 0,
        atime: never,
        mtime: never,
        ctime: never,
        crtime: never,
        version: 0,
        replication: 0,
        xattrs: XattrKinds::NONE,
    }
}

#[cfg(test)]
mod tests;

//! Changes of a file's ranges that move no bytes where they can: fallocate, and copies that share.
//!
//! They work on what is committed. So this client's own bytes are committed first, and no write comes in between.

use std::sync::Arc;

use dfs_proto::msg::meta::{Op, OpReply};
use dfs_proto::{Caller, ErrorKind};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Error, Result, unexpected_answer};
use crate::file::Fallocate;
use crate::open::{FileState, Handle};
use crate::write::file::{is_outdated, require_size};
use crate::write::state::UPLOAD_MAX;

/// Ranges shorter than this are copied: an extent for good costs more than writing the bytes again.
const SHARE_MIN: u64 = 4 << 10;

/// Bytes copied through this client before it asks again whether what follows can be shared.
const COPY_MAX: u64 = 8 << 20;

impl Client {
    pub async fn fallocate(
        self: &Arc<Self>,
        caller: &Caller,
        file: &Arc<FileState>,
        offset: u64,
        len: u64,
        how: Fallocate,
    ) -> Result<()> {
        require_size(offset, len)?;
        let deadline = self.deadline();
        let _alone = deadline.bound("writes are under way", file.resize.write()).await?;
        if how.zero {
            // Also what is to be taken away again: its end may be the end of the file.
            self.flush(file, deadline).await?;
        }
        let mut done = 0;
        while done < len {
            let op = Op::Fallocate {
                inode: file.inode,
                grant: self.grant(file, true).await?,
                offset: offset + done,
                len: len - done,
                zero: how.zero,
                keep_size: how.keep_size,
            };
            match self.ranged(caller, file, op).await {
                Ok(0) => return Err(unexpected_answer("Fallocate")),
                Ok(more) => done += more,
                Err(error) => open_again(error, &[file], deadline)?,
            }
        }
        Ok(())
    }

    /// Shares or copies the front of the range. 0 only at the end of the source.
    pub async fn copy_range(
        self: &Arc<Self>,
        caller: &Caller,
        from: &Handle,
        source_offset: u64,
        to: &Arc<FileState>,
        offset: u64,
        len: u64,
    ) -> Result<u64> {
        require_size(offset, len)?;
        require_size(source_offset, len)?;
        let end = from.file.inner.lock().merged_attr().size_bytes;
        let left = len.min(end.saturating_sub(source_offset));
        if Arc::ptr_eq(&from.file, to) && source_offset < offset + left && offset < source_offset + left {
            return Err(Error::new(ErrorKind::InvalidArgument, "the ranges overlap"));
        }
        if left >= SHARE_MIN {
            let shared = self.share(caller, &from.file, source_offset, to, offset, left).await?;
            if shared > 0 {
                return Ok(shared);
            }
        }
        self.copy(from, source_offset, to, offset, left.min(COPY_MAX)).await
    }

    /// How much of the front of the range is shared now; 0 if that may not be.
    async fn share(
        self: &Arc<Self>,
        caller: &Caller,
        from: &Arc<FileState>,
        source_offset: u64,
        to: &Arc<FileState>,
        offset: u64,
        len: u64,
    ) -> Result<u64> {
        let deadline = self.deadline();
        // Only one of the two files is locked, so that copies to and fro do not wait for each other.
        let _alone = deadline.bound("writes are under way", to.resize.write()).await?;
        for file in [from, to] {
            if !file.inner.lock().writes.is_empty() {
                self.flush(file, deadline).await?;
            }
        }
        // What a sync of the source would wait for, a sync of the copy has to.
        let unsynced: Vec<_> = {
            let open = self.writes.open_writers().into_iter().map(|writer| (writer.acked(), writer));
            let open: Vec<_> = open.map(|(end, writer)| (writer, end)).collect();
            from.inner.lock().unsynced.values().cloned().chain(open).collect()
        };
        {
            let mut inner = to.inner.lock();
            for (writer, end) in unsynced.into_iter().filter(|(writer, end)| !writer.is_synced(*end)) {
                let kept = inner.unsynced.entry(writer.chunk()).or_insert((writer, 0));
                kept.1 = kept.1.max(end);
            }
        }
        loop {
            let op = Op::CloneRange {
                source: from.inode,
                source_grant: self.grant(from, false).await?,
                source_offset,
                inode: to.inode,
                grant: self.grant(to, true).await?,
                offset,
                len,
            };
            match self.ranged(caller, to, op).await {
                Err(error) => open_again(error, &[from, to], deadline)?,
                done => return done,
            }
        }
    }

    /// One command; how much of its range is done.
    async fn ranged(self: &Arc<Self>, caller: &Caller, file: &FileState, op: Op) -> Result<u64> {
        match self.mutate(caller, op).await? {
            OpReply::Ranged { attr, done_bytes } => {
                file.inner.lock().observe(&attr);
                Ok(done_bytes)
            }
            _ => Err(unexpected_answer("a change of a range")),
        }
    }

    async fn copy(
        self: &Arc<Self>,
        from: &Handle,
        source_offset: u64,
        to: &Arc<FileState>,
        offset: u64,
        len: u64,
    ) -> Result<u64> {
        let mut done = 0;
        while done < len {
            let bytes = self.read(from, source_offset + done, (len - done).min(UPLOAD_MAX) as usize).await?;
            let bytes = bytes.complete()?;
            if bytes.is_empty() {
                break;
            }
            let read = bytes.len() as u64;
            self.write(to, offset + done, bytes).await?;
            done += read;
        }
        Ok(done)
    }
}

/// If the error is that grants are no longer good, because their key has been retired or their session is over, the
/// files are opened again for the next try.
fn open_again(error: Error, files: &[&Arc<FileState>], deadline: Deadline) -> Result<()> {
    if !is_outdated(error.kind) || deadline.passed() {
        return Err(error);
    }
    for file in files {
        file.inner.lock().drop_grants();
    }
    Ok(())
}

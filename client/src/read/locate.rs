//! Where a file's bytes are: extents and chunk locations, from the cache or the namenode.

use std::sync::Arc;

use dfs_proto::msg::meta::{Answer, ChunkLocation, FileMap, Query};
use dfs_proto::{Caller, ChunkId, ErrorKind, Extent, Grant};

use crate::client::Client;
use crate::deadline::timed_out;
use crate::error::{Result, unexpected_answer};
use crate::open::FileState;

/// Bytes of the file that one question covers, if the read does not want more: four chunks.
const LOCATE_BYTES: u64 = 256 << 20;

impl Client {
    /// The extents in `[start, end)`, cut to it.
    pub async fn extents(self: &Arc<Self>, file: &Arc<FileState>, start: u64, end: u64) -> Result<Vec<Extent>> {
        let deadline = self.deadline();
        loop {
            let from = {
                let inner = file.inner.lock();
                match inner.map.get(start, end) {
                    Some(extents) => return Ok(extents),
                    None => inner.map.known_to(start),
                }
            };
            let len = (end - from).max(LOCATE_BYTES);
            let ask = |grant| Query::Locate { inode: file.inode, grant, offset: from, len };
            let Answer::Map(map) = self.ask_about(file, ask).await? else {
                return Err(unexpected_answer("Locate"));
            };
            self.learn(file, from, from.saturating_add(len), map);
            if deadline.passed() {
                return Err(timed_out("looking for the file's bytes"));
            }
        }
    }

    /// Where the chunk is by now. `None` if the file has nothing in it any more.
    pub(super) async fn relocate(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        chunk: ChunkId,
    ) -> Result<Option<ChunkLocation>> {
        let ask = |grant| Query::LocateChunks { inode: file.inode, grant, chunks: vec![chunk] };
        match self.ask_about(file, ask).await {
            Ok(Answer::Chunks(locations)) => {
                let location = locations.into_iter().find(|location| location.chunk == chunk);
                if let Some(location) = &location {
                    self.reads.remember(location.clone());
                }
                Ok(location)
            }
            Ok(_) => Err(unexpected_answer("LocateChunks")),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A question that brings the file's read grant; asked again with a new one after a session expired.
    pub(super) async fn ask_about(
        self: &Arc<Self>,
        file: &FileState,
        query: impl Fn(Grant) -> Query,
    ) -> Result<Answer> {
        let deadline = self.deadline();
        loop {
            let grant = self.grant(file, false).await?;
            let session = self.session(deadline).await?;
            if grant.session != session.id() {
                continue;
            }
            match self.query_in(&session, &Caller::ROOT, query(grant), deadline).await {
                Err(error) if error.kind == ErrorKind::SessionExpired => self.session_expired(session.id()),
                Err(error) if error.kind == ErrorKind::CapabilityExpired && !deadline.passed() => {
                    file.inner.lock().drop_grants();
                }
                other => return other,
            }
        }
    }

    /// What came with an open: where the file's front is.
    pub fn learn_front(&self, file: &FileState, front: Option<Box<FileMap>>) {
        if let Some(front) = front {
            self.learn(file, 0, u64::MAX, *front);
        }
    }

    pub(super) fn learn(&self, file: &FileState, start: u64, end: u64, map: FileMap) {
        let mut inner = file.inner.lock();
        // Asked before, and answered after, a commit of our own: ask again.
        if map.version < inner.attr.version {
            return;
        }
        if map.version > inner.attr.version {
            inner.map.clear();
            inner.blocks.clear();
            inner.attr.version = map.version;
            inner.attr.size_bytes = map.size_bytes;
        }
        inner.map.learn(start, end, &map);
        drop(inner);
        let mut behind: Vec<(ChunkId, u32)> =
            map.extents.iter().map(|extent| (extent.chunk, extent.chunk_end())).collect();
        behind.sort_unstable();
        for location in map.chunks {
            // The answer is of one moment: an extent that reaches further than its chunk names what is lost.
            let last =
                behind.partition_point(|(chunk, _)| *chunk <= location.chunk).checked_sub(1).map(|at| behind[at]);
            if last.is_some_and(|(chunk, end)| chunk == location.chunk && end > location.len) {
                self.reads.ends_at(location.chunk, location.len);
            }
            self.reads.remember(location);
        }
    }
}

//! Where a file has data and where holes: from its extents, and from this client's uncommitted bytes.

use std::sync::Arc;

use dfs_proto::msg::meta::{Answer, Query};

use crate::client::Client;
use crate::deadline::timed_out;
use crate::error::{Result, unexpected_answer};
use crate::open::FileState;

/// Extents looked at in one go: most seeks end at the first.
const EXTENTS_MAX: usize = 64;

impl Client {
    /// The first byte at or behind `offset` that is no hole.
    pub async fn seek_data(self: &Arc<Self>, file: &Arc<FileState>, offset: u64) -> Result<Option<u64>> {
        let Some(view) = View::of(file, offset) else { return Ok(None) };
        // Uncommitted bytes are data, whatever is below them: what lies in front of the first is asked for.
        let own = view.own.first().map(|&(start, _)| start);
        let until = own.unwrap_or(view.size);
        let mut at = offset;
        while at < until {
            let (extents, known_to) = self.map_from(file, at, until).await?;
            if let Some(&(start, _)) = extents.first() {
                return Ok(Some(start));
            }
            at = known_to;
        }
        Ok(own)
    }

    /// The first byte at or behind `offset` that is in a hole, or the end of the file.
    pub async fn seek_hole(self: &Arc<Self>, file: &Arc<FileState>, offset: u64) -> Result<Option<u64>> {
        let Some(view) = View::of(file, offset) else { return Ok(None) };
        let mut at = offset;
        let mut own = view.own.iter().peekable();
        while at < view.size {
            if let Some((_, end)) = own.next_if(|(start, _)| *start <= at) {
                at = at.max(*end);
                continue;
            }
            let until = own.peek().map_or(view.size, |(start, _)| *start);
            let (extents, known_to) = self.map_from(file, at, until).await?;
            for (start, end) in extents {
                if start > at {
                    return Ok(Some(at));
                }
                at = end;
            }
            if at < known_to {
                return Ok(Some(at));
            }
        }
        Ok(Some(view.size))
    }

    /// The committed ranges from `at` on, cut to `[at, until)`, and up to where these are all: beyond `at`.
    async fn map_from(self: &Arc<Self>, file: &Arc<FileState>, at: u64, until: u64) -> Result<(Vec<(u64, u64)>, u64)> {
        let deadline = self.deadline();
        loop {
            {
                let inner = file.inner.lock();
                let (extents, known_to) = inner.map.front(at, until, EXTENTS_MAX);
                if known_to > at {
                    let ranges = extents.iter().map(|extent| (extent.file_offset, extent.file_end())).collect();
                    return Ok((ranges, known_to));
                }
            }
            if deadline.passed() {
                return Err(timed_out("looking for the file's holes"));
            }
            // All the rest, however far: a hole may be many TiB long.
            let len = until - at;
            let ask = |grant| Query::Locate { inode: file.inode, grant, offset: at, len };
            let Answer::Map(map) = self.ask_about(file, ask).await? else {
                return Err(unexpected_answer("Locate"));
            };
            self.learn(file, at, until, map);
        }
    }
}

/// The file at one moment. What is committed afterwards is at least as new.
struct View {
    size: u64,
    /// Where uncommitted bytes are, from the offset on.
    own: Vec<(u64, u64)>,
}

impl View {
    /// `None` if the file ends at or before `offset`.
    fn of(file: &FileState, offset: u64) -> Option<View> {
        let mut inner = file.inner.lock();
        // Whoever has the file open may know where it has holes, also without the right to read.
        inner.allow_own_reads();
        let size = inner.merged_attr().size_bytes;
        (offset < size).then(|| View { size, own: inner.writes.ranges(offset, size) })
    }
}

//! What one file's written bytes go through until they are committed. Decides and does no IO.
//!
//! A *segment* is a range of the file with bytes that are not committed yet. Segments never overlap:
//! a write cuts what it covers out of older ones, whatever has become of those. So whichever of two
//! uploads is acknowledged first, the order in which they are committed cannot matter.
//!
//! ```text
//! write -> Dirty -> Uploading -> Acked -> (committing) -> gone: the namenode has it
//!            ^          |          |           |
//!            +--failure-+---lost---+           +-- refused: Acked again
//! ```
//! The bytes stay in memory all the way, so reads can overlay them and a failed chunk can be resent.

use std::collections::BTreeMap;

use bytes::Bytes;
use dfs_proto::{ChunkId, Extent, Timestamp};

use crate::ranges::RangeSet;

/// Bytes in one upload at most: it is the unit of resending and of what a lane queues.
pub(crate) const UPLOAD_MAX: u64 = 1 << 20;

/// Unbroken dirty bytes that are uploaded without waiting for a flush.
const RUN_MIN: u64 = 1 << 20;

/// Runs of at least this go through a chain into the file's own chunk; shorter ones share the pack.
pub(crate) const STREAM_MIN: u64 = 256 << 10;

/// Small writes are gathered into segments of up to this, by copying.
const GATHER_MAX: usize = 64 << 10;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct UploadId(pub u64);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lane {
    /// The file's own chunk, through a chain of datanodes.
    Stream,
    /// The client's shared chunk, by fan-out.
    Pack,
}

/// Bytes to append to some chunk, as one unit.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub id: UploadId,
    pub lane: Lane,
    /// The bytes, in order.
    pub pieces: Vec<Bytes>,
}

/// Everything written up to some moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mark(u64);

#[derive(Default, Debug)]
pub(crate) struct WriteState {
    /// By file offset.
    segments: BTreeMap<u64, Segment>,
    /// Where segments are `Dirty`.
    dirty: RangeSet,
    /// The part of `dirty` that is to be uploaded now.
    due: RangeSet,
    /// File ranges of the uploads under way.
    uploads: BTreeMap<UploadId, (u64, u64)>,
    /// The commit under way.
    commit: Option<Commit>,
    /// Raised by each write.
    sequence: u64,
    next_upload: u64,
    /// Where the last stream upload ended: what goes on there joins it, however short.
    stream_end: Option<u64>,
    /// Bytes in all segments.
    bytes: u64,
    /// Of these: `Acked` and not being committed.
    acked_bytes: u64,
    /// When the last write happened.
    mtime: Option<Timestamp>,
}

#[derive(Debug)]
struct Segment {
    data: Data,
    /// Of the oldest write in it.
    sequence: u64,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Dirty,
    Uploading(UploadId),
    Acked {
        chunk: ChunkId,
        /// Offset in the chunk.
        at: u32,
        committing: bool,
    },
}

#[derive(Debug)]
struct Commit {
    /// As they were sent. A write may since have cut the segments they came from.
    extents: Vec<Extent>,
    started: u64,
}

#[derive(Debug)]
enum Data {
    Shared(Bytes),
    /// Small writes being gathered.
    Growing(Vec<u8>),
}

impl WriteState {
    /// Takes a write. Returns how many bytes of older segments it replaced.
    pub fn write(&mut self, offset: u64, bytes: Bytes, now: Timestamp) -> u64 {
        if bytes.is_empty() {
            return 0;
        }
        let end = offset + bytes.len() as u64;
        let replaced = self.cut(offset, end);
        self.sequence += 1;
        self.mtime = Some(now);
        self.bytes += bytes.len() as u64;
        if !self.gather(offset, &bytes) {
            self.segments
                .insert(offset, Segment { data: Data::Shared(bytes), sequence: self.sequence, place: Place::Dirty });
        }
        self.dirty.insert(offset, end);
        if let Some((start, end)) = self.dirty.containing(offset).filter(|(start, end)| end - start >= RUN_MIN) {
            self.due.insert(start, end);
        }
        replaced
    }

    /// Drops everything at and behind `size`. Returns how many bytes that were. What is being committed
    /// is committed all the same; whoever cuts the file waits for that first.
    pub fn truncate(&mut self, size: u64) -> u64 {
        self.cut(size, u64::MAX)
    }

    /// Drops everything. Returns how many bytes that were.
    pub fn discard(&mut self) -> u64 {
        self.uploads.clear();
        self.stream_end = None;
        self.cut(0, u64::MAX)
    }

    /// All that is dirty is to be uploaded now. `is_done` tells when it is committed.
    pub fn force(&mut self) -> Mark {
        for (start, end) in self.dirty.iter() {
            self.due.insert(start, end);
        }
        Mark(self.sequence)
    }

    /// Whether nothing written up to the mark is still on its way.
    pub fn is_done(&self, mark: Mark) -> bool {
        !self.segments.values().any(|segment| segment.sequence <= mark.0)
            && self.commit.as_ref().is_none_or(|commit| commit.started > mark.0)
    }

    /// Whether everything written up to the mark is on datanodes, committed or not.
    pub fn is_uploaded(&self, mark: Mark) -> bool {
        self.unsent(mark).next().is_none()
    }

    /// How many bytes written up to the mark are on no datanode yet.
    pub fn unsent_bytes(&self, mark: Mark) -> u64 {
        self.unsent(mark).map(Segment::len).sum()
    }

    fn unsent(&self, mark: Mark) -> impl Iterator<Item = &Segment> {
        let is_unsent =
            move |segment: &&Segment| segment.sequence <= mark.0 && !matches!(segment.place, Place::Acked { .. });
        // What is due goes out in the order of the file: what is left is near its end.
        self.segments.values().rev().filter(is_unsent)
    }

    pub fn is_empty(&self) -> bool {
        self.segments.is_empty() && self.commit.is_none()
    }

    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// All uncommitted bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn acked_bytes(&self) -> u64 {
        self.acked_bytes
    }

    /// Where the last uncommitted byte ends; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.segments.last_key_value().map_or(0, |(start, segment)| start + segment.len())
    }

    /// Sets the time that the next commit gives the file, `None` to leave it alone. What it would have given.
    pub fn replace_mtime(&mut self, mtime: Option<Timestamp>) -> Option<Timestamp> {
        std::mem::replace(&mut self.mtime, mtime)
    }

    /// When the last uncommitted byte was written.
    pub fn mtime(&self) -> Option<Timestamp> {
        self.mtime.filter(|_| !self.segments.is_empty())
    }

    /// Where uncommitted bytes are in `[start, end)`, in order; neighbours may touch.
    pub fn ranges(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let first = self.segments.range(..=start).next_back().map_or(start, |(&first, _)| first);
        let found = self.segments.range(first..end.max(first));
        found
            .map(|(&offset, segment)| (start.max(offset), end.min(offset + segment.len())))
            .filter(|(from, to)| from < to)
            .collect()
    }

    /// The uncommitted bytes in `[start, end)`, by file offset.
    pub fn overlay(&self, start: u64, end: u64) -> Vec<(u64, Bytes)> {
        let first = self.segments.range(..=start).next_back().map_or(start, |(&first, _)| first);
        self.segments
            .range(first..end.max(first))
            .filter_map(|(&offset, segment)| {
                let from = start.max(offset);
                let to = end.min(offset + segment.len());
                (from < to).then(|| (from, segment.data.slice((from - offset) as usize, (to - offset) as usize)))
            })
            .collect()
    }

    /// The next upload that is due, if any.
    pub fn next_upload(&mut self) -> Option<Upload> {
        let (start, due_end) = self.due.first()?;
        let end = due_end.min(start + UPLOAD_MAX);
        // What is due is dirty, so a run is found; it may reach further than what is due.
        let run_end = self.dirty.containing(start).map_or(end, |(_, end)| end);
        let joins = self.stream_end == Some(start);
        let lane = if joins || run_end - start >= STREAM_MIN { Lane::Stream } else { Lane::Pack };
        if lane == Lane::Stream {
            self.stream_end = Some(end);
        }
        self.split(start);
        self.split(end);
        self.dirty.remove(start, end);
        self.due.remove(start, end);
        self.next_upload += 1;
        let id = UploadId(self.next_upload);
        self.uploads.insert(id, (start, end));
        let pieces = self
            .segments
            .range_mut(start..end)
            .map(|(_, segment)| {
                segment.place = Place::Uploading(id);
                segment.data.share()
            })
            .collect();
        Some(Upload { id, lane, pieces })
    }

    /// An upload is on every live replica of `chunk`, from chunk offset `at`.
    pub fn handle_ack(&mut self, id: UploadId, chunk: ChunkId, at: u32) {
        let Some((start, end)) = self.uploads.remove(&id) else { return };
        for (offset, segment) in self.segments.range_mut(start..end) {
            if segment.place == Place::Uploading(id) {
                segment.place = Place::Acked { chunk, at: at + (offset - start) as u32, committing: false };
                self.acked_bytes += segment.len();
            }
        }
    }

    /// An upload did not get through: it is due again.
    pub fn handle_failure(&mut self, id: UploadId) {
        let Some((start, end)) = self.uploads.remove(&id) else { return };
        self.make_due(start, end, |place| place == Place::Uploading(id));
    }

    /// Too few replicas of `chunk` are left: what is acknowledged there is due again. What is being
    /// committed stays, as if the nodes had died a moment later.
    pub fn handle_lost(&mut self, chunk: ChunkId) {
        self.make_due(
            0,
            u64::MAX,
            |place| matches!(place, Place::Acked { chunk: c, committing: false, .. } if c == chunk),
        );
    }

    /// The file's own chunk is closed: what follows need not join it.
    pub fn handle_stream_closed(&mut self) {
        self.stream_end = None;
    }

    /// Whether something acknowledged on `chunk` waits for a commit.
    pub fn waits_on(&self, chunk: ChunkId) -> bool {
        self.acked_bytes > 0
            && self
                .segments
                .values()
                .any(|segment| matches!(segment.place, Place::Acked { chunk: c, committing: false, .. } if c == chunk))
    }

    /// Starts a commit of at most `extents_max` extents of what is acknowledged. Empty if nothing is, or
    /// if a commit is under way.
    pub fn take_commit(&mut self, extents_max: usize) -> Vec<Extent> {
        let mut extents: Vec<Extent> = Vec::new();
        if self.commit.is_some() || self.acked_bytes == 0 {
            return extents;
        }
        for (&file_offset, segment) in &mut self.segments {
            let len = segment.len() as u32;
            let Place::Acked { chunk, at, committing } = &mut segment.place else { continue };
            let extent = Extent { file_offset, chunk: *chunk, chunk_offset: *at, len };
            if let Some(last) = extents.last_mut().filter(|last| last.continues_with(&extent)) {
                last.len += len;
            } else if extents.len() < extents_max {
                extents.push(extent);
            } else {
                break;
            }
            *committing = true;
            self.acked_bytes -= u64::from(len);
        }
        if !extents.is_empty() {
            self.commit = Some(Commit { extents: extents.clone(), started: self.sequence });
        }
        extents
    }

    /// The commit is in the file. Returns the bytes set free and the extents that were committed.
    pub fn handle_committed(&mut self) -> (u64, Vec<Extent>) {
        let Some(commit) = self.commit.take() else { return (0, Vec::new()) };
        let before = self.bytes;
        self.segments.retain(|_, segment| {
            let done = matches!(segment.place, Place::Acked { committing: true, .. });
            if done {
                self.bytes -= segment.len();
            }
            !done
        });
        (before - self.bytes, commit.extents)
    }

    /// The commit was refused: its bytes wait again.
    pub fn handle_refused(&mut self) {
        self.commit = None;
        for segment in self.segments.values_mut() {
            let len = segment.len();
            if let Place::Acked { committing: committing @ true, .. } = &mut segment.place {
                *committing = false;
                self.acked_bytes += len;
            }
        }
    }

    /// Appends to the segment that ends at `offset`, if both are small.
    fn gather(&mut self, offset: u64, bytes: &Bytes) -> bool {
        if bytes.len() >= GATHER_MAX {
            return false;
        }
        let Some((&start, last)) = self.segments.range_mut(..offset).next_back() else { return false };
        if start + last.len() != offset || last.place != Place::Dirty || last.data.len() + bytes.len() > GATHER_MAX {
            return false;
        }
        last.data.extend(bytes);
        true
    }

    /// Removes `[start, end)` from the segments. Returns how many bytes that were.
    fn cut(&mut self, start: u64, end: u64) -> u64 {
        self.split(start);
        self.split(end);
        let covered: Vec<u64> = self.segments.range(start..end).map(|(&offset, _)| offset).collect();
        let mut removed = 0;
        for offset in covered {
            let Some(segment) = self.segments.remove(&offset) else { continue };
            removed += segment.len();
            if matches!(segment.place, Place::Acked { committing: false, .. }) {
                self.acked_bytes -= segment.len();
            }
        }
        self.dirty.remove(start, end);
        self.due.remove(start, end);
        self.bytes -= removed;
        removed
    }

    /// Makes `at` the border of segments.
    fn split(&mut self, at: u64) {
        let Some((&start, segment)) = self.segments.range_mut(..at).next_back() else { return };
        if start + segment.len() <= at {
            return;
        }
        let head = (at - start) as usize;
        let mut bytes = segment.data.share();
        let tail = bytes.split_off(head);
        segment.data = Data::Shared(bytes);
        let place = match segment.place {
            Place::Acked { chunk, at, committing } => Place::Acked { chunk, at: at + head as u32, committing },
            // An upload knows where in the file it starts.
            place @ (Place::Dirty | Place::Uploading(_)) => place,
        };
        let sequence = segment.sequence;
        self.segments.insert(at, Segment { data: Data::Shared(tail), sequence, place });
    }

    fn make_due(&mut self, start: u64, end: u64, which: impl Fn(Place) -> bool) {
        for (&offset, segment) in self.segments.range_mut(start..end) {
            if !which(segment.place) {
                continue;
            }
            let len = segment.len();
            if matches!(segment.place, Place::Acked { committing: false, .. }) {
                self.acked_bytes -= len;
            }
            segment.place = Place::Dirty;
            self.dirty.insert(offset, offset + len);
            self.due.insert(offset, offset + len);
        }
    }
}

impl Segment {
    fn len(&self) -> u64 {
        self.data.len() as u64
    }
}

impl Data {
    fn len(&self) -> usize {
        match self {
            Data::Shared(bytes) => bytes.len(),
            Data::Growing(bytes) => bytes.len(),
        }
    }

    /// The bytes, which from here on do not grow.
    fn share(&mut self) -> Bytes {
        match self {
            Data::Shared(bytes) => bytes.clone(),
            Data::Growing(bytes) => {
                let shared = Bytes::from(std::mem::take(bytes));
                *self = Data::Shared(shared.clone());
                shared
            }
        }
    }

    fn slice(&self, from: usize, to: usize) -> Bytes {
        match self {
            Data::Shared(bytes) => bytes.slice(from..to),
            Data::Growing(bytes) => Bytes::copy_from_slice(&bytes[from..to]),
        }
    }

    fn extend(&mut self, more: &[u8]) {
        if let Data::Shared(bytes) = self {
            *self = Data::Growing(bytes.to_vec());
        }
        if let Data::Growing(bytes) = self {
            bytes.extend_from_slice(more);
        }
    }
}

#[cfg(test)]
mod tests;

//! Which bytes of the sources are read together, and what of the frames that come is used.

use std::collections::VecDeque;

use bytes::Bytes;
use dfs_proto::limits::FRAME_MAX;
use dfs_proto::msg::node::Piece;
use dfs_proto::{ChunkId, FrameHeader};

use super::framing::{End, Part};
use crate::store::StoreError;

/// How far a run reaches in its source, in bytes: worth a request of its own, and little enough that several may be
/// under way at once. Runs end at multiples of it, where full frames end as well.
const RUN_MAX: u32 = 256 << 10;

/// Bytes that nobody wants between two ranges of a run. They are read along: often they lie in the same frame.
const GAP_MAX: u32 = FRAME_MAX;

/// Bytes and runs that are read, and then written, by one call.
const BATCH_BYTES: u32 = 1 << 20;
const BATCH_RUNS: usize = 256;

/// Ranges of one source that are read in one go: they ascend and are near each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    /// Counted from 0.
    pub source: usize,
    /// At least one.
    ranges: VecDeque<Range>,
}

/// A piece, or a part of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    start: u32,
    end: u32,
    /// Whether the piece ends with it.
    ends_piece: bool,
}

/// The runs that bring the pieces in their order.
pub struct Runs<'a> {
    pieces: &'a [Piece],
    /// Bytes of the first piece that are in runs before.
    done: u32,
}

impl<'a> Runs<'a> {
    pub fn new(pieces: &'a [Piece]) -> Runs<'a> {
        Runs { pieces, done: 0 }
    }

    /// The next runs, about a mebibyte of bytes that are wanted; none behind the last piece.
    pub fn next_batch(&mut self) -> Vec<Run> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && batch.len() < BATCH_RUNS
            && let Some(run) = self.next()
        {
            bytes += run.ranges.iter().map(|range| range.end - range.start).sum::<u32>();
            batch.push(run);
        }
        batch
    }
}

impl Iterator for Runs<'_> {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let first = self.pieces.first()?;
        let mut end = first.offset + self.done;
        let run_end = (end / RUN_MAX + 1) * RUN_MAX;
        let mut ranges = VecDeque::new();
        while let Some(piece) = self.pieces.first() {
            let start = piece.offset + self.done;
            if piece.source != first.source || start < end || start - end > GAP_MAX || start >= run_end {
                break;
            }
            let piece_end = piece.offset + piece.len;
            let ends_piece = piece_end <= run_end;
            end = piece_end.min(run_end);
            ranges.push_back(Range { start, end, ends_piece });
            if !ends_piece {
                self.done = end - piece.offset;
                break;
            }
            (self.pieces, self.done) = (&self.pieces[1..], 0);
        }
        Some(Run { source: usize::from(first.source), ranges })
    }
}

impl Run {
    /// Where in the source it begins, in bytes.
    pub fn offset(&self) -> u32 {
        self.ranges.front().map_or(0, |range| range.start)
    }

    /// From its beginning to its end in the source, in bytes.
    pub fn span(&self) -> u32 {
        self.ranges.back().map_or(0, |range| range.end) - self.offset()
    }
}

/// Cuts what a run wants out of frames of its source. No byte of a frame is used that does not have its digest.
pub struct Cut {
    chunk: ChunkId,
    /// What is still wanted.
    ranges: VecDeque<Range>,
    parts: Vec<Part>,
}

impl Cut {
    /// `chunk` is the source's.
    pub fn new(chunk: ChunkId, run: &Run) -> Cut {
        Cut { chunk, ranges: run.ranges.clone(), parts: Vec::new() }
    }

    /// Takes the next frame of the source. One that nothing is wanted of is passed over unseen.
    ///
    /// # Errors
    /// `WrongDigest`, or `NotContiguous` if bytes are missing in front of it.
    pub fn take(&mut self, frame: &FrameHeader, bytes: &Bytes) -> Result<(), StoreError> {
        let Cut { chunk, ranges, parts } = self;
        if ranges.front().is_none_or(|range| range.start >= frame.end()) {
            return Ok(());
        }
        let mut verified = false;
        while let Some(range) = ranges.front_mut().filter(|range| range.start < frame.end()) {
            if range.start < frame.offset {
                return Err(StoreError::NotContiguous { chunk: *chunk, end: range.start, found: frame.offset });
            }
            if !verified && !frame.matches(*chunk, bytes) {
                return Err(StoreError::WrongDigest { chunk: *chunk, offset: frame.offset });
            }
            verified = true;
            let end = range.end.min(frame.end());
            let wanted = (range.start - frame.offset) as usize..(end - frame.offset) as usize;
            // A copy: a small part must not keep a large batch of frames in memory.
            let bytes = Bytes::copy_from_slice(&bytes[wanted]);
            let whole = end == range.end;
            let end_of = if whole && range.ends_piece {
                End::Piece
            } else if end == frame.end() {
                End::Frame
            } else {
                End::Nothing
            };
            parts.push(Part { bytes, end: end_of });
            range.start = end;
            if whole {
                ranges.pop_front();
            }
        }
        Ok(())
    }

    pub fn is_complete(&self) -> bool {
        self.ranges.is_empty()
    }

    /// What was wanted, in order.
    ///
    /// # Errors
    /// `Short` if frames are missing behind those that were taken.
    pub fn finish(self) -> Result<Vec<Part>, StoreError> {
        match (self.ranges.front(), self.ranges.back()) {
            (Some(next), Some(last)) => Err(StoreError::Short { chunk: self.chunk, here: next.start, asked: last.end }),
            _ => Ok(self.parts),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CHUNK: ChunkId = ChunkId(3);

    fn piece(source: u16, offset: u32, len: u32) -> Piece {
        Piece { source, offset, len }
    }

    /// A source, and of each range where it starts, where it ends and whether the piece does.
    type Plain = (usize, Vec<(u32, u32, bool)>);

    fn runs(pieces: &[Piece]) -> Vec<Plain> {
        let ranges = |run: Run| run.ranges.iter().map(|range| (range.start, range.end, range.ends_piece)).collect();
        Runs::new(pieces).map(|run| (run.source, ranges(run))).collect()
    }

    #[test]
    fn near_pieces_of_a_source_are_read_together_and_large_ones_in_several_goes() {
        let near = [piece(0, 100, 50), piece(0, 150, 50), piece(0, 200 + GAP_MAX, 1)];
        let together = (0, vec![(100, 150, true), (150, 200, true), (200 + GAP_MAX, 201 + GAP_MAX, true)]);
        assert_eq!(runs(&near), [together]);
        let apart = [piece(0, 100, 50), piece(1, 150, 50), piece(1, 100, 60), piece(1, 161 + GAP_MAX, 1)];
        assert_eq!(
            runs(&apart),
            [
                (0, vec![(100, 150, true)]),
                (1, vec![(150, 200, true)]),
                (1, vec![(100, 160, true)]),
                (1, vec![(161 + GAP_MAX, 162 + GAP_MAX, true)])
            ]
        );
        let large = [piece(0, 10, 2 * RUN_MAX), piece(0, 10 + 2 * RUN_MAX, 5)];
        assert_eq!(
            runs(&large),
            [
                (0, vec![(10, RUN_MAX, false)]),
                (0, vec![(RUN_MAX, 2 * RUN_MAX, false)]),
                (0, vec![(2 * RUN_MAX, 10 + 2 * RUN_MAX, true), (10 + 2 * RUN_MAX, 15 + 2 * RUN_MAX, true)])
            ]
        );
    }

    #[test]
    fn a_batch_is_bounded_in_bytes_and_in_runs() {
        let pieces = vec![piece(0, 0, 10 * RUN_MAX), piece(0, 0, RUN_MAX)];
        let mut runs = Runs::new(&pieces);
        let sizes: Vec<_> = std::iter::from_fn(|| Some(runs.next_batch().len()).filter(|len| *len > 0)).collect();
        assert_eq!(sizes, [4, 4, 3]);
        let pieces = vec![piece(0, 0, 1); BATCH_RUNS + 1];
        let mut runs = Runs::new(&pieces);
        assert_eq!([(); 3].map(|()| runs.next_batch().len()), [BATCH_RUNS, 1, 0]);
    }

    /// A chunk's bytes, and its frames of these lengths.
    fn source(lens: &[u32]) -> (Vec<u8>, Vec<(FrameHeader, Bytes)>) {
        let bytes: Vec<u8> = (0..lens.iter().sum::<u32>()).map(|at| (at ^ at >> 8) as u8).collect();
        let mut offset = 0;
        let mut frames = Vec::new();
        for len in lens {
            let data = Bytes::copy_from_slice(&bytes[offset as usize..(offset + len) as usize]);
            frames.push((FrameHeader::new(CHUNK, offset, &data), data));
            offset += len;
        }
        (bytes, frames)
    }

    fn cut(run: &Run, frames: &[(FrameHeader, Bytes)]) -> Result<Vec<Part>, StoreError> {
        let mut cut = Cut::new(CHUNK, run);
        frames.iter().try_for_each(|(frame, bytes)| cut.take(frame, bytes))?;
        cut.finish()
    }

    proptest! {
        #[test]
        fn what_is_cut_is_what_the_pieces_name(
            lens in prop::collection::vec(1u32..3000, 1..40),
            pieces in prop::collection::vec((0u32..30_000, 1u32..5000), 1..30),
        ) {
            let (bytes, frames) = source(&lens);
            let total = bytes.len() as u32;
            let pieces = pieces.into_iter().map(|(at, len)| (at % total, len));
            let pieces: Vec<_> = pieces.map(|(at, len)| piece(0, at, len.min(total - at))).collect();
            let mut parts = Vec::new();
            for run in Runs::new(&pieces) {
                prop_assert!(run.span() <= RUN_MAX);
                // As they are served: those that overlap the run.
                let end = run.offset() + run.span();
                let overlap = |frame: &FrameHeader| frame.end() > run.offset() && frame.offset < end;
                let served: Vec<_> = frames.iter().filter(|(frame, _)| overlap(frame)).cloned().collect();
                parts.extend(cut(&run, &served).unwrap());
            }
            let mut parts = parts.into_iter();
            for piece in pieces {
                let (mut at, end) = (piece.offset, piece.offset + piece.len);
                while at < end {
                    let part = parts.next().unwrap();
                    prop_assert_eq!(&part.bytes[..], &bytes[at as usize..at as usize + part.bytes.len()]);
                    at += part.bytes.len() as u32;
                    let frame_ends = frames.iter().any(|(frame, _)| frame.end() == at);
                    let expected = if at == end { End::Piece } else if frame_ends { End::Frame } else { End::Nothing };
                    prop_assert_eq!(part.end, expected);
                }
                prop_assert_eq!(at, end);
            }
            prop_assert_eq!(parts.next(), None);
        }
    }

    #[test]
    fn frames_that_are_wrong_or_missing_give_nothing() {
        let (_, frames) = source(&[100, 100, 100, 100]);
        let pieces = [piece(0, 150, 20), piece(0, 320, 20)];
        let run = Runs::new(&pieces).next().unwrap();
        assert_eq!(cut(&run, &frames).unwrap().len(), 2);
        let damaged = |at: usize| {
            let mut frames = frames.clone();
            frames[at].1 = Bytes::from(vec![9; 100]);
            cut(&run, &frames)
        };
        // The frames in which pieces lie, and no others.
        assert!(damaged(0).is_ok() && damaged(2).is_ok());
        assert!(matches!(damaged(1), Err(StoreError::WrongDigest { offset: 100, .. })));
        assert!(matches!(damaged(3), Err(StoreError::WrongDigest { offset: 300, .. })));
        assert!(matches!(cut(&run, &frames[2..]), Err(StoreError::NotContiguous { end: 150, found: 200, .. })));
        assert!(matches!(cut(&run, &frames[..3]), Err(StoreError::Short { here: 320, asked: 340, .. })));
        // A frame in which bytes were cut off is none.
        let mut cut_off = frames.clone();
        cut_off[1].1.truncate(99);
        assert!(matches!(cut(&run, &cut_off), Err(StoreError::WrongDigest { .. })));
    }
}

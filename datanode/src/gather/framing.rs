//! Where frames end in a chunk that is gathered.
//!
//! Who reads a byte reads its frame. So what was small in the sources stays small: every frame of a source gives a
//! frame of its own, as far as a chunk has frames for that. A piece always begins a frame.

use bytes::{Bytes, BytesMut};
use dfs_proto::limits::{CHUNK_FRAMES_MAX, CHUNK_MAX, FRAME_MAX, GATHER_PIECES_MAX};
use dfs_proto::{ChunkId, FrameHeader};

/// Filled frames fit whatever the pieces are: each piece has one that is not full, and the full ones hold `FRAME_MAX`.
const _: () = assert!(GATHER_PIECES_MAX as u32 + CHUNK_MAX / FRAME_MAX + 2 < CHUNK_FRAMES_MAX);

/// Bytes that follow each other in a source, and what ends behind them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    pub bytes: Bytes,
    pub end: End,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The piece.
    Piece,
    /// The source's frame, within a piece.
    Frame,
    /// Only what was read in one go.
    Nothing,
}

/// Decides where frames end, from lengths alone.
#[derive(Clone, Debug)]
struct Framing {
    /// Frames that have ended.
    frames: u32,
    /// Pieces that have not ended.
    pieces_left: u32,
    /// Bytes that are in no frame that has ended.
    bytes_left: u32,
    /// Of these: taken in, and in the frame that has begun.
    begun: u32,
}

impl Framing {
    fn new(pieces: u32, bytes: u32) -> Framing {
        Framing { frames: 0, pieces_left: pieces, bytes_left: bytes, begun: 0 }
    }

    /// Takes in `len` more bytes with `end` behind them. Gives the lengths of the frames that end there or before.
    fn take(&mut self, len: u32, end: End) -> Vec<u32> {
        let mut ended = Vec::new();
        self.begun += len;
        while self.begun >= FRAME_MAX {
            ended.push(self.end(FRAME_MAX));
        }
        let ends = match end {
            End::Piece => true,
            End::Frame => self.can_spare_one(),
            End::Nothing => false,
        };
        if ends && self.begun > 0 {
            ended.push(self.end(self.begun));
        }
        if end == End::Piece {
            self.pieces_left -= 1;
        }
        ended
    }

    fn end(&mut self, len: u32) -> u32 {
        self.frames += 1;
        self.bytes_left -= len;
        self.begun -= len;
        len
    }

    /// Whether everything still fits after one frame that is not full. From then on, at worst, frames are filled, and
    /// each piece that is left ends in one that is not.
    fn can_spare_one(&self) -> bool {
        self.frames + self.pieces_left + self.bytes_left / FRAME_MAX + 2 < CHUNK_FRAMES_MAX
    }
}

/// Makes the frames of a chunk of the parts that it is gathered from.
pub struct Framer {
    chunk: ChunkId,
    framing: Framing,
    /// Where the next frame begins.
    offset: u32,
    /// Of the frame that has begun.
    begun: BytesMut,
}

impl Framer {
    /// For a chunk of so many pieces with `bytes` altogether.
    pub fn new(chunk: ChunkId, pieces: u32, bytes: u32) -> Framer {
        Framer { chunk, framing: Framing::new(pieces, bytes), offset: 0, begun: BytesMut::new() }
    }

    /// Takes in a part, and adds the frames that end with it to `frames`, with their digests.
    pub fn take(&mut self, part: &Part, frames: &mut Vec<(FrameHeader, Bytes)>) {
        self.begun.extend_from_slice(&part.bytes);
        for len in self.framing.take(part.bytes.len() as u32, part.end) {
            let bytes = self.begun.split_to(len as usize).freeze();
            let frame = FrameHeader::new(self.chunk, self.offset, &bytes);
            self.offset = frame.end();
            frames.push((frame, bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The frames of pieces, each given by the lengths of the source frames in it.
    fn framed(pieces: &[Vec<u32>]) -> Vec<u32> {
        let mut framing = Framing::new(pieces.len() as u32, pieces.iter().flatten().sum());
        let mut frames = Vec::new();
        for piece in pieces {
            for (number, len) in piece.iter().enumerate() {
                let end = if number + 1 == piece.len() { End::Piece } else { End::Frame };
                frames.extend(framing.take(*len, end));
            }
        }
        assert_eq!((framing.pieces_left, framing.bytes_left, framing.begun), (0, 0, 0));
        frames
    }

    #[test]
    fn every_source_frame_gives_a_frame_while_there_are_enough() {
        let pieces = [vec![100, FRAME_MAX, 7], vec![1], vec![FRAME_MAX, FRAME_MAX]];
        assert_eq!(framed(&pieces), pieces.concat());
        // The largest number of pieces that there may be, of two frames each but for the last ones.
        let pieces = vec![vec![3, 5]; GATHER_PIECES_MAX - 10];
        assert_eq!(framed(&pieces), pieces.concat());
    }

    #[test]
    fn what_was_only_read_in_two_goes_becomes_one_frame() {
        let mut framing = Framing::new(1, 300);
        assert_eq!(framing.take(100, End::Nothing), []);
        assert_eq!(framing.take(100, End::Frame), [200]);
        assert_eq!(framing.take(100, End::Nothing), []);
        assert_eq!(framing.take(0, End::Piece), [100]);
    }

    #[test]
    fn frames_are_filled_when_a_chunk_could_run_out_of_them() {
        // As many bytes and pieces as there may be, in source frames of 100 bytes.
        let of_piece = CHUNK_MAX / GATHER_PIECES_MAX as u32;
        let piece: Vec<u32> = (0..of_piece).step_by(100).map(|at| 100.min(of_piece - at)).collect();
        let frames = framed(&vec![piece; GATHER_PIECES_MAX]);
        assert!(frames.len() < CHUNK_FRAMES_MAX as usize, "{}", frames.len());
        // And one large piece of that: the limit is used up before anything is filled.
        let frames = framed(&[vec![64; (CHUNK_MAX / 64) as usize]]);
        assert!((CHUNK_FRAMES_MAX - 4..CHUNK_FRAMES_MAX).contains(&(frames.len() as u32)), "{}", frames.len());
        assert_eq!((frames[0], frames[frames.len() - 2]), (64, FRAME_MAX));
    }

    proptest! {
        #[test]
        fn frames_fit_and_none_lies_in_two_pieces(
            // Many small source frames in some pieces, so that frames run short.
            pieces in prop::collection::vec((1usize..6000, 1u32..1000), 1..8),
            small in 0usize..8000,
        ) {
            let mut pieces: Vec<_> = pieces.into_iter().map(|(count, len)| vec![len; count]).collect();
            pieces.extend(vec![vec![9]; small]);
            let frames = framed(&pieces);
            prop_assert!(frames.len() < CHUNK_FRAMES_MAX as usize);
            prop_assert!(frames.iter().all(|len| (1..=FRAME_MAX).contains(len)));
            let mut frames = frames.into_iter();
            for piece in pieces {
                let mut left: u32 = piece.iter().sum();
                while left > 0 {
                    let len = frames.next().unwrap();
                    prop_assert!(len <= left);
                    left -= len;
                }
            }
        }
    }

    #[test]
    fn frames_have_the_bytes_of_the_parts_and_digests_for_their_new_place() {
        let chunk = ChunkId(9);
        let part = |bytes: &'static [u8], end| Part { bytes: Bytes::from_static(bytes), end };
        let mut framer = Framer::new(chunk, 2, 9);
        let mut frames = Vec::new();
        for part in
            [part(b"abc", End::Nothing), part(b"de", End::Frame), part(b"f", End::Piece), part(b"ghi", End::Piece)]
        {
            framer.take(&part, &mut frames);
        }
        let expected = [(0, &b"abcde"[..]), (5, b"f"), (6, b"ghi")];
        let expected = expected.map(|(at, bytes)| (FrameHeader::new(chunk, at, bytes), Bytes::from_static(bytes)));
        assert_eq!(frames, expected);
    }
}

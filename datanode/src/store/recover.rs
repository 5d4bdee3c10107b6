//! What is believed of a chunk file, whatever happened to it. Reads only.

use dfs_proto::ChunkId;
use dfs_proto::limits::CHUNK_FRAMES_MAX;

use super::chunk_file::{BATCH_BYTES, ChunkFile, ReadFault};

/// How far the frames of a file are known to be whole.
#[derive(Debug, Default)]
pub struct Walk {
    /// Whole frames from the start of the chunk.
    pub frames: u32,
    /// Bytes in them.
    pub len: u32,
    /// Why the next frame is not whole; `None` if the walk has not met such a frame.
    pub fault: Option<ReadFault>,
}

impl Walk {
    /// Reads and verifies frames from the first one to the first that is not whole, or to frame number
    /// `frames`.
    ///
    /// In an open chunk the number of frames is not known: with `limits::CHUNK_FRAMES_MAX` the walk
    /// ends where the entries do, and `fault` says so (see `ReadFault::is_plain_end`).
    pub fn whole(file: &ChunkFile, chunk: ChunkId, frames: u32) -> Walk {
        let mut walk = Walk::default();
        while walk.step(file, chunk, frames) {}
        walk
    }

    /// Goes on by one batch; whether there is more to do.
    pub fn step(&mut self, file: &ChunkFile, chunk: ChunkId, frames: u32) -> bool {
        if self.fault.is_none() && self.frames < frames {
            self.fault = self.batch(file, chunk, frames).err();
        }
        self.fault.is_none() && self.frames < frames
    }

    fn batch(&mut self, file: &ChunkFile, chunk: ChunkId, frames: u32) -> Result<(), ReadFault> {
        let batch = match file.load(self.frames, frames, u32::MAX, BATCH_BYTES) {
            // The file ends within the batch: its first frames may still be there.
            Err(ReadFault::Short(_)) => file.load(self.frames, self.frames + 1, u32::MAX, 1)?,
            other => other?,
        };
        for (number, (frame, bytes)) in (batch.first..).zip(batch.iter()) {
            if frame.offset != self.len {
                return Err(ReadFault::Entry(number));
            }
            if !frame.matches(chunk, &bytes) {
                return Err(ReadFault::Digest { number, offset: frame.offset });
            }
            self.frames += 1;
            self.len = frame.end();
        }
        Ok(())
    }
}

/// What there is behind the first frame that is not whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tail {
    /// No frame that matches: as after a power cut in the middle of what was not synced.
    Nothing,
    /// The last frame that matches is the one below number `frames`, and ends at byte `end`. Something in front of it is
    /// damaged, and it may be the last good copy there is.
    Frames { frames: u32, end: u32 },
    /// The disk could not say.
    Unreadable,
}

impl Tail {
    /// Looks at every entry from number `first` on, and at the bytes of those that are valid.
    pub fn behind(file: &ChunkFile, chunk: ChunkId, first: u32) -> Tail {
        let mut tail = Tail::Nothing;
        for number in first..CHUNK_FRAMES_MAX {
            let matches = file.entry(number).and_then(|frame| Ok((frame, file.frame_bytes(number, &frame)?)));
            match matches {
                Ok((frame, bytes)) if frame.matches(chunk, &bytes) => {
                    tail = Tail::Frames { frames: number + 1, end: frame.end() };
                }
                Ok(_) | Err(ReadFault::Entry(_) | ReadFault::Short(_) | ReadFault::Digest { .. }) => {}
                Err(ReadFault::Io(_)) => return Tail::Unreadable,
            }
        }
        tail
    }
}

impl ReadFault {
    /// Whether a walk over an open chunk that ends like this has met nothing but the end of what was
    /// written, as far as can be told.
    pub fn is_plain_end(&self) -> bool {
        matches!(self, ReadFault::Entry(_) | ReadFault::Short(_))
    }
}

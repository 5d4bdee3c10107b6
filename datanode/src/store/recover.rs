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
    /// The last frame that matches is the one below number `frames`, and ends at byte `end`. But nothing says that a sync
    /// ever reached behind the first frame that is not whole: a power cut kept the later frame and not the earlier one.
    Unsynced { frames: u32, end: u32 },
    /// The same, and what is not whole had been synced. So it is damaged, and the frames behind it may be the last good
    /// copy there is.
    Frames { frames: u32, end: u32 },
    /// The disk could not say.
    Unreadable,
}

impl Tail {
    /// Looks at every entry from number `walk.frames` on, and at the bytes of those that are valid; and at what was synced.
    pub fn behind(file: &ChunkFile, chunk: ChunkId, walk: &Walk) -> Tail {
        let mut last = None;
        for number in walk.frames..CHUNK_FRAMES_MAX {
            let matches = file.entry(number).and_then(|frame| Ok((frame, file.frame_bytes(number, &frame)?)));
            match matches {
                Ok((frame, bytes)) if frame.matches(chunk, &bytes) => last = Some((number + 1, frame.end())),
                Ok(_) | Err(ReadFault::Entry(_) | ReadFault::Short(_) | ReadFault::Digest { .. }) => {}
                Err(ReadFault::Io(_)) => return Tail::Unreadable,
            }
        }
        let Some((frames, end)) = last else { return Tail::Nothing };
        match file.noted_synced() {
            Ok(synced) if synced <= walk.len => Tail::Unsynced { frames, end },
            Ok(_) => Tail::Frames { frames, end },
            Err(_) => Tail::Unreadable,
        }
    }
}

impl ReadFault {
    /// Whether a walk over an open chunk that ends like this has met nothing but the end of what was
    /// written, as far as can be told.
    pub fn is_plain_end(&self) -> bool {
        matches!(self, ReadFault::Entry(_) | ReadFault::Short(_))
    }
}

//! Chunks, frames and extents: how a file's bytes map onto stored bytes.

use serde::{Deserialize, Serialize};

use crate::ids::ChunkId;
use crate::limits::CHUNK_MAX;

/// Maps the file bytes `[file_offset, file_offset + len)` to the chunk bytes
/// `[chunk_offset, chunk_offset + len)`. All in bytes; `len` is above 0 and the chunk range ends at
/// or below `limits::CHUNK_MAX`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct Extent {
    pub file_offset: u64,
    pub chunk: ChunkId,
    pub chunk_offset: u32,
    pub len: u32,
}

impl Extent {
    pub fn file_end(&self) -> u64 {
        self.file_offset + u64::from(self.len)
    }

    pub fn chunk_end(&self) -> u32 {
        self.chunk_offset + self.len
    }

    /// Whether the numbers can be an extent at all; checked on everything that comes off the wire.
    pub fn is_sound(&self) -> bool {
        self.len > 0
            && self.chunk_offset.checked_add(self.len).is_some_and(|end| end <= CHUNK_MAX)
            && self.file_offset.checked_add(u64::from(self.len)).is_some_and(|end| end <= crate::limits::FILE_MAX)
    }

    /// The part of this extent inside the file range `[start, end)`, if any.
    pub fn clip(&self, start: u64, end: u64) -> Option<Extent> {
        let from = self.file_offset.max(start);
        let to = self.file_end().min(end);
        (from < to).then(|| Extent {
            file_offset: from,
            chunk: self.chunk,
            chunk_offset: self.chunk_offset + (from - self.file_offset) as u32,
            len: (to - from) as u32,
        })
    }

    /// Whether `next` goes on exactly where this one ends, in the file and in the chunk.
    pub fn continues_with(&self, next: &Extent) -> bool {
        self.chunk == next.chunk && self.chunk_end() == next.chunk_offset && self.file_end() == next.file_offset
    }
}

/// Goes before each frame's bytes on the wire, and is what a chunk file's index keeps of it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FrameHeader {
    /// Where the frame starts in its chunk, in bytes.
    pub offset: u32,
    /// 1 to `limits::FRAME_MAX` bytes.
    pub len: u32,
    /// `frame_digest(chunk, offset, bytes)`.
    pub digest: [u8; 32],
}

impl FrameHeader {
    pub fn new(chunk: ChunkId, offset: u32, bytes: &[u8]) -> FrameHeader {
        FrameHeader { offset, len: bytes.len() as u32, digest: frame_digest(chunk, offset, bytes) }
    }

    pub fn end(&self) -> u32 {
        self.offset + self.len
    }

    pub fn matches(&self, chunk: ChunkId, bytes: &[u8]) -> bool {
        bytes.len() == self.len as usize && frame_digest(chunk, self.offset, bytes) == self.digest
    }
}

/// The checksum of a frame: BLAKE3 keyed by the chunk's id and the frame's place in it, so that right
/// bytes in the wrong place (a swapped file, a misdirected write or read) fail like wrong bytes.
/// The key is no secret; it only separates places.
pub fn frame_digest(chunk: ChunkId, offset: u32, bytes: &[u8]) -> [u8; 32] {
    let mut key = *b"dfs frame digest v1.............";
    key[20..28].copy_from_slice(&chunk.0.to_le_bytes());
    key[28..].copy_from_slice(&offset.to_le_bytes());
    *blake3::keyed_hash(&key, bytes).as_bytes()
}

/// One replica's share in the digest of its shard: datanode and namenode each combine theirs by XOR
/// over a shard's sealed replicas and compare.
pub fn replica_digest(chunk: ChunkId, epoch: crate::Epoch, len: u32) -> u64 {
    let mut input = [0; 20];
    input[..8].copy_from_slice(&chunk.0.to_le_bytes());
    input[8..16].copy_from_slice(&epoch.0.to_le_bytes());
    input[16..].copy_from_slice(&len.to_le_bytes());
    let hash = blake3::hash(&input);
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes"))
}

/// The shard of the digest that a chunk belongs to.
pub fn digest_shard(chunk: ChunkId) -> usize {
    (chunk.0 % crate::limits::DIGEST_SHARDS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_elsewhere_have_another_digest() {
        let here = frame_digest(ChunkId(1), 0, b"bytes");
        assert_ne!(here, frame_digest(ChunkId(2), 0, b"bytes"));
        assert_ne!(here, frame_digest(ChunkId(1), 5, b"bytes"));
        assert!(FrameHeader::new(ChunkId(1), 0, b"bytes").matches(ChunkId(1), b"bytes"));
        assert!(!FrameHeader::new(ChunkId(1), 0, b"bytes").matches(ChunkId(1), b"bytez"));
    }

    #[test]
    fn clip_keeps_file_and_chunk_in_step() {
        let extent = Extent { file_offset: 100, chunk: ChunkId(3), chunk_offset: 10, len: 50 };
        let part = extent.clip(120, 130).unwrap();
        assert_eq!(part, Extent { file_offset: 120, chunk: ChunkId(3), chunk_offset: 30, len: 10 });
        assert_eq!(extent.clip(150, 200), None);
    }

    #[test]
    fn unsound_extents_are_recognised() {
        let sound = Extent { file_offset: 0, chunk: ChunkId(1), chunk_offset: 0, len: CHUNK_MAX };
        assert!(sound.is_sound());
        assert!(!Extent { len: 0, ..sound }.is_sound());
        assert!(!Extent { chunk_offset: 1, ..sound }.is_sound());
        assert!(!Extent { chunk_offset: u32::MAX, len: 2, ..sound }.is_sound());
        assert!(!Extent { file_offset: u64::MAX, ..sound }.is_sound());
    }
}

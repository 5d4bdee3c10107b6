//! Bulk bytes to and from datanodes. One stream per request; only the headers below are encoded
//! messages, a chunk's bytes follow raw, frame by frame.
//!
//! A *frame record* is `FrameHeader::to_bytes` (40 bytes) and then the frame's bytes.

use serde::{Deserialize, Serialize};

use crate::capability::Capability;
use crate::chunk::FrameHeader;
use crate::error::WireError;
use crate::ids::{ChunkId, Epoch, NodeId};
use crate::limits::{CHUNK_MAX, FRAME_MAX};
use crate::msg::meta::ReplicaAt;

/// First message on a stream of the data plane.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub enum DataRequest {
    /// Answer: `Result<ReadReply, WireError>`, then the frame records that overlap the range, in
    /// order, then the end of the stream. The reader verifies each frame's digest.
    Read {
        chunk: ChunkId,
        /// The lowest epoch that is good enough.
        epoch: Epoch,
        offset: u32,
        len: u32,
        capability: Capability,
    },
    /// Opens a chunk for appending, creating it where `offset` is 0. Then the client sends
    /// `AppendItem`s, and `AppendEvent`s come back. A chunk has at most one append stream in its life:
    /// after any failure the client seals and switches.
    Append {
        chunk: ChunkId,
        epoch: Epoch,
        capability: Capability,
        /// Nodes to forward every item to, nearest first; empty for fan-out and at the chain's end.
        chain: Vec<ReplicaAt>,
    },
    /// Asks for the way to the node within its own machine. Answer: `Result<LocalDoor, WireError>`.
    Local,
    /// An administrator's request to this node alone. Answer: `Result<ManageReply, WireError>`, then the end of the
    /// stream.
    Manage(Manage),
}

/// The way to a datanode for who is on its machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalDoor {
    /// Name of a Unix stream socket in the abstract namespace, without the leading zero byte.
    pub name: String,
    /// Good for one connection within `limits::LOCAL_TICKET_S`. Whoever has it is who asked for it.
    pub ticket: [u8; 32],
}

impl std::fmt::Debug for LocalDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalDoor").field("name", &self.name).finish_non_exhaustive()
    }
}

/// First message on a local connection.
#[derive(Serialize, Deserialize)]
pub struct LocalHello {
    pub ticket: [u8; 32],
    pub wants: LocalUse,
}

/// What a local connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum LocalUse {
    /// Chunk files instead of bytes. The hello is not answered, `LocalOpen`s follow.
    Files,
    /// A stream of the data plane. Answer: `Result<(), WireError>`. From then on each direction is runs of bytes, a run
    /// behind its length in four little-endian bytes; a run of no bytes is the end of the stream. A `DataRequest` is first.
    Stream,
}

/// Each further message of `LocalUse::Files`. Answer: `Result<LocalChunk, WireError>`, one byte that carries the descriptor, then
/// `frames` frame headers.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
pub struct LocalOpen {
    pub chunk: ChunkId,
    pub capability: Capability,
}

/// A sealed chunk as a file that can be read.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct LocalChunk {
    pub len: u32,
    /// Byte `n` of the chunk is byte `data_start + n` of the file.
    pub data_start: u64,
    /// At most `limits::CHUNK_FRAMES_MAX`.
    pub frames: u32,
}

/// What an administrator asks of one datanode. Paths are folders on its machine, absolute, at most
/// `limits::PATH_MAX` bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Manage {
    /// Take a folder into use as a volume: an empty one, one that failed and is in order again, or one that is being
    /// emptied and may stay. Answer: `Done`.
    AddVolume { path: String },
    /// Move what is on a volume elsewhere, then take it out of use. Answer: `Done` once it has begun.
    DrainVolume { path: String },
    /// Put an empty disk at the place of a volume that failed. Answer: `Done`.
    ReplaceVolume { path: String },
    /// How these replicas stand, at most `limits::SHARD_PAGE_MAX` of them. Clients may ask this too. Answer: `Replicas`.
    Replicas { chunks: Vec<ChunkId> },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum ManageReply {
    Done,
    /// Those that are here, in the order in which they were asked for.
    Replicas(Vec<ReplicaStatus>),
}

/// One replica as its node knows it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ReplicaStatus {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub state: ReplicaState,
    /// Bytes, and how many of them from the start are known to be whole.
    pub len: u32,
    pub whole: u32,
    /// When every frame last matched, in seconds since 1970 by the node's clock.
    pub verified_s: u64,
    /// The volume's folder.
    pub volume: String,
    /// The volume has failed: the replica counts no longer.
    pub lost: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum ReplicaState {
    Open,
    Sealed,
    Damaged,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ReadReply {
    /// Bytes of the replica whose frames are whole.
    pub len: u32,
    pub sealed: bool,
}

/// One item on an append stream starts with one of these bytes.
pub mod append_item {
    /// A frame record follows. Frames follow each other without a gap.
    pub const FRAME: u8 = 1;
    /// Sync everything before this to disk, then acknowledge with `synced` moved on.
    pub const SYNC: u8 = 2;
}

/// What comes back on an append stream. Counts are bytes from the start of the chunk; in a chain they
/// hold for this node and every one behind it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum AppendEvent {
    /// The chunk is open here and all the way down the chain.
    Ready,
    Ack {
        written: u32,
        synced: u32,
    },
    /// The stream is over. `node` is the one that failed, which may be further down the chain.
    Failed {
        node: NodeId,
        error: WireError,
    },
}

/// Bytes of an encoded `FrameHeader`.
pub const FRAME_HEADER_LEN: usize = 40;

impl FrameHeader {
    pub fn to_bytes(&self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[..4].copy_from_slice(&self.offset.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..].copy_from_slice(&self.digest);
        bytes
    }

    /// `None` if the frame is empty, too long, or leaves the chunk: checked before memory is taken.
    pub fn from_bytes(bytes: &[u8; FRAME_HEADER_LEN]) -> Option<FrameHeader> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let header =
            FrameHeader { offset: number(0), len: number(4), digest: bytes[8..].try_into().expect("32 bytes") };
        let sound = header.len > 0
            && header.len <= FRAME_MAX
            && header.offset.checked_add(header.len).is_some_and(|end| end <= CHUNK_MAX);
        sound.then_some(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_headers_with_hostile_lengths_are_refused() {
        let good = FrameHeader { offset: 8, len: FRAME_MAX, digest: [3; 32] };
        assert_eq!(FrameHeader::from_bytes(&good.to_bytes()), Some(good));
        for bad in [
            FrameHeader { len: 0, ..good },
            FrameHeader { len: FRAME_MAX + 1, ..good },
            FrameHeader { offset: CHUNK_MAX, len: 1, ..good },
            FrameHeader { offset: u32::MAX, len: 2, ..good },
        ] {
            assert_eq!(FrameHeader::from_bytes(&bad.to_bytes()), None, "{bad:?}");
        }
    }
}

//! The bytes of a chunk file, drawn in `FORMAT.md`. Pure: encodes and decodes, touches no disk.

use dfs_proto::limits::{CHUNK_FRAMES_MAX, CHUNK_MAX, FRAME_MAX};
use dfs_proto::version::CHUNK_FILE_VERSION;
use dfs_proto::{ChunkId, ClusterId, Epoch, FrameHeader};

/// Bytes of one header slot; slot A lies at 0, slot B behind it.
pub const SLOT_LEN: usize = 512;
/// Bytes of both slots together: what is read to open a file.
pub const SLOTS_LEN: usize = 2 * SLOT_LEN;
/// Where the frame index starts.
pub const INDEX_START: u64 = 4096;
/// Bytes of one index entry.
pub const ENTRY_LEN: usize = 64;
/// Where the chunk's bytes start.
pub const DATA_START: u64 = INDEX_START + CHUNK_FRAMES_MAX as u64 * ENTRY_LEN as u64;

const MAGIC: &[u8; 8] = b"dfschunk";
const HEADER_KEY: &[u8; 32] = b"dfs chunk file header v1........";
const CHECKED_LEN: usize = SLOT_LEN - 32;
const ENTRY_CHECKED_LEN: usize = 48;

/// What a replica is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Frames may follow those that are there.
    Open,
    /// Ends at its committed length and never changes again.
    Sealed,
    /// A frame does not match, or bytes are missing: waits for its delete order.
    Damaged,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    pub cluster: ClusterId,
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub state: State,
    /// Frames below `len`; 0 while open.
    pub frames: u32,
    /// Bytes of the chunk as it was sealed, or found damaged; 0 while open.
    pub len: u32,
    /// Bytes from the start that were whole when the damage was found; 0 otherwise.
    pub whole: u32,
    /// Counts header writes from 1; the higher valid slot counts.
    pub generation: u64,
}

/// Why a slot is no header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HeaderFault {
    #[error("header is blank: the file was never finished")]
    Blank,
    #[error("not a chunk file")]
    NotAChunkFile,
    #[error("chunk file of version {0}, and this program reads version {CHUNK_FILE_VERSION}")]
    UnknownVersion(u16),
    #[error("header is damaged")]
    Damaged,
}

impl Header {
    /// The header of a chunk that was just opened for appending.
    pub fn open(cluster: ClusterId, chunk: ChunkId, epoch: Epoch) -> Header {
        Header { cluster, chunk, epoch, state: State::Open, frames: 0, len: 0, whole: 0, generation: 1 }
    }

    /// Where this header is written: the slot that does not hold the one before it.
    pub fn slot_offset(&self) -> u64 {
        if self.generation % 2 == 1 { 0 } else { SLOT_LEN as u64 }
    }

    pub fn encode(&self) -> [u8; SLOT_LEN] {
        let mut slot = [0; SLOT_LEN];
        slot[..8].copy_from_slice(MAGIC);
        slot[8..10].copy_from_slice(&CHUNK_FILE_VERSION.to_le_bytes());
        slot[10] = match self.state {
            State::Open => 1,
            State::Sealed => 2,
            State::Damaged => 3,
        };
        slot[12..16].copy_from_slice(&self.frames.to_le_bytes());
        slot[16..24].copy_from_slice(&self.generation.to_le_bytes());
        slot[24..40].copy_from_slice(&self.cluster.0);
        slot[40..48].copy_from_slice(&self.chunk.0.to_le_bytes());
        slot[48..56].copy_from_slice(&self.epoch.0.to_le_bytes());
        slot[56..60].copy_from_slice(&self.len.to_le_bytes());
        slot[60..64].copy_from_slice(&self.whole.to_le_bytes());
        let check = blake3::keyed_hash(HEADER_KEY, &slot[..CHECKED_LEN]);
        slot[CHECKED_LEN..].copy_from_slice(check.as_bytes());
        slot
    }

    fn decode(slot: &[u8]) -> Result<Header, HeaderFault> {
        if slot.iter().all(|byte| *byte == 0) {
            return Err(HeaderFault::Blank);
        }
        if slot.len() != SLOT_LEN || slot[..8] != *MAGIC {
            return Err(HeaderFault::NotAChunkFile);
        }
        let version = u16::from_le_bytes([slot[8], slot[9]]);
        if version != CHUNK_FILE_VERSION {
            return Err(HeaderFault::UnknownVersion(version));
        }
        if slot[CHECKED_LEN..] != *blake3::keyed_hash(HEADER_KEY, &slot[..CHECKED_LEN]).as_bytes() {
            return Err(HeaderFault::Damaged);
        }
        let state = match slot[10] {
            1 => State::Open,
            2 => State::Sealed,
            3 => State::Damaged,
            _ => return Err(HeaderFault::Damaged),
        };
        let header = Header {
            cluster: ClusterId(array(&slot[24..40])),
            chunk: ChunkId(u64::from_le_bytes(array(&slot[40..48]))),
            epoch: Epoch(u64::from_le_bytes(array(&slot[48..56]))),
            state,
            frames: u32::from_le_bytes(array(&slot[12..16])),
            len: u32::from_le_bytes(array(&slot[56..60])),
            whole: u32::from_le_bytes(array(&slot[60..64])),
            generation: u64::from_le_bytes(array(&slot[16..24])),
        };
        let sound = header.frames <= CHUNK_FRAMES_MAX
            && header.len <= CHUNK_MAX
            && header.whole <= header.len
            && header.generation > 0;
        if sound { Ok(header) } else { Err(HeaderFault::Damaged) }
    }

    /// The header of a file: the valid slot with the higher generation.
    ///
    /// If neither is valid, the fault of the slot that says most.
    pub fn newest(slots: &[u8]) -> Result<Header, HeaderFault> {
        if slots.len() != SLOTS_LEN {
            return Err(HeaderFault::Blank);
        }
        let (a, b) = slots.split_at(SLOT_LEN);
        match (Header::decode(a), Header::decode(b)) {
            (Ok(a), Ok(b)) => Ok(if a.generation > b.generation { a } else { b }),
            // A newer program has written this chunk: the older slot must not speak for it.
            (Err(HeaderFault::UnknownVersion(version)), _) | (_, Err(HeaderFault::UnknownVersion(version))) => {
                Err(HeaderFault::UnknownVersion(version))
            }
            (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok(only),
            (Err(HeaderFault::Blank), Err(other)) | (Err(other), Err(_)) => Err(other),
        }
    }
}

/// Where entry `number` of the index lies in the file.
pub fn entry_offset(number: u32) -> u64 {
    INDEX_START + u64::from(number) * ENTRY_LEN as u64
}

/// Where byte `offset` of the chunk lies in the file.
pub fn data_offset(offset: u32) -> u64 {
    DATA_START + u64::from(offset)
}

/// The bytes of index entry `number`: a frame, written when `synced` bytes of the chunk had been synced.
pub fn encode_entry(chunk: ChunkId, number: u32, frame: &FrameHeader, synced: u32) -> [u8; ENTRY_LEN] {
    let mut entry = [0; ENTRY_LEN];
    entry[..4].copy_from_slice(&frame.offset.to_le_bytes());
    entry[4..8].copy_from_slice(&frame.len.to_le_bytes());
    entry[8..40].copy_from_slice(&frame.digest);
    checked_entry(chunk, number, entry, synced)
}

/// The bytes of a note in the place of entry `number`, which has no frame yet: `synced` bytes have been synced.
pub fn encode_note(chunk: ChunkId, number: u32, synced: u32) -> [u8; ENTRY_LEN] {
    checked_entry(chunk, number, [0; ENTRY_LEN], synced)
}

fn checked_entry(chunk: ChunkId, number: u32, mut entry: [u8; ENTRY_LEN], synced: u32) -> [u8; ENTRY_LEN] {
    entry[40..44].copy_from_slice(&synced.to_le_bytes());
    let check = entry_check(chunk, number, &entry[..ENTRY_CHECKED_LEN]);
    entry[ENTRY_CHECKED_LEN..].copy_from_slice(&check);
    entry
}

fn is_entry(chunk: ChunkId, number: u32, entry: &[u8]) -> bool {
    entry.len() == ENTRY_LEN && entry[ENTRY_CHECKED_LEN..] == entry_check(chunk, number, &entry[..ENTRY_CHECKED_LEN])
}

/// Reads index entry `number`; `None` if these bytes are not that entry of that chunk, or only a note.
pub fn decode_entry(chunk: ChunkId, number: u32, entry: &[u8]) -> Option<FrameHeader> {
    if !is_entry(chunk, number, entry) {
        return None;
    }
    let frame = FrameHeader {
        offset: u32::from_le_bytes(array(&entry[..4])),
        len: u32::from_le_bytes(array(&entry[4..8])),
        digest: array(&entry[8..40]),
    };
    let sound = frame.len > 0
        && frame.len <= FRAME_MAX
        && frame.offset.checked_add(frame.len).is_some_and(|end| end <= CHUNK_MAX);
    sound.then_some(frame)
}

/// How many bytes of the chunk had been synced when entry `number`, or a note in its place, was written; `None` if
/// these bytes are neither.
pub fn decode_synced(chunk: ChunkId, number: u32, entry: &[u8]) -> Option<u32> {
    is_entry(chunk, number, entry).then(|| u32::from_le_bytes(array(&entry[40..44])))
}

fn entry_check(chunk: ChunkId, number: u32, checked: &[u8]) -> [u8; 16] {
    let mut key = *b"dfs frame entry v1..............";
    key[24..].copy_from_slice(&chunk.0.to_le_bytes());
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(&number.to_le_bytes());
    hasher.update(checked);
    array(&hasher.finalize().as_bytes()[..16])
}

/// A slice of known length as an array. Only called with slices of constant bounds.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed() -> Header {
        Header {
            cluster: ClusterId([0xc1; 16]),
            chunk: ChunkId(0x0102_0304_0506_0708),
            epoch: Epoch(7),
            state: State::Sealed,
            frames: 3,
            len: 150_000,
            whole: 0,
            generation: 2,
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn golden_bytes_of_a_header_slot() {
        let slot = sealed().encode();
        assert_eq!(
            hex(&slot[..60]),
            "6466736368756e6b0100020003000000\
             0200000000000000c1c1c1c1c1c1c1c1\
             c1c1c1c1c1c1c1c10807060504030201\
             0700000000000000f0490200"
        );
        assert!(slot[60..480].iter().all(|byte| *byte == 0));
        assert_eq!(hex(&slot[480..]), GOLDEN_HEADER_CHECK);
        assert_eq!(sealed().slot_offset(), 512);
        assert_eq!(Header { generation: 1, ..sealed() }.slot_offset(), 0);
    }

    #[test]
    fn golden_bytes_of_an_index_entry() {
        let frame = FrameHeader { offset: 65_536, len: 4096, digest: [0xd1; 32] };
        let entry = encode_entry(ChunkId(5), 1, &frame, 0);
        assert_eq!(hex(&entry[..48]), format!("0000010000100000{}0000000000000000", "d1".repeat(32)));
        assert_eq!(hex(&entry[48..]), GOLDEN_ENTRY_CHECK);
        let entry = encode_entry(ChunkId(5), 1, &frame, 65_536);
        assert_eq!(hex(&entry[..48]), format!("0000010000100000{}0000010000000000", "d1".repeat(32)));
        let note = encode_note(ChunkId(5), 2, 69_632);
        assert_eq!(hex(&note[..48]), format!("{}0010010000000000", "00".repeat(40)));
        assert_eq!(entry_offset(1), 4160);
        assert_eq!(data_offset(65_536), 1_052_672 + 65_536);
    }

    #[test]
    fn the_higher_valid_slot_counts() {
        let older = Header::open(sealed().cluster, sealed().chunk, Epoch(6));
        let slots = |a: &[u8], b: &[u8]| [a, b].concat();
        let (a, b) = (older.encode(), sealed().encode());
        assert_eq!(Header::newest(&slots(&a, &b)), Ok(sealed()));
        assert_eq!(Header::newest(&slots(&a, &[0; SLOT_LEN])), Ok(older));
        assert_eq!(Header::newest(&slots(&[9; SLOT_LEN], &b)), Ok(sealed()));
        assert_eq!(Header::newest(&[0; SLOTS_LEN]), Err(HeaderFault::Blank));
        assert_eq!(Header::newest(&slots(&[9; SLOT_LEN], &[0; SLOT_LEN])), Err(HeaderFault::NotAChunkFile));
        let mut newer = b;
        newer[8] = 2;
        assert_eq!(Header::newest(&slots(&a, &newer)), Err(HeaderFault::UnknownVersion(2)));
    }

    #[test]
    fn an_entry_counts_only_in_its_place() {
        let entry = encode_entry(ChunkId(5), 1, &FrameHeader::new(ChunkId(5), 0, b"bytes"), 3);
        assert!(decode_entry(ChunkId(5), 1, &entry).is_some());
        assert!(decode_entry(ChunkId(5), 2, &entry).is_none());
        assert!(decode_entry(ChunkId(6), 1, &entry).is_none());
        assert!(decode_entry(ChunkId(5), 0, &[0; ENTRY_LEN]).is_none());
        assert_eq!(decode_synced(ChunkId(5), 1, &entry), Some(3));
        assert_eq!(decode_synced(ChunkId(5), 2, &entry), None);
        assert_eq!(decode_synced(ChunkId(5), 0, &[0; ENTRY_LEN]), None);
    }

    #[test]
    fn a_note_says_what_was_synced_and_is_no_frame() {
        let note = encode_note(ChunkId(5), 1, 77);
        assert_eq!(decode_entry(ChunkId(5), 1, &note), None);
        assert_eq!(decode_synced(ChunkId(5), 1, &note), Some(77));
        assert_eq!(decode_synced(ChunkId(5), 2, &note), None);
    }

    proptest! {
        #[test]
        fn any_changed_byte_of_a_slot_or_an_entry_is_noticed(at in 0usize..SLOT_LEN, flip in 1u8..) {
            let mut slot = sealed().encode();
            slot[at] ^= flip;
            prop_assert!(Header::decode(&slot).is_err());
            let mut entry = encode_entry(ChunkId(5), 1, &FrameHeader::new(ChunkId(5), 0, b"bytes"), 0);
            entry[at % ENTRY_LEN] ^= flip;
            prop_assert!(decode_entry(ChunkId(5), 1, &entry).is_none());
            prop_assert!(decode_synced(ChunkId(5), 1, &entry).is_none());
        }
    }

    const GOLDEN_HEADER_CHECK: &str = "9df15e9488bba16b4729d0ff05611a2d54f798be740bb869e5f0f0ab7d5f11b3";
    const GOLDEN_ENTRY_CHECK: &str = "f977de8915635664b03a42a4a295f8e3";
}

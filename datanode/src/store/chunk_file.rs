//! One chunk file: every write and every read of it. The order of writes and syncs, and why a crash
//! between any two of them costs nothing that was promised, is told in `FORMAT.md`.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use dfs_proto::limits::CHUNK_FRAMES_MAX;
use dfs_proto::{ChunkId, FrameHeader};
use rustix::buffer::spare_capacity;
use rustix::fs::Advice;
use rustix::io::Errno;

use super::format::{self, ENTRY_LEN, Header, HeaderFault, SLOTS_LEN, data_offset, entry_offset};

/// Bytes read at once by whoever goes through a chunk: large enough to hide the cost of a call, small
/// enough that a few readers fit in memory.
pub const BATCH_BYTES: u32 = 1 << 20;

/// Entries read at once: with 64 KiB frames a batch has 16, with small frames it ends here.
const BATCH_ENTRIES: u32 = 128;

/// An open handle on a chunk file. Knows nothing of what is whole in it: callers bring that along.
#[derive(Debug)]
pub struct ChunkFile {
    file: File,
    chunk: ChunkId,
}

/// Frames that lie one behind the other, with their bytes.
#[derive(Debug, Default)]
pub struct Batch {
    /// Number of the first frame.
    pub first: u32,
    pub frames: Vec<FrameHeader>,
    /// The bytes of all frames, without gaps.
    pub data: Bytes,
}

/// Why frames could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadFault {
    #[error("entry of frame {0} is not valid")]
    Entry(u32),
    #[error("file ends within frame {0}")]
    Short(u32),
    #[error("frame {number} at byte {offset} does not match its digest")]
    Digest { number: u32, offset: u32 },
    #[error("read failed: {0}")]
    Io(#[from] io::Error),
}

impl ChunkFile {
    /// Makes a new file at `path`, which must not exist, with its first header. Nothing is synced.
    pub fn create(path: &Path, header: &Header) -> io::Result<ChunkFile> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        let chunk_file = ChunkFile { file, chunk: header.chunk };
        match chunk_file.write_header(header) {
            Ok(()) => Ok(chunk_file),
            Err(error) => {
                // A full disk, mostly. Nobody knows of the file: it need not stay.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    pub fn open(path: &Path, chunk: ChunkId) -> io::Result<ChunkFile> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(ChunkFile { file, chunk })
    }

    pub fn open_read_only(path: &Path, chunk: ChunkId) -> io::Result<ChunkFile> {
        Ok(ChunkFile { file: File::open(path)?, chunk })
    }

    pub fn read_header(&self) -> io::Result<Result<Header, HeaderFault>> {
        // A chunk that was made and synced, and of which nothing else reached the disk, ends behind its first slot.
        let mut slots = [0; SLOTS_LEN];
        let mut have = 0;
        while have < SLOTS_LEN {
            match self.file.read_at(&mut slots[have..], have as u64) {
                Ok(0) => break,
                Ok(read) => have += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Header::newest(&slots))
    }

    /// Writes the header into its slot. The other slot, with the header before this one, stays.
    pub fn write_header(&self, header: &Header) -> io::Result<()> {
        self.file.write_all_at(&header.encode(), header.slot_offset())
    }

    /// Writes frames that follow each other, the first of which has number `first`: their bytes, then
    /// their entries, so that an entry that can be read has its bytes behind it as long as the process
    /// lives or dies alone. The entries keep that `synced` bytes of the chunk were synced before.
    pub fn write_frames(&self, first: u32, frames: &[(FrameHeader, Bytes)], synced: u32) -> io::Result<()> {
        let Some((head, _)) = frames.first() else { return Ok(()) };
        let mut slices: Vec<IoSlice> = frames.iter().map(|(_, bytes)| IoSlice::new(bytes)).collect();
        self.write_all_vectored_at(&mut slices, data_offset(head.offset))?;
        let mut entries = Vec::with_capacity(frames.len() * ENTRY_LEN);
        for (number, (frame, _)) in (first..).zip(frames) {
            entries.extend_from_slice(&format::encode_entry(self.chunk, number, frame, synced));
        }
        self.file.write_all_at(&entries, entry_offset(first))
    }

    /// Notes, in the place where the entry of the next frame will be, that `synced` bytes are synced. The note itself is
    /// not. No entry is written over for it: one that is synced must not be at risk again.
    pub fn note_synced(&self, frames: u32, synced: u32) -> io::Result<()> {
        if frames == CHUNK_FRAMES_MAX {
            return Ok(());
        }
        self.file.write_all_at(&format::encode_note(self.chunk, frames, synced), entry_offset(frames))
    }

    /// How many bytes the entries and notes say were synced, at least; 0 if none can be read.
    pub fn noted_synced(&self) -> Result<u32, ReadFault> {
        let mut most = 0;
        let mut entries = vec![0; BATCH_ENTRIES as usize * ENTRY_LEN];
        for first in (0..CHUNK_FRAMES_MAX).step_by(BATCH_ENTRIES as usize) {
            match self.file.read_exact_at(&mut entries, entry_offset(first)) {
                Ok(()) => {}
                // A file is longer than its index as soon as it has a frame.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(e) => return Err(e.into()),
            }
            let noted = (first..).zip(entries.chunks_exact(ENTRY_LEN));
            let noted = noted.filter_map(|(number, entry)| format::decode_synced(self.chunk, number, entry));
            most = noted.fold(most, u32::max);
        }
        Ok(most)
    }

    /// Forces data, index and header to disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Removes every byte from chunk offset `len` on.
    pub fn cut(&self, len: u32) -> io::Result<()> {
        self.file.set_len(data_offset(len))
    }

    /// Bytes of the chunk that the file is long enough to hold.
    pub fn data_len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len().saturating_sub(format::DATA_START))
    }

    /// The number of the frame that holds byte `offset`, in a chunk of `frames` frames.
    ///
    /// Frames are mostly of one size, so the first guess is mostly right; otherwise a binary search
    /// over the entries on disk. No index is kept in memory.
    pub fn find_frame(&self, offset: u32, frames: u32, len: u32) -> Result<u32, ReadFault> {
        let (mut low, mut high) = (0, frames);
        let mut guess = (u64::from(offset) * u64::from(frames)).checked_div(u64::from(len)).unwrap_or(0) as u32;
        while low < high {
            let at = guess.clamp(low, high - 1);
            let entry = self.entry(at)?;
            if offset < entry.offset {
                high = at;
            } else if offset >= entry.end() {
                low = at + 1;
            } else {
                return Ok(at);
            }
            guess = low + (high - low) / 2;
        }
        Ok(low)
    }

    /// Reads one entry. It must lie below the number of frames known to be there.
    pub fn entry(&self, number: u32) -> Result<FrameHeader, ReadFault> {
        let mut bytes = [0; ENTRY_LEN];
        self.file.read_exact_at(&mut bytes, entry_offset(number)).map_err(|e| ended_early(e, number))?;
        format::decode_entry(self.chunk, number, &bytes).ok_or(ReadFault::Entry(number))
    }

    /// The bytes of one frame, whatever they are.
    pub fn frame_bytes(&self, number: u32, frame: &FrameHeader) -> Result<Vec<u8>, ReadFault> {
        self.read_at(data_offset(frame.offset), frame.len as usize).map_err(|e| ended_early(e, number))
    }

    /// Reads all entries, which must follow each other from the start of the chunk.
    pub fn index(&self, frames: u32) -> Result<Vec<FrameHeader>, ReadFault> {
        let mut entries = vec![0; frames as usize * ENTRY_LEN];
        self.file.read_exact_at(&mut entries, entry_offset(0)).map_err(|e| ended_early(e, 0))?;
        let mut index: Vec<FrameHeader> = Vec::with_capacity(frames as usize);
        for (number, entry) in (0..).zip(entries.chunks_exact(ENTRY_LEN)) {
            let follows = |frame: &FrameHeader| index.last().map_or(0, FrameHeader::end) == frame.offset;
            let frame = format::decode_entry(self.chunk, number, entry).filter(follows);
            index.push(frame.ok_or(ReadFault::Entry(number))?);
        }
        Ok(index)
    }

    pub fn into_file(self) -> File {
        self.file
    }

    /// Reads frames from number `first` on, below number `frames`, until one starts at or behind chunk
    /// offset `end` or `bytes_max` is reached; always at least one if there is one. Ends before an entry
    /// that is not valid or does not follow; fails if that is the first one. Digests are not checked.
    pub fn load(&self, first: u32, frames: u32, end: u32, bytes_max: u32) -> Result<Batch, ReadFault> {
        let count = frames.saturating_sub(first).min(BATCH_ENTRIES);
        let mut entries = vec![0; count as usize * ENTRY_LEN];
        self.file.read_exact_at(&mut entries, entry_offset(first)).map_err(|e| ended_early(e, first))?;
        let mut batch = Batch { first, ..Batch::default() };
        let mut bytes = 0;
        for (number, entry) in (first..).zip(entries.chunks_exact(ENTRY_LEN)) {
            let follows = |frame: &FrameHeader| batch.frames.last().is_none_or(|last| last.end() == frame.offset);
            let Some(frame) = format::decode_entry(self.chunk, number, entry).filter(follows) else {
                if batch.frames.is_empty() {
                    return Err(ReadFault::Entry(number));
                }
                break;
            };
            if !batch.frames.is_empty() && (frame.offset >= end || bytes + frame.len > bytes_max) {
                break;
            }
            bytes += frame.len;
            batch.frames.push(frame);
        }
        if let Some(head) = batch.frames.first() {
            let data = self.read_at(data_offset(head.offset), bytes as usize);
            batch.data = data.map_err(|e| ended_early(e, first))?.into();
        }
        Ok(batch)
    }

    /// Tells the kernel that what it caches of this file should be dropped, so that the next read
    /// comes from the disk. Only advice: dirty pages stay.
    pub fn forget_cached(&self) {
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::DontNeed);
    }

    /// Notes `at` as the time at which every frame matched.
    pub fn set_verified(&self, at: std::time::SystemTime) -> io::Result<()> {
        self.file.set_modified(at)
    }

    /// When every frame last matched.
    pub fn verified(&self) -> io::Result<std::time::SystemTime> {
        self.file.metadata()?.modified()
    }

    /// Reads exactly `len` bytes into fresh memory, which is not zeroed first.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let at = offset + bytes.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // The allocator may have given room for more.
        bytes.truncate(len);
        Ok(bytes)
    }

    fn write_all_vectored_at(&self, mut slices: &mut [IoSlice], mut offset: u64) -> io::Result<()> {
        // The kernel takes at most so many pieces in one call (IOV_MAX).
        const PIECES_MAX: usize = 1024;
        while !slices.is_empty() {
            let pieces = slices.len().min(PIECES_MAX);
            match rustix::io::pwritev(&self.file, &slices[..pieces], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut slices, n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl Batch {
    /// Each frame with its bytes, sharing the batch's memory.
    pub fn iter(&self) -> impl Iterator<Item = (&FrameHeader, Bytes)> {
        let mut at = 0;
        self.frames.iter().map(move |frame| {
            let start = at;
            at += frame.len as usize;
            (frame, self.data.slice(start..at))
        })
    }

    /// Number of the frame behind the last.
    pub fn next(&self) -> u32 {
        self.first + self.frames.len() as u32
    }
}

fn ended_early(error: io::Error, number: u32) -> ReadFault {
    if error.kind() == io::ErrorKind::UnexpectedEof { ReadFault::Short(number) } else { ReadFault::Io(error) }
}

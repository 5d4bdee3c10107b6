//! Reading a replica again from the disk, frame by frame; in the running node, and offline.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use dfs_proto::limits::CHUNK_FRAMES_MAX;
use dfs_proto::{ChunkId, Epoch};
use tracing::warn;

use super::chunk_file::{ChunkFile, ReadFault};
use super::error::{self, StoreError};
use super::format::{Header, HeaderFault, State};
use super::recover::Walk;
use super::volume::chunk_of;
use super::{Replica, Store};
use crate::clock;

/// A verification under way: goes on step by step, so that its caller sets the pace.
pub struct Verification {
    chunk: ChunkId,
    examined: Replica,
    file: ChunkFile,
    walk: Walk,
}

/// What a verification found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Whole {
        epoch: Epoch,
        len: u32,
    },
    Damaged {
        epoch: Epoch,
        reason: String,
    },
    /// The replica was sealed, replaced or deleted meanwhile: nothing is said about it.
    Changed,
}

impl Store {
    /// Begins to read a replica again, from the disk and not from the page cache.
    pub fn begin_verification(&self, chunk: ChunkId) -> Result<Verification, StoreError> {
        let examined = self.chunks.get(chunk).ok_or(StoreError::NotHere(chunk))?;
        // Even if it can be read: nothing on a failed volume counts.
        if examined.lost {
            self.volume_of(&examined).check()?;
        }
        if examined.state == State::Damaged {
            return Err(StoreError::Damaged { chunk, reason: "was found damaged before".into() });
        }
        let path = self.volume_of(&examined).chunk_path(chunk);
        let opened = ChunkFile::open(&path, chunk).and_then(|file| Ok((file.read_header()?, file)));
        let reason = match opened {
            Ok((Ok(header), file)) if examined.state != State::Sealed || describes(&header, &examined) => {
                file.forget_cached();
                return Ok(Verification { chunk, examined, file, walk: Walk::default() });
            }
            Ok((Ok(_), _)) => "its header does not say what was sealed".to_owned(),
            Ok((Err(fault), _)) => fault.to_string(),
            Err(source) if error::is_shortage(&source) => return Err(StoreError::Io { what: "opening", source }),
            Err(source) => format!("cannot be opened: {source}"),
        };
        self.found_damaged(chunk, &examined, 0, &reason);
        Err(StoreError::Damaged { chunk, reason })
    }

    /// Verifies about a mebibyte more; whether there is more to do.
    pub fn step_verification(&self, verification: &mut Verification) -> bool {
        let Verification { chunk, examined, file, walk } = verification;
        walk.step(file, *chunk, examined.frames)
    }

    /// Draws the conclusion, and keeps it: the time of a success, the mark of a failure.
    pub fn end_verification(&self, verification: Verification) -> Verdict {
        let Verification { chunk, examined, file, walk } = verification;
        let epoch = examined.epoch;
        let reason = match walk.fault {
            None if walk.len == examined.len => {
                let now_s = clock::now_s();
                let same = |replica: &Replica| (replica.epoch, replica.volume) == (epoch, examined.volume);
                self.chunks.update(chunk, |replica| {
                    if same(replica) {
                        replica.verified_s = now_s;
                    }
                });
                if examined.state == State::Sealed
                    && let Err(error) = file.set_verified(SystemTime::now())
                {
                    warn!(%chunk, %error, "cannot note the time of verification");
                }
                return Verdict::Whole { epoch, len: examined.len };
            }
            None => format!("{} of {} bytes are whole", walk.len, examined.len),
            Some(ReadFault::Io(source)) if error::is_shortage(&source) => return Verdict::Changed,
            Some(fault) => fault.to_string(),
        };
        match self.found_damaged(chunk, &examined, walk.len, &reason) {
            true => Verdict::Damaged { epoch, reason },
            false => Verdict::Changed,
        }
    }
}

fn describes(header: &Header, replica: &Replica) -> bool {
    (header.state, header.epoch, header.len, header.frames)
        == (State::Sealed, replica.epoch, replica.len, replica.frames)
}

/// What `dfs datanode verify FILE` says; `Display` prints it.
#[derive(Clone, Debug)]
pub struct FileReport {
    pub path: PathBuf,
    pub header: Header,
    /// Whole frames from the start, and the bytes in them.
    pub frames: u32,
    pub whole: u32,
    /// Everything that is wrong; empty is healthy. An open chunk that ends in a torn tail is healthy.
    pub problems: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{}: {fault}", .path.display())]
    Header { path: PathBuf, fault: HeaderFault },
}

/// Reads a chunk file without a running node and verifies every frame. Changes nothing.
pub fn verify_file(path: &Path) -> Result<FileReport, VerifyError> {
    let io = |source| VerifyError::Io { path: path.to_owned(), source };
    // The header says which chunk it is, and reading it needs no id.
    let probe = ChunkFile::open_read_only(path, ChunkId(0)).map_err(io)?;
    let header = probe.read_header().map_err(io)?;
    let header = header.map_err(|fault| VerifyError::Header { path: path.to_owned(), fault })?;
    let file = ChunkFile::open_read_only(path, header.chunk).map_err(io)?;
    let open = header.state == State::Open;
    let walk = Walk::whole(&file, header.chunk, if open { CHUNK_FRAMES_MAX } else { header.frames });
    let mut problems = Vec::new();
    if chunk_of(path).is_some_and(|named| named != header.chunk) {
        problems.push(format!("the file's name says another chunk than its header, {}", header.chunk));
    }
    match &walk.fault {
        Some(fault) if !open => problems.push(fault.to_string()),
        None if !open && walk.len != header.len => {
            problems.push(format!("{} of {} bytes are whole", walk.len, header.len));
        }
        _ => {}
    }
    if header.state == State::Damaged {
        problems.push(format!("marked as damaged behind byte {}", header.whole));
    }
    Ok(FileReport { path: path.to_owned(), header, frames: walk.frames, whole: walk.len, problems })
}

impl FileReport {
    pub fn is_healthy(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Header { cluster, chunk, epoch, state, len, generation, .. } = self.header;
        let state = match state {
            State::Open => "open",
            State::Sealed => "sealed",
            State::Damaged => "damaged",
        };
        writeln!(f, "{}", self.path.display())?;
        writeln!(f, "  chunk file version {}", dfs_proto::version::CHUNK_FILE_VERSION)?;
        writeln!(f, "  cluster    {cluster}")?;
        writeln!(f, "  chunk      {chunk}")?;
        writeln!(f, "  epoch      {epoch}")?;
        writeln!(f, "  state      {state}")?;
        if self.header.state != State::Open {
            writeln!(f, "  length     {len} bytes")?;
        }
        writeln!(f, "  generation {generation}")?;
        writeln!(f, "  whole      {} bytes in {} frames", self.whole, self.frames)?;
        self.problems.iter().try_for_each(|problem| writeln!(f, "  problem: {problem}"))
    }
}

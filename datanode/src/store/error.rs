use std::io;
use std::path::PathBuf;

use dfs_proto::{ChunkId, Epoch, ErrorKind, WireError};
use rustix::io::Errno;

use super::chunk_file::ReadFault;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("chunk {0} is not here")]
    NotHere(ChunkId),
    #[error("chunk {0} has been opened for appending before")]
    AlreadyHere(ChunkId),
    /// The chunk was sealed or deleted meanwhile.
    #[error("chunk {0} takes no more frames")]
    NotOpen(ChunkId),
    #[error("chunk {0} is not sealed")]
    NotSealed(ChunkId),
    #[error("chunk {chunk} has epoch {here} here, and {asked} was asked for")]
    StaleEpoch { chunk: ChunkId, here: Epoch, asked: Epoch },
    #[error("frame at {found} of chunk {chunk} does not follow the one that ends at {end}")]
    NotContiguous { chunk: ChunkId, end: u32, found: u32 },
    #[error("chunk {0} has as many frames as fit")]
    Full(ChunkId),
    #[error("chunk {chunk}: frame at {offset} does not match its digest")]
    WrongDigest { chunk: ChunkId, offset: u32 },
    /// An open replica that has not got what was asked for.
    #[error("chunk {chunk} has {here} bytes here, and {asked} were asked for")]
    Short { chunk: ChunkId, here: u32, asked: u32 },
    #[error("chunk {chunk} is damaged: {reason}")]
    Damaged { chunk: ChunkId, reason: String },
    #[error("another copy of chunk {0} is on its way in")]
    Copying(ChunkId),
    #[error("no room on any volume")]
    NoSpace,
    #[error("volume {} has failed: {reason}", .path.display())]
    VolumeFailed { path: PathBuf, reason: String },
    #[error("the volumes are still being read")]
    NotScanned,
    /// Nothing that says anything about the disk: too many open files, for example.
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    pub fn damaged(chunk: ChunkId, fault: &ReadFault) -> StoreError {
        StoreError::Damaged { chunk, reason: fault.to_string() }
    }

    /// What the peer should do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::NotHere(_) | StoreError::Short { .. } | StoreError::Damaged { .. } => ErrorKind::BadReplica,
            StoreError::AlreadyHere(_) | StoreError::NotOpen(_) | StoreError::StaleEpoch { .. } => {
                ErrorKind::StaleEpoch
            }
            StoreError::NotContiguous { .. } | StoreError::WrongDigest { .. } => ErrorKind::Malformed,
            StoreError::Full(_) => ErrorKind::FileTooLarge,
            StoreError::NotSealed(_) => ErrorKind::NotSupported,
            StoreError::NoSpace => ErrorKind::NoSpace,
            StoreError::NotScanned | StoreError::Copying(_) => ErrorKind::Unavailable,
            StoreError::VolumeFailed { .. } | StoreError::Io { .. } => ErrorKind::Internal,
        }
    }

    pub fn to_wire(&self) -> WireError {
        WireError::new(self.kind(), self.to_string())
    }
}

/// Whether a write failed only because the disk, or somebody's share of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    [Errno::NOSPC, Errno::DQUOT].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether a file could not be opened for want of file handles, which says nothing about the disk.
pub fn is_shortage(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

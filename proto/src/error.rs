//! The error that crosses the wire: coarse, prescriptive, with the reason in words.

use serde::{Deserialize, Serialize};

/// A kind exists only where the caller would act differently. It alone picks the errno at a mount and
/// the exit code at the command line; nobody matches on the message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub enum ErrorKind {
    // Answers about the namespace, each one errno.
    NotFound,
    Exists,
    NotADirectory,
    IsADirectory,
    NotEmpty,
    /// The caller's permission bits do not allow it (EACCES).
    AccessDenied,
    /// Only the owner or root may (EPERM).
    NotPermitted,
    InvalidArgument,
    NameTooLong,
    TooManyLinks,
    TooManySymlinks,
    FileTooLarge,
    /// The inode is gone although a handle or a cache still names it (ESTALE).
    Stale,
    NotSupported,
    /// No datanode has room (ENOSPC).
    NoSpace,

    // What the caller should do next.
    /// Ask the leader; `WireError::leader` may say who it is.
    NotLeader,
    /// Try again after a pause: an election, a start, an overload.
    Unavailable,
    /// The deadline passed. Whether a mutation was done is unknown; repeat it with its request number.
    Timeout,
    /// The session is unknown or expired: open a new one; what it held is gone.
    SessionExpired,
    /// The epoch is old: somebody else decided who may append. Ask the namenode again.
    StaleEpoch,
    /// The capability is expired or signed with a retired key: fetch a new one.
    CapabilityExpired,
    /// The peer may not do this: wrong role, forged capability, foreign cluster.
    Forbidden,
    /// The replica is missing or damaged here: read another one and report this one.
    BadReplica,
    /// No good replica is left, or stored state is damaged (EIO, exit code 6).
    Corrupt,
    /// The message could not be understood: a bug or a hostile peer.
    Malformed,
    /// Disk or state machine failed on that node.
    Internal,

    // Answers about locks, each one errno.
    /// Somebody else's lock is in the way (EAGAIN).
    WouldBlock,
    /// Owners of locks would wait for each other for ever (EDEADLK).
    Deadlock,
    /// Too many locks, or a lock that was lost with its session (ENOLCK).
    NoLocks,
    /// Too many files are open (ENFILE).
    TooManyOpen,
    // More answers about the namespace.
    /// There is no such extended attribute (ENODATA).
    NoAttribute,
    /// A value beyond its limit (E2BIG).
    TooBig,

    /// A directory is private to another session. Heard by the leader alone, which has it shared and tries again.
    Private,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, thiserror::Error)]
#[error("{message}")]
pub struct WireError {
    pub kind: ErrorKind,
    pub message: String,
    /// With `NotLeader`: the id of the leading namenode where known.
    pub leader: Option<u64>,
}

impl WireError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> WireError {
        WireError { kind, message: message.into(), leader: None }
    }
}

impl ErrorKind {
    /// Whether the same request may be sent again, to this or another node.
    pub fn retryable(self) -> bool {
        matches!(self, ErrorKind::NotLeader | ErrorKind::Unavailable | ErrorKind::Timeout)
    }
}

//! The one table from errors to errno.

use dfs_proto::ErrorKind;
use dfs_proto::name::BadName;
use dfs_proto::xattr::BadXattr;

/// A number from `errno.h`, never 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Errno(pub i32);

impl Errno {
    pub const BAD_HANDLE: Errno = Errno(libc::EBADF);
    pub const INVALID: Errno = Errno(libc::EINVAL);
    /// An offset behind the end, or without data behind it.
    pub const NO_SUCH_PLACE: Errno = Errno(libc::ENXIO);
    pub const NO_MEMORY: Errno = Errno(libc::ENOMEM);
    pub const NOT_SUPPORTED: Errno = Errno(libc::EOPNOTSUPP);
    pub const NO_ATTRIBUTE: Errno = Errno(libc::ENODATA);
    /// The buffer is too small.
    pub const RANGE: Errno = Errno(libc::ERANGE);
    pub const TIMED_OUT: Errno = Errno(libc::ETIMEDOUT);
    pub const INTERRUPTED: Errno = Errno(libc::EINTR);
    pub const WOULD_BLOCK: Errno = Errno(libc::EAGAIN);
    pub const IO: Errno = Errno(libc::EIO);
    pub const NO_LOCKS: Errno = Errno(libc::ENOLCK);
    pub const TOO_LARGE: Errno = Errno(libc::EFBIG);
    /// The kernel answers such a request itself from then on and does not ask again.
    pub const UNKNOWN_REQUEST: Errno = Errno(libc::ENOSYS);
}

impl From<ErrorKind> for Errno {
    fn from(kind: ErrorKind) -> Errno {
        Errno(match kind {
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::Exists => libc::EEXIST,
            ErrorKind::NotADirectory => libc::ENOTDIR,
            ErrorKind::IsADirectory => libc::EISDIR,
            ErrorKind::NotEmpty => libc::ENOTEMPTY,
            ErrorKind::AccessDenied => libc::EACCES,
            ErrorKind::NotPermitted => libc::EPERM,
            ErrorKind::InvalidArgument => libc::EINVAL,
            ErrorKind::NameTooLong => libc::ENAMETOOLONG,
            ErrorKind::TooManyLinks => libc::EMLINK,
            ErrorKind::TooManySymlinks => libc::ELOOP,
            ErrorKind::FileTooLarge => libc::EFBIG,
            ErrorKind::Stale => libc::ESTALE,
            ErrorKind::NotSupported => libc::EOPNOTSUPP,
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::NoAttribute => libc::ENODATA,
            ErrorKind::TooBig => libc::E2BIG,

            // The client has retried these until its deadline.
            ErrorKind::NotLeader | ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Private => libc::ETIMEDOUT,

            // The client renews or replaces what these name; one that still gets here could not be mended.
            ErrorKind::SessionExpired | ErrorKind::StaleEpoch | ErrorKind::CapabilityExpired => libc::EIO,

            // This mount's certificate may not do it, whoever the caller is.
            ErrorKind::Forbidden => libc::EACCES,

            // Lost or damaged data is an error, never zeros.
            ErrorKind::BadReplica | ErrorKind::Corrupt => libc::EIO,

            ErrorKind::Malformed | ErrorKind::Internal => libc::EIO,

            ErrorKind::WouldBlock => libc::EAGAIN,
            ErrorKind::Deadlock => libc::EDEADLK,
            ErrorKind::NoLocks => libc::ENOLCK,
            ErrorKind::TooManyOpen => libc::ENFILE,
        })
    }
}

/// Logs what the number cannot say: for the operator when the cluster is at fault, else for debugging.
impl From<dfs_client::Error> for Errno {
    fn from(error: dfs_client::Error) -> Errno {
        let errno = Errno::from(error.kind);
        match errno.0 {
            libc::EIO | libc::ETIMEDOUT | libc::ENOSPC => tracing::warn!(%error, "operation failed"),
            _ => tracing::debug!(%error, "operation refused"),
        }
        errno
    }
}

impl From<BadName> for Errno {
    fn from(bad: BadName) -> Errno {
        Errno(match bad {
            BadName::TooLong => libc::ENAMETOOLONG,
            BadName::NotAllowed => libc::EINVAL,
        })
    }
}

impl From<BadXattr> for Errno {
    fn from(bad: BadXattr) -> Errno {
        Errno(match bad {
            BadXattr::Name => libc::ERANGE,
            BadXattr::Value => libc::E2BIG,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_about_the_namespace_keep_their_errno_apart() {
        let kinds = [
            ErrorKind::NotFound,
            ErrorKind::Exists,
            ErrorKind::NotADirectory,
            ErrorKind::IsADirectory,
            ErrorKind::NotEmpty,
            ErrorKind::AccessDenied,
            ErrorKind::NotPermitted,
            ErrorKind::InvalidArgument,
            ErrorKind::NameTooLong,
            ErrorKind::TooManyLinks,
            ErrorKind::TooManySymlinks,
            ErrorKind::FileTooLarge,
            ErrorKind::Stale,
            ErrorKind::NotSupported,
            ErrorKind::NoSpace,
            ErrorKind::WouldBlock,
            ErrorKind::Deadlock,
            ErrorKind::NoLocks,
            ErrorKind::TooManyOpen,
            ErrorKind::NoAttribute,
            ErrorKind::TooBig,
        ];
        let numbers: std::collections::BTreeSet<i32> = kinds.iter().map(|&kind| Errno::from(kind).0).collect();
        assert_eq!(numbers.len(), kinds.len());
        assert!(!numbers.contains(&libc::EIO) && !numbers.contains(&libc::ETIMEDOUT));
    }

    #[test]
    fn lost_data_is_an_io_error() {
        assert_eq!(Errno::from(ErrorKind::Corrupt), Errno(libc::EIO));
        assert_eq!(Errno::from(ErrorKind::BadReplica), Errno(libc::EIO));
    }

    #[test]
    fn a_cluster_that_cannot_be_reached_times_out() {
        for kind in [ErrorKind::NotLeader, ErrorKind::Unavailable, ErrorKind::Timeout] {
            assert!(kind.retryable());
            assert_eq!(Errno::from(kind), Errno(libc::ETIMEDOUT));
        }
    }

    #[test]
    fn no_number_means_that_the_kernel_should_stop_asking() {
        // ENOSYS would switch an operation off for the rest of the mount's life.
        assert_ne!(Errno::from(ErrorKind::NotSupported), Errno::UNKNOWN_REQUEST);
    }
}

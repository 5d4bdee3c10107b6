//! The one error of this crate: what to do about it (`kind`), what happened (`message`), and, where
//! there is something to try, a hint.

use dfs_proto::name::BadName;
use dfs_proto::{ErrorKind, WireError};
use dfs_rpc::RpcError;

pub type Result<T> = std::result::Result<T, Error>;

/// `kind` alone picks the errno at a mount and the exit code at the command line.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    pub kind: ErrorKind,
    pub message: String,
    hint: Option<String>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), hint: None }
    }

    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// What the user may try.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The same error, said to have happened while doing `what`.
    pub fn context(mut self, what: impl std::fmt::Display) -> Error {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Error {
        Error::new(error.kind, error.message)
    }
}

impl From<RpcError> for Error {
    fn from(error: RpcError) -> Error {
        match error {
            RpcError::Refused(error) => error.into(),
            RpcError::Tls(_) => Error::new(error.kind(), error.to_string())
                .with_hint("check the [tls] section of cluster.toml and that the files belong to this cluster"),
            other => Error::new(other.kind(), other.to_string()),
        }
    }
}

impl From<BadName> for Error {
    fn from(error: BadName) -> Error {
        let kind = match error {
            BadName::TooLong => ErrorKind::NameTooLong,
            BadName::NotAllowed => ErrorKind::InvalidArgument,
        };
        Error::new(kind, error.to_string())
    }
}

/// A peer of this cluster answered something that does not belong to the question.
pub(crate) fn unexpected_answer(to: &str) -> Error {
    Error::new(ErrorKind::Malformed, format!("the namenode's answer to {to} is of another kind"))
}

use std::net::SocketAddr;

use dfs_proto::{ErrorKind, WireError};

/// Why a connection, a stream or a call failed. Whoever holds one decides by `kind`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RpcError {
    /// The peer answered, and the answer was no.
    #[error("{0}")]
    Refused(WireError),
    #[error("cannot reach {addr}: {reason}")]
    Unreachable { addr: SocketAddr, reason: String },
    #[error("no answer within {0} ms")]
    Timeout(u128),
    #[error("connection lost: {0}")]
    Closed(String),
    /// What arrived is no message of this protocol.
    #[error("malformed message: {0}")]
    Malformed(String),
    /// Certificates or keys of this side cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    #[error("{what}: {reason}")]
    Io { what: String, reason: String },
}

impl RpcError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            RpcError::Refused(error) => error.kind,
            RpcError::Unreachable { .. } | RpcError::Closed(_) => ErrorKind::Unavailable,
            RpcError::Timeout(_) => ErrorKind::Timeout,
            RpcError::Malformed(_) => ErrorKind::Malformed,
            RpcError::Tls(_) => ErrorKind::Forbidden,
            RpcError::Io { .. } => ErrorKind::Internal,
        }
    }

    /// The form in which one node passes a failure on to another.
    pub fn to_wire(&self) -> WireError {
        match self {
            RpcError::Refused(error) => error.clone(),
            other => WireError::new(other.kind(), other.to_string()),
        }
    }
}

impl From<quinn::ConnectionError> for RpcError {
    fn from(error: quinn::ConnectionError) -> Self {
        RpcError::Closed(error.to_string())
    }
}

impl From<quinn::WriteError> for RpcError {
    fn from(error: quinn::WriteError) -> Self {
        RpcError::Closed(error.to_string())
    }
}

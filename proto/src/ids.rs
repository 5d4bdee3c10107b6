//! Identifiers. Each is a type of its own, so that one can never stand where another belongs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug, Default)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id!(
    /// A file, directory, symlink, fifo or device. Never used again once freed.
    InodeId
);
number_id!(
    /// Up to 64 MiB of append-only bytes. Never used again once freed.
    ChunkId
);
number_id!(
    /// A namenode or a datanode. The two share one number space; a number is never used again.
    NodeId
);
number_id!(
    /// A client's lease with the namenode group.
    SessionId
);
number_id!(
    /// Raised by the namenode whenever who may append to a chunk, or which of its replicas count,
    /// changes. Datanodes persist it and refuse what carries a lower one.
    Epoch
);

impl InodeId {
    /// The root directory. Number 1, as the kernel's FUSE protocol has it.
    pub const ROOT: InodeId = InodeId(1);
}

impl Epoch {
    /// The epoch a chunk is born with.
    pub const FIRST: Epoch = Epoch(1);

    /// The next higher epoch.
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

/// Names one mutation of one session, so that a retry is answered and not done twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct RequestId {
    pub session: SessionId,
    /// Counted up by the client from 1.
    pub number: u64,
}

/// Names one cluster for ever. Part of every certificate, data folder and chunk file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

/// A text that is not a cluster id.
#[derive(Debug, thiserror::Error)]
#[error("a cluster id is 32 hexadecimal digits")]
pub struct NotAClusterId;

impl FromStr for ClusterId {
    type Err = NotAClusterId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 32 || !text.is_ascii() {
            return Err(NotAClusterId);
        }
        let mut bytes = [0; 16];
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| NotAClusterId)?;
        }
        Ok(ClusterId(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_id_survives_its_text_form() {
        let id = ClusterId([7, 0, 255, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(id.to_string().parse::<ClusterId>().unwrap(), id);
        assert!("zz".parse::<ClusterId>().is_err());
    }
}

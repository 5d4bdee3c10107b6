//! The types that openraft is instantiated with.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};

use bytes::Bytes;
use dfs_meta::{Command, Outcome};
use dfs_proto::Timestamp;
use dfs_proto::codec::{self, CodecError};
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

openraft::declare_raft_types!(
    pub TypeConfig:
        D = Batch,
        R = Outcomes,
        NodeId = u64,
        Node = Member,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = super::snapshot::SnapshotFiles,
        AsyncRuntime = openraft::TokioRuntime,
);

pub type Raft = openraft::Raft<TypeConfig>;
pub type Entry = openraft::Entry<TypeConfig>;
pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type Metrics = openraft::RaftMetrics<u64, Member>;
pub type StoredMembership = openraft::StoredMembership<u64, Member>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, Member>;
pub type Snapshot = openraft::Snapshot<TypeConfig>;
pub type StorageError = openraft::StorageError<u64>;
pub type AppendRequest = openraft::raft::AppendEntriesRequest<TypeConfig>;
pub type AppendResponse = openraft::raft::AppendEntriesResponse<u64>;
pub type VoteRequest = openraft::raft::VoteRequest<u64>;
pub type VoteResponse = openraft::raft::VoteResponse<u64>;
pub type SnapshotResponse = openraft::raft::SnapshotResponse<u64>;

/// A namenode as the membership knows it. Part of log entries, of the applied mark and of snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredMember", into = "StoredMember")]
pub struct Member {
    /// Its meta plane, where clients are sent.
    pub addr: SocketAddr,
    /// What people call it. Empty in memberships of before names were kept.
    pub name: String,
    /// Its Raft plane; `None` in memberships of before: then the configuration says where it is.
    pub raft_addr: Option<SocketAddr>,
}

impl Default for Member {
    /// openraft wants one for memberships that are given as bare ids; ours never are.
    fn default() -> Self {
        Member { addr: SocketAddr::from(([0, 0, 0, 0], 0)), name: String::new(), raft_addr: None }
    }
}

/// A member as it is encoded. The first two variants are, byte for byte, the `SocketAddr` that was a member's only
/// field once, so logs and snapshots of then are readable.
#[derive(Clone, Serialize, Deserialize)]
enum StoredMember {
    V4(SocketAddrV4),
    V6(SocketAddrV6),
    Named { addr: SocketAddr, name: String, raft_addr: Option<SocketAddr> },
}

impl From<StoredMember> for Member {
    fn from(stored: StoredMember) -> Member {
        let unnamed = |addr| Member { addr, ..Member::default() };
        match stored {
            StoredMember::V4(addr) => unnamed(addr.into()),
            StoredMember::V6(addr) => unnamed(addr.into()),
            StoredMember::Named { addr, name, raft_addr } => Member { addr, name, raft_addr },
        }
    }
}

impl From<Member> for StoredMember {
    fn from(Member { addr, name, raft_addr }: Member) -> StoredMember {
        StoredMember::Named { addr, name, raft_addr }
    }
}

/// What one log entry carries: encoded commands, each behind its length in four little-endian bytes.
/// They are encoded once by the leader's batcher and decoded once by each node that applies them; log,
/// cache and network pass the bytes on.
#[derive(Clone, PartialEq, Eq)]
pub struct Batch(Bytes);

impl Batch {
    pub fn new(encoded: &[Vec<u8>]) -> Batch {
        let mut bytes = Vec::with_capacity(encoded.iter().map(|command| 4 + command.len()).sum());
        for command in encoded {
            bytes.extend_from_slice(&(command.len() as u32).to_le_bytes());
            bytes.extend_from_slice(command);
        }
        Batch(bytes.into())
    }

    /// Bytes of the encoded commands.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn decode(&self) -> Result<Vec<Command>, CodecError> {
        let mut rest = &self.0[..];
        let mut commands = Vec::new();
        while let Some((len, behind)) = rest.split_first_chunk::<4>() {
            let len = u32::from_le_bytes(*len) as usize;
            let (command, behind) = behind
                .split_at_checked(len)
                .ok_or_else(|| CodecError::Decode("a batch ends within a command".into()))?;
            commands.push(codec::decode_large(command)?);
            rest = behind;
        }
        if rest.is_empty() { Ok(commands) } else { Err(CodecError::Trailing(rest.len())) }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} bytes)", self.0.len())
    }
}

impl Serialize for Batch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;

        impl Visitor<'_> for BytesVisitor {
            type Value = Batch;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a batch")
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Batch, E> {
                Ok(Batch(bytes.into()))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Batch, E> {
                Ok(Batch(Bytes::copy_from_slice(bytes)))
            }
        }

        deserializer.deserialize_byte_buf(BytesVisitor)
    }
}

/// What applying an entry answered, one for each of its commands.
#[derive(Default, Debug, Serialize, Deserialize)]
pub struct Outcomes {
    /// openraft asks for a serialisable type and never sends it: a reply goes to the proposer, on this node.
    #[serde(skip)]
    pub each: Vec<Outcome>,
}

/// How far the log has been applied to the state; written in the same batch as the rows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AppliedMark {
    pub last_applied: Option<LogId>,
    pub membership: StoredMembership,
    /// The latest time that a command carried.
    pub now: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_meta::Body;
    use dfs_proto::SessionId;

    #[test]
    fn members_of_before_names_are_readable_and_new_ones_survive_their_bytes() {
        for addr in ["10.1.2.3:8020", "[fd00::7]:8020"] {
            let addr: SocketAddr = addr.parse().unwrap();
            let unnamed: Member = codec::decode(&codec::encode(&addr).unwrap()).unwrap();
            assert_eq!(unnamed, Member { addr, ..Member::default() });
            let named = Member { addr, name: "nn4".into(), raft_addr: Some(addr) };
            assert_eq!(codec::decode::<Member>(&codec::encode(&named).unwrap()).unwrap(), named);
        }
    }

    #[test]
    fn a_batch_survives_its_bytes_and_a_cut_one_is_an_error() {
        let command = |n| Command {
            now: Timestamp { secs: n, nanos: 0 },
            body: Body::ExpireSessions { sessions: vec![SessionId(n as u64)] },
        };
        let encoded: Vec<_> = (0..3).map(|n| codec::encode(&command(n)).unwrap()).collect();
        let batch = Batch::new(&encoded);
        let again: Batch = codec::decode(&codec::encode(&batch).unwrap()).unwrap();
        assert_eq!(again.decode().unwrap(), [command(0), command(1), command(2)]);
        for len in [1, 3, batch.0.len() - 1] {
            assert!(Batch(batch.0.slice(..len)).decode().is_err());
        }
    }
}

//! Signed permissions that are checked without asking the namenode.
//!
//! A *capability* lets one client read or append one chunk for a while; datanodes check it. A *grant*
//! proves to any leading namenode that a file was opened with permission, so that a later `chmod`
//! does not take away what an open file may do, and no open-file table has to be replicated.
//! Both are BLAKE3 keyed MACs under a key that is kept in replicated state and handed to datanodes.

use serde::{Deserialize, Serialize};

use crate::attr::Timestamp;
use crate::identity::PeerIdentity;
use crate::ids::{ChunkId, InodeId, NodeId, SessionId};

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilityKey {
    /// Counted up with each rotation; the two newest are accepted.
    pub number: u32,
    pub secret: [u8; 32],
}

impl std::fmt::Debug for CapabilityKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CapabilityKey({}, ..)", self.number)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Access {
    Read,
    /// Append to an open chunk, and read it.
    Append,
}

/// Why a capability or a grant was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    #[error("expired")]
    Expired,
    #[error("signed with a key that is not known here")]
    UnknownKey,
    #[error("signature does not match")]
    Forged,
    #[error("issued for another chunk, file, access or peer")]
    Mismatch,
}

/// Lets the peer whose certificate has number `holder` access one chunk until `expires`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Capability {
    pub chunk: ChunkId,
    pub access: Access,
    pub holder: NodeId,
    pub expires: Timestamp,
    pub key: u32,
    pub mac: [u8; 32],
}

impl Capability {
    pub fn sign(key: &CapabilityKey, chunk: ChunkId, access: Access, holder: NodeId, expires: Timestamp) -> Capability {
        let mut capability = Capability { chunk, access, holder, expires, key: key.number, mac: [0; 32] };
        capability.mac = capability.expected_mac(key);
        capability
    }

    /// Checks everything but who the peer is; see `check_from`.
    pub fn check(&self, keys: &[CapabilityKey], chunk: ChunkId, access: Access, now: Timestamp) -> Result<(), Refusal> {
        let key = keys.iter().find(|key| key.number == self.key).ok_or(Refusal::UnknownKey)?;
        if !same(&self.mac, &self.expected_mac(key)) {
            return Err(Refusal::Forged);
        }
        if self.chunk != chunk || (access == Access::Append && self.access != Access::Append) {
            return Err(Refusal::Mismatch);
        }
        if self.expires < now {
            return Err(Refusal::Expired);
        }
        Ok(())
    }

    /// `check`, and that the peer on the connection is the holder. A datanode may present a client's
    /// capability: it forwards a chain on the client's behalf, over its own certificate.
    pub fn check_from(
        &self,
        peer: &PeerIdentity,
        keys: &[CapabilityKey],
        chunk: ChunkId,
        access: Access,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.check(keys, chunk, access, now)?;
        match peer.role {
            crate::Role::Client | crate::Role::Admin if peer.id != self.holder => Err(Refusal::Mismatch),
            _ => Ok(()),
        }
    }

    fn expected_mac(&self, key: &CapabilityKey) -> [u8; 32] {
        let mut mac = blake3::Hasher::new_keyed(&key.secret);
        mac.update(b"chunk capability 1");
        mac.update(&self.chunk.0.to_le_bytes());
        mac.update(&[self.access as u8]);
        mac.update(&self.holder.0.to_le_bytes());
        mac.update(&self.expires.secs.to_le_bytes());
        mac.update(&self.expires.nanos.to_le_bytes());
        mac.update(&self.key.to_le_bytes());
        *mac.finalize().as_bytes()
    }
}

/// Proves that a session opened an inode with permission to read or write it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Grant {
    pub inode: InodeId,
    pub session: SessionId,
    pub read: bool,
    pub write: bool,
    pub key: u32,
    pub mac: [u8; 32],
}

impl Grant {
    pub fn sign(key: &CapabilityKey, inode: InodeId, session: SessionId, read: bool, write: bool) -> Grant {
        let mut grant = Grant { inode, session, read, write, key: key.number, mac: [0; 32] };
        grant.mac = grant.expected_mac(key);
        grant
    }

    pub fn check(
        &self,
        keys: &[CapabilityKey],
        inode: InodeId,
        session: SessionId,
        write: bool,
    ) -> Result<(), Refusal> {
        let key = keys.iter().find(|key| key.number == self.key).ok_or(Refusal::UnknownKey)?;
        if !same(&self.mac, &self.expected_mac(key)) {
            return Err(Refusal::Forged);
        }
        let allowed = if write { self.write } else { self.read };
        if self.inode != inode || self.session != session || !allowed {
            return Err(Refusal::Mismatch);
        }
        Ok(())
    }

    fn expected_mac(&self, key: &CapabilityKey) -> [u8; 32] {
        let mut mac = blake3::Hasher::new_keyed(&key.secret);
        mac.update(b"open file grant 1");
        mac.update(&self.inode.0.to_le_bytes());
        mac.update(&self.session.0.to_le_bytes());
        mac.update(&[self.read as u8, self.write as u8]);
        mac.update(&self.key.to_le_bytes());
        *mac.finalize().as_bytes()
    }
}

/// Compares in constant time: `blake3::Hash` does.
fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    blake3::Hash::from_bytes(*a) == blake3::Hash::from_bytes(*b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ClusterId, Role};

    fn key(number: u32) -> CapabilityKey {
        CapabilityKey { number, secret: [number as u8; 32] }
    }

    fn at(secs: i64) -> Timestamp {
        Timestamp { secs, nanos: 0 }
    }

    fn peer(role: Role, id: u64) -> PeerIdentity {
        PeerIdentity { cluster: ClusterId([0; 16]), role, id: NodeId(id) }
    }

    #[test]
    fn every_field_of_a_capability_is_under_the_signature() {
        let good = Capability::sign(&key(1), ChunkId(5), Access::Read, NodeId(9), at(100));
        let check = |c: &Capability| c.check(&[key(1)], c.chunk, c.access, at(50));
        assert_eq!(check(&good), Ok(()));
        assert_eq!(check(&Capability { chunk: ChunkId(6), ..good.clone() }), Err(Refusal::Forged));
        assert_eq!(check(&Capability { access: Access::Append, ..good.clone() }), Err(Refusal::Forged));
        assert_eq!(check(&Capability { holder: NodeId(8), ..good.clone() }), Err(Refusal::Forged));
        assert_eq!(check(&Capability { expires: at(999), ..good.clone() }), Err(Refusal::Forged));
        assert_eq!(good.check(&[key(2)], ChunkId(5), Access::Read, at(50)), Err(Refusal::UnknownKey));
    }

    #[test]
    fn a_capability_serves_its_chunk_access_holder_and_time_only() {
        let read = Capability::sign(&key(1), ChunkId(5), Access::Read, NodeId(9), at(100));
        let keys = [key(1)];
        assert_eq!(read.check(&keys, ChunkId(6), Access::Read, at(50)), Err(Refusal::Mismatch));
        assert_eq!(read.check(&keys, ChunkId(5), Access::Append, at(50)), Err(Refusal::Mismatch));
        assert_eq!(read.check(&keys, ChunkId(5), Access::Read, at(101)), Err(Refusal::Expired));
        let from = |p| read.check_from(&p, &keys, ChunkId(5), Access::Read, at(50));
        assert_eq!(from(peer(Role::Client, 9)), Ok(()));
        assert_eq!(from(peer(Role::Client, 8)), Err(Refusal::Mismatch));
        assert_eq!(from(peer(Role::Datanode, 3)), Ok(()));
    }

    #[test]
    fn a_read_grant_does_not_write() {
        let grant = Grant::sign(&key(1), InodeId(2), SessionId(3), true, false);
        assert_eq!(grant.check(&[key(1)], InodeId(2), SessionId(3), false), Ok(()));
        assert_eq!(grant.check(&[key(1)], InodeId(2), SessionId(3), true), Err(Refusal::Mismatch));
        assert_eq!(grant.check(&[key(1)], InodeId(2), SessionId(4), false), Err(Refusal::Mismatch));
        let forged = Grant { write: true, ..grant };
        assert_eq!(forged.check(&[key(1)], InodeId(2), SessionId(3), true), Err(Refusal::Forged));
    }
}

//! Who a peer is. Identity is a DNS name in the certificate, so that the TLS library itself ties a
//! connection to the node that was meant: `<id>.<role>.<cluster>.dfs`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, NodeId};

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Debug)]
pub enum Role {
    Namenode,
    Datanode,
    /// A mount or a command: may ask for files on behalf of the users it names.
    Client,
    /// A client that may also administer the cluster.
    Admin,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Namenode => "namenode",
            Role::Datanode => "datanode",
            Role::Client => "client",
            Role::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Role> {
        [Role::Namenode, Role::Datanode, Role::Client, Role::Admin].into_iter().find(|role| role.as_str() == text)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct PeerIdentity {
    pub cluster: ClusterId,
    pub role: Role,
    /// For clients a number of the certificate, not of a node.
    pub id: NodeId,
}

impl PeerIdentity {
    /// Reads `<id>.<role>.<cluster>.dfs`.
    pub fn parse(dns_name: &str) -> Option<PeerIdentity> {
        let mut parts = dns_name.split('.');
        let identity = PeerIdentity {
            id: NodeId(parts.next()?.parse().ok()?),
            role: Role::parse(parts.next()?)?,
            cluster: parts.next()?.parse().ok()?,
        };
        (parts.next() == Some("dfs") && parts.next().is_none()).then_some(identity)
    }
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}.dfs", self.id, self.role.as_str(), self.cluster)
    }
}

/// A protocol of its own, named in the TLS handshake (ALPN) with its version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Plane {
    /// Clients and datanodes to namenodes: `msg::meta`, `msg::node`, `msg::admin`.
    Meta,
    /// Namenode to namenode.
    Raft,
    /// Bulk bytes to and from datanodes: `msg::data`.
    Data,
}

impl Plane {
    pub const ALL: [Plane; 3] = [Plane::Meta, Plane::Raft, Plane::Data];

    pub fn alpn(self) -> &'static [u8] {
        match self {
            // 2: attributes carry the kinds of extended attributes in the bits above the mode.
            // 3: heartbeats and their answers carry what clock skew and scrubbing need, status the datanodes' duties.
            // 4: status and checks tell of chunks whose end was cut off, datanodes of replicas that are short.
            // 9: datanodes gather chunks out of pieces of others.
            // 10: administrators set the balance of datanodes, and status tells of it.
            Plane::Meta => b"dfs-meta/10",
            Plane::Raft => b"dfs-raft/1",
            Plane::Data => b"dfs-data/3",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identity_survives_its_name_and_foreign_names_are_refused() {
        let me = PeerIdentity { cluster: ClusterId([9; 16]), role: Role::Datanode, id: NodeId(14) };
        assert_eq!(PeerIdentity::parse(&me.to_string()), Some(me));
        for bad in ["localhost", "1.king.00.dfs", "1.admin", &format!("{me}.org")] {
            assert_eq!(PeerIdentity::parse(bad), None, "{bad}");
        }
    }
}

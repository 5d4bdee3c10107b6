//! Rows of which there is one: configuration, keys, totals.

use dfs_proto::msg::admin::{Balance, Counts};
use dfs_proto::{CapabilityKey, ChunkId, ClusterId, InodeId, NodeId, SessionId};
use serde::{Deserialize, Serialize};

use super::{Key, Row, get};
use crate::view::{Fault, Table, View};

/// What genesis fixed. Its row exists exactly if the cluster does.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Config {
    pub cluster: ClusterId,
    /// Copies that new files get unless they say otherwise.
    pub default_replication: u8,
    /// Copies that a write must have before it is acknowledged.
    pub min_copies: u8,
    /// A session ends when it has not been renewed for so long.
    pub lease_ms: u64,
}

impl Row for Config {
    const TABLE: Table = Table::Counters;
}

impl Config {
    pub fn key() -> Key<Config> {
        Key::new(b"config".to_vec())
    }
}

/// The two newest capability keys, newest last.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct CapabilityKeys(pub Vec<CapabilityKey>);

impl Row for CapabilityKeys {
    const TABLE: Table = Table::Counters;
}

impl CapabilityKeys {
    pub fn key() -> Key<CapabilityKeys> {
        Key::new(b"keys".to_vec())
    }

    /// The key to sign with.
    pub fn newest(&self) -> Result<&CapabilityKey, Fault> {
        self.0.last().ok_or_else(|| Fault("there is no capability key".into()))
    }
}

/// Live counters and the next id of each kind. Ids are only counted up, so none is used twice.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Totals {
    pub counts: Counts,
    pub next_inode: InodeId,
    pub next_chunk: ChunkId,
    pub next_session: SessionId,
}

impl Default for Totals {
    fn default() -> Totals {
        Totals {
            counts: Counts::default(),
            next_inode: InodeId(InodeId::ROOT.0 + 1),
            next_chunk: ChunkId(1),
            next_session: SessionId(1),
        }
    }
}

impl Row for Totals {
    const TABLE: Table = Table::Counters;
}

impl Totals {
    pub fn key() -> Key<Totals> {
        Key::new(b"totals".to_vec())
    }
}

/// Every number that a namenode of this cluster has or had, in order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug, Default)]
pub struct NamenodeIds(pub Vec<NamenodeIdRow>);

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct NamenodeIdRow {
    pub node: NodeId,
    /// The number drawn when its data folder was made: tells that folder from an empty one under the same name.
    pub disk: u64,
    /// It was removed from the group.
    pub retired: bool,
}

impl Row for NamenodeIds {
    const TABLE: Table = Table::Counters;
}

impl NamenodeIds {
    pub fn key() -> Key<NamenodeIds> {
        Key::new(b"namenodes".to_vec())
    }
}

/// What an administrator has said about moving chunks from full datanodes to empty ones.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct BalanceRow(pub Balance);

impl Row for BalanceRow {
    const TABLE: Table = Table::Counters;
}

impl BalanceRow {
    pub fn key() -> Key<BalanceRow> {
        Key::new(b"balance".to_vec())
    }
}

/// The default until somebody has said otherwise.
pub fn balance(view: &dyn View) -> Result<Balance, Fault> {
    Ok(get(view, &BalanceRow::key())?.map(|BalanceRow(balance)| balance).unwrap_or_default())
}

/// Without those that the group was formed with until they have told their disks.
pub fn namenode_ids(view: &dyn View) -> Result<NamenodeIds, Fault> {
    Ok(get(view, &NamenodeIds::key())?.unwrap_or_default())
}

/// `None` before genesis.
pub fn config(view: &dyn View) -> Result<Option<Config>, Fault> {
    get(view, &Config::key())
}

/// Newest last; empty before genesis.
pub fn capability_keys(view: &dyn View) -> Result<CapabilityKeys, Fault> {
    Ok(get(view, &CapabilityKeys::key())?.unwrap_or_default())
}

pub fn totals(view: &dyn View) -> Result<Totals, Fault> {
    Ok(get(view, &Totals::key())?.unwrap_or_default())
}

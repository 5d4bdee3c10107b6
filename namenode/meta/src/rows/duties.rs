//! What datanodes are meant to do.

use std::collections::BTreeMap;

use dfs_proto::NodeId;
use dfs_proto::msg::admin::Duty;
use serde::{Deserialize, Serialize};

use super::{Key, Row, get, number_at, scan_prefix};
use crate::view::{Fault, Table, View};

/// A node without a row serves.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DutyRow {
    pub duty: Duty,
}

impl Row for DutyRow {
    const TABLE: Table = Table::Duties;
}

impl DutyRow {
    pub fn key(node: NodeId) -> Key<DutyRow> {
        Key::new(node.0.to_be_bytes().to_vec())
    }
}

pub fn duty(view: &dyn View, node: NodeId) -> Result<Duty, Fault> {
    Ok(get(view, &DutyRow::key(node))?.map_or(Duty::Serving, |row| row.duty))
}

/// The duties of all nodes that do not simply serve, those of removed ones included.
pub fn duties(view: &dyn View) -> Result<BTreeMap<NodeId, Duty>, Fault> {
    let mut found = Vec::new();
    scan_prefix::<DutyRow>(view, &[], &mut |key, row| {
        found.push(number_at(Table::Duties, key, 0).map(|node| (NodeId(node), row.duty)));
        true
    })?;
    found.into_iter().collect()
}

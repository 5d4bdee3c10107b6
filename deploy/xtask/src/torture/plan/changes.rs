//! Changes: what operators do to a cluster that serves.

use std::fmt;

use dfs_cluster::Dice;

use super::{Planned, Shape, Target, any_namenode};

/// A change of what nodes there are and what they are for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A datanode is emptied, and stays out of service until all has been checked.
    Decommission(String),
    /// A datanode is to be emptied, and is put back into service meanwhile.
    DecommissionCancelled(String),
    /// A datanode may be away, and is.
    Maintenance(String),
    /// A fourth namenode is added, then this one removed.
    OneMoreOneLess(Target),
    /// So many times another namenode is asked to lead.
    HandOver(u64),
}

/// Each change in its turn.
pub fn under_kills(turn: u64, shape: Shape, dice: &mut Dice) -> Planned {
    let change = any(turn, shape, dice);
    let kills = (0..dice.between(1, 3)).map(|_| shape.any_target(dice)).collect();
    Planned::Change { change, kills }
}

fn any(turn: u64, shape: Shape, dice: &mut Dice) -> Change {
    let datanode = dice.pick(&shape.datanodes()).clone();
    match turn % 5 {
        0 => Change::Decommission(datanode),
        1 => Change::OneMoreOneLess(any_namenode(shape, dice)),
        2 => Change::DecommissionCancelled(datanode),
        3 => Change::Maintenance(datanode),
        _ => Change::HandOver(dice.between(2, 4)),
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Decommission(node) => write!(f, "decommission {node}"),
            Change::DecommissionCancelled(node) => write!(f, "decommission {node}, cancelled"),
            Change::Maintenance(node) => write!(f, "maintenance of {node}"),
            Change::OneMoreOneLess(target) => write!(f, "add a namenode, remove {target}"),
            Change::HandOver(times) => write!(f, "hand the lead over {times} times"),
        }
    }
}

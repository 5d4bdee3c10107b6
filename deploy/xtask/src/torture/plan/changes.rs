//! Changes: what operators do to a cluster that serves.

use std::fmt;

use dfs_cluster::Dice;

use super::partitions::{self, Partition};
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

impl Change {
    /// Orders of which each has a cut of its own. What is taken back is so under the cut under which it was ordered; of the
    /// hand-overs the first one is undisturbed.
    fn cuts(&self) -> u64 {
        match self {
            Change::Decommission(_) | Change::DecommissionCancelled(_) => 1,
            Change::Maintenance(_) | Change::OneMoreOneLess(_) => 2,
            Change::HandOver(times) => times - 1,
        }
    }
}

/// Links that stop about when an order is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlannedCut {
    pub shape: Partition,
    /// From the order to the cut; below 0 the cut comes first.
    pub begins_ms: i64,
    pub hold_ms: u64,
}

/// Each change in its turn.
pub fn under_kills(turn: u64, shape: Shape, dice: &mut Dice) -> Planned {
    let change = any(turn, shape, dice);
    let kills = (0..dice.between(1, 3)).map(|_| shape.any_target(dice)).collect();
    Planned::Change { change, kills }
}

/// Every datanode is the empty one in its turn. The first that dies is the leader, the empty one, one of those that are
/// full, or anybody.
pub fn rebalanced_under_kills(turn: u64, shape: Shape, dice: &mut Dice) -> Planned {
    let mut datanodes = shape.datanodes();
    // In four turns all of them, in each of which another kind dies first.
    let emptied = datanodes.remove(((turn + turn / 4) % datanodes.len() as u64) as usize);
    let first = match turn % 4 {
        0 => Target::Leader,
        1 => Target::Node(emptied.clone()),
        2 => Target::Node(dice.pick(&datanodes).clone()),
        _ => shape.any_target(dice),
    };
    let others = (0..dice.between(0, 2)).map(|_| shape.any_target(dice));
    Planned::Rebalance { kills: std::iter::once(first).chain(others).collect(), emptied }
}

/// Each change in its turn, and in 35 turns each under every shape.
pub fn under_partitions(turn: u64, shape: Shape, dice: &mut Dice) -> Planned {
    let change = any(turn, shape, dice);
    let cuts = (0..change.cuts()).map(|nth| {
        // The shapes of further cuts follow in another order, so that they do not always come in the same company.
        let partition = partitions::that_leaves_a_majority(turn + nth * dice.between(1, 6), shape, dice);
        PlannedCut {
            shape: on_whom_it_hurts(&change, nth, partition, dice),
            // An undisturbed order takes a tenth of a second or two, and the cut of all links more: whatever is to be
            // met has to be early.
            begins_ms: if dice.one_in(3) { dice.between(0, 150) as i64 } else { -(dice.between(500, 1500) as i64) },
            // As cuts of M12: shorter than a lease.
            hold_ms: dice.between(2000, 10_000),
        }
    });
    let cuts = cuts.collect();
    Planned::PartitionedChange { change, cuts }
}

/// Every second time that somebody is alone it is who changes.
fn on_whom_it_hurts(change: &Change, nth: u64, partition: Partition, dice: &mut Dice) -> Partition {
    let changes = match (change, &partition) {
        (Change::OneMoreOneLess(_), Partition::Alone(Target::Follower(_))) if nth == 0 => Target::Newcomer,
        (Change::OneMoreOneLess(goes), Partition::Alone(Target::Follower(_))) => goes.clone(),
        (
            Change::Decommission(node) | Change::DecommissionCancelled(node) | Change::Maintenance(node),
            Partition::Alone(Target::Node(_)),
        ) => Target::Node(node.clone()),
        _ => return partition,
    };
    if dice.one_in(2) { Partition::Alone(changes) } else { partition }
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashSet};
    use std::mem::discriminant;

    use super::super::{Kind, Turn, plan};
    use super::*;

    const SHAPE: Shape = Shape { namenodes: 3, datanodes: 4 };

    fn partitioned(seed: u64) -> impl Iterator<Item = (Change, Vec<PlannedCut>)> {
        plan(Kind::PartitionedChanges, seed, 35, SHAPE).into_iter().map(|Turn { fault, .. }| match fault {
            Planned::PartitionedChange { change, cuts } => (change, cuts),
            other => panic!("{other}"),
        })
    }

    #[test]
    fn each_change_comes_under_every_shape_and_cuts_begin_before_and_after_the_order() {
        let mut seen = HashSet::new();
        let (mut before, mut after) = (0, 0);
        for (change, cuts) in partitioned(4) {
            let alone = |target: &Target| match target {
                Target::Leader => "the leader alone",
                Target::Follower(_) | Target::Newcomer => "another namenode alone",
                Target::Node(_) => "a datanode alone",
            };
            let shape = match &cuts[0].shape {
                Partition::Alone(target) => alone(target),
                Partition::Deaf(_) => "deaf",
                Partition::Mute(_) => "mute",
                Partition::Apart(..) => "apart",
                Partition::OneByOne(..) => "one by one",
                Partition::Two(..) => panic!("{change} with two apart from all others"),
            };
            seen.insert((discriminant(&change), shape));
            before += cuts.iter().filter(|cut| cut.begins_ms < 0).count();
            after += cuts.iter().filter(|cut| cut.begins_ms >= 0).count();
            assert!(!cuts.is_empty() && cuts.iter().all(|cut| (2000..=10_000).contains(&cut.hold_ms)));
        }
        assert_eq!(seen.len(), 35);
        assert!(before > 20 && after > 10, "{before} before, {after} after");
    }

    #[test]
    fn every_datanode_is_the_empty_one_and_leaders_and_empty_and_full_ones_die() {
        let (mut emptied_ones, mut died, mut numbers) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for turn in plan(Kind::Rebalances, 4, 12, SHAPE) {
            let Planned::Rebalance { emptied, kills } = turn.fault else { panic!("{}", turn.fault) };
            numbers.insert(kills.len());
            died.insert(match &kills[0] {
                Target::Leader => "the leader",
                Target::Node(node) if *node == emptied => "the empty one",
                Target::Node(_) => "a full one",
                _ => "a follower",
            });
            emptied_ones.insert(emptied);
        }
        assert_eq!(emptied_ones.into_iter().collect::<Vec<_>>(), SHAPE.datanodes());
        assert!(died.len() >= 3, "{died:?}");
        assert_eq!(numbers.into_iter().collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn who_changes_is_alone_in_some_turns_and_somebody_else_in_others() {
        let mut seen = BTreeSet::new();
        for (change, cuts) in (1..=4).flat_map(partitioned) {
            let alone = |cut: &PlannedCut| match &cut.shape {
                Partition::Alone(target) => Some(target.clone()),
                _ => None,
            };
            for target in cuts.iter().filter_map(alone) {
                // Nobody else joins, and nobody is about to once it has joined.
                assert!(target != Target::Newcomer || matches!(change, Change::OneMoreOneLess(_)));
                let changes = match &change {
                    Change::Decommission(node) | Change::DecommissionCancelled(node) | Change::Maintenance(node) => {
                        Target::Node(node.clone())
                    }
                    Change::OneMoreOneLess(goes) => goes.clone(),
                    Change::HandOver(_) => continue,
                };
                seen.insert(match target {
                    Target::Newcomer => "the newcomer",
                    target if target == changes => "who changes",
                    Target::Node(_) => "another datanode",
                    _ => "another namenode",
                });
            }
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
    }
}

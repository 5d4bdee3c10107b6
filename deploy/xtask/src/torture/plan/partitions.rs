//! Partitions: which links do not work.

use std::fmt;

use dfs_cluster::Dice;

use super::{Shape, Target};

/// Which links do not work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Partition {
    /// It reaches nobody, and nobody reaches it.
    Alone(Target),
    /// It hears nobody, and is heard.
    Deaf(Target),
    /// It hears everybody, and nobody hears it.
    Mute(Target),
    /// These two do not reach each other; all others reach both.
    Apart(Target, Target),
    /// These two reach each other and nobody else, and nobody else reaches them: a client that has only the old leader to
    /// ask, while the others have a new one.
    Two(Target, Target),
    /// Single directions of links stop one after the other, and work again in another order.
    OneByOne(Vec<(String, String)>, Vec<usize>),
}

impl Partition {
    /// Whether somebody is cut off who needs the leader, or there may be no majority: calls that last longer than their
    /// deadline end with an error then.
    pub fn may_end_service(&self) -> bool {
        let is_client = |target: &Target| matches!(target, Target::Node(name) if name.starts_with('m'));
        match self {
            Partition::Alone(_) | Partition::Deaf(_) | Partition::Mute(_) => false,
            Partition::Apart(Target::Leader, other) | Partition::Two(_, other) => is_client(other),
            Partition::Apart(..) => false,
            Partition::OneByOne(..) => true,
        }
    }
}

/// One shape after the other.
pub fn of_any_shape(turn: u64, shape: Shape, dice: &mut Dice) -> Partition {
    let follower = |dice: &mut Dice| Target::Follower(dice.between(0, shape.namenodes as u64 - 2) as usize);
    let datanode = |dice: &mut Dice| Target::Node(dice.pick(&shape.datanodes()).clone());
    match turn % 9 {
        0 => Partition::Alone(Target::Leader),
        1 => Partition::Two(Target::Leader, Target::Node("m2".to_owned())),
        2 => Partition::Deaf(Target::Leader),
        3 => Partition::Mute(Target::Leader),
        4 => Partition::Apart(Target::Leader, follower(dice)),
        5 => Partition::Apart(Target::Leader, Target::Node("m1".to_owned())),
        6 => Partition::Alone(datanode(dice)),
        7 => Partition::Apart(datanode(dice), Target::Node("m1".to_owned())),
        _ => one_by_one(shape, dice),
    }
}

/// One shape after the other, of those that leave a majority of the namenodes, and enough datanodes to write to.
pub fn that_leaves_a_majority(turn: u64, shape: Shape, dice: &mut Dice) -> Partition {
    let follower = |dice: &mut Dice| Target::Follower(dice.between(0, shape.namenodes as u64 - 2) as usize);
    let datanode = |dice: &mut Dice| Target::Node(dice.pick(&shape.datanodes()).clone());
    match turn % 7 {
        0 => Partition::Alone(Target::Leader),
        1 => Partition::Alone(follower(dice)),
        2 => Partition::Alone(datanode(dice)),
        3 => Partition::Apart(Target::Leader, datanode(dice)),
        4 => Partition::Deaf(Target::Leader),
        5 => Partition::Mute(follower(dice)),
        // Not always the majority, and not for long.
        _ => one_by_one(shape, dice),
    }
}

/// A third of the links between nodes: those of the clients stay, or nothing would be asked of the cluster.
fn one_by_one(shape: Shape, dice: &mut Dice) -> Partition {
    let nodes = shape.nodes();
    let pairs = nodes.iter().flat_map(|from| nodes.iter().map(move |to| (from.clone(), to.clone())));
    let mut links: Vec<_> = pairs.filter(|(from, to)| from != to).collect();
    dice.shuffle(&mut links);
    links.truncate(links.len() / 3);
    let mut back: Vec<usize> = (0..links.len()).collect();
    dice.shuffle(&mut back);
    Partition::OneByOne(links, back)
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Partition::Alone(target) => write!(f, "{target} alone"),
            Partition::Deaf(target) => write!(f, "{target} hears nobody"),
            Partition::Mute(target) => write!(f, "nobody hears {target}"),
            Partition::Apart(one, other) => write!(f, "{one} and {other} apart"),
            Partition::Two(one, other) => write!(f, "{one} and {other} apart from all others"),
            Partition::OneByOne(links, _) => write!(f, "{} links one by one", links.len()),
        }
    }
}

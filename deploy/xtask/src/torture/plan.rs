//! Which fault comes when. Pure: the same seed gives the same plan, so that a printed seed repeats a run.
//!
//! A plan speaks of the leader and of followers rather than of names: who leads when its turn comes is not known here.

mod changes;
mod partitions;

use std::fmt;

use dfs_cluster::Dice;
use dfs_cluster::fault::calls::Calls;

pub use changes::{Change, PlannedCut};
pub use partitions::Partition;

/// Who is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The namenode that leads at the time.
    Leader,
    /// The n-th of those that do not.
    Follower(usize),
    Node(String),
    /// The namenode that is about to join; only the cell that adds it knows its name.
    Newcomer,
}

/// A fault, and for how much work or time it waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Turn {
    /// Steps that the workload has acknowledged since the turn before.
    pub after_steps: u64,
    /// How long the fault stays, where it does not end by itself.
    pub hold_ms: u64,
    pub fault: Planned,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Planned {
    Kill(Target),
    /// Of these nodes; of the machines with the mounts as well, if `mounts`.
    PowerCut {
        nodes: Vec<String>,
        mounts: bool,
    },
    /// Processes of different roles that die at calls of their own, while the cluster has something to do.
    Crashes {
        points: Vec<CrashPoint>,
        during: During,
    },
    /// The `nth` sync fails, and with `for_ever` each one after it.
    SyncFails {
        target: Target,
        nth: u64,
        for_ever: bool,
    },
    SlowSync {
        target: Target,
        delay_ms: u64,
    },
    Pause(Target),
    FullDisk(Vec<Target>),
    Partition(Partition),
    /// Of all packets, on the way to anybody.
    Loss {
        percent: u64,
    },
    /// Namenodes start without what they had on their disks. Meanwhile one of the others is `away`: who remembers them
    /// is one less.
    Forgotten {
        targets: Vec<Target>,
        disk: Disk,
        away: bool,
    },
    /// A wall clock that runs on from elsewhere.
    ClockJump {
        target: Target,
        seconds: i64,
    },
    /// A wall clock that runs at so many percent of the true rate.
    ClockRate {
        target: Target,
        percent: u64,
    },
    /// Monotonic clocks that stand elsewhere than everybody else's.
    ClocksAhead {
        target: Target,
        seconds: u64,
    },
    /// Each node gets another version of the program in this order, and the first one back in the other.
    Versions {
        there: Vec<String>,
        back: Vec<String>,
    },
    /// Everybody is sent so many datagrams a second by strangers.
    Strangers {
        per_second: u64,
    },
    /// What an operator does while nodes are killed, one after the other.
    Change {
        change: Change,
        kills: Vec<Target>,
    },
    /// What an operator does while links are cut: one cut for each order, but for one that is taken back under the same.
    PartitionedChange {
        change: Change,
        cuts: Vec<PlannedCut>,
    },
    /// A datanode is emptied and gets its share again; meanwhile nodes are killed, one after the other.
    Rebalance {
        emptied: String,
        kills: Vec<Target>,
    },
}

/// A process dies at its `k`-th call of a kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CrashPoint {
    pub target: Target,
    pub calls: Calls,
    pub k: u64,
}

/// What a cluster does beside serving. Deleting is always part of that.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum During {
    Serving,
    Snapshots,
    Scrub,
    /// What lives in mostly dead chunks is put together in new ones.
    Compaction,
    /// This datanode is dead, and what it had is copied from others.
    Repair(String),
    /// This datanode is emptied, and filled again.
    Decommission(String),
}

impl During {
    pub fn name(&self) -> &'static str {
        match self {
            During::Serving => "serving",
            During::Snapshots => "snapshots",
            During::Scrub => "scrub",
            During::Compaction => "compaction",
            During::Repair(_) => "repair",
            During::Decommission(_) => "decommissioning",
        }
    }

    /// A datanode that is not there for anything else.
    fn takes(&self) -> Option<&String> {
        match self {
            During::Repair(node) | During::Decommission(node) => Some(node),
            During::Serving | During::Snapshots | During::Scrub | During::Compaction => None,
        }
    }
}

/// Turns of crashes in a row during which the cluster does the same.
pub const CRASHES_BETWEEN_CHECKS: usize = 40;

/// The mount that dies of crashes: what is checked is written on the other one.
pub const CRASHING_MOUNT: &str = "m2";

/// What is found on a disk that should hold a namenode's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Disk {
    /// Nothing.
    Empty,
    /// An older copy of the data.
    Old,
}

/// The nodes that there are to choose from.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub namenodes: usize,
    pub datanodes: usize,
}

impl Shape {
    pub fn namenodes(self) -> Vec<String> {
        (1..=self.namenodes).map(|number| format!("nn{number}")).collect()
    }

    pub fn datanodes(self) -> Vec<String> {
        (1..=self.datanodes).map(|number| format!("dn{number}")).collect()
    }

    pub fn nodes(self) -> Vec<String> {
        [self.namenodes(), self.datanodes()].concat()
    }

    fn any_target(self, dice: &mut Dice) -> Target {
        let mut targets = vec![Target::Leader];
        targets.extend((0..self.namenodes.saturating_sub(1)).map(Target::Follower));
        targets.extend(self.datanodes().into_iter().map(Target::Node));
        dice.pick(&targets).clone()
    }
}

/// What a cell's plan is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Kills,
    LeaderKills,
    DatanodeKills,
    PowerCutsOfAll,
    /// And of the clients, every time.
    PowerCutsOfEverybody,
    PowerCuts,
    CrashPoints,
    FailingSyncs,
    SlowSyncs,
    LeaderPauses,
    FullDisks,
    Partitions,
    /// Of the same shapes, each for longer than any lease or deadline.
    LongPartitions,
    Losses,
    ForgottenNamenodes,
    Changes,
    PartitionedChanges,
    Rebalances,
    Strangers,
    Clocks,
    ClockRates,
    Versions,
}

/// How long a long partition lasts.
const LONG_MS: u64 = 300_000;

/// Seconds of a day.
const DAY_S: i64 = 86_400;

/// A plan of so many turns.
pub fn plan(kind: Kind, seed: u64, turns: u64, shape: Shape) -> Vec<Turn> {
    let mut dice = Dice::apart(seed, &format!("{kind:?}"));
    (0..turns).map(|turn| draw(kind, turn, shape, &mut dice)).collect()
}

fn draw(kind: Kind, turn: u64, shape: Shape, dice: &mut Dice) -> Turn {
    let (after_steps, hold_ms) = (dice.between(20, 200), dice.between(500, 3000));
    let fault = match kind {
        Kind::Kills => Planned::Kill(shape.any_target(dice)),
        Kind::LeaderKills => Planned::Kill(Target::Leader),
        Kind::DatanodeKills => Planned::Kill(Target::Node(dice.pick(&shape.datanodes()).clone())),
        Kind::PowerCutsOfAll => Planned::PowerCut { nodes: shape.nodes(), mounts: turn % 2 == 1 },
        Kind::PowerCutsOfEverybody => Planned::PowerCut { nodes: shape.nodes(), mounts: true },
        Kind::PowerCuts => Planned::PowerCut { nodes: dice.some(&shape.nodes()), mounts: false },
        Kind::CrashPoints => crashes(turn, shape, dice),
        Kind::FailingSyncs => {
            // Leader, follower and datanode in turn, each once and for ever.
            let for_ever = turn / 3 % 2 == 1;
            Planned::SyncFails { target: role(turn, shape, dice), nth: dice.between(1, 8), for_ever }
        }
        Kind::SlowSyncs => {
            // A slow leader is not among them: it would be slow for everybody.
            let target = match turn % 2 {
                0 => Target::Node(dice.pick(&shape.datanodes()).clone()),
                _ => Target::Follower(dice.between(0, shape.namenodes as u64 - 2) as usize),
            };
            Planned::SlowSync { target, delay_ms: 300 }
        }
        Kind::LeaderPauses => {
            let hold_ms = dice.between(1000, 20_000);
            return Turn { after_steps, hold_ms, fault: Planned::Pause(Target::Leader) };
        }
        Kind::Partitions => {
            // Shorter than a lease: whoever is cut off longer has lost its session, and is told so.
            let hold_ms = dice.between(2000, 10_000);
            return Turn {
                after_steps,
                hold_ms,
                fault: Planned::Partition(partitions::of_any_shape(turn, shape, dice)),
            };
        }
        Kind::LongPartitions => {
            return Turn {
                after_steps,
                hold_ms: LONG_MS,
                fault: Planned::Partition(partitions::of_any_shape(turn, shape, dice)),
            };
        }
        Kind::Losses => Planned::Loss { percent: [5, 20, 50][(turn % 3) as usize] },
        Kind::ForgottenNamenodes => {
            let one = vec![any_namenode(shape, dice)];
            // Two of three, so that no majority knows what there was.
            let two = vec![Target::Leader, Target::Follower(dice.between(0, shape.namenodes as u64 - 2) as usize)];
            let (targets, disk, away) = match turn % 7 {
                0 => (one, Disk::Empty, false),
                1 => (two, Disk::Empty, false),
                2 => (one, Disk::Old, false),
                3 => (one, Disk::Old, true),
                4 => (two, Disk::Empty, true),
                5 => (two, Disk::Old, false),
                _ => (one, Disk::Empty, true),
            };
            Planned::Forgotten { targets, disk, away }
        }
        Kind::Changes => changes::under_kills(turn, shape, dice),
        Kind::PartitionedChanges => changes::under_partitions(turn, shape, dice),
        Kind::Rebalances => changes::rebalanced_under_kills(turn, shape, dice),
        Kind::Strangers => {
            // A minute of ten; half of all datagrams make a node use its keys.
            let fault = Planned::Strangers { per_second: *dice.pick(&[200, 500, 1000]) };
            return Turn { after_steps, hold_ms: 60_000, fault };
        }
        Kind::Clocks => {
            let hold_ms = dice.between(5000, 15_000);
            let seconds = *dice.pick(&[600, -600, 3 * DAY_S, -3 * DAY_S]);
            let fault = match turn % 5 {
                0 => Planned::ClockJump { target: Target::Leader, seconds },
                1 => Planned::ClockJump { target: Target::Node(dice.pick(&shape.datanodes()).clone()), seconds },
                2 => Planned::ClocksAhead { target: any_namenode(shape, dice), seconds: DAY_S.unsigned_abs() },
                3 => Planned::ClockJump { target: Target::Follower(dice.between(0, 1) as usize), seconds },
                _ => Planned::ClockJump { target: Target::Node("m1".to_owned()), seconds },
            };
            return Turn { after_steps, hold_ms, fault };
        }
        Kind::ClockRates => {
            // Slower, faster, and much faster than any clock that is out of order.
            let percent = *dice.pick(&[50, 150, 1000]);
            let target = match turn % 3 {
                0 => Target::Leader,
                1 => Target::Node(dice.pick(&shape.datanodes()).clone()),
                _ => Target::Follower(dice.between(0, shape.namenodes as u64 - 2) as usize),
            };
            let fault = Planned::ClockRate { target, percent };
            return Turn { after_steps, hold_ms: dice.between(5000, 15_000), fault };
        }
        Kind::Versions => {
            let [mut there, mut back] = [shape.nodes(), shape.nodes()];
            dice.shuffle(&mut there);
            dice.shuffle(&mut back);
            Planned::Versions { there, back }
        }
        Kind::FullDisks => Planned::FullDisk(match turn % 4 {
            0 => vec![Target::Node(dice.pick(&shape.datanodes()).clone())],
            1 => shape.datanodes().into_iter().map(Target::Node).collect(),
            2 => vec![Target::Leader],
            _ => shape.namenodes().into_iter().map(Target::Node).collect(),
        }),
    };
    Turn { after_steps, hold_ms, fault }
}

fn any_namenode(shape: Shape, dice: &mut Dice) -> Target {
    match dice.between(0, shape.namenodes as u64 - 1) {
        0 => Target::Leader,
        follower => Target::Follower(follower as usize - 1),
    }
}

/// Leader, follower, datanode, and again.
fn role(turn: u64, shape: Shape, dice: &mut Dice) -> Target {
    match turn % 3 {
        0 => Target::Leader,
        1 => Target::Follower(dice.between(0, shape.namenodes as u64 - 2) as usize),
        _ => Target::Node(dice.pick(&shape.datanodes()).clone()),
    }
}

/// A namenode, a datanode and a mount. More than one of a kind at once is no promise.
fn crashes(turn: u64, shape: Shape, dice: &mut Dice) -> Planned {
    let part = turn / CRASHES_BETWEEN_CHECKS as u64;
    let nodes = shape.datanodes();
    let bystander = &nodes[part as usize % nodes.len()];
    let during = match part % 6 {
        0 => During::Serving,
        1 => During::Compaction,
        2 => During::Snapshots,
        3 => During::Repair(bystander.clone()),
        4 => During::Scrub,
        _ => During::Decommission(bystander.clone()),
    };
    let namenode = match turn % 2 {
        0 => Target::Leader,
        _ => Target::Follower(dice.between(0, shape.namenodes as u64 - 2) as usize),
    };
    let others: Vec<String> = nodes.iter().filter(|node| during.takes() != Some(*node)).cloned().collect();
    let datanode = Target::Node(dice.pick(&others).clone());
    let mount = Target::Node(CRASHING_MOUNT.to_owned());
    // Calls on names are seldom reached in time.
    let on_disks = |dice: &mut Dice| if dice.one_in(6) { Calls::Names } else { *dice.pick(&Calls::OF_BYTES) };
    let points = [(namenode, on_disks(dice)), (datanode, on_disks(dice)), (mount, Calls::Send)];
    let point = |(target, calls)| CrashPoint { target, calls, k: dice.between(1, most(calls)) };
    Planned::Crashes { points: points.into_iter().map(point).collect(), during }
}

/// Calls are counted for each thread, from a moment that is random already: so many come within a second. Calls
/// on names are few, when chunks and database files come and go.
fn most(calls: Calls) -> u64 {
    match calls {
        Calls::Write => 40,
        Calls::Sync => 12,
        Calls::Names => 1,
        Calls::Send => 60,
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Leader => f.write_str("the leader"),
            Target::Follower(_) => f.write_str("a follower"),
            Target::Node(name) => f.write_str(name),
            Target::Newcomer => f.write_str("the newcomer"),
        }
    }
}

impl fmt::Display for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Planned::Kill(target) => write!(f, "kill -9 {target}"),
            Planned::PowerCut { nodes, mounts } => {
                let mounts = if *mounts { " and the mounts" } else { "" };
                write!(f, "power cut {}{mounts}", nodes.join(" "))
            }
            Planned::Crashes { points, during } => {
                let at = |point: &CrashPoint| format!("{} {} {}", point.target, point.calls.name(), point.k);
                let points: Vec<String> = points.iter().map(at).collect();
                write!(f, "{}; {}", points.join(", "), during.name())
            }
            Planned::SyncFails { target, nth, for_ever } => {
                write!(f, "EIO for {target} at sync {nth}{}", if *for_ever { " and later" } else { "" })
            }
            Planned::SlowSync { target, delay_ms } => write!(f, "syncs of {target} {delay_ms} ms slower"),
            Planned::Pause(target) => write!(f, "SIGSTOP {target}"),
            Planned::Partition(shape) => write!(f, "{shape}"),
            Planned::ClockJump { target, seconds } => write!(f, "clock of {target} {seconds:+} s"),
            Planned::ClockRate { target, percent } => write!(f, "clock of {target} at {percent} % of its rate"),
            Planned::ClocksAhead { target, seconds } => write!(f, "monotonic clocks of {target} {seconds} s ahead"),
            Planned::Versions { there, back } => write!(f, "{}; back {}", there.join(" "), back.join(" ")),
            Planned::Strangers { per_second } => write!(f, "{per_second} hostile datagrams a second"),
            Planned::Change { change, kills } => {
                let names: Vec<String> = kills.iter().map(Target::to_string).collect();
                write!(f, "{change}; kill {}", names.join(", "))
            }
            Planned::PartitionedChange { change, cuts } => {
                let shapes: Vec<String> = cuts.iter().map(|cut| cut.shape.to_string()).collect();
                write!(f, "{change}; {}", shapes.join(", "))
            }
            Planned::Rebalance { emptied, kills } => {
                let names: Vec<String> = kills.iter().map(Target::to_string).collect();
                write!(f, "{emptied} is empty; kill {}", names.join(", "))
            }
            Planned::Forgotten { targets, disk, away } => {
                let disk = match disk {
                    Disk::Empty => "empty disk",
                    Disk::Old => "old disk",
                };
                let names: Vec<String> = targets.iter().map(Target::to_string).collect();
                write!(f, "{disk}: {}{}", names.join(", "), if *away { "; another away" } else { "" })
            }
            Planned::Loss { percent } => write!(f, "{percent} % of packets lost"),
            Planned::FullDisk(targets) => {
                let names: Vec<String> = targets.iter().map(Target::to_string).collect();
                write!(f, "disk full: {}", names.join(" "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { namenodes: 3, datanodes: 4 };

    const KINDS: [Kind; 22] = [
        Kind::Kills,
        Kind::LeaderKills,
        Kind::DatanodeKills,
        Kind::PowerCutsOfAll,
        Kind::PowerCutsOfEverybody,
        Kind::PowerCuts,
        Kind::CrashPoints,
        Kind::FailingSyncs,
        Kind::SlowSyncs,
        Kind::LeaderPauses,
        Kind::FullDisks,
        Kind::Partitions,
        Kind::LongPartitions,
        Kind::Losses,
        Kind::ForgottenNamenodes,
        Kind::Changes,
        Kind::PartitionedChanges,
        Kind::Rebalances,
        Kind::Strangers,
        Kind::Clocks,
        Kind::ClockRates,
        Kind::Versions,
    ];

    #[test]
    fn the_same_seed_gives_the_same_plan_and_another_seed_another() {
        for kind in KINDS {
            assert_eq!(plan(kind, 7, 50, SHAPE), plan(kind, 7, 50, SHAPE));
            assert_ne!(plan(kind, 7, 50, SHAPE), plan(kind, 8, 50, SHAPE), "{kind:?}");
            // More rounds go on where fewer ended.
            assert_eq!(plan(kind, 7, 50, SHAPE)[..10], plan(kind, 7, 10, SHAPE));
        }
    }

    #[test]
    fn crash_points_reach_every_role_and_every_kind_of_call_whatever_the_cluster_does() {
        let mut seen = std::collections::BTreeSet::new();
        for turn in plan(Kind::CrashPoints, 1, 5 * CRASHES_BETWEEN_CHECKS as u64, SHAPE) {
            let Planned::Crashes { points, during } = turn.fault else { panic!("{turn:?}") };
            for CrashPoint { target, calls, k } in points {
                assert!((1..=most(calls)).contains(&k));
                let is_away = matches!(&target, Target::Node(node) if Some(node) == during.takes());
                assert!(!is_away, "{target} is away already");
                seen.insert((target.to_string(), calls, during.name()));
            }
        }
        let nodes: Vec<_> = seen.iter().filter(|(target, ..)| target != CRASHING_MOUNT).collect();
        // Leader and followers, each in all that is done; four datanodes, less the one that is away twice.
        assert!(nodes.len() > 60, "{nodes:?}");
        let mounts = seen.iter().filter(|(target, calls, _)| target == CRASHING_MOUNT && *calls == Calls::Send).count();
        assert_eq!(mounts, 5);
    }

    #[test]
    fn links_that_stop_one_by_one_all_work_again() {
        let turns = plan(Kind::Partitions, 5, 18, SHAPE);
        let orders = turns.iter().filter_map(|turn| match &turn.fault {
            Planned::Partition(Partition::OneByOne(links, back)) => Some((links.len(), back.clone())),
            _ => None,
        });
        let orders: Vec<_> = orders.collect();
        assert_eq!(orders.len(), 2);
        for (links, mut back) in orders {
            back.sort_unstable();
            assert_eq!(back, (0..links).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_shape_is_held_for_five_minutes_and_most_of_them_are_no_excuse_for_errors() {
        let turns = plan(Kind::LongPartitions, 6, 9, SHAPE);
        let mut excused = Vec::new();
        for turn in turns {
            let Planned::Partition(shape) = turn.fault else { panic!("{}", turn.fault) };
            assert_eq!(turn.hold_ms, LONG_MS);
            excused.extend(shape.may_end_service().then(|| Planned::Partition(shape).to_string()));
        }
        let texts = ["the leader and m2 apart from all others", "the leader and m1 apart", "14 links one by one"];
        assert_eq!(excused, texts);
    }

    #[test]
    fn every_subset_of_a_power_cut_has_nodes_that_exist() {
        let all = SHAPE.nodes();
        for turn in plan(Kind::PowerCuts, 3, 100, SHAPE) {
            let Planned::PowerCut { nodes, .. } = turn.fault else { panic!("{turn:?}") };
            assert!(!nodes.is_empty() && nodes.iter().all(|node| all.contains(node)));
        }
    }

    #[test]
    fn a_majority_forgets_in_some_rounds_and_one_namenode_in_others() {
        let turns = plan(Kind::ForgottenNamenodes, 2, 14, SHAPE);
        let forgotten = |turn: &Turn| match &turn.fault {
            Planned::Forgotten { targets, disk, .. } => (targets.len(), *disk == Disk::Old),
            other => panic!("{other}"),
        };
        let seen: std::collections::BTreeSet<_> = turns.iter().map(forgotten).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [(1, false), (1, true), (2, false), (2, true)]);
    }

    #[test]
    fn every_change_is_made_and_never_without_a_kill() {
        let mut seen = std::collections::HashSet::new();
        for turn in plan(Kind::Changes, 4, 10, SHAPE) {
            let Planned::Change { change, kills } = turn.fault else { panic!("{turn:?}") };
            assert!(!kills.is_empty());
            seen.insert(std::mem::discriminant(&change));
        }
        assert_eq!(seen.len(), 5);
    }
}

//! The matrix: one row a cell, one function each.

mod changes;
mod clients;
mod clocks;
mod crashes;
mod damage;
mod disks;
mod fronts;
mod hostile;
mod identity;
mod kills;
mod network;
mod power;
mod space;
mod versions;

use anyhow::Result;

use super::run::Run;

pub struct Cell {
    pub name: &'static str,
    pub text: &'static str,
    /// As many as the matrix asks for.
    pub rounds: u64,
    /// In a run at random, where many cells take turns.
    pub rounds_at_random: u64,
    /// In the fixed part of `cargo xtask test`; `None` if it is not part of that.
    pub rounds_in_tests: Option<u64>,
    pub run: fn(&mut Run) -> Result<()>,
}

pub const CELLS: [Cell; 26] = [
    Cell {
        name: "M1",
        text: "random kills",
        rounds: 330,
        rounds_at_random: 20,
        rounds_in_tests: None,
        run: kills::of_anybody,
    },
    Cell {
        name: "M2",
        text: "leader after leader is killed",
        rounds: 50,
        rounds_at_random: 10,
        rounds_in_tests: None,
        run: kills::of_leaders,
    },
    Cell {
        name: "M3",
        text: "datanodes are killed in mid-stream",
        rounds: 20,
        rounds_at_random: 5,
        rounds_in_tests: None,
        run: kills::in_mid_stream,
    },
    Cell {
        name: "M4",
        text: "power cut of all nodes at once",
        rounds: 100,
        rounds_at_random: 5,
        rounds_in_tests: Some(1),
        run: power::of_all,
    },
    Cell {
        name: "M4C",
        text: "power cut of all nodes and clients at once",
        rounds: 50,
        rounds_at_random: 5,
        rounds_in_tests: Some(1),
        run: power::of_everybody,
    },
    Cell {
        name: "M5",
        text: "power cut of some nodes",
        rounds: 200,
        rounds_at_random: 10,
        rounds_in_tests: None,
        run: power::of_some,
    },
    Cell {
        name: "M6",
        text: "crashes at system calls",
        rounds: 1200,
        rounds_at_random: 30,
        rounds_in_tests: Some(6),
        run: crashes::at_calls,
    },
    Cell {
        name: "M7",
        text: "a sync fails",
        rounds: 12,
        rounds_at_random: 3,
        rounds_in_tests: None,
        run: disks::sync_fails,
    },
    Cell {
        name: "M8",
        text: "one, then two of three replicas are damaged",
        rounds: 10,
        rounds_at_random: 2,
        rounds_in_tests: None,
        run: damage::of_replicas,
    },
    Cell {
        name: "M9",
        text: "a frame is damaged on every disk",
        rounds: 5,
        rounds_at_random: 1,
        rounds_in_tests: None,
        run: damage::of_all_replicas,
    },
    Cell {
        name: "M10",
        text: "a bit flips in a namenode's database",
        rounds: 20,
        rounds_at_random: 3,
        rounds_in_tests: None,
        run: damage::of_a_namenode,
    },
    Cell {
        name: "M11",
        text: "the leader stands still for 1 to 20 s",
        rounds: 20,
        rounds_at_random: 3,
        rounds_in_tests: Some(1),
        run: kills::leader_pauses,
    },
    Cell {
        name: "M12",
        text: "links are cut",
        rounds: 54,
        rounds_at_random: 4,
        rounds_in_tests: None,
        run: network::partitions,
    },
    Cell {
        name: "M12L",
        text: "links are cut for five minutes",
        rounds: 9,
        rounds_at_random: 1,
        rounds_in_tests: None,
        run: network::long_partitions,
    },
    Cell {
        name: "M13",
        text: "packets are lost",
        rounds: 3,
        rounds_at_random: 1,
        rounds_in_tests: None,
        run: network::losses,
    },
    Cell {
        name: "M14",
        text: "clocks that jump",
        rounds: 20,
        rounds_at_random: 3,
        rounds_in_tests: None,
        run: clocks::that_jump,
    },
    Cell {
        name: "M14R",
        text: "clocks that run at another rate",
        rounds: 12,
        rounds_at_random: 3,
        rounds_in_tests: None,
        run: clocks::at_another_rate,
    },
    Cell {
        name: "M15",
        text: "disks are full, and have room again",
        rounds: 8,
        rounds_at_random: 2,
        rounds_in_tests: None,
        run: space::full_disks,
    },
    Cell {
        name: "M16",
        text: "nodes come, go and change their duty while others are killed",
        rounds: 100,
        rounds_at_random: 5,
        rounds_in_tests: None,
        run: changes::under_kills,
    },
    Cell {
        name: "M16N",
        text: "nodes come, go and change their duty while links are cut",
        rounds: 40,
        rounds_at_random: 5,
        rounds_in_tests: None,
        run: changes::under_partitions,
    },
    Cell {
        name: "M16B",
        text: "chunks move to an empty datanode while nodes are killed",
        rounds: 12,
        rounds_at_random: 2,
        rounds_in_tests: None,
        run: changes::balanced_under_kills,
    },
    Cell {
        name: "M17",
        text: "namenodes wiped or set back",
        rounds: 14,
        rounds_at_random: 2,
        rounds_in_tests: None,
        run: identity::forgotten,
    },
    Cell {
        name: "M18",
        text: "a client dies with files open",
        rounds: 5,
        rounds_at_random: 1,
        rounds_in_tests: None,
        run: clients::die,
    },
    Cell {
        name: "M19",
        text: "old data, and nodes that change their version one by one",
        rounds: 5,
        rounds_at_random: 1,
        rounds_in_tests: None,
        run: versions::mixed,
    },
    Cell {
        name: "M20",
        text: "hostile peers",
        rounds: 10,
        rounds_at_random: 1,
        rounds_in_tests: None,
        run: hostile::peers,
    },
    Cell {
        name: "M21",
        text: "a slow disk",
        rounds: 4,
        rounds_at_random: 2,
        rounds_in_tests: None,
        run: disks::slow_syncs,
    },
];

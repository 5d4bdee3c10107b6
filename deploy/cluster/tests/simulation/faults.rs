//! What is done to the machines: links cut in every shape, slow links, nodes that stop and come back.

use std::net::IpAddr;
use std::time::Duration;

use dfs_cluster::Dice;
use tokio::time::sleep;

use crate::bed::Bed;

/// Faults of one run.
const FAULTS: usize = 8;

#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Nobody hears it and it hears nobody.
    LeaderAlone,
    /// As before, but one client is with it.
    LeaderAndClient,
    /// It speaks to all and hears nobody.
    LeaderDeaf,
    LeaderMute,
    /// From the other namenodes only.
    LeaderAmongNamenodes,
    /// Machines that do not hear each other, in one direction or both.
    PairsApart,
    /// All machines in two parts.
    TwoParts,
    /// More and more links, mended in another order.
    OneByOne,
    ClientAlone,
    DatanodesAlone,
    SlowLinks,
    /// Stopped in order.
    NamenodeStops,
    DatanodeStops,
    /// Gone without a word, as far as others can tell.
    LeaderVanishes,
    DatanodeVanishes,
    /// All at once.
    NamenodesStop,
}

const SHAPES: [Shape; 16] = [
    Shape::LeaderAlone,
    Shape::LeaderAndClient,
    Shape::LeaderDeaf,
    Shape::LeaderMute,
    Shape::LeaderAmongNamenodes,
    Shape::PairsApart,
    Shape::TwoParts,
    Shape::OneByOne,
    Shape::ClientAlone,
    Shape::DatanodesAlone,
    Shape::SlowLinks,
    Shape::NamenodeStops,
    Shape::DatanodeStops,
    Shape::LeaderVanishes,
    Shape::DatanodeVanishes,
    Shape::NamenodesStop,
];

/// One fault after the other, with pauses.
pub async fn inflict(bed: &mut Bed, seed: u64) {
    let mut dice = Dice::apart(seed, "faults");
    let mut shapes = SHAPES;
    dice.shuffle(&mut shapes);
    for shape in shapes.into_iter().take(FAULTS) {
        sleep(Duration::from_millis(dice.between(500, 12_000))).await;
        // Mostly as long as a lease or a silence, now and then minutes.
        let hold = match dice.between(0, 7) {
            0 => dice.between(60_000, 150_000),
            1..=3 => dice.between(8_000, 30_000),
            _ => dice.between(300, 8_000),
        };
        let hold = Duration::from_millis(hold);
        let leader = bed.leader().await;
        let text = format!("{:6.1} s: {shape:?} for {hold:.1?}, nn{} leads", bed.elapsed().as_secs_f64(), leader + 1);
        println!("  {text}");
        bed.faults += 1;
        one(bed, shape, hold, leader, &mut dice).await;
    }
}

async fn one(bed: &mut Bed, shape: Shape, hold: Duration, leader: usize, dice: &mut Dice) {
    let leading = bed.nodes[leader].ip;
    let all = bed.machines();
    let clients: Vec<IpAddr> = bed.clients.iter().map(|client| client.ip).collect();
    let of_kind = |namenodes: bool| -> Vec<usize> {
        (0..bed.nodes.len()).filter(|index| bed.nodes[*index].is_namenode() == namenodes).collect()
    };
    let (namenodes, datanodes) = (of_kind(true), of_kind(false));
    match shape {
        Shape::LeaderAlone => part(bed, &[leading], &all, true, true),
        Shape::LeaderAndClient => part(bed, &[leading, *dice.pick(&clients)], &all, true, true),
        Shape::LeaderDeaf => part(bed, &[leading], &all, false, true),
        Shape::LeaderMute => part(bed, &[leading], &all, true, false),
        Shape::LeaderAmongNamenodes => {
            let others: Vec<IpAddr> = namenodes.iter().map(|index| bed.nodes[*index].ip).collect();
            part(bed, &[leading], &others, true, true);
        }
        Shape::PairsApart => {
            for _ in 0..dice.between(2, 6) {
                let (one, other) = (*dice.pick(&all), *dice.pick(&all));
                let both = dice.one_in(2);
                part(bed, &[one], &[other], true, both);
            }
        }
        Shape::TwoParts => part(bed, &dice.some(&all), &all, true, true),
        Shape::OneByOne => return one_by_one(bed, &all, hold, dice).await,
        Shape::ClientAlone => part(bed, &[*dice.pick(&clients)], &all, true, true),
        Shape::DatanodesAlone => {
            let some: Vec<IpAddr> = dice.some(&datanodes).iter().map(|index| bed.nodes[*index].ip).collect();
            part(bed, &some, &all, true, true);
        }
        Shape::SlowLinks => {
            for from in &all {
                for to in &all {
                    if dice.one_in(3) {
                        let least = Duration::from_millis(dice.between(5, 150));
                        bed.fabric.delay(*from, *to, least..3 * least);
                    }
                }
            }
        }
        Shape::NamenodeStops => return stop(bed, &[*dice.pick(&namenodes)], false, hold).await,
        Shape::DatanodeStops => return stop(bed, &[*dice.pick(&datanodes)], false, hold).await,
        Shape::LeaderVanishes => return stop(bed, &[leader], true, hold).await,
        Shape::DatanodeVanishes => return stop(bed, &[*dice.pick(&datanodes)], true, hold).await,
        Shape::NamenodesStop => return stop(bed, &namenodes, dice.one_in(2), hold.min(Duration::from_secs(20))).await,
    }
    sleep(hold).await;
    bed.fabric.mend_all();
    bed.fabric.delay_as_usual();
}

/// Parts `some` from all others: nothing gets out, nothing gets in, or both.
pub fn part(bed: &Bed, some: &[IpAddr], all: &[IpAddr], out: bool, in_: bool) {
    for one in some {
        for other in all.iter().filter(|other| !some.contains(other)) {
            if out {
                bed.fabric.cut(*one, *other);
            }
            if in_ {
                bed.fabric.cut(*other, *one);
            }
        }
    }
}

async fn one_by_one(bed: &mut Bed, all: &[IpAddr], hold: Duration, dice: &mut Dice) {
    let mut links: Vec<(IpAddr, IpAddr)> = (0..24).map(|_| (*dice.pick(all), *dice.pick(all))).collect();
    links.retain(|(from, to)| from != to);
    let pause = hold / (2 * links.len().max(1) as u32);
    for (from, to) in &links {
        bed.fabric.cut(*from, *to);
        sleep(pause).await;
    }
    dice.shuffle(&mut links);
    for (from, to) in &links {
        bed.fabric.mend(*from, *to);
        sleep(pause).await;
    }
    bed.fabric.mend_all();
}

/// Nodes stop, are away, and start again. One that vanishes is cut off first, so that its last words are not heard.
async fn stop(bed: &mut Bed, nodes: &[usize], vanish: bool, hold: Duration) {
    let all = bed.machines();
    if vanish {
        let gone: Vec<IpAddr> = nodes.iter().map(|index| bed.nodes[*index].ip).collect();
        part(bed, &gone, &all, true, true);
    }
    for index in nodes {
        bed.stop_node(*index).await;
    }
    sleep(hold).await;
    bed.fabric.mend_all();
    for index in nodes {
        bed.start_node(*index);
    }
}

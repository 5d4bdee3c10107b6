//! M12 and M13: links that are cut in every shape, and links that lose packets.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;
use dfs_cluster::fault::Fault;
use dfs_cluster::fault::network::{Network, between};
use dfs_cluster::{Invariant, OnError, Stream, check_at_rest};

use crate::torture::cells::kills::with_everybody_at_work;
use crate::torture::plan::{Kind, Partition, Planned, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait};

pub fn partitions(run: &mut Run) -> Result<()> {
    every_shape(run, Kind::Partitions)
}

/// Five minutes of every shape: sessions end, and calls come to their deadlines.
pub fn long_partitions(run: &mut Run) -> Result<()> {
    every_shape(run, Kind::LongPartitions)
}

fn every_shape(run: &mut Run, kind: Kind) -> Result<()> {
    // What is overwritten for minutes leaves its room only with the last byte of its chunk.
    let bed = run.roomy_bed("partitions", &["--netns"])?;
    let network = Network::of(&bed.cluster)?;
    let mut longest = Duration::ZERO;
    for (part, turn) in plan(kind, run.seed, run.rounds, SHAPE).into_iter().enumerate() {
        if !run.goes_on() {
            break;
        }
        let on_error = match (&turn.fault, kind) {
            (Planned::Partition(shape), Kind::LongPartitions) if shape.may_end_service() => OnError::GoOn,
            _ => OnError::Stop,
        };
        with_everybody_at_work(run, &bed, part, on_error, |run, work| {
            let Planned::Partition(shape) = &turn.fault else { unreachable!("plans of partitions") };
            Cut::of(&bed, &network, shape)?.hold(&network, Duration::from_millis(turn.hold_ms))?;
            let healed = Instant::now();
            run.verdict.hold(Invariant::CallsEnd, all_serve(&bed))?;
            bed.cluster.wait_caught_up(DEADLINE)?;
            let healed = healed.elapsed();
            longest = longest.max(healed);
            run.verdict.hold(Invariant::CallsEnd, work.go_on(turn.after_steps.min(60)))?;
            run.done.rounds += 1;
            run.say(run.done.rounds, &turn.fault, format!("back after {:.1} s", healed.as_secs_f64()));
            Ok(())
        })?;
    }
    run.done.figures.push(format!("all was back {:.1} s after the last link at most", longest.as_secs_f64()));
    Ok(())
}

/// Waits until a new file can be written and synced on every mount.
fn all_serve(bed: &Bed) -> Result<()> {
    for mount in &bed.mounts {
        let probe = mount.join("probe");
        wait(&format!("{} serves", mount.display()), DEADLINE, || {
            let written = File::create(&probe).and_then(|mut file| {
                file.write_all(b"after the cut")?;
                file.sync_all()
            });
            Ok(written.is_ok())
        })?;
        std::fs::remove_file(&probe)?;
    }
    Ok(())
}

/// Links that are to be cut, by the names of those who are meant.
pub struct Cut {
    links: Vec<(String, String)>,
    /// All at once, or one after the other and back in this order.
    back: Option<Vec<usize>>,
}

/// A cut that is over.
pub struct Held {
    /// When its first link stopped.
    pub begins: Instant,
    /// When the first of them worked again.
    pub heals: Instant,
}

impl Cut {
    pub fn of(bed: &Bed, network: &Network, shape: &Partition) -> Result<Cut> {
        let back = match shape {
            Partition::OneByOne(_, back) => Some(back.clone()),
            _ => None,
        };
        Ok(Cut { links: links(bed, network, shape)?, back })
    }

    /// Cuts, waits, heals.
    pub fn hold(&self, network: &Network, time: Duration) -> Result<Held> {
        let begins = Instant::now();
        let Some(back) = &self.back else {
            let cut = network.cut(&self.links)?;
            std::thread::sleep(time);
            let heals = Instant::now();
            cut.undo()?;
            return Ok(Held { begins, heals });
        };
        let pause = time / (2 * self.links.len().max(1) as u32);
        let mut cuts: Vec<Option<Fault>> = Vec::new();
        for link in &self.links {
            cuts.push(Some(network.cut(std::slice::from_ref(link))?));
            std::thread::sleep(pause);
        }
        let heals = Instant::now();
        for index in back {
            if let Some(cut) = cuts[*index].take() {
                cut.undo()?;
            }
            std::thread::sleep(pause);
        }
        Ok(Held { begins, heals })
    }
}

fn links(bed: &Bed, network: &Network, shape: &Partition) -> Result<Vec<(String, String)>> {
    let everybody = network.names();
    Ok(match shape {
        Partition::Alone(target) => between(&[bed.node(target)?], &everybody),
        Partition::Deaf(target) => {
            let deaf = bed.node(target)?;
            between(std::slice::from_ref(&deaf), &everybody).into_iter().filter(|(_, to)| *to == deaf).collect()
        }
        Partition::Mute(target) => {
            let mute = bed.node(target)?;
            between(std::slice::from_ref(&mute), &everybody).into_iter().filter(|(from, _)| *from == mute).collect()
        }
        Partition::Apart(one, other) => between(&[bed.node(one)?], &[bed.node(other)?]),
        Partition::Two(one, other) => {
            let two = [bed.node(one)?, bed.node(other)?];
            let others: Vec<String> = everybody.into_iter().filter(|name| !two.contains(name)).collect();
            between(&two, &others)
        }
        Partition::OneByOne(links, _) => links.clone(),
    })
}

/// MiB that are streamed with and without losses.
const STREAM_MIB: u64 = 48;

pub fn losses(run: &mut Run) -> Result<()> {
    let bed = run.bed("losses", &["--netns"])?;
    let network = Network::of(&bed.cluster)?;
    for (number, turn) in (1..).zip(plan(Kind::Losses, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let Planned::Loss { percent } = turn.fault else { unreachable!("plans of losses") };
        let names = [format!("healthy{number}"), format!("lossy{number}")];
        let healthy = streamed(run, &bed, &names[0])?;
        let losing = network.lose(percent)?;
        let lossy = streamed(run, &bed, &names[1]);
        losing.undo()?;
        let lossy = lossy?;
        check_at_rest(&bed.cluster, DEADLINE, &mut run.verdict)?;
        names.iter().try_for_each(|name| bed.clear(name))?;
        let line = format!("{healthy:.0} MiB/s, {lossy:.0} MiB/s with {percent} % lost");
        run.say(number, &turn.fault, &line);
        run.done.figures.push(line);
        run.done.rounds += 1;
    }
    Ok(())
}

/// MiB a second.
fn streamed(run: &mut Run, bed: &Bed, name: &str) -> Result<f64> {
    let stream = Stream::start(&bed.mounts[0].join(name), STREAM_MIB, run.seed)?;
    run.verdict.hold(Invariant::CallsEnd, stream.go_on(STREAM_MIB, 5 * DEADLINE))?;
    let report = stream.finish()?;
    run.expect_no_errors(&report.errors);
    report.check(&bed.mounts[1].join(name), &mut run.verdict);
    Ok((report.bytes >> 20) as f64 / report.elapsed.as_secs_f64())
}

//! M17: namenodes that find nothing on their disks, or an older copy of it. With what they have forgotten, a majority
//! could lead that lacks what was acknowledged: so they take part in nothing until an operator has replaced them, and
//! where a majority has forgotten, nobody serves.

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dfs_cluster::fault::disk::{self, OldImage};
use dfs_cluster::fault::{Fault, process};
use dfs_cluster::{Invariant, Ledger, OnError};

use crate::torture::plan::{Disk, Kind, Planned, Target, Turn, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE, wait};

/// What a refused namenode tells its operator to do.
const REMEDY: &str = "dfs namenode replace";

/// How long it is looked whether anything is served that should not be. Clients wait longer for a leader.
const REFUSAL: Duration = Duration::from_secs(15);

/// The ledger's folder.
const LEDGER: &str = "ledger";

pub fn forgotten(run: &mut Run) -> Result<()> {
    let (mut refusals, mut replaced) = (0, Vec::new());
    for (number, turn) in (1..).zip(plan(Kind::ForgottenNamenodes, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let Planned::Forgotten { targets, .. } = &turn.fault else { unreachable!("plans of forgotten disks") };
        let bed = run.plain_bed(&format!("round{number}"), &[])?;
        let done = if targets.len() == 1 { one(run, &bed, number, &turn)? } else { two(run, &bed, number, &turn)? };
        refusals += done.refusals;
        replaced.extend(done.replaced);
        run.done.rounds += 1;
        run.say(number, &turn.fault, done.outcome);
    }
    run.done.figures.push(format!("{refusals} starts refused"));
    if let Some(longest) = replaced.iter().max() {
        let count = replaced.len();
        run.done.figures.push(format!("{count} replaced, within {:.1} s at most", longest.as_secs_f64()));
    }
    Ok(())
}

/// What came of a round.
struct Done {
    refusals: u64,
    /// How long it took to replace the lost one.
    replaced: Option<Duration>,
    outcome: String,
}

/// One of three: it is refused, the others serve, and a replacement takes its place.
fn one(run: &mut Run, bed: &Bed, number: u64, turn: &Turn) -> Result<Done> {
    let Planned::Forgotten { targets, disk, away } = &turn.fault else { unreachable!("plans of forgotten disks") };
    // With another one away there is no majority for a moment.
    let on_error = if *away { OnError::GoOn } else { OnError::Stop };
    let ledger = bed.ledger(LEDGER, run.seed.wrapping_add(number), on_error)?;
    bed.work(&ledger, turn)?;
    let node = bed.node(&targets[0])?;
    let mut lost = forget(bed, std::slice::from_ref(&node), *disk, turn, &ledger)?;
    let lost = lost.pop().context("one disk was lost")?;
    let mut refusals = 0;
    {
        let absent = match away {
            true => Some(process::kill(&bed.cluster, &[bed.node(&Target::Leader)?])?),
            false => None,
        };
        refusals += refused(run, bed, &node, REMEDY)?;
        absent.map_or(Ok(()), Fault::undo)?;
    }
    // Nor does it help to try again, with everybody there.
    bed.cluster.leader(DEADLINE)?;
    refusals += refused(run, bed, &node, REMEDY)?;
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(20, DEADLINE))?;
    let replaced = match disk {
        Disk::Empty => {
            let (took, more) = replace(run, bed, &node, lost)?;
            refusals += more;
            Some(took)
        }
        Disk::Old => {
            // Its own disk turns up again: with that it is who it was, and no operator is needed.
            lost.undo()?;
            run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.wait_caught_up(DEADLINE))?;
            run.verdict.hold(Invariant::OneLeader, lead(bed, &node))?;
            None
        }
    };
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(20, DEADLINE))?;
    let report = ledger.abandon()?;
    if !away {
        run.expect_no_errors(&report.errors);
    }
    run.settle(bed, &report)?;
    alike(run, bed);
    let outcome = match replaced {
        Some(took) => format!("{node} refused, replaced in {:.1} s, {} steps", took.as_secs_f64(), report.steps),
        None => format!("{node} refused, with its own disk back, {} steps", report.steps),
    };
    Ok(Done { refusals, replaced, outcome })
}

/// Two of three: what the third has may not be all that was acknowledged, so it serves nobody, and what the two have is
/// no beginning of anything. When their own disks turn up again, everything is there.
fn two(run: &mut Run, bed: &Bed, number: u64, turn: &Turn) -> Result<Done> {
    let Planned::Forgotten { targets, disk, away } = &turn.fault else { unreachable!("plans of forgotten disks") };
    let ledger = bed.ledger(LEDGER, run.seed.wrapping_add(number), OnError::GoOn)?;
    bed.work(&ledger, turn)?;
    let nodes = targets.iter().map(|target| bed.node(target)).collect::<Result<Vec<String>>>()?;
    let third = bed.cluster.namenodes().into_iter().find(|node| !nodes.contains(node));
    let third = third.context("there are three")?;
    let lost = forget(bed, &nodes, *disk, turn, &ledger)?;
    let mut refusals = 0;
    if *away {
        // Nobody is there who remembers. They wait for one, whatever they find in their configuration.
        let absent = process::kill(&bed.cluster, std::slice::from_ref(&third))?;
        nodes.iter().try_for_each(|node| bed.cluster.start(node))?;
        nothing_is_served(run, bed, &ledger, &third)?;
        let logs: Vec<usize> = nodes.iter().map(|node| bed.cluster.log_len(node)).collect();
        absent.undo()?;
        for (node, log) in nodes.iter().zip(logs) {
            refusals += ended(run, bed, node, log, REMEDY)?;
        }
    }
    for node in &nodes {
        refusals += refused(run, bed, node, REMEDY)?;
    }
    nothing_is_served(run, bed, &ledger, &third)?;
    if *disk == Disk::Empty {
        begin_anew(run, bed)?;
    }
    lost.into_iter().try_for_each(Fault::undo)?;
    run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.wait_caught_up(DEADLINE))?;
    run.verdict.hold(Invariant::CallsEnd, ledger.go_on(20, DEADLINE))?;
    let report = ledger.abandon()?;
    run.settle(bed, &report)?;
    alike(run, bed);
    let outcome = format!("{} refused, nothing served, {} steps", nodes.join(" "), report.steps);
    Ok(Done { refusals, replaced: None, outcome })
}

/// Stops the nodes and takes away what they have. Each has its own data again when its fault is undone.
fn forget<'a>(bed: &'a Bed, nodes: &[String], disk: Disk, turn: &Turn, ledger: &Ledger) -> Result<Vec<Fault<'a>>> {
    let mut images = Vec::new();
    if disk == Disk::Old {
        let aside = bed.mounts[0].parent().context("mounts are in the folder of the round")?;
        for node in nodes {
            images.push(OldImage::take(&bed.cluster, node, aside)?);
            bed.cluster.wait_caught_up(DEADLINE)?;
        }
        // What is promised is that a copy of more than a second ago is recognised.
        ledger.go_on(turn.after_steps, DEADLINE)?;
        std::thread::sleep(Duration::from_millis(1500 + turn.hold_ms));
    }
    match disk {
        Disk::Empty => nodes.iter().map(|node| disk::empty(&bed.cluster, node)).collect(),
        Disk::Old => images.iter().map(|image| image.put_back(&bed.cluster)).collect(),
    }
}

/// Starts a namenode that has to end by itself and say why; 1.
fn refused(run: &mut Run, bed: &Bed, node: &str, reason: &str) -> Result<u64> {
    let log = bed.cluster.log_len(node);
    bed.cluster.start(node)?;
    ended(run, bed, node, log, reason)
}

/// A namenode that was started when its log was so long ends by itself and says why; 1.
fn ended(run: &mut Run, bed: &Bed, node: &str, log: usize, reason: &str) -> Result<u64> {
    let outcome = wait(&format!("{node} refuses to start"), DEADLINE, || Ok(!bed.cluster.is_running(node)));
    let outcome = outcome.and_then(|_| {
        let said = bed.cluster.log_since(node, log);
        ensure!(said.contains(reason), "{node} has ended without naming `{reason}`: {said}");
        Ok(1)
    });
    run.verdict.hold(Invariant::OneLeader, outcome)
}

/// An operator puts a new namenode in the place of the lost one, whose number is used up from then on. How long it took,
/// and how often the lost one was refused.
fn replace(run: &mut Run, bed: &Bed, node: &str, lost: Fault<'_>) -> Result<(Duration, u64)> {
    let begun = Instant::now();
    let replaced = bed.cluster.run(["namenode", "replace", node]).map(drop);
    run.verdict.hold(Invariant::CallsEnd, replaced)?;
    let took = begun.elapsed();
    run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.wait_caught_up(DEADLINE))?;
    let namenodes = bed.cluster.namenodes();
    ensure!(namenodes.len() == SHAPE.namenodes && !namenodes.iter().any(|name| name == node), "{namenodes:?}");
    // It may not come back: not with its empty disk, not by command, and not with the data that it once had.
    let mut refusals = refused(run, bed, node, "removed")?;
    not_again(run, bed, node)?;
    let log = bed.cluster.log_len(node);
    lost.undo()?;
    refusals += ended(run, bed, node, log, "removed")?;
    // Whoever takes the place has everything, or it could not lead.
    let newcomer = namenodes.last().context("there are namenodes")?;
    run.verdict.hold(Invariant::OneLeader, lead(bed, newcomer))?;
    Ok((took, refusals))
}

/// A number that was used is refused, though everything else about it would do.
fn not_again(run: &mut Run, bed: &Bed, node: &str) -> Result<()> {
    let path = bed.cluster.dir().join(node).join("namenode.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map(|value| value.trim().trim_matches('"')).with_context(|| format!("{key} in {}", path.display()))
    };
    let args = ["namenode", "add", node, value("listen")?, value("raft_listen")?, "--id", value("node")?];
    let output = bed.cluster.output(args)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let outcome = match output.status.success() {
        true => Err(anyhow!("dfs {} was accepted, and that number was used before", args.join(" "))),
        false if !said.contains("used") => Err(anyhow!("dfs {}: refused for another reason: {said}", args.join(" "))),
        false => Ok(()),
    };
    run.verdict.hold(Invariant::NothingAllowedInError, outcome)
}

/// Has it lead, which only a namenode can that has every committed entry.
fn lead(bed: &Bed, node: &str) -> Result<()> {
    if bed.cluster.leader(DEADLINE)? != node {
        bed.cluster.run(["namenode", "transfer-leader", node])?;
    }
    let leads = bed.cluster.leader(DEADLINE)?;
    ensure!(leads == node, "{leads} leads, and {node} was asked to");
    Ok(())
}

/// For a while no write is acknowledged, and nobody is shown a namespace, least of all one in which things are missing.
fn nothing_is_served(run: &mut Run, bed: &Bed, ledger: &Ledger, third: &str) -> Result<()> {
    let before = ledger.acknowledged();
    let (begun, listed) = (Instant::now(), list(bed));
    let (ls, mkdir) = std::thread::scope(|scope| {
        let [ls, mkdir] = [["ls", "/"], ["mkdir", "/made-without-a-majority"]]
            .map(|args| scope.spawn(move || bed.cluster.output_within(args, REFUSAL)));
        (ls.join(), mkdir.join())
    });
    for (what, output) in [("ls", ls), ("mkdir", mkdir)] {
        let output = output.map_err(|_| anyhow!("a thread panicked"))??;
        let said = String::from_utf8_lossy(&output.stdout);
        let refused = match output.status.success() {
            true => Err(anyhow!("no majority has its disks, and `dfs {what}` succeeds: {said:?}")),
            false => Ok(()),
        };
        run.verdict.hold(Invariant::OneLeader, refused)?;
    }
    // No answer at all is as good. The third may have led before and not know yet that it does so no more: that is a
    // belief, and serves nobody.
    if let Ok(status) = bed.cluster.status() {
        let outcome = match status["leader"].is_null() || status["leader_name"] == third {
            true => Ok(()),
            false => Err(anyhow!("{} leads, and has forgotten everything", status["leader_name"])),
        };
        run.verdict.hold(Invariant::OneLeader, outcome)?;
    }
    // A mount may remember what it was told, and may wait.
    let invented = match listed.recv_timeout(REFUSAL.saturating_sub(begun.elapsed())) {
        Ok(Ok(names)) if !names.iter().any(|name| name == LEDGER) => {
            Err(anyhow!("a mount shows {names:?} as its root"))
        }
        _ => Ok(()),
    };
    run.verdict.hold(Invariant::OneLeader, invented)?;
    let steps = ledger.acknowledged() - before;
    let silence = match steps {
        0 => Ok(()),
        _ => Err(anyhow!("{steps} steps were acknowledged without a majority")),
    };
    run.verdict.hold(Invariant::OneLeader, silence)
}

/// The names in the root of the second mount, when they can be had: asked by a thread, since the call may wait for as
/// long as nobody leads.
fn list(bed: &Bed) -> mpsc::Receiver<std::io::Result<Vec<String>>> {
    let (root, (told, names)) = (bed.mounts[1].clone(), mpsc::channel());
    std::thread::spawn(move || {
        let list = || fs::read_dir(&root)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
        // Nobody listens any more if it took too long.
        let _ = told.send(list());
    });
    names
}

/// An operator who believes that this is a new cluster: the mark that it was formed is taken away, and `dfs up` forms a
/// group. It must not, since one namenode knows better.
fn begin_anew(run: &mut Run, bed: &Bed) -> Result<()> {
    let marker = bed.cluster.dir().join("initialized");
    fs::remove_file(&marker).with_context(|| marker.display().to_string())?;
    let outcome = match bed.cluster.start_all_within(REFUSAL)?.status.success() {
        true => Err(anyhow!("`dfs up` has formed a new group although one namenode has the old one's data")),
        false => Ok(()),
    };
    run.verdict.hold(Invariant::OneLeader, outcome)
}

/// The states of all namenodes have the same hash.
fn alike(run: &mut Run, bed: &Bed) {
    // A difference is in the verdict; there is nothing that would not be done because of it.
    let _ = run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.run(["namenode", "hash"]));
}

//! M8, M9 and M10: disks that return something else than was written.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfs_cluster::fault::damage::{self, Damage};
use dfs_cluster::fault::process;
use dfs_cluster::{Dice, DiskReplica, Invariant, OnError, Stream, check_at_rest, fsck, replicas_of};

use crate::torture::run::{Bed, DEADLINE, Run, wait};

/// The shortest period that a datanode accepts, so that a scrub of everything can be waited for.
const SCRUB_PERIOD: &str = "scrub_period_s = 60\n";

/// Two periods and the repair.
const HEAL_DEADLINE: Duration = Duration::from_secs(240);

const STREAM_MIB: u64 = 24;

/// Replicas are damaged while others of the chunk are whole: first one of each chunk, then two.
pub fn of_replicas(run: &mut Run) -> Result<()> {
    let bed = run.bed("damage", &[])?;
    bed.configure_datanodes(SCRUB_PERIOD)?;
    let mut dice = Dice::apart(run.seed, "damage");
    for number in 1..=run.rounds {
        if !run.goes_on() {
            break;
        }
        let name = format!("round{number}");
        let stream = Stream::start(&bed.mounts[0].join(format!("{name}-stream")), STREAM_MIB, run.seed)?;
        let ledger = bed.ledger(&name, run.seed.wrapping_add(number), OnError::Stop)?;
        ledger.go_on(200, DEADLINE)?;
        stream.go_on(STREAM_MIB + STREAM_MIB / 2, DEADLINE)?;
        let (streamed, report) = (stream.finish()?, ledger.abandon()?);
        run.expect_no_errors(&report.errors);
        run.done.acknowledged += report.steps;
        check_at_rest(&bed.cluster, DEADLINE, &mut run.verdict)?;

        let copies = 2 - number % 2;
        let done = damage_copies(&bed, copies as usize, &mut dice)?;
        let begun = Instant::now();
        report.check(&bed.mounts[1].join(&name), &mut run.verdict);
        streamed.check(&bed.mounts[1].join(format!("{name}-stream")), &mut run.verdict);
        let healed = wait("every damaged replica is replaced", HEAL_DEADLINE, || Ok(damaged(&bed)?.is_empty()));
        let healed = healed.with_context(|| format!("{:?}", damaged(&bed)));
        run.verdict.hold(Invariant::ReplicasAgree, healed)?;
        check_at_rest(&bed.cluster, DEADLINE, &mut run.verdict)?;
        run.done.rounds += 1;
        let outcome = format!("right bytes, healed in {:.0} s", begun.elapsed().as_secs_f64());
        run.say(number, format!("{} replicas damaged, {copies} of each chunk", done.len()), outcome);
        bed.clear(&name)?;
        bed.clear(&format!("{name}-stream"))?;
    }
    Ok(())
}

/// Sealed replicas by their chunk.
fn sealed(bed: &Bed) -> Result<BTreeMap<u64, Vec<DiskReplica>>> {
    let mut chunks: BTreeMap<u64, Vec<DiskReplica>> = BTreeMap::new();
    for node in bed.cluster.datanodes() {
        for replica in replicas_of(&bed.cluster, &node)? {
            if replica.sealed && replica.problems.is_empty() && replica.len_bytes > 0 {
                chunks.entry(replica.chunk).or_default().push(replica);
            }
        }
    }
    Ok(chunks)
}

fn damaged(bed: &Bed) -> Result<Vec<DiskReplica>> {
    let mut damaged = Vec::new();
    for node in bed.cluster.datanodes() {
        damaged.extend(replicas_of(&bed.cluster, &node)?.into_iter().filter(|replica| !replica.problems.is_empty()));
    }
    Ok(damaged)
}

/// Damages so many copies of every chunk that has more.
fn damage_copies(bed: &Bed, copies: usize, dice: &mut Dice) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for mut replicas in sealed(bed)?.into_values() {
        dice.shuffle(&mut replicas);
        ensure!(replicas.len() > copies, "chunk {} has {} replicas", replicas[0].chunk, replicas.len());
        for replica in &replicas[..copies] {
            done.push(damage::damage(replica, *dice.pick(&Damage::ALL), dice)?);
        }
    }
    Ok(done)
}

/// Bytes that are damaged on every disk are errors; everything else is there, and fsck names the file.
pub fn of_all_replicas(run: &mut Run) -> Result<()> {
    let bed = run.bed("all", &[])?;
    let mut dice = Dice::apart(run.seed, "damage of all");
    for number in 1..=run.rounds {
        if !run.goes_on() {
            break;
        }
        let path = PathBuf::from(format!("file{number}"));
        let bytes = random_bytes(run.seed.wrapping_add(number), 4 << 20);
        let other = PathBuf::from(format!("other{number}"));
        for name in [&path, &other] {
            let file = fs::File::create(bed.mounts[0].join(name))?;
            file.write_all_at(&bytes, 0)?;
            file.sync_all()?;
            // The file after it goes into another chunk.
            drop(file);
            check_at_rest(&bed.cluster, DEADLINE, &mut run.verdict)?;
        }
        let lost = lose_a_frame(&bed, &path, &mut dice)?;
        let begun = Instant::now();
        let failed = read_in_pieces(run, &bed.mounts[1].join(&path), &bytes)?;
        if !failed.contains(&(lost / PIECE)) {
            run.verdict.broken(Invariant::OnlyRightBytes, format!("byte {lost} was read though no disk has it"));
        }
        if failed.len() > 2 {
            let text = format!("{} pieces cannot be read, and one frame is damaged", failed.len());
            run.verdict.broken(Invariant::AcknowledgedSurvives, text);
        }
        let untouched = read_in_pieces(run, &bed.mounts[1].join(&other), &bytes)?;
        ensure!(untouched.is_empty(), "{} has lost {untouched:?}", other.display());
        let named = wait("fsck names the file", DEADLINE, || fsck_names(&bed, &path));
        run.verdict.hold(Invariant::FsckAgrees, named)?;
        run.done.rounds += 1;
        run.say(
            number,
            "a frame damaged on all disks",
            format!("EIO there only, {:.0} s", begun.elapsed().as_secs_f64()),
        );
        [path, other].iter().try_for_each(|name| fs::remove_file(bed.mounts[0].join(name)))?;
    }
    Ok(())
}

/// Bytes of a frame: what a read has to be aligned to so that it asks for no others.
const PIECE: u64 = 64 << 10;

/// Damages the same byte of all replicas of a chunk of the file. Returns where in the file it was.
fn lose_a_frame(bed: &Bed, path: &Path, dice: &mut Dice) -> Result<u64> {
    let lines = fsck(&bed.cluster)?;
    let name = format!("/{}", path.display());
    let line = lines.iter().find(|line| line["path"] == name.as_str()).context("fsck lists the file")?;
    let extent = &line["extents"][0];
    let number = |key: &str| extent[key].as_u64().with_context(|| format!("{key} in {extent}"));
    let within = dice.between(0, number("len_bytes")? - 1);
    let replicas = sealed(bed)?.remove(&number("chunk")?).context("the chunk is on the disks")?;
    for replica in &replicas {
        damage::flip_at(replica, number("chunk_offset")? + within)?;
    }
    Ok(number("file_offset")? + within)
}

/// Numbers of the pieces that cannot be read. What can be read must be right.
fn read_in_pieces(run: &mut Run, path: &Path, written: &[u8]) -> Result<Vec<u64>> {
    let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
    let file = fs::OpenOptions::new().read(true).custom_flags(direct).open(path)?;
    let mut failed = Vec::new();
    for (number, piece) in (0..).zip(written.chunks(PIECE as usize)) {
        let mut found = vec![0; piece.len()];
        match file.read_exact_at(&mut found, number * PIECE) {
            Err(_) => failed.push(number),
            Ok(()) if found == piece => run.verdict.fine(Invariant::OnlyRightBytes, 1),
            Ok(()) => {
                run.verdict.broken(Invariant::OnlyRightBytes, format!("{} piece {number} differs", path.display()));
            }
        }
    }
    Ok(failed)
}

fn fsck_names(bed: &Bed, path: &Path) -> Result<bool> {
    let lines = fsck(&bed.cluster)?;
    let verdict = lines.last().context("fsck says something")?;
    let problems = verdict["problems"].as_array().cloned().unwrap_or_default();
    let name = path.display().to_string();
    Ok(problems.iter().any(|problem| problem["path"].to_string().contains(&name)))
}

fn random_bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// So often the leader is killed to have the damaged namenode elected, if it runs.
const ELECTIONS_MAX: usize = 6;

/// A bit flips in a database of one namenode: it refuses, or it is as good as the others; it never leads with a hole.
pub fn of_a_namenode(run: &mut Run) -> Result<()> {
    let mut dice = Dice::apart(run.seed, "databases");
    let mut refused = 0;
    for number in 1..=run.rounds {
        if !run.goes_on() {
            break;
        }
        // A node that refuses is not repaired here.
        let bed = run.bed(&format!("round{number}"), &[])?;
        refused += u64::from(one_database(run, &bed, number, &mut dice)?);
        run.done.rounds += 1;
    }
    run.done.figures.push(format!("{refused} of {} damaged namenodes refused to serve", run.done.rounds));
    Ok(())
}

fn one_database(run: &mut Run, bed: &Bed, number: u64, dice: &mut Dice) -> Result<bool> {
    let ledger = bed.ledger("ledger", run.seed.wrapping_add(number), OnError::Stop)?;
    ledger.go_on(dice.between(50, 300), DEADLINE)?;
    let node = dice.pick(&bed.cluster.namenodes()).clone();
    if dice.one_in(2) {
        // Tables come with it, and a log that begins later.
        let _ = bed.cluster.output(["namenode", "snapshot"])?;
        ledger.go_on(20, DEADLINE)?;
    }
    bed.cluster.kill(&node)?;
    let file = pick_database_file(&bed.cluster.dir().join(&node).join("data"), dice)?;
    let at = damage::flip_somewhere(&file, dice)?;
    ledger.go_on(20, DEADLINE)?;
    let said = bed.cluster.log_len(&node);
    bed.cluster.start(&node)?;
    let runs = stays_up(bed, &node, said)?;
    let mut led = false;
    if runs {
        for _ in 0..ELECTIONS_MAX {
            let leader = bed.cluster.leader(DEADLINE)?;
            if leader == node {
                led = true;
                break;
            }
            let killed = process::kill(&bed.cluster, &[leader])?;
            // It may refuse only now, and then there is no majority until the other is back, which must not take as long as
            // writers wait. The question who leads may: to start a program, the files that this one writes are flushed
            // in the child (`Ledger`), as at each close.
            std::thread::scope(|scope| {
                let asking = scope.spawn(|| bed.cluster.leader(DEADLINE));
                wait("a leader", DEADLINE, || Ok(!bed.cluster.is_running(&node) || asking.is_finished()))?;
                killed.undo()
            })?;
            if !bed.cluster.is_running(&node) {
                break;
            }
            run.verdict.hold(Invariant::NamenodesAgree, bed.cluster.wait_caught_up(DEADLINE))?;
        }
    }
    ledger.go_on(20, DEADLINE)?;
    let report = ledger.abandon()?;
    run.expect_no_errors(&report.errors);
    run.done.acknowledged += report.steps;
    report.check(&bed.mounts[1].join("ledger"), &mut run.verdict);
    dfs_cluster::check_fsck(&bed.cluster, &mut run.verdict)?;
    let name = file.strip_prefix(bed.cluster.dir()).unwrap_or(&file).display().to_string();
    let runs = runs && bed.cluster.is_running(&node);
    let outcome = match (runs, led) {
        (false, _) => "refuses",
        (true, false) => "runs, was not elected",
        (true, true) => "runs, led, all is there",
    };
    run.say(number, format!("a bit of {name} at {at}"), outcome);
    Ok(!runs)
}

fn pick_database_file(data: &Path, dice: &mut Dice) -> Result<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![data.join("log"), data.join("state")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_data = [".sst", ".log"].iter().any(|end| name.ends_with(end))
                || ["MANIFEST", "CURRENT", "LIVE"].iter().any(|begin| name.starts_with(begin));
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if is_data && entry.metadata()?.len() > 0 {
                files.push(entry.path());
            }
        }
    }
    // Folders are listed in any order.
    files.sort();
    Ok(dice.pick(&files).clone())
}

/// Whether it runs and has caught up, or has ended by itself. `said` is how long its log was before it was started: what
/// the others say of it may be older than that.
fn stays_up(bed: &Bed, node: &str, said: usize) -> Result<bool> {
    wait("the namenode answers or ends", DEADLINE, || {
        let started = bed.cluster.log_since(node, said).contains("namenode started");
        let answers = started && bed.cluster.wait_caught_up(Duration::from_millis(500)).is_ok();
        Ok(answers || !bed.cluster.is_running(node))
    })?;
    Ok(bed.cluster.is_running(node))
}

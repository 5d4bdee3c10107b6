//! M20: peers that mean harm, while applications work. Strangers send noise, what they have overheard, and beginnings of
//! handshakes to every port of every node; intruders have certificates, but of another cluster or for another role.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use dfs_cluster::hostile::{Assault, AssaultReport, Recording, Relay};
use dfs_cluster::{Cluster, Invariant, Layout, Ledger, OnError, output_within};

use crate::torture::plan::{Kind, Planned, plan};
use crate::torture::run::{Bed, DEADLINE, Run, SHAPE};

/// Steps before anything is measured: by then databases and caches have what they keep.
const WARM_UP_STEPS: u64 = 600;

/// How long the rate is measured before each round.
const QUIET: Duration = Duration::from_secs(20);

/// What a node may grow by while it is under attack.
const GROWTH_MAX: u64 = 64 << 20;

/// Clients that begin connections to nobody, for their first datagrams.
const BEGINNERS: usize = 12;

/// A client that is refused may try again for a while: whatever it was going to do, it has not done by then.
const INTRUDER_DEADLINE: Duration = Duration::from_secs(8);

/// An intruder is a whole client that starts: more often it would be the load of these that is measured.
const INTRUSION_EVERY: Duration = Duration::from_secs(1);

/// Made, removed, and then sent again a thousand times.
const OVERHEARD: &str = "/overheard";

/// What an intruder would make.
const INTRUDED: &str = "/intruded";

pub fn peers(run: &mut Run) -> Result<()> {
    let bed = run.plain_bed("peers", &[])?;
    let intruders = Intruders::new(run, &bed)?;
    let recorded = overhear(&bed, &run.dir)?;
    let targets = bed.cluster.addresses()?;
    let mut figures = Figures::default();
    let heard = (recorded.sent.len(), recorded.first.len());
    run.done.figures.push(format!("{} datagrams of clients overheard, {} of them the first", heard.0, heard.1));
    for (number, turn) in (1..).zip(plan(Kind::Strangers, run.seed, run.rounds, SHAPE)) {
        if !run.goes_on() {
            break;
        }
        let Planned::Strangers { per_second } = turn.fault else { unreachable!("plans of strangers") };
        let name = format!("round{number}");
        let seed = run.seed.wrapping_add(number);
        let ledger = bed.ledger(&name, seed, OnError::Stop)?;
        ledger.go_on(WARM_UP_STEPS, DEADLINE)?;
        let quiet = observe(&bed, &ledger, QUIET)?;
        let pids = pids(&bed)?;
        let assault = Assault::start(targets.clone(), recorded.clone(), per_second, seed)?;
        let (loud, tried) = intruders.while_they_try(|| observe(&bed, &ledger, Duration::from_millis(turn.hold_ms)))?;
        let sent = assault.finish()?;
        let loud = loud?;
        run.verdict.hold(Invariant::CallsEnd, ledger.go_on(20, DEADLINE))?;
        run.verdict.hold(Invariant::CallsEnd, unharmed(&bed, &pids))?;
        judge(run, &bed, &loud, &sent, &tried);
        let report = ledger.abandon()?;
        run.expect_no_errors(&report.errors);
        run.settle(&bed, &report)?;
        let outcome = format!(
            "{:.0} steps/s before, {:.0} with it; {} grew {} MiB; {} datagrams, {} intrusions",
            quiet.steps_per_second,
            loud.steps_per_second,
            loud.growth.0,
            loud.growth.1 >> 20,
            sent.datagrams(),
            tried.len()
        );
        run.say(number, &turn.fault, outcome);
        figures.add(&quiet, &loud, &sent, tried.len());
        bed.clear(&name)?;
        run.done.rounds += 1;
    }
    figures.tell(run);
    Ok(())
}

/// What a while of work was like.
struct Observed {
    steps_per_second: f64,
    /// The node that grew most, and by how much at most.
    growth: (String, u64),
}

/// Lets the ledger work, and looks at the memory of every node meanwhile.
fn observe(bed: &Bed, ledger: &Ledger, time: Duration) -> Result<Observed> {
    let nodes = bed.cluster.nodes();
    let resident = || nodes.iter().map(|node| bed.cluster.resident_bytes(node)).collect::<Result<Vec<u64>>>();
    let (before, steps, begun) = (resident()?, ledger.acknowledged(), Instant::now());
    let mut peak = before.clone();
    while begun.elapsed() < time {
        std::thread::sleep(Duration::from_millis(500));
        for (peak, now) in peak.iter_mut().zip(resident()?) {
            *peak = now.max(*peak);
        }
        ensure!(!ledger.has_failed(), "a writer met an error");
    }
    let steps = ledger.acknowledged() - steps;
    let growths = nodes.into_iter().zip(peak.iter().zip(&before).map(|(peak, before)| peak - before));
    let growth = growths.max_by_key(|(_, bytes)| *bytes).context("there are nodes")?;
    Ok(Observed { steps_per_second: steps as f64 / begun.elapsed().as_secs_f64(), growth })
}

fn pids(bed: &Bed) -> Result<Vec<(String, i32)>> {
    let names = bed.all_names().into_iter();
    names.map(|name| Ok((name.clone(), bed.cluster.pid(&name)?.as_raw_nonzero().get()))).collect()
}

/// All of them are the processes that they were.
fn unharmed(bed: &Bed, pids: &[(String, i32)]) -> Result<()> {
    for (name, pid) in pids {
        let same = bed.cluster.is_running(name) && bed.cluster.pid(name)?.as_raw_nonzero().get() == *pid;
        ensure!(same, "{name} has ended: {}", bed.cluster.log_tail(name, 5));
    }
    Ok(())
}

fn judge(run: &mut Run, bed: &Bed, loud: &Observed, sent: &AssaultReport, tried: &[Tried]) {
    let (node, bytes) = &loud.growth;
    match *bytes < GROWTH_MAX {
        true => run.verdict.fine(Invariant::ResourcesReturn, SHAPE.nodes().len() as u64),
        false => run.verdict.broken(
            Invariant::ResourcesReturn,
            format!("{node} grew by {} MiB while it was sent {} datagrams", bytes >> 20, sent.datagrams()),
        ),
    }
    // What a client had done once is not done again because somebody repeats its datagrams; and what an intruder was
    // refused has not happened all the same.
    for (path, invariant) in [(OVERHEARD, Invariant::NothingTwice), (INTRUDED, Invariant::NothingAllowedInError)] {
        match bed.cluster.output(["test", "-e", path]).map(|output| output.status.code()) {
            Ok(Some(1)) => run.verdict.fine(invariant, 1),
            other => run.verdict.broken(invariant, format!("{path} should not be there: {other:?}")),
        }
    }
    if let Err(error) = as_before(bed) {
        run.verdict.broken(Invariant::NothingAllowedInError, format!("{error:#}"));
    }
    for Tried { who, command, accepted } in tried {
        match accepted {
            None => run.verdict.fine(Invariant::NothingAllowedInError, 1),
            Some(said) => {
                run.verdict.broken(Invariant::NothingAllowedInError, format!("{who}: dfs {command}: {said}"));
            }
        }
    }
}

/// Nobody has changed who the nodes are and what they are for.
fn as_before(bed: &Bed) -> Result<()> {
    let status = bed.cluster.status()?;
    let nodes = |kind: &str| status[kind].as_array().cloned().unwrap_or_default();
    let found = (nodes("namenodes").len(), nodes("datanodes").len());
    ensure!(found == (SHAPE.namenodes, SHAPE.datanodes), "there are {found:?} nodes");
    let other = nodes("datanodes").into_iter().find(|node| node["duty"] != "serving");
    ensure!(other.is_none(), "a datanode has another duty: {other:?}");
    Ok(())
}

/// What clients send: one that makes a folder and removes it again, and some that find nobody.
fn overhear(bed: &Bed, dir: &Path) -> Result<Recording> {
    let text = fs::read_to_string(bed.cluster.config())?;
    let nodes: Vec<_> = addresses_in(&text);
    ensure!(!nodes.is_empty(), "the cluster file names addresses");
    let mut recorded = Recording::default();
    for forward in [true, false] {
        let relays =
            nodes.iter().map(|node| Relay::start(forward.then_some(node.parse()?))).collect::<Result<Vec<Relay>>>()?;
        let pairs: Vec<(String, String)> =
            nodes.iter().zip(&relays).map(|(node, relay)| (node.clone(), relay.addr.to_string())).collect();
        let file = dir.join(if forward { "relayed.toml" } else { "swallowed.toml" });
        let config = ClusterFile::of(&bed.cluster)?.with_addresses(&pairs);
        fs::write(&file, config.0)?;
        let dfs = |args: &[&str]| {
            let mut command = bed.cluster.dfs([]);
            command.args(args).env("DFS_CLUSTER", &file);
            command
        };
        if forward {
            for args in [["mkdir", OVERHEARD], ["ls", "/"], ["rmdir", OVERHEARD]] {
                let output = output_within(&mut dfs(&args), DEADLINE)?;
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                ensure!(output.status.success(), "dfs {} through a relay: {said}", args.join(" "));
            }
        } else {
            std::thread::scope(|scope| {
                // Each draws numbers of its own for its connections. That none of them is answered is what is wanted.
                let clients = (0..BEGINNERS)
                    .map(|_| scope.spawn(|| output_within(&mut dfs(&["ls", "/"]), Duration::from_secs(3)).map(drop)));
                let clients: Vec<_> = clients.collect();
                clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
            })?;
        }
        relays.into_iter().try_for_each(|relay| relay.finish().map(|heard| recorded.add(heard)))?;
    }
    ensure!(recorded.sent.len() > recorded.first.len(), "only beginnings were heard");
    Ok(recorded)
}

/// The addresses in a cluster file, of which the namenodes' come first.
fn addresses_in(text: &str) -> Vec<String> {
    let addresses = text.lines().filter_map(|line| line.trim().strip_prefix("addr = \"")?.strip_suffix('"'));
    addresses.map(str::to_owned).collect()
}

/// The text of a cluster file whose certificates are found from anywhere.
struct ClusterFile(String);

impl ClusterFile {
    fn of(cluster: &Cluster) -> Result<ClusterFile> {
        let text = fs::read_to_string(cluster.config())?;
        let mut file = ClusterFile(text);
        for key in ["ca", "cert", "key"] {
            let path = cluster.dir().join(file.value(key)?);
            file = file.with(key, &path)?;
        }
        Ok(file)
    }

    fn value(&self, key: &str) -> Result<&str> {
        let line = self.0.lines().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
        line.map(|value| value.trim().trim_matches('"')).with_context(|| format!("a cluster file has {key}"))
    }

    fn with(&self, key: &str, path: &Path) -> Result<ClusterFile> {
        let old = format!("{key} = \"{}\"", self.value(key)?);
        ensure!(self.0.contains(&old), "a cluster file has `{old}`");
        Ok(ClusterFile(self.0.replacen(&old, &format!("{key} = \"{}\"", path.display()), 1)))
    }

    fn with_addresses(mut self, pairs: &[(String, String)]) -> ClusterFile {
        for (old, new) in pairs {
            self.0 = self.0.replace(&format!("\"{old}\""), &format!("\"{new}\""));
        }
        self
    }
}

/// Those who have a certificate, and nothing that they may do with it.
struct Intruders<'a> {
    bed: &'a Bed,
    intruders: Vec<Intruder>,
}

struct Intruder {
    who: &'static str,
    /// The cluster with its own certificate.
    file: PathBuf,
    commands: Vec<Vec<&'static str>>,
}

/// An attempt.
struct Tried {
    who: &'static str,
    command: String,
    /// What was said, if it was accepted.
    accepted: Option<String>,
}

impl<'a> Intruders<'a> {
    fn new(run: &Run, bed: &'a Bed) -> Result<Intruders<'a>> {
        let own = ClusterFile::of(&bed.cluster)?;
        let write = |name: &str, file: &ClusterFile| {
            let path = run.dir.join(name);
            fs::write(&path, &file.0).with_context(|| path.display().to_string()).map(|()| path)
        };
        // The file itself is as good as the cluster's own: only what is changed below can be the reason of a refusal.
        let proper = write("proper.toml", &own)?;
        let listed = bed.cluster.dfs(["ls", "/"]).env("DFS_CLUSTER", proper).output()?;
        ensure!(listed.status.success(), "a copy of the cluster file: {}", String::from_utf8_lossy(&listed.stderr));
        let foreign = foreign(run)?;
        let of_node = |node: &str| {
            let folder = bed.cluster.dir().join(node);
            own.with("cert", &folder.join(format!("{node}.pem")))?.with("key", &folder.join(format!("{node}.key")))
        };
        let administer = [
            vec!["namenode", "snapshot"],
            vec!["datanode", "decommission", "dn1"],
            vec!["namenode", "transfer-leader"],
            vec!["namenode", "remove", "nn1"],
        ];
        let make = [vec!["ls", "/"], vec!["mkdir", INTRUDED]];
        let intruders = vec![
            Intruder {
                who: "an administrator of another cluster",
                file: write(
                    "foreign.toml",
                    &own.with("cert", &foreign.join("admin.pem"))?.with("key", &foreign.join("admin.key"))?,
                )?,
                commands: [&make[..], &administer[..]].concat(),
            },
            Intruder {
                who: "a datanode as a client",
                file: write("datanode.toml", &of_node("dn1")?)?,
                commands: [&make[..], &administer[..]].concat(),
            },
            Intruder {
                who: "a client as an administrator",
                file: write("client.toml", &of_node("m1")?)?,
                commands: administer.to_vec(),
            },
        ];
        Ok(Intruders { bed, intruders })
    }

    /// Each of them tries one thing after the other while `work` goes on.
    fn while_they_try<T>(&self, work: impl FnOnce() -> T) -> Result<(T, Vec<Tried>)> {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let attempts = scope.spawn(|| {
                let mut tried = Vec::new();
                let commands = self.intruders.iter().flat_map(|one| one.commands.iter().map(move |args| (one, args)));
                for (intruder, args) in commands.cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let begun = Instant::now();
                    tried.push(self.attempt(intruder, args)?);
                    std::thread::sleep(INTRUSION_EVERY.saturating_sub(begun.elapsed()));
                }
                Ok(tried)
            });
            let done = work();
            stop.store(true, Ordering::Relaxed);
            let tried: Result<Vec<Tried>> = attempts.join().map_err(|_| anyhow!("the intruders panicked"))?;
            Ok((done, tried?))
        })
    }

    fn attempt(&self, intruder: &Intruder, args: &[&str]) -> Result<Tried> {
        let mut command: Command = self.bed.cluster.dfs([]);
        let output = output_within(command.args(args).env("DFS_CLUSTER", &intruder.file), INTRUDER_DEADLINE)?;
        let said = || String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(Tried { who: intruder.who, command: args.join(" "), accepted: output.status.success().then(said) })
    }
}

/// The certificates of a cluster that is like this one and has nothing to do with it.
fn foreign(run: &Run) -> Result<PathBuf> {
    let layout =
        Layout { namenodes: 1, datanodes: 1, replication: 1, extra: vec!["--quiet".to_owned()], ..Layout::default() };
    let dir = run.dir.join("foreign");
    // Stopped as it is dropped; its files stay.
    drop(Cluster::up(&run.program, &dir, layout).context("start a foreign cluster")?);
    Ok(dir.join("pki"))
}

#[derive(Default)]
struct Figures {
    datagrams: u64,
    seconds: f64,
    attempts: usize,
    /// The most that any node grew by: without and with the attack.
    growth_quiet: u64,
    growth_loud: u64,
    kinds: BTreeMap<String, u64>,
    sent_bytes: u64,
    answer_bytes: u64,
    /// Steps a second: without and with the attack.
    rates: Vec<(f64, f64)>,
}

impl Figures {
    fn add(&mut self, quiet: &Observed, loud: &Observed, sent: &AssaultReport, attempts: usize) {
        self.rates.push((quiet.steps_per_second, loud.steps_per_second));
        self.datagrams += sent.datagrams();
        self.seconds += sent.elapsed.as_secs_f64();
        self.attempts += attempts;
        self.growth_quiet = self.growth_quiet.max(quiet.growth.1);
        self.growth_loud = self.growth_loud.max(loud.growth.1);
        self.sent_bytes += sent.sent_bytes;
        self.answer_bytes += sent.answer_bytes;
        for (kind, count) in &sent.sent {
            *self.kinds.entry(format!("{kind:?}")).or_default() += count;
        }
    }

    fn tell(&self, run: &mut Run) {
        let kinds: Vec<String> = self.kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let (mean, rounds) = (|sum: f64| sum / self.rates.len().max(1) as f64, &self.rates);
        let before = mean(rounds.iter().map(|(before, _)| before).sum());
        let with = mean(rounds.iter().map(|(_, with)| with).sum());
        run.done.figures.extend([
            format!("{} datagrams in {:.0} s: {}", self.datagrams, self.seconds, kinds.join(", ")),
            format!("{} bytes sent, {} bytes answered", self.sent_bytes, self.answer_bytes),
            format!("{} intrusions tried", self.attempts),
            format!(
                "memory: a node grew by {} MiB at most, by {} MiB in the {} s before",
                self.growth_loud >> 20,
                self.growth_quiet >> 20,
                QUIET.as_secs()
            ),
            format!("{before:.0} steps/s before, {with:.0} with it: {:.0} % less", 100.0 * (1.0 - with / before)),
        ]);
    }
}

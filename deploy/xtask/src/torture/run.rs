//! What a cell of the matrix works with: a cluster of its own, a verdict, and a place to say what was done.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use dfs_cluster::fault::process;
use dfs_cluster::fixture::Fixture;
use dfs_cluster::{AtRest, Cluster, Invariant, Ledger, LedgerReport, OnError, Verdict, check_at_rest};

use super::plan::{Shape, Target, Turn};

/// Far more than anything takes on a crowded machine; passing it means "never".
pub const DEADLINE: Duration = Duration::from_secs(120);

/// For each node: mkfs.xfs refuses less than 300 MiB.
const FILE_SYSTEM: &str = "xfs:400M";
const LARGE_FILE_SYSTEM: &str = "xfs:8G";

pub const SHAPE: Shape = Shape { namenodes: 3, datanodes: 4 };

/// Processes that write at the same time.
const WRITERS: usize = 4;

/// The mount that is written through, and the one by which is looked what is there.
const MOUNTS: [&str; 2] = ["m1", "m2"];

pub struct Run {
    pub program: PathBuf,
    /// Another version of it.
    pub other_program: Option<PathBuf>,
    /// Of every mount, but those of a fixture, whose first one stands in it.
    pub mount_options: Vec<String>,
    /// Empty, and for this cell alone.
    pub dir: PathBuf,
    pub seed: u64,
    pub rounds: u64,
    pub verdict: Verdict,
    pub interrupted: Arc<AtomicBool>,
    pub done: Done,
}

/// What a cell did.
#[derive(Default)]
pub struct Done {
    pub rounds: u64,
    /// Steps of the ledger that were acknowledged.
    pub acknowledged: u64,
    /// What there is to say beyond counts.
    pub figures: Vec<String>,
}

/// A running cluster with two mounts.
pub struct Bed {
    pub cluster: Cluster,
    pub mounts: Vec<PathBuf>,
}

impl Run {
    /// With a file system of its own for each node. `extra` are further arguments of `dfs up`.
    pub fn bed(&self, name: &str, extra: &[&str]) -> Result<Bed> {
        self.bed_with(name, &[&["--fs", FILE_SYSTEM], extra].concat())
    }

    /// As `bed`, with more room than the work of an hour takes. The images are sparse.
    pub fn roomy_bed(&self, name: &str, extra: &[&str]) -> Result<Bed> {
        self.bed_with(name, &[&["--fs", LARGE_FILE_SYSTEM], extra].concat())
    }

    /// As `bed`, with plain folders: for faults that no disk has a part in. It is up sooner.
    pub fn plain_bed(&self, name: &str, extra: &[&str]) -> Result<Bed> {
        self.bed_with(name, extra)
    }

    /// As `plain_bed`, with what an earlier state of the program has left, served by one version of it.
    pub fn bed_of(&self, name: &str, fixture: &Fixture, program: &Path) -> Result<Bed> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        let mounts: Vec<PathBuf> = MOUNTS.iter().map(|mount| dir.join(mount)).collect();
        let cluster = fixture.open(program, &dir.join("data"), &mounts, &["--quiet"])?;
        Ok(Bed { cluster, mounts })
    }

    /// With further arguments of `dfs up`.
    pub fn bed_with(&self, name: &str, extra: &[&str]) -> Result<Bed> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir)?;
        let mounts: Vec<PathBuf> = MOUNTS.iter().map(|mount| dir.join(mount)).collect();
        let layout = dfs_cluster::Layout {
            namenodes: SHAPE.namenodes,
            datanodes: SHAPE.datanodes,
            replication: 3,
            mounts: mounts.clone(),
            mount_options: self.mount_options.clone(),
            extra: [&["--quiet"], extra].concat().into_iter().map(str::to_owned).collect(),
        };
        let cluster = Cluster::up(&self.program, &dir.join("data"), layout).context("start the cluster")?;
        Ok(Bed { cluster, mounts })
    }

    /// A line about what has been done.
    pub fn say(&self, number: u64, what: impl std::fmt::Display, outcome: impl std::fmt::Display) {
        let what = what.to_string();
        let what = if what.len() > 48 { format!("{}...", &what[..45]) } else { what };
        println!("  {number:>4}  {what:<48}  {outcome}");
    }

    /// Ends a cell early: with Ctrl-C, or because something was found, since what follows would only repeat it.
    pub fn goes_on(&self) -> bool {
        !self.interrupted.load(Ordering::Relaxed) && self.verdict.is_clean()
    }

    /// Records what the ledger says when the cluster has come to rest, and what is found there.
    pub fn settle(&mut self, bed: &Bed, report: &LedgerReport) -> Result<AtRest> {
        self.done.acknowledged += report.steps;
        let at_rest = check_at_rest(&bed.cluster, DEADLINE, &mut self.verdict);
        // Whatever is wrong with the cluster: by the mount that has not written it, and whose kernel therefore has no
        // pages of it.
        let lost = report.check(&bed.mounts[1].join(bed.ledger_folder(report)), &mut self.verdict);
        if lost > 0 {
            println!("        {lost} steps written behind are lost");
        }
        at_rest.map_err(|error| {
            let logs =
                bed.cluster.nodes().into_iter().map(|node| format!("{node}: {}", bed.cluster.log_tail(&node, 2)));
            anyhow!("{error:#}\n{}", logs.collect::<Vec<_>>().join("\n"))
        })
    }

    /// Errors that no application should have seen.
    pub fn expect_no_errors<E: std::fmt::Debug>(&mut self, errors: &[E]) {
        self.verdict.fine(Invariant::CallsEnd, 1);
        if !errors.is_empty() {
            let first: Vec<&E> = errors.iter().take(3).collect();
            self.verdict.broken(Invariant::CallsEnd, format!("{} calls failed, the first: {first:#?}", errors.len()));
        }
    }
}

impl Bed {
    /// Four writers on the first mount, in a folder of their own.
    pub fn ledger(&self, name: &str, seed: u64, on_error: OnError) -> Result<Ledger> {
        Ledger::start_with(&self.mounts[0].join(name), WRITERS, seed, on_error, self.cluster.names())
    }

    fn ledger_folder(&self, report: &LedgerReport) -> PathBuf {
        report.dir().strip_prefix(&self.mounts[0]).unwrap_or(Path::new("")).to_owned()
    }

    /// What was verified goes, so that disks do not fill and chunks are deleted as well.
    pub fn clear(&self, name: &str) -> Result<()> {
        let path = self.mounts[0].join(name);
        fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))
    }

    /// Who is meant by a plan, now.
    pub fn node(&self, target: &Target) -> Result<String> {
        match target {
            Target::Node(name) => Ok(name.clone()),
            Target::Leader => self.cluster.leader(DEADLINE),
            Target::Newcomer => bail!("nobody is about to join"),
            Target::Follower(nth) => {
                let leader = self.cluster.leader(DEADLINE)?;
                let mut followers = self.cluster.namenodes();
                followers.retain(|name| *name != leader);
                followers.get(*nth).cloned().context("there are not so many followers")
            }
        }
    }

    /// Waits for the work that comes before a turn.
    pub fn work(&self, ledger: &Ledger, turn: &Turn) -> Result<()> {
        ledger.go_on(turn.after_steps, DEADLINE)
    }

    /// Starts the datanodes anew with further lines of configuration.
    pub fn configure_datanodes(&self, lines: &str) -> Result<()> {
        self.configure(&self.cluster.datanodes(), "datanode.toml", |text| format!("{lines}{text}"))
    }

    /// Restarts the namenodes with these tables in their configuration.
    pub fn configure_namenodes(&self, tables: &str) -> Result<()> {
        self.configure(&self.cluster.namenodes(), "namenode.toml", |text| format!("{text}\n{tables}"))
    }

    fn configure(&self, nodes: &[String], file: &str, change: impl Fn(&str) -> String) -> Result<()> {
        for node in nodes {
            let path = self.cluster.dir().join(node).join(file);
            let text = fs::read_to_string(&path)?;
            fs::write(&path, change(&text))?;
        }
        process::kill(&self.cluster, nodes)?.undo()?;
        self.cluster.wait_healthy(DEADLINE).map(drop)
    }

    /// Every node and mount.
    pub fn all_names(&self) -> Vec<String> {
        let mut names = self.cluster.nodes();
        names.extend(MOUNTS.iter().map(|mount| (*mount).to_owned()));
        names
    }

    /// Starts dead mounts again, and whatever else does not run.
    pub fn start_all(&self) -> Result<()> {
        self.cluster.start_all()
    }
}

/// Waits for a condition. Its failure is a violation of the promise that calls and waits end.
pub fn wait(what: &str, deadline: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let begun = Instant::now();
    while !done()? {
        if begun.elapsed() >= deadline {
            bail!("{what}: not within {deadline:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(begun.elapsed())
}

/// The time that so many of a thousand did not exceed.
pub fn within(times: &mut [Duration], thousandths: usize) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get(last * thousandths.min(1000) / 1000).copied().unwrap_or_default()
}

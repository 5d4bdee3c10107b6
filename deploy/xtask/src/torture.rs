//! `cargo xtask torture`: provokes the faults of real machines on a local cluster, and checks that nothing that was
//! promised is lost. The cells are those of the matrix in deploy/cluster/README.md.

mod cells;
mod plan;
mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use dfs_cluster::{Dice, Verdict};

use crate::prerequisites;
use crate::run::{cargo, must, program};
use cells::{CELLS, Cell};
use run::{Done, Run};

#[derive(clap::Args)]
pub struct Options {
    /// A dfs program that is built already
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Another version of it, for M19: nodes change from this one to the one under test and back
    #[arg(long, value_name = "FILE")]
    other_program: Option<PathBuf>,
    /// Options of the mounts; M19 mounts as the old data says
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    mount_options: Vec<String>,
    /// Run only these cells, M4 for example; may be given several times
    #[arg(long, value_name = "CELL")]
    cell: Vec<String>,
    /// Rounds of each cell, instead of as many as the matrix asks for
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Run cells at random, a few rounds of each, until so much time is over
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Decides what is injected when; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// Run the simulation instead: a cluster in one process, over a network in memory, in virtual time
    #[arg(long, conflicts_with_all = ["program", "other_program", "mount_options", "cell", "rounds", "minutes", "dir"])]
    simulate: bool,
    /// So many seeds of the simulation, from --seed on
    #[arg(long, value_name = "N", requires = "simulate")]
    seeds: Option<u64>,
    /// Where the clusters go; a folder on a real disk
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    prerequisites::install()?;
    if options.simulate {
        return simulate(options.seed.unwrap_or_else(seed_of_now), options.seeds.unwrap_or(1));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("torture needs root: it mounts file systems, cuts them off and traces processes");
    }
    prerequisites::install_for_torture()?;
    let wanted: Vec<&Cell> = match &options.cell[..] {
        [] => CELLS.iter().collect(),
        names => names.iter().map(|name| find(name)).collect::<Result<_>>()?,
    };
    let program = program(options.program.as_deref())?;
    let seed = options.seed.unwrap_or_else(seed_of_now);
    let other =
        options.other_program.as_ref().map(|path| path.canonicalize().with_context(|| path.display().to_string()));
    let torture = Torture {
        other_program: other.transpose()?,
        mount_options: options.mount_options.clone(),
        ..Torture::new(program, options.dir.as_deref(), seed)?
    };
    println!("seed {seed}");
    match options.minutes {
        Some(minutes) => torture.at_random(&wanted, Duration::from_secs(60 * minutes)),
        None => torture.in_order(wanted.iter().map(|cell| (*cell, options.rounds.unwrap_or(cell.rounds)))),
    }
}

/// Needs neither root nor the program: the nodes are part of the test.
fn simulate(seed: u64, seeds: u64) -> Result<()> {
    let mut tests = cargo(["test", "--release", "--package", "dfs-cluster", "--test", "simulation"]);
    tests.args(["--", "--nocapture"]);
    must(tests.env("DFS_SIM_SEED", seed.to_string()).env("DFS_SIM_SEEDS", seeds.to_string()))
}

/// The fixed part that `cargo xtask test` runs.
pub fn run_short(program: &Path) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: torture needs root, to mount file systems, cut them off and trace processes");
        return Ok(());
    }
    prerequisites::install_for_torture()?;
    let torture = Torture::new(program.to_owned(), None, 1)?;
    torture.in_order(CELLS.iter().filter_map(|cell| Some((cell, cell.rounds_in_tests?))))
}

fn find(name: &str) -> Result<&'static Cell> {
    let names: Vec<&str> = CELLS.iter().map(|cell| cell.name).collect();
    let cell = CELLS.iter().find(|cell| cell.name.eq_ignore_ascii_case(name));
    cell.with_context(|| format!("there is no cell {name}; there are {}", names.join(", ")))
}

fn seed_of_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    now.as_secs()
}

struct Torture {
    program: PathBuf,
    other_program: Option<PathBuf>,
    mount_options: Vec<String>,
    dir: PathBuf,
    seed: u64,
    interrupted: Arc<AtomicBool>,
}

impl Torture {
    fn new(program: PathBuf, dir: Option<&Path>, seed: u64) -> Result<Torture> {
        let dir = dir.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = std::path::absolute(dir)?.join(format!("dfs-torture-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        let interrupted = Arc::new(AtomicBool::new(false));
        let handler = interrupted.clone();
        ctrlc::set_handler(move || {
            eprintln!("ending after this round");
            handler.store(true, Ordering::Relaxed);
        })?;
        Ok(Torture { program, other_program: None, mount_options: Vec::new(), dir, seed, interrupted })
    }

    fn in_order<'a>(&self, cells: impl Iterator<Item = (&'a Cell, u64)>) -> Result<()> {
        let mut summary = Summary::default();
        for (cell, rounds) in cells {
            if self.interrupted.load(Ordering::Relaxed) {
                break;
            }
            summary.add(cell, self.cell(cell, rounds, self.seed));
        }
        self.end(&summary)
    }

    fn at_random(&self, cells: &[&Cell], time: Duration) -> Result<()> {
        let (mut summary, mut dice, end) = (Summary::default(), Dice::apart(self.seed, "cells"), Instant::now() + time);
        while Instant::now() < end && !self.interrupted.load(Ordering::Relaxed) {
            let (cell, seed) = (*dice.pick(cells), dice.throw());
            summary.add(cell, self.cell(cell, cell.rounds_at_random, seed));
        }
        self.end(&summary)
    }

    fn cell(&self, cell: &Cell, rounds: u64, seed: u64) -> Outcome {
        println!("{}  {}; {rounds} rounds, seed {seed}", cell.name, cell.text);
        let begun = Instant::now();
        let dir = self.dir.join(format!("{}-{seed}", cell.name));
        let mut run = Run {
            program: self.program.clone(),
            other_program: self.other_program.clone(),
            mount_options: self.mount_options.clone(),
            dir: dir.clone(),
            seed,
            rounds,
            verdict: Verdict::default(),
            interrupted: self.interrupted.clone(),
            done: Done::default(),
        };
        // What a cell has started is stopped when it returns.
        let ended = fs::create_dir_all(&dir).map_err(Into::into).and_then(|()| (cell.run)(&mut run));
        let outcome = Outcome { done: run.done, verdict: run.verdict, error: ended.err(), elapsed: begun.elapsed() };
        outcome.print(cell, seed);
        if outcome.is_fine() {
            // A folder that cannot be removed is still mounted somewhere: worth a word, and no failure of the cell.
            if let Err(error) = fs::remove_dir_all(&dir) {
                eprintln!("{}: {error}", dir.display());
            }
        } else {
            println!("      logs and disks are in {}", dir.display());
        }
        outcome
    }

    fn end(&self, summary: &Summary) -> Result<()> {
        // Only if no cell has left anything.
        let _ = fs::remove_dir(&self.dir);
        summary.print(self.seed);
        if summary.failed.is_empty() { Ok(()) } else { bail!("failed: {}", summary.failed.join(", ")) }
    }
}

struct Outcome {
    done: Done,
    verdict: Verdict,
    /// The cell could not go on.
    error: Option<anyhow::Error>,
    elapsed: Duration,
}

impl Outcome {
    fn is_fine(&self) -> bool {
        self.verdict.is_clean() && self.error.is_none()
    }

    fn print(&self, cell: &Cell, seed: u64) {
        let checked = self.verdict.checked.iter().map(|(invariant, count)| format!("I{} {count}", invariant.number()));
        println!(
            "{}  {} rounds, {} acknowledged, {} violations, {:.0} s",
            cell.name,
            self.done.rounds,
            self.done.acknowledged,
            self.verdict.violations.len(),
            self.elapsed.as_secs_f64()
        );
        println!("      checked: {}", checked.collect::<Vec<_>>().join(", "));
        self.done.figures.iter().for_each(|figure| println!("      {figure}"));
        self.verdict.violations.iter().take(10).for_each(|violation| println!("      VIOLATION {violation}"));
        if let Some(error) = &self.error {
            println!("      ENDED EARLY {error:#}");
        }
        if !self.is_fine() {
            let rounds = self.done.rounds + 1;
            println!("      again: cargo xtask torture --cell {} --rounds {rounds} --seed {seed}", cell.name);
        }
    }
}

#[derive(Default)]
struct Summary {
    cells: usize,
    rounds: u64,
    acknowledged: u64,
    failed: Vec<&'static str>,
}

impl Summary {
    fn add(&mut self, cell: &Cell, outcome: Outcome) {
        self.cells += 1;
        self.rounds += outcome.done.rounds;
        self.acknowledged += outcome.done.acknowledged;
        if !outcome.is_fine() {
            self.failed.push(cell.name);
        }
    }

    fn print(&self, seed: u64) {
        println!(
            "{} cells, {} rounds, {} operations acknowledged, {} cells failed, seed {seed}",
            self.cells,
            self.rounds,
            self.acknowledged,
            self.failed.len()
        );
    }
}

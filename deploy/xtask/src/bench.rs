//! `cargo xtask bench`: the same work on the mount, by the command line, and on the disk below. `bench peers` compares
//! with another file system, `bench heal` after a death, `bench group` asks the namenodes alone.

mod group;
mod heal;
mod moosefs;
mod peers;
mod rows;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use dfs_cluster::{Cluster, Layout};
use serde_json::json;

use crate::prerequisites;
use crate::run::program;
use rows::{Rows, Sizes, Unit, drop_caches, write_through};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    #[command(subcommand)]
    with: Option<With>,
    #[command(flatten)]
    own: OwnOptions,
}

#[derive(clap::Subcommand)]
enum With {
    /// Compares with MooseFS (Debian's packages, goal 3) and with the disk, row by row
    Peers(peers::Options),
    /// Kills one of four data servers here and in MooseFS, and waits for the copies
    Heal(heal::Options),
    /// Measures one group of namenodes: creates, stats, memory for each file, restart
    Group(group::Options),
}

/// With what and where a benchmark runs.
#[derive(clap::Args)]
struct Place {
    /// A dfs program that is built already
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where all data goes; the disk that is measured
    #[arg(long, default_value = "dfs-bench")]
    dir: PathBuf,
}

impl Place {
    /// The program, built if need be, and the folder, made and empty.
    fn take(&self) -> Result<(PathBuf, PathBuf)> {
        let program = program(self.program.as_deref())?;
        ensure!(!self.dir.exists(), "{} exists; remove it or choose another by --dir", self.dir.display());
        fs::create_dir_all(&self.dir)?;
        Ok((program, self.dir.canonicalize()?))
    }
}

#[derive(clap::Args)]
struct OwnOptions {
    #[command(flatten)]
    place: Place,
    /// Options of the mount
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    mount_options: Vec<String>,
    /// Size of the sequential file, in MiB
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
    /// Files of 4 KiB to create, stat, list and read
    #[arg(long, default_value_t = 1000)]
    files: u64,
    /// Also print the rows as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    match &options.with {
        Some(With::Peers(options)) => peers::run(options),
        Some(With::Heal(options)) => heal::run(options),
        Some(With::Group(options)) => group::run(options),
        None => run_own(&options.own),
    }
}

fn run_own(options: &OwnOptions) -> Result<()> {
    prerequisites::install()?;
    let (program, dir) = options.place.take()?;
    let (mount, disk) = (dir.join("mnt"), dir.join("disk"));
    fs::create_dir_all(&disk)?;
    let mount_options = options.mount_options.clone();
    let layout = Layout { mounts: vec![mount.clone()], mount_options, ..Layout::default() };
    let cluster = Cluster::up(&program, &dir.join("data"), layout)?;

    let sizes = Sizes { large_bytes: options.large_mib << 20, files: options.files, tree: None };
    let raw = Rows::measure(&disk, &sizes)?;
    let mounted = Rows::measure(&mount, &sizes)?;
    let cli = command_line(&cluster, &disk, options)?;
    println!("\n3 namenodes, 4 datanodes, replication 3, everything on this one machine\n");
    println!("{:<40} {:>12} {:>12} {:>7}", "row", "mount", "raw disk", "ratio");
    for (row, below) in mounted.0.iter().zip(&raw.0) {
        println!("{:<40} {:>12} {:>12} {:>7.3}", row.name, row.shown(), below.shown(), row.value / below.value);
    }
    for row in &cli.0 {
        println!("{:<40} {:>12}", row.name, row.shown());
    }
    if options.json {
        println!("{}", json!({ "schema": 1, "mount": mounted.json(), "raw_disk": raw.json(), "cli": cli.json() }));
    }
    cluster.down()?;
    drop(cluster);
    fs::remove_dir_all(&dir)?;
    Ok(())
}

fn command_line(cluster: &Cluster, disk: &Path, options: &OwnOptions) -> Result<Rows> {
    let mut rows = Rows::default();
    let bytes = options.large_mib << 20;
    let (local, back) = (disk.join("local"), disk.join("back"));
    write_through(&local, bytes)?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the folder's name is not UTF-8");
    let (local_text, back_text) = (text(&local)?, text(&back)?);
    rows.rate("dfs put, durable", bytes, Unit::MbPerSecond, || cluster.run(["put", &local_text, "/put"]).map(|_| ()))?;
    drop_caches();
    rows.rate("dfs get, cold", bytes, Unit::MbPerSecond, || cluster.run(["get", "/put", &back_text]).map(|_| ()))?;
    let commands = 20;
    rows.rate("dfs ls, one command after the other", commands, Unit::PerSecond, || {
        (0..commands).try_for_each(|_| cluster.run(["ls", "/"]).map(|_| ()))
    })?;
    fs::remove_file(&local)?;
    fs::remove_file(&back)?;
    Ok(rows)
}

//! `cargo xtask bench peers`: the same work on this project, on MooseFS and on the disk below both, in turn.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dfs_cluster::{Cluster, Layout};
use serde_json::json;

use super::Place;
use super::moosefs::MooseFs;
use super::rows::{Rows, Sizes, SourceTree};
use crate::demo::Input;
use crate::prerequisites;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Rounds; the median of each row counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Size of the sequential file, in MiB
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
    /// Files of 4 KiB
    #[arg(long, default_value_t = 2000)]
    files: u64,
    /// Everybody in a network of his own behind a bridge, the client too: nothing is read past the servers
    #[arg(long)]
    remote: bool,
    /// Also write the rows of every round to this file, as JSON
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// What is measured in turn: this project by a mount as it is by default and by one that writes names behind, the other
/// file system, and the disk below all of them.
const SIDES: [&str; 4] = ["dfs", "writebehind", "moosefs", "disk"];

/// Source files of the rows that copy, search and unpack.
const SOURCE_FILES: usize = 2900;

pub fn run(options: &Options) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the comparison needs root: for network namespaces and cold caches");
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    prerequisites::install()?;
    prerequisites::install_peers()?;
    let (program, dir) = options.place.take()?;
    let disk = dir.join("disk");
    fs::create_dir(&disk)?;
    let input = Input::collect(&dir.join("input"), SOURCE_FILES, 1)?;
    let tree = SourceTree::of(&input.tree_root, input.tree.files.len() as u64)?;
    let sizes = Sizes { large_bytes: options.large_mib << 20, files: options.files, tree: Some(tree) };

    let mut rounds = SIDES.map(|side| (side, Vec::new()));
    for round in 1..=options.rounds {
        // Each side alone on the machine: an idle cluster beside it would cost it time.
        for (side, measured) in &mut rounds {
            eprintln!("round {round} of {}: {side}", options.rounds);
            let home = dir.join(format!("{side}-{round}"));
            let mount = dir.join(format!("{side}-mount"));
            measured.push(match *side {
                "dfs" | "writebehind" => {
                    let mount_options = if *side == "dfs" { Vec::new() } else { vec![(*side).to_owned()] };
                    let mounts = vec![mount.clone()];
                    let extra = if options.remote { vec!["--netns".to_owned()] } else { Vec::new() };
                    let layout = Layout { datanodes: 3, mounts, mount_options, extra, ..Layout::default() };
                    let cluster = Cluster::up(&program, &home, layout).context("start the cluster")?;
                    let rows = Rows::measure(&mount, &sizes)?;
                    cluster.down()?;
                    rows
                }
                "moosefs" => {
                    let _moosefs = MooseFs::start(&home, &mount, 3, options.remote)?;
                    Rows::measure(&mount, &sizes)?
                }
                _ => Rows::measure(&disk, &sizes)?,
            });
            if home.exists() {
                fs::remove_dir_all(&home)?;
            }
        }
    }

    let [plain, behind, theirs, below] = rounds.each_ref().map(|(_, rounds)| Rows::median(rounds));
    println!("\n3 servers of each kind, 3 copies, client and servers on one machine of {} cores", cores());
    if options.remote {
        println!("each in a network of its own behind a bridge, so that the client reads over the network");
    }
    println!("median of {} rounds; MB/s in the sequential rows, operations a second in the others;", options.rounds);
    println!("behind: mounted with -o writebehind; x: so many times MooseFS\n");
    println!("{:<31} {:>7} {:>5} {:>7} {:>5} {:>8} {:>8}", "row", "dfs", "x", "behind", "x", "MooseFS", "disk");
    for (((row, behind), peer), floor) in plain.0.iter().zip(&behind.0).zip(&theirs.0).zip(&below.0) {
        let (ratio, ratio_behind) = (row.value / peer.value, behind.value / peer.value);
        println!(
            "{:<31} {:>7.0} {ratio:>5.2} {:>7.0} {ratio_behind:>5.2} {:>8.0} {:>8.0}",
            row.name, row.value, behind.value, peer.value, floor.value
        );
    }
    if let Some(file) = &options.save {
        let rounds: serde_json::Map<_, _> =
            rounds.iter().map(|(side, rounds)| (side.to_string(), rounds.iter().map(Rows::json).collect())).collect();
        let report =
            json!({ "schema": 2, "machine": { "cores": cores() }, "remote": options.remote, "rounds": rounds });
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(fs::remove_dir_all(&dir)?)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

//! `cargo xtask bench heal`: how long it takes from the death of one of four data servers until every chunk has three
//! copies again, here and in MooseFS.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dfs_cluster::{Cluster, Layout};

use super::Place;
use super::moosefs::MooseFs;
use super::rows::write_through;
use crate::prerequisites;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// What is stored, in MiB
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 1800)]
    deadline: u64,
}

const SERVERS: usize = 4;
const COPIES: u64 = 3;
const POLL: Duration = Duration::from_millis(200);

/// Times from the death on.
struct Healed {
    /// Until it is known that copies are missing.
    noticed: Duration,
    /// Until none is missing.
    whole: Duration,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(rustix::process::geteuid().is_root(), "the comparison needs root, for network namespaces");
    prerequisites::install()?;
    prerequisites::install_peers()?;
    let (program, dir) = options.place.take()?;
    let deadline = Duration::from_secs(options.deadline);

    let mount = dir.join("dfs-mount");
    let layout = Layout { datanodes: SERVERS, mounts: vec![mount.clone()], ..Layout::default() };
    let cluster = Cluster::up(&program, &dir.join("dfs"), layout).context("start the cluster")?;
    write_through(&mount.join("file"), options.mib << 20)?;
    cluster.wait_healthy(deadline)?;
    let ours = heal_dfs(&cluster, deadline)?;
    cluster.down()?;
    drop(cluster);

    let mount = dir.join("moosefs-mount");
    let mut moosefs = MooseFs::start(&dir.join("moosefs"), &mount, SERVERS, false)?;
    let file = mount.join("file");
    write_through(&file, options.mib << 20)?;
    let theirs = heal_moosefs(&mut moosefs, &file, deadline)?;
    drop(moosefs);

    println!(
        "\n{} MiB in {COPIES} copies on {SERVERS} servers, of which one is killed; s after its death\n",
        options.mib
    );
    println!("{:<26} {:>9} {:>9} {:>7}", "", "dfs", "MooseFS", "x");
    for (what, ours, theirs) in [
        ("missing copies are noticed", ours.noticed, theirs.noticed),
        ("every chunk has three", ours.whole, theirs.whole),
    ] {
        let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
        println!("{what:<26} {:>9.1} {:>9.1} {ratio:>7.2}", ours.as_secs_f64(), theirs.as_secs_f64());
    }
    Ok(fs::remove_dir_all(&dir)?)
}

fn heal_dfs(cluster: &Cluster, deadline: Duration) -> Result<Healed> {
    let victim = cluster.datanodes().pop().context("there are datanodes")?;
    cluster.kill(&victim)?;
    let died = Instant::now();
    let noticed = poll(died, deadline, || {
        let status = cluster.status()?;
        Ok(status["chunks"]["under_replicated"].as_u64().is_some_and(|chunks| chunks > 0))
    })?;
    // Each new copy is verified before it counts.
    cluster.wait_healthy(deadline)?;
    Ok(Healed { noticed, whole: died.elapsed() })
}

fn heal_moosefs(moosefs: &mut MooseFs, file: &Path, deadline: Duration) -> Result<Healed> {
    let all_have = |moosefs: &MooseFs| Ok(moosefs.fewest_copies(file)? >= COPIES);
    poll(Instant::now(), deadline, || all_have(moosefs))?;
    moosefs.kill_chunk_server(SERVERS - 1)?;
    let died = Instant::now();
    let noticed = poll(died, deadline, || Ok(!all_have(moosefs)?))?;
    Ok(Healed { noticed, whole: poll(died, deadline, || all_have(moosefs))? })
}

fn poll(since: Instant, deadline: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<Duration> {
    while !done()? {
        if since.elapsed() > deadline {
            bail!("not within {deadline:?}");
        }
        std::thread::sleep(POLL);
    }
    Ok(since.elapsed())
}

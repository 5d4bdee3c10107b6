//! `cargo xtask bench group`: what one group of namenodes takes and gives, asked by many clients at once without a mount
//! in between, and what its files cost it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dfs_client::{ClusterConfig, Dfs, MakeOptions, Options as ClientOptions};
use dfs_cluster::{Cluster, Layout};
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{Caller, InodeId, Name};
use serde_json::json;
use tokio::task::JoinSet;

use super::Place;
use crate::prerequisites;

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Clients, each with connections and a session of its own
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Requests that each client has under way at a time, where each is waited for
    #[arg(long, default_value_t = 16)]
    at_once: usize,
    /// Seconds for each of the rows where each request is waited for
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Files to make, without content; memory and restart are measured with all of them
    #[arg(long, default_value_t = 1_000_000)]
    files: u64,
    /// Also write what was measured to this file, as JSON
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

/// In one directory: what a client decides about by itself in a private one.
const FILES_IN_A_DIRECTORY: u64 = 20_000;

/// Directories that a client makes before it gives way to another with a session of its own.
const DIRECTORIES_OF_A_SESSION: u64 = 2;

/// Directories that all clients see, with the private ones in them.
const SHARED: u64 = 16;

const DEADLINE: Duration = Duration::from_secs(60);

pub fn run(options: &Options) -> Result<()> {
    ensure!(options.clients > 0 && options.at_once > 0 && options.seconds > 0, "nothing would be done");
    prerequisites::install()?;
    let (program, dir) = options.place.take()?;
    let cluster = Cluster::up(&program, &dir.join("data"), Layout { datanodes: 3, ..Layout::default() })?;
    let figures = tokio::runtime::Runtime::new()?.block_on(measure(&cluster, options))?;
    let restart = restart(&cluster)?;
    cluster.down()?;
    drop(cluster);

    println!("\n3 namenodes and their {} clients on one machine", options.clients);
    println!("every create is synced by a majority; every stat is answered by the leader, linearizable\n");
    println!("{:<50} {:>12.0} /s", "creates, each waited for", figures.creates);
    println!("{:<50} {:>12.0} /s", "creates, written behind, synced at the end", figures.creates_behind);
    println!("{:<50} {:>12.0} /s", "stats", figures.stats);
    println!("{:<50} {:>12}", "files at the end", figures.files);
    println!("{:<50} {:>12.1} s", "restart of all namenodes until one leads", restart.as_secs_f64());
    for (name, before, after) in &figures.resident {
        let each = after.saturating_sub(*before) as f64 / figures.files as f64;
        let what = format!("{name}: memory before and after, in MiB");
        println!("{what:<50} {:>5} {:>6}   {each:.0} bytes a file", before >> 20, after >> 20);
    }
    if let Some(file) = &options.save {
        let resident: Vec<_> = figures.resident.iter().map(|(_, before, after)| json!([before, after])).collect();
        let report = json!({
            "schema": 1,
            "machine": { "cores": std::thread::available_parallelism().map_or(1, usize::from) },
            "clients": options.clients,
            "creates_per_second": figures.creates,
            "creates_behind_per_second": figures.creates_behind,
            "stats_per_second": figures.stats,
            "files": figures.files,
            "restart_seconds": restart.as_secs_f64(),
            "resident_bytes_before_and_after": resident,
        });
        fs::write(file, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(fs::remove_dir_all(&dir)?)
}

struct Figures {
    creates: f64,
    creates_behind: f64,
    stats: f64,
    files: u64,
    /// Of each namenode: its name, and the bytes of memory that it occupied without files and with all of them.
    resident: Vec<(String, u64, u64)>,
}

async fn measure(cluster: &Cluster, options: &Options) -> Result<Figures> {
    let config = ClusterConfig::load(&cluster.config())?;
    let time = Duration::from_secs(options.seconds);
    let waited_for = ClientOptions { description: "bench group".to_owned(), ..ClientOptions::default() };
    let clients = connect(&config, &waited_for, options.clients).await?;
    let mut homes = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        homes.push(client.mkdir_all(&Caller::ROOT, format!("/waited/{number}"), 0o755).await?.inode);
    }
    // What a namenode needs for its caches and connections is there before files are counted.
    let (warm, _) = at_once(&clients, &homes, options.at_once, time / 4, create).await?;
    let before = resident(cluster)?;
    let (made, creates) =
        at_once(&clients, &homes, options.at_once, time, |client, home, nth| create(client, home, WARM_UP_APART + nth))
            .await?;
    let (_, stats) = at_once(&clients, &homes, options.at_once, time, |client, home, _| async move {
        Ok(client.getattr(&Caller::ROOT, home).await.map(|_| ())?)
    })
    .await?;
    for number in 0..SHARED {
        clients[0].mkdir_all(&Caller::ROOT, format!("/behind{number}"), 0o755).await?;
    }
    shut_down(clients).await?;

    let begun = Instant::now();
    let behind = ClientOptions { remember: true, write_behind: true, ..waited_for };
    let wanted = options.files.saturating_sub(warm + made);
    let directories = wanted.div_ceil(FILES_IN_A_DIRECTORY).max(1);
    let mut sessions = JoinSet::new();
    for first in (0..directories).step_by(DIRECTORIES_OF_A_SESSION as usize) {
        if sessions.len() >= options.clients {
            sessions.join_next().await.context("a client is at work")???;
        }
        let (config, behind) = (config.clone(), behind.clone());
        let numbers = first..directories.min(first + DIRECTORIES_OF_A_SESSION);
        sessions.spawn(async move { fill(&config, behind, numbers).await });
    }
    while let Some(ended) = sessions.join_next().await {
        ended??;
    }
    let behind = directories * FILES_IN_A_DIRECTORY;
    let creates_behind = behind as f64 / begun.elapsed().as_secs_f64();
    let resident = before.into_iter().zip(resident(cluster)?).map(|((name, before), (_, after))| (name, before, after));
    Ok(Figures { creates, creates_behind, stats, files: warm + made + behind, resident: resident.collect() })
}

/// Names of the measured creates begin here, those of the warm-up at 0.
const WARM_UP_APART: u64 = 1 << 40;

async fn connect(config: &ClusterConfig, options: &ClientOptions, count: usize) -> Result<Vec<Dfs>> {
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = Dfs::connect(config, options.clone()).await?;
        client.ready().await?;
        clients.push(client);
    }
    Ok(clients)
}

async fn shut_down(clients: Vec<Dfs>) -> Result<()> {
    for client in clients {
        client.shutdown().await?;
    }
    Ok(())
}

/// Repeats `work` on every client, so many times at once, until the time is over. How often it was done, and how often a
/// second.
async fn at_once<W, F>(
    clients: &[Dfs],
    homes: &[InodeId],
    at_once: usize,
    time: Duration,
    work: W,
) -> Result<(u64, f64)>
where
    W: Fn(Dfs, InodeId, u64) -> F + Clone + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let begun = Instant::now();
    let mut workers = JoinSet::new();
    for (client, home) in clients.iter().zip(homes) {
        for worker in 0..at_once as u64 {
            let (client, home, work) = (client.clone(), *home, work.clone());
            workers.spawn(async move {
                let mut done = 0;
                while begun.elapsed() < time {
                    work(client.clone(), home, worker << 32 | done).await?;
                    done += 1;
                }
                Ok::<_, anyhow::Error>(done)
            });
        }
    }
    let mut done = 0;
    while let Some(ended) = workers.join_next().await {
        done += ended??;
    }
    Ok((done, done as f64 / begun.elapsed().as_secs_f64()))
}

async fn create(client: Dfs, home: InodeId, nth: u64) -> Result<()> {
    let name = Name::new(format!("file{nth:x}"))?;
    let new = MakeOptions { exclusive: true, ..MakeOptions::default() };
    client.make(&Caller::ROOT, home, &name, NewNode::File, 0o644, new).await?;
    Ok(())
}

/// One client with a session of its own, which makes these directories and fills them.
async fn fill(config: &ClusterConfig, options: ClientOptions, directories: std::ops::Range<u64>) -> Result<()> {
    let client = Dfs::connect(config, options).await?;
    for number in directories {
        let home = client.mkdir_all(&Caller::ROOT, format!("/behind{}/{number}", number % SHARED), 0o755).await?.inode;
        for nth in 0..FILES_IN_A_DIRECTORY {
            create(client.clone(), home, nth).await?;
        }
        client.sync_names().await?;
    }
    Ok(client.shutdown().await?)
}

fn resident(cluster: &Cluster) -> Result<Vec<(String, u64)>> {
    cluster.namenodes().into_iter().map(|name| Ok((name.clone(), cluster.resident_bytes(&name)?))).collect()
}

/// How long it takes until the group serves again, with all of it stopped before.
fn restart(cluster: &Cluster) -> Result<Duration> {
    for name in cluster.namenodes() {
        cluster.stop(&name)?;
    }
    let begun = Instant::now();
    cluster.namenodes().iter().try_for_each(|name| cluster.start(name))?;
    cluster.leader(DEADLINE)?;
    // A leader answers only what it has applied.
    match cluster.output(["ls", "/"])?.status.success() {
        true => Ok(begun.elapsed()),
        false => bail!("the leader does not serve"),
    }
}

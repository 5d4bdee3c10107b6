use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dfs_client::{ClusterConfig, Dfs, Options};
use dfs_proto::NodeId;
use dfs_proto::msg::admin::Status;
use dfs_proto::msg::group::GroupRequest;
use serde_json::{Value, json};

use crate::context::{Context, load_config};
use crate::error::{Failure, Result};
use crate::local::layout::{Kind, Layout, Member};
use crate::local::process::{self, Process};
use crate::local::ready::Waiter;
use crate::local::settings::{Filesystem, Settings, Wishes};
use crate::local::{images, mounts, namenodes, ports, scaffold};
use crate::units;
use crate::verbs::mount::options::MountWishes;

/// Start a cluster on this machine, or start again what does not run of it
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs up\n  dfs up --mount ./mnt\n  dfs up --mount ./mnt -o writebehind\n  dfs up --dir /tmp/try --namenodes 1 --datanodes 3\n  sudo dfs up --fs xfs:400M\n  sudo dfs up --netns"
)]
pub struct Args {
    /// 1, 3 or 5; default 3. More than there are: the rest is added
    #[arg(long, value_name = "N")]
    namenodes: Option<usize>,
    /// Default 4
    #[arg(long, value_name = "N")]
    datanodes: Option<usize>,
    /// Copies of each chunk; default 3
    #[arg(long, value_name = "N")]
    replication: Option<u8>,
    /// Where everything is kept; default ./dfs-data
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also mount it here; may be given several times
    #[arg(long, value_name = "DIR")]
    mount: Vec<PathBuf>,
    /// Options of the mounts that this adds, as `dfs mount -o` takes them
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    options: Vec<String>,
    /// A file system of its own for each node, as xfs:400M or ext4:400M; needs root
    #[arg(long, value_name = "KIND:SIZE")]
    fs: Option<Filesystem>,
    /// A network namespace with an address of its own for each process, so that links can be cut; needs root
    #[arg(long, conflicts_with = "base_port")]
    netns: bool,
    /// First of the UDP ports: namenodes from N, their Raft from N+10, datanodes from N+20
    #[arg(long, value_name = "N")]
    base_port: Option<u16>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let layout = Layout::of(args.dir.as_deref(), &context.global.cluster)?;
    if MountWishes::parse(&args.options)?.remount.is_some() {
        return Err(Failure::usage("-o remount is for `dfs mount`"));
    }
    layout.claim()?;
    let _lock = layout.lock_folder()?;
    let (settings, mut config) = prepare(&args, &layout)?;
    add_mounts(&args, &layout, &mut config)?;
    let log = context.global.log.as_deref();

    let start = Instant::now();
    let mut started = start_members(&layout, &settings, &config, Kind::Namenode, log, &[])?;
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let waiter = Waiter { layout: &layout, config: &config, dfs: &dfs, removed: Vec::new() };
    waiter.initialize().await?;
    let mut status = waiter.namenodes().await?;
    let wanted = args.namenodes.unwrap_or(config.namenodes.len());
    while config.namenodes.len() < wanted {
        let new = namenodes::start_new(&layout, &config, &dfs.group_members().await?, log)?;
        let node = new.node;
        let added = dfs.change_group(GroupRequest::Add(new)).await;
        namenodes::settle(&layout, &mut config, &dfs.group_members().await?, [node]).await?;
        added?;
        status = Waiter { layout: &layout, config: &config, dfs: &dfs, removed: Vec::new() }.namenodes().await?;
        started += 1;
    }
    let waiter = Waiter { layout: &layout, config: &config, dfs: &dfs, removed: status.removed.clone() };
    let removed = &waiter.removed;
    let report = Report { context, layout: &layout, config: &config };
    report.namenodes(&status, start.elapsed())?;

    let start_datanodes = Instant::now();
    started += start_members(&layout, &settings, &config, Kind::Datanode, log, removed)?;
    let status = waiter.datanodes().await?;
    report.datanodes(&status, start_datanodes.elapsed())?;

    let start_mounts = Instant::now();
    process::wait_for_ending_mounts(&layout, &config).await?;
    started += start_members(&layout, &settings, &config, Kind::Mount, log, removed)?;
    waiter.mounts().await?;
    report.mounts(start_mounts.elapsed())?;
    report.end(&status, started, start.elapsed())
}

/// Makes a new cluster, or reads the one that is there.
fn prepare(args: &Args, layout: &Layout) -> Result<(Settings, ClusterConfig)> {
    let wishes = Wishes {
        namenodes: args.namenodes,
        datanodes: args.datanodes,
        replication: args.replication,
        fs: args.fs,
        netns: args.netns,
    };
    if layout.exists() {
        let mut settings = Settings::load(layout)?;
        settings.agree(&wishes, layout)?;
        let mut config = load_config(&layout.cluster_toml())?;
        check_base_port(args, layout, &config)?;
        if settings.fs.is_some() {
            images::check_allowed()?;
            scaffold::nodes(&config).into_iter().try_for_each(|member| images::mount(layout, member))?;
        }
        scaffold::add_datanodes(layout, &mut settings, &mut config, wishes.datanodes.unwrap_or(0))?;
        return Ok((settings, config));
    }
    let settings = Settings::new(&wishes)?;
    if settings.fs.is_some() {
        images::check_allowed()?;
    }
    let ports = match settings.network() {
        Some(network) => network.ports(settings.namenodes, settings.datanodes),
        None => ports::pick(args.base_port, settings.namenodes, settings.datanodes)?,
    };
    let created = scaffold::create(layout, &settings, &ports);
    let config = created.inspect_err(|_| scaffold::discard(layout, &settings))?;
    Ok((settings, config))
}

fn check_base_port(args: &Args, layout: &Layout, config: &ClusterConfig) -> Result {
    let first = config.namenodes.first().map(|node| node.addr.port());
    match (args.base_port, first) {
        (Some(wished), Some(is)) if wished != is => {
            let message = format!(
                "--base-port {wished} contradicts the cluster in {}, whose first port is {is}",
                layout.dir.display()
            );
            Err(Failure::usage(message).hint("leave the flag out, or use another folder by --dir"))
        }
        _ => Ok(()),
    }
}

fn add_mounts(args: &Args, layout: &Layout, config: &mut ClusterConfig) -> Result {
    for dir in &args.mount {
        let dir = make_mount_point(dir)?;
        if let Some(known) = config.mounts.iter().find(|mount| mount.dir == dir) {
            if !args.options.is_empty() && args.options != known.options {
                return Err(Failure::usage(format!(
                    "-o {} contradicts the mount on {}, which has {}",
                    args.options.join(","),
                    dir.display(),
                    if known.options.is_empty() { "no options".to_owned() } else { known.options.join(",") }
                ))
                .hint("leave the flag out, or mount it elsewhere"));
            }
            continue;
        }
        if dir.starts_with(&layout.dir)
            && scaffold::nodes(config).iter().any(|node| dir.starts_with(layout.folder(*node)))
        {
            return Err(Failure::usage(format!("{} is the folder of a node", dir.display())));
        }
        scaffold::add_mount(layout, config, dir, &args.options)?;
    }
    Ok(())
}

/// The mount point's real path; made if it is missing.
fn make_mount_point(dir: &Path) -> Result<PathBuf> {
    match fs::create_dir_all(dir) {
        Ok(()) => {}
        // A dead mount cannot be read and is there all the same.
        Err(_) if mounts::resolve(dir).is_ok_and(|path| matches!(mounts::mounted_at(&path), Ok(Some(_)))) => {}
        Err(error) => return Err(Failure::local(dir, &error).at("mount point")),
    }
    mounts::resolve(dir)
}

/// Starts those that do not run and were not removed from the cluster; how many that were.
fn start_members(
    layout: &Layout,
    settings: &Settings,
    config: &ClusterConfig,
    kind: Kind,
    log: Option<&str>,
    removed: &[NodeId],
) -> Result<usize> {
    let mut started = 0;
    for member in scaffold::members(config, kind) {
        if !removed.contains(&member.id()) {
            started += usize::from(start_member(layout, settings, config, member, log)?);
        }
    }
    Ok(started)
}

/// Whether it had to be started.
pub fn start_member(
    layout: &Layout,
    settings: &Settings,
    config: &ClusterConfig,
    member: Member,
    log: Option<&str>,
) -> Result<bool> {
    if Process::find(layout, member).is_some() {
        return Ok(false);
    }
    if let Some(network) = settings.network() {
        network.make(member)?;
    } else if let Some(addr) = address(config, member) {
        ports::check_free(addr)
            .map_err(|failure| failure.at(member.name()).hint("end that program, then try again"))?;
    }
    scaffold::write_start_script(layout, settings, config, member, log)?;
    process::start(layout, member)?;
    Ok(true)
}

fn address(config: &ClusterConfig, member: Member) -> Option<std::net::SocketAddr> {
    let nodes = match member.kind {
        Kind::Namenode => &config.namenodes,
        Kind::Datanode => &config.datanodes,
        Kind::Mount => return None,
    };
    nodes.iter().find(|node| node.id == member.id()).map(|node| node.addr)
}

/// What `up` tells, a line as each part is ready.
struct Report<'a> {
    context: &'a Context,
    layout: &'a Layout,
    config: &'a ClusterConfig,
}

impl Report<'_> {
    fn namenodes(&self, status: &Status, time: Duration) -> Result {
        let n = self.config.namenodes.len();
        let leader = self.config.namenodes.iter().find(|node| Some(node.id) == status.leader);
        let leader = leader.map_or("none", |node| node.name.as_str());
        self.line("namenode", format!("{n}/{n} ready, leader {leader}"), time)
    }

    fn datanodes(&self, status: &Status, time: Duration) -> Result {
        let n = self.config.datanodes.len() - status.removed.len().min(self.config.datanodes.len());
        let free: u64 = status.datanodes.iter().flat_map(|node| &node.volumes).map(|volume| volume.free_bytes).sum();
        self.line("datanode", format!("{n}/{n} ready, {} free", units::human(free)), time)
    }

    fn mounts(&self, time: Duration) -> Result {
        self.config.mounts.iter().try_for_each(|mount| self.line("mount", mount.dir.display().to_string(), time))
    }

    fn line(&self, what: &str, how: String, time: Duration) -> Result {
        if self.context.out.json || self.context.out.quiet {
            return Ok(());
        }
        self.context.out.line(format!("{what:9} {how:38} {}", units::duration(time)))?;
        self.context.out.flush()
    }

    fn end(&self, status: &Status, started: usize, time: Duration) -> Result {
        let out = &self.context.out;
        if out.json {
            return out.object(self.object(status, started, time));
        }
        if out.quiet {
            return Ok(());
        }
        if started == 0 {
            out.line("everything ran already")?;
        }
        let copies = usize::from(self.config.replication);
        if copies > self.config.datanodes.len() {
            out.warning(format!(
                "{copies} copies are wanted and there are {} datanodes: files are kept with fewer copies",
                self.config.datanodes.len()
            ));
        }
        let file = self.layout.cluster_toml();
        let addrs = |nodes: &[dfs_client::NodeAddr]| {
            nodes.iter().map(|node| node.addr.to_string()).collect::<Vec<_>>().join(" ")
        };
        out.line(format!("  Metadata  {} (QUIC, TLS)", addrs(&self.config.namenodes)))?;
        out.line(format!("  Data      {} (QUIC, TLS)", addrs(&self.config.datanodes)))?;
        out.line(format!(
            "  Kept in   {} (logs, state; `dfs down` stops, `dfs up` brings it back)",
            self.layout.dir.display()
        ))?;
        if !same_file(&file, &self.context.global.cluster) {
            out.line(format!("First: export DFS_CLUSTER={}", file.display()))?;
        }
        out.line("Next:  dfs put README.md /      dfs ls -l /      dfs status      dfs down")
    }

    fn object(&self, status: &Status, started: usize, time: Duration) -> Value {
        let pid = |member| Process::find(self.layout, member).map(|process| process.pid);
        let nodes = |kind, nodes: &[dfs_client::NodeAddr]| -> Vec<Value> {
            let members = scaffold::members(self.config, kind);
            let pairs = nodes.iter().zip(members);
            pairs
                .map(
                    |(node, member)| json!({"name": node.name, "node": node.id, "addr": node.addr, "pid": pid(member)}),
                )
                .collect()
        };
        let mounts = self.config.mounts.iter().zip(Member::all(Kind::Mount, self.config.mounts.len()));
        let mounts: Vec<_> =
            mounts.map(|(mount, member)| json!({"name": mount.name, "dir": mount.dir, "pid": pid(member)})).collect();
        json!({
            "dir": self.layout.dir,
            "cluster_file": self.layout.cluster_toml(),
            "cluster": self.config.cluster.to_string(),
            "replication": self.config.replication,
            "leader": status.leader,
            "namenodes": nodes(Kind::Namenode, &self.config.namenodes),
            "datanodes": nodes(Kind::Datanode, &self.config.datanodes),
            "mounts": mounts,
            "started": started,
            "elapsed_ms": time.as_millis() as u64,
        })
    }
}

fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

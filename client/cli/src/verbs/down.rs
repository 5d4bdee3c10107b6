use std::path::PathBuf;
use std::time::{Duration, Instant};

use dfs_client::ClusterConfig;
use rustix::process::Signal;
use serde_json::json;

use crate::context::{Context, load_config};
use crate::error::{Failure, Result, Tally};
use crate::local::layout::{Kind, Layout, Member};
use crate::local::process::Process;
use crate::local::settings::Settings;
use crate::local::{images, mounts, scaffold};
use crate::units;

/// Stop a cluster that `dfs up` started; its data stays
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs down\n  dfs down --dir /tmp/try")]
pub struct Args {
    /// The folder that `dfs up` made; default ./dfs-data
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Time for an orderly stop: a mount flushes, a datanode syncs, a leader hands over.
const GRACE: Duration = Duration::from_secs(20);

/// After SIGKILL the kernel needs a moment, longer if the disk is slow.
const KILL_GRACE: Duration = Duration::from_secs(10);

pub async fn run(context: &Context, args: Args) -> Result {
    let layout = Layout::of(args.dir.as_deref(), &context.global.cluster)?;
    if !layout.exists() {
        return Err(
            Failure::usage(format!("there is no cluster in {}", layout.dir.display())).hint("--dir names its folder")
        );
    }
    let _lock = layout.lock_folder()?;
    let config = load_config(&layout.cluster_toml())?;
    let settings = Settings::load(&layout)?;
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut stopped = 0;
    // Clients before what they use, data before the metadata that describes it.
    for (kind, name, count) in [
        (Kind::Mount, "mount", config.mounts.len()),
        (Kind::Datanode, "datanode", config.datanodes.len()),
        (Kind::Namenode, "namenode", config.namenodes.len()),
    ] {
        let began = Instant::now();
        let ended = stop_all(context, &layout, &Member::all(kind, count), &mut tally).await?;
        if ended > 0 && !context.out.json && !context.out.quiet {
            context.out.line(format!(
                "{name:9} {:38} {}",
                format!("{ended} stopped"),
                units::duration(began.elapsed())
            ))?;
        }
        stopped += ended;
        if kind == Kind::Mount {
            detach_dead_mounts(context, &config, &mut tally)?;
        }
    }
    if settings.fs.is_some() {
        for member in scaffold::nodes(&config) {
            let done = images::unmount(&layout, member);
            context.out.keep_going(&mut tally, done)?;
        }
    }
    if let Some(network) = settings.network() {
        let mut members = scaffold::nodes(&config);
        members.extend(Member::all(Kind::Mount, config.mounts.len()));
        context.out.keep_going(&mut tally, network.remove(&members))?;
    }
    if context.out.json {
        context
            .out
            .object(json!({"dir": layout.dir, "stopped": stopped, "elapsed_ms": start.elapsed().as_millis() as u64}))?;
    } else if stopped == 0 && !context.out.quiet {
        context.out.line("nothing ran")?;
    }
    tally.end()
}

/// Asks all of them to stop, waits, and kills those that do not; how many there were.
async fn stop_all(context: &Context, layout: &Layout, members: &[Member], tally: &mut Tally) -> Result<usize> {
    let running: Vec<_> =
        members.iter().filter_map(|member| Some((*member, Process::find(layout, *member)?))).collect();
    for (_, process) in &running {
        context.out.keep_going(tally, process.signal(Signal::TERM))?;
    }
    let deadline = Instant::now() + GRACE;
    for (member, process) in &running {
        if !process.ended(deadline.saturating_duration_since(Instant::now())).await {
            context.out.warning(format!("{} did not stop in {} s and is killed", member.name(), GRACE.as_secs()));
            context.out.keep_going(tally, process.signal(Signal::KILL))?;
            if !process.ended(KILL_GRACE).await {
                let failure = Failure::failed(format!("{}, process {}, cannot be killed", member.name(), process.pid));
                context.out.keep_going(tally, Err(failure))?;
                continue;
            }
        }
        // A file that stays would only name a number that is somebody else's one day.
        let _ = std::fs::remove_file(layout.pid(*member));
    }
    Ok(running.len())
}

/// A mount whose process was killed stays in the mount table and answers nobody.
fn detach_dead_mounts(context: &Context, config: &ClusterConfig, tally: &mut Tally) -> Result {
    for mount in &config.mounts {
        // Dead ones may lie on top of each other; the bound is for a table that changes under us.
        for _ in 0..16 {
            let done = match mounts::mounted_at(&mount.dir) {
                Ok(Some(kind)) if kind == mounts::FUSE_TYPE => mounts::unmount_top(&mount.dir, true),
                Ok(_) => break,
                Err(failure) => Err(failure),
            };
            let failed = done.is_err();
            context.out.keep_going(tally, done)?;
            if failed {
                break;
            }
        }
    }
    Ok(())
}

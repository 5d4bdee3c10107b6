mod add;
mod duty;
mod list;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::context::Context;
use crate::error::{Exit, Failure, Result, Tally};
use crate::output::Tone;
use crate::role;

/// Serve as a datanode, say what datanodes are for, or check a chunk file
#[derive(clap::Args, Debug)]
#[command(before_help = "\
Examples:
  dfs datanode --config /etc/dfs/datanode.toml
  dfs datanode list
  dfs datanode add                             one more on this machine; full ones give it their share
  dfs datanode decommission dn3 --dry-run      what would be moved, and where it cannot
  dfs datanode decommission dn3 --wait         move its chunks elsewhere, then be done
  dfs datanode maintenance dn3 --for 30m       it may be down that long
  dfs datanode remove dn3                      its number is never used again
  dfs datanode verify dfs-data/dn1/data/volume1/chunks/*/*")]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Serve in the foreground until SIGTERM or Ctrl-C
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(clap::Subcommand, Debug)]
enum Task {
    /// Read chunk files and verify every frame, without a running node
    Verify {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Every datanode: how alive it is, what it is for, what it holds
    List,
    /// Make and start one more in the folder of `dfs up`
    Add(add::Args),
    /// Copy its chunks to other nodes until none needs it
    Decommission(duty::Decommission),
    /// Put it back in service, whatever it was taken out for
    Recommission {
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Let it be away for a while without being repaired for
    Maintenance(duty::Maintenance),
    /// Strike it from the cluster, once it is decommissioned or dead
    Remove(duty::Remove),
}

impl Args {
    pub fn is_role(&self) -> bool {
        self.task.is_none()
    }
}

pub async fn run(context: &Context, args: Args) -> Result {
    match (args.task, args.config) {
        (Some(Task::Verify { files }), _) => {
            let mut tally = Tally::default();
            for file in &files {
                let done = verify(context, file);
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        }
        (Some(Task::List), _) => list::run(context).await,
        (Some(Task::Add(args)), _) => add::run(context, args).await,
        (Some(Task::Decommission(args)), _) => duty::decommission(context, args).await,
        (Some(Task::Recommission { node }), _) => duty::recommission(context, &node).await,
        (Some(Task::Maintenance(args)), _) => duty::maintenance(context, args).await,
        (Some(Task::Remove(args)), _) => duty::remove(context, args).await,
        (None, Some(config)) => serve(config).await,
        // Clap requires one of the two.
        (None, None) => Ok(()),
    }
}

async fn serve(path: PathBuf) -> Result {
    let config = dfs_datanode::Config::load(&path).map_err(|error| role::bad_config(&path, &error))?;
    let name = config.name.clone();
    let stop = role::stop_signal()?;
    dfs_datanode::run(config, stop).await.map_err(|error| role::failed(&format!("datanode {name} ended"), &error))
}

fn verify(context: &Context, file: &Path) -> Result {
    let report = match dfs_datanode::verify_file(file) {
        Ok(report) => report,
        Err(dfs_datanode::VerifyError::Io { path, source }) => return Err(Failure::local(&path, &source)),
        Err(error) => return Err(Failure::of(dfs_proto::ErrorKind::Corrupt, error.to_string())),
    };
    let sound = report.problems.is_empty();
    if context.out.json {
        let header = &report.header;
        context.out.object(json!({
            "path": report.path,
            "sound": sound,
            "cluster": header.cluster.to_string(),
            "chunk": header.chunk,
            "epoch": header.epoch,
            "state": format!("{:?}", header.state).to_lowercase(),
            "len_bytes": header.len,
            "whole_bytes": report.whole,
            "frames": report.frames,
            "problems": report.problems,
        }))?;
    } else {
        context.out.bytes(report.to_string().as_bytes())?;
        let word = if sound { context.out.paint(Tone::Good, "sound") } else { context.out.paint(Tone::Bad, "DAMAGED") };
        context.out.line(format!("  {word}"))?;
    }
    // Told in the answer already.
    if sound { Ok(()) } else { Err(Failure::silent(Exit::Corrupt)) }
}

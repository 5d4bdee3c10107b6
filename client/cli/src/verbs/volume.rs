use std::path::PathBuf;

use dfs_client::{Dfs, Options};
use dfs_proto::ErrorKind;
use dfs_proto::msg::admin::{DatanodeStatus, Liveness, Status};
use dfs_proto::msg::data::Manage;
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::msg::node::VolumeStatus;
use serde_json::json;

use crate::context::Context;
use crate::error::{Failure, Result};
use crate::units;
use crate::verbs::status::{self, NodeNames};

/// The disks of datanodes: which there are, add, empty and replace them
#[derive(clap::Args, Debug)]
#[command(before_help = "\
Examples:
  dfs volume list
  dfs volume add dn1 /mnt/disk2          take an empty folder into use
  dfs volume drain dn1 /mnt/disk1        move what is on it elsewhere
  dfs volume replace dn1 /mnt/disk1      a new disk is mounted where one failed")]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand, Debug)]
enum Task {
    /// Every volume, its room, and what is wrong with it
    List {
        #[arg(value_name = "NODE")]
        node: Option<String>,
    },
    /// Take a folder on the node's machine into use; also one that failed and is in order again
    Add(Where),
    /// Move its chunks to other volumes, or nodes, then take it out of use; `add` stops that
    Drain(Where),
    /// Use the new, empty disk that is mounted where one failed
    Replace(Where),
}

#[derive(clap::Args, Debug)]
struct Where {
    #[arg(value_name = "NODE")]
    node: String,
    /// Absolute, on the node's machine
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let config = context.config()?;
    let names = NodeNames::new(&config);
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let status = status::ask_leader(&dfs).await?;
    let (place, make): (Where, fn(String) -> Manage) = match args.task {
        Task::List { node } => return list(context, &status, node.as_deref(), &names),
        Task::Add(place) => (place, |path| Manage::AddVolume { path }),
        Task::Drain(place) => (place, |path| Manage::DrainVolume { path }),
        Task::Replace(place) => (place, |path| Manage::ReplaceVolume { path }),
    };
    let node = find(&status, &place.node, &names)?;
    let name = names.of(node.node);
    let path = path_of(&place)?;
    let request = make(path.clone());
    let said = match &request {
        Manage::DrainVolume { .. } => format!("{name} empties {path}; `dfs volume list {name}` shows how far it is"),
        _ => format!("{name} uses {path}"),
    };
    let asked = dfs.manage(ReplicaAt { node: node.node, addr: node.addr }, request.clone()).await;
    asked.map_err(|error| refused(error.into(), &request, &name))?;
    if context.out.json {
        return context.out.object(json!({"node": node.node, "name": name, "path": path, "done": true}));
    }
    context.out.note(said);
    Ok(())
}

fn find<'a>(status: &'a Status, typed: &str, names: &NodeNames) -> Result<&'a DatanodeStatus> {
    let node = names.datanode(typed)?;
    let found = status.datanodes.iter().find(|status| status.node == node);
    found.ok_or_else(|| {
        Failure::of(ErrorKind::NotFound, format!("there is no datanode {typed}")).hint("dfs datanode list")
    })
}

fn path_of(place: &Where) -> Result<String> {
    let text = place.dir.to_str().filter(|_| place.dir.is_absolute());
    text.map(str::to_owned).ok_or_else(|| {
        Failure::usage(format!("{} is no absolute path in UTF-8", place.dir.display()))
            .hint("the folder is on the datanode's machine: name it from its root")
    })
}

/// What to do about a refusal.
fn refused(failure: Failure, request: &Manage, name: &str) -> Failure {
    let hint = match (request, failure.wire_kind()) {
        (Manage::DrainVolume { .. }, Some(ErrorKind::NotSupported)) => {
            format!("`dfs volume add {name} DIR` first, or `dfs datanode decommission {name}`")
        }
        (Manage::ReplaceVolume { path }, Some(ErrorKind::NotEmpty)) => {
            format!("mount the new disk there; one that is in order again: dfs volume add {name} {path}")
        }
        (Manage::AddVolume { path }, Some(ErrorKind::Internal | ErrorKind::NotEmpty)) => {
            format!("give it an empty folder; a new disk where one failed: dfs volume replace {name} {path}")
        }
        (_, Some(ErrorKind::NotFound)) => format!("dfs volume list {name}"),
        _ => return failure,
    };
    failure.hint(hint)
}

fn list(context: &Context, status: &Status, only: Option<&str>, names: &NodeNames) -> Result {
    let only = only.map(|typed| find(status, typed, names)).transpose()?.map(|node| node.node);
    let nodes = || status.datanodes.iter().filter(|node| only.is_none_or(|only| node.node == only));
    if context.out.json {
        let volumes: Vec<_> = nodes()
            .flat_map(|node| node.volumes.iter().map(move |volume| (node, volume)))
            .map(|(node, volume)| {
                json!({
                    "node": node.node, "name": names.of(node.node), "path": volume.path,
                    "state": state(node, volume), "total_bytes": volume.total_bytes, "free_bytes": volume.free_bytes,
                    "chunks": volume.chunks, "failed": volume.failed,
                })
            })
            .collect();
        return context.out.object(json!({"volumes": volumes}));
    }
    context.out.line(row(["NODE", "STATE", "CHUNKS", "FREE", "OF", "VOLUME"]))?;
    for node in nodes() {
        for volume in &node.volumes {
            context.out.line(row([
                &names.of(node.node),
                state(node, volume),
                &units::count(volume.chunks),
                &units::human(volume.free_bytes),
                &units::human(volume.total_bytes),
                &volume.path,
            ]))?;
            for line in advice(&names.of(node.node), state(node, volume), volume) {
                context.out.line(format!("         {line}"))?;
            }
        }
    }
    Ok(())
}

fn state(node: &DatanodeStatus, volume: &VolumeStatus) -> &'static str {
    match volume {
        VolumeStatus { failed: Some(_), .. } => "failed",
        _ if node.liveness != Liveness::Live => "unknown",
        VolumeStatus { draining: true, .. } => "draining",
        VolumeStatus { free_bytes: 0, .. } => "full",
        _ => "in use",
    }
}

/// Why it is not simply in use, and what to do about it.
fn advice(node: &str, state: &str, volume: &VolumeStatus) -> Vec<String> {
    let path = &volume.path;
    match (&volume.failed, state) {
        (Some(reason), _) => vec![
            format!("cause: {reason}; its chunks are copied elsewhere"),
            format!("hint: a new disk there: dfs volume replace {node} {path}"),
            format!("      the same one in order again: dfs volume add {node} {path}"),
        ],
        (None, "full") => vec![format!("hint: free some space, or dfs volume add {node} DIR")],
        _ => Vec::new(),
    }
}

fn row(columns: [&str; 6]) -> String {
    let [node, state, chunks, free, total, path] = columns;
    format!("{node:8} {state:8} {chunks:>8} {free:>9} {total:>9}  {path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_volume_says_why_and_what_to_do() {
        let volume = VolumeStatus {
            path: "/mnt/d1".into(),
            total_bytes: 1,
            free_bytes: 0,
            chunks: 3,
            failed: Some("sync: Input/output error".into()),
            draining: false,
        };
        let text = advice("dn1", "failed", &volume).join("\n");
        assert!(text.contains("Input/output error") && text.contains("dfs volume replace dn1 /mnt/d1"), "{text}");
        assert!(advice("dn1", "in use", &VolumeStatus { failed: None, free_bytes: 1, ..volume }).is_empty());
    }

    #[test]
    fn a_relative_folder_is_a_usage_error() {
        let place = Where { node: "dn1".into(), dir: "disk".into() };
        assert_eq!(path_of(&place).unwrap_err().exit, crate::error::Exit::Usage);
    }
}

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};
use dfs_proto::NodeId;
use dfs_proto::msg::admin::{DatanodeStatus, Liveness, Status};
use serde_json::json;

use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::units;
use crate::verbs::status::{self, NodeNames, ago_s, datanode_object};

/// How old the last verification of the replicas is, and a new one now
#[derive(clap::Args, Debug)]
#[command(before_help = "\
Examples:
  dfs scrub                     how far the datanodes are
  dfs scrub --now --wait        read and verify every replica there is
  dfs scrub --now dn2")]
pub struct Args {
    /// Verify everything ahead of its turn
    #[arg(long)]
    now: bool,
    /// Stay until it is done, and show how far it is
    #[arg(long, requires = "now")]
    wait: bool,
    /// All that are live, if none is named
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

const POLL: Duration = Duration::from_millis(500);
/// For a line of progress where nobody watches.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// A datanode that has not taken the wish after so long did not get it: it is told again.
const REPEAT: Duration = Duration::from_secs(10);

pub async fn run(context: &Context, args: Args) -> Result {
    let config = context.config()?;
    let names = NodeNames::new(&config);
    let nodes = args.nodes.iter().map(|node| names.datanode(node)).collect::<Result<Vec<_>>>()?;
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let before = status::ask_leader(&dfs).await?;
    let wanted = wanted(&before, &nodes, &names)?;
    if !args.now {
        return show(context, &before, &wanted, &names);
    }
    let asked_before: BTreeMap<NodeId, u64> =
        before.datanodes.iter().map(|node| (node.node, node.scrub.map_or(0, |scrub| scrub.asked_s))).collect();
    dfs.scrub(wanted.clone()).await?;
    if !args.wait {
        let count = wanted.len();
        context.out.note(format!("{count} datanodes verify all they have; `dfs scrub` shows how far they are"));
        return if context.out.json { show(context, &before, &wanted, &names) } else { Ok(()) };
    }
    let (mut told, mut repeated) = (None::<Instant>, Instant::now());
    loop {
        tokio::time::sleep(POLL).await;
        let status = match status::ask_leader(&dfs).await {
            Ok(status) => status,
            Err(failure) if failure.exit == Exit::Temporary => continue,
            Err(failure) => return Err(failure),
        };
        let mut untold = Vec::new();
        let (mut left, mut left_bytes) = (0, 0);
        for node in status.datanodes.iter().filter(|node| wanted.contains(&node.node)) {
            if node.liveness != Liveness::Live {
                return Err(Failure::temporary(format!("{} went silent before it was done", names.of(node.node)))
                    .hint("dfs scrub --now --wait, once it is back"));
            }
            match node.scrub {
                Some(scrub) if scrub.asked_s > asked_before.get(&node.node).copied().unwrap_or(0) => {
                    left += scrub.left_chunks;
                    left_bytes += scrub.left_bytes;
                }
                _ => untold.push(node.node),
            }
        }
        if untold.is_empty() && left == 0 {
            show(context, &status, &wanted, &names)?;
            let damaged = status.repair.damaged;
            return match damaged {
                0 => Ok(()),
                damaged => Err(Failure::failed(format!("{damaged} replicas are damaged and not healed yet"))
                    .hint("dfs wait-healthy; `dfs fsck` names files that cannot be read")),
            };
        }
        if !untold.is_empty() && repeated.elapsed() >= REPEAT {
            dfs.scrub(untold).await?;
            repeated = Instant::now();
        }
        let every = if context.out.stderr_is_terminal { Duration::from_secs(1) } else { TELL_EVERY };
        if told.is_none_or(|told| told.elapsed() >= every) {
            context.out.note(format!("{} replicas left, {}", units::count(left), units::human(left_bytes)));
            told = Some(Instant::now());
        }
    }
}

/// The nodes that were named, which must be there and live; or all that are live.
fn wanted(status: &Status, named: &[NodeId], names: &NodeNames) -> Result<Vec<NodeId>> {
    if named.is_empty() {
        let live = status.datanodes.iter().filter(|node| node.liveness == Liveness::Live);
        return Ok(live.map(|node| node.node).collect());
    }
    for node in named {
        if !status.datanodes.iter().any(|status| status.node == *node) {
            return Err(Failure::of(
                dfs_proto::ErrorKind::NotFound,
                format!("there is no datanode {}", names.of(*node)),
            )
            .hint("dfs datanode list"));
        }
    }
    Ok(named.to_vec())
}

fn show(context: &Context, status: &Status, wanted: &[NodeId], names: &NodeNames) -> Result {
    let nodes = || status.datanodes.iter().filter(|node| wanted.contains(&node.node));
    if context.out.json {
        let nodes: Vec<_> = nodes().map(|node| datanode_object(node, names)).collect();
        let repair = &status.repair;
        return context.out.object(json!({
            "datanodes": nodes, "damaged": repair.damaged, "damaged_found": repair.damaged_found,
            "healed": repair.healed,
        }));
    }
    context.out.line(row(["NODE", "REPLICAS", "SIZE", "LEFT", "OLDEST", "EVERY", "DAMAGED"]))?;
    nodes().try_for_each(|node| context.out.line(line(node, names)))
}

fn line(node: &DatanodeStatus, names: &NodeNames) -> String {
    let name = names.of(node.node);
    let Some(scrub) = node.scrub else { return row([&name, "-", "-", "-", "-", "-", "-"]) };
    let oldest = match scrub.chunks {
        0 => "-".to_owned(),
        _ => format!("{} ago", units::duration(Duration::from_secs(ago_s(scrub.oldest_s)))),
    };
    row([
        &name,
        &units::count(scrub.chunks),
        &units::human(scrub.bytes),
        &units::count(scrub.left_chunks),
        &oldest,
        &units::duration(Duration::from_secs(scrub.period_s)),
        &units::count(scrub.damaged),
    ])
}

fn row(columns: [&str; 7]) -> String {
    let [node, replicas, size, left, oldest, every, damaged] = columns;
    format!("{node:8} {replicas:>9} {size:>9} {left:>9} {oldest:>18} {every:>12} {damaged:>8}")
}

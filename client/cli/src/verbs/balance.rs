use std::time::{Duration, Instant};

use clap::ValueEnum;
use dfs_client::{Dfs, Options};
use dfs_proto::limits::BALANCE_POINTS_MAX;
use dfs_proto::msg::admin::{Balance, DatanodeStatus, Duty, Liveness, Status};
use serde_json::json;

use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::units;
use crate::verbs::status::{self, NodeNames, duty_name, liveness_name};

/// How full the datanodes are, and what is moved between them
#[derive(clap::Args, Debug)]
#[command(before_help = "\
Examples:
  dfs balance                    how full they are, what is moved, and what would be
  dfs balance --threshold 10     they may differ by 10 points of a hundred
  dfs balance off                move nothing, until `dfs balance on`
  dfs balance on --wait          stay until they are even")]
pub struct Args {
    /// Whether the namenodes move chunks from full datanodes to empty ones, as they do by themselves
    #[arg(value_enum)]
    switch: Option<Switch>,
    /// Points of a hundred by which one datanode may be fuller than another; 5 in a new cluster
    #[arg(long, value_name = "POINTS", value_parser = clap::value_parser!(u8).range(1..=i64::from(BALANCE_POINTS_MAX)))]
    threshold: Option<u8>,
    /// Stay until nothing is left to be moved, and show how far it is
    #[arg(long)]
    wait: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Switch {
    On,
    Off,
}

const POLL: Duration = Duration::from_millis(500);
/// For a line of progress where nobody watches.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The leader looks once a second, and heartbeats come once a second: what is even now was even for so long.
const SETTLED: Duration = Duration::from_secs(4);

pub async fn run(context: &Context, args: Args) -> Result {
    let config = context.config()?;
    let names = NodeNames::new(&config);
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let mut status = status::ask_leader(&dfs).await?;
    let before = status.balance.wanted;
    let wanted = Balance {
        on: args.switch.map_or(before.on, |switch| switch == Switch::On),
        points: args.threshold.unwrap_or(before.points),
    };
    if args.wait && !wanted.on {
        return Err(Failure::usage("nothing is moved while it is off").hint("dfs balance on --wait"));
    }
    if wanted != before {
        dfs.set_balance(wanted).await?;
        status = status::ask_leader(&dfs).await?;
    }
    if args.wait {
        status = wait(context, &dfs).await?;
    }
    show(context, &status, &names)
}

/// Asks until nothing has been left to do for a moment, or nothing can be done.
async fn wait(context: &Context, dfs: &Dfs) -> Result<Status> {
    let (mut told, mut even_since) = (None::<Instant>, None::<Instant>);
    loop {
        let status = match status::ask_leader(dfs).await {
            Ok(status) => status,
            Err(failure) if failure.exit == Exit::Temporary => {
                tokio::time::sleep(POLL).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let balance = &status.balance;
        if !balance.wanted.on {
            return Err(Failure::failed("somebody has turned it off").hint("dfs balance on --wait"));
        }
        let rest = balance.moving.is_empty()
            && status.chunks.over_replicated == 0
            && (balance.left_bytes == 0 || balance.stuck);
        if !rest {
            even_since = None;
        } else if even_since.get_or_insert_with(Instant::now).elapsed() >= SETTLED {
            return Ok(status);
        }
        let every = if context.out.stderr_is_terminal { Duration::from_secs(1) } else { TELL_EVERY };
        if told.is_none_or(|told| told.elapsed() >= every) {
            context.out.note(summary(&status));
            told = Some(Instant::now());
        }
        tokio::time::sleep(POLL).await;
    }
}

fn show(context: &Context, status: &Status, names: &NodeNames) -> Result {
    if context.out.json {
        let node = |node: &DatanodeStatus| {
            let (total, free) = room(node);
            json!({
                "node": node.node, "name": names.of(node.node), "state": liveness_name(node.liveness),
                "duty": duty_name(&node.duty), "total_bytes": total, "free_bytes": free,
                "full_percent": full(node),
            })
        };
        return context.out.object(json!({
            "balance": status::balance_object(status),
            "datanodes": status.datanodes.iter().map(node).collect::<Vec<_>>(),
        }));
    }
    context.out.line(row(["NODE", "STATE", "DUTY", "USED", "OF", "FULL"]))?;
    for node in &status.datanodes {
        let (total, free) = room(node);
        context.out.line(row([
            &names.of(node.node),
            liveness_name(node.liveness),
            duty_name(&node.duty),
            &units::human(total.saturating_sub(free)),
            &units::human(total),
            &full(node).map_or("-".to_owned(), |full| format!("{full:.1} %")),
        ]))?;
    }
    context.out.line(summary(status))
}

/// One sentence on how far it is.
fn summary(status: &Status) -> String {
    let balance = &status.balance;
    let points = balance.wanted.points;
    let wanted = match balance.wanted.on {
        true => format!("on: up to {points} points apart are left alone"),
        false => format!("off: `dfs balance on` moves what is more than {points} points apart"),
    };
    let left = match balance.left_bytes {
        0 if balance.moving.is_empty() => "nothing to move".to_owned(),
        0 => "nearly even".to_owned(),
        bytes if balance.stuck => {
            format!("{} too much, but the emptier nodes have a copy of it, or no room", units::human(bytes))
        }
        bytes => format!("about {} to move", units::human(bytes)),
    };
    let moving = match balance.moving.len() {
        0 => String::new(),
        count => format!(", {count} chunks on their way"),
    };
    let moved = match balance.moved_chunks {
        0 => String::new(),
        count => {
            format!(", {} chunks ({}) moved by this leader", units::count(count), units::human(balance.moved_bytes))
        }
    };
    format!("{wanted}\nnow {:.1} apart, {left}{moving}{moved}", apart(status))
}

/// Bytes in all and free on the working disks.
fn room(node: &DatanodeStatus) -> (u64, u64) {
    let good = || node.volumes.iter().filter(|volume| volume.failed.is_none() && !volume.draining);
    (good().map(|volume| volume.total_bytes).sum(), good().map(|volume| volume.free_bytes).sum())
}

/// Of a hundred; `None` without a disk.
fn full(node: &DatanodeStatus) -> Option<f64> {
    let (total, free) = room(node);
    (total > 0).then(|| total.saturating_sub(free) as f64 * 100.0 / total as f64)
}

/// Points of a hundred between the fullest and the emptiest node that is live and in service.
pub fn apart(status: &Status) -> f64 {
    let serving = status.datanodes.iter().filter(|node| node.liveness == Liveness::Live && node.duty == Duty::Serving);
    let shares: Vec<f64> = serving.filter_map(full).collect();
    let most = shares.iter().copied().reduce(f64::max).unwrap_or(0.0);
    most - shares.iter().copied().reduce(f64::min).unwrap_or(0.0)
}

fn row(columns: [&str; 6]) -> String {
    let [node, state, duty, used, total, full] = columns;
    format!("{node:8} {state:8} {duty:16} {used:>10} {total:>10} {full:>8}")
}

//! `dfs datanode list`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_client::{Dfs, Options};
use dfs_proto::msg::admin::{DatanodeStatus, Duty, Status};
use dfs_proto::{NodeId, Timestamp};
use serde_json::json;

use super::duty::eta;
use crate::context::Context;
use crate::error::Result;
use crate::units;
use crate::verbs::status::{self, NodeNames, datanode_object, duty_name, liveness_name};

pub async fn run(context: &Context) -> Result {
    let config = context.config()?;
    let names = NodeNames::new(&config);
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let status = status::ask_leader(&dfs).await?;
    if context.out.json {
        let nodes: Vec<_> = status.datanodes.iter().map(|node| datanode_object(node, &names)).collect();
        let removed: Vec<_> =
            status.removed.iter().map(|node| json!({"node": node, "name": names.of(*node)})).collect();
        return context.out.object(json!({"datanodes": nodes, "removed": removed}));
    }
    lines(&status, &names, now()).into_iter().try_for_each(|line| context.out.line(line))
}

fn lines(status: &Status, names: &NodeNames, now: Timestamp) -> Vec<String> {
    let mut lines = vec![row(["NODE", "STATE", "DUTY", "REPLICAS", "USED", "FREE", "CHECKED"])];
    for node in &status.datanodes {
        let good = || node.volumes.iter().filter(|volume| volume.failed.is_none());
        let total: u64 = good().map(|volume| volume.total_bytes).sum();
        let free: u64 = good().map(|volume| volume.free_bytes).sum();
        let checked = node.scrub.filter(|scrub| scrub.chunks > 0).map_or("-".to_owned(), |scrub| {
            units::duration(Duration::from_secs((now.secs.max(0) as u64).saturating_sub(scrub.oldest_s)))
        });
        lines.push(row([
            &names.of(node.node),
            liveness_name(node.liveness),
            duty_name(&node.duty),
            &units::count(node.replicas),
            &units::human(total.saturating_sub(free)),
            &units::human(free),
            &checked,
        ]));
    }
    lines.extend(status.datanodes.iter().filter_map(|node| drain_line(node, names, now)));
    if !status.removed.is_empty() {
        let removed: Vec<String> = status.removed.iter().map(|node: &NodeId| names.of(*node)).collect();
        lines.push(format!("removed: {}", removed.join(", ")));
    }
    lines
}

fn row(columns: [&str; 7]) -> String {
    let [node, state, duty, replicas, used, free, checked] = columns;
    format!("{node:8} {state:8} {duty:16} {replicas:>9} {used:>9} {free:>9}  {checked}").trim_end().to_owned()
}

/// How far a node is that is to leave, or until when it may be away.
pub fn drain_line(node: &DatanodeStatus, names: &NodeNames, now: Timestamp) -> Option<String> {
    let name = names.of(node.node);
    let (since, chunks, bytes) = match node.duty {
        Duty::Maintenance { until } => return Some(format!("{name}: may be away until {}", units::local_time(until))),
        Duty::Decommissioning { since, chunks, bytes } | Duty::Removing { since, chunks, bytes } => {
            (since, chunks, bytes)
        }
        Duty::Serving | Duty::Decommissioned { .. } | Duty::Removed { .. } => return None,
    };
    let left = node.drain?;
    let elapsed = Duration::from_millis(now.as_millis().saturating_sub(since.as_millis()).max(0) as u64);
    let rest = match eta(elapsed, bytes, &left) {
        Some(rest) => format!(", about {} left", units::duration(rest)),
        None => String::new(),
    };
    let open = if left.open > 0 { format!(", {} being written", left.open) } else { String::new() };
    Some(format!(
        "{name}: {} of {} chunks left, {}{open}{rest}",
        units::count(left.chunks),
        units::count(chunks.max(left.chunks)),
        units::human(left.bytes)
    ))
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

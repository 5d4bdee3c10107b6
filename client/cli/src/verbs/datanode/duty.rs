//! Another duty for a datanode: decommission, recommission, maintenance, remove.

use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};
use dfs_proto::NodeId;
use dfs_proto::msg::admin::{DatanodeStatus, Drain, Duty, DutyChange, DutyPlan, Status};
use serde_json::json;

use super::list;
use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::units;
use crate::verbs::status::{self, NodeNames, duty_name};

#[derive(clap::Args, Debug)]
pub struct Decommission {
    #[arg(value_name = "NODE")]
    node: String,
    /// Only say what would be moved, and what cannot be
    #[arg(long)]
    dry_run: bool,
    /// Stop it, and put the node back in service
    #[arg(long, conflicts_with = "dry_run")]
    cancel: bool,
    /// Stay until it is done, and show how far it is
    #[arg(long, conflicts_with_all = ["dry_run", "cancel"])]
    wait: bool,
}

#[derive(clap::Args, Debug)]
pub struct Maintenance {
    #[arg(value_name = "NODE")]
    node: String,
    /// 30m, 2h, 1day; at most 7days
    #[arg(long = "for", value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    time: Duration,
}

#[derive(clap::Args, Debug)]
pub struct Remove {
    #[arg(value_name = "NODE")]
    node: String,
    /// Only say what would be lost
    #[arg(long)]
    dry_run: bool,
}

/// How often progress is asked for.
const POLL: Duration = Duration::from_secs(1);
/// For a line of progress where nobody watches.
const TELL_EVERY: Duration = Duration::from_secs(10);

pub async fn decommission(context: &Context, args: Decommission) -> Result {
    let change = if args.cancel { DutyChange::Recommission } else { DutyChange::Decommission };
    let ask = Ask::new(context, &args.node).await?;
    let plan = ask.change(change, args.dry_run).await?;
    if !args.cancel && plan.stuck > 0 {
        ask.context.out.warning(format!(
            "{} chunks want more copies than there are nodes for without {}: they stay on it until there is another \
             node, or fewer copies are wanted (`dfs setrep`)",
            units::count(plan.stuck),
            ask.name
        ));
    }
    match args.wait {
        true => ask.wait().await,
        false => Ok(()),
    }
}

pub async fn recommission(context: &Context, node: &str) -> Result {
    Ask::new(context, node).await?.change(DutyChange::Recommission, false).await.map(drop)
}

pub async fn maintenance(context: &Context, args: Maintenance) -> Result {
    let for_ms = args.time.as_millis().min(u128::from(u64::MAX)) as u64;
    Ask::new(context, &args.node).await?.change(DutyChange::Maintenance { for_ms }, false).await.map(drop)
}

pub async fn remove(context: &Context, args: Remove) -> Result {
    let ask = Ask::new(context, &args.node).await?;
    let done = ask.change(DutyChange::Remove, args.dry_run).await;
    done.map(drop).map_err(|failure| {
        let hint = match failure.wire_kind() {
            Some(dfs_proto::ErrorKind::NotEmpty) => {
                format!("dfs datanode remove {} --dry-run names the files", ask.name)
            }
            Some(dfs_proto::ErrorKind::InvalidArgument) => format!("dfs datanode decommission {} --wait", ask.name),
            _ => return failure,
        };
        failure.hint(hint)
    })
}

/// A datanode to be asked about.
struct Ask<'a> {
    context: &'a Context,
    dfs: Dfs,
    names: NodeNames,
    node: NodeId,
    name: String,
}

impl<'a> Ask<'a> {
    async fn new(context: &'a Context, node: &str) -> Result<Ask<'a>> {
        let config = context.config()?;
        let names = NodeNames::new(&config);
        let node = names.datanode(node)?;
        let dfs = Dfs::connect(&config, Options::default()).await?;
        Ok(Ask { context, dfs, name: names.of(node), names, node })
    }

    async fn change(&self, change: DutyChange, dry_run: bool) -> Result<DutyPlan> {
        let plan = self.dfs.change_duty(self.node, change, dry_run).await?;
        let out = &self.context.out;
        if out.json {
            out.object(json!({
                "node": self.node, "name": self.name, "dry_run": dry_run,
                "before": duty_name(&plan.before), "after": duty_name(&plan.after),
                "chunks": plan.chunks, "size_bytes": plan.bytes, "open_chunks": plan.open, "room_bytes": plan.room_bytes,
                "stuck_chunks": plan.stuck, "lost_chunks": plan.lost, "lost_files": plan.lost_files,
                "one_copy_chunks": plan.one_copy,
            }))?;
        } else {
            for line in lines(&self.name, change, &plan, dry_run) {
                out.line(line)?;
            }
        }
        match (change, dry_run, plan.lost) {
            (DutyChange::Remove, true, 1..) => Err(Failure::silent(Exit::Failed)),
            _ => Ok(plan),
        }
    }

    /// Stays until nothing needs the node.
    async fn wait(&self) -> Result {
        let mut told = None::<Instant>;
        loop {
            let status = match status::ask(&self.dfs).await {
                Ok(status) => status,
                Err(failure) if failure.exit == Exit::Temporary => {
                    self.context.out.detail(failure.message());
                    tokio::time::sleep(POLL).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            // Somebody who does not lead knows nothing of datanodes.
            if status.leader == Some(status.from) {
                let Some(node) = status.datanodes.iter().find(|node| node.node == self.node) else { return Ok(()) };
                match node.duty {
                    Duty::Decommissioning { .. } => {}
                    Duty::Decommissioned { .. } => {
                        self.context.out.note(format!("{} is decommissioned", self.name));
                        return Ok(());
                    }
                    other => {
                        return Err(Failure::failed(format!("{} is {} instead", self.name, duty_name(&other)))
                            .cause("somebody else has changed its duty meanwhile"));
                    }
                }
                let every = if self.context.out.stderr_is_terminal { POLL } else { TELL_EVERY };
                if told.is_none_or(|told| told.elapsed() >= every) {
                    self.context.out.note(progress(node, &status, &self.names));
                    told = Some(Instant::now());
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// One line of how far a node is, with what its chunks wait for.
fn progress(node: &DatanodeStatus, status: &Status, names: &NodeNames) -> String {
    let line = list::drain_line(node, names, list::now());
    let waits = status.repair.waits.first().filter(|_| status.repair.copying.is_empty());
    let why = waits.map(|(reason, chunks)| format!("; {chunks} wait: {reason}")).unwrap_or_default();
    format!("{}{why}", line.unwrap_or_default())
}

fn lines(name: &str, change: DutyChange, plan: &DutyPlan, dry_run: bool) -> Vec<String> {
    let mut lines = match plan.before == plan.after {
        true => vec![format!("{name} is {} already", duty_name(&plan.after))],
        false => vec![format!("{name}: {} -> {}", duty_name(&plan.before), duty_name(&plan.after))],
    };
    let size = units::human(plan.bytes);
    let chunks = units::count(plan.chunks);
    match change {
        DutyChange::Decommission => {
            let room = units::human(plan.room_bytes);
            lines.push(format!("  {chunks} chunks ({size}) to other nodes, which have {room} free"));
            if plan.open > 0 {
                lines.push(format!("  {} of them are being written: their writers move on", plan.open));
            }
            if plan.bytes > plan.room_bytes {
                lines.push("  the other nodes have too little room".to_owned());
            }
            if dry_run && plan.stuck > 0 {
                lines.push(format!("  {} want more copies than there would be nodes", units::count(plan.stuck)));
            }
        }
        DutyChange::Remove => {
            lines.push(format!("  {chunks} chunks ({size}) are counted on it"));
            lines.push(match plan.lost {
                0 => "  nothing would be lost".to_owned(),
                lost => format!("  {} chunks would be LOST, no other node has a good copy:", units::count(lost)),
            });
            lines.extend(plan.lost_files.iter().map(|path| format!("    {path}")));
            if plan.one_copy > 0 {
                lines.push(format!("  {} would have one copy until repaired", units::count(plan.one_copy)));
            }
        }
        DutyChange::Maintenance { .. } => {
            if let Duty::Maintenance { until } = plan.after {
                lines.push(format!(
                    "  until {}; chunks with one copy left are repaired all the same",
                    units::local_time(until)
                ));
            }
        }
        DutyChange::Recommission => {}
    }
    if dry_run {
        lines.push("nothing was changed".to_owned());
    }
    lines
}

/// How long the rest takes at the rate so far; `None` while nothing has moved.
pub fn eta(elapsed: Duration, bytes_at_start: u64, left: &Drain) -> Option<Duration> {
    let done = bytes_at_start.saturating_sub(left.bytes);
    (done > 0).then(|| elapsed.mul_f64(left.bytes as f64 / done as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::Timestamp;

    #[test]
    fn the_rest_takes_as_long_as_the_rate_so_far_says() {
        let left = |bytes| Drain { chunks: 1, bytes, open: 0 };
        let minute = Duration::from_secs(60);
        assert_eq!(eta(minute, 400, &left(300)), Some(3 * minute));
        assert_eq!(eta(minute, 400, &left(0)), Some(Duration::ZERO));
        assert_eq!(eta(minute, 400, &left(400)), None);
        // Writers added to it meanwhile.
        assert_eq!(eta(minute, 400, &left(500)), None);
    }

    #[test]
    fn a_plan_says_what_is_moved_and_what_is_lost() {
        let plan = DutyPlan {
            before: Duty::Serving,
            after: Duty::Removing { since: Timestamp::default(), chunks: 3, bytes: 300 },
            chunks: 3,
            bytes: 300,
            open: 1,
            room_bytes: 1 << 30,
            stuck: 2,
            lost: 1,
            lost_files: vec!["/precious".into()],
            one_copy: 0,
        };
        let text = lines("dn1", DutyChange::Remove, &plan, true).join("\n");
        assert!(text.contains("1 chunks would be LOST") && text.contains("/precious"), "{text}");
        assert!(text.ends_with("nothing was changed"));
        let text = lines("dn1", DutyChange::Decommission, &plan, true).join("\n");
        assert!(text.contains("3 chunks (300 B) to other nodes") && text.contains("2 want more copies"), "{text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
    }
}

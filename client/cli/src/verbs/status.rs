mod health;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_client::{ClusterConfig, Dfs, Options};
use dfs_proto::msg::admin::{DatanodeStatus, Duty, Liveness, Status};
use dfs_proto::msg::group::GroupStatus;
use dfs_proto::{NodeId, Timestamp};
use serde_json::{Value, json};

use self::health::{Health, Word};
pub use self::health::{Settling, left_to_do};
use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::output::Tone;
use crate::units;
use crate::verbs::balance;
use crate::verbs::namenode::group_object;

/// Health of the cluster, and what to do about it
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs status\n  dfs status --watch\n  dfs status --check || page-somebody")]
pub struct Args {
    /// Again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Exit code 1 unless it is HEALTH_OK
    #[arg(long)]
    check: bool,
}

/// After so long the answer is what is known, with exit code 5.
const DEADLINE: Duration = Duration::from_secs(5);

pub async fn run(context: &Context, args: Args) -> Result {
    let config = context.config()?;
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let names = NodeNames::new(&config).with_starts(&context.global.cluster);
    loop {
        let done = match ask(&dfs).await {
            Ok(status) => {
                // Members that the cluster file does not name yet have names all the same.
                let group =
                    tokio::time::timeout(DEADLINE, dfs.group_members()).await.ok().and_then(std::result::Result::ok);
                let names = names.clone().with_members(group.as_ref());
                print(context, &args, &names, &status, group.as_ref())
            }
            Err(failure) => Err(unreachable(&config, failure)),
        };
        if !args.watch {
            return done;
        }
        match done {
            Err(failure) if failure.exit == Exit::Temporary => context.out.failure(&failure),
            done => done?,
        }
        context.out.flush()?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The status, or a failure when the deadline of 5 s passes.
pub async fn ask(dfs: &Dfs) -> Result<Status> {
    match tokio::time::timeout(DEADLINE, dfs.status_any()).await {
        Ok(answer) => answer.map_err(Failure::from),
        Err(_) => Err(Failure::temporary("no namenode answered within 5 s")),
    }
}

/// As `ask`, and fails if the answer is not the leader's: no other namenode knows the datanodes.
pub async fn ask_leader(dfs: &Dfs) -> Result<Status> {
    let status = ask(dfs).await?;
    if status.leader != Some(status.from) {
        return Err(
            Failure::temporary("the leader does not answer, and only it knows the datanodes").hint("dfs status")
        );
    }
    Ok(status)
}

fn unreachable(config: &ClusterConfig, failure: Failure) -> Failure {
    if failure.exit != Exit::Temporary {
        return failure;
    }
    let tried: Vec<_> = config.namenodes.iter().map(|node| format!("{} at {}", node.name, node.addr)).collect();
    Failure::temporary("no namenode answers")
        .cause(failure.message())
        .cause(format!("tried {}", tried.join(", ")))
        .hint("`dfs up` starts what is not running of a local cluster")
}

fn print(context: &Context, args: &Args, names: &NodeNames, status: &Status, group: Option<&GroupStatus>) -> Result {
    let health = Health::of(status, names).with_group(group);
    if context.out.json {
        let mut object = object(status, &health, names);
        object["group"] = group.map_or(Value::Null, group_object);
        context.out.object(object)?;
    } else {
        if args.watch && context.out.stdout_is_terminal {
            // Home, and clear what is below: the block stays in place.
            context.out.bytes(b"\x1b[H\x1b[J")?;
        }
        for line in lines(context, status, &health, names) {
            context.out.line(line)?;
        }
    }
    if args.check && !args.watch && health.word() != Word::Ok {
        return Err(Failure::silent(Exit::Failed));
    }
    Ok(())
}

fn lines(context: &Context, status: &Status, health: &Health, names: &NodeNames) -> Vec<String> {
    let cluster = status.cluster.map_or("not formed".into(), |cluster| cluster.to_string()[..8].to_owned());
    let tone = match health.word() {
        Word::Ok => Tone::Good,
        Word::Warn => Tone::Warn,
        Word::Err => Tone::Bad,
    };
    let word = context.out.paint(tone, health.word().text());
    let reasons = match health.reasons.len() {
        0 => String::new(),
        1 => " (1 reason)".into(),
        n => format!(" ({n} reasons)"),
    };
    let reachable = status.namenodes.iter().filter(|node| node.reachable).count();
    let leader = match status.leader {
        Some(leader) => format!("leader {}, term {}", names.of(leader), status.term),
        None => format!("no leader, as {} sees it, term {}", names.of(status.from), status.term),
    };
    let row = |title: &str, left: String, right: String| format!("{title:10} {left:26} {right}").trim_end().to_owned();
    let mut lines = vec![
        row("cluster", cluster, format!("{word}{reasons}")),
        row("namenodes", format!("{reachable}/{} answer", status.namenodes.len()), leader),
    ];
    // Only the leader knows the rest.
    if status.leader == Some(status.from) {
        lines.extend(leader_rows(status, names, row));
    }
    for reason in &health.reasons {
        let (tone, level) = if reason.word == Word::Err { (Tone::Bad, "ERR ") } else { (Tone::Warn, "WARN") };
        lines.push(
            format!("  {} {:56} {}", context.out.paint(tone, level), reason.text, reason.command).trim_end().to_owned(),
        );
    }
    lines
}

fn leader_rows(status: &Status, names: &NodeNames, row: impl Fn(&str, String, String) -> String) -> Vec<String> {
    let live = status.datanodes.iter().filter(|node| node.liveness == Liveness::Live).count();
    let others: Vec<_> = status
        .datanodes
        .iter()
        .filter(|node| node.liveness != Liveness::Live)
        .map(|node| names.silence(node))
        .collect();
    let (total, free) = capacity(status);
    let percent = (total - free.min(total)) * 100 / total.max(1);
    let counts = &status.counts;
    let chunks = &status.chunks;
    let repair = &status.repair;
    vec![
        row("datanodes", format!("{live}/{} live", status.datanodes.len()), others.join(", ")),
        row(
            "capacity",
            format!("{} of {} ({percent} %)", units::human(total - free.min(total)), units::human(total)),
            format!(
                "{} in {} files, {} directories",
                units::human(counts.mapped_bytes),
                units::count(counts.files),
                units::count(counts.directories)
            ),
        ),
        row(
            "chunks",
            format!(
                "{} of {} healthy",
                units::count(chunks.healthy),
                units::count(chunks.total - chunks.open.min(chunks.total))
            ),
            format!("{} under-replicated, {} missing, {} open", chunks.under_replicated, chunks.missing, chunks.open),
        ),
        row(
            "repair",
            format!("{} copying, {} queued", repair.copying.len(), repair.queued),
            format!(
                "{} chunks, {} copied by this leader",
                units::count(repair.copied_chunks),
                units::human(repair.copied_bytes)
            ),
        ),
        row(
            "dead bytes",
            format!("{} in chunks", units::human(chunks.dead_bytes)),
            format!(
                "{} compactions, {} freed by this leader",
                units::count(status.compaction.under_way),
                units::human(status.compaction.freed_bytes)
            ),
        ),
        row(
            "balance",
            format!("{:.1} points apart", balance::apart(status)),
            format!(
                "{} moves, {} moved by this leader",
                units::count(status.balance.moving.len() as u64),
                units::human(status.balance.moved_bytes)
            ),
        ),
        row(
            "scrub",
            scrub_summary(status),
            match (repair.damaged_found, repair.damaged) {
                (0, 0) => "no damage found".to_owned(),
                (found, now) => format!("{found} replicas found damaged, {} healed, {now} left", repair.healed),
            },
        ),
        row(
            "clients",
            format!("{} sessions", counts.sessions),
            format!("{} copies, {} at least", status.default_replication, status.min_copies),
        ),
    ]
}

/// How far a scrub is that was asked for, or how old the oldest verification is.
fn scrub_summary(status: &Status) -> String {
    let scrubs = || status.datanodes.iter().filter_map(|node| node.scrub).filter(|scrub| scrub.chunks > 0);
    let left: u64 = scrubs().filter(|scrub| scrub.asked_s > 0).map(|scrub| scrub.left_chunks).sum();
    let oldest_s = scrubs().map(|scrub| scrub.oldest_s).min();
    match (left, oldest_s) {
        (1.., _) => format!("{} replicas to verify", units::count(left)),
        (0, Some(oldest_s)) => format!("oldest {} ago", units::duration(Duration::from_secs(ago_s(oldest_s)))),
        (0, None) => "nothing to verify".to_owned(),
    }
}

/// Seconds from then, in seconds since 1970, until now.
pub fn ago_s(then_s: u64) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_secs().saturating_sub(then_s)
}

/// Bytes in all and free on the live datanodes' working disks.
fn capacity(status: &Status) -> (u64, u64) {
    let live = status.datanodes.iter().filter(|node| node.liveness == Liveness::Live);
    let volumes = live.flat_map(|node| &node.volumes).filter(|volume| volume.failed.is_none());
    volumes.fold((0, 0), |(total, free), volume| (total + volume.total_bytes, free + volume.free_bytes))
}

fn object(status: &Status, health: &Health, names: &NodeNames) -> Value {
    let namenodes: Vec<_> = status
        .namenodes
        .iter()
        .map(|node| {
            json!({
                "node": node.node, "name": names.of(node.node), "addr": node.addr, "reachable": node.reachable,
                "leader": status.leader == Some(node.node), "matched_index": node.matched_index,
                "last_log_index": node.last_log_index, "applied_index": node.applied_index, "snapshot_index": node.snapshot_index,
            })
        })
        .collect();
    let datanodes: Vec<_> = status.datanodes.iter().map(|node| datanode_object(node, names)).collect();
    let (total, free) = capacity(status);
    json!({
        "cluster": status.cluster.map(|cluster| cluster.to_string()),
        "health": health.word().text(),
        "reasons": health.reasons.iter().map(|reason| json!({
            "level": reason.word.text(), "text": reason.text, "command": reason.command,
        })).collect::<Vec<_>>(),
        "from": status.from,
        "leader": status.leader,
        "leader_name": status.leader.map(|leader| names.of(leader)),
        "term": status.term,
        "default_replication": status.default_replication,
        "min_copies": status.min_copies,
        "total_bytes": total,
        "free_bytes": free,
        "namenodes": namenodes,
        "datanodes": datanodes,
        "removed_datanodes": status.removed,
        "counts": status.counts,
        "chunks": status.chunks,
        "repair": repair_object(status, names),
        "compaction": status.compaction,
        "balance": balance_object(status),
    })
}

/// A datanode as `status` and `datanode list` show it in JSON.
pub fn datanode_object(node: &DatanodeStatus, names: &NodeNames) -> Value {
    let scrub = node.scrub.map(|scrub| {
        let at = |secs: u64| (secs > 0).then(|| units::utc_time(Timestamp { secs: secs as i64, nanos: 0 }));
        json!({
            "period_s": scrub.period_s, "chunks": scrub.chunks, "size_bytes": scrub.bytes,
            "left_chunks": scrub.left_chunks, "left_bytes": scrub.left_bytes, "asked": at(scrub.asked_s),
            "oldest_verified": at(scrub.oldest_s), "damaged_found": scrub.damaged,
        })
    });
    json!({
        "node": node.node, "name": names.of(node.node), "addr": node.addr, "state": liveness_name(node.liveness),
        "duty": duty_name(&node.duty),
        "maintenance_until": match node.duty {
            Duty::Maintenance { until } => Some(units::utc_time(until)),
            _ => None,
        },
        "drain": node.drain.map(|left| json!({
            "left_chunks": left.chunks, "left_bytes": left.bytes, "open_chunks": left.open,
        })),
        "silent_ms": node.silent_ms, "replicas": node.replicas, "digest_agrees": node.digest_agrees,
        "skew_ms": node.skew_ms, "scrub": scrub, "slow": node.slow,
        "pace": { "syncs": node.pace.syncs, "sync_ms": node.pace.sync_ms },
        "volumes": node.volumes.iter().map(|volume| json!({
            "path": volume.path, "total_bytes": volume.total_bytes, "free_bytes": volume.free_bytes,
            "chunks": volume.chunks, "failed": volume.failed, "draining": volume.draining,
        })).collect::<Vec<_>>(),
    })
}

pub fn balance_object(status: &Status) -> Value {
    let balance = &status.balance;
    json!({
        "on": balance.wanted.on, "threshold_points": balance.wanted.points, "apart_points": balance::apart(status),
        "left_bytes": balance.left_bytes, "moving": balance.moving.len(), "stuck": balance.stuck,
        "moved_chunks": balance.moved_chunks, "moved_bytes": balance.moved_bytes,
    })
}

pub fn duty_name(duty: &Duty) -> &'static str {
    match duty {
        Duty::Serving => "serving",
        Duty::Maintenance { .. } => "maintenance",
        Duty::Decommissioning { .. } => "decommissioning",
        Duty::Decommissioned { .. } => "decommissioned",
        Duty::Removing { .. } => "removing",
        Duty::Removed { .. } => "removed",
    }
}

/// What is being copied and what waits, as `status` and `watch` show it in JSON.
pub fn repair_object(status: &Status, names: &NodeNames) -> Value {
    let repair = &status.repair;
    json!({
        "queued": repair.queued,
        "copied_chunks": repair.copied_chunks,
        "copied_bytes": repair.copied_bytes,
        "unattended": repair.unattended,
        "damaged": repair.damaged,
        "damaged_found": repair.damaged_found,
        "healed": repair.healed,
        "copying": repair.copying.iter().map(|copy| json!({
            "chunk": copy.chunk, "target": copy.target, "target_name": names.of(copy.target),
            "len_bytes": copy.len, "since_ms": copy.since_ms,
        })).collect::<Vec<_>>(),
        "waits": repair.waits.iter().map(|(reason, chunks)| json!({"reason": reason, "chunks": chunks})).collect::<Vec<_>>(),
    })
}

pub fn liveness_name(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Live => "live",
        Liveness::Suspect => "suspect",
        Liveness::Dead => "dead",
        Liveness::Leaving => "leaving",
    }
}

/// What people call the nodes, from the cluster file.
#[derive(Clone)]
pub struct NodeNames {
    names: BTreeMap<NodeId, String>,
    /// Where `dfs up` left the scripts that start nodes.
    starts: Option<PathBuf>,
}

impl NodeNames {
    pub fn new(config: &ClusterConfig) -> NodeNames {
        let nodes = config.namenodes.iter().chain(&config.datanodes);
        NodeNames { names: nodes.map(|node| (node.id, node.name.clone())).collect(), starts: None }
    }

    /// Also knows how to start a node, if the cluster file is one of `dfs up`.
    pub fn with_starts(mut self, cluster_file: &std::path::Path) -> NodeNames {
        self.starts = cluster_file.parent().map(PathBuf::from);
        self
    }

    /// Also knows what the namenodes call themselves.
    pub fn with_members(mut self, group: Option<&GroupStatus>) -> NodeNames {
        let members = group.iter().flat_map(|group| &group.members).filter(|member| !member.name.is_empty());
        self.names.extend(members.map(|member| (member.node, member.name.clone())));
        self
    }

    pub fn of(&self, node: NodeId) -> String {
        self.names.get(&node).cloned().unwrap_or_else(|| format!("node {node}"))
    }

    /// The datanode that somebody named, by its name or its number.
    pub fn datanode(&self, typed: &str) -> Result<NodeId> {
        let named = self.names.iter().find(|(_, name)| *name == typed).map(|(node, _)| *node);
        match named.or_else(|| typed.parse().ok().map(NodeId)) {
            Some(node) => Ok(node),
            None => Err(Failure::of(dfs_proto::ErrorKind::NotFound, format!("no datanode is called `{typed}`"))
                .hint("`dfs datanode list` names them; a number is a name too")),
        }
    }

    /// The command that starts a node again, where there is one.
    fn start(&self, node: NodeId) -> String {
        let script = self.starts.as_ref().map(|dir| dir.join(format!("{}.start", self.of(node))));
        match script.filter(|script| script.exists()) {
            Some(script) => script.display().to_string(),
            None => format!("start {} again", self.of(node)),
        }
    }

    fn silence(&self, node: &DatanodeStatus) -> String {
        let name = self.of(node.node);
        match node.liveness {
            Liveness::Leaving => format!("{name} stopped in order"),
            _ => format!("{name} silent for {}", units::duration(Duration::from_millis(node.silent_ms))),
        }
    }
}

use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};
use dfs_proto::NodeId;
use dfs_proto::msg::admin::{ChunkHealth, Liveness, Status};
use serde_json::json;

use crate::context::Context;
use crate::error::{Exit, Result};
use crate::output::Tone;
use crate::units;
use crate::verbs::status::{NodeNames, Settling, ask, left_to_do, repair_object};

/// Watch the cluster repair itself, a line a second
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs watch\n  dfs watch --until-healthy\n  dfs --json watch | jq .chunks.under_replicated"
)]
pub struct Args {
    /// End when nothing is left to repair
    #[arg(long)]
    until_healthy: bool,
}

const INTERVAL: Duration = Duration::from_secs(1);
const BAR_WIDTH: u64 = 24;

pub async fn run(context: &Context, args: Args) -> Result {
    let config = context.config()?;
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let names = NodeNames::new(&config);
    let start = Instant::now();
    let mut settling = Settling::new(start);
    let mut pace = Pace::default();
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        ticks.tick().await;
        let status = match ask(&dfs).await {
            Ok(status) => status,
            Err(failure) if failure.exit == Exit::Temporary => {
                context.out.failure(&failure);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let left = left_to_do(&status, &names, settling.observe(&status, Instant::now()));
        let rate = pace.observe(&status, Instant::now());
        if context.out.json {
            context.out.event(json!({
                "elapsed_ms": start.elapsed().as_millis() as u64,
                "healthy": left.is_empty(),
                "waiting_for": left,
                "leader": status.leader,
                "live_datanodes": live(&status),
                "chunks": status.chunks,
                "repair": repair_object(&status, &names),
                "rate_bytes_per_s": rate,
            }))?;
        } else {
            context.out.line(line(context, &status, &left, rate, start.elapsed()))?;
            context.out.flush()?;
        }
        if args.until_healthy && left.is_empty() {
            return Ok(());
        }
    }
}

fn line(context: &Context, status: &Status, left: &[String], rate: u64, elapsed: Duration) -> String {
    let chunks = &status.chunks;
    let sealed = chunks.total - chunks.open.min(chunks.total);
    let tone = match (chunks.missing, chunks.under_replicated) {
        (0, 0) => Tone::Good,
        (0, _) => Tone::Warn,
        _ => Tone::Bad,
    };
    let bar = if context.out.stdout_is_terminal {
        format!("{} ", context.out.paint(tone, &bar(chunks)))
    } else {
        String::new()
    };
    let mut line = format!(
        "{:>6.1} s  {bar}{}/{sealed} chunks whole  {} nodes  {} copying  {} queued",
        elapsed.as_secs_f64(),
        chunks.healthy + chunks.over_replicated.min(sealed.saturating_sub(chunks.healthy)),
        live(status),
        status.repair.copying.len(),
        status.repair.queued,
    );
    if chunks.missing > 0 {
        line.push_str(&format!("  {} missing", chunks.missing));
    }
    if rate > 0 {
        line.push_str(&format!("  {}/s", units::human(rate)));
    }
    if let Some((reason, waiting)) = status.repair.waits.first() {
        line.push_str(&format!("  {waiting} wait: {reason}"));
    } else if let Some(first) = left.first().filter(|_| elapsed >= INTERVAL * 2) {
        line.push_str(&format!("  waiting for {first}"));
    }
    line
}

/// Full copies as `#`, those that lack some as `-`.
fn bar(chunks: &ChunkHealth) -> String {
    let sealed = (chunks.total - chunks.open.min(chunks.total)).max(1);
    let short = chunks.under_replicated + chunks.missing;
    // One chunk short must show, however many there are.
    let gap = if short == 0 { 0 } else { (short * BAR_WIDTH / sealed).clamp(1, BAR_WIDTH) };
    format!("[{}{}]", "#".repeat((BAR_WIDTH - gap) as usize), "-".repeat(gap as usize))
}

fn live(status: &Status) -> usize {
    status.datanodes.iter().filter(|node| node.liveness == Liveness::Live).count()
}

/// Bytes copied per second, from one look to the next at the same leader.
#[derive(Default)]
struct Pace {
    last: Option<(NodeId, u64, Instant)>,
}

impl Pace {
    fn observe(&mut self, status: &Status, now: Instant) -> u64 {
        let copied = status.repair.copied_bytes;
        let before = self.last.replace((status.from, copied, now));
        match before {
            Some((from, bytes, at)) if from == status.from && now > at => {
                (copied.saturating_sub(bytes) as f64 / (now - at).as_secs_f64()) as u64
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_short_chunk_shows_in_the_bar() {
        let chunks = ChunkHealth { total: 10_000, under_replicated: 1, ..ChunkHealth::default() };
        assert!(bar(&chunks).ends_with("#-]"));
        assert_eq!(
            bar(&ChunkHealth { total: 4, under_replicated: 4, ..ChunkHealth::default() }),
            format!("[{}]", "-".repeat(24))
        );
        assert_eq!(bar(&ChunkHealth::default()), format!("[{}]", "#".repeat(24)));
    }
}

use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};
use serde_json::json;

use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::units;
use crate::verbs::status::{NodeNames, Settling, ask, left_to_do};

/// Wait until every chunk has its copies and all nodes agree
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs wait-healthy --timeout 60 && echo 'safe to stop the next node'")]
pub struct Args {
    /// Seconds; exit code 5 if it takes longer
    #[arg(long, value_name = "S", default_value_t = 60)]
    timeout: u64,
}

const POLL: Duration = Duration::from_millis(200);

pub async fn run(context: &Context, args: Args) -> Result {
    let config = context.config()?;
    let dfs = Dfs::connect(&config, Options::default()).await?;
    let names = NodeNames::new(&config);
    let start = Instant::now();
    let deadline = Duration::from_secs(args.timeout);
    let mut settling = Settling::new(start);
    let mut told = Vec::new();
    let mut told_at = Instant::now();
    loop {
        let left = match ask(&dfs).await {
            Ok(status) => left_to_do(&status, &names, settling.observe(&status, Instant::now())),
            Err(failure) if failure.exit == Exit::Temporary => vec![failure.message().to_owned()],
            Err(failure) => return Err(failure),
        };
        let waited = start.elapsed();
        if left.is_empty() {
            context.out.note(format!("healthy after {}", units::duration(waited)));
            return answer(context, true, waited, &left);
        }
        if waited >= deadline {
            answer(context, false, waited, &left)?;
            let failure = Failure::temporary(format!("not healthy after {} s", args.timeout));
            let failure = left.iter().fold(failure, |failure, what| failure.cause(format!("waiting for {what}")));
            return Err(failure.hint("dfs status"));
        }
        // Everybody has to be heard once: nothing to tell about in the first second.
        if left != told && told_at.elapsed() > Duration::from_secs(1) {
            context.out.note(format!("waiting for {}", left.join("; ")));
            told = left;
            told_at = Instant::now();
        }
        tokio::time::sleep(POLL.min(deadline.saturating_sub(waited))).await;
    }
}

fn answer(context: &Context, healthy: bool, waited: Duration, left: &[String]) -> Result {
    if !context.out.json {
        return Ok(());
    }
    context.out.object(json!({"healthy": healthy, "waited_ms": waited.as_millis() as u64, "waiting_for": left}))
}

use std::path::PathBuf;

use dfs_client::{Dfs, Options};
use serde_json::json;

use crate::context::Context;
use crate::error::Result;
use crate::role;

/// Serve as a namenode, or ask about the namenodes
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs namenode --config /etc/dfs/namenode.toml\n  dfs namenode leader\n  dfs namenode snapshot"
)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// Serve in the foreground until SIGTERM or Ctrl-C
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    question: Option<Question>,
}

#[derive(clap::Subcommand, Debug)]
enum Question {
    /// Print the name and the number of the namenode that leads
    Leader,
    /// Make the leader write a snapshot of its state and purge its log
    Snapshot,
}

impl Args {
    pub fn is_role(&self) -> bool {
        self.question.is_none()
    }
}

pub async fn run(context: &Context, args: Args) -> Result {
    match (args.question, args.config) {
        (Some(question), _) => ask(context, question).await,
        (None, Some(config)) => serve(config).await,
        // Clap requires one of the two.
        (None, None) => Ok(()),
    }
}

async fn serve(path: PathBuf) -> Result {
    let config = dfs_namenode::Config::load(&path).map_err(|error| role::bad_config(&path, &error))?;
    let name = config.name.clone();
    let stop = role::stop_signal()?;
    dfs_namenode::run(config, stop).await.map_err(|error| role::failed(&format!("namenode {name} ended"), &error))
}

async fn ask(context: &Context, question: Question) -> Result {
    let dfs = Dfs::connect(&context.config()?, Options::default()).await?;
    match question {
        Question::Leader => {
            let leader = dfs.leader().await?;
            if context.out.json {
                return context.out.object(json!({"name": leader.name, "node": leader.id, "addr": leader.addr}));
            }
            context.out.line(format!("{} {}", leader.name, leader.id))
        }
        Question::Snapshot => {
            dfs.snapshot().await?;
            context.out.note("snapshot taken");
            Ok(())
        }
    }
}

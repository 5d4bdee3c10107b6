mod group;
mod hash;

use std::path::PathBuf;

use dfs_client::{Dfs, Options};
use serde_json::json;

use crate::context::Context;
use crate::error::Result;
use crate::role;

pub use group::object as group_object;

/// Serve as a namenode, or ask about the namenodes
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs namenode --config /etc/dfs/namenode.toml\n  dfs namenode list\n  dfs namenode add\n  dfs namenode replace nn2\n  dfs namenode transfer-leader nn3"
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
    /// Show the namenodes: who votes, who leads, who answers
    List,
    /// Add a namenode while the others serve
    #[command(before_help = "Examples:\n  dfs namenode add\n  dfs namenode add nn4 10.0.0.4:8020 10.0.0.4:8030 --id 4")]
    Add {
        /// Default: the next one of the local cluster
        name: Option<String>,
        #[command(flatten)]
        newcomer: group::Newcomer,
    },
    /// Remove a namenode for good; its number is not used again
    Remove {
        /// Name or number
        name: String,
    },
    /// Put a new namenode in the place of one that is lost
    #[command(
        before_help = "Examples:\n  dfs namenode replace nn2\n  dfs namenode replace nn2 nn4 10.0.0.4:8020 10.0.0.4:8030 --id 4"
    )]
    Replace {
        /// Name or number
        old: String,
        /// Default: the next one of the local cluster
        new: Option<String>,
        #[command(flatten)]
        newcomer: group::Newcomer,
    },
    /// Show the hash of each namenode's state at one log entry; exit code 6 if they differ
    #[command(before_help = "Examples:\n  dfs namenode hash\n  dfs --json namenode hash --index 4711")]
    Hash {
        /// At this entry, if it is among the last that were checked; default: have one checked now
        #[arg(long, value_name = "N")]
        index: Option<u64>,
    },
    /// Have another namenode lead; without a name the one that is furthest
    TransferLeader {
        /// Name or number
        to: Option<String>,
    },
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
    match question {
        Question::Leader => leader(context).await,
        Question::Snapshot => {
            let dfs = Dfs::connect(&context.config()?, Options::default()).await?;
            dfs.snapshot().await?;
            context.out.note("snapshot taken");
            Ok(())
        }
        Question::List => group::list(context).await,
        Question::Add { name, newcomer } => group::add(context, name, newcomer).await,
        Question::Remove { name } => group::remove(context, &name).await,
        Question::Replace { old, new, newcomer } => group::replace(context, &old, new, newcomer).await,
        Question::Hash { index } => hash::run(context, index).await,
        Question::TransferLeader { to } => group::transfer_leader(context, to.as_deref()).await,
    }
}

async fn leader(context: &Context) -> Result {
    let dfs = Dfs::connect(&context.config()?, Options::default()).await?;
    let leader = dfs.leader().await?;
    if context.out.json {
        return context.out.object(json!({"name": leader.name, "node": leader.id, "addr": leader.addr}));
    }
    context.out.line(format!("{} {}", leader.name, leader.id))
}

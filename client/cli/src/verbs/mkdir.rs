use dfs_client::MakeOptions;
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{ErrorKind, FileKind};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::users;

/// Make directories
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs mkdir /docs\n  dfs mkdir -p /docs/2026/11")]
pub struct Args {
    /// Also those above that are missing; no error if it exists
    #[arg(short = 'p', long)]
    parents: bool,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = if args.parents { make_all(remote, path).await } else { make(remote, path, false).await };
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

/// Makes the directory and all above it that are missing.
pub async fn make_all(remote: &Remote, path: &DfsPath) -> Result {
    let mut at = DfsPath::root();
    for name in path.names() {
        at = at.join(name);
        make(remote, &at, true).await?;
    }
    Ok(())
}

async fn make(remote: &Remote, path: &DfsPath, may_exist: bool) -> Result {
    let (parent, name) = remote.place(path).await?;
    let mode = 0o777 & !users::umask();
    let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
    match remote.dfs.make(&remote.caller, parent, &name, NewNode::Directory, mode, options).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind == ErrorKind::Exists && may_exist => match remote.stat(path).await?.kind {
            FileKind::Directory => Ok(()),
            _ => Err(Failure::of(ErrorKind::NotADirectory, "exists and is not a directory").at(path)),
        },
        Err(error) => Err(Failure::from(error).at(path)),
    }
}

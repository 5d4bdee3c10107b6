use dfs_client::MakeOptions;
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{SetAttr, SetTime};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::users;

/// Make empty files, or set the times of existing ones to now
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs touch /done\n  dfs touch -c /maybe")]
pub struct Args {
    /// Make nothing
    #[arg(short = 'c', long)]
    no_create: bool,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = touch(&args, remote, path).await;
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn touch(args: &Args, remote: &Remote, path: &DfsPath) -> Result {
    if let Some(attr) = remote.find(path).await? {
        let now = SetAttr { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..SetAttr::default() };
        let set = remote.dfs.setattr(&remote.caller, attr.inode, now, None).await;
        return set.map(|_| ()).map_err(|error| Failure::from(error).at(path));
    }
    if args.no_create {
        return Ok(());
    }
    let (parent, name) = remote.place(path).await?;
    let mode = 0o666 & !users::umask();
    let made = remote.dfs.make(&remote.caller, parent, &name, NewNode::File, mode, MakeOptions::default()).await;
    made.map(|_| ()).map_err(|error| Failure::from(error).at(path))
}

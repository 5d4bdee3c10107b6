use dfs_proto::{ErrorKind, FileKind, SetAttr};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::units::parse_size;

/// Set the size of files: what is cut is gone, what is added reads as zeros
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs truncate -s 0 /logs/today\n  dfs truncate -s 10G /sparse")]
pub struct Args {
    /// K, M, G, T are understood
    #[arg(short = 's', long, value_parser = parse_size)]
    size: u64,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = truncate(&args, remote, path).await;
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn truncate(args: &Args, remote: &Remote, path: &DfsPath) -> Result {
    let attr = remote.stat(path).await?;
    if attr.kind != FileKind::File {
        return Err(Failure::of(ErrorKind::InvalidArgument, "not a regular file").at(path));
    }
    let size = SetAttr { size_bytes: Some(args.size), ..SetAttr::default() };
    let set = remote.dfs.setattr(&remote.caller, attr.inode, size, None).await;
    set.map(|_| ()).map_err(|error| Failure::from(error).at(path))
}

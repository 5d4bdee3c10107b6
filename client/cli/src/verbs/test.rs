use dfs_proto::FileKind;

use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::path::DfsPath;

/// Answer a question about a path by the exit code: 0 yes, 1 no
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs test -e /done && echo done\n  dfs test -d /docs || dfs mkdir /docs")]
#[command(group = clap::ArgGroup::new("question").required(true))]
pub struct Args {
    /// It exists
    #[arg(short = 'e', group = "question")]
    exists: bool,
    /// It is a directory
    #[arg(short = 'd', group = "question")]
    directory: bool,
    /// It is a regular file
    #[arg(short = 'f', group = "question")]
    file: bool,
    /// It is not empty
    #[arg(short = 's', group = "question")]
    size: bool,
    /// It may be written
    #[arg(short = 'w', group = "question")]
    writable: bool,
    /// It may be read
    #[arg(short = 'r', group = "question")]
    readable: bool,
    /// It is empty
    #[arg(short = 'z', group = "question")]
    zero: bool,
    path: DfsPath,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let yes = context
        .with_remote(async |remote| {
            let Some(attr) = remote.find(&args.path).await? else { return Ok(false) };
            if !(args.writable || args.readable) {
                return Ok(args.exists
                    || args.directory && attr.kind == FileKind::Directory
                    || args.file && attr.kind == FileKind::File
                    || args.size && attr.size_bytes > 0
                    || args.zero && attr.size_bytes == 0);
            }
            let mask = if args.writable { 2 } else { 4 };
            let access = remote.dfs.access(&remote.caller, attr.inode, mask).await.map_err(Failure::from);
            match access {
                Ok(_) => Ok(true),
                Err(failure) if failure.exit == Exit::Permission => Ok(false),
                Err(failure) => Err(failure),
            }
        })
        .await?;
    if yes { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

use dfs_proto::msg::meta::RenameMode;
use dfs_proto::{ErrorKind, FileKind};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;

/// Rename or move files and directories
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs mv /a.txt /b.txt\n  dfs mv /a /b /directory\n  dfs mv -n /a.txt /b.txt")]
pub struct Args {
    /// Never replace an existing file
    #[arg(short = 'n', long)]
    no_clobber: bool,
    /// SOURCE... DESTINATION
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DESTINATION"])]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let Some((destination, sources)) = args.paths.split_last() else {
        return Err(Failure::usage("a source and a destination are needed"));
    };
    context
        .with_remote(async |remote| {
            let into = remote.find(destination).await?.is_some_and(|attr| attr.kind == FileKind::Directory);
            if sources.len() > 1 && !into {
                return Err(Failure::of(ErrorKind::NotADirectory, "not a directory").at(destination));
            }
            let mut tally = Tally::default();
            for source in sources {
                let done = rename(&args, remote, source, destination, into).await;
                context.out.keep_going(&mut tally, done.map_err(|failure| failure.at(source)))?;
            }
            tally.end()
        })
        .await
}

async fn rename(args: &Args, remote: &Remote, source: &DfsPath, destination: &DfsPath, into: bool) -> Result {
    let (from_parent, from_name) = remote.place(source).await?;
    let to = if into { destination.join(&from_name) } else { destination.clone() };
    let (to_parent, to_name) = remote.place(&to).await?;
    let mode = if args.no_clobber { RenameMode::NoReplace } else { RenameMode::Replace };
    remote.dfs.rename(&remote.caller, from_parent, &from_name, to_parent, &to_name, mode).await?;
    Ok(())
}

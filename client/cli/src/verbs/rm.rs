use std::pin::Pin;

use dfs_proto::{ErrorKind, FileKind, InodeId, Name};
use futures::{StreamExt, stream};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;

/// Remove files, and with -r whole trees
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs rm /docs/old.pdf\n  dfs rm -r /docs/2019")]
pub struct Args {
    /// Directories with all that is in them
    #[arg(short = 'r', visible_short_alias = 'R', long)]
    recursive: bool,
    /// No error for what does not exist
    #[arg(short = 'f', long)]
    force: bool,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

/// Removals under way at once in one directory: each waits for the namenodes' disks, and they share a sync.
const PARALLEL: usize = 32;

pub async fn run(context: &Context, args: Args) -> Result {
    if args.paths.iter().any(DfsPath::is_root) {
        return Err(Failure::usage("`/` is not removed").hint("name what is in it: `dfs ls /`"));
    }
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = remove_operand(context, &args, remote, path).await;
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn remove_operand(context: &Context, args: &Args, remote: &Remote, path: &DfsPath) -> Result {
    let (parent, name) = match remote.place(path).await {
        Err(failure) if args.force && failure.wire_kind() == Some(ErrorKind::NotFound) => return Ok(()),
        place => place?,
    };
    let attr = match remote.lookup(parent, &name).await.map_err(|failure| failure.at(path))? {
        Some(attr) => attr,
        None if args.force => return Ok(()),
        None => return Err(Failure::of(ErrorKind::NotFound, "no such file or directory").at(path)),
    };
    if attr.kind == FileKind::Directory && !args.recursive {
        return Err(Failure::of(ErrorKind::IsADirectory, "is a directory").at(path).hint(format!("dfs rm -r {path}")));
    }
    if attr.kind == FileKind::Directory {
        remove_below(remote, path.clone(), attr.inode).await?;
    }
    remove_one(remote, path, parent, &name, attr.kind).await?;
    context.out.detail(format!("removed {path}"));
    Ok(())
}

/// Empties a directory. What another client removes meanwhile is as good as removed here.
fn remove_below(remote: &Remote, path: DfsPath, directory: InodeId) -> Pin<Box<dyn Future<Output = Result> + '_>> {
    Box::pin(async move {
        let mut listing = remote.list(directory, false);
        while let Some(page) = listing.next().await.map_err(|failure| failure.at(&path))? {
            let path = &path;
            let mut removals = stream::iter(page)
                .map(|entry| async move {
                    let at = path.join(&entry.name);
                    if entry.kind == FileKind::Directory {
                        remove_below(remote, at.clone(), entry.inode).await?;
                    }
                    remove_one(remote, &at, directory, &entry.name, entry.kind).await
                })
                .buffer_unordered(PARALLEL);
            while let Some(done) = removals.next().await {
                done?;
            }
        }
        Ok(())
    })
}

async fn remove_one(remote: &Remote, path: &DfsPath, parent: InodeId, name: &Name, kind: FileKind) -> Result {
    let removed = match kind {
        FileKind::Directory => remote.dfs.rmdir(&remote.caller, parent, name).await,
        _ => remote.dfs.unlink(&remote.caller, parent, name).await.map(|_| ()),
    };
    match removed {
        Err(error) if error.kind != ErrorKind::NotFound => Err(Failure::from(error).at(path)),
        _ => Ok(()),
    }
}

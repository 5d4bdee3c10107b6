use dfs_client::File;
use dfs_proto::FileKind;

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::transfer::{READ_BYTES, read_ahead};

/// Print files
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs cat /logs/today\n  dfs cat /a /b | sha256sum")]
pub struct Args {
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = print(context, remote, path).await.map_err(|failure| failure.at(path));
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn print(context: &Context, remote: &Remote, path: &DfsPath) -> Result {
    let (file, size) = open(remote, path).await?;
    let done = print_range(context, &file, 0, size).await;
    file.close().await?;
    done
}

/// Opens a file for reading; its size comes along.
pub async fn open(remote: &Remote, path: &DfsPath) -> Result<(File, u64)> {
    let attr = remote.find(path).await?;
    let attr = attr.ok_or_else(|| Failure::of(dfs_proto::ErrorKind::NotFound, "no such file or directory"))?;
    match attr.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(Failure::of(dfs_proto::ErrorKind::IsADirectory, "is a directory")),
        _ => return Err(Failure::of(dfs_proto::ErrorKind::InvalidArgument, "not a regular file")),
    }
    let file = remote.dfs.open(&remote.caller, attr.inode, dfs_client::OpenMode::READ).await?;
    Ok((file, attr.size_bytes))
}

/// Writes the bytes `[start, end)` to stdout, as far as the file reaches.
pub async fn print_range(context: &Context, file: &File, start: u64, end: u64) -> Result {
    let mut pieces = read_ahead(file, start, end, READ_BYTES);
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        context.out.bytes(&piece)?;
    }
    context.out.flush()
}

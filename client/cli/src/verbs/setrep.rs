use std::time::Duration;

use dfs_proto::limits::REPLICATION_MAX;
use dfs_proto::msg::admin::Liveness;
use dfs_proto::{Attr, FileKind, InodeId, SetAttr};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;

/// Set how many copies there are of each chunk of files
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs setrep 2 /data/a.bin\n  dfs setrep -R 3 /docs --wait")]
pub struct Args {
    /// Also everything below directories (always so, as in Hadoop)
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Wait until the copies exist
    #[arg(short = 'w', long)]
    wait: bool,
    #[arg(value_parser = clap::value_parser!(u8).range(1..=i64::from(REPLICATION_MAX)))]
    copies: u8,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

const POLL: Duration = Duration::from_millis(500);

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let change = |attr: &Attr| {
                let set = SetAttr { replication: Some(args.copies), ..SetAttr::default() };
                (attr.kind == FileKind::File).then_some(set)
            };
            super::chmod::set_attrs(context, remote, &args.paths, true, change).await?;
            if args.wait { wait(context, &args, remote).await } else { Ok(()) }
        })
        .await
}

async fn wait(context: &Context, args: &Args, remote: &Remote) -> Result {
    let mut tally = Tally::default();
    for path in &args.paths {
        let mut walk = remote.walk(path, true).await?;
        while let Some(visit) = walk.next().await? {
            if visit.attr.kind != FileKind::File {
                continue;
            }
            let done = wait_for_file(args.copies, remote, visit.attr.inode).await;
            context.out.keep_going(&mut tally, done.map_err(|failure| failure.at(&visit.path)))?;
            context.out.detail(format!("{}: {} copies", visit.path, args.copies));
        }
    }
    tally.end()
}

/// Until every sealed chunk has that many live replicas. Ctrl-C ends it; so does a lost cluster.
async fn wait_for_file(copies: u8, remote: &Remote, inode: InodeId) -> Result {
    loop {
        let info = remote.dfs.file_info(inode).await.map_err(Failure::from)?;
        let short = info.chunks.iter().filter(|chunk| chunk.sealed).any(|chunk| {
            let live = chunk.replicas.iter().filter(|(_, liveness)| *liveness == Liveness::Live).count();
            live != usize::from(copies)
        });
        if !short {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

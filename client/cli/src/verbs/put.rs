use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use dfs_proto::{FileKind, Timestamp};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::{DfsPath, local_name};
use crate::transfer::{ClusterTree, CopyOptions, LocalTree, Meta, Operand, Progress, StdinReader, Target, copy, pour};

/// Copy files and trees into the cluster
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs put report.pdf src/ /docs\n  dfs put -f -p report.pdf /docs/latest.pdf\n  tar c src | dfs put - /src.tar"
)]
pub struct Args {
    /// Replace existing files
    #[arg(short = 'f', long)]
    force: bool,
    /// Keep times, owner and permission bits
    #[arg(short = 'p', long)]
    preserve: bool,
    /// Trees are copied whole in any case; accepted for habit
    #[arg(short = 'r', short_alias = 'R', long, hide = true)]
    recursive: bool,
    /// Files copied at once; a large one counts for four
    #[arg(short = 't', long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// LOCAL... DESTINATION; `-` is standard input
    #[arg(required = true, num_args = 2.., value_names = ["LOCAL", "DESTINATION"])]
    paths: Vec<OsString>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let Some((destination, locals)) = args.paths.split_last() else {
        return Err(Failure::usage("a source and a destination are needed"));
    };
    let destination = DfsPath::parse(destination)?;
    let options = CopyOptions { force: args.force, preserve: args.preserve, parallel: args.threads };
    if locals.iter().any(|local| local == "-") {
        if locals.len() > 1 {
            return Err(Failure::usage("standard input is put alone"));
        }
        return put_stdin(context, &destination, options).await;
    }
    let mut tally = Tally::default();
    let mut sources = Vec::new();
    for local in locals {
        let local = PathBuf::from(local);
        let source = LocalTree::meta(&local, true).and_then(|meta| match local_name(&local) {
            Some(name) => Ok((local, meta, name)),
            None => Err(Failure::usage(format!("`{}` has no name", local.display()))),
        });
        match source {
            Ok(source) => sources.push(source),
            Err(failure) => context.out.keep_going(&mut tally, Err(failure))?,
        }
    }
    if sources.is_empty() {
        return tally.end();
    }
    context
        .with_remote(async |remote| {
            let tree = ClusterTree::new(remote);
            tree.check_destination(&destination, locals.len()).await?;
            let mut operands = Vec::new();
            for (local, meta, name) in sources {
                let (dir, name) = tree.destination(&destination, Some(name.as_bytes())).await?;
                operands.push(Operand { node: local, meta, dir, name });
            }
            copy(context, "put", LocalTree, tree, operands, options).await
        })
        .await?;
    tally.end()
}

async fn put_stdin(context: &Context, destination: &DfsPath, options: CopyOptions) -> Result {
    let now = jiff::Timestamp::now();
    let now = Timestamp { secs: now.as_second(), nanos: now.subsec_nanosecond().unsigned_abs() };
    let caller = crate::users::caller();
    let meta = Meta {
        kind: FileKind::File,
        mode: 0o666,
        uid: caller.uid,
        gid: caller.gid,
        size_bytes: 0,
        atime: now,
        mtime: now,
    };
    context
        .with_remote(async |remote| {
            let tree = ClusterTree::new(remote);
            let (dir, name) = tree.destination(destination, None).await?;
            let writer = tree.begin(&dir, &name, &meta, options).await?;
            let progress = Progress::start(&context.out, "put");
            let poured = pour(StdinReader::start(), writer, &meta, options, &progress, &context.interrupt).await;
            match poured {
                Ok(()) => {
                    progress.file();
                    progress.end(&context.out)
                }
                Err(failure) => {
                    progress.abort();
                    Err(failure)
                }
            }
        })
        .await
}

use dfs_proto::{Attr, FileKind, InodeId};
use serde_json::json;
use std::collections::HashSet;

use crate::context::Context;
use crate::error::{Result, Tally};
use crate::output::put_bytes;
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::units;

/// Bytes below directories: of the files, and of all their copies
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs du -sh /docs\n  dfs du -h /")]
pub struct Args {
    /// Only the sum of each operand
    #[arg(short = 's', long)]
    summarize: bool,
    /// Sizes in KiB, MiB, GiB
    #[arg(short = 'h', long)]
    human_readable: bool,
    #[arg(default_value = "/")]
    paths: Vec<DfsPath>,
}

#[derive(Default, Clone, Copy)]
struct Sum {
    size_bytes: u64,
    /// Bytes that are stored, on all replicas together; holes store nothing.
    stored_bytes: u64,
    files: u64,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = sum_operand(context, &args, remote, path, &mut tally).await;
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn sum_operand(context: &Context, args: &Args, remote: &Remote, path: &DfsPath, tally: &mut Tally) -> Result {
    // Without -s there is a line for each directory directly below the operand (and each file there).
    let mut total = Sum::default();
    let mut part: Option<(DfsPath, Sum)> = None;
    let mut seen = HashSet::new();
    let mut walk = remote.walk(path, false).await?;
    loop {
        let visit = match walk.next().await {
            Ok(Some(visit)) => visit,
            Ok(None) => break,
            Err(failure) => {
                context.out.keep_going(tally, Err(failure))?;
                continue;
            }
        };
        if visit.depth == 1 && !args.summarize {
            if let Some((path, sum)) = part.take() {
                print(context, args, &path, sum)?;
            }
            part = Some((visit.path.clone(), Sum::default()));
        }
        if !first_name(&visit.attr, &mut seen) {
            continue;
        }
        total.add(&visit.attr);
        if let Some((_, sum)) = &mut part {
            sum.add(&visit.attr);
        }
    }
    if let Some((path, sum)) = part {
        print(context, args, &path, sum)?;
    }
    print(context, args, path, total)
}

/// A file with several names counts once.
fn first_name(attr: &Attr, seen: &mut HashSet<InodeId>) -> bool {
    attr.kind == FileKind::Directory || attr.nlink < 2 || seen.insert(attr.inode)
}

impl Sum {
    fn add(&mut self, attr: &Attr) {
        if attr.kind == FileKind::File {
            self.size_bytes += attr.size_bytes;
            self.stored_bytes += attr.mapped_bytes * u64::from(attr.replication);
        }
        self.files += u64::from(attr.kind != FileKind::Directory);
    }
}

fn print(context: &Context, args: &Args, path: &DfsPath, sum: Sum) -> Result {
    if context.out.json {
        let mut object = json!({"size_bytes": sum.size_bytes, "stored_bytes": sum.stored_bytes, "files": sum.files});
        put_bytes(&mut object, "path", &path.to_bytes());
        return context.out.object(object);
    }
    let size = |bytes| units::size(bytes, args.human_readable);
    let start = format!("{:>12} {:>12}  ", size(sum.size_bytes), size(sum.stored_bytes));
    context.out.line([start.as_bytes(), &context.out.name(&path.to_bytes())].concat())
}

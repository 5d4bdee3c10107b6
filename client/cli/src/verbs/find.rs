mod criteria;

use std::ffi::OsString;

use dfs_proto::FileKind;
use serde_json::Value;

use self::criteria::{Glob, SizeTest};
use crate::context::Context;
use crate::error::{Result, Tally};
use crate::path::DfsPath;
use crate::remote::{Remote, Visit};

/// Find files by name, type and size
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs find /docs -name '*.pdf'\n  dfs find / -type f -size +1G\n  dfs --json find / -type d"
)]
pub struct Args {
    #[arg(default_value = "/")]
    paths: Vec<DfsPath>,
    /// The last name matches this pattern: * ? [a-z] [!a]
    #[arg(long, value_name = "PATTERN")]
    name: Option<OsString>,
    /// f file, d directory, l symlink, p fifo, s socket, c and b devices
    #[arg(long = "type", value_name = "LETTER", value_parser = parse_kind)]
    kind: Option<FileKind>,
    /// Bytes: +N more than, -N less than, N exactly; K, M, G are understood
    #[arg(long, allow_hyphen_values = true)]
    size: Option<SizeTest>,
    /// Go down so many levels
    #[arg(long, value_name = "LEVELS")]
    maxdepth: Option<usize>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let glob = args.name.as_ref().map(|pattern| Glob::new(pattern.as_encoded_bytes()));
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = search(context, &args, glob.as_ref(), remote, path, &mut tally).await;
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn search(
    context: &Context,
    args: &Args,
    glob: Option<&Glob>,
    remote: &Remote,
    path: &DfsPath,
    tally: &mut Tally,
) -> Result {
    let mut walk = remote.walk(path, false).await?;
    loop {
        let visit = match walk.next().await {
            Ok(Some(visit)) => visit,
            Ok(None) => return Ok(()),
            Err(failure) => {
                context.out.keep_going(tally, Err(failure))?;
                continue;
            }
        };
        if args.maxdepth.is_some_and(|deepest| visit.depth >= deepest) {
            walk.skip_below(&visit);
        }
        if matches(args, glob, &visit) {
            print(context, &visit)?;
        }
    }
}

fn matches(args: &Args, glob: Option<&Glob>, visit: &Visit) -> bool {
    let name = visit.path.names().last().map_or(&b"/"[..], |name| name.as_bytes());
    glob.is_none_or(|glob| glob.matches(name))
        && args.kind.is_none_or(|kind| kind == visit.attr.kind)
        && args.size.is_none_or(|size| size.holds(visit.attr.size_bytes))
}

fn print(context: &Context, visit: &Visit) -> Result {
    if context.out.json {
        let object: Value = super::stat::object(&visit.path, &visit.attr);
        return context.out.object(object);
    }
    context.out.line(context.out.name(&visit.path.to_bytes()))
}

fn parse_kind(text: &str) -> std::result::Result<FileKind, String> {
    Ok(match text {
        "f" => FileKind::File,
        "d" => FileKind::Directory,
        "l" => FileKind::Symlink,
        "p" => FileKind::Fifo,
        "s" => FileKind::Socket,
        "c" => FileKind::CharDevice,
        "b" => FileKind::BlockDevice,
        _ => return Err(format!("`{text}` is no type: f, d, l, p, s, c or b")),
    })
}

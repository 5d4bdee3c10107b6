mod mode;

use dfs_proto::{Attr, ErrorKind, FileKind, SetAttr};

use self::mode::ModeChange;
use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::users;

/// Set permissions
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs chmod 640 /docs/report.pdf\n  dfs chmod -R u+rwX,go-w /docs")]
pub struct Args {
    /// Also everything below
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Octal, or as in u=rwX,go-w
    mode: ModeChange,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let umask = users::umask();
    let change = |attr: &Attr| {
        // A symlink's own bits mean nothing.
        (attr.kind != FileKind::Symlink).then(|| SetAttr {
            mode: Some(args.mode.apply(attr.mode, attr.kind == FileKind::Directory, umask)),
            ..SetAttr::default()
        })
    };
    context.with_remote(async |remote| set_attrs(context, remote, &args.paths, args.recursive, change).await).await
}

/// Gives each path, and where `recursive` all below it, the attributes that `change` picks.
pub async fn set_attrs(
    context: &Context,
    remote: &Remote,
    paths: &[DfsPath],
    recursive: bool,
    change: impl Fn(&Attr) -> Option<SetAttr>,
) -> Result {
    let mut tally = Tally::default();
    for path in paths {
        if !recursive {
            let done = match remote.stat(path).await {
                Ok(attr) => set_attr(remote, path, &attr, &change).await,
                Err(failure) => Err(failure),
            };
            context.out.keep_going(&mut tally, done)?;
            continue;
        }
        let mut walk = match remote.walk(path, true).await {
            Ok(walk) => walk,
            Err(failure) => {
                context.out.keep_going(&mut tally, Err(failure))?;
                continue;
            }
        };
        loop {
            let done = match walk.next().await {
                Ok(Some(visit)) => set_attr(remote, &visit.path, &visit.attr, &change).await,
                Ok(None) => break,
                Err(failure) => Err(failure),
            };
            context.out.keep_going(&mut tally, done)?;
        }
    }
    tally.end()
}

async fn set_attr(remote: &Remote, path: &DfsPath, attr: &Attr, change: impl Fn(&Attr) -> Option<SetAttr>) -> Result {
    let Some(set) = change(attr) else { return Ok(()) };
    match remote.dfs.setattr(&remote.caller, attr.inode, set, None).await {
        Ok(_) => Ok(()),
        // Removed by somebody else during the walk.
        Err(error) if error.kind == ErrorKind::Stale => Ok(()),
        Err(error) => Err(Failure::from(error).at(path)),
    }
}

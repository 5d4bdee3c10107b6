use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use dfs_client::MakeOptions;
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{ErrorKind, FileKind};

use crate::context::Context;
use crate::error::{Failure, Result};
use crate::path::DfsPath;

/// Give a file another name, or make a symbolic link
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs ln /data/a.bin /data/b.bin\n  dfs ln -s ../shared/a.bin /data/link")]
pub struct Args {
    /// A symbolic link, which holds TARGET as it is typed
    #[arg(short = 's', long)]
    symbolic: bool,
    /// Replace an existing LINK that is no directory
    #[arg(short = 'f', long)]
    force: bool,
    target: OsString,
    link: DfsPath,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            // As everywhere: a link made in a directory takes the target's last name.
            let link = match remote.find(&args.link).await? {
                Some(attr) if attr.kind == FileKind::Directory => {
                    let typed = args.target.as_encoded_bytes();
                    let last = typed.rsplit(|b| *b == b'/').find(|part| !part.is_empty()).unwrap_or_default();
                    args.link.join(&crate::path::parse_name(last)?)
                }
                _ => args.link.clone(),
            };
            let (parent, name) = remote.place(&link).await?;
            if args.force && remote.lookup(parent, &name).await?.is_some_and(|attr| attr.kind != FileKind::Directory) {
                remote.dfs.unlink(&remote.caller, parent, &name).await?;
            }
            let at_link = |error| Failure::from(error).at(&link);
            if args.symbolic {
                let node = NewNode::Symlink(args.target.clone().into_vec());
                let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
                remote.dfs.make(&remote.caller, parent, &name, node, 0o777, options).await.map_err(at_link)?;
                return Ok(());
            }
            let target = remote.lstat(&DfsPath::parse(&args.target)?).await?;
            if target.kind == FileKind::Directory {
                return Err(Failure::of(ErrorKind::NotPermitted, "a directory has one name only").hint("dfs ln -s"));
            }
            remote.dfs.link(&remote.caller, target.inode, parent, &name).await.map_err(at_link)?;
            Ok(())
        })
        .await
}

use std::path::PathBuf;

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::local::mounts;

/// Unmount directories; the process behind a mount flushes what is left and ends
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs umount /mnt\n  dfs umount --lazy /mnt")]
pub struct Args {
    /// Even if programs use it: they keep what they have open
    #[arg(short = 'l', long)]
    lazy: bool,
    #[arg(required = true)]
    dirs: Vec<PathBuf>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let mut tally = Tally::default();
    for dir in &args.dirs {
        let done = mounts::resolve(dir).and_then(|path| match mounts::mounted_at(&path)? {
            Some(kind) if kind == mounts::FUSE_TYPE => mounts::unmount_top(&path, args.lazy),
            Some(kind) => Err(Failure::failed(format!("{} is a mount of {kind}, not of dfs", path.display()))),
            None => Err(Failure::failed(format!("nothing is mounted on {}", path.display()))),
        });
        context.out.keep_going(&mut tally, done)?;
    }
    tally.end()
}

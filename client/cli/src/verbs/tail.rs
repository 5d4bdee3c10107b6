use std::time::Duration;

use dfs_client::File;

use crate::context::Context;
use crate::error::{Failure, Result};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::units::parse_size;

/// Print the end of a file, and follow it as it grows
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs tail /logs/today\n  dfs tail -n 100 -f /logs/today\n  dfs tail -c 1K /data/a.bin"
)]
pub struct Args {
    /// Lines
    #[arg(short = 'n', long, default_value_t = 10, conflicts_with = "bytes")]
    lines: u64,
    /// Bytes instead of lines; K, M, G are understood
    #[arg(short = 'c', long, value_parser = parse_size)]
    bytes: Option<u64>,
    /// Go on with what is appended, until Ctrl-C
    #[arg(short = 'f', long)]
    follow: bool,
    path: DfsPath,
}

/// How much is read at once while looking for lines from the end.
const STEP_BYTES: u64 = 64 << 10;

/// How often a followed file is asked for its size.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(500);

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| print(context, &args, remote).await.map_err(|failure| failure.at(&args.path)))
        .await
}

async fn print(context: &Context, args: &Args, remote: &Remote) -> Result {
    let (file, size) = super::cat::open(remote, &args.path).await?;
    let start = match args.bytes {
        Some(bytes) => size.saturating_sub(bytes),
        None => start_of_last_lines(&file, size, args.lines).await?,
    };
    super::cat::print_range(context, &file, start, size).await?;
    if args.follow { follow(context, remote, args, file, size).await } else { Ok(()) }
}

async fn follow(context: &Context, remote: &Remote, args: &Args, mut file: File, mut at: u64) -> Result {
    let inode = file.inode();
    loop {
        tokio::time::sleep(FOLLOW_INTERVAL).await;
        let size = match remote.dfs.getattr(&remote.caller, inode).await {
            Ok(attr) => attr.size_bytes,
            Err(error) if error.kind.retryable() => continue,
            Err(error) => return Err(Failure::from(error)),
        };
        if size < at {
            context.out.note(format!("{}: file was truncated", args.path));
            at = 0;
        }
        if size > at {
            // A handle shows the file as it was when its map was fetched: take a fresh one.
            file.close().await?;
            file = remote.dfs.open(&remote.caller, inode, dfs_client::OpenMode::READ).await?;
            super::cat::print_range(context, &file, at, size).await?;
            at = size;
        }
    }
}

/// Where the last `lines` lines start, read in steps from the end.
async fn start_of_last_lines(file: &File, size: u64, lines: u64) -> Result<u64> {
    if lines == 0 {
        return Ok(size);
    }
    let mut search = LineSearch { left: lines, at_end: true };
    let mut end = size;
    while end > 0 {
        let start = end.saturating_sub(STEP_BYTES);
        let bytes = file.read(start, (end - start) as usize).await?;
        if let Some(at) = search.go_back(&bytes) {
            return Ok(start + at as u64);
        }
        end = start;
    }
    Ok(0)
}

/// Looks for the start of the last lines, from piece to piece towards the front.
struct LineSearch {
    left: u64,
    /// Nothing was seen yet: a newline here ends the last line and separates nothing.
    at_end: bool,
}

impl LineSearch {
    fn go_back(&mut self, bytes: &[u8]) -> Option<usize> {
        for (at, byte) in bytes.iter().enumerate().rev() {
            let last = std::mem::replace(&mut self.at_end, false);
            if *byte == b'\n' && !last {
                self.left -= 1;
                if self.left == 0 {
                    return Some(at + 1);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_found_across_pieces() {
        let mut search = LineSearch { left: 2, at_end: true };
        assert_eq!(search.go_back(b"d\ne\n"), None);
        assert_eq!(search.go_back(b"a\nb\nc"), Some(4));
        assert_eq!(LineSearch { left: 1, at_end: true }.go_back(b"a\nb"), Some(2));
        assert_eq!(LineSearch { left: 5, at_end: true }.go_back(b"a\nb\n"), None);
    }
}

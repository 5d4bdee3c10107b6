use crate::context::Context;
use crate::error::{Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::transfer::{READ_BYTES, read_ahead};
use crate::units::parse_size;

/// Print the start of files
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs head /logs/today\n  dfs head -c 1M /data/a.bin > start.bin")]
pub struct Args {
    /// Lines
    #[arg(short = 'n', long, default_value_t = 10, conflicts_with = "bytes")]
    lines: u64,
    /// Bytes instead of lines; K, M, G are understood
    #[arg(short = 'c', long, value_parser = parse_size)]
    bytes: Option<u64>,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

/// Lines are short: no need to fetch a megabyte for ten of them.
const LINES_READ_BYTES: u64 = 64 << 10;

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = print(context, &args, remote, path).await.map_err(|failure| failure.at(path));
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn print(context: &Context, args: &Args, remote: &Remote, path: &DfsPath) -> Result {
    let (file, size) = super::cat::open(remote, path).await?;
    if let Some(bytes) = args.bytes {
        return super::cat::print_range(context, &file, 0, size.min(bytes)).await;
    }
    let mut left = args.lines;
    let step = if left > 1000 { READ_BYTES } else { LINES_READ_BYTES };
    let mut pieces = read_ahead(&file, 0, size, step);
    while left > 0 {
        let Some(piece) = pieces.next().await else { break };
        let piece = piece?;
        let end = end_of_lines(&piece, &mut left);
        context.out.bytes(&piece[..end])?;
    }
    context.out.flush()
}

/// Where the first `left` lines of `bytes` end; `left` goes down by those that ended in it.
fn end_of_lines(bytes: &[u8], left: &mut u64) -> usize {
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'\n' {
            *left -= 1;
            if *left == 0 {
                return at + 1;
            }
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_across_pieces() {
        let mut left = 3;
        assert_eq!(end_of_lines(b"a\nb\nc", &mut left), 5);
        assert_eq!(left, 1);
        assert_eq!(end_of_lines(b"d\ne\n", &mut left), 2);
        assert_eq!(left, 0);
    }
}

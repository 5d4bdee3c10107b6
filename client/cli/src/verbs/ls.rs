use std::cmp::Reverse;

use dfs_proto::{Attr, FileKind};
use serde_json::Value;

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::output::put_bytes;
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::units;
use crate::users;

/// List directories and files
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs ls -lh /docs\n  dfs ls -lRt /docs\n  dfs --json ls /docs")]
pub struct Args {
    /// Type, permissions, links, copies, owner, group, size, time
    #[arg(short = 'l')]
    long: bool,
    /// Everything below, too
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Sizes in KiB, MiB, GiB
    #[arg(short = 'h', long)]
    human_readable: bool,
    /// Directories themselves, not what is in them
    #[arg(short = 'd', long)]
    directory: bool,
    /// Newest first
    #[arg(short = 't', overrides_with = "by_size")]
    by_time: bool,
    /// Largest first
    #[arg(short = 'S')]
    by_size: bool,
    /// The other way round
    #[arg(short = 'r', long)]
    reverse: bool,
    /// One name per line (always so in a pipe)
    #[arg(short = '1')]
    one_per_line: bool,
    /// Names that start with a dot, too
    #[arg(short = 'a', long)]
    all: bool,
    #[arg(default_value = "/")]
    paths: Vec<DfsPath>,
}

struct Shown {
    /// As it is printed: a name in its directory, or the path that was typed.
    name: Vec<u8>,
    path: DfsPath,
    attr: Attr,
    target: Option<Vec<u8>>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = list_operand(context, &args, remote, path).await;
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn list_operand(context: &Context, args: &Args, remote: &Remote, path: &DfsPath) -> Result {
    let attr = remote.lstat(path).await?;
    // As everywhere, `ls LINK` shows what is in the directory it leads to, and `ls -l LINK` the link.
    let attr =
        if attr.kind == FileKind::Symlink && !args.long { remote.find(path).await?.unwrap_or(attr) } else { attr };
    if attr.kind != FileKind::Directory || args.directory {
        let shown =
            Shown { name: path.to_bytes(), path: path.clone(), target: target(remote, &attr, args).await?, attr };
        return print(context, args, &[shown]);
    }
    let heading = args.paths.len() > 1 || args.recursive;
    // A stack rather than recursion: depth is the user's, and so is the order.
    let mut left = vec![(path.clone(), attr)];
    let mut tally = Tally::default();
    let mut first = true;
    while let Some((path, attr)) = left.pop() {
        if heading && !context.out.json {
            let gap = if first { "" } else { "\n" };
            context.out.line([gap.as_bytes(), &context.out.name(&path.to_bytes()), b":"].concat())?;
        }
        first = false;
        let mut below = Vec::new();
        let done = list_directory(context, args, remote, &path, &attr, &mut below).await;
        context.out.keep_going(&mut tally, done.map_err(|failure| failure.at(&path)))?;
        below.reverse();
        left.append(&mut below);
    }
    tally.end()
}

async fn list_directory(
    context: &Context,
    args: &Args,
    remote: &Remote,
    path: &DfsPath,
    directory: &Attr,
    below: &mut Vec<(DfsPath, Attr)>,
) -> Result {
    // Entries come in the directory's own order. Without a wish for another one, and where nobody looks
    // at aligned columns, they are printed as they arrive: a directory may have millions.
    let streams = !context.out.stdout_is_terminal && !args.by_time && !args.by_size && !args.reverse;
    let mut gathered = Vec::new();
    let mut listing = remote.list(directory.inode, true);
    while let Some(page) = listing.next().await? {
        for entry in page {
            if !args.all && entry.name.as_bytes().starts_with(b".") {
                continue;
            }
            let path = path.join(&entry.name);
            let Some(attr) = entry.attr else { continue };
            if args.recursive && attr.kind == FileKind::Directory {
                below.push((path.clone(), attr.clone()));
            }
            let target = target(remote, &attr, args).await?;
            gathered.push(Shown { name: entry.name.as_bytes().to_vec(), path, attr, target });
        }
        if streams {
            print(context, args, &gathered)?;
            gathered.clear();
        }
    }
    sort(&mut gathered, args);
    if !streams {
        below.sort_by(|a, b| a.0.cmp(&b.0));
    }
    print(context, args, &gathered)
}

fn sort(shown: &mut [Shown], args: &Args) {
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    if args.by_time {
        shown.sort_by_key(|one| Reverse(one.attr.mtime));
    }
    if args.by_size {
        shown.sort_by_key(|one| Reverse(one.attr.size_bytes));
    }
    if args.reverse {
        shown.reverse();
    }
}

async fn target(remote: &Remote, attr: &Attr, args: &Args) -> Result<Option<Vec<u8>>> {
    if attr.kind != FileKind::Symlink || !args.long {
        return Ok(None);
    }
    match remote.dfs.readlink(&remote.caller, attr.inode).await {
        Ok(target) => Ok(Some(target)),
        // Removed since the page was read.
        Err(error) if matches!(error.kind, dfs_proto::ErrorKind::NotFound | dfs_proto::ErrorKind::Stale) => Ok(None),
        Err(error) => Err(Failure::from(error)),
    }
}

fn print(context: &Context, args: &Args, shown: &[Shown]) -> Result {
    let out = &context.out;
    if out.json {
        return shown.iter().try_for_each(|one| out.object(object(one)));
    }
    if args.long {
        let rows: Vec<[String; 7]> = shown.iter().map(|one| columns(&one.attr, args)).collect();
        let mut widths = [0; 7];
        if out.stdout_is_terminal {
            for row in &rows {
                for (width, cell) in widths.iter_mut().zip(row) {
                    *width = cell.len().max(*width);
                }
            }
        }
        for (one, row) in shown.iter().zip(&rows) {
            let [mode, links, copies, owner, group, size, time] = row;
            let [m, l, c, o, g, s, t] = widths;
            let start = format!("{mode:m$} {links:>l$} {copies:>c$} {owner:o$} {group:g$} {size:>s$} {time:t$} ");
            let mut line = [start.as_bytes(), &out.name(&one.name)].concat();
            if let Some(target) = &one.target {
                line.extend_from_slice(b" -> ");
                line.extend_from_slice(&out.name(target));
            }
            out.line(line)?;
        }
        return Ok(());
    }
    if out.stdout_is_terminal && !args.one_per_line {
        return print_in_columns(context, shown);
    }
    shown.iter().try_for_each(|one| out.line(out.name(&one.name)))
}

/// Names in columns, read downwards, as wide as the terminal (`COLUMNS`, else 80).
fn print_in_columns(context: &Context, shown: &[Shown]) -> Result {
    let names: Vec<String> =
        shown.iter().map(|one| String::from_utf8_lossy(&context.out.name(&one.name)).into_owned()).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0) + 2;
    let terminal = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).unwrap_or(80_usize);
    let columns = (terminal / width).max(1);
    let rows = names.len().div_ceil(columns);
    for row in 0..rows {
        let cells: Vec<_> = names.iter().skip(row).step_by(rows.max(1)).map(|name| format!("{name:width$}")).collect();
        context.out.line(cells.concat().trim_end())?;
    }
    Ok(())
}

fn columns(attr: &Attr, args: &Args) -> [String; 7] {
    [
        format!("{}{}", kind_letter(attr.kind), units::permissions(attr.mode)),
        attr.nlink.to_string(),
        if attr.kind == FileKind::File { attr.replication.to_string() } else { "-".into() },
        users::user_name(attr.uid),
        users::group_name(attr.gid),
        units::size(attr.size_bytes, args.human_readable),
        units::local_time(attr.mtime),
    ]
}

fn object(one: &Shown) -> Value {
    let mut object = super::stat::object(&one.path, &one.attr);
    if let Some(target) = &one.target {
        put_bytes(&mut object, "target", target);
    }
    object
}

/// The first letter of a long line.
pub fn kind_letter(kind: FileKind) -> char {
    match kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    }
}

/// The kind in words, in JSON and in `stat`.
pub fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char_device",
        FileKind::BlockDevice => "block_device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_letter_and_a_snake_case_name() {
        assert_eq!(kind_letter(FileKind::Symlink), 'l');
        assert_eq!(kind_name(FileKind::CharDevice), "char_device");
    }
}

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use dfs_proto::ErrorKind;

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::transfer::{ClusterNode, ClusterTree, CopyOptions, LocalTree, Meta, Operand, copy};

/// Copy files and trees out of the cluster
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs get /docs/report.pdf\n  dfs get -f /docs ./copy\n  dfs get /src.tar - | tar x"
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
    /// PATH... [LOCAL]; the last one is local unless it is the only one; `-` is standard output
    #[arg(required = true, num_args = 1.., value_names = ["PATH"])]
    paths: Vec<OsString>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let (sources, local) = match args.paths.split_last() {
        Some((local, sources)) if !sources.is_empty() => (sources, PathBuf::from(local)),
        _ => (&args.paths[..], PathBuf::from(".")),
    };
    let sources: Vec<DfsPath> = sources.iter().map(|path| DfsPath::parse(path)).collect::<Result<_>>()?;
    if local == Path::new("-") {
        return get_to_stdout(context, &sources).await;
    }
    if sources.len() > 1 && !local.is_dir() {
        return Err(Failure::of(ErrorKind::NotADirectory, "not a directory").at(local.display()));
    }
    let options = CopyOptions { force: args.force, preserve: args.preserve, parallel: args.threads };
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            let mut operands = Vec::new();
            for path in sources {
                match remote.stat(&path).await {
                    Ok(attr) => {
                        let (dir, name) = destination(&local, &path)?;
                        let node = ClusterNode { inode: attr.inode, path };
                        operands.push(Operand { node, meta: Meta::from(&attr), dir, name });
                    }
                    Err(failure) => context.out.keep_going(&mut tally, Err(failure))?,
                }
            }
            if !operands.is_empty() {
                copy(context, "get", ClusterTree::new(remote), LocalTree, operands, options).await?;
            }
            tally.end()
        })
        .await
}

async fn get_to_stdout(context: &Context, sources: &[DfsPath]) -> Result {
    context
        .with_remote(async |remote| {
            for path in sources {
                let print = async {
                    let (file, size) = super::cat::open(remote, path).await?;
                    super::cat::print_range(context, &file, 0, size).await
                };
                print.await.map_err(|failure: Failure| failure.at(path))?;
            }
            Ok(())
        })
        .await
}

/// The local directory and name of a copy: in `local` if that is a directory, else `local` itself.
fn destination(local: &Path, source: &DfsPath) -> Result<(PathBuf, Vec<u8>)> {
    let into = local.is_dir();
    match (into, source.split()) {
        (true, Some((_, name))) => Ok((local.to_owned(), name.as_bytes().to_vec())),
        // The root has no name: what is in it goes into the directory itself.
        (true, None) => Ok((local.to_owned(), b".".to_vec())),
        (false, _) => match (local.parent(), local.file_name().map(OsStr::as_encoded_bytes)) {
            (Some(dir), Some(name)) => {
                let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
                Ok((dir.to_owned(), name.to_vec()))
            }
            _ => Err(Failure::usage(format!("`{}` cannot be the name of a copy", local.display()))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_go_into_a_directory_or_take_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let source: DfsPath = "/a/b".parse().unwrap();
        assert_eq!(destination(dir.path(), &source).unwrap(), (dir.path().to_owned(), b"b".to_vec()));
        let new = dir.path().join("new");
        assert_eq!(destination(&new, &source).unwrap(), (dir.path().to_owned(), b"new".to_vec()));
        assert_eq!(destination(Path::new("new-name"), &source).unwrap(), (PathBuf::from("."), b"new-name".to_vec()));
    }
}

use dfs_proto::{ErrorKind, FileKind};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::transfer::{ClusterNode, ClusterTree, CopyOptions, Meta, Operand, copy};

/// Copy within the cluster
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs cp /a.txt /b.txt\n  dfs cp -R -p /src /backup")]
pub struct Args {
    /// Replace existing files
    #[arg(short = 'f', long)]
    force: bool,
    /// Directories with all that is in them
    #[arg(short = 'R', short_alias = 'r', long)]
    recursive: bool,
    /// Keep times, owner and permission bits
    #[arg(short = 'p', long)]
    preserve: bool,
    /// Files copied at once; a large one counts for four
    #[arg(short = 't', long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// SOURCE... DESTINATION
    #[arg(required = true, num_args = 2.., value_names = ["SOURCE", "DESTINATION"])]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let Some((destination, sources)) = args.paths.split_last() else {
        return Err(Failure::usage("a source and a destination are needed"));
    };
    let options = CopyOptions { force: args.force, preserve: args.preserve, parallel: args.threads };
    context
        .with_remote(async |remote| {
            let tree = ClusterTree::new(remote);
            tree.check_destination(destination, sources.len()).await?;
            let mut tally = Tally::default();
            let mut operands = Vec::new();
            for source in sources {
                let operand = async {
                    let attr = remote.stat(source).await?;
                    if attr.kind == FileKind::Directory && !args.recursive {
                        let failure = Failure::of(ErrorKind::IsADirectory, "is a directory").at(source);
                        return Err(failure.hint("-R copies it with all that is in it"));
                    }
                    let own_name = source.split().map(|(_, name)| name.as_bytes());
                    let (dir, name) = tree.destination(destination, own_name).await?;
                    let target = dir.path.join(&crate::path::parse_name(&name)?);
                    if source.holds(&target) {
                        return Err(Failure::usage(format!("{source} cannot be copied into itself")));
                    }
                    let node = ClusterNode { inode: attr.inode, path: source.clone() };
                    Ok(Operand { node, meta: Meta::from(&attr), dir, name })
                };
                match operand.await {
                    Ok(operand) => operands.push(operand),
                    Err(failure) => context.out.keep_going(&mut tally, Err(failure))?,
                }
            }
            if !operands.is_empty() {
                copy(context, "cp", tree.clone(), tree, operands, options).await?;
            }
            tally.end()
        })
        .await
}

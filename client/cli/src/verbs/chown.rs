use dfs_proto::{Attr, SetAttr};

use crate::context::Context;
use crate::error::Result;
use crate::path::DfsPath;
use crate::users::parse_owner;

/// Set owner and group
#[derive(clap::Args, Debug)]
#[command(
    before_help = "Examples:\n  dfs chown ana /docs/report.pdf\n  dfs chown -R ana:staff /docs\n  dfs chown :staff /docs"
)]
pub struct Args {
    /// Also everything below
    #[arg(short = 'R', long)]
    recursive: bool,
    /// OWNER, OWNER:GROUP or :GROUP; names of this machine, or numbers
    owner: String,
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let (uid, gid) = parse_owner(&args.owner)?;
    let change = |_: &Attr| Some(SetAttr { uid, gid, ..SetAttr::default() });
    context
        .with_remote(async |remote| super::chmod::set_attrs(context, remote, &args.paths, args.recursive, change).await)
        .await
}

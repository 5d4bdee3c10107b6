use serde_json::json;

use crate::context::Context;
use crate::error::Result;
use crate::units;

/// Room in the cluster, after replication
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs df -h")]
pub struct Args {
    /// Sizes in KiB, MiB, GiB
    #[arg(short = 'h', long)]
    human_readable: bool,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let room = remote.dfs.statfs().await?;
            let cluster = context.config()?.cluster.to_string();
            let used = room.total_bytes.saturating_sub(room.free_bytes);
            let percent =
                if room.total_bytes == 0 { 0 } else { (u128::from(used) * 100).div_ceil(room.total_bytes.into()) };
            if context.out.json {
                return context.out.object(json!({
                    "cluster": cluster,
                    "total_bytes": room.total_bytes,
                    "used_bytes": used,
                    "free_bytes": room.free_bytes,
                    "files": room.files,
                }));
            }
            let size = |bytes| units::size(bytes, args.human_readable);
            let name = format!("dfs://{}", &cluster[..8]);
            context.out.line("filesystem              size         used    available  use%        files")?;
            context.out.line(format!(
                "{name:14} {:>13} {:>12} {:>12} {percent:>4}% {:>12}",
                size(room.total_bytes),
                size(used),
                size(room.free_bytes),
                room.files
            ))
        })
        .await
}

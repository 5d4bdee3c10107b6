use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::path::DfsPath;
use crate::remote::Remote;

/// Remove empty directories
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs rmdir /docs/old")]
pub struct Args {
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = remove(remote, path).await;
                context.out.keep_going(&mut tally, done)?;
            }
            tally.end()
        })
        .await
}

async fn remove(remote: &Remote, path: &DfsPath) -> Result {
    let (parent, name) = remote.place(path).await?;
    remote.dfs.rmdir(&remote.caller, parent, &name).await.map_err(|error| Failure::from(error).at(path))
}

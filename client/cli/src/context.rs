//! What every verb is given: the common flags, the way out for its answer, the way to the cluster.

use std::path::Path;

use dfs_client::{ClusterConfig, Dfs, Options};
use tokio_util::sync::CancellationToken;

use crate::args::Global;
use crate::error::{Failure, Result};
use crate::output::Output;
use crate::remote::Remote;
use crate::users;

pub struct Context {
    pub global: Global,
    pub out: Output,
    /// Cancelled by Ctrl-C.
    pub interrupt: CancellationToken,
}

impl Context {
    pub fn new(global: Global) -> Context {
        let out = Output::new(&global);
        Context { global, out, interrupt: CancellationToken::new() }
    }

    /// Reads the cluster file.
    pub fn config(&self) -> Result<ClusterConfig> {
        load_config(&self.global.cluster)
    }

    /// A session with the cluster on behalf of whoever runs the command.
    pub async fn connect(&self) -> Result<Remote> {
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let description = format!("command on {host}, process {}", std::process::id());
        let dfs = Dfs::connect(&self.config()?, Options { description, ..Options::default() }).await?;
        Ok(Remote::new(dfs, users::caller()))
    }

    /// Runs `work` with a session, and ends the session in order whichever way `work` ended.
    pub async fn with_remote<T>(&self, work: impl AsyncFnOnce(&Remote) -> Result<T>) -> Result<T> {
        let remote = self.connect().await?;
        let done = work(&remote).await;
        let closed = remote.close().await;
        let done = done?;
        closed?;
        Ok(done)
    }
}

/// Reads a cluster file; what is wrong with it is a matter of configuration.
pub fn load_config(path: &Path) -> Result<ClusterConfig> {
    if !path.exists() {
        return Err(Failure::usage(format!("there is no cluster file {}", path.display()))
            .hint("name it with --cluster FILE or DFS_CLUSTER, or start a cluster here with `dfs up`"));
    }
    ClusterConfig::load(path).map_err(|error| {
        Failure::usage(format!("cannot use the cluster file {}", path.display())).cause(error.to_string())
    })
}

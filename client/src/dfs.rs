use crate::config::{ClusterConfig, Options};
use crate::error::Result;

/// A client of one cluster. Clones share everything.
#[derive(Clone)]
pub struct Dfs {}

impl Dfs {
    /// Loads the certificates and gets ready. Nothing is asked of the cluster yet: the session is opened
    /// by the first operation that needs one, so that `status` and `initialize` work without a leader.
    pub async fn connect(config: &ClusterConfig, options: Options) -> Result<Dfs> {
        let _ = (config, options);
        unimplemented!()
    }

    /// Waits until the cluster answers: opens the session, or fails at the deadline.
    pub async fn ready(&self) -> Result<()> {
        unimplemented!()
    }

    /// Flushes every open file, closes the session and the connections. The first error that lost bytes is returned.
    pub async fn shutdown(self) -> Result<()> {
        unimplemented!()
    }
}

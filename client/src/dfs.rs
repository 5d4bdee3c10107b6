//! The handle on a cluster that everything starts from: connect, and shut down in order.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::Caller;
use dfs_proto::msg::meta::Op;
use tracing::warn;

use crate::client::Client;
use crate::config::{ClusterConfig, Options};
use crate::deadline::Deadline;
use crate::error::Result;

/// How long `shutdown` waits for the namenode to close the session; it expires by itself otherwise.
const CLOSE_SESSION: Duration = Duration::from_secs(5);

/// A client of one cluster. Clones share everything.
#[derive(Clone)]
pub struct Dfs {
    pub(crate) client: Arc<Client>,
}

impl Dfs {
    /// Loads the certificates and gets ready. Nothing is asked of the cluster yet: the session is opened
    /// by the first operation that needs one, so that `status_any` and `initialize` work without a leader.
    pub async fn connect(config: &ClusterConfig, options: Options) -> Result<Dfs> {
        Ok(Dfs { client: Client::new(config, options)? })
    }

    /// Waits until the cluster answers: opens the session, or fails at the deadline.
    pub async fn ready(&self) -> Result<()> {
        self.client.session(self.client.deadline()).await.map(|_| ())
    }

    /// Flushes every open file, closes the session and the connections. The first error that lost bytes
    /// is returned.
    pub async fn shutdown(self) -> Result<()> {
        let drained = self.client.drain_writes().await;
        let outcome = drained.and(self.client.told_of_all().await);
        let _ = Deadline::after(CLOSE_SESSION).bound("reads are told", self.client.tell_reads()).await;
        // Chunks that are not sealed by now are sealed with the session, at the same length.
        self.client.stopped.cancel();
        if let Some(session) = self.client.sessions.take() {
            let deadline = Deadline::after(CLOSE_SESSION);
            if let Err(failed) = self.client.mutate_in(&session, &Caller::ROOT, Op::CloseSession, deadline).await {
                warn!(error = %failed.error, "session not closed; it will expire");
            }
        }
        self.client.close_connections().await;
        outcome
    }
}

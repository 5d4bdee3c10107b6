//! The accepting side: a task per connection, a task per stream, both bounded, and an orderly end.

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{PeerIdentity, Plane};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span};

use crate::endpoint::{Connection, Endpoint};
use crate::stream::{RecvStream, SendStream};

/// Connections that are served at once. More than a thousand clients at a few connections each fit;
/// beyond it newcomers are refused and try again.
const CONNECTIONS_MAX: usize = 8192;

/// Answers the streams of one endpoint.
pub trait Handler: Send + Sync + 'static {
    /// Serves one stream to its end. The peer has been authenticated; what it may do has not been checked.
    fn handle(
        &self,
        peer: PeerIdentity,
        plane: Plane,
        send: SendStream,
        recv: RecvStream,
    ) -> impl Future<Output = ()> + Send;
}

/// Accepts connections until `shutdown`. What is being handled then gets `drain` to finish; the
/// endpoint is left open for its owner to close.
pub async fn serve<H: Handler>(endpoint: Endpoint, handler: Arc<H>, shutdown: CancellationToken, drain: Duration) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            () = shutdown.cancelled() => break,
            // Ended tasks are taken out as we go, so that the set holds only what runs.
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => incoming,
                None => break,
            },
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let (endpoint, handler, shutdown) = (endpoint.clone(), handler.clone(), shutdown.clone());
        connections.spawn(async move {
            let _place = place;
            match endpoint.establish(incoming).await {
                Ok(connection) => {
                    let span =
                        info_span!("connection", peer = %connection.peer().id, role = connection.peer().role.as_str());
                    serve_connection(connection, handler, shutdown, drain).instrument(span).await;
                }
                Err(error) => debug!(%error, "handshake failed"),
            }
        });
    }
    endpoint.refuse_new();
    // Each connection drains by itself within `drain`; the margin covers scheduling.
    let _ = tokio::time::timeout(drain + Duration::from_secs(1), async {
        while connections.join_next().await.is_some() {}
    })
    .await;
}

async fn serve_connection<H: Handler>(
    connection: Connection,
    handler: Arc<H>,
    shutdown: CancellationToken,
    drain: Duration,
) {
    // The transport bounds the streams of one connection.
    let mut streams = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = streams.join_next(), if !streams.is_empty() => {}
            stream = connection.accept() => match stream {
                Ok((send, recv)) => {
                    let (peer, plane, handler) = (connection.peer(), connection.plane(), handler.clone());
                    streams.spawn(async move { handler.handle(peer, plane, send, recv).await }.in_current_span());
                }
                Err(error) => {
                    debug!(%error, "connection ended");
                    break;
                }
            },
        }
    }
    let _ = tokio::time::timeout(drain, async { while streams.join_next().await.is_some() {} }).await;
}

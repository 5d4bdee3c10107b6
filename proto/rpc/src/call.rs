use std::time::Duration;

use dfs_proto::WireError;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::endpoint::Connection;
use crate::error::RpcError;

/// One request and one reply on a stream of its own. When `deadline` passes the stream is given up;
/// whether the request was carried out is then unknown.
pub async fn call<Q: Serialize, A: DeserializeOwned>(
    connection: &Connection,
    request: &Q,
    deadline: Duration,
) -> Result<A, RpcError> {
    within(deadline, async {
        let (mut send, mut recv) = connection.open().await?;
        send.send(request).await?;
        send.finish();
        recv.recv::<Result<A, WireError>>().await?.map_err(RpcError::Refused)
    })
    .await
}

/// As `call`, for messages up to `limits::RAFT_FRAME_MAX`.
pub async fn call_large<Q: Serialize, A: DeserializeOwned>(
    connection: &Connection,
    request: &Q,
    deadline: Duration,
) -> Result<A, RpcError> {
    within(deadline, async {
        let (mut send, mut recv) = connection.open().await?;
        send.send(request).await?;
        send.finish();
        recv.recv_large::<Result<A, WireError>>().await?.map_err(RpcError::Refused)
    })
    .await
}

async fn within<A>(deadline: Duration, work: impl Future<Output = Result<A, RpcError>>) -> Result<A, RpcError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(RpcError::Timeout(deadline.as_millis())))
}

//! The way to a node of this machine. What does not leave the machine need not be encrypted, cut into datagrams and
//! acknowledged: it goes through a Unix socket, which QUIC has told of. PROTOCOL.md, section 1.

use std::time::Duration;

use dfs_proto::WireError;
use dfs_proto::msg::data::{DataRequest, LocalDoor, LocalHello, LocalUse};
use parking_lot::Mutex;
use tracing::debug;

use crate::endpoint::Connection;
use crate::error::RpcError;
use crate::local::LocalStream;
use crate::moment::Moment;
use crate::stream::{RecvStream, SendStream};

/// For all of it. A node that does not open its door by then is reached as others are.
const ENTER_DEADLINE: Duration = Duration::from_millis(500);

/// How long a door that was shut is not tried again.
const SHUT: Duration = Duration::from_secs(5);

/// Whether the near way to a node is worth trying.
#[derive(Default, Debug)]
pub(crate) struct Near {
    shut_until: Mutex<Option<Moment>>,
}

impl Connection {
    /// A stream of the data plane for bulk bytes: within this machine if the node runs on it and lets us in, and like that
    /// of `open` if not. Like that one it breaks off with either process, and with this connection.
    pub async fn open_near(&self) -> Result<(SendStream, RecvStream), RpcError> {
        let now = Moment::now();
        if self.is_local() && self.near().shut_until.lock().is_none_or(|until| until <= now) {
            let work = async {
                let mut stream = self.enter(LocalUse::Stream).await?;
                stream.recv::<Result<(), WireError>>().await?.map_err(RpcError::Refused)?;
                Ok(stream)
            };
            let entered: Result<LocalStream, RpcError> = tokio::time::timeout(ENTER_DEADLINE, work)
                .await
                .unwrap_or(Err(RpcError::Timeout(ENTER_DEADLINE.as_millis())));
            match entered {
                Ok(stream) => return Ok(stream.into_halves_beside(Some(self.clone()))),
                Err(error) => {
                    debug!(peer = %self.peer(), %error, "not reached within this machine");
                    *self.near().shut_until.lock() = Some(now + SHUT);
                }
            }
        }
        self.open().await
    }

    /// A connection within this machine to a datanode that runs on it.
    pub async fn enter(&self, wants: LocalUse) -> Result<LocalStream, RpcError> {
        let (mut send, mut recv) = self.open().await?;
        send.send(&DataRequest::Local).await?;
        send.finish();
        let door: LocalDoor = recv.recv::<Result<LocalDoor, WireError>>().await?.map_err(RpcError::Refused)?;
        let mut stream = LocalStream::connect(&door.name)?;
        stream.send(&LocalHello { ticket: door.ticket, wants }).await?;
        Ok(stream)
    }
}

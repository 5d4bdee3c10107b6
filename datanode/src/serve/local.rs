//! Who is on this machine comes in by a door of its own. Clients get chunk files instead of bytes, with the same check of
//! permission, and verify frames as they do with what comes over the network. And whoever sends bulk bytes, or wants some,
//! has the streams of the data plane without a network below them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::limits::LOCAL_TICKET_S;
use dfs_proto::msg::data::{FRAME_HEADER_LEN, LocalChunk, LocalDoor, LocalHello, LocalOpen, LocalUse};
use dfs_proto::{Access, ErrorKind, FrameHeader, PeerIdentity, Plane, WireError};
use dfs_rpc::{Handler, LocalListener, LocalStream, RpcError};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span, warn};

use super::DataService;
use crate::node::Node;

const TICKET: Duration = Duration::from_secs(LOCAL_TICKET_S);

/// Tickets that are good at one time. A client asks for one when it first reads here.
const TICKETS_MAX: usize = 1024;

/// Local connections at once: one for each client on this machine, and one for each stream. Who finds no place takes the
/// network.
const CONNECTIONS_MAX: usize = 1024;

/// From the connection to its ticket.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// A client that takes nothing for so long is given up.
const SEND_DEADLINE: Duration = Duration::from_secs(10);

/// A client that wants nothing for so long may come again.
const IDLE_DEADLINE: Duration = Duration::from_secs(600);

/// Where local clients knock, and who was told.
pub struct Door {
    name: String,
    tickets: Mutex<HashMap<[u8; 32], (PeerIdentity, Instant)>>,
}

impl Door {
    /// Draws a name that nobody can have taken before.
    pub fn new() -> Door {
        Door { name: format!("dfs-{:032x}", rand::random::<u128>()), tickets: Mutex::default() }
    }

    /// Lets a peer, whose certificate is known, come in by the door.
    pub fn admit(&self, peer: PeerIdentity, now: Instant) -> Result<LocalDoor, WireError> {
        let mut tickets = self.tickets.lock();
        tickets.retain(|_, (_, given)| now.duration_since(*given) < TICKET);
        if tickets.len() >= TICKETS_MAX {
            return Err(WireError::new(ErrorKind::Unavailable, "too many clients ask for the local way at once"));
        }
        let ticket = rand::random();
        tickets.insert(ticket, (peer, now));
        Ok(LocalDoor { name: self.name.clone(), ticket })
    }

    /// Whose ticket it is. It is good once.
    fn redeem(&self, ticket: &[u8; 32], now: Instant) -> Option<PeerIdentity> {
        let (peer, given) = self.tickets.lock().remove(ticket)?;
        (now.duration_since(given) < TICKET).then_some(peer)
    }
}

/// Serves who is on this machine until `stop`; streams that run then get `drain` to finish. A node that cannot listen goes
/// on without.
pub async fn run(service: Arc<DataService>, stop: CancellationToken, drain: Duration) {
    let listener = match LocalListener::bind(&service.node.door.name) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "clients on this machine use the network");
            return stop.cancelled().await;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = listener.accept() => accepted,
        };
        match (accepted, places.clone().try_acquire_owned()) {
            (Ok(stream), Ok(place)) => {
                let (service, stop) = (service.clone(), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    if let Err(error) = serve(&service, stream, stop).await {
                        debug!(%error, "local client has gone");
                    }
                });
            }
            (Ok(_), Err(_)) => debug!("too many local clients: one was turned away"),
            (Err(error), _) => {
                // No descriptor is free, for example.
                info!(%error, "local client not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let _ = tokio::time::timeout(drain, async { while connections.join_next().await.is_some() {} }).await;
}

async fn serve(service: &DataService, mut stream: LocalStream, stop: CancellationToken) -> Result<(), RpcError> {
    let LocalHello { ticket, wants } = within(HELLO_DEADLINE, stream.recv()).await?;
    let Some(peer) = service.node.door.redeem(&ticket, Instant::now()) else {
        debug!("local client without a good ticket");
        return Ok(());
    };
    match wants {
        LocalUse::Files => {
            let files = serve_files(&service.node, peer, stream);
            stop.run_until_cancelled(files).await.unwrap_or(Ok(()))
        }
        LocalUse::Stream => {
            within(SEND_DEADLINE, stream.send(&Ok::<_, WireError>(()))).await?;
            let (send, recv) = stream.into_halves();
            let span = info_span!("local stream", peer = %peer.id, role = peer.role.as_str());
            service.handle(peer, Plane::Data, send, recv).instrument(span).await;
            Ok(())
        }
    }
}

async fn serve_files(node: &Arc<Node>, peer: PeerIdentity, mut stream: LocalStream) -> Result<(), RpcError> {
    loop {
        let request: LocalOpen = within(IDLE_DEADLINE, stream.recv()).await?;
        let answer = open(node, &peer, &request).await;
        within(SEND_DEADLINE, send(&mut stream, answer)).await?;
    }
}

async fn open(
    node: &Arc<Node>,
    peer: &PeerIdentity,
    request: &LocalOpen,
) -> Result<(LocalChunk, File, Vec<FrameHeader>), WireError> {
    let chunk = request.chunk;
    node.admit(peer, &request.capability, chunk, Access::Read)?;
    let opened = node.store.blocking(move |store| store.local_file(chunk)).await;
    opened.and_then(|opened| opened).map_err(|error| error.to_wire())
}

async fn send(
    stream: &mut LocalStream,
    answer: Result<(LocalChunk, File, Vec<FrameHeader>), WireError>,
) -> Result<(), RpcError> {
    let (chunk, file, frames) = match answer {
        Ok(found) => found,
        Err(error) => return stream.send(&Err::<LocalChunk, _>(error)).await,
    };
    stream.send(&Ok::<_, WireError>(chunk)).await?;
    stream.send_file(&file).await?;
    let mut headers = Vec::with_capacity(frames.len() * FRAME_HEADER_LEN);
    frames.iter().for_each(|frame| headers.extend_from_slice(&frame.to_bytes()));
    stream.send_raw(&headers).await
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    tokio::time::timeout(deadline, work).await.unwrap_or(Err(RpcError::Timeout(deadline.as_millis())))
}

#[cfg(test)]
mod tests {
    use dfs_proto::{ClusterId, NodeId, Role};

    use super::*;

    fn peer(id: u64) -> PeerIdentity {
        PeerIdentity { cluster: ClusterId([7; 16]), role: Role::Client, id: NodeId(id) }
    }

    #[test]
    fn a_ticket_is_good_once_and_for_whom_it_was_given() {
        let (door, now) = (Door::new(), Instant::now());
        let ticket = door.admit(peer(500), now).unwrap().ticket;
        assert_eq!(door.redeem(&[1; 32], now), None);
        assert_eq!(door.redeem(&ticket, now), Some(peer(500)));
        assert_eq!(door.redeem(&ticket, now), None);
    }

    #[test]
    fn a_ticket_ends_and_there_are_not_many_at_once() {
        let (door, now) = (Door::new(), Instant::now());
        let ticket = door.admit(peer(500), now).unwrap().ticket;
        assert_eq!(door.redeem(&ticket, now + TICKET), None);
        (0..TICKETS_MAX).for_each(|_| assert!(door.admit(peer(500), now).is_ok()));
        assert_eq!(door.admit(peer(500), now).unwrap_err().kind, ErrorKind::Unavailable);
        assert!(door.admit(peer(500), now + TICKET).is_ok());
    }
}

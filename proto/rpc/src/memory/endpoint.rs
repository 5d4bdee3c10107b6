use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_proto::{PeerIdentity, Plane};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::fabric::{Fabric, Host};
use super::line::{Connection, Handle};
use crate::endpoint::{HANDSHAKE_DEADLINE, INCOMING_MAX, Target};
use crate::error::RpcError;
use crate::tls::Tls;
use crate::transport::client_idle;

/// Pause before a handshake is sent again, doubled each time.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Clone)]
pub(crate) struct Endpoint(Arc<Bound>);

struct Bound {
    fabric: Fabric,
    addr: SocketAddr,
    tls: Tls,
    listener: Option<Arc<Listener>>,
    incoming: tokio::sync::Mutex<mpsc::Receiver<Incoming>>,
    /// What ends with the endpoint; those that are over are taken out when others come.
    connections: Mutex<Vec<Weak<Handle>>>,
    closed: AtomicBool,
}

/// Where others knock.
pub(super) struct Listener {
    planes: Vec<Plane>,
    tls: Tls,
    /// `None` when nobody new is wanted.
    queue: Mutex<Option<mpsc::Sender<Incoming>>>,
}

/// What the one who dials has sent.
pub(crate) struct Incoming {
    addr: SocketAddr,
    plane: Plane,
    tls: Tls,
    answer: oneshot::Sender<Result<Connection, String>>,
}

impl Incoming {
    pub fn refuse(self, reason: &str) {
        // Whoever dialled may have given up.
        let _ = self.answer.send(Err(reason.to_owned()));
    }

    pub fn remote_address(&self) -> SocketAddr {
        self.addr
    }
}

impl Host {
    /// An endpoint of this machine that accepts the given planes, if any.
    pub(crate) fn bind(&self, tls: &Tls, addr: SocketAddr, planes: &[Plane]) -> Result<Endpoint, RpcError> {
        if !addr.ip().is_unspecified() && addr.ip() != self.ip {
            let reason = format!("the address is not of this machine, {}", self.ip);
            return Err(RpcError::Io { what: format!("cannot bind {addr}"), reason });
        }
        let port = if addr.port() == 0 { self.fabric.free_port() } else { addr.port() };
        let addr = SocketAddr::new(self.ip, port);
        let (queue, incoming) = mpsc::channel(INCOMING_MAX);
        let listener = (!planes.is_empty())
            .then(|| Arc::new(Listener { planes: planes.to_vec(), tls: tls.clone(), queue: Mutex::new(Some(queue)) }));
        if let Some(listener) = &listener {
            self.fabric.listen(addr, listener)?;
        }
        Ok(Endpoint(Arc::new(Bound {
            fabric: self.fabric.clone(),
            addr,
            tls: tls.clone(),
            listener,
            incoming: tokio::sync::Mutex::new(incoming),
            connections: Mutex::default(),
            closed: AtomicBool::new(false),
        })))
    }
}

impl Endpoint {
    pub fn local_addr(&self) -> SocketAddr {
        self.0.addr
    }

    pub async fn connect(&self, target: &Target, expected: PeerIdentity) -> Result<Connection, RpcError> {
        let unreachable = |reason: String| RpcError::Unreachable { addr: target.addr, reason };
        tokio::time::timeout(HANDSHAKE_DEADLINE, self.shake_hands(target, expected))
            .await
            .map_err(|_| unreachable(format!("no handshake within {} s", HANDSHAKE_DEADLINE.as_secs())))?
            .map_err(unreachable)
    }

    async fn shake_hands(&self, target: &Target, expected: PeerIdentity) -> Result<Connection, String> {
        let (bound, to) = (&self.0, target.addr.ip());
        let mut pause = AGAIN;
        let listener = loop {
            if bound.closed.load(Ordering::Relaxed) {
                return Err("the endpoint is closed".into());
            }
            tokio::time::sleep(bound.fabric.draw_delay(bound.addr.ip(), to)).await;
            // A hello that nobody hears, or whose answer nobody hears, is sent again.
            let heard = !bound.fabric.is_cut(bound.addr.ip(), to) && !bound.fabric.is_cut(to, bound.addr.ip());
            match bound.fabric.listener(target.addr) {
                Some(listener) if heard => break listener,
                _ => tokio::time::sleep(pause).await,
            }
            pause *= 2;
        };
        bound.tls.verify_server(&listener.tls, expected)?;
        if !listener.planes.contains(&target.plane) {
            return Err("peer doesn't support any known protocol".into());
        }
        let (answer, answered) = oneshot::channel();
        let incoming = Incoming { addr: bound.addr, plane: target.plane, tls: bound.tls.clone(), answer };
        let offered = match &*listener.queue.lock() {
            Some(queue) => queue.try_send(incoming).is_ok(),
            None => false,
        };
        drop(listener);
        if !offered {
            return Err("the server refused to accept a new connection".into());
        }
        let connection = answered.await.map_err(|_| "the server has ended".to_owned())??;
        tokio::time::sleep(bound.fabric.draw_delay(to, bound.addr.ip())).await;
        bound.fabric.arrives(to, bound.addr.ip()).await;
        self.keep(&connection);
        Ok(connection)
    }

    pub async fn accept(&self) -> Option<Incoming> {
        self.0.incoming.lock().await.recv().await
    }

    pub fn establish(&self, incoming: Incoming) -> Result<(Connection, PeerIdentity, Plane), RpcError> {
        let bound = &self.0;
        let peer = match bound.tls.verify_client(&incoming.tls) {
            Ok(peer) => peer,
            Err(reason) => {
                let addr = incoming.addr;
                incoming.refuse(&reason);
                return Err(RpcError::Unreachable { addr, reason });
            }
        };
        let idle = client_idle(incoming.plane);
        let (theirs, ours) = Connection::pair(&bound.fabric, [incoming.addr, bound.addr], idle);
        self.keep(&ours);
        let plane = incoming.plane;
        // Whoever dialled may have given up: the line then ends with the half that is dropped here.
        let _ = incoming.answer.send(Ok(theirs));
        Ok((ours, peer, plane))
    }

    fn keep(&self, connection: &Connection) {
        let mut connections = self.0.connections.lock();
        connections.retain(|other| other.strong_count() > 0);
        connections.push(connection.downgrade());
    }

    pub fn refuse_new(&self) {
        if let Some(listener) = &self.0.listener {
            listener.queue.lock().take();
        }
    }

    pub fn close(&self) {
        self.0.close();
    }
}

impl Bound {
    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(listener) = &self.listener {
            listener.queue.lock().take();
            self.fabric.unlisten(self.addr, listener);
        }
        let connections = std::mem::take(&mut *self.connections.lock());
        for connection in connections.iter().filter_map(Weak::upgrade) {
            connection.close("closing");
        }
    }
}

/// What still runs lives on, as with a socket.
impl Drop for Bound {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            self.fabric.unlisten(self.addr, listener);
        }
    }
}

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{ErrorKind, NodeId, PeerIdentity, Plane, Role, WireError};
use quinn::VarInt;

use crate::error::RpcError;
use crate::near::Near;
use crate::network::Network;
use crate::stream::{RecvStream, SendStream};
use crate::tls::Tls;
use crate::{memory, quic};

/// A handshake that takes longer is given up, by either side.
pub(crate) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(3);

/// Handshakes that may wait to be accepted.
pub(crate) const INCOMING_MAX: usize = 1024;

/// Whom to connect to, for which plane. The certificate presented there must name just this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub plane: Plane,
    pub role: Role,
    pub node: NodeId,
    pub addr: SocketAddr,
}

/// A UDP socket that speaks QUIC under this process's identity; or, on a network in memory, what stands for it.
#[derive(Clone)]
pub struct Endpoint {
    inner: Inner,
    tls: Tls,
}

#[derive(Clone)]
enum Inner {
    Quic(quic::Endpoint),
    Memory(memory::Endpoint),
}

/// A connection attempt of somebody.
pub(crate) enum Incoming {
    Quic(Box<quinn::Incoming>),
    Memory(memory::Incoming),
}

impl Incoming {
    pub fn refuse(self) {
        match self {
            Incoming::Quic(incoming) => incoming.refuse(),
            Incoming::Memory(incoming) => incoming.refuse("refused"),
        }
    }

    fn remote_address(&self) -> SocketAddr {
        match self {
            Incoming::Quic(incoming) => incoming.remote_address(),
            Incoming::Memory(incoming) => incoming.remote_address(),
        }
    }
}

impl Endpoint {
    /// An endpoint that only dials, over UDP. Must be called within a tokio runtime, as `server`.
    pub fn client(tls: &Tls) -> Result<Endpoint, RpcError> {
        Endpoint::client_on(&Network::Udp, tls)
    }

    /// An endpoint that accepts the given planes at the UDP address `addr`, and can dial too.
    pub fn server(tls: &Tls, addr: SocketAddr, planes: &[Plane]) -> Result<Endpoint, RpcError> {
        Endpoint::server_on(&Network::Udp, tls, addr, planes)
    }

    /// As `client`, on this network.
    pub fn client_on(network: &Network, tls: &Tls) -> Result<Endpoint, RpcError> {
        Endpoint::server_on(network, tls, SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), &[])
    }

    /// As `server`, on this network.
    pub fn server_on(network: &Network, tls: &Tls, addr: SocketAddr, planes: &[Plane]) -> Result<Endpoint, RpcError> {
        let inner = match network {
            Network::Udp => Inner::Quic(quic::Endpoint::new(tls, addr, planes)?),
            Network::Memory(host) => Inner::Memory(host.bind(tls, addr, planes)?),
        };
        Ok(Endpoint { inner, tls: tls.clone() })
    }

    pub fn identity(&self) -> PeerIdentity {
        self.tls.identity()
    }

    pub fn local_addr(&self) -> Result<SocketAddr, RpcError> {
        match &self.inner {
            Inner::Quic(endpoint) => endpoint.local_addr(),
            Inner::Memory(endpoint) => Ok(endpoint.local_addr()),
        }
    }

    /// Connects within 3 s, or says why not. The peer has then proved to be `target.node` of our cluster.
    pub async fn connect(&self, target: &Target) -> Result<Connection, RpcError> {
        let expected = PeerIdentity { cluster: self.identity().cluster, role: target.role, id: target.node };
        let line = match &self.inner {
            Inner::Quic(endpoint) => Line::Quic(endpoint.connect(target, expected).await?),
            Inner::Memory(endpoint) => Line::Memory(endpoint.connect(target, expected).await?),
        };
        Ok(Connection::new(line, expected, target.plane))
    }

    /// The next connection attempt; `None` once the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<Incoming> {
        match &self.inner {
            Inner::Quic(endpoint) => endpoint.accept().await.map(|incoming| Incoming::Quic(Box::new(incoming))),
            Inner::Memory(endpoint) => endpoint.accept().await.map(Incoming::Memory),
        }
    }

    /// Finishes the handshake of an accepted attempt and finds out who it is.
    pub(crate) async fn establish(&self, incoming: Incoming) -> Result<Connection, RpcError> {
        let addr = incoming.remote_address();
        let (line, peer, plane) = match (&self.inner, incoming) {
            (Inner::Quic(endpoint), Incoming::Quic(incoming)) => {
                let (line, peer, plane) = endpoint.establish(*incoming).await?;
                (Line::Quic(line), peer, plane)
            }
            (Inner::Memory(endpoint), Incoming::Memory(incoming)) => {
                let (line, peer, plane) = endpoint.establish(incoming)?;
                (Line::Memory(line), Some(peer), Some(plane))
            }
            _ => return Err(RpcError::Closed("the attempt is of another network".into())),
        };
        match (peer.filter(|peer| peer.cluster == self.identity().cluster), plane) {
            (Some(peer), Some(plane)) => Ok(Connection::new(line, peer, plane)),
            _ => {
                line.close(1, "not of this cluster");
                Err(RpcError::Refused(WireError::new(
                    ErrorKind::Forbidden,
                    format!("{addr} is not of this cluster or speaks no known plane"),
                )))
            }
        }
    }

    pub(crate) fn refuse_new(&self) {
        match &self.inner {
            Inner::Quic(endpoint) => endpoint.refuse_new(),
            Inner::Memory(endpoint) => endpoint.refuse_new(),
        }
    }

    /// Ends every connection and tells the peers.
    pub async fn close(&self) {
        match &self.inner {
            Inner::Quic(endpoint) => endpoint.close().await,
            Inner::Memory(endpoint) => endpoint.close(),
        }
    }
}

/// An authenticated connection for one plane. Clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    line: Line,
    peer: PeerIdentity,
    plane: Plane,
    near: Arc<Near>,
}

#[derive(Clone, Debug)]
enum Line {
    Quic(quinn::Connection),
    Memory(memory::Connection),
}

impl Line {
    fn close(&self, code: u32, reason: &str) {
        match self {
            Line::Quic(line) => line.close(VarInt::from_u32(code), reason.as_bytes()),
            Line::Memory(line) => line.close(reason),
        }
    }
}

impl Connection {
    fn new(line: Line, peer: PeerIdentity, plane: Plane) -> Connection {
        Connection { line, peer, plane, near: Arc::default() }
    }

    pub(crate) fn near(&self) -> &Near {
        &self.near
    }

    pub fn peer(&self) -> PeerIdentity {
        self.peer
    }

    pub fn plane(&self) -> Plane {
        self.plane
    }

    /// A stream for one request. Waits while the peer has `STREAMS_MAX` of ours under way.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), RpcError> {
        match &self.line {
            Line::Quic(line) => {
                let (send, recv) = line.open_bi().await?;
                Ok((SendStream::quic(send), RecvStream::quic(recv)))
            }
            Line::Memory(line) => {
                let (send, recv) = line.open().await?;
                Ok((SendStream::memory(send), RecvStream::memory(recv)))
            }
        }
    }

    /// The next stream that the peer opens.
    pub(crate) async fn accept(&self) -> Result<(SendStream, RecvStream), RpcError> {
        match &self.line {
            Line::Quic(line) => {
                let (send, recv) = line.accept_bi().await?;
                Ok((SendStream::quic(send), RecvStream::quic(recv)))
            }
            Line::Memory(line) => {
                let (send, recv) = line.accept().await?;
                Ok((SendStream::memory(send), RecvStream::memory(recv)))
            }
        }
    }

    /// Whether the peer's address is one of this machine, as far as this connection shows it.
    pub fn is_local(&self) -> bool {
        match &self.line {
            Line::Quic(line) => {
                let peer = line.remote_address().ip().to_canonical();
                peer.is_loopback() || line.local_ip().is_some_and(|own| own.to_canonical() == peer)
            }
            Line::Memory(line) => line.is_local(),
        }
    }

    /// Returns when the connection has ended, for whatever reason.
    pub(crate) async fn closed(&self) {
        match &self.line {
            Line::Quic(line) => _ = line.closed().await,
            // Nothing waits beside one: there are no sockets in memory.
            Line::Memory(_) => std::future::pending().await,
        }
    }

    pub fn is_closed(&self) -> bool {
        match &self.line {
            Line::Quic(line) => line.close_reason().is_some(),
            Line::Memory(line) => line.is_closed(),
        }
    }

    /// Datagrams received so far. Whoever lives sends one at least once a second.
    pub fn received(&self) -> u64 {
        match &self.line {
            Line::Quic(line) => line.stats().udp_rx.datagrams,
            Line::Memory(line) => line.received(),
        }
    }

    pub fn close(&self) {
        self.line.close(0, "closing");
    }
}

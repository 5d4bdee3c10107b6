use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{NodeId, PeerIdentity, Plane, Role};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TokioRuntime, VarInt};
use rustls_pki_types::CertificateDer;

use crate::error::RpcError;
use crate::stream::{RecvStream, SendStream};
use crate::tls::{Tls, identity_of};
use crate::transport::{UDP_PAYLOAD_MAX, bind, client_transport, server_transport};

/// A handshake that takes longer is given up, by either side.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(3);

/// Handshakes that may wait to be accepted, and bytes buffered for them: strangers get no more.
const INCOMING_MAX: usize = 1024;
const INCOMING_BYTES_MAX: u64 = 16 << 20;

/// Whom to connect to, for which plane. The certificate presented there must name just this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Target {
    pub plane: Plane,
    pub role: Role,
    pub node: NodeId,
    pub addr: SocketAddr,
}

/// A UDP socket that speaks QUIC under this process's identity.
#[derive(Clone)]
pub struct Endpoint {
    inner: quinn::Endpoint,
    tls: Tls,
    clients: Arc<[(Plane, Arc<QuicClientConfig>)]>,
}

impl Endpoint {
    /// An endpoint that only dials. Must be called within a tokio runtime, as `server`.
    pub fn client(tls: &Tls) -> Result<Endpoint, RpcError> {
        Endpoint::new(tls, SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), None)
    }

    /// An endpoint that accepts the given planes at `addr`, and can dial too.
    pub fn server(tls: &Tls, addr: SocketAddr, planes: &[Plane]) -> Result<Endpoint, RpcError> {
        let crypto =
            QuicServerConfig::try_from(tls.server_config(planes)?).map_err(|e| RpcError::Tls(e.to_string()))?;
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        server
            .transport_config(server_transport(addr.ip()))
            .migration(false)
            .max_incoming(INCOMING_MAX)
            .incoming_buffer_size_total(INCOMING_BYTES_MAX);
        Endpoint::new(tls, addr, Some(server))
    }

    fn new(tls: &Tls, addr: SocketAddr, server: Option<quinn::ServerConfig>) -> Result<Endpoint, RpcError> {
        let socket = bind(addr)?;
        // The reset key outlives the process, so that a restarted node ends its old connections at
        // once instead of leaving its peers to time out.
        let reset_key =
            ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &tls.derive_secret("dfs 2026 quic stateless reset"));
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        config.max_udp_payload_size(UDP_PAYLOAD_MAX).map_err(|e| RpcError::Tls(e.to_string()))?;
        let inner = quinn::Endpoint::new(config, server, socket, Arc::new(TokioRuntime))
            .map_err(|e| RpcError::Io { what: format!("cannot use UDP {addr}"), reason: e.to_string() })?;
        let clients = Plane::ALL
            .into_iter()
            .map(|plane| {
                let crypto =
                    QuicClientConfig::try_from(tls.client_config(plane)?).map_err(|e| RpcError::Tls(e.to_string()))?;
                Ok((plane, Arc::new(crypto)))
            })
            .collect::<Result<_, RpcError>>()?;
        Ok(Endpoint { inner, tls: tls.clone(), clients })
    }

    pub fn identity(&self) -> PeerIdentity {
        self.tls.identity()
    }

    pub fn local_addr(&self) -> Result<SocketAddr, RpcError> {
        self.inner.local_addr().map_err(|e| RpcError::Io { what: "local address".into(), reason: e.to_string() })
    }

    /// Connects within 3 s, or says why not. The peer has then proved to be `target.node` of our cluster.
    pub async fn connect(&self, target: &Target) -> Result<Connection, RpcError> {
        let unreachable = |reason: String| RpcError::Unreachable { addr: target.addr, reason };
        let crypto = self
            .clients
            .iter()
            .find_map(|(plane, crypto)| (*plane == target.plane).then(|| crypto.clone()))
            .ok_or_else(|| unreachable("unknown plane".into()))?;
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(client_transport(target.plane, target.addr.ip()));
        let expected = PeerIdentity { cluster: self.identity().cluster, role: target.role, id: target.node };
        let connecting = self
            .inner
            .connect_with(config, target.addr, &expected.to_string())
            .map_err(|e| unreachable(e.to_string()))?;
        let inner = tokio::time::timeout(HANDSHAKE_DEADLINE, connecting)
            .await
            .map_err(|_| unreachable(format!("no handshake within {} s", HANDSHAKE_DEADLINE.as_secs())))?
            .map_err(|e| unreachable(e.to_string()))?;
        Ok(Connection { inner, peer: expected, plane: target.plane })
    }

    /// The next connection attempt; `None` once the endpoint is closed.
    pub(crate) async fn accept(&self) -> Option<quinn::Incoming> {
        self.inner.accept().await
    }

    /// Finishes the handshake of an accepted attempt and finds out who it is.
    pub(crate) async fn establish(&self, incoming: quinn::Incoming) -> Result<Connection, RpcError> {
        let addr = incoming.remote_address();
        let unreachable = |reason: String| RpcError::Unreachable { addr, reason };
        let connecting = incoming.accept()?;
        let inner = tokio::time::timeout(HANDSHAKE_DEADLINE, connecting)
            .await
            .map_err(|_| unreachable("handshake not finished in time".into()))?
            .map_err(|e| unreachable(e.to_string()))?;
        let peer = inner
            .peer_identity()
            .and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok())
            .and_then(|chain| chain.first().and_then(identity_of))
            .filter(|peer| peer.cluster == self.identity().cluster);
        let plane = inner
            .handshake_data()
            .and_then(|any| any.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol)
            .and_then(|alpn| Plane::ALL.into_iter().find(|plane| plane.alpn() == alpn));
        match (peer, plane) {
            (Some(peer), Some(plane)) => Ok(Connection { inner, peer, plane }),
            _ => {
                inner.close(VarInt::from_u32(1), b"not of this cluster");
                Err(RpcError::Refused(dfs_proto::WireError::new(
                    dfs_proto::ErrorKind::Forbidden,
                    format!("{addr} is not of this cluster or speaks no known plane"),
                )))
            }
        }
    }

    pub(crate) fn refuse_new(&self) {
        self.inner.set_server_config(None);
    }

    /// Ends every connection and waits, at most a second, until the peers have been told.
    pub async fn close(&self) {
        self.inner.close(VarInt::from_u32(0), b"closing");
        // A peer that is gone does not answer; there is nothing to do about that.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.inner.wait_idle()).await;
    }
}

/// An authenticated connection for one plane. Clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    inner: quinn::Connection,
    peer: PeerIdentity,
    plane: Plane,
}

impl Connection {
    pub fn peer(&self) -> PeerIdentity {
        self.peer
    }

    pub fn plane(&self) -> Plane {
        self.plane
    }

    /// A stream for one request. Waits while the peer has `STREAMS_MAX` of ours under way.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), RpcError> {
        let (send, recv) = self.inner.open_bi().await?;
        Ok((SendStream::new(send), RecvStream::new(recv)))
    }

    /// The next stream that the peer opens.
    pub(crate) async fn accept(&self) -> Result<(SendStream, RecvStream), RpcError> {
        let (send, recv) = self.inner.accept_bi().await?;
        Ok((SendStream::new(send), RecvStream::new(recv)))
    }

    /// Whether the peer's address is one of this machine, as far as this connection shows it.
    pub fn is_local(&self) -> bool {
        let peer = self.inner.remote_address().ip().to_canonical();
        peer.is_loopback() || self.inner.local_ip().is_some_and(|own| own.to_canonical() == peer)
    }

    pub fn is_closed(&self) -> bool {
        self.inner.close_reason().is_some()
    }

    /// Datagrams received so far. Whoever lives sends one at least once a second.
    pub fn received(&self) -> u64 {
        self.inner.stats().udp_rx.datagrams
    }

    pub fn close(&self) {
        self.inner.close(VarInt::from_u32(0), b"closing");
    }
}

//! Endpoints of the real network: UDP sockets that speak QUIC.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::{PeerIdentity, Plane};
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{EndpointConfig, TokioRuntime, VarInt};
use rustls_pki_types::CertificateDer;

use crate::endpoint::{HANDSHAKE_DEADLINE, INCOMING_MAX, Target};
use crate::error::RpcError;
use crate::tls::{Tls, identity_of};
use crate::transport::{UDP_PAYLOAD_MAX, bind, client_transport, server_transport};

/// Bytes buffered for handshakes that wait to be accepted: strangers get no more.
const INCOMING_BYTES_MAX: u64 = 16 << 20;

/// How long peers are waited for at the end. The word is sent at once; what comes later only answers those who have not
/// heard it, and whoever has only dialled need not: its peers notice by silence. A command would take longer for its
/// goodbye than for all it has to say.
const FAREWELL: Duration = Duration::from_secs(1);
const FAREWELL_OF_DIALLERS: Duration = Duration::from_millis(10);

#[derive(Clone)]
pub(crate) struct Endpoint {
    inner: quinn::Endpoint,
    farewell: Duration,
    clients: Arc<[(Plane, Arc<QuicClientConfig>)]>,
}

impl Endpoint {
    /// An endpoint at `addr` that accepts the given planes, if any.
    pub fn new(tls: &Tls, addr: SocketAddr, planes: &[Plane]) -> Result<Endpoint, RpcError> {
        let server = if planes.is_empty() { None } else { Some(server_config(tls, addr, planes)?) };
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
        let farewell = if planes.is_empty() { FAREWELL_OF_DIALLERS } else { FAREWELL };
        Ok(Endpoint { inner, farewell, clients })
    }

    pub fn local_addr(&self) -> Result<SocketAddr, RpcError> {
        self.inner.local_addr().map_err(|e| RpcError::Io { what: "local address".into(), reason: e.to_string() })
    }

    pub async fn connect(&self, target: &Target, expected: PeerIdentity) -> Result<quinn::Connection, RpcError> {
        let unreachable = |reason: String| RpcError::Unreachable { addr: target.addr, reason };
        let crypto = self
            .clients
            .iter()
            .find_map(|(plane, crypto)| (*plane == target.plane).then(|| crypto.clone()))
            .ok_or_else(|| unreachable("unknown plane".into()))?;
        let mut config = quinn::ClientConfig::new(crypto);
        config.transport_config(client_transport(target.plane, target.addr.ip()));
        let connecting = self
            .inner
            .connect_with(config, target.addr, &expected.to_string())
            .map_err(|e| unreachable(e.to_string()))?;
        tokio::time::timeout(HANDSHAKE_DEADLINE, connecting)
            .await
            .map_err(|_| unreachable(format!("no handshake within {} s", HANDSHAKE_DEADLINE.as_secs())))?
            .map_err(|e| unreachable(e.to_string()))
    }

    pub async fn accept(&self) -> Option<quinn::Incoming> {
        self.inner.accept().await
    }

    /// Finishes the handshake of an accepted attempt. What the certificate and the protocol name is `None` if it is
    /// nothing of ours.
    pub async fn establish(
        &self,
        incoming: quinn::Incoming,
    ) -> Result<(quinn::Connection, Option<PeerIdentity>, Option<Plane>), RpcError> {
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
            .and_then(|chain| chain.first().and_then(identity_of));
        let plane = inner
            .handshake_data()
            .and_then(|any| any.downcast::<HandshakeData>().ok())
            .and_then(|data| data.protocol)
            .and_then(|alpn| Plane::ALL.into_iter().find(|plane| plane.alpn() == alpn));
        Ok((inner, peer, plane))
    }

    pub fn refuse_new(&self) {
        self.inner.set_server_config(None);
    }

    /// Ends every connection and tells the peers.
    pub async fn close(&self) {
        self.inner.close(VarInt::from_u32(0), b"closing");
        // A peer that is gone does not answer; there is nothing to do about that.
        let _ = tokio::time::timeout(self.farewell, self.inner.wait_idle()).await;
    }
}

fn server_config(tls: &Tls, addr: SocketAddr, planes: &[Plane]) -> Result<quinn::ServerConfig, RpcError> {
    let crypto = QuicServerConfig::try_from(tls.server_config(planes)?).map_err(|e| RpcError::Tls(e.to_string()))?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(server_transport(addr.ip()))
        .migration(false)
        .max_incoming(INCOMING_MAX)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX);
    Ok(server)
}

//! QUIC's settings, each with the trap it avoids.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::Plane;
use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};

use crate::congestion::FlooredConfig;
use crate::error::RpcError;

/// The largest UDP payload we send or accept. Cost is per packet, so large is fast; but ten of them
/// (one segmentation batch) must fit the kernel's 65,507 bytes, or sends are dropped in silence.
pub(crate) const UDP_PAYLOAD_MAX: u16 = 6500;

/// Bytes a peer may have under way on one stream and on one connection. Enough for a 10 Gbit/s link at
/// 10 ms; memory is at most this per connection.
pub(crate) const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// A congestion window to start from: inside a cluster the first megabyte need not be probed for.
const INITIAL_WINDOW: u64 = 2 << 20;

/// Requests under way on one connection. More would only queue behind the same disk.
pub(crate) const STREAMS_MAX: u32 = 256;

/// Packets received before an acknowledgement is sent for its own sake, and how long they wait for one. What answers a
/// request carries it otherwise: a packet for nothing but that costs both sides as much as one with a message. Few enough
/// that a sender whose window was cut down by losses does not wait for the time to pass.
const ACK_EVERY: u32 = 8;
const ACK_DELAY: Duration = Duration::from_millis(5);

/// Kernel buffers of a socket; the default of 208 KiB drops packets even on loopback.
const SOCKET_BUFFER: usize = 4 << 20;

/// How long a connection may be silent: the shorter time of the two sides is valid, which is that of the one who dialled.
pub(crate) fn client_idle(plane: Plane) -> Duration {
    // A dead peer is noticed by silence, and whoever lives says something once a second: no disk, however busy, keeps a
    // node from that. A dead datanode holds up a stream for as long as this, so it is short.
    match plane {
        Plane::Raft => Duration::from_secs(4),
        Plane::Meta => Duration::from_secs(6),
        Plane::Data => Duration::from_secs(3),
    }
}

pub(crate) fn client_transport(plane: Plane, peer: IpAddr) -> Arc<TransportConfig> {
    Arc::new(transport(client_idle(plane), peer.is_loopback()))
}

pub(crate) fn server_transport(bind: IpAddr) -> Arc<TransportConfig> {
    Arc::new(transport(Duration::from_secs(10), bind.is_loopback()))
}

fn transport(idle: Duration, loopback: bool) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(UDP_PAYLOAD_MAX);
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_DELAY));
    let mut config = TransportConfig::default();
    config
        .ack_frequency_config(Some(acks))
        .max_idle_timeout(Some(IdleTimeout::try_from(idle).expect("seconds fit a varint")))
        .keep_alive_interval(Some(Duration::from_secs(1)))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(FlooredConfig(Arc::new(cubic))));
    if loopback {
        // The path is known to carry it: no probing, and a burst of loss does not shrink it.
        config.initial_mtu(UDP_PAYLOAD_MAX).min_mtu(UDP_PAYLOAD_MAX).initial_rtt(Duration::from_millis(1));
    }
    config
}

/// A bound UDP socket with buffers as large as the kernel allows (`net.core.rmem_max`).
pub(crate) fn bind(addr: SocketAddr) -> Result<UdpSocket, RpcError> {
    let failed = |e: std::io::Error| RpcError::Io { what: format!("cannot bind UDP {addr}"), reason: e.to_string() };
    let domain = if addr.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
    let socket = socket2::Socket::new(domain, socket2::Type::DGRAM, Some(socket2::Protocol::UDP)).map_err(failed)?;
    socket.set_recv_buffer_size(SOCKET_BUFFER).map_err(failed)?;
    socket.set_send_buffer_size(SOCKET_BUFFER).map_err(failed)?;
    socket.bind(&addr.into()).map_err(failed)?;
    Ok(socket.into())
}

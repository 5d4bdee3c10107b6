//! The protocol over QUIC: who may connect, how a message is framed, how long anything may take. And the same in memory, in
//! virtual time, for simulations of whole clusters.
//!
//! quinn, rustls and rcgen stop here. Others see connections whose peer is known, streams that carry
//! messages and raw bytes, and errors that say what to do next.

mod call;
mod congestion;
mod endpoint;
mod error;
mod home;
mod local;
mod memory;
mod moment;
mod near;
mod network;
pub mod pki;
mod pool;
mod quic;
mod serve;
mod stream;
mod tls;
mod transport;
mod virtual_time;

pub use call::{call, call_large};
pub use endpoint::{Connection, Endpoint, Target};
pub use error::RpcError;
pub use home::{Home, HomeError};
pub use local::{LocalListener, LocalStream};
pub use memory::{Fabric, Host};
pub use moment::{Moment, since_1970};
pub use network::Network;
pub use pool::Pool;
pub use serve::{Handler, serve};
pub use stream::{RecvStream, SendStream};
pub use tls::{Tls, TlsFiles};
pub use virtual_time::{OtherThread, VirtualTime};

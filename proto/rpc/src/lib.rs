//! The protocol over QUIC: who may connect, how a message is framed, how long anything may take.
//!
//! quinn, rustls and rcgen stop here. Others see connections whose peer is known, streams that carry
//! messages and raw bytes, and errors that say what to do next.

mod call;
mod congestion;
mod endpoint;
mod error;
mod home;
mod local;
mod moment;
pub mod pki;
mod pool;
mod serve;
mod stream;
mod tls;
mod transport;

pub use call::{call, call_large};
pub use endpoint::{Connection, Endpoint, Target};
pub use error::RpcError;
pub use home::{Home, HomeError};
pub use local::{LocalListener, LocalStream};
pub use moment::Moment;
pub use pool::Pool;
pub use serve::{Handler, serve};
pub use stream::{RecvStream, SendStream};
pub use tls::{Tls, TlsFiles};

//! A network in memory, for whole clusters in one process: beside QUIC, and with what callers know of QUIC.
//!
//! * `fabric`: machines, and the links between them: how long they take, and whether they carry anything.
//! * `endpoint`: who listens where, and the handshake. Certificates are verified as in TLS; nothing is encrypted.
//! * `line`: a connection. Two tasks carry what each side sends, a third listens for silence.
//! * `stream`: one stream of bytes, with a window, and its ends.
//!
//! Everything goes by tokio's clock. A cut link loses nothing by itself: what was sent waits, as it would for being sent
//! again, and arrives when the link is mended, or never, when the connection has timed out before.

mod endpoint;
mod fabric;
mod line;
mod stream;
#[cfg(test)]
mod tests;

pub(crate) use endpoint::{Endpoint, Incoming};
pub use fabric::{Fabric, Host};
pub(crate) use line::Connection;
pub(crate) use stream::{RecvStream, SendStream};

//! What carries connections.

use crate::memory::Host;

/// What an endpoint stands on. Whoever starts a node or a client may say; without a word it is the real network.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum Network {
    #[default]
    Udp,
    /// A machine of a network in memory, see `Fabric`.
    Memory(Host),
}

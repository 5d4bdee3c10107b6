//! A datanode: keeps chunk replicas with checksums, serves them over QUIC, and does what the leading
//! namenode orders.
//!
//! * `store`: files, crash rules, the table of what is where. Blocks; knows no network.
//! * `serve`: the data plane, reads and append streams.
//! * `heartbeat`: tells every namenode how the node stands, and hears the leader.
//! * `orders`, `replicate`, `gather`: what the leader orders, carried out; `source` is how they read of other nodes.
//! * `scrub`, `upkeep`, `drain`: background work by deadline, by interval, by wish.
//!
//! The formats on disk are drawn in `FORMAT.md`.

mod clock;
mod config;
mod drain;
mod gather;
mod heartbeat;
mod node;
mod orders;
mod replicate;
mod run;
mod scrub;
mod serve;
mod source;
mod store;
mod upkeep;

pub use config::{Config, NamenodeAddr};
pub use run::{prepare, run};
pub use store::{FileReport, VerifyError, verify_file};

#[cfg(test)]
mod scratch;
#[cfg(test)]
mod tests;

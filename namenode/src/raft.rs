//! Consensus among the namenodes. openraft stops here: others see `Consensus`.
//!
//! ```text
//! propose ─► batcher ─► openraft ─► log_store ─► store::log_writer (synced)
//!                          │ committed
//!                          ▼
//!                    state_machine ─► dfs_meta::apply ─► store::state (one write batch)
//! ```
#![allow(clippy::result_large_err, reason = "the errors are openraft's own")]

mod barrier;
mod batcher;
mod change;
mod clock;
mod elections;
mod handover;
mod lease;
mod links;
mod log_store;
mod membership;
mod network;
mod node;
mod presence;
mod snapshot;
mod snapshot_transfer;
mod state_machine;
mod types;

pub use batcher::Kept;
pub use change::{Change, Picture, Steps, plan};
pub use clock::machine_time;
pub use links::Links;
pub use network::RaftServer;
pub use node::{Consensus, Options, Standing};
pub use types::Member;

#[cfg(test)]
mod suite_test;

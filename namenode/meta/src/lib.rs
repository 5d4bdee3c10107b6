//! The part that decides: `apply(view, commands) -> outcomes + changes + events`, queries, placement,
//! repair planning, checks.
//!
//! This crate does no IO, reads no clock, draws no random number and starts no task. Every namenode
//! that applies the same commands to the same rows computes the same changes, byte for byte. The
//! argument why the whole is consistent is told in `namenode/CONSISTENCY.md`.

pub mod command;
pub mod compaction;
pub mod duty;
pub mod fsck;
pub mod locks;
pub mod placement;
pub mod private;
pub mod query;
pub mod reconcile;
pub mod repair;
pub mod rows;
pub mod view;

mod acl;
mod apply;
mod chunks;
mod dedup;
mod extents;
mod local;
#[cfg(test)]
mod model;
mod ops;
mod permission;
#[cfg(test)]
mod testing;
mod tree;
mod tx;
mod usage;
mod xattrs;

pub use apply::apply;
pub use command::{Applied, Body, Command, Event, HolderChange, Outcome, Reply};
pub use local::{LocalTree, Routed};
pub use view::{Change, Fault, MemoryView, Table, View};

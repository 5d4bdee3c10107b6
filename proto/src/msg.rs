//! The messages, by who speaks to whom. `proto/PROTOCOL.md` tells their order and their meaning.
//!
//! Every message is an enum whose variants are only ever added at the end.

pub mod admin;
pub mod data;
pub mod group;
pub mod meta;
pub mod node;

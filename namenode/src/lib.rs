//! The namenode: keeps the namespace and the placement of every chunk in a replicated state machine.
//!
//! `dfs_meta` decides, this crate acts: it replicates commands (`raft`), keeps rows (`store`), answers
//! requests (`server`), and while it leads it watches over sessions, datanodes and replicas (`leader`,
//! `workers`).

mod config;
mod fail_stop;
mod group;
mod leader;
mod namenode;
mod raft;
mod run;
mod server;
mod store;
mod workers;

pub use config::{Config, Peer, Timers};
pub use run::run;

//! Reads and writes files of a cluster: `Dfs` is the file system, `File` an open file.
//!
//! Everything here runs inside a tokio runtime. Bytes written are kept in memory until they are
//! committed, uploaded in the background, and overlaid on what is read.

mod admin;
mod client;
mod config;
mod deadline;
mod dfs;
mod error;
mod failures;
mod file;
mod holding;
mod leader;
mod lent;
mod locks;
mod namespace;
mod nodes;
mod open;
mod opened_ahead;
mod paths;
mod private;
mod ranges;
mod read;
mod session;
mod watch;
mod write;

pub use config::{ClusterConfig, MountDir, NodeAddr, Options};
pub use dfs::Dfs;
pub use dfs_rpc::TlsFiles;
pub use error::{Error, Result};
pub use file::{Fallocate, File, OpenMode};
pub use lent::{Mark, TakeBack};
pub use locks::Chance;
pub use namespace::{Made, MakeOptions};
pub use paths::{Walk, WalkEntry};

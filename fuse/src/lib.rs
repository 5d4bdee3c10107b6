//! The mount: a cluster as a directory of this machine, through FUSE.
//!
//! What applications may rely on is promised in `SEMANTICS.md`. From the outside in: `mount` checks the
//! mount point, starts the session and ends it; `adapter` is where the fuser library stops and only
//! translates; `fs` does the operations with [`dfs_client::Dfs`].

mod adapter;
mod fs;
mod mount;

pub use fs::caller::{Identity, Squash};
pub use mount::{MountOptions, run};

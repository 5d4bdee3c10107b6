//! The test bed: a real local cluster of separate processes, faults to give it, work to do on it, and
//! checks of what it promised. It knows the product only through the `dfs` program and the mount.

mod audit;
mod ledger;
mod local;
mod mount_helper;
mod tree;

pub use audit::audit_replicas;
pub use ledger::{Ledger, LedgerReport};
pub use local::{Cluster, Layout};
pub use mount_helper::MountHelper;
pub use tree::{Digest, Tree, copy_file, copy_tree, digest_file};

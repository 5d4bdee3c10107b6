//! The operations of the mount, over [`dfs_client::Dfs`].
//!
//! One method for each thing that the kernel asks, in terms of inodes, names and handles; `fuser` is unknown
//! here. There is no table of inodes: their numbers are the cluster's and never used again, so the kernel's
//! references need no counting.

pub mod admission;
mod attributes;
pub mod caller;
pub mod directory;
pub mod errno;
pub mod file;
pub mod file_ranges;
pub mod handles;
mod lending;
pub mod locks;
mod names;
mod open_inodes;
mod targets;
mod xattrs;

use std::sync::Arc;
use std::time::Duration;

use admission::Admission;
use caller::Squash;
use dfs_client::Dfs;
use dfs_proto::InodeId;
use handles::Handles;
use locks::Locks;
use open_inodes::OpenInodes;
use targets::Targets;

/// Everything a mount knows while it lasts.
pub struct Fs {
    dfs: Dfs,
    /// The directory that is the top of the mount.
    pub root: InodeId,
    pub squash: Squash,
    handles: Handles,
    open_inodes: Arc<OpenInodes>,
    locks: Locks,
    targets: Targets,
    pub admission: Admission,
}

impl Fs {
    /// `deadline`: when an operation that is still running is answered with ETIMEDOUT; `None` for never.
    pub fn new(dfs: Dfs, root: InodeId, squash: Squash, deadline: Option<Duration>) -> Fs {
        let open_inodes = Arc::new(OpenInodes::default());
        let admission = Admission::new(deadline);
        let (handles, locks, targets) = (Handles::new(), Locks::new(deadline), Targets::default());
        Fs { dfs, root, squash, handles, open_inodes, locks, targets, admission }
    }
}

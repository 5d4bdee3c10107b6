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
pub mod handles;
mod names;
mod open_inodes;
mod removals;
mod xattrs;

use std::sync::Arc;
use std::time::Duration;

use admission::Admission;
use dfs_client::Dfs;
use handles::Handles;
use open_inodes::OpenInodes;
use removals::Removals;
use xattrs::KnownKinds;

/// Everything a mount knows while it lasts.
pub struct Fs {
    dfs: Dfs,
    handles: Handles,
    open_inodes: Arc<OpenInodes>,
    removals: Removals,
    known_kinds: KnownKinds,
    pub admission: Admission,
}

impl Fs {
    /// `deadline`: when an operation that is still running is answered with ETIMEDOUT; `None` for never.
    pub fn new(dfs: Dfs, deadline: Option<Duration>) -> Fs {
        let open_inodes = Arc::new(OpenInodes::default());
        let admission = Admission::new(deadline);
        let (handles, removals, known_kinds) = (Handles::new(), Removals::new(), KnownKinds::default());
        Fs { dfs, handles, open_inodes, removals, known_kinds, admission }
    }
}

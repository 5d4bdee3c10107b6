//! The test bed: a real local cluster of separate processes, faults to give it, work to do on it, and
//! checks of what it promised. It knows the product only through the `dfs` program and the mount.

mod audit;
mod check;
mod dice;
pub mod fault;
pub mod fixture;
pub mod hostile;
mod launcher;
mod ledger;
mod local;
mod mount_helper;
mod registers;
mod renames;
mod stream;
mod tree;
mod unsynced;
mod verdict;

pub use audit::{DiskReplica, audit_replicas, replicas_of};
pub use check::{AtRest, check_at_rest, check_fsck, check_nothing_left_over, fsck};
pub use dice::Dice;
pub use fault::Fault;
pub use ledger::{CallError, Ledger, LedgerReport, Names, OnError};
pub use local::{Cluster, Layout, is_alive, output_within};
pub use mount_helper::MountHelper;
pub use registers::{Registers, RegistersReport, history, judge};
pub use renames::{Renames, RenamesReport};
pub use stream::{Stream, StreamReport};
pub use tree::{Digest, Tree, copy_file, copy_tree, digest_file};
pub use unsynced::{Unsynced, UnsyncedFound, UnsyncedReport};
pub use verdict::{Invariant, Verdict, Violation};

//! The operations, one file each: its checks, its changes, its tests.
//!
//! An operation may refuse at any point: what it has changed until then is taken back by the caller
//! (`Tx::attempt`).

pub(crate) mod allocate;
pub(crate) mod clone;
pub(crate) mod commit;
pub(crate) mod compact;
pub(crate) mod datanode;
pub(crate) mod fallocate;
pub(crate) mod genesis;
pub(crate) mod link;
pub(crate) mod lock;
pub(crate) mod make;
pub(crate) mod namenode;
pub(crate) mod note_reads;
pub(crate) mod open;
pub(crate) mod reclaim;
pub(crate) mod release;
pub(crate) mod rename;
pub(crate) mod replica;
pub(crate) mod reserve;
pub(crate) mod rmdir;
pub(crate) mod sequence;
pub(crate) mod session;
pub(crate) mod set_attr;
pub(crate) mod share;
pub(crate) mod unlink;
pub(crate) mod xattr;

//! What an administrator asks.

use dfs_proto::InodeId;
use dfs_proto::msg::admin::{FileInfo, FsckReport, Member, Status};

use crate::config::NodeAddr;
use crate::dfs::Dfs;
use crate::error::Result;

impl Dfs {
    /// The status as the first namenode that answers within 5 s sees it; the leader's if there is one.
    pub async fn status_any(&self) -> Result<Status> {
        unimplemented!()
    }

    /// The leading namenode, waited for until the deadline.
    pub async fn leader(&self) -> Result<NodeAddr> {
        unimplemented!()
    }

    /// Checks everything at and below `root`.
    pub async fn fsck(&self, root: InodeId) -> Result<FsckReport> {
        let _ = root;
        unimplemented!()
    }

    pub async fn file_info(&self, inode: InodeId) -> Result<FileInfo> {
        let _ = inode;
        unimplemented!()
    }

    /// Makes the leader take a snapshot and purge its log.
    pub async fn snapshot(&self) -> Result<()> {
        unimplemented!()
    }

    /// Once in a cluster's life: forms the namenode group.
    pub async fn initialize(&self, members: Vec<Member>, default_replication: u8, min_copies: u8) -> Result<()> {
        let _ = (members, default_replication, min_copies);
        unimplemented!()
    }
}

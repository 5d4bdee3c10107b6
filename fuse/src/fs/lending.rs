//! For how long the kernel believes what it is told.

use std::ffi::OsStr;
use std::time::Duration;

use dfs_client::TakeBack;
use dfs_proto::{Attr, InodeId};

use super::Fs;
use super::names::parse;

/// At most so long. The kernel checks permissions in each directory of a path right after it has looked that up, and would
/// ask for the attributes a second time. Whoever changes an inode of which a kernel may not have heard yet, or looks first
/// into a private directory, waits a little longer than this.
const TTL: Duration = Duration::from_millis(100);

impl Fs {
    /// Attributes that it is about to be told. Not of a file that is being written here, whose size and times change
    /// without anybody's asking.
    pub fn attr_ttl(&self, attr: &Attr) -> Duration {
        match self.open_inodes.is_writable(attr.inode) {
            true => Duration::ZERO,
            false => self.dfs.lend(attr, TTL),
        }
    }

    /// That a name, which was looked up, leads to this inode.
    pub fn name_ttl(&self, parent: InodeId, name: &OsStr, attr: &Attr) -> Duration {
        parse(name).map_or(Duration::ZERO, |name| self.dfs.lend_name(parent, &name, attr, TTL))
    }

    /// As `name_ttl`, of a name that was listed.
    pub fn listed_name_ttl(&self, parent: InodeId, name: &OsStr, attr: &Attr) -> Duration {
        parse(name).map_or(Duration::ZERO, |name| self.dfs.lend_listed_name(parent, &name, attr, TTL))
    }

    /// Whom to ask to forget attributes. Before that nothing is believed.
    pub fn set_take_back(&self, take_back: TakeBack) {
        self.dfs.set_take_back(take_back);
    }
}

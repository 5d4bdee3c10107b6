//! Opening a file and taking its name away, kept apart.

use dfs_proto::InodeId;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Files share gates, at no cost but that an open may wait for the removal of another file, a few milliseconds.
const GATES: usize = 1024;

/// With a removal goes word whether the file is open here, which makes it live on without a name. An open that was
/// answered after this was looked up and before the removal took place would lose its file. So opens of an inode
/// wait while its name is being removed; they then find it gone, and the kernel looks up the name again.
pub struct Removals {
    gates: Vec<RwLock<()>>,
}

impl Removals {
    pub fn new() -> Removals {
        Removals { gates: (0..GATES).map(|_| RwLock::new(())).collect() }
    }

    /// To be held while the inode is opened.
    pub async fn opening(&self, inode: InodeId) -> RwLockReadGuard<'_, ()> {
        self.gate(inode).read().await
    }

    /// To be held while a name of the inode is removed. Nobody holds two of these, so none waits for another in a
    /// circle.
    pub async fn removing(&self, inode: InodeId) -> RwLockWriteGuard<'_, ()> {
        self.gate(inode).write().await
    }

    fn gate(&self, inode: InodeId) -> &RwLock<()> {
        &self.gates[(inode.0 % GATES as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn is_ready(future: impl Future) -> bool {
        matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
    }

    #[tokio::test]
    async fn an_open_waits_for_the_removal_of_its_file_only() {
        let removals = Removals::new();
        let removing = removals.removing(InodeId(5)).await;
        assert!(!is_ready(removals.opening(InodeId(5))));
        assert!(is_ready(removals.opening(InodeId(6))));
        drop(removing);
        assert!(is_ready(removals.opening(InodeId(5))));
    }

    #[tokio::test]
    async fn opens_do_not_wait_for_each_other() {
        let removals = Removals::new();
        let _one = removals.opening(InodeId(5)).await;
        assert!(is_ready(removals.opening(InodeId(5))));
        assert!(!is_ready(removals.removing(InodeId(5))));
    }
}

//! What is known about each open file's pages in the kernel's cache.

use std::collections::HashMap;

use dfs_proto::InodeId;
use parking_lot::Mutex;

/// Files without a handle whose version is remembered. Each entry is about 40 bytes; forgetting one costs
/// one more read from the cluster.
const CLOSED_MAX: usize = 65_536;

/// Decides at each open whether the kernel may keep the pages it has.
///
/// The pages of a file are *of version v* if each of them was read through handles that were opened at
/// version v. A handle may go on reading what it saw when it was opened, so while handles of two versions
/// are open, and once the file has been written here, nothing is known until all of them are closed.
///
/// The kernel drops older pages when it gets the answer to an open, and nobody tells when that is. Another open
/// that is answered at the same time must not rely on it. So pages are of a version only once a handle of that
/// version has been closed: its open has long been answered then.
#[derive(Default)]
pub struct OpenInodes {
    inodes: Mutex<HashMap<InodeId, Pages>>,
}

#[derive(Default)]
struct Pages {
    version: Option<u64>,
    /// The version of all handles; the kernel may not have dropped the pages of before yet.
    dropping: Option<u64>,
    handles: usize,
    /// Those of the handles that may write.
    writers: usize,
}

impl OpenInodes {
    /// Counts a handle that was opened at `version`. Answers whether the cached pages are of it; if not, the
    /// kernel must drop them, which it does before the open returns.
    pub fn opened(&self, inode: InodeId, version: u64, writes: bool) -> bool {
        let mut inodes = self.inodes.lock();
        if inodes.len() >= 2 * CLOSED_MAX {
            forget_closed(&mut inodes);
        }
        let pages = inodes.entry(inode).or_default();
        let keep = pages.version == Some(version);
        if !keep {
            pages.version = None;
            pages.dropping = (pages.handles == 0 || pages.dropping == Some(version)).then_some(version);
        }
        pages.handles += 1;
        pages.writers += usize::from(writes);
        keep
    }

    /// Uncounts a handle.
    pub fn closed(&self, inode: InodeId, writes: bool) {
        let mut inodes = self.inodes.lock();
        let Some(pages) = inodes.get_mut(&inode) else { return };
        pages.handles = pages.handles.saturating_sub(1);
        pages.writers = pages.writers.saturating_sub(usize::from(writes));
        if let Some(version) = pages.dropping.take() {
            pages.version = Some(version);
        }
        if pages.handles == 0 && pages.version.is_none() {
            inodes.remove(&inode);
        }
    }

    /// The file changes through this mount: its next version may hold other mounts' bytes as well, which the
    /// cached pages lack.
    pub fn changed(&self, inode: InodeId) {
        let mut inodes = self.inodes.lock();
        let Some(pages) = inodes.get_mut(&inode) else { return };
        pages.version = None;
        pages.dropping = None;
        if pages.handles == 0 {
            inodes.remove(&inode);
        }
    }

    /// Whether some handle may write the file.
    pub fn is_writable(&self, inode: InodeId) -> bool {
        self.inodes.lock().get(&inode).is_some_and(|pages| pages.writers > 0)
    }
}

/// Drops closed files until `CLOSED_MAX` are left of all, in no order: it is a cache.
fn forget_closed(inodes: &mut HashMap<InodeId, Pages>) {
    let mut excess = inodes.len() - CLOSED_MAX;
    inodes.retain(|_, pages| {
        let drop = excess > 0 && pages.handles == 0;
        excess -= usize::from(drop);
        !drop
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: InodeId = InodeId(7);

    #[test]
    fn pages_are_kept_only_at_the_version_they_were_read_at() {
        let open = OpenInodes::default();
        assert!(!open.opened(FILE, 1, false));
        open.closed(FILE, false);
        assert!(open.opened(FILE, 1, false));
        open.closed(FILE, false);
        assert!(!open.opened(FILE, 2, false));
        open.closed(FILE, false);
        assert!(open.opened(FILE, 2, false));
    }

    #[test]
    fn a_handle_of_an_older_version_spoils_the_pages_until_all_are_closed() {
        let open = OpenInodes::default();
        open.opened(FILE, 1, false);
        assert!(!open.opened(FILE, 2, false));
        assert!(!open.opened(FILE, 2, false), "the first handle may have filled pages of version 1 again");
        for _ in 0..3 {
            open.closed(FILE, false);
        }
        assert!(!open.opened(FILE, 2, false));
        open.closed(FILE, false);
        assert!(open.opened(FILE, 2, false));
    }

    #[test]
    fn an_open_does_not_rely_on_pages_that_another_open_is_about_to_drop() {
        let open = OpenInodes::default();
        open.opened(FILE, 1, false);
        open.closed(FILE, false);
        // Two opens find version 2 at the same time. The kernel may get the second answer first.
        assert!(!open.opened(FILE, 2, false));
        assert!(!open.opened(FILE, 2, false), "pages of version 1 may still be there");
        open.closed(FILE, false);
        assert!(open.opened(FILE, 2, false));
        open.closed(FILE, false);
        // A newer version comes up while one of these is still open.
        assert!(!open.opened(FILE, 3, false));
        open.closed(FILE, false);
        assert!(!open.opened(FILE, 3, false), "the handle of version 2 may have read pages of its own");
    }

    #[test]
    fn own_writes_spoil_the_pages() {
        let open = OpenInodes::default();
        open.opened(FILE, 1, true);
        open.changed(FILE);
        assert!(!open.opened(FILE, 1, false));
        open.closed(FILE, false);
        open.closed(FILE, true);
        assert!(!open.opened(FILE, 2, false));
        open.closed(FILE, false);
        assert!(open.opened(FILE, 2, false));
    }

    #[test]
    fn a_change_of_a_closed_file_is_noticed() {
        let open = OpenInodes::default();
        open.opened(FILE, 1, false);
        open.closed(FILE, false);
        open.changed(FILE);
        assert!(!open.opened(FILE, 1, false));
    }

    #[test]
    fn writers_are_counted() {
        let open = OpenInodes::default();
        open.opened(FILE, 1, true);
        open.opened(FILE, 1, false);
        assert!(open.is_writable(FILE));
        open.closed(FILE, true);
        assert!(!open.is_writable(FILE));
    }

    #[test]
    fn closed_files_are_forgotten_beyond_the_limit_and_open_ones_never() {
        let open = OpenInodes::default();
        open.opened(FILE, 1, true);
        for number in 0..3 * CLOSED_MAX as u64 {
            let inode = InodeId(100 + number);
            open.opened(inode, 1, false);
            open.closed(inode, false);
        }
        assert!(open.inodes.lock().len() <= 2 * CLOSED_MAX);
        assert!(open.is_writable(FILE));
    }
}

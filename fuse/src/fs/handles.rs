//! The table of open files and directories: what the kernel calls a file handle.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;

use super::directory::OpenDirectory;
use super::errno::Errno;
use super::file::OpenFile;

/// Something open, with the state that belongs to being open.
#[derive(Clone)]
pub enum Handle {
    File(Arc<OpenFile>),
    Directory(Arc<OpenDirectory>),
}

/// How the kernel names a handle: never 0, never used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HandleId(pub u64);

/// All handles of one mount. The kernel bounds them: each belongs to a file descriptor of a process.
pub struct Handles {
    table: DashMap<HandleId, Handle>,
    next: AtomicU64,
}

impl Handles {
    pub fn new() -> Handles {
        Handles { table: DashMap::new(), next: AtomicU64::new(1) }
    }

    pub fn insert(&self, handle: Handle) -> HandleId {
        let id = HandleId(self.next.fetch_add(1, Ordering::Relaxed));
        self.table.insert(id, handle);
        id
    }

    /// Fails with EBADF if there is no such handle or it is a directory's.
    pub fn file(&self, id: HandleId) -> Result<Arc<OpenFile>, Errno> {
        match self.table.get(&id).as_deref() {
            Some(Handle::File(file)) => Ok(file.clone()),
            Some(Handle::Directory(_)) | None => Err(Errno::BAD_HANDLE),
        }
    }

    /// Fails with EBADF if there is no such handle or it is a file's.
    pub fn directory(&self, id: HandleId) -> Result<Arc<OpenDirectory>, Errno> {
        match self.table.get(&id).as_deref() {
            Some(Handle::Directory(directory)) => Ok(directory.clone()),
            Some(Handle::File(_)) | None => Err(Errno::BAD_HANDLE),
        }
    }

    pub fn remove(&self, id: HandleId) -> Option<Handle> {
        self.table.remove(&id).map(|(_, handle)| handle)
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::InodeId;

    use super::*;

    fn directory(inode: u64) -> Handle {
        Handle::Directory(Arc::new(OpenDirectory::new(InodeId(inode))))
    }

    #[test]
    fn a_handle_is_found_until_it_is_removed_and_its_number_never_comes_again() {
        let handles = Handles::new();
        let first = handles.insert(directory(5));
        let second = handles.insert(directory(6));
        assert_ne!(first, HandleId(0));
        assert_ne!(first, second);
        assert_eq!(handles.directory(second).unwrap().inode(), InodeId(6));

        assert!(handles.remove(first).is_some());
        assert!(handles.remove(first).is_none());
        assert_eq!(handles.directory(first).err(), Some(Errno::BAD_HANDLE));
        assert_ne!(handles.insert(directory(5)), first);
    }

    #[test]
    fn a_directory_is_no_file() {
        let handles = Handles::new();
        let id = handles.insert(directory(5));
        assert_eq!(handles.file(id).err(), Some(Errno::BAD_HANDLE));
    }
}

//! Files and folders that survive a power cut: whole, or not there at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{StoreError, io};

/// Writes a small file so that after a crash it has its old or its new content.
pub fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary).map_err(io(&temporary))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(io(&temporary))?;
    fs::rename(&temporary, path).map_err(io(path))?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Makes the names in a folder durable.
pub fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io(path))
}

/// Makes `to` a copy of the database folder `from`. Table files are immutable and are linked where the
/// file system allows it; everything else (RocksDB rewrites it when it opens a database) is copied.
pub fn clone_database(from: &Path, to: &Path) -> Result<(), StoreError> {
    fs::create_dir_all(to).map_err(io(to))?;
    for entry in fs::read_dir(from).map_err(io(from))? {
        let entry = entry.map_err(io(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let immutable = source.extension().is_some_and(|extension| extension == "sst");
        if immutable && fs::hard_link(&source, &target).is_ok() {
            continue;
        }
        fs::copy(&source, &target).map_err(io(&source))?;
        File::open(&target).and_then(|file| file.sync_all()).map_err(io(&target))?;
    }
    sync_dir(to)
}

/// Removes a folder and all in it, if it is there.
pub fn remove_dir(path: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io(path)(e)),
        _ => Ok(()),
    }
}

/// A folder that others may still be reading when it is no longer wanted: once doomed, it is removed
/// when its last user drops it. One that a crash leaves behind is removed at the next start.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    doomed: AtomicBool,
}

impl Folder {
    pub fn new(path: PathBuf) -> Folder {
        Folder { path, doomed: AtomicBool::new(false) }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn doom(&self) {
        self.doomed.store(true, Ordering::Release);
    }

    pub fn keep(&self) {
        self.doomed.store(false, Ordering::Release);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.doomed.load(Ordering::Acquire)
            && let Err(error) = remove_dir(&self.path)
        {
            tracing::warn!(%error, "a folder that is no longer used cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cloned_database_shares_no_file_that_can_change() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::write(from.join("000001.sst"), "table").unwrap();
        fs::write(from.join("MANIFEST-000002"), "manifest").unwrap();
        clone_database(&from, &to).unwrap();
        fs::write(to.join("MANIFEST-000002"), "changed").unwrap();
        assert_eq!(fs::read(from.join("MANIFEST-000002")).unwrap(), b"manifest");
        assert_eq!(fs::read(to.join("000001.sst")).unwrap(), b"table");
    }
}

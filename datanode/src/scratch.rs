//! Folders for tests.

use std::path::Path;

use tempfile::TempDir;

/// A folder in memory where there is one: the tests sync a great deal, and none needs a disk that can
/// lose its power.
pub fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a folder for the test")
}

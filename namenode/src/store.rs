//! What a namenode keeps on its disk. RocksDB stops here.
//!
//! Two databases: the Raft log, whose every write is synced, and the state, whose writes are not (the
//! log repeats them after a crash). They are apart because write stalls stop a whole database, and
//! because unsynced state must not ride on each sync of the log.
//!
//! ```text
//! data_dir/
//!   IDENTITY, LOCK        whose folder it is, and that one process uses it
//!   log/                  the Raft log
//!   state/LIVE            which generation of the state is in use
//!   state/<generation>/   the state database
//!   snapshots/<name>/     META and db/: a checkpoint of the state
//!   incoming/             a snapshot that is being received; emptied at start
//! ```

pub mod files;
pub mod hash;
pub mod log;
pub mod log_writer;
pub mod reserve;
pub mod state;

/// RocksDB or the file system failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{what}: {source}")]
    Db {
        what: &'static str,
        #[source]
        source: rocksdb::Error,
    },
    #[error("{}: {source}", path.display())]
    Io {
        path: std::path::PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Damaged(String),
}

impl StoreError {
    /// Nothing is wrong but that the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            StoreError::Io { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            // RocksDB hands the system's words through, and has no kind for this one.
            StoreError::Db { source, .. } => source.as_ref().contains("No space left on device"),
            StoreError::Damaged(_) => false,
        }
    }
}

/// For `map_err`: says what was being done.
fn db(what: &'static str) -> impl Fn(rocksdb::Error) -> StoreError {
    move |source| StoreError::Db { what, source }
}

/// For `map_err`: says which path it was.
fn io(path: &std::path::Path) -> impl Fn(std::io::Error) -> StoreError + '_ {
    move |source| StoreError::Io { path: path.to_owned(), source }
}

/// Settings that both databases share. Paranoid checks: an error while reading means damage, and a
/// damaged node stops and is rebuilt from its peers; it never repairs itself and leads.
fn options() -> rocksdb::Options {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // What a crash leaves half written at the end of a log was never acknowledged. Anything else that does not read
    // well is damage: by RocksDB's default it would be dropped, with all that follows it, and nobody told.
    options.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(8 << 20);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let of = |kind: std::io::ErrorKind| io(std::path::Path::new("/disk"))(kind.into());
        assert!(of(std::io::ErrorKind::StorageFull).is_no_space());
        assert!(!of(std::io::ErrorKind::Other).is_no_space());
        assert!(!StoreError::Damaged("a row is cut off".into()).is_no_space());
    }
}

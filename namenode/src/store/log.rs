//! The Raft log's database: entries by index, and the few marks that must be ordered with them.
//!
//! Everything is in one column family, so that one synced write covers entries, vote and purge mark.

use std::path::Path;

use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteBatch, WriteOptions};

use super::{StoreError, db, options};

/// Entry keys: this byte, then the index, big-endian, so that keys sort as indexes do.
const ENTRY: u8 = b'e';
/// Ends the range of entry keys.
const ENTRIES_END: [u8; 1] = [ENTRY + 1];

/// A mark beside the entries.
#[derive(Clone, Copy, Debug)]
pub enum Mark {
    Vote,
    /// The id of the last purged entry.
    Purged,
    /// The last id known to be committed; may lag after a crash.
    Committed,
    /// What the other namenodes have told of themselves; may lag after a crash.
    Peers,
}

impl Mark {
    fn key(self) -> &'static [u8] {
        match self {
            Mark::Vote => b"m.vote",
            Mark::Purged => b"m.purged",
            Mark::Committed => b"m.committed",
            Mark::Peers => b"m.peers",
        }
    }
}

/// One change of the log.
#[derive(Debug)]
pub enum LogChange {
    Append {
        index: u64,
        entry: Vec<u8>,
    },
    /// Removes entries from this index on.
    Truncate {
        from: u64,
    },
    /// Removes entries up to and with this index.
    Purge {
        to: u64,
    },
    Mark(Mark, Vec<u8>),
}

pub struct LogDb {
    db: DB,
}

impl LogDb {
    pub fn open(path: &Path) -> Result<LogDb, StoreError> {
        let mut options = options();
        options.set_write_buffer_size(64 << 20);
        Ok(LogDb { db: DB::open(&options, path).map_err(db("cannot open the log"))? })
    }

    /// Does the changes in their order, all or none of them. With `sync` they are on the disk when this
    /// returns; RocksDB does not sync unless it is told to.
    pub fn write(&self, changes: &[LogChange], sync: bool) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        for change in changes {
            match change {
                LogChange::Append { index, entry } => batch.put(entry_key(*index), entry),
                LogChange::Truncate { from } => batch.delete_range(&entry_key(*from)[..], &ENTRIES_END[..]),
                LogChange::Purge { to } => match to.checked_add(1) {
                    Some(end) => batch.delete_range(entry_key(0), entry_key(end)),
                    None => batch.delete_range(&entry_key(0)[..], &ENTRIES_END[..]),
                },
                LogChange::Mark(mark, value) => batch.put(mark.key(), value),
            }
        }
        let mut write = WriteOptions::default();
        write.set_sync(sync);
        self.db.write_opt(batch, &write).map_err(db("cannot write the log"))
    }

    pub fn mark(&self, mark: Mark) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get(mark.key()).map_err(db("cannot read the log"))
    }

    /// Entries with `from <= index < to`, in order. Stops after the first one that brings the sum of
    /// their bytes to `bytes_max` or more, so that there is at least one if there is any.
    pub fn entries(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut read = ReadOptions::default();
        read.set_iterate_upper_bound(entry_key(to));
        let start = entry_key(from);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for row in self.db.iterator_opt(IteratorMode::From(&start, Direction::Forward), read) {
            let (key, value) = row.map_err(db("cannot read the log"))?;
            bytes += value.len();
            found.push((index_of(&key)?, value.into_vec()));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(found)
    }

    /// The entry with the highest index.
    pub fn last(&self) -> Result<Option<(u64, Vec<u8>)>, StoreError> {
        let mut read = ReadOptions::default();
        read.set_iterate_lower_bound(vec![ENTRY]);
        read.set_iterate_upper_bound(ENTRIES_END);
        match self.db.iterator_opt(IteratorMode::End, read).next() {
            None => Ok(None),
            Some(row) => {
                let (key, value) = row.map_err(db("cannot read the log"))?;
                Ok(Some((index_of(&key)?, value.into_vec())))
            }
        }
    }
}

fn entry_key(index: u64) -> [u8; 9] {
    let mut key = [ENTRY; 9];
    key[1..].copy_from_slice(&index.to_be_bytes());
    key
}

fn index_of(key: &[u8]) -> Result<u64, StoreError> {
    match <[u8; 9]>::try_from(key) {
        Ok([ENTRY, index @ ..]) => Ok(u64::from_be_bytes(index)),
        _ => Err(StoreError::Damaged(format!("the log holds a key that is no entry: {key:02x?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(index: u64) -> LogChange {
        LogChange::Append { index, entry: index.to_le_bytes().to_vec() }
    }

    fn indexes(log: &LogDb) -> Vec<u64> {
        log.entries(0, u64::MAX, usize::MAX).unwrap().into_iter().map(|(index, _)| index).collect()
    }

    #[test]
    fn entries_marks_truncation_and_purge_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        {
            let log = LogDb::open(dir.path()).unwrap();
            log.write(&(1..=300).map(append).collect::<Vec<_>>(), true).unwrap();
            log.write(&[LogChange::Mark(Mark::Vote, b"me".to_vec())], true).unwrap();
            log.write(&[LogChange::Truncate { from: 257 }], true).unwrap();
            log.write(&[LogChange::Purge { to: 250 }, LogChange::Mark(Mark::Purged, b"250".to_vec())], true).unwrap();
        }
        let log = LogDb::open(dir.path()).unwrap();
        assert_eq!(indexes(&log), (251..=256).collect::<Vec<_>>());
        assert_eq!(log.last().unwrap().unwrap().0, 256);
        assert_eq!(log.mark(Mark::Vote).unwrap().unwrap(), b"me");
        assert_eq!(log.mark(Mark::Purged).unwrap().unwrap(), b"250");
        assert_eq!(log.mark(Mark::Committed).unwrap(), None);
    }

    #[test]
    fn a_write_after_a_truncation_in_the_same_batch_stays() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogDb::open(dir.path()).unwrap();
        log.write(&[append(1), append(2), LogChange::Truncate { from: 2 }, append(2)], true).unwrap();
        assert_eq!(indexes(&log), [1, 2]);
    }

    #[test]
    fn a_byte_limit_still_gives_one_entry() {
        let dir = tempfile::tempdir().unwrap();
        let log = LogDb::open(dir.path()).unwrap();
        log.write(&(1..=9).map(append).collect::<Vec<_>>(), true).unwrap();
        assert_eq!(log.entries(3, 9, 1).unwrap().len(), 1);
        assert_eq!(log.entries(3, 9, 24).unwrap().len(), 3);
        assert_eq!(log.entries(3, 5, usize::MAX).unwrap().len(), 2);
    }
}

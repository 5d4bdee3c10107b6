//! The state's database: the rows that `dfs_meta` decides over, and the mark that says how far the log
//! has been applied to them.
//!
//! The database can be replaced while the node runs, when a snapshot arrives from the leader. Each one
//! is a generation in a folder of its own; the file `LIVE` names the one in use.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_meta::{Change, Fault, Table, View};
use dfs_proto::codec::{self, CodecError};
use dfs_proto::version::STATE_VERSION;
use parking_lot::{Mutex, RwLock};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, Direction, IteratorMode,
    ReadOptions, SnapshotWithThreadMode, WriteBatch,
};

use super::files::{Folder, clone_database, remove_dir, sync_dir, write_durably};
use super::hash::StateHash;
use super::{StoreError, db, io, options};

/// Rows of `Table::Meta`, which is the store's own.
const VERSION_KEY: &[u8] = b"version";
const MARK_KEY: &[u8] = b"mark";
const HASH_KEY: &[u8] = b"hash";
const CHECKS_KEY: &[u8] = b"checks";

/// Whoever finds this file does not start: the state is known to differ from the group's.
const DIVERGED: &str = "DIVERGED";

/// Hashes kept of earlier moments. One is taken every few seconds, and others lag by less.
const CHECKS_MAX: usize = 16;

const LIVE: &str = "LIVE";

/// Memory for rows read lately, shared by all tables.
const BLOCK_CACHE_BYTES: usize = 128 << 20;
/// Memory for rows not yet in table files, over all tables.
const WRITE_BUFFERS_BYTES: usize = 128 << 20;
/// Room that a checkpoint needs beside what is in memory: the end of the log, which is copied, and small files.
const CHECKPOINT_MARGIN: u64 = 4 << 20;
/// A step of a scan that has to pass over so many deleted rows in memory has them written to a table file. There they
/// make for a compaction, which removes them for good: where rows come and go, like the extents of a file that is written
/// over again and again, each scan would pass over all that ever were.
const DELETED_IN_THE_WAY: usize = 500;

/// A table file is compacted soon if so many of so many rows in a row are deleted ones, or this part of all.
const DELETED_WINDOW: usize = 4096;
const DELETED_IN_WINDOW: usize = 1024;
const DELETED_RATIO: f64 = 0.25;

/// A log of writes longer than this makes RocksDB flush, so that opening after a crash stays quick.
const WAL_BYTES_MAX: u64 = 256 << 20;

/// One generation: an open database.
struct Generation {
    db: DB,
    /// Of all rows, and at the last entries where the log asked for it.
    hashes: Mutex<Hashes>,
    /// Declared after `db`: a doomed folder goes when the database in it is closed.
    folder: Folder,
}

#[derive(Clone, Default)]
struct Hashes {
    now: StateHash,
    checks: Vec<(u64, StateHash)>,
}

impl Generation {
    fn open(path: &Path) -> Result<Generation, StoreError> {
        let mut options = options();
        options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
        options.set_max_total_wal_size(WAL_BYTES_MAX);
        let db_handle = DB::open_cf_descriptors(&options, path, descriptors()?).map_err(db("cannot open the state"))?;
        let generation = Generation { db: db_handle, hashes: Mutex::default(), folder: Folder::new(path.to_owned()) };
        generation.check_version()?;
        let hashes = generation.read_hashes()?;
        *generation.hashes.lock() = hashes;
        Ok(generation)
    }

    /// Opens a checkpoint only to look at `Table::Meta`; nothing in its folder changes. The other tables stay closed:
    /// one that an older program made may lack some of them.
    fn open_read_only(path: &Path) -> Result<Generation, StoreError> {
        let names = [Table::Meta.name(), rocksdb::DEFAULT_COLUMN_FAMILY_NAME];
        let meta = names.map(|name| ColumnFamilyDescriptor::new(name, options()));
        let db_handle =
            DB::open_cf_descriptors_read_only(&options(), path, meta, false).map_err(db("cannot open the snapshot"))?;
        Ok(Generation { db: db_handle, hashes: Mutex::default(), folder: Folder::new(path.to_owned()) })
    }

    fn table(&self, table: Table) -> Result<&ColumnFamily, StoreError> {
        let found = self.db.cf_handle(table.name());
        found.ok_or_else(|| StoreError::Damaged(format!("the state has no table {}", table.name())))
    }

    fn version(&self) -> Result<Option<u32>, StoreError> {
        let Some(bytes) = self.db.get_cf(self.table(Table::Meta)?, VERSION_KEY).map_err(db("cannot read the state"))?
        else {
            return Ok(None);
        };
        match <[u8; 4]>::try_from(&bytes[..]) {
            Ok(bytes) => Ok(Some(u32::from_le_bytes(bytes))),
            Err(_) => Err(StoreError::Damaged("the state's version cannot be read".into())),
        }
    }

    /// Refuses rows written by a newer program; marks a new or older database with this program's version, so that
    /// an older program refuses it from then on.
    fn check_version(&self) -> Result<(), StoreError> {
        match self.version()? {
            Some(version) if version > STATE_VERSION => Err(StoreError::Damaged(format!(
                "the state has version {version}, and this program reads up to {STATE_VERSION}"
            ))),
            Some(STATE_VERSION) => Ok(()),
            // Older rows are read as they are: see `STATE_VERSION`.
            _ => self
                .db
                .put_cf(self.table(Table::Meta)?, VERSION_KEY, STATE_VERSION.to_le_bytes())
                .map_err(db("cannot write the state")),
        }
    }

    /// What is kept beside the rows. A state of before hashes were kept is counted once.
    fn read_hashes(&self) -> Result<Hashes, StoreError> {
        let meta = self.table(Table::Meta)?;
        let read = |key| self.db.get_cf(meta, key).map_err(db("cannot read the state"));
        let damaged = |error: CodecError| StoreError::Damaged(format!("the state's hash: {error}"));
        let checks = read(CHECKS_KEY)?.map(|bytes| codec::decode(&bytes)).transpose().map_err(damaged)?;
        let now = match read(HASH_KEY)? {
            Some(bytes) => codec::decode(&bytes).map_err(damaged)?,
            None => {
                let hash = StateHash::of(&LatestView(self)).map_err(|fault| StoreError::Damaged(fault.0))?;
                let bytes = codec::encode(&hash).map_err(damaged)?;
                self.db.put_cf(meta, HASH_KEY, bytes).map_err(db("cannot write the state"))?;
                hash
            }
        };
        Ok(Hashes { now, checks: checks.unwrap_or_default() })
    }

    fn mark(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.table(Table::Meta)?, MARK_KEY).map_err(db("cannot read the state"))
    }
}

fn descriptors() -> Result<Vec<ColumnFamilyDescriptor>, StoreError> {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(BLOCK_CACHE_BYTES));
    blocks.set_bloom_filter(10.0, false);
    // By its name, since it has no function yet.
    let trigger = format!("memtable_op_scan_flush_trigger={DELETED_IN_THE_WAY}");
    let mut table = options().get_options_from_string(trigger).map_err(db("cannot configure the state"))?;
    table.add_compact_on_deletion_collector_factory(DELETED_WINDOW, DELETED_IN_WINDOW, DELETED_RATIO);
    table.set_block_based_table_factory(&blocks);
    table.set_compression_type(DBCompressionType::Lz4);
    table.set_write_buffer_size(32 << 20);
    let names = Table::ALL.iter().map(|table| table.name()).chain([rocksdb::DEFAULT_COLUMN_FAMILY_NAME]);
    Ok(names.map(|name| ColumnFamilyDescriptor::new(name, table.clone())).collect())
}

/// The state of this node.
pub struct StateStore {
    dir: PathBuf,
    live: RwLock<Arc<Generation>>,
}

impl StateStore {
    /// Opens the generation that `LIVE` names, makes the first one if there is none, and removes what a
    /// crash left of others.
    pub fn open(dir: &Path) -> Result<StateStore, StoreError> {
        fs::create_dir_all(dir).map_err(io(dir))?;
        if let Ok(reason) = fs::read_to_string(dir.join(DIVERGED)) {
            return Err(StoreError::Damaged(reason));
        }
        let number = match fs::read_to_string(dir.join(LIVE)) {
            Ok(text) => text
                .trim()
                .parse::<u64>()
                .map_err(|_| StoreError::Damaged(format!("{} names no generation", dir.join(LIVE).display())))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                write_durably(&dir.join(LIVE), b"1")?;
                1
            }
            Err(e) => return Err(io(&dir.join(LIVE))(e)),
        };
        for other in numbers(dir)?.into_iter().filter(|other| *other != number) {
            remove_dir(&path_of(dir, other))?;
        }
        let generation = Generation::open(&path_of(dir, number))?;
        Ok(StateStore { dir: dir.to_owned(), live: RwLock::new(Arc::new(generation)) })
    }

    fn current(&self) -> Arc<Generation> {
        self.live.read().clone()
    }

    /// Runs `read` over the rows as they are at this moment; what is applied meanwhile does not show.
    pub fn read<T>(&self, read: impl FnOnce(&dyn View) -> T) -> T {
        let generation = self.current();
        let snapshot = generation.db.snapshot();
        read(&SnapshotView { generation: &generation, snapshot })
    }

    /// Runs `read` over the newest rows, without the cost of a snapshot. For the one writer only.
    pub fn read_latest<T>(&self, read: impl FnOnce(&dyn View) -> T) -> T {
        let generation = self.current();
        read(&LatestView(&generation))
    }

    /// Writes the changes and the mark in one batch, so that the rows never say anything else than what
    /// the mark says has been applied. Not synced: after a crash the log is applied again from the mark.
    ///
    /// `check`: the log asks at this entry, and before these changes, for the hash of the state.
    pub fn write(&self, changes: &[Change], mark: &[u8], check: Option<u64>) -> Result<(), StoreError> {
        let generation = self.current();
        let mut batch = WriteBatch::default();
        let mut hashes = generation.hashes.lock().clone();
        if let Some(index) = check {
            hashes.checks.push((index, hashes.now));
            let surplus = hashes.checks.len().saturating_sub(CHECKS_MAX);
            hashes.checks.drain(..surplus);
        }
        for change in changes {
            let table = generation.table(change.table)?;
            // Read by whoever made the change a moment ago: it is in memory.
            let before = generation.db.get_pinned_cf(table, &change.key).map_err(db("cannot read the state"))?;
            hashes.now.change(change.table, &change.key, before.as_deref(), change.value.as_deref());
            match &change.value {
                Some(value) => batch.put_cf(table, &change.key, value),
                None => batch.delete_cf(table, &change.key),
            }
        }
        let meta = generation.table(Table::Meta)?;
        batch.put_cf(meta, MARK_KEY, mark);
        let encoded = |bytes: Result<Vec<u8>, CodecError>| bytes.map_err(|e| StoreError::Damaged(e.to_string()));
        batch.put_cf(meta, HASH_KEY, encoded(codec::encode(&hashes.now))?);
        if check.is_some() {
            batch.put_cf(meta, CHECKS_KEY, encoded(codec::encode(&hashes.checks))?);
        }
        generation.db.write(batch).map_err(db("cannot write the state"))?;
        *generation.hashes.lock() = hashes;
        Ok(())
    }

    /// Whether a write would go on at once: RocksDB holds writes up while it is behind with compactions.
    pub fn takes_writes(&self) -> bool {
        let stopped = self.current().db.property_int_value(rocksdb::properties::IS_WRITE_STOPPED);
        let delayed = self.current().db.property_int_value(rocksdb::properties::ACTUAL_DELAYED_WRITE_RATE);
        matches!((stopped, delayed), (Ok(Some(0)), Ok(Some(0))))
    }

    /// The hashes at the last entries where the log asked for one, oldest first.
    pub fn checks(&self) -> Vec<(u64, StateHash)> {
        self.current().hashes.lock().checks.clone()
    }

    /// Writes down that this state is not the group's. It will not be opened again.
    pub fn condemn(&self, reason: &str) -> Result<(), StoreError> {
        write_durably(&self.dir.join(DIVERGED), reason.as_bytes())
    }

    /// The mark that was written last; `None` in a new state.
    pub fn mark(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.current().mark()
    }

    /// Makes `path` a checkpoint of the state, durable with everything in it, and returns its mark. The
    /// live state is then durable up to that mark too: the log behind it may be purged.
    pub fn checkpoint(&self, path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
        let generation = self.current();
        generation.db.flush_wal(true).map_err(db("cannot sync the state"))?;
        Checkpoint::new(&generation.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(path))
            .map_err(db("cannot make a checkpoint"))?;
        sync_dir(path.parent().unwrap_or(path))?;
        mark_of_checkpoint(path)
    }

    /// Whether there is room for a checkpoint, which writes down what so far only memory and the log have, and links the
    /// rest. A flush that fails would end the process.
    pub fn has_room_for_checkpoint(&self) -> Result<bool, StoreError> {
        let generation = self.current();
        let mut needed = CHECKPOINT_MARGIN;
        for table in Table::ALL {
            let handle = generation.table(table)?;
            let unwritten = generation.db.property_int_value_cf(handle, "rocksdb.cur-size-all-mem-tables");
            needed += unwritten.map_err(db("cannot ask the state how large it is"))?.unwrap_or(0);
        }
        let room = rustix::fs::statvfs(&self.dir).map_err(|error| io(&self.dir)(error.into()))?;
        Ok(room.f_bavail.saturating_mul(room.f_frsize) >= needed)
    }

    /// Puts the state of a checkpoint in the place of this one. Readers that have begun go on with the
    /// old one. After a crash in the middle, one or the other is there.
    pub fn replace_with(&self, checkpoint: &Path) -> Result<(), StoreError> {
        let mut live = self.live.write();
        let number = 1 + numbers(&self.dir)?.into_iter().max().unwrap_or(0);
        let path = path_of(&self.dir, number);
        clone_database(checkpoint, &path)?;
        let generation = Generation::open(&path)?;
        sync_dir(&self.dir)?;
        write_durably(&self.dir.join(LIVE), number.to_string().as_bytes())?;
        std::mem::replace(&mut *live, Arc::new(generation)).folder.doom();
        Ok(())
    }
}

/// Recounts the hash of the rows that `view` shows and compares it with the one that is kept beside them; `None` if they
/// agree, and else what is wrong, in words.
pub fn recount_hash(view: &dyn View) -> Result<Option<String>, Fault> {
    let Some(kept) = view.get(Table::Meta, HASH_KEY)? else { return Ok(None) };
    let kept: StateHash = codec::decode(&kept).map_err(fault)?;
    let counted = StateHash::of(view)?;
    let differ = || format!("the rows add up to hash {counted:?}, and {kept:?} is kept beside them");
    Ok((kept != counted).then(differ))
}

/// The mark inside a checkpoint.
pub fn mark_of_checkpoint(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let checkpoint = Generation::open_read_only(path)?;
    match checkpoint.version()? {
        Some(version) if version <= STATE_VERSION => checkpoint.mark(),
        _ => Err(StoreError::Damaged("the snapshot's version is missing or newer than this program".into())),
    }
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(number.to_string())
}

fn numbers(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let entries = fs::read_dir(dir).map_err(io(dir))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn fault(error: impl std::fmt::Display) -> Fault {
    Fault(error.to_string())
}

struct LatestView<'a>(&'a Generation);

impl View for LatestView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.0.db.get_cf(self.0.table(table).map_err(fault)?, key).map_err(fault)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        let table = self.0.table(table).map_err(fault)?;
        let mode = IteratorMode::From(start, Direction::Forward);
        visit_rows(self.0.db.iterator_cf_opt(table, up_to(end), mode), visit)
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        let table = self.0.table(table).map_err(fault)?;
        visit_rows(self.0.db.iterator_cf_opt(table, between(start, end), IteratorMode::End), visit)
    }
}

struct SnapshotView<'a> {
    generation: &'a Generation,
    snapshot: SnapshotWithThreadMode<'a, DB>,
}

impl View for SnapshotView<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        self.snapshot.get_cf(self.generation.table(table).map_err(fault)?, key).map_err(fault)
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        let table = self.generation.table(table).map_err(fault)?;
        let mode = IteratorMode::From(start, Direction::Forward);
        visit_rows(self.snapshot.iterator_cf_opt(table, up_to(end), mode), visit)
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        visit: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), Fault> {
        if start >= end {
            return Ok(());
        }
        let table = self.generation.table(table).map_err(fault)?;
        visit_rows(self.snapshot.iterator_cf_opt(table, between(start, end), IteratorMode::End), visit)
    }
}

fn up_to(end: &[u8]) -> ReadOptions {
    let mut read = ReadOptions::default();
    read.set_iterate_upper_bound(end);
    read
}

fn between(start: &[u8], end: &[u8]) -> ReadOptions {
    let mut read = up_to(end);
    read.set_iterate_lower_bound(start);
    read
}

type Row = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>;

fn visit_rows(rows: impl Iterator<Item = Row>, visit: &mut dyn FnMut(&[u8], &[u8]) -> bool) -> Result<(), Fault> {
    for row in rows {
        let (key, value) = row.map_err(fault)?;
        if !visit(&key, &value) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &[u8], value: &[u8]) -> Change {
        Change { table: Table::Inodes, key: key.to_vec(), value: Some(value.to_vec()) }
    }

    fn rows(store: &StateStore) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = Vec::new();
        store.read(|view| {
            let mut visit = |key: &[u8], value: &[u8]| {
                found.push((key.to_vec(), value.to_vec()));
                true
            };
            view.scan(Table::Inodes, &[], &[0xff], &mut visit).unwrap();
        });
        found
    }

    #[test]
    fn deleted_rows_do_not_stay_in_the_way_of_scans() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::open(dir.path()).unwrap();
        let key = |number: usize| (number as u64).to_be_bytes();
        for numbers in (0..10 * DELETED_IN_THE_WAY).collect::<Vec<_>>().chunks(100) {
            let put: Vec<Change> = numbers.iter().map(|number| put(&key(*number), b"row")).collect();
            store.write(&put, b"mark", None).unwrap();
            let gone: Vec<Change> = put.into_iter().map(|change| Change { value: None, ..change }).collect();
            store.write(&gone, b"mark", None).unwrap();
        }
        let in_memory = || {
            let live = store.current();
            let deleted = live.db.property_int_value_cf(
                live.table(Table::Inodes).unwrap(),
                rocksdb::properties::NUM_DELETES_ACTIVE_MEM_TABLE,
            );
            deleted.unwrap().unwrap() as usize
        };
        assert_eq!(in_memory(), 10 * DELETED_IN_THE_WAY);
        assert!(rows(&store).is_empty());
        // The next write notices, and the one after it does it.
        for name in [b"next", b"more"] {
            store.write(&[put(name, b"row")], b"mark", None).unwrap();
        }
        assert!(in_memory() < DELETED_IN_THE_WAY, "{}", in_memory());
    }

    #[test]
    fn rows_and_mark_are_written_together_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = StateStore::open(dir.path()).unwrap();
            assert_eq!(store.mark().unwrap(), None);
            store.write(&[put(b"a", b"1"), put(b"b", b"2")], b"mark 1", None).unwrap();
            let gone = Change { value: None, ..put(b"a", b"") };
            let live = store.current();
            let before = live.db.latest_sequence_number();
            store.write(&[gone, put(b"b", b"2")], b"mark 2", Some(1)).unwrap();
            // What is one batch in its log is there after a crash as a whole, or not at all.
            let batches: Vec<u64> = live.db.get_updates_since(before).unwrap().map(|batch| batch.unwrap().0).collect();
            assert_eq!(batches, [before + 1]);
        }
        let store = StateStore::open(dir.path()).unwrap();
        assert_eq!(rows(&store), [(b"b".to_vec(), b"2".to_vec())]);
        assert_eq!(store.mark().unwrap().unwrap(), b"mark 2");
    }

    #[test]
    fn the_hash_follows_the_rows_and_a_check_keeps_the_one_of_its_moment() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::open(dir.path()).unwrap();
        store.write(&[put(b"a", b"1"), put(b"b", b"2")], b"mark", None).unwrap();
        let before = store.read(StateHash::of).unwrap();
        store.write(&[put(b"a", b"3"), Change { value: None, ..put(b"b", b"") }], b"mark", Some(7)).unwrap();
        assert_eq!(store.checks(), [(7, before)]);
        assert_eq!(store.read(recount_hash), Ok(None));
        drop(store);
        let store = StateStore::open(dir.path()).unwrap();
        assert_eq!(store.checks(), [(7, before)]);
        // A row that was changed behind the hash's back.
        let live = store.current();
        live.db.put_cf(live.table(Table::Inodes).unwrap(), b"a", b"9").unwrap();
        assert!(store.read(recount_hash).unwrap().is_some());
    }

    #[test]
    fn a_condemned_state_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        StateStore::open(dir.path()).unwrap().condemn("it differs").unwrap();
        assert!(matches!(StateStore::open(dir.path()), Err(StoreError::Damaged(_))));
    }

    #[test]
    fn a_scan_backwards_stays_within_its_range() {
        let dir = tempfile::tempdir().unwrap();
        let store = StateStore::open(dir.path()).unwrap();
        store.write(&[put(b"a", b"1"), put(b"b", b"2"), put(b"c", b"3"), put(b"d", b"4")], b"mark", None).unwrap();
        let back = |view: &dyn View| {
            let mut keys = Vec::new();
            view.scan_back(Table::Inodes, b"b", b"d", &mut |key, _| {
                keys.push(key.to_vec());
                true
            })
            .unwrap();
            view.scan_back(Table::Inodes, b"d", b"b", &mut |_, _| panic!("an empty range")).unwrap();
            keys
        };
        assert_eq!(store.read(back), [b"c", b"b"]);
        assert_eq!(store.read_latest(back), [b"c", b"b"]);
    }

    #[test]
    fn a_checkpoint_keeps_its_moment_and_can_take_the_place_of_another_state() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint");
        let first = StateStore::open(&dir.path().join("first")).unwrap();
        first.write(&[put(b"a", b"1")], b"mark 1", None).unwrap();
        assert_eq!(first.checkpoint(&checkpoint).unwrap().unwrap(), b"mark 1");
        first.write(&[put(b"a", b"2")], b"mark 2", None).unwrap();

        let second = StateStore::open(&dir.path().join("second")).unwrap();
        second.write(&[put(b"z", b"9")], b"other", None).unwrap();
        second.read(|before| {
            second.replace_with(&checkpoint).unwrap();
            // A reader that began before the swap still sees its own state.
            assert_eq!(before.get(Table::Inodes, b"z").unwrap().unwrap(), b"9");
        });
        assert_eq!(rows(&second), [(b"a".to_vec(), b"1".to_vec())]);
        assert_eq!(numbers(&dir.path().join("second")).unwrap().len(), 1);
        second.write(&[put(b"b", b"3")], b"mark 3", None).unwrap();
        drop(second);
        let second = StateStore::open(&dir.path().join("second")).unwrap();
        assert_eq!(second.mark().unwrap().unwrap(), b"mark 3");
        // What the second state wrote did not reach the checkpoint.
        assert_eq!(mark_of_checkpoint(&checkpoint).unwrap().unwrap(), b"mark 1");
    }

    #[test]
    fn a_state_of_a_newer_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = StateStore::open(dir.path()).unwrap();
            let live = store.current();
            let meta = live.table(Table::Meta).unwrap();
            live.db.put_cf(meta, VERSION_KEY, (STATE_VERSION + 1).to_le_bytes()).unwrap();
        }
        assert!(matches!(StateStore::open(dir.path()), Err(StoreError::Damaged(_))));
    }
}

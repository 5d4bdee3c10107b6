//! Snapshots: checkpoints of the state with what Raft has to know about them.
//!
//! A snapshot is a folder `db/` with the database's files and a file `META`, written last. A folder
//! without a readable `META` is an unfinished one. Taking a snapshot links files; nothing is serialised.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_proto::codec;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::types::{AppliedMark, Snapshot, SnapshotMeta};
use crate::store::StoreError;
use crate::store::files::{Folder, clone_database, remove_dir, sync_dir, write_durably};
use crate::store::state::{StateStore, mark_of_checkpoint};

const META: &str = "META";
const DB: &str = "db";

/// Version of `META`. 1: version and openraft's snapshot metadata.
const META_VERSION: u32 = 1;

/// The files of one snapshot. They stay as long as anybody holds this, for example to send them.
#[derive(Clone, Debug)]
pub struct SnapshotFiles(Arc<Folder>);

impl SnapshotFiles {
    /// The folder with the database's files.
    pub fn db(&self) -> PathBuf {
        self.0.path().join(DB)
    }
}

#[derive(Serialize, Deserialize)]
struct MetaFile {
    version: u32,
    meta: SnapshotMeta,
}

/// The snapshots of this node: the current one, and those being built or received.
pub struct Snapshots {
    dir: PathBuf,
    incoming: PathBuf,
    current: Mutex<Option<(SnapshotMeta, SnapshotFiles)>>,
}

impl Snapshots {
    /// Finds the newest complete snapshot and removes everything else.
    pub fn open(data_dir: &Path) -> Result<Snapshots, StoreError> {
        let (dir, incoming) = (data_dir.join("snapshots"), data_dir.join("incoming"));
        remove_dir(&incoming)?;
        let io = |source| StoreError::Io { path: dir.clone(), source };
        fs::create_dir_all(&dir).and_then(|()| fs::create_dir_all(&incoming)).map_err(io)?;
        let mut current: Option<(SnapshotMeta, SnapshotFiles)> = None;
        for entry in fs::read_dir(&dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            match read_meta(&path) {
                Some(meta) if current.as_ref().is_none_or(|(best, _)| best.last_log_id < meta.last_log_id) => {
                    if let Some((_, older)) = current.replace((meta, SnapshotFiles(Arc::new(Folder::new(path))))) {
                        older.0.doom();
                    }
                }
                _ => remove_dir(&path)?,
            }
        }
        Ok(Snapshots { dir, incoming, current: Mutex::new(current) })
    }

    pub fn current(&self) -> Option<Snapshot> {
        let current = self.current.lock();
        current.as_ref().map(|(meta, files)| Snapshot { meta: meta.clone(), snapshot: Box::new(files.clone()) })
    }

    /// Takes a snapshot of the state as it is now. Applying goes on meanwhile; the metadata comes out of
    /// the checkpoint itself, so the two agree.
    pub fn build(&self, state: &StateStore) -> Result<Snapshot, StoreError> {
        let folder = self.new_folder(&self.dir)?;
        let mark = state.checkpoint(&folder.path().join(DB))?;
        let meta = meta_of(mark)?;
        self.finish(meta, folder)
    }

    /// An empty folder to receive a snapshot's files in. Goes with its last holder.
    pub fn begin_receiving(&self) -> Result<SnapshotFiles, StoreError> {
        let folder = self.new_folder(&self.incoming)?;
        let files = SnapshotFiles(Arc::new(folder));
        fs::create_dir(files.db()).map_err(|source| StoreError::Io { path: files.db(), source })?;
        Ok(files)
    }

    /// Makes received files the state and the current snapshot. The state goes first: a crash in between
    /// leaves a newer state behind an older snapshot, which is what every applied entry does too.
    pub fn install(
        &self,
        meta: &SnapshotMeta,
        files: &SnapshotFiles,
        state: &StateStore,
    ) -> Result<AppliedMark, StoreError> {
        let mark = decode_mark(mark_of_checkpoint(&files.db())?)?;
        if mark.last_applied != meta.last_log_id {
            return Err(StoreError::Damaged(format!(
                "the snapshot holds the state at {:?}, and should at {:?}",
                mark.last_applied, meta.last_log_id
            )));
        }
        state.replace_with(&files.db())?;
        let folder = self.new_folder(&self.dir)?;
        clone_database(&files.db(), &folder.path().join(DB))?;
        self.finish(meta.clone(), folder)?;
        Ok(mark)
    }

    /// An empty folder that goes with its last holder, unless it is kept: what was given up half done for want of room would
    /// otherwise keep the room.
    fn new_folder(&self, within: &Path) -> Result<Folder, StoreError> {
        let path = within.join(format!("{:016x}", rand::random::<u64>()));
        fs::create_dir(&path).map_err(|source| StoreError::Io { path: path.clone(), source })?;
        let folder = Folder::new(path);
        folder.doom();
        Ok(folder)
    }

    /// Completes a snapshot and makes it the current one, unless a newer one has come meanwhile.
    fn finish(&self, meta: SnapshotMeta, folder: Folder) -> Result<Snapshot, StoreError> {
        let file = MetaFile { version: META_VERSION, meta: meta.clone() };
        let bytes = codec::encode(&file).map_err(|e| StoreError::Damaged(e.to_string()))?;
        sync_dir(folder.path())?;
        write_durably(&folder.path().join(META), &bytes)?;
        sync_dir(&self.dir)?;
        folder.keep();
        let files = SnapshotFiles(Arc::new(folder));
        let mut current = self.current.lock();
        match &*current {
            Some((newer, _)) if newer.last_log_id > meta.last_log_id => files.0.doom(),
            _ => {
                if let Some((_, older)) = current.replace((meta.clone(), files.clone())) {
                    older.0.doom();
                }
            }
        }
        Ok(Snapshot { meta, snapshot: Box::new(files) })
    }
}

/// Reads the mark that goes with a state; a new state has none.
pub fn decode_mark(bytes: Option<Vec<u8>>) -> Result<AppliedMark, StoreError> {
    match bytes {
        None => Ok(AppliedMark::default()),
        Some(bytes) => codec::decode(&bytes).map_err(|e| StoreError::Damaged(format!("the state's mark: {e}"))),
    }
}

fn meta_of(mark: Option<Vec<u8>>) -> Result<SnapshotMeta, StoreError> {
    let mark = decode_mark(mark)?;
    let index = mark.last_applied.map_or(0, |id| id.index);
    Ok(SnapshotMeta {
        last_log_id: mark.last_applied,
        last_membership: mark.membership,
        snapshot_id: format!("{index}-{:016x}", rand::random::<u64>()),
    })
}

fn read_meta(path: &Path) -> Option<SnapshotMeta> {
    let file: MetaFile = codec::decode(&fs::read(path.join(META)).ok()?).ok()?;
    (file.version <= META_VERSION).then_some(file.meta)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_survives_reopening_and_an_unfinished_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateStore::open(&dir.path().join("state")).unwrap();
        let snapshots = Snapshots::open(dir.path()).unwrap();
        let first = snapshots.build(&state).unwrap();
        let second = snapshots.build(&state).unwrap();
        assert_eq!(snapshots.current().unwrap().meta, second.meta);
        let unfinished = snapshots.new_folder(&snapshots.dir).unwrap();
        drop((snapshots, second, unfinished));
        // The first one is still being read by somebody.
        assert!(first.snapshot.db().exists());
        drop(first);
        let again = Snapshots::open(dir.path()).unwrap();
        assert!(again.current().is_some());
        assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 1);
    }
}

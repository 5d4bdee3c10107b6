//! A node's data folder: whose it is, and that only one process uses it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use dfs_proto::version::IDENTITY_VERSION;
use dfs_proto::{NodeId, PeerIdentity, Role};
use serde::{Deserialize, Serialize};

const IDENTITY: &str = "IDENTITY";
const LOCK: &str = "LOCK";

#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    #[error("{} is in use by another process", .0.display())]
    InUse(PathBuf),
    #[error("{} belongs to {found}, and this is {me}", .dir.display())]
    Foreign { dir: PathBuf, found: String, me: String },
    #[error("{} holds no {IDENTITY} file: it is empty, or its disk is not mounted", .0.display())]
    Empty(PathBuf),
    #[error("{} holds other files, and no {IDENTITY} file", .0.display())]
    NotOurs(PathBuf),
    #[error("{} cannot be read: {reason}", .path.display())]
    Damaged { path: PathBuf, reason: String },
    #[error("{}: {source}", .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// An identified and locked data folder. The lock ends with the process, however that ends.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    disk: u64,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    version: u32,
    cluster: String,
    role: String,
    node: u64,
    /// Drawn when the folder was made: tells a copy or a replacement from the original.
    disk: String,
}

impl Home {
    /// Opens a folder that must have been made for `me` before.
    pub fn open(dir: &Path, me: PeerIdentity) -> Result<Home, HomeError> {
        let path = dir.join(IDENTITY);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(HomeError::Empty(dir.to_owned())),
            Err(source) => return Err(HomeError::Io { path, source }),
        };
        let damaged = |reason: String| HomeError::Damaged { path: path.clone(), reason };
        let file: IdentityFile = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
        if file.version > IDENTITY_VERSION {
            return Err(damaged(format!("version {} is newer than this program", file.version)));
        }
        let disk = u64::from_str_radix(&file.disk, 16).map_err(|e| damaged(e.to_string()))?;
        let found = Role::parse(&file.role)
            .zip(file.cluster.parse().ok())
            .map(|(role, cluster)| PeerIdentity { cluster, role, id: NodeId(file.node) })
            .ok_or_else(|| damaged("role or cluster is not readable".into()))?;
        if found != me {
            return Err(HomeError::Foreign { dir: dir.to_owned(), found: found.to_string(), me: me.to_string() });
        }
        Home::locked(dir, disk)
    }

    /// Opens the folder, or makes it `me`'s if it is absent or empty.
    pub fn create_or_open(dir: &Path, me: PeerIdentity) -> Result<Home, HomeError> {
        let io = |source| HomeError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(io)?;
        if dir.join(IDENTITY).exists() {
            return Home::open(dir, me);
        }
        let ours = [LOCK, "lost+found"];
        for entry in fs::read_dir(dir).map_err(io)? {
            if !ours.iter().any(|name| entry.as_ref().is_ok_and(|entry| entry.file_name() == *name)) {
                return Err(HomeError::NotOurs(dir.to_owned()));
            }
        }
        let home = Home::locked(dir, rand::random())?;
        let file = IdentityFile {
            version: IDENTITY_VERSION,
            cluster: me.cluster.to_string(),
            role: me.role.as_str().into(),
            node: me.id.0,
            disk: format!("{:016x}", home.disk),
        };
        let text = toml::to_string(&file).map_err(|e| io(io::Error::other(e)))?;
        write_durably(dir, IDENTITY, text.as_bytes()).map_err(io)?;
        Ok(home)
    }

    fn locked(dir: &Path, disk: u64) -> Result<Home, HomeError> {
        let path = dir.join(LOCK);
        let io = |source| HomeError::Io { path: path.clone(), source };
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => Ok(Home { dir: dir.to_owned(), disk, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(HomeError::InUse(dir.to_owned())),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The number drawn when the folder was made.
    pub fn disk(&self) -> u64 {
        self.disk
    }
}

/// Writes a file so that after a crash it is there whole or not at all: temporary name, sync, rename,
/// sync of the folder.
fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.new"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::ClusterId;

    fn me(id: u64) -> PeerIdentity {
        PeerIdentity { cluster: ClusterId([1; 16]), role: Role::Datanode, id: NodeId(id) }
    }

    #[test]
    fn a_folder_belongs_to_one_node_and_one_process() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Home::open(dir.path(), me(1)), Err(HomeError::Empty(_))));
        let first = Home::create_or_open(dir.path(), me(1)).unwrap();
        assert!(matches!(Home::open(dir.path(), me(1)), Err(HomeError::InUse(_))));
        assert!(matches!(Home::create_or_open(dir.path(), me(2)), Err(HomeError::Foreign { .. })));
        let disk = first.disk();
        drop(first);
        assert_eq!(Home::open(dir.path(), me(1)).unwrap().disk(), disk);
    }

    #[test]
    fn a_folder_with_other_files_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        assert!(matches!(Home::create_or_open(dir.path(), me(1)), Err(HomeError::NotOurs(_))));
    }
}

//! Which file is where in the folder of a local cluster, and which node has which name and number.

use std::fs;
use std::path::{Path, PathBuf};

use dfs_proto::{NodeId, Role};

use crate::error::{Failure, Result};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Kind {
    Namenode,
    Datanode,
    Mount,
}

/// A process of the cluster: `nn1`, `dn4`, `m1`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Member {
    pub kind: Kind,
    /// From 1.
    pub index: usize,
}

/// The number in the administrator's certificate. Mounts follow it.
pub const ADMIN_ID: NodeId = NodeId(1000);

impl Member {
    pub fn all(kind: Kind, count: usize) -> Vec<Member> {
        (1..=count).map(|index| Member { kind, index }).collect()
    }

    pub fn name(self) -> String {
        let prefix = match self.kind {
            Kind::Namenode => "nn",
            Kind::Datanode => "dn",
            Kind::Mount => "m",
        };
        format!("{prefix}{}", self.index)
    }

    /// Namenodes from 1, datanodes from 101, mounts from 1001: one number space, so that none is used twice.
    pub fn id(self) -> NodeId {
        let base = match self.kind {
            Kind::Namenode => 0,
            Kind::Datanode => 100,
            Kind::Mount => ADMIN_ID.0,
        };
        NodeId(base + self.index as u64)
    }

    pub fn role(self) -> Role {
        match self.kind {
            Kind::Namenode => Role::Namenode,
            Kind::Datanode => Role::Datanode,
            Kind::Mount => Role::Client,
        }
    }

    fn config_name(self) -> &'static str {
        match self.kind {
            Kind::Namenode => "namenode.toml",
            Kind::Datanode => "datanode.toml",
            Kind::Mount => "cluster.toml",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
}

impl Layout {
    /// `--dir`, or the folder of the cluster file that the other verbs use.
    pub fn of(dir: Option<&Path>, cluster_file: &Path) -> Result<Layout> {
        let dir = dir.or(cluster_file.parent()).filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let dir = std::path::absolute(dir).map_err(|error| Failure::local(dir, &error))?;
        // Symlinks resolved, as far as it exists: processes are known by the paths on their command lines.
        let dir = dir.canonicalize().unwrap_or(dir);
        if dir.to_str().is_none() {
            return Err(Failure::usage(format!("{} is not UTF-8, and cluster.toml is", dir.display())));
        }
        Ok(Layout { dir })
    }

    pub fn cluster_toml(&self) -> PathBuf {
        self.dir.join("cluster.toml")
    }

    pub fn up_toml(&self) -> PathBuf {
        self.dir.join("up.toml")
    }

    pub fn lock(&self) -> PathBuf {
        self.dir.join("up.lock")
    }

    pub fn initialized(&self) -> PathBuf {
        self.dir.join("initialized")
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.join("pki")
    }

    pub fn folder(&self, member: Member) -> PathBuf {
        self.dir.join(member.name())
    }

    pub fn config(&self, member: Member) -> PathBuf {
        self.folder(member).join(member.config_name())
    }

    pub fn pid(&self, member: Member) -> PathBuf {
        self.dir.join(format!("{}.pid", member.name()))
    }

    pub fn log(&self, member: Member) -> PathBuf {
        self.dir.join(format!("{}.log", member.name()))
    }

    pub fn start(&self, member: Member) -> PathBuf {
        self.dir.join(format!("{}.start", member.name()))
    }

    pub fn image(&self, member: Member) -> PathBuf {
        self.dir.join(format!("{}.img", member.name()))
    }

    pub fn exists(&self) -> bool {
        self.cluster_toml().exists()
    }

    /// Makes the folder, unless it holds something that is not ours.
    pub fn claim(&self) -> Result {
        let io = |error: std::io::Error| Failure::local(&self.dir, &error);
        fs::create_dir_all(&self.dir).map_err(io)?;
        if self.exists() {
            return Ok(());
        }
        if self.up_toml().exists() {
            return Err(Failure::failed(format!("an earlier `dfs up` did not finish making {}", self.dir.display()))
                .cause("no cluster was started from it: it has no cluster.toml")
                .hint(format!("rm -r {}", self.dir.display())));
        }
        let lock = self.lock();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            if entry.map_err(io)?.path() != lock {
                return Err(Failure::usage(format!(
                    "{} holds something else: it has no cluster.toml",
                    self.dir.display()
                ))
                .hint("--dir names an empty or a new folder"));
            }
        }
        Ok(())
    }

    /// Lets one `up` or `down` work on the folder at a time; until the file is dropped.
    pub fn lock_folder(&self) -> Result<fs::File> {
        let path = self.lock();
        let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|error| Failure::local(&path, &error))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                Err(Failure::temporary(format!("another `dfs up` or `dfs down` works on {}", self.dir.display())))
            }
            Err(fs::TryLockError::Error(error)) => Err(Failure::local(&path, &error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_never_meet() {
        let members = [Kind::Namenode, Kind::Datanode, Kind::Mount].map(|kind| Member { kind, index: 2 });
        assert_eq!(members.map(Member::name), ["nn2", "dn2", "m2"]);
        assert_eq!(members.map(Member::id), [NodeId(2), NodeId(102), NodeId(1002)]);
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Some(dir.path()), Path::new("x/cluster.toml")).unwrap();
        layout.claim().unwrap();
        let lock = layout.lock_folder().unwrap();
        layout.claim().unwrap();
        assert_eq!(layout.lock_folder().unwrap_err().exit, crate::error::Exit::Temporary);
        drop(lock);
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        assert_eq!(layout.claim().unwrap_err().exit, crate::error::Exit::Usage);
    }

    #[test]
    fn the_folder_is_that_of_the_cluster_file_unless_named() {
        let layout = Layout::of(None, Path::new("/nowhere/data/cluster.toml")).unwrap();
        assert_eq!(layout.dir, Path::new("/nowhere/data"));
        let layout = Layout::of(Some(Path::new("/nowhere/else")), Path::new("/nowhere/data/cluster.toml")).unwrap();
        assert_eq!(layout.dir, Path::new("/nowhere/else"));
    }
}

//! What `dfs up` was asked for, kept in `up.toml`, so that a later `up` on the same folder agrees with it.

use std::fmt;
use std::fs;
use std::str::FromStr;

use dfs_proto::limits::REPLICATION_MAX;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use super::netns::Network;
use crate::error::{Failure, Result};
use crate::units::parse_size;

/// mkfs.xfs refuses anything smaller.
const XFS_MIN_BYTES: u64 = 300 << 20;

/// RocksDB, or one chunk with its index, and some room.
const EXT4_MIN_BYTES: u64 = 128 << 20;

/// Their numbers end where those of the mounts begin.
pub const DATANODES_MAX: usize = 64;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub namenodes: usize,
    pub datanodes: usize,
    pub replication: u8,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<Filesystem>,
    /// With `--netns`: the number of the cluster's own network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<u16>,
}

/// What was typed; `None` where nothing was.
#[derive(Clone, Default, Debug)]
pub struct Wishes {
    pub namenodes: Option<usize>,
    pub datanodes: Option<usize>,
    pub replication: Option<u8>,
    pub fs: Option<Filesystem>,
    /// A flag: typed or not.
    pub netns: bool,
}

impl Settings {
    /// For a new cluster.
    pub fn new(wishes: &Wishes) -> Result<Settings> {
        let settings = Settings {
            namenodes: wishes.namenodes.unwrap_or(3),
            datanodes: wishes.datanodes.unwrap_or(4),
            replication: wishes.replication.unwrap_or(3),
            fs: wishes.fs,
            network: if wishes.netns { Some(Network::pick()?.number) } else { None },
        };
        if !matches!(settings.namenodes, 1 | 3 | 5) {
            let message = format!("--namenodes {}: a group has 1, 3 or 5 members", settings.namenodes);
            return Err(
                Failure::usage(message).hint("an even number survives no more losses than the odd one below it")
            );
        }
        if !(1..=DATANODES_MAX).contains(&settings.datanodes) {
            return Err(Failure::usage(format!("--datanodes is 1 to {DATANODES_MAX}")));
        }
        if !(1..=REPLICATION_MAX).contains(&settings.replication) {
            return Err(Failure::usage(format!("--replication is 1 to {REPLICATION_MAX}")));
        }
        Ok(settings)
    }

    pub fn network(&self) -> Option<Network> {
        self.network.map(|number| Network { number })
    }

    pub fn load(layout: &Layout) -> Result<Settings> {
        let path = layout.up_toml();
        let text = fs::read_to_string(&path).map_err(|error| {
            Failure::usage(format!("{} is no folder of `dfs up`", layout.dir.display()))
                .cause(Failure::local(&path, &error).message())
        })?;
        toml::from_str(&text).map_err(|error| {
            Failure::usage(format!("cannot read {}", path.display())).cause(error.message().to_owned())
        })
    }

    pub fn save(&self, layout: &Layout) -> Result {
        let path = layout.up_toml();
        let text = toml::to_string(self).map_err(|error| Failure::failed(error.to_string()))?;
        fs::write(&path, text).map_err(|error| Failure::local(&path, &error))
    }

    /// Refuses what contradicts the cluster that is there.
    pub fn agree(&self, wishes: &Wishes, layout: &Layout) -> Result {
        if wishes.netns && self.network.is_none() {
            let message = format!("--netns contradicts the cluster in {}, which has no network", layout.dir.display());
            return Err(Failure::usage(message).hint("leave the flag out, or use another folder by --dir"));
        }
        let shown = |fs: Option<Filesystem>| fs.map_or("none".to_owned(), |fs| fs.to_string());
        let pairs = [
            ("--namenodes", self.namenodes.to_string(), wishes.namenodes.map(|n| n.to_string())),
            ("--datanodes", self.datanodes.to_string(), wishes.datanodes.map(|n| n.to_string())),
            ("--replication", self.replication.to_string(), wishes.replication.map(|n| n.to_string())),
            ("--fs", shown(self.fs), wishes.fs.map(|fs| fs.to_string())),
        ];
        for (flag, is, wished) in pairs {
            if let Some(wished) = wished.filter(|wished| *wished != is) {
                let dir = layout.dir.display();
                return Err(Failure::usage(format!(
                    "{flag} {wished} contradicts the cluster in {dir}, which has {is}"
                ))
                .hint("leave the flag out, or use another folder by --dir"));
            }
        }
        Ok(())
    }
}

/// `xfs:400M`: the file system that each node's folder gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filesystem {
    pub kind: FilesystemKind,
    pub size_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FilesystemKind {
    Xfs,
    Ext4,
}

impl FilesystemKind {
    pub fn name(self) -> &'static str {
        match self {
            FilesystemKind::Xfs => "xfs",
            FilesystemKind::Ext4 => "ext4",
        }
    }
}

impl FromStr for Filesystem {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Filesystem, String> {
        let (kind, size) = text.split_once(':').ok_or("give it as xfs:400M or ext4:400M")?;
        let (kind, min) = match kind {
            "xfs" => (FilesystemKind::Xfs, XFS_MIN_BYTES),
            "ext4" => (FilesystemKind::Ext4, EXT4_MIN_BYTES),
            _ => return Err(format!("`{kind}` is not known: xfs or ext4")),
        };
        let size_bytes = parse_size(size)?;
        if size_bytes < min {
            return Err(format!("{} needs {} MiB at least", kind.name(), min >> 20));
        }
        Ok(Filesystem { kind, size_bytes })
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, unit) = match self.size_bytes {
            bytes if bytes % (1 << 20) == 0 => (bytes >> 20, "M"),
            bytes => (bytes, ""),
        };
        write!(f, "{}:{size}{unit}", self.kind.name())
    }
}

impl Serialize for Filesystem {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Filesystem {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn file_systems_are_kind_and_size() {
        let fs: Filesystem = "xfs:400M".parse().unwrap();
        assert_eq!(fs, Filesystem { kind: FilesystemKind::Xfs, size_bytes: 400 << 20 });
        assert_eq!(fs.to_string(), "xfs:400M");
        assert_eq!("ext4:1G".parse::<Filesystem>().unwrap().to_string(), "ext4:1024M");
        for bad in ["xfs", "xfs:100M", "btrfs:1G", "xfs:lots"] {
            assert!(bad.parse::<Filesystem>().is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_survive_their_file_and_contradictions_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::of(Some(dir.path()), Path::new("")).unwrap();
        let wishes = Wishes { datanodes: Some(5), fs: Some("xfs:400M".parse().unwrap()), ..Wishes::default() };
        let settings = Settings::new(&wishes).unwrap();
        settings.save(&layout).unwrap();
        let settings = Settings::load(&layout).unwrap();
        assert_eq!((settings.namenodes, settings.datanodes, settings.replication), (3, 5, 3));
        settings.agree(&wishes, &layout).unwrap();
        settings.agree(&Wishes::default(), &layout).unwrap();
        let other = Wishes { datanodes: Some(4), ..Wishes::default() };
        let failure = settings.agree(&other, &layout).unwrap_err();
        assert!(failure.message().contains("--datanodes 4"), "{failure}");
        assert_eq!(failure.exit, crate::error::Exit::Usage);
    }

    #[test]
    fn groups_that_cannot_be_are_refused() {
        for wishes in [
            Wishes { namenodes: Some(2), ..Wishes::default() },
            Wishes { namenodes: Some(0), ..Wishes::default() },
            Wishes { datanodes: Some(0), ..Wishes::default() },
            Wishes { replication: Some(0), ..Wishes::default() },
            Wishes { replication: Some(9), ..Wishes::default() },
        ] {
            assert!(Settings::new(&wishes).is_err(), "{wishes:?}");
        }
    }
}

//! `cluster.toml`: how a client finds and trusts its cluster; and the options of one `Dfs`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfs_proto::limits::REPLICATION_MAX;
use dfs_proto::{ClusterId, ErrorKind, NodeId};
use dfs_rpc::{Network, TlsFiles};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What `cluster.toml` says. Relative paths of certificates are resolved against the file's folder.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterConfig {
    pub cluster: ClusterId,
    /// Copies that new files get.
    pub replication: u8,
    pub tls: TlsFiles,
    pub namenodes: Vec<NodeAddr>,
    /// For tools that name nodes; data is found through the namenodes.
    pub datanodes: Vec<NodeAddr>,
    pub mounts: Vec<MountDir>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct NodeAddr {
    pub id: NodeId,
    pub name: String,
    pub addr: SocketAddr,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct MountDir {
    pub name: String,
    pub dir: PathBuf,
    /// As `dfs mount -o` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// The file as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterToml {
    cluster: String,
    replication: u8,
    tls: TlsFiles,
    namenodes: Vec<NodeAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    datanodes: Vec<NodeAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<MountDir>,
}

impl ClusterConfig {
    /// Reads the file. An unknown key is an error that names it.
    pub fn load(path: &Path) -> Result<ClusterConfig> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            let kind = match e.kind() {
                std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                std::io::ErrorKind::PermissionDenied => ErrorKind::AccessDenied,
                _ => ErrorKind::Internal,
            };
            Error::new(kind, format!("cannot read {}: {e}", path.display())).with_hint(
                "name the cluster's file with --cluster FILE or DFS_CLUSTER, or make a cluster with `dfs up`",
            )
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        ClusterConfig::parse(&text, folder).map_err(|e| e.context(path.display()))
    }

    /// Reads the text of a `cluster.toml` that lies in `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<ClusterConfig> {
        let invalid = |message: String| Error::new(ErrorKind::InvalidArgument, message);
        let toml: ClusterToml = toml::from_str(text).map_err(|e| invalid(e.to_string()))?;
        if toml.namenodes.is_empty() {
            return Err(invalid("it names no namenode".into()));
        }
        if toml.replication == 0 || toml.replication > REPLICATION_MAX {
            return Err(invalid(format!(
                "replication is {}, and 1 to {REPLICATION_MAX} are possible",
                toml.replication
            )));
        }
        let mut ids = BTreeSet::new();
        for node in toml.namenodes.iter().chain(&toml.datanodes) {
            if !ids.insert(node.id) {
                return Err(invalid(format!("two nodes have the id {}", node.id)));
            }
        }
        // `join` leaves an absolute path as it is.
        let TlsFiles { ca, cert, key } = toml.tls;
        Ok(ClusterConfig {
            cluster: toml.cluster.parse().map_err(|e| invalid(format!("cluster: {e}")))?,
            replication: toml.replication,
            tls: TlsFiles { ca: folder.join(ca), cert: folder.join(cert), key: folder.join(key) },
            namenodes: toml.namenodes,
            datanodes: toml.datanodes,
            mounts: toml.mounts,
        })
    }

    /// The text of the file; certificates inside `folder` are named relative to it.
    pub fn to_toml(&self, folder: &Path) -> Result<String> {
        let relative = |path: &PathBuf| path.strip_prefix(folder).unwrap_or(path).to_path_buf();
        let toml = ClusterToml {
            cluster: self.cluster.to_string(),
            replication: self.replication,
            tls: TlsFiles { ca: relative(&self.tls.ca), cert: relative(&self.tls.cert), key: relative(&self.tls.key) },
            namenodes: self.namenodes.clone(),
            datanodes: self.datanodes.clone(),
            mounts: self.mounts.clone(),
        };
        toml::to_string(&toml).map_err(|e| Error::new(ErrorKind::Internal, format!("cannot write cluster.toml: {e}")))
    }

    /// Writes the file through a temporary one beside it, so that a reader sees the old or the new.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = self.to_toml(path.parent().unwrap_or(Path::new("")))?;
        let temporary = path.with_extension("toml.new");
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, path))
            .map_err(|e| Error::new(ErrorKind::Internal, format!("cannot write {}: {e}", path.display())))
    }

    /// The namenode or datanode of that name, as in `dn2`.
    pub fn node(&self, name: &str) -> Option<&NodeAddr> {
        self.namenodes.iter().chain(&self.datanodes).find(|node| node.name == name)
    }
}

/// How one `Dfs` behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long one operation goes on trying while nodes are away. 30 s.
    pub op_deadline: Duration,
    /// Go on trying for ever instead.
    pub hard: bool,
    /// Bytes written and not yet committed; writers wait when it is used up. 256 MiB.
    pub dirty_max_bytes: usize,
    /// Bytes read ahead of sequential readers, over all files. 128 MiB.
    pub readahead_max_bytes: usize,
    /// Answer look-ups from memory while the namenode promises to tell of changes. Whoever asks then has to
    /// check by itself that the caller may search the directory, as the kernel does under a mount.
    pub remember: bool,
    /// Directories that are made are private until somebody else looks at them: what is done in them is answered at once
    /// and sent a moment later. Only with `remember`. Off.
    pub write_behind: bool,
    /// Reading sets atime. Off, but for mounts.
    pub atime: bool,
    /// Who this is, for people: host, process, mount point. Cut at 255 bytes.
    pub description: String,
    /// What its connections go over.
    pub network: Network,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            op_deadline: Duration::from_secs(30),
            hard: false,
            dirty_max_bytes: 256 << 20,
            readahead_max_bytes: 128 << 20,
            remember: false,
            write_behind: false,
            atime: false,
            description: format!("process {}", std::process::id()),
            network: Network::Udp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "000102030405060708090a0b0c0d0e0f"
        replication = 3
        [tls]
        ca = "pki/ca.pem"
        cert = "/etc/dfs/client.pem"
        key = "pki/client.key"
        [[namenodes]]
        id = 1
        name = "nn1"
        addr = "127.0.0.1:7001"
    "#;

    #[test]
    fn paths_are_relative_to_the_file_and_survive_saving() {
        let config = ClusterConfig::parse(GOOD, Path::new("/data")).unwrap();
        assert_eq!(config.tls.ca, Path::new("/data/pki/ca.pem"));
        assert_eq!(config.tls.cert, Path::new("/etc/dfs/client.pem"));
        let text = config.to_toml(Path::new("/data")).unwrap();
        assert!(text.contains("\"pki/ca.pem\""), "{text}");
        assert_eq!(ClusterConfig::parse(&text, Path::new("/data")).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_is_named_in_the_error() {
        for (text, key) in [
            (format!("replicatoin = 3\n{GOOD}"), "replicatoin"),
            (format!("{GOOD}\nrack = \"a\""), "rack"),
            (GOOD.replace("[tls]", "[tls]\npassword = \"x\""), "password"),
        ] {
            let error = ClusterConfig::parse(&text, Path::new("/data")).unwrap_err();
            assert!(error.message.contains(key), "{error}");
        }
    }

    #[test]
    fn nonsense_values_are_refused() {
        for (from, to) in
            [("replication = 3", "replication = 0"), ("replication = 3", "replication = 9"), ("0001", "01")]
        {
            assert!(ClusterConfig::parse(&GOOD.replace(from, to), Path::new("")).is_err(), "{to}");
        }
        let twice = format!("{GOOD}\n[[datanodes]]\nid = 1\nname = \"dn1\"\naddr = \"127.0.0.1:7002\"");
        assert!(ClusterConfig::parse(&twice, Path::new("")).unwrap_err().message.contains("id 1"));
    }
}

//! `datanode.toml`: plain data with units and bounds.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, ensure};
use dfs_proto::{ClusterId, NodeId, PeerIdentity, Role};
use dfs_rpc::{Network, TlsFiles};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Everything a datanode is told. Relative paths are taken from the folder of the file.
#[derive(Clone, PartialEq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The number in this node's certificate.
    pub node: NodeId,
    /// For people, in logs.
    pub name: String,
    #[serde(serialize_with = "as_text", deserialize_with = "from_text")]
    pub cluster: ClusterId,
    /// The node's own folder: identity, lock, and what it knows of its volumes.
    pub data_dir: PathBuf,
    /// Folders that hold chunks, each normally on a disk of its own. Empty: `volume1` in `data_dir`.
    #[serde(default)]
    pub volumes: Vec<PathBuf>,
    /// UDP address of the data plane.
    pub listen: SocketAddr,
    /// What others dial, where it is not `listen`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    pub namenodes: Vec<NamenodeAddr>,
    pub tls: TlsFiles,
    /// 100 to 10,000. Namenodes take a node for suspect after a few of these.
    #[serde(default = "default::heartbeat_interval_ms")]
    pub heartbeat_interval_ms: u64,
    /// Written bytes that nobody asked to sync are synced after at most this long. 100 to 60,000.
    #[serde(default = "default::sync_interval_ms")]
    pub sync_interval_ms: u64,
    /// How long deleted chunks can be got back by hand. Less when room runs out.
    #[serde(default = "default::trash_delay_s")]
    pub trash_delay_s: u64,
    /// Left free on each volume, but never more than 5 % of it.
    #[serde(default = "default::reserve_bytes")]
    pub reserve_bytes: u64,
    /// Chunks copied to this node at once, by order of the namenode. 1 to 16.
    #[serde(default = "default::copy_parallel")]
    pub copy_parallel: usize,
    /// Every sealed replica is read and verified at least so often.
    #[serde(default = "default::scrub_period_s")]
    pub scrub_period_s: u64,
    /// Refuse to start on folders that are absent or empty instead of making them: they were made by
    /// `prepare`, so they must be there.
    #[serde(default)]
    pub must_exist: bool,
    /// What its connections go over; a file does not say, and it is UDP.
    #[serde(skip)]
    pub network: Network,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub struct NamenodeAddr {
    pub id: NodeId,
    pub name: String,
    pub addr: SocketAddr,
}

mod default {
    pub fn heartbeat_interval_ms() -> u64 {
        1000
    }

    pub fn sync_interval_ms() -> u64 {
        2000
    }

    pub fn trash_delay_s() -> u64 {
        3600
    }

    pub fn reserve_bytes() -> u64 {
        256 << 20
    }

    pub fn copy_parallel() -> usize {
        2
    }

    pub fn scrub_period_s() -> u64 {
        14 * 24 * 3600
    }
}

impl Config {
    /// A configuration with every default.
    pub fn new(
        me: PeerIdentity,
        name: String,
        data_dir: PathBuf,
        listen: SocketAddr,
        namenodes: Vec<NamenodeAddr>,
        tls: TlsFiles,
    ) -> Config {
        Config {
            node: me.id,
            name,
            cluster: me.cluster,
            data_dir,
            volumes: Vec::new(),
            listen,
            advertise: None,
            namenodes,
            tls,
            heartbeat_interval_ms: default::heartbeat_interval_ms(),
            sync_interval_ms: default::sync_interval_ms(),
            trash_delay_s: default::trash_delay_s(),
            reserve_bytes: default::reserve_bytes(),
            copy_parallel: default::copy_parallel(),
            scrub_period_s: default::scrub_period_s(),
            must_exist: false,
            network: Network::Udp,
        }
    }

    /// Reads and checks `path`. An unknown key is an error.
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut config: Config = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        // Absolute, so that what is noted about a volume does not depend on where the node is started.
        let path = std::path::absolute(path)?;
        config.resolve(path.parent().unwrap_or(Path::new("/")));
        config.check().with_context(|| format!("in {}", path.display()))?;
        Ok(config)
    }

    /// Refuses values out of their bounds.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!((100..=10_000).contains(&self.heartbeat_interval_ms), "heartbeat_interval_ms must be 100 to 10000");
        ensure!((100..=60_000).contains(&self.sync_interval_ms), "sync_interval_ms must be 100 to 60000");
        ensure!((1..=16).contains(&self.copy_parallel), "copy_parallel must be 1 to 16");
        ensure!(self.scrub_period_s >= 60, "scrub_period_s must be at least 60");
        ensure!(!self.namenodes.is_empty(), "namenodes: at least one is needed");
        let reachable = self.advertise.unwrap_or(self.listen);
        ensure!(!reachable.ip().is_unspecified(), "advertise must say where others reach {}", self.listen);
        Ok(())
    }

    pub fn identity(&self) -> PeerIdentity {
        PeerIdentity { cluster: self.cluster, role: Role::Datanode, id: self.node }
    }

    /// The folders that hold chunks.
    pub fn volume_dirs(&self) -> Vec<PathBuf> {
        if self.volumes.is_empty() { vec![self.data_dir.join("volume1")] } else { self.volumes.clone() }
    }

    fn resolve(&mut self, base: &Path) {
        let paths = [&mut self.data_dir, &mut self.tls.ca, &mut self.tls.cert, &mut self.tls.key];
        for path in paths.into_iter().chain(&mut self.volumes) {
            *path = base.join(&*path);
        }
    }
}

fn as_text<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn from_text<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        node = 11
        name = "dn1"
        cluster = "000102030405060708090a0b0c0d0e0f"
        data_dir = "data"
        listen = "127.0.0.1:7101"
        namenodes = [{ id = 1, name = "nn1", addr = "127.0.0.1:7001" }]
        tls = { ca = "tls/ca.pem", cert = "tls/dn1.pem", key = "tls/dn1.key" }
    "#;

    #[test]
    fn a_minimal_file_gets_the_defaults_and_its_own_folder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("datanode.toml");
        std::fs::write(&path, SAMPLE).unwrap();
        let config = Config::load(&path).unwrap();
        assert_eq!(config.data_dir, dir.path().join("data"));
        assert_eq!(config.volume_dirs(), [dir.path().join("data/volume1")]);
        assert_eq!(config.heartbeat_interval_ms, 1000);
        assert_eq!(config.cluster.0[15], 15);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config: Config = toml::from_str(SAMPLE).unwrap();
        assert_eq!(toml::from_str::<Config>(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn an_unknown_key_and_a_value_out_of_bounds_are_errors() {
        assert!(toml::from_str::<Config>(&format!("{SAMPLE}\nheartbeat = 1")).is_err());
        let config: Config = toml::from_str(&format!("{SAMPLE}\nheartbeat_interval_ms = 1")).unwrap();
        assert!(config.check().is_err());
        let config: Config = toml::from_str(&SAMPLE.replace("127.0.0.1:7101", "0.0.0.0:7101")).unwrap();
        assert!(config.check().is_err());
    }
}

//! The namenode's configuration file, `namenode.toml`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use dfs_proto::ClusterId;
use dfs_rpc::{Network, TlsFiles};
use serde::{Deserialize, Serialize};

use crate::raft::Member;

/// Everything a namenode is told from outside. An unknown key in the file is an error, because a
/// misspelt setting that is silently ignored is worse than a refused start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This namenode's number; never used again for another machine or another disk.
    pub node: u64,
    /// For people and logs.
    pub name: String,
    /// The cluster's id: 32 hexadecimal digits.
    pub cluster: String,
    pub data_dir: PathBuf,
    /// UDP address of the meta plane: clients and datanodes.
    pub listen: SocketAddr,
    /// UDP address of the Raft plane: the other namenodes. An endpoint of its own, so that a crowd of
    /// clients cannot delay an election.
    pub raft_listen: SocketAddr,
    /// All namenodes; this one may be among them and is then skipped when dialling.
    #[serde(default)]
    pub peers: Vec<Peer>,
    pub tls: TlsFiles,
    #[serde(default)]
    pub timers: Timers,
    /// Log entries applied since the last snapshot before the next one is taken.
    #[serde(default = "default_snapshot_log_entries")]
    pub snapshot_log_entries: u64,
    /// Entries kept behind a snapshot, for followers that are only a little behind.
    #[serde(default = "default_log_keep_entries")]
    pub log_keep_entries: u64,
    /// What its connections go over; a file does not say, and it is UDP.
    #[serde(skip)]
    pub network: Network,
}

/// Another namenode.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub id: u64,
    pub name: String,
    /// Its meta plane.
    pub addr: SocketAddr,
    pub raft_addr: SocketAddr,
}

/// Timers, all in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timers {
    /// Leader to followers. Every append, with data or not, also times out after so long, so it has to
    /// exceed the transfer of one payload and a follower's flush.
    pub heartbeat_interval_ms: u64,
    /// A follower stands for election after `election_timeout_max_ms` plus one or two heartbeats, and again, if nobody was
    /// elected, after a time that it draws between the two.
    /// Must be the same on all namenodes: the leader's lease is half of the followers' maximum.
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
    /// A session ends when it was not renewed for so long. Goes into the cluster's state at genesis.
    pub session_lease_ms: u64,
    /// A datanode silent for so long gets no new chunks.
    pub datanode_suspect_ms: u64,
    /// A datanode silent for so long has its replicas copied again.
    pub datanode_dead_ms: u64,
    /// A chunk has been mostly dead for so long before what lives in it is copied elsewhere: of one that is being
    /// overwritten even less will live soon.
    pub compaction_after_ms: u64,
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            heartbeat_interval_ms: 125,
            election_timeout_min_ms: 325,
            election_timeout_max_ms: 650,
            session_lease_ms: 15_000,
            datanode_suspect_ms: 3_000,
            datanode_dead_ms: 10_000,
            compaction_after_ms: 10_000,
        }
    }
}

impl Timers {
    pub fn suspect_after(&self) -> Duration {
        Duration::from_millis(self.datanode_suspect_ms)
    }

    pub fn dead_after(&self) -> Duration {
        Duration::from_millis(self.datanode_dead_ms)
    }
}

fn default_snapshot_log_entries() -> u64 {
    20_000
}

fn default_log_keep_entries() -> u64 {
    10_000
}

impl Config {
    /// Reads the file; relative paths in it are meant relative to the file's folder.
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut config: Config =
            toml::from_str(&text).with_context(|| format!("{} is not a namenode configuration", path.display()))?;
        let base = path.parent().unwrap_or(Path::new("."));
        for path in [&mut config.data_dir, &mut config.tls.ca, &mut config.tls.cert, &mut config.tls.key] {
            *path = base.join(&path);
        }
        config.check().with_context(|| format!("in {}", path.display()))?;
        Ok(config)
    }

    /// Refuses settings that cannot work, before anything is opened.
    pub fn check(&self) -> anyhow::Result<()> {
        self.cluster_id()?;
        let timers = &self.timers;
        if timers.heartbeat_interval_ms == 0 || timers.election_timeout_min_ms <= 2 * timers.heartbeat_interval_ms {
            bail!("election_timeout_min_ms must be more than twice heartbeat_interval_ms");
        }
        if timers.election_timeout_max_ms <= timers.election_timeout_min_ms {
            bail!("election_timeout_max_ms must be above election_timeout_min_ms");
        }
        if timers.datanode_dead_ms <= timers.datanode_suspect_ms {
            bail!("datanode_dead_ms must be above datanode_suspect_ms");
        }
        if timers.session_lease_ms < 1000 {
            bail!("session_lease_ms must be at least 1000");
        }
        if self.snapshot_log_entries == 0 {
            bail!("snapshot_log_entries must be above 0");
        }
        let mut ids: Vec<u64> = self.peers.iter().map(|peer| peer.id).collect();
        ids.sort_unstable();
        if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            bail!("two peers have the same id");
        }
        Ok(())
    }

    /// This node as a member of the group.
    pub fn member(&self) -> Member {
        let listens = Member { addr: self.listen, name: self.name.clone(), raft_addr: Some(self.raft_listen) };
        // One that listens on every address says among the peers where others reach it.
        self.peer(self.node).unwrap_or(listens)
    }

    /// A peer as a member of the group, if the file names it.
    pub fn peer(&self, id: u64) -> Option<Member> {
        let peer = self.peers.iter().find(|peer| peer.id == id)?;
        Some(Member { addr: peer.addr, name: peer.name.clone(), raft_addr: Some(peer.raft_addr) })
    }

    pub fn cluster_id(&self) -> anyhow::Result<ClusterId> {
        self.cluster.parse().context("cluster")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        node = 1
        name = "nn1"
        cluster = "000102030405060708090a0b0c0d0e0f"
        data_dir = "state"
        listen = "127.0.0.1:7000"
        raft_listen = "127.0.0.1:7001"
        peers = [{ id = 2, name = "nn2", addr = "127.0.0.1:7002", raft_addr = "127.0.0.1:7003" }]
        tls = { ca = "ca.pem", cert = "/abs/nn1.pem", key = "nn1.key" }
    "#;

    fn load(text: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("namenode.toml");
        std::fs::write(&path, text)?;
        let config = Config::load(&path)?;
        assert_eq!(config.data_dir, dir.path().join("state"));
        assert_eq!(config.tls.cert, Path::new("/abs/nn1.pem"));
        Ok(config)
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        load(GOOD).unwrap();
    }

    #[test]
    fn an_unknown_key_and_settings_that_cannot_work_are_refused() {
        for bad in [
            "hartbeat = 1",
            "timers = { election_timeout_min_ms = 100 }",
            "timers = { datanode_dead_ms = 1 }",
            "snapshot_log_entries = 0",
        ] {
            assert!(load(&format!("{GOOD}\n{bad}")).is_err(), "{bad}");
        }
    }
}

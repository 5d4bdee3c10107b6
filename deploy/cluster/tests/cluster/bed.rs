//! What the cluster tests share: a cluster with one mount in a folder of its own.

use std::path::PathBuf;
use std::time::Duration;

use dfs_cluster::{Cluster, Layout};
use tempfile::TempDir;

/// Far more than anything here should take on a crowded machine; passing it means "never".
pub const DEADLINE: Duration = Duration::from_secs(180);

pub struct Bed {
    // Before the folder: the cluster must be down when the folder is removed.
    pub cluster: Cluster,
    pub dir: TempDir,
}

impl Bed {
    pub fn start(namenodes: usize, datanodes: usize, extra: &[&str]) -> Bed {
        Bed::start_with_mounts(namenodes, datanodes, 1, extra)
    }

    pub fn start_with_mounts(namenodes: usize, datanodes: usize, mounts: usize, extra: &[&str]) -> Bed {
        let dir = TempDir::new().unwrap();
        let layout = Layout {
            namenodes,
            datanodes,
            replication: 3,
            mounts: (1..=mounts).map(|number| dir.path().join(format!("mnt{number}"))).collect(),
            extra: extra.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Layout::default()
        };
        let cluster = Cluster::up(&program(), &dir.path().join("data"), layout).unwrap();
        Bed { cluster, dir }
    }

    pub fn mount(&self) -> PathBuf {
        self.cluster.mount(0).to_owned()
    }
}

/// The `dfs` under test.
pub fn program() -> PathBuf {
    std::env::var_os("DFS_TEST_PROGRAM")
        .map(PathBuf::from)
        .expect("run these tests by `cargo xtask test`, or set DFS_TEST_PROGRAM to the dfs program")
}

const SEMANTICS: &str = include_str!("../../../../fuse/SEMANTICS.md");

/// Fails unless the mount's promises contain this: what a test proves of them stays in both places.
pub fn promised(quote: &str) {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(squeezed(SEMANTICS).contains(&squeezed(quote)), "SEMANTICS.md does not promise: {quote}");
}

//! Disks that are full, that fail, that come back empty or old.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use super::power::{Disk, folder, unmount};
use super::{Fault, tool};
use crate::local::Cluster;

/// Fills a node's file system to the last block. Undone, the room is free again and the node runs on.
pub fn fill<'a>(cluster: &'a Cluster, node: &str) -> Result<Fault<'a>> {
    let ballast = folder(cluster, node).join("ballast");
    let path = ballast.clone();
    let fault = Fault::new(format!("disk of {node} full"), move || {
        fs::remove_file(&path).with_context(|| path.display().to_string())
    });
    let file = OpenOptions::new().create_new(true).write(true).open(&ballast)?;
    let mut end = 0;
    // Large steps first; the last ones take what single blocks are left.
    for step in [64 << 20, 1 << 20, 64 << 10, 4096] {
        while fallocate(&file, FallocateFlags::empty(), end, step).is_ok() {
            end += step;
        }
    }
    ensure!(end > 0, "{} has no room to take away", ballast.display());
    Ok(fault)
}

/// The disk of a running node fails: every access is an error from now on. Undone, the node is started again on
/// what the disk holds.
pub fn fail<'a>(cluster: &'a Cluster, node: &str) -> Result<Fault<'a>> {
    Disk::open(&folder(cluster, node))?.shut_down()?;
    let node = node.to_owned();
    Ok(Fault::new(format!("disk of {node} fails"), move || {
        cluster.kill(&node)?;
        unmount(&folder(cluster, &node))?;
        cluster.start(&node)
    }))
}

/// The node is stopped and finds its data folder empty. Undone, it has its data again and runs.
pub fn empty<'a>(cluster: &'a Cluster, node: &str) -> Result<Fault<'a>> {
    cluster.kill(node)?;
    let (data, aside) = (folder(cluster, node).join("data"), folder(cluster, node).join("data.aside"));
    fs::rename(&data, &aside).with_context(|| data.display().to_string())?;
    fs::create_dir(&data)?;
    let node = node.to_owned();
    Ok(Fault::new(format!("data folder of {node} empty"), move || {
        cluster.kill(&node)?;
        fs::remove_dir_all(&data)?;
        fs::rename(&aside, &data)?;
        cluster.start(&node)
    }))
}

/// A node's data as it was at some moment, to be put back later: an old image of a disk.
pub struct OldImage {
    node: String,
    copy: PathBuf,
}

impl OldImage {
    /// Stops the node, copies its data aside and starts it again.
    pub fn take(cluster: &Cluster, node: &str, aside: &Path) -> Result<OldImage> {
        cluster.kill(node)?;
        let copy = aside.join(format!("{node}.old"));
        copy_folder(&folder(cluster, node).join("data"), &copy)?;
        cluster.start(node)?;
        Ok(OldImage { node: node.to_owned(), copy })
    }

    /// Stops the node and gives it the old data. It is not started. Undone, it has its newer data again and runs.
    pub fn put_back<'a>(&self, cluster: &'a Cluster) -> Result<Fault<'a>> {
        cluster.kill(&self.node)?;
        let node = self.node.clone();
        let (data, aside) = (folder(cluster, &node).join("data"), folder(cluster, &node).join("data.aside"));
        fs::rename(&data, &aside)?;
        copy_folder(&self.copy, &data)?;
        Ok(Fault::new(format!("old image of {node}"), move || {
            cluster.kill(&node)?;
            fs::remove_dir_all(&data)?;
            fs::rename(&aside, &data)?;
            cluster.start(&node)
        }))
    }
}

/// Sparse files stay sparse and times stay as they are.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    tool(Command::new("cp").args(["-a", "--sparse=always"]).arg(from).arg(to))
}

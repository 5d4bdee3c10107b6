//! Power cuts: what was not synced is gone.
//!
//! A node's folder is an XFS of its own in an image (`dfs up --fs xfs:SIZE`). Shut down without a flush of its
//! log, the file system keeps what was made durable and forgets everything else, which is what the power of a
//! machine does. Then the process is killed, so that nothing of its memory helps either.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::{Fault, poll_until, tool};
use crate::local::Cluster;

/// For a killed process to let go of its files; and for clients, which are on the same machine here and keep chunk files
/// open for up to a minute and a half after they have read them.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(120);

/// Cuts the power of these nodes at the same time. Undone, they are mounted and started again.
pub fn cut<'a>(cluster: &'a Cluster, nodes: &[String]) -> Result<Fault<'a>> {
    let cut = nodes.to_vec();
    let fault = Fault::new(format!("power cut of {}", nodes.join(" ")), move || {
        cut.iter().try_for_each(|node| restore(cluster, node))
    });
    // All at once: a node that is still powered must not be able to acknowledge for longer than a moment what
    // another has lost.
    let shutdowns: Vec<Child> = nodes.iter().map(|node| shut_down(&folder(cluster, node))).collect::<Result<_>>()?;
    for mut shutdown in shutdowns {
        ensure!(shutdown.wait()?.success(), "xfs_io could not shut a node's file system down");
    }
    for node in nodes {
        // It may have stopped itself: its disk failed.
        let _ = cluster.signal(node, Signal::KILL);
    }
    for node in nodes {
        cluster.kill(node)?;
        unmount(&folder(cluster, node))?;
    }
    Ok(fault)
}

/// Mounts what is not mounted and starts what does not run.
fn restore(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.start(node)
}

pub(super) fn folder(cluster: &Cluster, node: &str) -> std::path::PathBuf {
    cluster.dir().join(node)
}

/// Everything below this folder fails with EIO from now on.
pub(super) fn shut_down(folder: &Path) -> Result<Child> {
    let mut command = Command::new("/usr/sbin/xfs_io");
    // Never with -f: that would flush the log.
    command.args(["-x", "-c", "shutdown"]).arg(folder).stdin(Stdio::null());
    command.spawn().context("xfs_io, of the package xfsprogs")
}

pub(super) fn unmount(folder: &Path) -> Result<()> {
    let mut last = String::new();
    let done = poll_until(UNMOUNT_DEADLINE, "unmount", || match tool(Command::new("umount").arg(folder)) {
        Ok(()) => Ok(true),
        Err(error) => {
            last = format!("{error:#}");
            Ok(false)
        }
    });
    done.with_context(|| format!("{}: {last}", folder.display()))
}

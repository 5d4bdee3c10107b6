//! Power cuts: what was not synced is gone.
//!
//! A node's folder is an XFS of its own in an image (`dfs up --fs xfs:SIZE`). Shut down without a flush of its
//! log, the file system keeps what was made durable and forgets everything else, which is what the power of a
//! machine does. Then the process is killed, so that nothing of its memory helps either.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::fstatfs;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use super::{Fault, poll_until};
use crate::local::Cluster;

/// For a killed process to let go of its files; and for clients, which are on the same machine here and keep chunk files
/// open for up to a minute and a half after they have read them.
const UNMOUNT_DEADLINE: Duration = Duration::from_secs(120);

/// Cuts the power of these nodes at the same time. Undone, they are mounted and started again.
pub fn cut<'a>(cluster: &'a Cluster, nodes: &[String]) -> Result<Fault<'a>> {
    let cut = nodes.to_vec();
    let fault = Fault::new(format!("power cut of {}", nodes.join(" ")), move || {
        // All at once, as the power comes back. One after the other, a start that waits for mounts without a quorum
        // would keep from starting those that make one.
        std::thread::scope(|scope| {
            let starts: Vec<_> = cut.iter().map(|node| scope.spawn(|| restore(cluster, node))).collect();
            starts.into_iter().try_for_each(|start| start.join().map_err(|_| anyhow!("a start panicked"))?)
        })
    });
    // All at once: a node that is still powered must not be able to acknowledge for longer than a moment what
    // another has lost. So all are opened before the first is shut down.
    let disks: Vec<Disk> = nodes.iter().map(|node| Disk::open(&folder(cluster, node))).collect::<Result<_>>()?;
    disks.into_iter().try_for_each(Disk::shut_down)?;
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

/// A mounted XFS that can be shut down.
pub(super) struct Disk {
    mounted: File,
}

/// `XFS_IOC_GOINGDOWN`.
const GOING_DOWN: Opcode = opcode::read::<u32>(b'X', 125);

/// `XFS_SUPER_MAGIC`.
const XFS_MAGIC: rustix::fs::FsWord = 0x5846_5342;

/// `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`: neither data nor log is flushed first. The other flags flush, and nothing would be
/// lost that a power cut takes.
const NO_LOG_FLUSH: u32 = 2;

impl Disk {
    /// The one that is mounted on this folder.
    ///
    /// # Errors
    /// Also when the folder lies on the disk of the folder around it: ext4 knows the same request, and would take the
    /// whole machine's files away.
    pub(super) fn open(folder: &Path) -> Result<Disk> {
        let open = || {
            let mounted = File::open(folder)?;
            let around = folder.parent().context("a node's folder is in the cluster's")?.metadata()?;
            ensure!(mounted.metadata()?.dev() != around.dev(), "no file system is mounted there");
            ensure!(fstatfs(&mounted)?.f_type == XFS_MAGIC, "what is mounted there is no XFS");
            Ok(Disk { mounted })
        };
        open().with_context(|| folder.display().to_string())
    }

    /// Every access to it fails with EIO from now on.
    ///
    /// The kernel is asked here and not by `xfs_io -c shutdown`, which first looks at everything that is mounted, and
    /// waits for mounts of the cluster whose power is being cut.
    #[expect(unsafe_code, reason = "nobody wraps this request")]
    pub(super) fn shut_down(self) -> Result<()> {
        // SAFETY: the kernel reads the flags through the pointer, which is what a setter passes, and writes no memory.
        unsafe { ioctl(&self.mounted, Setter::<GOING_DOWN, u32>::new(NO_LOG_FLUSH)) }.context("shut a node's XFS down")
    }
}

/// By the kernel's call: `umount` looks at what else is mounted as well.
pub(super) fn unmount(folder: &Path) -> Result<()> {
    let done =
        poll_until(UNMOUNT_DEADLINE, "unmount", || match rustix::mount::unmount(folder, UnmountFlags::empty()) {
            Err(Errno::BUSY) => Ok(false),
            done => Ok(done.map(|()| true)?),
        });
    done.with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_no_mount_of_its_own_is_no_disk_to_shut_down() {
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("nn1");
        std::fs::create_dir(&node).unwrap();
        let Err(error) = Disk::open(&node) else { panic!("the machine's own disk would be shut down") };
        assert!(format!("{error:#}").contains("no file system is mounted there"), "{error:#}");
    }
}

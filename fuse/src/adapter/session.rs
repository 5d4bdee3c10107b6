//! Starting a FUSE session.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, INodeNo, MountOption, Session, SessionACL};
use tokio_util::sync::CancellationToken;

use super::{Adapter, convert};
use crate::fs::Fs;
use crate::fs::caller::Squash;
use crate::mount::MountOptions;

/// Mounts on `mountpoint` and serves requests on threads of their own until the file system is unmounted; then cancels
/// `ended`. Blocks for the mount and the first exchange with the kernel. Needs a tokio runtime's context.
///
/// Fails if the kernel or `fusermount3` refuses the mount; nothing is mounted then.
pub fn start(fs: Arc<Fs>, mountpoint: &Path, options: &MountOptions, ended: CancellationToken) -> io::Result<()> {
    let adapter = Adapter::new(fs.clone(), ended.drop_guard());
    let session = Session::new(adapter, mountpoint, &config(options))?;
    let notifier = session.notifier();
    fs.set_drop_pages(Box::new(move |inode| {
        // The kernel answers ENOENT if it does not know the inode, which is as good.
        if let Err(error) = notifier.inval_inode(convert::node(inode), 0, 0) {
            tracing::debug!(%inode, %error, "pages not dropped");
        }
    }));
    let (device, root) = (session.as_fd().try_clone_to_owned()?, fs.root);
    fs.set_take_back(Box::new(move |inode| {
        let node = if inode == root { INodeNo::ROOT } else { convert::node(inode) };
        forget_attributes(&device, node)
    }));
    // Kept, it would unmount whatever is mounted at this path when it is dropped: fuser 0.18 takes a mount that is gone
    // for one that is there. `mount::point` unmounts, and makes sure that it is ours.
    std::mem::forget(session.spawn()?);
    Ok(())
}

/// `FUSE_NOTIFY_INVAL_INODE` for attributes and ACLs, which takes no lock; pages stay. Whether the kernel knows the inode:
/// the reason why this is not `Notifier::inval_inode`, which says so of any.
fn forget_attributes(device: &OwnedFd, node: INodeNo) -> bool {
    const INVAL_INODE: i32 = 2;
    const NO_PAGES: i64 = -1;
    const LEN: u32 = 40;
    let (unique, pages): (u64, i64) = (0, 0);
    // fuse_out_header and fuse_notify_inval_inode_out of linux/fuse.h.
    let message = [
        &LEN.to_ne_bytes()[..],
        &INVAL_INODE.to_ne_bytes(),
        &unique.to_ne_bytes(),
        &node.0.to_ne_bytes(),
        &NO_PAGES.to_ne_bytes(),
        &pages.to_ne_bytes(),
    ];
    rustix::io::write(device, &message.concat()).is_ok()
}

fn config(options: &MountOptions) -> Config {
    let root = rustix::process::geteuid().is_root();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.fsname.clone()),
        // Not `Subtype`: fuser drops that when it mounts without fusermount3.
        MountOption::CUSTOM("subtype=dfs".to_owned()),
        if options.read_only { MountOption::RO } else { MountOption::RW },
        if options.suid { MountOption::Suid } else { MountOption::NoSuid },
        if options.dev { MountOption::Dev } else { MountOption::NoDev },
        if options.exec { MountOption::Exec } else { MountOption::NoExec },
    ];
    // The kernel would ask whether the caller may do it, and not whether that may do it as whom all are squashed. The
    // namenode does in any case.
    if !matches!(options.squash, Squash::All(_)) {
        config.mount_options.push(MountOption::DefaultPermissions);
    }
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    // A queue for each thread; opening /dev/fuse again is what needs root.
    config.clone_fd = root;
    config
}

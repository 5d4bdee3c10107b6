//! Starting a FUSE session.

use std::io;
use std::path::Path;
use std::sync::Arc;

use fuser::{Config, MountOption, Session, SessionACL};
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
    // Kept, it would unmount whatever is mounted at this path when it is dropped: fuser 0.18 takes a mount that is gone
    // for one that is there. `mount::point` unmounts, and makes sure that it is ours.
    std::mem::forget(session.spawn()?);
    Ok(())
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

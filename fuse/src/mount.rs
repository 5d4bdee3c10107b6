//! One mount from its beginning to its end.

mod mountinfo;
mod point;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, ensure};
use dfs_client::Dfs;
use dfs_proto::{Caller, FileKind, InodeId};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::adapter::session;
use crate::fs::Fs;
use crate::fs::caller::Squash;

/// How much longer than the client's own deadline an operation may take before it is answered without the client.
const DEADLINE_MARGIN: Duration = Duration::from_secs(10);

/// Read-ahead of one sequential reader, in KiB: four requests of 1 MiB in flight. The kernel's 128 KiB would wait
/// for the network at each step, and FUSE cannot ask for more in any other way.
const READ_AHEAD_KIB: u32 = 4096;

/// How long programs that have files open on a detached mount may go on with them.
const LINGER: Duration = Duration::from_secs(2);

/// How long the end of a mount waits for operations that still run.
const DRAIN: Duration = Duration::from_secs(15);

/// How long it then waits for bytes of files that were never closed: as long as a failover of the namenodes may take,
/// and together with the rest well below the 90 s after which systemd kills.
const FLUSH: Duration = Duration::from_secs(30);

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountOptions {
    pub mountpoint: PathBuf,
    pub read_only: bool,
    /// Lets other users than the one who mounts in; permission bits decide what they may do.
    pub allow_other: bool,
    /// Honour set-user-id and set-group-id bits.
    pub suid: bool,
    /// Honour device files.
    pub dev: bool,
    /// Run programs from it.
    pub exec: bool,
    /// The path of the directory in the cluster that is the top of the mount; `/` for all of it.
    pub subdir: PathBuf,
    pub squash: Squash,
    /// What `df` and `/proc/mounts` show as the source. No commas.
    pub fsname: String,
    /// Threads that take requests from the kernel. They only copy; the tokio runtime does the work.
    pub threads: usize,
    /// The client's deadline for one operation; `None` for a `hard` mount, whose calls wait for ever.
    pub op_deadline: Option<Duration>,
}

impl MountOptions {
    /// The defaults: everybody may use root's mounts, nobody else the mounts of others.
    pub fn new(mountpoint: impl Into<PathBuf>) -> MountOptions {
        MountOptions {
            mountpoint: mountpoint.into(),
            read_only: false,
            allow_other: rustix::process::geteuid().is_root(),
            suid: false,
            dev: false,
            exec: true,
            subdir: "/".into(),
            squash: Squash::Off,
            fsname: "dfs".to_owned(),
            threads: available_parallelism().map_or(2, usize::from).clamp(2, 4),
            op_deadline: Some(Duration::from_secs(30)),
        }
    }
}

/// Mounts, calls `ready` once the mount point can be used, and serves until `shutdown` is cancelled or somebody
/// unmounts. Then unmounts if need be, flushes what was written, and closes the client's session.
///
/// Fails if the mount point cannot be used, or if bytes that had been written could not be stored in the end.
pub async fn run(
    dfs: Dfs,
    options: MountOptions,
    ready: impl FnOnce(),
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    ensure!(!options.fsname.contains(','), "the name of a file system must not contain a comma: {}", options.fsname);
    let root = top(&dfs, &options.subdir).await?;
    let path = point::claim(&options.mountpoint).await?;
    let deadline = options.op_deadline.map(|deadline| deadline + DEADLINE_MARGIN);
    let fs = Arc::new(Fs::new(dfs.clone(), root, options.squash, deadline));
    let ended = CancellationToken::new();
    start(&fs, &path, options, ended.clone()).await?;
    let device = point::device(&path)?;
    read_ahead(&device);
    tracing::info!(mountpoint = %path.display(), device, "mounted");
    ready();

    tokio::select! {
        () = shutdown.cancelled() => tracing::info!(mountpoint = %path.display(), "unmounting"),
        () = ended.cancelled() => tracing::info!(mountpoint = %path.display(), "unmounted from outside"),
    }
    point::release(&path, &device).await?;
    let _ = timeout(LINGER, ended.cancelled()).await;
    finish(dfs, &fs).await
}

/// The directory that becomes the top of the mount. It is held by its number: renamed, it stays the top.
async fn top(dfs: &Dfs, subdir: &Path) -> anyhow::Result<InodeId> {
    let shown = subdir.display();
    ensure!(subdir.is_absolute(), "a path in the cluster begins with a slash: {shown}");
    let attr = dfs.resolve(&Caller::ROOT, subdir.as_os_str().as_bytes()).await;
    let attr = attr.with_context(|| format!("cannot mount {shown} of the cluster"))?;
    ensure!(attr.kind == FileKind::Directory, "cannot mount {shown} of the cluster: it is not a directory");
    Ok(attr.inode)
}

async fn start(fs: &Arc<Fs>, path: &Path, options: MountOptions, ended: CancellationToken) -> anyhow::Result<()> {
    let (fs, mountpoint) = (fs.clone(), path.to_owned());
    tokio::task::spawn_blocking(move || session::start(fs, &mountpoint, &options, ended))
        .await
        .context("mounting")?
        .with_context(|| format!("cannot mount on {}", path.display()))
}

/// Waits for what still runs, then makes what was written safe. Dirty bytes of files that are still open go with it.
async fn finish(dfs: Dfs, fs: &Fs) -> anyhow::Result<()> {
    if timeout(DRAIN, fs.admission.idle()).await.is_err() {
        tracing::warn!("operations are left behind");
    }
    timeout(FLUSH, dfs.shutdown())
        .await
        .context("the cluster cannot be reached: the session was not closed in order")?
        .context("bytes that had been written to open files are lost")
}

/// Best effort: in a container `/sys` is often read-only.
fn read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::warn!(path, %error, "read-ahead stays small");
    }
}

//! The mount point: may it be used, and how is it given back.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::mountinfo::{Mounted, mounted_at};

/// The type that mounts of ours carry in the mount table.
const FS_TYPE: &str = "fuse.dfs";

/// How long a mounted file system may take to show that it lives.
const PROBE: Duration = Duration::from_secs(5);

/// How long an orderly unmount may take, which writes back pages of shared mappings.
const UNMOUNT: Duration = Duration::from_secs(20);

/// Dead mounts that may lie on top of each other: one of each crash since the last clean-up.
const DEAD_MOUNTS_MAX: usize = 16;

/// Makes sure that `mountpoint` is a directory on which no FUSE file system lives; a dead mount of ours is removed.
/// The path without symlinks.
pub async fn claim(mountpoint: &Path) -> anyhow::Result<PathBuf> {
    let path = resolve(mountpoint)?;
    for _ in 0..DEAD_MOUNTS_MAX {
        match mounted_at(&path).context("reading the mount table")? {
            Some(mounted) if mounted.fs_type.starts_with("fuse") => {
                let Mounted { fs_type, source, .. } = &mounted;
                ensure!(
                    is_dead(&path).await,
                    "{} is in use: {source} ({fs_type}) is mounted there. Unmount it first: umount {0}",
                    path.display()
                );
                ensure!(
                    fs_type == FS_TYPE,
                    "{} holds a dead mount of {source} ({fs_type}). Remove it first: umount {0}",
                    path.display()
                );
                tracing::info!(mountpoint = %path.display(), "removing a dead mount");
                detach(&path).with_context(|| format!("cannot remove the dead mount on {}", path.display()))?;
            }
            _ => {
                let metadata = fs::metadata(&path).with_context(|| format!("cannot use {}", path.display()))?;
                ensure!(metadata.is_dir(), "{} is not a directory: a mount point must be one", path.display());
                return Ok(path);
            }
        }
    }
    bail!("{} holds more than {DEAD_MOUNTS_MAX} dead mounts. Remove them: umount {0}", path.display())
}

/// `major:minor` of the file system that was just mounted on `path`.
pub fn device(path: &Path) -> anyhow::Result<String> {
    let mounted = mounted_at(path).context("reading the mount table")?;
    let mounted = mounted.with_context(|| format!("the mount on {} is gone again", path.display()))?;
    Ok(mounted.device)
}

/// Unmounts `device` from `path` if it is still there. If programs use it, detaches it: they keep what they have open
/// and nobody else gets in.
pub async fn release(path: &Path, device: &str) -> anyhow::Result<()> {
    let is_ours = || mounted_at(path).map(|mounted| mounted.is_some_and(|mounted| mounted.device == device));
    if !is_ours().context("reading the mount table")? {
        return Ok(());
    }
    let target = path.to_owned();
    match timeout(UNMOUNT, on_own_thread(move || plain_unmount(&target))).await {
        Ok(Some(Ok(()))) => return Ok(()),
        Ok(Some(Err(error))) => tracing::warn!(mountpoint = %path.display(), %error, "in use, detaching"),
        Ok(None) | Err(_) => tracing::warn!(mountpoint = %path.display(), "unmount takes too long, detaching"),
    }
    if !is_ours().context("reading the mount table")? {
        return Ok(());
    }
    detach(path).with_context(|| format!("cannot unmount {}", path.display()))
}

/// Without symlinks. Only the parent is resolved when the mount point itself cannot be read any more.
fn resolve(mountpoint: &Path) -> anyhow::Result<PathBuf> {
    match fs::canonicalize(mountpoint) {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("{} does not exist. Make the mount point first: mkdir -p {0}", mountpoint.display())
        }
        Err(error) if is_connection_lost(&error) => {
            let name = mountpoint.file_name();
            let name = name.ok_or_else(|| anyhow!("{} is not the path of a directory", mountpoint.display()))?;
            let parent = mountpoint.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new("."));
            let parent = fs::canonicalize(parent).with_context(|| format!("cannot use {}", parent.display()))?;
            Ok(parent.join(name))
        }
        Err(error) => Err(error).with_context(|| format!("cannot use {}", mountpoint.display())),
    }
}

/// "Transport endpoint is not connected": the process behind the mount is gone.
fn is_connection_lost(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// One that does not answer in time is taken to live: its process may only be slow.
async fn is_dead(path: &Path) -> bool {
    let path = path.to_owned();
    let answer = timeout(PROBE, on_own_thread(move || fs::metadata(path))).await;
    matches!(answer, Ok(Some(Err(error))) if is_connection_lost(&error))
}

/// For calls that may hang in the kernel: a thread of tokio's pool would hold up the end of the runtime. `None` if no
/// thread could be had.
async fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, result) = oneshot::channel();
    // Nobody may be waiting any more.
    let work = move || drop(done.send(work()));
    std::thread::Builder::new().name("mount-point".to_owned()).spawn(work).ok()?;
    result.await.ok()
}

fn plain_unmount(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::NOFOLLOW) {
        Err(Errno::PERM) => fusermount(path, &["-u"]),
        other => Ok(other?),
    }
}

fn detach(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH) {
        Err(Errno::PERM) => fusermount(path, &["-u", "-z"]),
        other => Ok(other?),
    }
}

/// The helper that may unmount for users who are not root.
fn fusermount(path: &Path, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("fusermount3").args(arguments).arg("--").arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_missing_mount_point_is_told_how_to_make() {
        let home = tempfile::tempdir().unwrap();
        let error = claim(&home.path().join("none")).await.unwrap_err();
        assert!(error.to_string().contains("mkdir -p"), "{error}");
    }

    #[tokio::test]
    async fn a_file_is_no_mount_point() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, b"").unwrap();
        let error = claim(&file).await.unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
    }

    #[tokio::test]
    async fn a_mount_point_is_known_by_its_real_path() {
        let home = tempfile::tempdir().unwrap();
        let real = home.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, home.path().join("link")).unwrap();
        assert_eq!(claim(&home.path().join("link")).await.unwrap(), real);
    }

    #[tokio::test]
    async fn what_is_not_ours_is_not_unmounted() {
        release(Path::new("/"), "not:this").await.unwrap();
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
    }
}

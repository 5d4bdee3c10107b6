//! What is mounted on a directory, without touching it: a `stat` of a mount point may hang with its file system.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_remount, unmount};

use crate::error::{Failure, Result};

/// The type of our mounts in the mount table.
pub const FUSE_TYPE: &str = "fuse.dfs";

/// How long a remount waits for files that are just being closed: a few round trips, many times over.
const REMOUNT_WAIT: Duration = Duration::from_secs(5);
const REMOUNT_POLL: Duration = Duration::from_millis(20);

/// The type of the file system on top at `path`, which must be absolute and without symlinks.
pub fn mounted_at(path: &Path) -> Result<Option<String>> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(|error| Failure::local(table, &error))?;
    Ok(topmost(&text, path).map(|mounted| mounted.kind))
}

/// Gives the mount of ours at `path` other flags: those that `change` makes of its present options.
///
/// A file that was closed or removed a moment ago counts as in use until the cluster has been told, which makes a
/// remount as read-only wait.
pub async fn remount(path: &Path, change: impl FnOnce(&str) -> MountFlags) -> Result {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(|error| Failure::local(table, &error))?;
    let mounted = topmost(&text, path).filter(|mounted| mounted.kind == FUSE_TYPE);
    let mounted = mounted.ok_or_else(|| Failure::failed(format!("no dfs is mounted on {}", path.display())))?;
    let flags = change(&mounted.options);
    let end = Instant::now() + REMOUNT_WAIT;
    loop {
        match mount_remount(path, flags, "") {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY) if Instant::now() < end => tokio::time::sleep(REMOUNT_POLL).await,
            Err(Errno::BUSY) => {
                return Err(Failure::failed(format!("{} is in use", path.display()))
                    .hint("end the programs that write to it, or have removed files open"));
            }
            Err(error) => return Err(Failure::local(path, &error.into())),
        }
    }
}

/// Whether a mount of ours is there and answers within the deadline.
pub async fn answers(path: &Path, deadline: Duration) -> bool {
    if !matches!(mounted_at(path), Ok(Some(kind)) if kind == FUSE_TYPE) {
        return false;
    }
    let (done, answer) = tokio::sync::oneshot::channel();
    let path = path.to_owned();
    // A thread of its own: a call that hangs in the kernel would hold up the end of the runtime.
    std::thread::spawn(move || {
        let answered = rustix::fs::statvfs(&path).is_ok() && fs::metadata(&path).is_ok();
        // Nobody may be waiting any more.
        let _ = done.send(answered);
    });
    matches!(tokio::time::timeout(deadline, answer).await, Ok(Ok(true)))
}

/// Unmounts what is on top; with `detach` also if programs use it, which keep what they have open.
pub fn unmount_top(path: &Path, detach: bool) -> Result {
    let flags = if detach { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match unmount(path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => fusermount(path, detach),
        Err(Errno::BUSY) => Err(Failure::failed(format!("{} is in use", path.display()))
            .hint("end the programs that use it, or detach it with --lazy")),
        Err(error) => Err(Failure::local(path, &error.into())),
    }
}

/// The helper that may unmount for users who are not root.
fn fusermount(path: &Path, detach: bool) -> Result {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(detach.then_some("-z")).arg("--").arg(path).stdin(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(Failure::failed(format!("cannot unmount {}", path.display())).cause(said))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Failure::usage("fusermount3 is not installed").hint("apt install fuse3"))
        }
        Err(error) => Err(Failure::io("fusermount3", &error)),
    }
}

/// Without symlinks. The mount point itself is not touched if something of ours is mounted on it: with
/// its cluster away it would not answer for a long time.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if let (Some(parent), Some(name)) = (path.parent(), path.file_name()) {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        let real = parent.canonicalize().map_err(|error| Failure::local(path, &error))?.join(name);
        if matches!(mounted_at(&real), Ok(Some(kind)) if kind == FUSE_TYPE) {
            return Ok(real);
        }
    }
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Failure::local(path, &error)),
        Err(_) => {
            let path = std::path::absolute(path).map_err(|error| Failure::local(path, &error))?;
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => {
                    Ok(parent.canonicalize().map_err(|error| Failure::local(parent, &error))?.join(name))
                }
                _ => Ok(path),
            }
        }
    }
}

/// A line of the mount table.
struct Mounted {
    at: PathBuf,
    kind: String,
    options: String,
}

/// Later mounts hide earlier ones.
fn topmost(mountinfo: &[u8], path: &Path) -> Option<Mounted> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse).rfind(|mounted| mounted.at == path)
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 - ext3 /dev/root rw`, with any number of fields
/// before the dash.
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let at = fields.nth(4)?;
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let kind = fields.next()?;
    let text = |field| String::from_utf8_lossy(field).into_owned();
    Some(Mounted { at: OsString::from_vec(unescape(at)).into(), kind: text(kind), options: text(options) })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(*byte);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_stacked_mounts_the_top_counts_and_spaces_are_read() {
        let table = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
            40 22 0:45 / /mnt/a\\040b rw - fuse.dfs dfs rw,user_id=0\n\
            41 22 0:46 / /mnt/c rw shared:2 master:3 - tmpfs tmpfs rw\n\
            42 41 0:47 / /mnt/c rw - xfs other rw\nbroken line\n";
        let found = topmost(table, Path::new("/mnt/a b")).unwrap();
        assert_eq!((found.kind.as_str(), found.options.as_str()), (FUSE_TYPE, "rw"));
        assert_eq!(topmost(table, Path::new("/mnt/c")).unwrap().kind, "xfs");
        assert!(topmost(table, Path::new("/mnt/c/d")).is_none());
    }

    #[test]
    fn the_root_of_this_machine_is_mounted() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
    }
}

//! What is mounted where, without touching it: a `stat` of a mount point may hang with its file system.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mounted {
    /// `major:minor` of what `stat` shows as the device.
    pub device: String,
    pub mountpoint: PathBuf,
    /// `fuse.dfs` for a mount of ours.
    pub fs_type: String,
    pub source: String,
}

/// What is on top at `path`, which must be absolute and without symlinks.
pub fn mounted_at(path: &Path) -> io::Result<Option<Mounted>> {
    Ok(topmost(&fs::read("/proc/self/mountinfo")?, path))
}

/// Later mounts hide earlier ones.
fn topmost(mountinfo: &[u8], path: &Path) -> Option<Mounted> {
    mountinfo.split(|&byte| byte == b'\n').filter_map(parse).rfind(|mounted| mounted.mountpoint == path)
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 - ext3 /dev/root rw`, with any number of fields before the dash.
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = fields.nth(2)?;
    let mountpoint = fields.nth(1)?;
    fields.find(|&field| field == b"-")?;
    let fs_type = fields.next()?;
    let source = fields.next()?;
    let text = |field| String::from_utf8_lossy(&unescape(field)).into_owned();
    Some(Mounted {
        device: text(device),
        mountpoint: OsString::from_vec(unescape(mountpoint)).into(),
        fs_type: text(fs_type),
        source: text(source),
    })
}

/// Space, tab, newline and backslash are written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:45 / /mnt/a\\040b rw,nosuid,nodev - fuse.dfs dfs rw,user_id=0
41 22 0:46 / /mnt/c rw shared:2 master:3 - tmpfs tmpfs rw
42 41 0:47 / /mnt/c rw - fuse.dfs other rw
broken line
";

    #[test]
    fn a_mount_point_with_a_space_is_found() {
        let found = topmost(MOUNTINFO, Path::new("/mnt/a b")).unwrap();
        assert_eq!((found.device.as_str(), found.fs_type.as_str(), found.source.as_str()), ("0:45", "fuse.dfs", "dfs"));
    }

    #[test]
    fn of_stacked_mounts_the_top_counts() {
        assert_eq!(topmost(MOUNTINFO, Path::new("/mnt/c")).unwrap().source, "other");
    }

    #[test]
    fn a_directory_below_a_mount_is_no_mount() {
        assert_eq!(topmost(MOUNTINFO, Path::new("/mnt/c/d")), None);
    }

    #[test]
    fn escapes_are_undone_and_other_backslashes_kept() {
        assert_eq!(unescape(b"a\\134b\\011\\12\\x"), b"a\\b\t\\12\\x");
        assert_eq!(unescape(b"\\377\\400"), b"\xff\\400");
    }

    #[test]
    fn the_root_of_this_machine_is_mounted() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
    }
}

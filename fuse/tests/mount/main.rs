//! Proves `SEMANTICS.md` on a mount.
//!
//! `DFS_TEST_MOUNT` names a mount to try them on, `DFS_TEST_MOUNT2` a second mount of the same cluster. Without the
//! first nothing is tried, without the second only what one mount can show. Tests about permissions need root, and
//! mounts made by root. Each test works in a directory of its own and leaves nothing behind.

mod acls;
mod content;
mod directories;
mod limits;
mod locks;
mod model;
mod names;
mod permissions;
mod private;
mod ranges;
mod two_mounts;
mod xattrs;

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

const SEMANTICS: &str = include_str!("../../SEMANTICS.md");

/// The ids of nobody and nogroup: anybody who owns nothing would do.
const NOBODY: u32 = 65534;

/// A fresh directory on the mount for a test that proves `quote`; `None` if there is no mount to try it on.
fn on_mount(quote: &str) -> Option<TempDir> {
    assert!(squeezed(SEMANTICS).contains(&squeezed(quote)), "SEMANTICS.md does not promise: {quote}");
    let Some(mount) = std::env::var_os("DFS_TEST_MOUNT") else {
        println!("skipped: DFS_TEST_MOUNT is not set");
        return None;
    };
    Some(tempfile::Builder::new().prefix("semantics-").tempdir_in(mount).expect("a directory on DFS_TEST_MOUNT"))
}

/// As `on_mount`, with the same directory as the second mount shows it.
fn on_two_mounts(quote: &str) -> Option<(TempDir, PathBuf)> {
    let first = on_mount(quote)?;
    let Some(mount) = std::env::var_os("DFS_TEST_MOUNT2") else {
        println!("skipped: DFS_TEST_MOUNT2 is not set");
        return None;
    };
    let second = Path::new(&mount).join(first.path().file_name().expect("a name"));
    Some((first, second))
}

/// As `on_mount`, for tests that act as other users.
fn on_mount_as_root(quote: &str) -> Option<TempDir> {
    let dir = on_mount(quote)?;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return None;
    }
    set_mode(dir.path(), 0o755);
    Some(dir)
}

/// Runs a shell script in `dir` as nobody, in the given supplementary groups.
fn as_nobody(dir: &Path, groups: &[u32], script: &str) -> Output {
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups={}", groups.join(",")) };
    Command::new("setpriv")
        .arg(format!("--reuid={NOBODY}"))
        .arg(format!("--regid={NOBODY}"))
        .arg(groups)
        .args(["sh", "-c", script])
        .current_dir(dir)
        .output()
        .expect("setpriv of util-linux")
}

/// Says what a script has said if it did not end as expected.
fn expect(output: &Output, success: bool) {
    assert_eq!(output.status.success(), success, "{output:?}");
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Fails unless `result` is the error `errno`.
fn expect_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: rustix::io::Errno) {
    match result {
        Err(error) if error.raw_os_error() == Some(errno.raw_os_error()) => {}
        other => panic!("{errno:?} was expected, not {other:?}"),
    }
}

fn names_in(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names
}

fn has_name(dir: &Path, name: impl AsRef<OsStr>) -> bool {
    names_in(dir).iter().any(|found| found == name.as_ref())
}

/// Bytes that look random and are the same for the same seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn squeezed(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

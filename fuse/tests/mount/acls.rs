//! POSIX access control lists.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

use crate::{NOBODY, as_nobody, expect, on_mount_as_root, on_two_mounts, set_mode};

const ENFORCED: &str = "POSIX ACLs are enforced by the namenode and by the kernel of the mount, by the same list. `chmod` changes the mask, \
     setting an access ACL changes the mode, and an ACL that says no more than a mode becomes one.";

fn setfacl(path: &Path, arguments: &[&str]) {
    expect(&Command::new("setfacl").args(arguments).arg(path).output().expect("setfacl of Debian's acl"), true);
}

/// The entries, without those that a comment shows to be masked.
fn entries(path: &Path) -> Vec<String> {
    let output = Command::new("getfacl").args(["-n", "-c", "-p", "-E"]).arg(path).output().expect("getfacl");
    expect(&output, true);
    String::from_utf8(output.stdout).unwrap().split_whitespace().map(str::to_owned).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn named_users_and_groups_get_what_the_list_gives() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    let path = dir.path().join("file");
    fs::write(&path, b"x").unwrap();
    set_mode(&path, 0o600);
    let nobody = |groups: &[u32], script: &str, success| expect(&as_nobody(dir.path(), groups, script), success);
    nobody(&[], "cat file", false);
    setfacl(&path, &["-m", "u:65534:r"]);
    assert_eq!(entries(&path), ["user::rw-", "user:65534:r--", "group::---", "mask::r--", "other::---"]);
    assert_eq!(mode(&path), 0o640);
    nobody(&[], "cat file", true);
    nobody(&[], "echo y >> file", false);
    setfacl(&path, &["-b", "-m", "g:4711:rw"]);
    nobody(&[], "cat file", false);
    nobody(&[4711], "cat file && echo y >> file", true);

    // The mask takes it away, and gives it back.
    set_mode(&path, 0o600);
    nobody(&[4711], "cat file", false);
    set_mode(&path, 0o640);
    nobody(&[4711], "cat file", true);
    nobody(&[4711], "echo y >> file", false);
    assert_eq!(entries(&path), ["user::rw-", "group::---", "group:4711:rw-", "mask::r--", "other::---"]);

    // Whoever is named gets no more than that, though others would.
    setfacl(&path, &["-b", "-m", "u:65534:-,g::r,o::rw"]);
    nobody(&[], "cat file", false);
}

#[test]
fn directories_are_searched_and_changed_by_their_list() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    fs::write(sub.join("file"), b"x").unwrap();
    set_mode(&sub, 0o700);
    let nobody = |script: &str, success| expect(&as_nobody(dir.path(), &[], script), success);
    nobody("cat sub/file", false);
    setfacl(&sub, &["-m", "u:65534:x"]);
    nobody("cat sub/file", true);
    nobody("ls sub", false);
    nobody("echo > sub/new", false);
    setfacl(&sub, &["-m", "u:65534:rwx"]);
    nobody("ls sub && echo > sub/new && mv sub/new sub/other && ln sub/other sub/link && rm sub/other sub/link", true);
    nobody("mkdir sub/d && rmdir sub/d", true);
}

#[test]
fn a_list_that_says_no_more_than_a_mode_becomes_one() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    set_mode(&path, 0o2750);
    setfacl(&path, &["--set", "u::rw,g::r,o::r"]);
    assert_eq!(mode(&path), 0o2644);
    let listed = Command::new("ls").arg("-l").arg(&path).output().unwrap();
    assert!(listed.stdout.starts_with(b"-rw-r-Sr-- "), "{listed:?}");
    setfacl(&path, &["-m", "u:1:r"]);
    let listed = Command::new("ls").arg("-l").arg(&path).output().unwrap();
    assert!(listed.stdout.starts_with(b"-rw-r-Sr--+ "), "{listed:?}");
    setfacl(&path, &["-b"]);
    assert_eq!(entries(&path), ["user::rw-", "group::r--", "other::r--"]);
}

#[test]
fn only_the_owner_changes_a_list() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    set_mode(&path, 0o666);
    expect(&as_nobody(dir.path(), &[], "setfacl -m u:1:r file"), false);
    chown(&path, Some(NOBODY), Some(4711)).unwrap();
    set_mode(&path, 0o2770);
    expect(&as_nobody(dir.path(), &[], "setfacl -m u:1:r file"), true);
    assert_eq!(mode(&path), 0o770, "set-group-id goes with a list by one who is not in the group");
    expect(&as_nobody(dir.path(), &[], "setfacl -d -m u:1:r file"), false);
}

#[test]
fn new_files_get_the_default_acl_in_place_of_the_umask() {
    let Some(dir) = on_mount_as_root("What is made in a directory with a default ACL gets that in place of the umask.")
    else {
        return;
    };
    let at = |name: &str| dir.path().join(name);
    set_mode(dir.path(), 0o777);
    setfacl(dir.path(), &["-d", "-m", "u::rwx,u:1:rwx,g::rx,o::-"]);
    let script = "umask 077; echo > file; mkdir sub; mkfifo fifo; ln -s file link; echo > sub/file";
    expect(&as_nobody(dir.path(), &[], script), true);
    for file in ["file", "fifo", "sub/file"] {
        assert_eq!(entries(&at(file)), ["user::rw-", "user:1:rwx", "group::r-x", "mask::rw-", "other::---"], "{file}");
        assert_eq!(mode(&at(file)), 0o660, "{file}");
    }
    let inherited = entries(&at("sub"));
    assert_eq!(inherited[..5], ["user::rwx", "user:1:rwx", "group::r-x", "mask::rwx", "other::---"]);
    assert_eq!(inherited[5..], entries(dir.path())[3..]);

    setfacl(dir.path(), &["-k"]);
    expect(&as_nobody(dir.path(), &[], "umask 027; echo > plain; mkdir plainsub"), true);
    assert_eq!((mode(&at("plain")), mode(&at("plainsub"))), (0o640, 0o750));
}

#[test]
fn a_list_of_the_largest_size_fits_and_no_longer_one() {
    let Some(dir) = on_mount_as_root("An ACL has at most 511 entries.") else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    let users = |count: u32| (0..count).map(|uid| format!("u:{}:r", uid + 1000)).collect::<Vec<_>>().join(",");
    setfacl(&path, &["-m", &users(507)]);
    assert_eq!(entries(&path).len(), 511);
    let more = Command::new("setfacl").args(["-m", &users(508)]).arg(&path).output().unwrap();
    expect(&more, false);
    assert_eq!(entries(&path).len(), 511);
}

#[test]
fn permissions_changed_on_one_mount_decide_on_the_other() {
    let Some((dir, other)) = on_two_mounts(
        "A change of permissions on one mount, by `chmod` or of an ACL, decides on every other mount from the next call on \
         that asks for permission.",
    ) else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: needs root");
    }
    set_mode(dir.path(), 0o755);
    let here = dir.path().join("file");
    fs::write(&here, b"x").unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/file"), b"x").unwrap();
    let sub = dir.path().join("sub");
    let there = |script: &str, success| expect(&as_nobody(&other, &[], script), success);
    for _ in 0..5 {
        set_mode(&here, 0o644);
        there("cat file", true);
        set_mode(&here, 0o600);
        there("cat file", false);
        setfacl(&here, &["-m", "u:65534:r"]);
        there("cat file", true);
        setfacl(&here, &["-m", "u:65534:-"]);
        there("cat file", false);
        setfacl(&here, &["-b"]);

        set_mode(&sub, 0o700);
        there("cat sub/file", false);
        setfacl(&sub, &["-m", "u:65534:rx"]);
        there("cat sub/file && ls sub", true);
        setfacl(&sub, &["-x", "u:65534"]);
        there("cat sub/file", false);
        setfacl(&sub, &["-b"]);
    }
}

//! Directories that this mount has made and another looks at.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{names_in, noise, on_mount, on_two_mounts, set_mode};

const WHOLE: &str = "Before another client sees anything in a private directory, all of it is committed, bytes of closed \
    files included.";

/// A tree of `directories` with three files in each, one of them renamed, one removed and one changed after it was made.
fn make_tree(at: &Path, directories: usize) {
    for number in 0..directories {
        let dir = at.join(format!("d{number}"));
        fs::create_dir_all(dir.join("deep/er")).unwrap();
        fs::write(dir.join("kept"), noise(number as u64, 3000)).unwrap();
        fs::write(dir.join("old"), b"renamed").unwrap();
        fs::rename(dir.join("old"), dir.join("deep/new")).unwrap();
        fs::write(dir.join("gone"), b"removed").unwrap();
        fs::remove_file(dir.join("gone")).unwrap();
        set_mode(&dir.join("kept"), 0o640);
        std::os::unix::fs::symlink("../kept", dir.join("deep/link")).unwrap();
        fs::hard_link(dir.join("kept"), dir.join("deep/er/same")).unwrap();
    }
}

fn check_tree(at: &Path, directories: usize) {
    assert_eq!(names_in(at).len(), directories);
    for number in 0..directories {
        let dir = at.join(format!("d{number}"));
        assert_eq!(names_in(&dir), ["deep", "kept"], "{}", dir.display());
        assert_eq!(names_in(&dir.join("deep")), ["er", "link", "new"]);
        assert!(fs::read(dir.join("deep/link")).unwrap() == noise(number as u64, 3000));
        assert_eq!(fs::read(dir.join("deep/new")).unwrap(), b"renamed");
        let (kept, same) = (fs::metadata(dir.join("kept")).unwrap(), fs::metadata(dir.join("deep/er/same")).unwrap());
        assert_eq!((kept.ino(), kept.nlink(), kept.mode() & 0o777), (same.ino(), 2, 0o640));
    }
}

#[test]
fn the_first_look_of_another_mount_finds_everything() {
    let Some((first, second)) = on_two_mounts(WHOLE) else { return };
    let (top, there) = (first.path().join("top"), second.join("top"));
    fs::create_dir(&top).unwrap();
    make_tree(&top, 40);
    check_tree(&top, 40);
    check_tree(&there, 40);
    // From here on it is a directory like any other, changed from both.
    fs::remove_dir_all(there.join("d1")).unwrap();
    assert!(!top.join("d1").exists());
    fs::write(there.join("d2/kept"), b"there").unwrap();
    assert_eq!(fs::read(top.join("d2/kept")).unwrap(), b"there");
    fs::write(top.join("d3/kept"), b"here").unwrap();
    assert_eq!(fs::read(there.join("d3/kept")).unwrap(), b"here");
}

#[test]
fn another_mount_that_looks_all_the_time_sees_each_change_and_never_half_of_one() {
    let Some((first, second)) = on_two_mounts(WHOLE) else { return };
    for round in 0..20 {
        let (top, there) = (first.path().join(format!("t{round}")), second.join(format!("t{round}")));
        fs::create_dir(&top).unwrap();
        fs::create_dir(top.join("sub")).unwrap();
        fs::write(top.join("sub/new"), noise(round, 500)).unwrap();
        fs::rename(top.join("sub/new"), top.join("sub/file")).unwrap();
        assert_eq!(names_in(&there.join("sub")), ["file"]);
        assert!(fs::read(there.join("sub/file")).unwrap() == noise(round, 500));
        // By now the other mount has it, and this one asks.
        fs::rename(there.join("sub"), there.join("moved")).unwrap();
        assert_eq!(names_in(&top), ["moved"]);
        fs::write(top.join("moved/more"), b"more").unwrap();
        assert_eq!(names_in(&there.join("moved")), ["file", "more"]);
    }
}

#[test]
fn what_is_moved_in_and_out_goes_on_from_where_it_was() {
    let Some((first, second)) = on_two_mounts(WHOLE) else { return };
    let at = |name: &str| first.path().join(name);
    fs::write(at("shared"), b"shared").unwrap();
    assert_eq!(names_in(&second), ["shared"]);
    fs::create_dir(at("private")).unwrap();
    fs::write(at("private/file"), b"file").unwrap();
    fs::rename(at("shared"), at("private/was shared")).unwrap();
    fs::rename(at("private/file"), at("was private")).unwrap();
    fs::hard_link(at("was private"), at("private/again")).unwrap();
    fs::write(at("private/later"), b"later").unwrap();
    for top in [first.path(), &second] {
        assert_eq!(names_in(top), ["private", "was private"]);
        assert_eq!(names_in(&top.join("private")), ["again", "later", "was shared"]);
        assert_eq!(fs::read(top.join("private/was shared")).unwrap(), b"shared");
        assert_eq!(fs::read(top.join("private/again")).unwrap(), b"file");
        assert_eq!(fs::metadata(top.join("was private")).unwrap().nlink(), 2);
    }
}

#[test]
fn a_file_that_is_open_when_its_directory_is_seen_stays_open() {
    let Some((first, second)) = on_two_mounts(WHOLE) else { return };
    let dir = first.path().join("dir");
    fs::create_dir(&dir).unwrap();
    let mut open = File::create(dir.join("open")).unwrap();
    open.write_all(b"before").unwrap();
    fs::remove_file(second.join("dir/open")).unwrap();
    open.write_all(b" and after").unwrap();
    open.sync_all().unwrap();
    assert_eq!((open.metadata().unwrap().len(), open.metadata().unwrap().nlink()), (16, 0));
    assert!(names_in(&dir).is_empty());
}

#[test]
fn a_time_that_is_set_stays_though_the_bytes_are_stored_later() {
    let Some(dir) =
        on_mount("`fsync` of any file or directory stores all names and attributes that were changed before")
    else {
        return;
    };
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for number in 0..50 {
        let path = dir.path().join(format!("f{number}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&noise(number, 2000)).unwrap();
        file.set_modified(then).unwrap();
        drop(file);
        if number % 10 == 0 {
            File::open(&path).unwrap().sync_all().unwrap();
        }
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), then);
    }
    File::open(dir.path()).unwrap().sync_all().unwrap();
    for number in 0..50 {
        let path = dir.path().join(format!("f{number}"));
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), then, "f{number}");
        assert!(fs::read(&path).unwrap() == noise(number, 2000));
    }
}

#[test]
fn a_mode_that_is_set_stays_though_bytes_are_appended_before_the_namenode_hears_of_it() {
    let Some(dir) =
        on_mount("`fsync` of any file or directory stores all names and attributes that were changed before")
    else {
        return;
    };
    for number in 0..20 {
        let path = dir.path().join(format!("f{number}"));
        // The namenode knows the file, and that it is open.
        let made = File::create(&path).unwrap();
        made.sync_all().unwrap();
        for mode in [0o600, 0o641, 0o755] {
            set_mode(&path, mode);
            let mut end = OpenOptions::new().append(true).open(&path).unwrap();
            end.write_all(&noise(number, 100)).unwrap();
            drop(end);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "f{number}");
        }
        drop(made);
        assert_eq!(fs::metadata(&path).unwrap().len(), 300);
    }
}

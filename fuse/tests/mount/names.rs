//! Names, links and renames, on one mount.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};
use rustix::io::Errno;

use crate::{expect_errno, has_name, names_in, on_mount};

const RENAME: &str = "A rename replaces its target in one step: at every moment the new name leads to the old or to \
    the new file. `RENAME_NOREPLACE` and `RENAME_EXCHANGE` work; `RENAME_WHITEOUT` is refused with `EINVAL`.";
const NAMES: &str = "Names are 1 to 255 bytes of anything but `/` and NUL; longer ones fail with `ENAMETOOLONG`.";
const COMMITTED: &str = "A namespace operation (create, mkdir, link, unlink, rename, chmod, truncate and so on) that \
    has returned is committed";

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, flags)?)
}

#[test]
fn a_rename_replaces_files_and_empty_directories_only() {
    let Some(dir) = on_mount(RENAME) else { return };
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a"), b"a").unwrap();
    fs::write(at("b"), b"b").unwrap();
    fs::rename(at("a"), at("b")).unwrap();
    assert_eq!(fs::read(at("b")).unwrap(), b"a");
    assert!(!at("a").exists());

    for name in ["d1", "d2", "full"] {
        fs::create_dir(at(name)).unwrap();
    }
    fs::write(at("full/x"), b"").unwrap();
    expect_errno(fs::rename(at("d1"), at("full")), Errno::NOTEMPTY);
    fs::rename(at("d1"), at("d2")).unwrap();
    expect_errno(fs::rename(at("d2"), at("b")), Errno::NOTDIR);
    expect_errno(fs::rename(at("b"), at("d2")), Errno::ISDIR);
    expect_errno(fs::rename(at("missing"), at("b")), Errno::NOENT);
    fs::rename(at("full"), at("d2")).unwrap();
    assert_eq!(names_in(dir.path()), ["b", "d2"]);
    assert!(at("d2/x").exists());
}

#[test]
fn a_directory_does_not_move_below_itself() {
    let Some(dir) = on_mount(RENAME) else { return };
    fs::create_dir_all(dir.path().join("a/b/c")).unwrap();
    expect_errno(fs::rename(dir.path().join("a"), dir.path().join("a/b/c/a")), Errno::INVAL);
}

#[test]
fn noreplace_and_exchange_do_what_they_say() {
    let Some(dir) = on_mount(RENAME) else { return };
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a"), b"a").unwrap();
    fs::create_dir_all(at("d/inside")).unwrap();
    expect_errno(rename(&at("a"), &at("d"), RenameFlags::NOREPLACE), Errno::EXIST);
    rename(&at("a"), &at("c"), RenameFlags::NOREPLACE).unwrap();

    rename(&at("c"), &at("d"), RenameFlags::EXCHANGE).unwrap();
    assert_eq!(fs::read(at("d")).unwrap(), b"a");
    assert!(at("c/inside").is_dir());
    expect_errno(rename(&at("c"), &at("none"), RenameFlags::EXCHANGE), Errno::NOENT);
    expect_errno(rename(&at("c"), &at("w"), RenameFlags::WHITEOUT), Errno::INVAL);
}

#[test]
fn the_target_of_a_rename_never_disappears() {
    let Some(dir) = on_mount(RENAME) else { return };
    let target = dir.path().join("target");
    fs::write(&target, b"0").unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 1..=100 {
                let new = dir.path().join("new");
                fs::write(&new, number.to_string()).unwrap();
                fs::rename(&new, &target).unwrap();
            }
        });
        while !writer.is_finished() {
            let text = fs::read_to_string(&target).unwrap();
            assert!(text.parse::<u32>().is_ok(), "{text:?}");
        }
    });
    assert_eq!(fs::read(&target).unwrap(), b"100");
}

#[test]
fn hard_links_are_one_file() {
    let Some(dir) = on_mount(COMMITTED) else { return };
    let at = |name: &str| dir.path().join(name);
    fs::write(at("a"), b"first").unwrap();
    fs::hard_link(at("a"), at("b")).unwrap();
    expect_errno(fs::hard_link(at("a"), at("b")), Errno::EXIST);
    expect_errno(fs::hard_link(dir.path(), at("d")), Errno::PERM);
    let (a, b) = (fs::metadata(at("a")).unwrap(), fs::metadata(at("b")).unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));

    fs::write(at("b"), b"second").unwrap();
    assert_eq!(fs::read(at("a")).unwrap(), b"second");
    fs::remove_file(at("a")).unwrap();
    assert_eq!(fs::metadata(at("b")).unwrap().nlink(), 1);
    assert_eq!(fs::read(at("b")).unwrap(), b"second");
}

#[test]
fn a_symlink_keeps_its_target_to_the_byte() {
    let Some(dir) = on_mount("A symlink's target is at most 4095 bytes.") else { return };
    let link = dir.path().join("link");
    for target in ["file", "/absolute/../\u{e4}", &"x/".repeat(2047)] {
        symlink(target, &link).unwrap();
        assert_eq!(fs::read_link(&link).unwrap().as_os_str(), target);
        assert_eq!(fs::symlink_metadata(&link).unwrap().len(), target.len() as u64);
        fs::remove_file(&link).unwrap();
    }
    expect_errno(symlink("x".repeat(4096), &link), Errno::NAMETOOLONG);

    fs::write(dir.path().join("file"), b"through").unwrap();
    symlink("file", &link).unwrap();
    assert_eq!(fs::read(&link).unwrap(), b"through");
    symlink("loop", dir.path().join("loop")).unwrap();
    expect_errno(fs::read(dir.path().join("loop")), Errno::LOOP);
}

#[test]
fn names_are_bytes_up_to_255_of_them() {
    let Some(dir) = on_mount(NAMES) else { return };
    let longest = "n".repeat(255);
    fs::write(dir.path().join(&longest), b"x").unwrap();
    assert!(has_name(dir.path(), &longest));
    let too_long = dir.path().join("n".repeat(256));
    expect_errno(fs::write(&too_long, b"x"), Errno::NAMETOOLONG);
    expect_errno(fs::create_dir(&too_long), Errno::NAMETOOLONG);
    expect_errno(fs::metadata(&too_long), Errno::NAMETOOLONG);
    expect_errno(fs::rename(dir.path().join(&longest), &too_long), Errno::NAMETOOLONG);

    for name in [&b"\xff\xfe not UTF-8"[..], b"with\nnewline", b" ", b"\x01"] {
        let name = OsStr::from_bytes(name);
        File::create(dir.path().join(name)).unwrap();
        assert!(has_name(dir.path(), name));
    }
}

#[test]
fn names_that_differ_in_any_byte_are_different() {
    let Some(dir) = on_mount("Names that differ in any byte are different.") else { return };
    for name in ["a", "A", "\u{e9}", "e\u{301}"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    assert_eq!(names_in(dir.path()).len(), 4);
    assert_eq!(fs::read(dir.path().join("A")).unwrap(), b"A");
}

#[test]
fn exclusive_creation_finds_what_is_there() {
    let Some(dir) = on_mount("`O_CREAT | O_EXCL` succeeds for exactly one of all callers on all mounts.") else {
        return;
    };
    let path = dir.path().join("lock");
    File::create_new(&path).unwrap();
    expect_errno(File::create_new(&path), Errno::EXIST);
    symlink("nowhere", dir.path().join("dangling")).unwrap();
    expect_errno(File::create_new(dir.path().join("dangling")), Errno::EXIST);
}

#[test]
fn directories_are_made_and_removed_with_the_right_errors() {
    let Some(dir) = on_mount(COMMITTED) else { return };
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("d")).unwrap();
    assert_eq!(fs::metadata(dir.path()).unwrap().nlink(), 3);
    expect_errno(fs::create_dir(at("d")), Errno::EXIST);
    expect_errno(fs::create_dir(at("none/d")), Errno::NOENT);
    fs::write(at("d/f"), b"").unwrap();
    expect_errno(fs::remove_dir(at("d")), Errno::NOTEMPTY);
    expect_errno(fs::remove_dir(at("d/f")), Errno::NOTDIR);
    expect_errno(fs::remove_file(at("d")), Errno::ISDIR);
    expect_errno(fs::read(at("d/f/x")), Errno::NOTDIR);
    fs::remove_file(at("d/f")).unwrap();
    fs::remove_dir(at("d")).unwrap();
    expect_errno(fs::remove_dir(at("d")), Errno::NOENT);
    assert_eq!(fs::metadata(dir.path()).unwrap().nlink(), 2);
}

#[test]
fn fifos_and_sockets_are_kept_as_what_they_are() {
    let Some(dir) = on_mount(COMMITTED) else { return };
    let at = |name: &str| dir.path().join(name);
    mknodat(CWD, at("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    mknodat(CWD, at("socket"), FileType::Socket, Mode::from(0o600), 0).unwrap();
    mknodat(CWD, at("file"), FileType::RegularFile, Mode::from(0o640), 0).unwrap();
    assert!(fs::metadata(at("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(at("socket")).unwrap().file_type().is_socket());
    assert_eq!(fs::metadata(at("file")).unwrap().mode(), 0o100640);
}

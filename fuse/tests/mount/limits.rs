//! Times, space, and what is not supported, on one mount.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, SeekFrom, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fallocate, seek, statvfs,
    utimensat,
};
use rustix::io::Errno;

use crate::on_mount;

#[test]
fn times_have_nanoseconds_also_before_1970() {
    let Some(dir) = on_mount("Times have nanoseconds.") else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    for (sec, nsec) in [(1_700_000_000, 123_456_789), (0, 1), (-2, 800_000_000), (-86_400, 0), (20_000_000_000, 5)] {
        let time = Timespec { tv_sec: sec, tv_nsec: nsec };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &path, &times, AtFlags::empty()).unwrap();
        let stat = fs::metadata(&path).unwrap();
        assert_eq!((stat.atime(), stat.atime_nsec()), (sec, nsec));
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (sec, nsec));
    }
}

#[test]
fn one_time_is_set_without_the_other() {
    let Some(dir) = on_mount("`atime` is set by `utimensat` and at creation, not by reading.") else { return };
    let path = dir.path().join("file");
    fs::write(&path, b"x").unwrap();
    let special = |nsec| Timespec { tv_sec: 0, tv_nsec: nsec };
    let old = Timestamps { last_access: Timespec { tv_sec: 5, tv_nsec: 6 }, last_modification: special(UTIME_OMIT) };
    let before = fs::metadata(&path).unwrap();
    utimensat(CWD, &path, &old, AtFlags::empty()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.atime(), after.atime_nsec()), (5, 6));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));

    fs::read(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().atime(), 5);
    let now = Timestamps { last_access: special(UTIME_OMIT), last_modification: special(UTIME_NOW) };
    utimensat(CWD, &path, &now, AtFlags::empty()).unwrap();
    let last = fs::metadata(&path).unwrap();
    assert_eq!(last.atime(), 5);
    assert!(last.mtime() >= before.mtime());
}

#[test]
fn statfs_shows_a_sane_size() {
    let Some(dir) = on_mount("`statfs` shows the live datanodes' disk space divided by the default replication") else {
        return;
    };
    let stat = statvfs(dir.path()).unwrap();
    assert!(stat.f_blocks > 0 && stat.f_bfree <= stat.f_blocks && stat.f_bavail <= stat.f_bfree);
    assert_eq!(stat.f_namemax, 255);
    assert!(stat.f_files > 0 && stat.f_ffree > 0);
}

#[test]
fn preallocation_extends_and_nothing_else() {
    let Some(dir) = on_mount(
        "`posix_fallocate` extends the size and reserves no space; punching holes, collapsing and zeroing ranges fail \
         with `EOPNOTSUPP`.",
    ) else {
        return;
    };
    let path = dir.path().join("file");
    fs::write(&path, b"12345").unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    fallocate(&file, FallocateFlags::empty(), 3, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_003);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for mode in [punch, FallocateFlags::ZERO_RANGE] {
        assert_eq!(fallocate(&file, mode, 0, 3), Err(Errno::OPNOTSUPP));
    }
    drop(file);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[..5] == *b"12345" && bytes[5..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_file_has_no_holes_for_seek() {
    let Some(dir) = on_mount("`SEEK_HOLE` and `SEEK_DATA` treat a file as without holes.") else { return };
    let path = dir.path().join("file");
    let file = File::create(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    assert_eq!(seek(&file, SeekFrom::Hole(10)), Ok(1 << 20));
    assert_eq!(seek(&file, SeekFrom::Data(10)), Ok(10));
}

#[test]
fn a_copy_has_the_same_bytes() {
    let Some(dir) = on_mount("`copy_file_range` copies through the client.") else { return };
    let bytes = crate::noise(9, 3_000_001);
    fs::write(dir.path().join("from"), &bytes).unwrap();
    fs::copy(dir.path().join("from"), dir.path().join("to")).unwrap();
    assert!(fs::read(dir.path().join("to")).unwrap() == bytes);
}

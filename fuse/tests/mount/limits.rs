//! Times, space, and what is not supported, on one mount.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, statvfs, utimensat};

use crate::{on_mount, on_two_mounts};

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
    let Some(dir) = on_mount("Times have nanoseconds.") else { return };
    let path = dir.path().join("file");
    fs::write(&path, b"x").unwrap();
    let special = |nsec| Timespec { tv_sec: 0, tv_nsec: nsec };
    let old = Timestamps { last_access: Timespec { tv_sec: 5, tv_nsec: 6 }, last_modification: special(UTIME_OMIT) };
    let before = fs::metadata(&path).unwrap();
    utimensat(CWD, &path, &old, AtFlags::empty()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.atime(), after.atime_nsec()), (5, 6));
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));

    let now = Timestamps { last_access: special(UTIME_OMIT), last_modification: special(UTIME_NOW) };
    utimensat(CWD, &path, &now, AtFlags::empty()).unwrap();
    let last = fs::metadata(&path).unwrap();
    assert_eq!(last.atime(), 5);
    assert!(last.mtime() >= before.mtime());
}

/// The other mount reads, so that no page of the writer answers it.
#[test]
fn reading_sets_an_old_atime() {
    let Some((dir, other)) = on_two_mounts(
        "Reading a file sets its `atime` by the rule of `relatime`: when it is not later than mtime and ctime, or a \
         day old.",
    ) else {
        return;
    };
    let (here, there) = (dir.path().join("file"), other.join("file"));
    fs::write(&here, b"text").unwrap();
    let old = Timestamps {
        last_access: Timespec { tv_sec: 5, tv_nsec: 6 },
        last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
    };
    utimensat(CWD, &here, &old, AtFlags::empty()).unwrap();
    let quiet = OpenOptions::new().read(true).custom_flags(OFlags::NOATIME.bits() as i32).open(&there).unwrap();
    quiet.read_at(&mut [0; 4], 0).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().atime(), 5);
    drop(quiet);
    fs::write(&here, b"other text").unwrap();
    utimensat(CWD, &here, &old, AtFlags::empty()).unwrap();
    assert_eq!(fs::read(&there).unwrap(), b"other text");
    let seen = fs::metadata(&there).unwrap();
    assert!(seen.accessed().unwrap() > seen.modified().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::metadata(&here).unwrap().accessed().unwrap() != seen.accessed().unwrap() {
        assert!(Instant::now() < deadline, "the first mount never sees it");
        std::thread::yield_now();
    }
    fs::read(&there).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().atime(), seen.atime(), "once a day is enough");
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

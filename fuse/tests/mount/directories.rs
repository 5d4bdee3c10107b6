//! Directory listings, on one mount.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::Dir;

use crate::on_mount;

const LISTING: &str = "A directory listing returns every entry that was there for the whole of it exactly once; \
    entries that come or go meanwhile may or may not appear.";

/// Makes `count` empty files on several threads: each waits for the cluster.
fn fill(dir: &Path, count: usize) {
    const THREADS: usize = 8;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for number in (thread..count).step_by(THREADS) {
                    File::create_new(dir.join(format!("stays-{number}"))).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_listing_is_complete_and_without_doubles_while_others_change_the_directory() {
    const COUNT: usize = 3000;
    let Some(dir) = on_mount(LISTING) else { return };
    fill(dir.path(), COUNT);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if done.load(Ordering::Relaxed) {
                    return;
                }
                let path = dir.path().join(format!("passing-{number}"));
                File::create_new(&path).unwrap();
                if number % 2 == 0 {
                    fs::remove_file(&path).unwrap();
                }
            }
        });
        for _ in 0..5 {
            let mut seen = BTreeMap::new();
            for entry in fs::read_dir(dir.path()).unwrap() {
                *seen.entry(entry.unwrap().file_name()).or_insert(0) += 1;
            }
            assert!(seen.values().all(|&times| times == 1), "an entry came twice");
            let stayed = seen.keys().filter(|name| name.to_string_lossy().starts_with("stays-")).count();
            assert_eq!(stayed, COUNT);
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn positions_stay_valid_while_entries_come_and_go() {
    let Some(dir) = on_mount("`telldir` and `seekdir` work: positions stay valid while other entries come and go.")
    else {
        return;
    };
    fill(dir.path(), 300);
    let mut listing = Dir::read_from(File::open(dir.path()).unwrap()).unwrap();
    let first: Vec<_> = listing.by_ref().take(100).map(|entry| entry.unwrap()).collect();
    let position = first.last().unwrap().offset();
    let rest: Vec<_> = listing.by_ref().map(|entry| entry.unwrap().file_name().to_owned()).collect();
    assert_eq!(first.len() + rest.len(), 302);

    let gone = first[50].file_name().to_owned();
    if gone.to_bytes().starts_with(b"stays-") {
        fs::remove_file(dir.path().join(gone.to_str().unwrap())).unwrap();
    }
    listing.seek(position).unwrap();
    let again: Vec<_> = listing.map(|entry| entry.unwrap().file_name().to_owned()).collect();
    assert_eq!(again, rest);
}

#[test]
fn a_listing_shows_inode_numbers_and_types_as_stat_does() {
    let Some(dir) = on_mount(LISTING) else { return };
    fs::create_dir(dir.path().join("directory")).unwrap();
    fs::write(dir.path().join("file"), b"12345").unwrap();
    std::os::unix::fs::symlink("file", dir.path().join("link")).unwrap();

    for entry in Dir::read_from(File::open(dir.path()).unwrap()).unwrap() {
        let entry = entry.unwrap();
        let path = dir.path().join(entry.file_name().to_str().unwrap());
        if entry.file_name() == c".." {
            continue;
        }
        let stat = fs::symlink_metadata(&path).unwrap();
        assert_eq!(entry.ino(), stat.ino(), "{path:?}");
        let kind = entry.file_type();
        assert_eq!((kind.is_dir(), kind.is_symlink()), (stat.is_dir(), stat.is_symlink()), "{path:?}");
    }
}

#[test]
fn listing_a_file_that_is_being_written_does_not_cut_it() {
    let Some(dir) = on_mount(LISTING) else { return };
    use std::io::Write;
    let path = dir.path().join("growing");
    let mut file = File::create(&path).unwrap();
    for step in 1..=50u64 {
        file.write_all(&[7; 1000]).unwrap();
        let sizes = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
        assert_eq!(sizes.collect::<Vec<_>>(), [step * 1000]);
    }
}

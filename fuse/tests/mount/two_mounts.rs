//! What one mount sees of what another does.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;

use crate::{expect_errno, names_in, noise, on_two_mounts, set_mode};

const NEXT_LOOKUP: &str = "A namespace operation that has returned is seen by every other mount at its next look-up.";
const CLOSE_TO_OPEN: &str = "Files are close-to-open consistent between mounts: a file opened after another mount has \
    closed it shows that mount's bytes.";

#[test]
fn namespace_changes_show_at_the_next_look_up() {
    let Some((dir, other)) = on_two_mounts(NEXT_LOOKUP) else { return };
    let (here, there) = (|name: &str| dir.path().join(name), |name: &str| other.join(name));
    assert!(!there("a").exists());
    fs::create_dir(here("a")).unwrap();
    assert!(there("a").is_dir());
    fs::write(there("a/f"), b"1").unwrap();
    assert_eq!(names_in(&here("a")), ["f"]);
    fs::rename(here("a/f"), here("g")).unwrap();
    assert!(!there("a/f").exists());
    assert!(there("g").exists());
    set_mode(&here("g"), 0o4321);
    assert_eq!(fs::metadata(there("g")).unwrap().mode() & 0o7777, 0o4321);
    fs::hard_link(there("g"), there("h")).unwrap();
    assert_eq!(fs::metadata(here("g")).unwrap().nlink(), 2);
    fs::remove_file(here("g")).unwrap();
    expect_errno(File::open(there("g")), Errno::NOENT);
    fs::remove_dir(there("a")).unwrap();
    expect_errno(fs::read_dir(here("a")), Errno::NOENT);
}

#[test]
fn attributes_through_open_descriptors_are_the_latest() {
    let quote = "So `fstat` through a descriptor that is open already shows the change as well.";
    let Some((dir, other)) = on_two_mounts(quote) else { return };
    let (here, there) = (|name: &str| dir.path().join(name), |name: &str| other.join(name));
    let mode = |file: &File| file.metadata().unwrap().mode() & 0o777;
    fs::write(here("file"), b"bytes").unwrap();
    fs::create_dir(here("folder")).unwrap();
    let (file, folder) = (File::open(there("file")).unwrap(), File::open(there("folder")).unwrap());
    for round in 1..=40 {
        // By name and by descriptor: the kernel has them all.
        assert_eq!(fs::metadata(there("file")).unwrap().mode() & 0o777, mode(&file));
        let before = folder.metadata().unwrap().mtime_nsec();
        set_mode(&here("file"), 0o400 | round);
        assert_eq!(mode(&file), 0o400 | round);
        fs::write(here(&format!("folder/{round}")), b"").unwrap();
        assert_ne!(folder.metadata().unwrap().mtime_nsec(), before, "round {round}");
    }

    // What one mount is changing another sees already, and then so does this one.
    set_mode(&here("file"), 0);
    let (ours, theirs) = (File::open(here("file")).unwrap(), file);
    std::thread::scope(|scope| {
        let changes = scope.spawn(|| (1..=0o777).for_each(|mode| set_mode(&here("file"), mode)));
        while !changes.is_finished() {
            let seen = mode(&theirs);
            let here = mode(&ours);
            assert!(here >= seen, "{seen:o} there, and then {here:o} here");
        }
    });
    assert_eq!((mode(&ours), mode(&theirs)), (0o777, 0o777));
}

/// A mount lends names of such directories to its kernel, and none for five seconds after one of them has changed.
#[test]
fn directories_that_are_looked_up_all_the_time_are_the_latest() {
    let rest = || std::thread::sleep(Duration::from_millis(5200));
    let Some((dir, other)) = on_two_mounts(NEXT_LOOKUP) else { return };
    let (here, there) = (|name: &str| dir.path().join(name), |name: &str| other.join(name));
    for round in 0..6 {
        let (old, new) = (format!("{round}/way"), format!("{round}/new"));
        fs::create_dir_all(here(&old).join("down")).unwrap();
        fs::write(here(&old).join("down/file"), b"").unwrap();
        let is_at = |way: PathBuf| way.join("down/file").exists();
        // Also while it may still rest.
        if round > 1 {
            rest();
        }
        assert!((0..50).all(|_| is_at(there(&old))));
        match round % 3 {
            0 => fs::rename(here(&old), here(&new)).unwrap(),
            1 => fs::rename(there(&old), there(&new)).unwrap(),
            _ => fs::rename(here(&old).join("down"), here(&new)).unwrap(),
        }
        assert!(!there(&old).join("down").exists());
        match round % 3 {
            2 => assert!(there(&new).join("file").exists() && there(&old).exists()),
            _ => assert!(!there(&old).exists() && is_at(there(&new)) && !is_at(here(&old)) && is_at(here(&new))),
        }
    }

    // What one mount is changing another sees already, and then so does this one.
    for round in 0..20 {
        let (old, new) = (format!("{round}/a"), format!("{round}/b"));
        fs::create_dir_all(here(&old)).unwrap();
        if round % 10 == 0 {
            rest();
        }
        assert!(!there(&new).exists() && (0..50).all(|_| here(&old).exists()));
        std::thread::scope(|scope| {
            let rename = scope.spawn(|| fs::rename(here(&old), here(&new)).unwrap());
            while !rename.is_finished() {
                let seen = there(&new).exists();
                assert!(!(seen && here(&old).exists()), "renamed there, and then not here");
            }
        });
        assert!(here(&new).exists() && !here(&old).exists());
    }
}

/// A mount lends them to its kernel while a program looks at all that it lists, and none for five seconds after one of them
/// was moved. Not removed: of a file without a name the kernel is told in any case.
#[test]
fn names_that_were_just_listed_are_the_latest() {
    let rest = || std::thread::sleep(Duration::from_millis(5200));
    let Some((dir, other)) = on_two_mounts(NEXT_LOOKUP) else { return };
    let (here, there) =
        (|name: u32| dir.path().join(format!("list/{name}")), |name: u32| other.join(format!("list/{name}")));
    let (away, away_there) = (|name: u32| dir.path().join(name.to_string()), |name: u32| other.join(name.to_string()));
    fs::create_dir(dir.path().join("list")).unwrap();
    (0..40).for_each(|name| fs::write(here(name), b"").unwrap());
    let look = |directory: &Path, names: u32| {
        for _ in 0..3 {
            let sizes =
                fs::read_dir(directory.join("list")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len());
            assert_eq!(sizes.collect::<Vec<_>>(), vec![0; names as usize]);
        }
    };
    for name in 0..4 {
        rest();
        look(&other, 40 - name);
        match name % 2 {
            0 => fs::rename(here(name), away(name)).unwrap(),
            _ => fs::rename(there(name), away_there(name)).unwrap(),
        }
        assert!(!there(name).exists() && !here(name).exists());
        look(&other, 39 - name);
    }

    // What one mount is changing another sees already, and then so does this one.
    for name in 4..24 {
        if name % 10 == 4 {
            rest();
        }
        look(dir.path(), 40 - name);
        std::thread::scope(|scope| {
            let moved = scope.spawn(|| fs::rename(here(name), away(name)).unwrap());
            while !moved.is_finished() {
                let gone = !there(name).exists();
                assert!(!(gone && here(name).exists()), "moved there, and then not here");
            }
        });
        assert!(!here(name).exists() && away(name).exists());
    }
}

#[test]
fn closed_bytes_show_at_the_next_open() {
    let Some((dir, other)) = on_two_mounts(CLOSE_TO_OPEN) else { return };
    let (here, there) = (dir.path().join("file"), other.join("file"));
    for round in 0..10u64 {
        let (writer, reader) = if round % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let bytes = noise(round, 300_000 + 1000 * round as usize);
        fs::write(writer, &bytes).unwrap();
        assert_eq!(fs::metadata(reader).unwrap().len(), bytes.len() as u64);
        assert!(fs::read(reader).unwrap() == bytes, "round {round}");
    }
}

/// Same size, so that only the version tells that the pages are old.
#[test]
fn files_that_are_opened_one_after_the_other_are_the_latest() {
    let Some((dir, other)) = on_two_mounts(CLOSE_TO_OPEN) else { return };
    let (here, there) = (|name: u32| dir.path().join(name.to_string()), |name: u32| other.join(name.to_string()));
    // Not beyond the end: the kernel would ask for the attributes first, which bring the latest whatever an open brought.
    let read = |name: u32, len: usize| {
        let mut bytes = vec![0; len];
        File::open(there(name)).and_then(|file| file.read_exact_at(&mut bytes, 0)).map(|()| bytes)
    };
    (0..60).for_each(|name| fs::write(here(name), [name as u8]).unwrap());
    (0..60).for_each(|name| assert_eq!(fs::metadata(there(name)).unwrap().len(), 1));
    // What comes next has been opened with what came before, and is changed just then.
    for name in 0..30 {
        if name % 2 == 1 {
            fs::write(here(name), b"new").unwrap();
            assert_eq!(read(name, 3).unwrap(), b"new");
        } else {
            assert_eq!(read(name, 1).unwrap(), [name as u8]);
        }
    }
    for name in 30..60 {
        fs::remove_file(here(name)).unwrap();
        expect_errno(read(name, 1), Errno::NOENT);
    }
}

#[test]
fn an_overwrite_elsewhere_drops_cached_pages() {
    let Some((dir, other)) = on_two_mounts(
        "Pages that the kernel has cached are used again at the next `open` only if the file's version is the one they \
         were read at",
    ) else {
        return;
    };
    let (here, there) = (dir.path().join("file"), other.join("file"));
    fs::write(&here, noise(0, 100_000)).unwrap();
    for round in 1..5 {
        let before = fs::read(&there).unwrap();
        assert!(fs::read(&there).unwrap() == before);
        let file = OpenOptions::new().write(true).open(&here).unwrap();
        file.write_all_at(&noise(round, 50_000), 20_000).unwrap();
        drop(file);
        assert!(fs::read(&there).unwrap()[20_000..70_000] == noise(round, 50_000), "round {round}");
    }
}

#[test]
fn a_handle_that_stays_open_does_not_bring_old_pages_back() {
    let Some((dir, other)) = on_two_mounts(CLOSE_TO_OPEN) else { return };
    let (here, there) = (dir.path().join("file"), other.join("file"));
    fs::write(&here, noise(1, 500_000)).unwrap();
    let old = File::open(&there).unwrap();
    let mut bytes = vec![0; 100_000];
    old.read_exact_at(&mut bytes, 0).unwrap();

    fs::write(&here, noise(2, 500_000)).unwrap();
    assert!(fs::read(&there).unwrap() == noise(2, 500_000));
    // Whatever the old handle shows must not be what a new one gets to see.
    let _ = old.read_at(&mut bytes, 200_000).unwrap();
    fs::write(&here, noise(3, 500_000)).unwrap();
    let _ = old.read_at(&mut bytes, 300_000).unwrap();
    assert!(fs::read(&there).unwrap() == noise(3, 500_000));
}

#[test]
fn synced_bytes_show_elsewhere_before_close() {
    let Some((dir, other)) = on_two_mounts("When `fsync` or `fdatasync` has returned") else { return };
    let mut file = File::create(dir.path().join("file")).unwrap();
    file.write_all(b"synced").unwrap();
    file.sync_all().unwrap();
    assert_eq!(fs::read(other.join("file")).unwrap(), b"synced");
}

#[test]
fn appends_from_two_mounts_do_not_overwrite_one_another() {
    let Some((dir, other)) = on_two_mounts("two mounts that append never overwrite one another") else { return };
    const RECORDS: usize = 200;
    let append = |dir: &Path, tag: char| {
        let mut log = OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
        for number in 0..RECORDS {
            let record = format!("{tag}{number:062}\n");
            assert_eq!(log.write(record.as_bytes()).unwrap(), 64);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| append(dir.path(), 'a'));
        scope.spawn(|| append(&other, 'b'));
    });

    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert_eq!(log.len(), 2 * RECORDS * 64);
    for tag in ['a', 'b'] {
        let numbers: Vec<usize> =
            log.lines().filter_map(|line| line.strip_prefix(tag)).map(|line| line.parse().unwrap()).collect();
        assert!(numbers.iter().copied().eq(0..RECORDS), "records of {tag} are whole and in order");
    }
    assert_eq!(fs::read_to_string(other.join("log")).unwrap(), log);
}

#[test]
fn exclusive_creation_has_one_winner() {
    let Some((dir, other)) = on_two_mounts("`O_CREAT | O_EXCL` succeeds for exactly one of all callers on all mounts.")
    else {
        return;
    };
    for round in 0..20 {
        let name = format!("lock{round}");
        let attempt = |dir: &Path| match File::create_new(dir.join(&name)) {
            Ok(_) => 1,
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
                0
            }
        };
        let winners: usize = std::thread::scope(|scope| {
            let tries: Vec<_> =
                [dir.path(), &other, dir.path(), &other].map(|dir| scope.spawn(move || attempt(dir))).into();
            tries.into_iter().map(|attempt| attempt.join().unwrap()).sum()
        });
        assert_eq!(winners, 1);
    }
}

const OPEN_ANYWHERE: &str = "A file that is unlinked or replaced while it is open stays readable and writable through \
    its descriptors until the last one is closed. That holds for descriptors on any mount, whichever removed the name";

#[test]
fn a_deleted_file_is_gone_for_new_opens_only() {
    let Some((dir, other)) = on_two_mounts(OPEN_ANYWHERE) else { return };
    for (opens, removes) in [(dir.path(), &*other), (&*other, dir.path()), (dir.path(), dir.path())] {
        fs::write(opens.join("file"), noise(1, 300_000)).unwrap();
        let open = OpenOptions::new().read(true).write(true).open(opens.join("file")).unwrap();
        fs::remove_file(removes.join("file")).unwrap();
        expect_errno(File::open(dir.path().join("file")), Errno::NOENT);
        expect_errno(File::open(other.join("file")), Errno::NOENT);
        still_works(&open);
    }
}

#[test]
fn a_replaced_file_stays_for_those_who_have_it_open() {
    let Some((dir, other)) = on_two_mounts(OPEN_ANYWHERE) else { return };
    fs::write(other.join("file"), noise(1, 300_000)).unwrap();
    let options = || OpenOptions::new().read(true).write(true).to_owned();
    let (here, there) = (options().open(dir.path().join("file")).unwrap(), options().open(other.join("file")).unwrap());
    fs::write(dir.path().join("new"), b"new").unwrap();
    fs::rename(dir.path().join("new"), dir.path().join("file")).unwrap();
    assert_eq!(fs::read(other.join("file")).unwrap(), b"new");
    still_works(&there);
    drop(there);
    // The other one holds it still.
    let mut bytes = vec![0; 300_000];
    here.read_exact_at(&mut bytes, 0).unwrap();
    here.write_all_at(b"written", 0).unwrap();
    here.sync_all().unwrap();
}

/// Opened and closed again and again while it is removed and made anew elsewhere.
#[test]
fn an_open_that_meets_a_removal_has_the_file_or_none() {
    let Some((dir, other)) = on_two_mounts(OPEN_ANYWHERE) else { return };
    let end = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let opener = scope.spawn(|| {
            let mut met = 0;
            while !end.load(ordering) {
                let Ok(file) = File::open(other.join("file")) else { continue };
                let mut byte = [0];
                // Made and not written yet, or written; never stale.
                file.read_at(&mut byte, 0).unwrap();
                met += 1;
            }
            met
        });
        for _ in 0..100 {
            fs::write(dir.path().join("file"), b"x").unwrap();
            fs::remove_file(dir.path().join("file")).unwrap();
        }
        end.store(true, ordering);
        println!("{} opens", opener.join().unwrap());
    });
}

#[test]
fn a_symlink_that_is_replaced_again_and_again_elsewhere_always_leads_somewhere() {
    let Some((dir, other)) = on_two_mounts(
        "A symlink that another mount replaces leads to the old or to the new target at every moment, however often it is \
         replaced.",
    ) else {
        return;
    };
    const ROUNDS: u64 = 100;
    let replace = |round: u64| {
        std::os::unix::fs::symlink(format!("target{round}"), dir.path().join("new")).unwrap();
        fs::rename(dir.path().join("new"), dir.path().join("link")).unwrap();
    };
    replace(0);
    let end = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let readers = [(); 3].map(|()| {
            scope.spawn(|| {
                let (mut last, mut reads) = (0, 0u64);
                while !end.load(ordering) {
                    let target = fs::read_link(other.join("link")).unwrap();
                    let target: u64 = target.to_str().unwrap().strip_prefix("target").unwrap().parse().unwrap();
                    assert!(target >= last, "{target} after {last}");
                    last = target;
                    reads += 1;
                }
                reads
            })
        });
        (1..ROUNDS).for_each(replace);
        end.store(true, ordering);
        let reads: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        println!("{reads} reads of {ROUNDS} targets");
    });
}

/// Bytes that were there before, and bytes that are new.
fn still_works(file: &File) {
    let mut bytes = vec![0; 300_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == noise(1, 300_000));
    file.write_all_at(&noise(2, 100_000), 250_000).unwrap();
    file.sync_all().unwrap();
    file.read_exact_at(&mut bytes[..100_000], 250_000).unwrap();
    assert!(bytes[..100_000] == noise(2, 100_000));
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

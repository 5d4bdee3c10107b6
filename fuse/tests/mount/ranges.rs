//! Holes, shared bytes, and files that are mostly nothing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};
use rustix::io::Errno;

use crate::{as_nobody, expect, expect_errno, noise, on_mount, on_mount_as_root, on_two_mounts, set_mode};

const EXTENDS: &str = "`fallocate` extends the size unless `FALLOC_FL_KEEP_SIZE` is given, and reserves no space.";
const PUNCHES: &str = "`FALLOC_FL_PUNCH_HOLE` and `FALLOC_FL_ZERO_RANGE` (with or without `FALLOC_FL_KEEP_SIZE`) both \
    take a range's bytes away: it reads as zeros and its space is given back.";
const HOLES: &str = "`SEEK_HOLE` and `SEEK_DATA` know the holes of a file to the byte, with this mount's own writes \
    counted as data.";
const SHARES: &str = "`copy_file_range` within the cluster shares the bytes instead of copying them";
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
const ZERO_KEEP: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// Copies all of the range, in as many calls as it takes. Answers how much there was.
fn copy(from: &File, from_offset: u64, to: &File, to_offset: u64, len: u64) -> Result<u64, Errno> {
    let mut done = 0;
    while done < len {
        let (mut source, mut target) = (from_offset + done, to_offset + done);
        match copy_file_range(from, Some(&mut source), to, Some(&mut target), (len - done) as usize)? {
            0 => break,
            more => done += more as u64,
        }
    }
    Ok(done)
}

/// Bytes of disk that `stat` shows.
fn used(file: &File) -> u64 {
    file.metadata().unwrap().blocks() * 512
}

#[test]
fn preallocation_extends_and_nothing_else() {
    let Some(dir) = on_mount(EXTENDS) else { return };
    let path = dir.path().join("file");
    fs::write(&path, b"12345").unwrap();
    let file = read_write(&path);
    fallocate(&file, FallocateFlags::empty(), 0, 3).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    fallocate(&file, FallocateFlags::empty(), 3, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_003);
    assert!(used(&file) <= 4096, "{}", used(&file));
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[..5] == *b"12345" && bytes[5..].iter().all(|&byte| byte == 0));
}

#[test]
fn a_file_that_grows_in_the_cache_grows_by_preallocation_too() {
    let Some(dir) = on_mount(EXTENDS) else { return };
    let file = read_write(&dir.path().join("file"));
    file.write_all_at(&noise(1, 5000), 0).unwrap();
    fallocate(&file, FallocateFlags::empty(), 0, 9000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 9000);
    let mut bytes = vec![1; 9000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..5000] == noise(1, 5000) && bytes[5000..].iter().all(|&byte| byte == 0));
}

#[test]
fn taken_ranges_read_as_zeros_and_give_their_space_back() {
    let Some(dir) = on_mount(PUNCHES) else { return };
    for (name, mode) in [("punch", PUNCH), ("zero", FallocateFlags::ZERO_RANGE), ("keep", ZERO_KEEP)] {
        let path = dir.path().join(name);
        let mut model = noise(2, 1 << 20);
        fs::write(&path, &model).unwrap();
        let file = read_write(&path);
        // Bytes in the kernel's pages, and some that have not left this machine.
        let mut page = vec![0; 300_000];
        file.read_exact_at(&mut page, 0).unwrap();
        file.write_all_at(&[7; 1000], 99_500).unwrap();
        model[99_500..100_500].fill(7);
        fallocate(&file, mode, 100_000, 500_000).unwrap();
        model[100_000..600_000].fill(0);
        assert!(fs::read(&path).unwrap() == model, "{name}");
        file.sync_all().unwrap();
        assert!(used(&file) < 600_000, "{name}: {} bytes used", used(&file));

        file.write_all_at(&[9; 10], 300_000).unwrap();
        model[300_000..300_010].fill(9);
        fallocate(&file, mode, 1_000_000, 500_000).unwrap();
        model[1_000_000..].fill(0);
        if mode == FallocateFlags::ZERO_RANGE {
            model.resize(1_500_000, 0);
        }
        drop(file);
        assert!(fs::read(&path).unwrap() == model, "{name}");
    }
}

#[test]
fn what_was_taken_away_is_gone_for_other_mounts() {
    let Some((dir, other)) = on_two_mounts(PUNCHES) else { return };
    let mut model = noise(3, 200_000);
    fs::write(dir.path().join("file"), &model).unwrap();
    assert!(fs::read(other.join("file")).unwrap() == model);
    let file = read_write(&dir.path().join("file"));
    fallocate(&file, PUNCH, 5000, 100_000).unwrap();
    model[5000..105_000].fill(0);
    assert!(fs::read(other.join("file")).unwrap() == model);
}

#[test]
fn ranges_are_not_collapsed_or_inserted() {
    let Some(dir) = on_mount("Collapsing and inserting ranges fail with `EOPNOTSUPP`.") else { return };
    let file = read_write(&dir.path().join("file"));
    file.set_len(1 << 20).unwrap();
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&file, mode, 0, 65536), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(fallocate(&file, PUNCH, 0, 0), Err(Errno::INVAL));
}

#[test]
fn every_fallocate_sets_the_times_and_clears_set_id_bits() {
    let Some(dir) = on_mount_as_root("Every `fallocate` sets mtime and ctime.") else { return };
    let path = dir.path().join("file");
    fs::write(&path, noise(1, 100)).unwrap();
    let file = read_write(&path);
    for mode in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE, PUNCH, FallocateFlags::ZERO_RANGE, ZERO_KEEP] {
        let old = std::time::SystemTime::UNIX_EPOCH;
        file.set_modified(old).unwrap();
        let before = file.metadata().unwrap();
        fallocate(&file, mode, 10, 20).unwrap();
        let after = file.metadata().unwrap();
        assert!(after.modified().unwrap() > old, "{mode:?}");
        assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()), "{mode:?}");
    }
    set_mode(dir.path(), 0o777);
    set_mode(&path, 0o6777);
    expect(&as_nobody(dir.path(), &[], "fallocate --punch-hole --offset 0 --length 10 file"), true);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o777);
}

#[test]
fn seek_finds_data_and_holes_to_the_byte() {
    let Some(dir) = on_mount(HOLES) else { return };
    let file = read_write(&dir.path().join("file"));
    let data = |at| seek(&file, SeekFrom::Data(at));
    let hole = |at| seek(&file, SeekFrom::Hole(at));
    assert_eq!((data(0), hole(0)), (Err(Errno::NXIO), Err(Errno::NXIO)));
    file.write_all_at(&noise(1, 1000), 5000).unwrap();
    for flushed in [false, true] {
        assert_eq!((data(0), hole(0)), (Ok(5000), Ok(0)), "flushed: {flushed}");
        assert_eq!((data(5500), hole(5500)), (Ok(5500), Ok(6000)), "flushed: {flushed}");
        assert_eq!((data(6000), hole(6000)), (Err(Errno::NXIO), Err(Errno::NXIO)));
        file.sync_all().unwrap();
    }
    file.set_len(10_000).unwrap();
    assert_eq!((data(6000), hole(5000), hole(7000)), (Err(Errno::NXIO), Ok(6000), Ok(7000)));
    // Partly stored and partly not.
    file.write_all_at(&noise(2, 100), 6000).unwrap();
    assert_eq!((data(0), hole(5000)), (Ok(5000), Ok(6100)));
    fallocate(&file, PUNCH, 5010, 10).unwrap();
    assert_eq!((hole(5000), data(5010)), (Ok(5010), Ok(5020)));
}

#[test]
fn written_zeros_are_data() {
    let Some(dir) = on_mount("Zeros that were written are data.") else { return };
    let file = read_write(&dir.path().join("file"));
    file.write_all_at(&[0; 4096], 0).unwrap();
    assert_eq!(seek(&file, SeekFrom::Hole(0)), Ok(4096));
    assert_eq!(used(&file), 4096);
}

#[test]
fn a_copy_shares_its_bytes_and_goes_its_own_way() {
    let Some(dir) = on_mount(SHARES) else { return };
    let bytes = noise(9, 3_000_001);
    fs::write(dir.path().join("from"), &bytes).unwrap();
    let (from, to) = (read_write(&dir.path().join("from")), read_write(&dir.path().join("to")));
    assert_eq!(copy(&from, 0, &to, 0, u64::MAX >> 2), Ok(bytes.len() as u64));
    from.write_all_at(b"from", 10).unwrap();
    to.write_all_at(b"to", 10).unwrap();
    let (mut a, mut b) = (bytes.clone(), bytes);
    a[10..14].copy_from_slice(b"from");
    b[10..12].copy_from_slice(b"to");
    drop((from, to));
    assert!(fs::read(dir.path().join("from")).unwrap() == a);
    assert!(fs::read(dir.path().join("to")).unwrap() == b);
    fs::remove_file(dir.path().join("from")).unwrap();
    assert!(fs::read(dir.path().join("to")).unwrap() == b);
}

#[test]
fn a_copy_of_what_another_mount_is_still_writing_has_its_flushed_bytes() {
    let Some((dir, other)) = on_two_mounts("or bytes that another mount has written and not yet closed") else {
        return;
    };
    let bytes = noise(4, 1_000_000);
    let writer = read_write(&dir.path().join("from"));
    writer.write_all_at(&bytes, 0).unwrap();
    writer.sync_all().unwrap();
    let to = read_write(&other.join("to"));
    assert_eq!(copy(&File::open(other.join("from")).unwrap(), 0, &to, 0, 2_000_000), Ok(1_000_000));
    drop(to);
    assert!(fs::read(dir.path().join("to")).unwrap() == bytes);
}

#[test]
fn a_copy_within_one_file_must_not_overlap_itself() {
    let Some(dir) = on_mount(SHARES) else { return };
    let file = read_write(&dir.path().join("file"));
    let bytes = noise(5, 100_000);
    file.write_all_at(&bytes, 0).unwrap();
    assert_eq!(copy(&file, 0, &file, 50_000, 60_000), Err(Errno::INVAL));
    assert_eq!(copy(&file, 0, &file, 100_000, 100_000), Ok(100_000));
    assert_eq!(copy(&file, 100_100, &file, 0, 1000), Ok(1000));
    let mut model = [bytes.clone(), bytes.clone()].concat();
    model[..1000].copy_from_slice(&bytes[100..1100]);
    drop(file);
    assert!(fs::read(dir.path().join("file")).unwrap() == model);
}

#[test]
fn the_largest_offset_is_the_end_of_every_file() {
    let Some(dir) = on_mount("A file's size is at most 2^63 - 1 bytes, and most of it may be hole.") else {
        return;
    };
    let file = read_write(&dir.path().join("file"));
    let max = i64::MAX as u64;
    for at in [5 << 40, 1 << 60, max - 1000] {
        file.write_all_at(&noise(at, 1000), at).unwrap();
        assert_eq!(file.metadata().unwrap().len(), at + 1000);
        let mut bytes = vec![0; 1000];
        file.read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes == noise(at, 1000));
    }
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(5 << 40));
    assert_eq!(seek(&file, SeekFrom::Data((5 << 40) + 1000)), Ok(1 << 60));
    assert_eq!(seek(&file, SeekFrom::Hole(max - 1000)), Ok(max));
    expect_errno(file.write_at(b"x", max), Errno::INVAL);
    assert_eq!(fallocate(&file, FallocateFlags::empty(), max - 10, 11), Err(Errno::FBIG));
    file.set_len(1 << 50).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data((5 << 40) + 1000)), Err(Errno::NXIO));
    assert!(used(&file) <= 4096);
    file.set_len(0).unwrap();
    assert_eq!(used(&file), 0);
}

#[test]
fn direct_and_cached_access_agree() {
    let Some(dir) = on_mount("Within one mount, a write is seen by every later read and `stat` through any descriptor")
    else {
        return;
    };
    let path = dir.path().join("file");
    let cached = read_write(&path);
    let mut options = OpenOptions::new();
    let direct = options.read(true).write(true).custom_flags(libc_o_direct()).open(&path).unwrap();
    let mut bytes = vec![0; 8192];
    for round in 0..20u64 {
        let (writer, reader) = if round % 2 == 0 { (&cached, &direct) } else { (&direct, &cached) };
        writer.write_all_at(&noise(round, 8192), 4096 * round).unwrap();
        reader.read_exact_at(&mut bytes, 4096 * round).unwrap();
        assert!(bytes == noise(round, 8192), "round {round}");
    }
    fallocate(&direct, PUNCH, 4096, 8192).unwrap();
    cached.read_exact_at(&mut bytes, 4096).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
}

fn libc_o_direct() -> i32 {
    rustix::fs::OFlags::DIRECT.bits() as i32
}

/// Punches, copies and writes at random, in one file from several threads; each thread in a part of its own.
#[test]
fn threads_that_share_a_file_do_not_disturb_each_other() {
    let Some(dir) = on_mount(PUNCHES) else { return };
    const PART: u64 = 1 << 20;
    let path = dir.path().join("file");
    read_write(&path).set_len(4 * PART).unwrap();
    thread::scope(|scope| {
        for part in 0..4u64 {
            let path = &path;
            scope.spawn(move || work_in_part(path, part * PART, PART as usize, part));
        }
    });
}

fn work_in_part(path: &Path, base: u64, size: usize, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let file = read_write(path);
    let mut model = vec![0; size];
    for step in 0..60 {
        let len = random.random_range(1..size / 4);
        let (offset, other) = (random.random_range(0..size - len), random.random_range(0..size - len));
        let at = base + offset as u64;
        match random.random_range(0..4) {
            0 => {
                fallocate(&file, PUNCH, at, len as u64).unwrap();
                model[offset..offset + len].fill(0);
            }
            1 if other.abs_diff(offset) >= len => {
                assert_eq!(copy(&file, base + other as u64, &file, at, len as u64), Ok(len as u64));
                model.copy_within(other..other + len, offset);
            }
            _ => {
                let bytes = noise(random.random(), len);
                file.write_all_at(&bytes, at).unwrap();
                model[offset..offset + len].copy_from_slice(&bytes);
            }
        }
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, base).unwrap();
        assert!(bytes == model, "step {step} of the part at {base}");
    }
}

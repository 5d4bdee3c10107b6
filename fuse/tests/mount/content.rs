//! What files hold, on one mount.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::{noise, on_mount};

const OWN_WRITES: &str = "Within one mount, a write is seen by every later read and `stat` through any descriptor, and \
    its size and times are right at once, whether or not the bytes have left this machine.";

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn random_reads_and_writes_agree_with_a_model() {
    let Some(dir) = on_mount(OWN_WRITES) else { return };
    for seed in 1..=3 {
        println!("seed {seed}");
        agree_with_a_model(&dir.path().join(format!("file{seed}")), seed);
    }
}

/// Four hundred random operations on a file of up to 3 MiB, and on a vector.
fn agree_with_a_model(path: &Path, seed: u64) {
    const SIZE_MAX: usize = 3 << 20;
    let mut random = StdRng::seed_from_u64(seed);
    let mut model: Vec<u8> = Vec::new();
    let mut file = read_write(path);
    for step in 0..400 {
        match random.random_range(0..100) {
            0..45 => {
                let len = random.random_range(1..200_000);
                let offset = random.random_range(0..SIZE_MAX - len);
                let bytes = noise(random.random(), len);
                file.write_all_at(&bytes, offset as u64).unwrap();
                model.resize(model.len().max(offset + len), 0);
                model[offset..offset + len].copy_from_slice(&bytes);
            }
            45..80 => {
                let offset = random.random_range(0..SIZE_MAX);
                let mut bytes = vec![0; random.random_range(1..300_000)];
                let mut len = 0;
                while let read @ 1.. = file.read_at(&mut bytes[len..], (offset + len) as u64).unwrap() {
                    len += read;
                }
                let from = offset.min(model.len());
                let to = (offset + bytes.len()).min(model.len());
                assert!(bytes[..len] == model[from..to], "read of step {step} at {offset}");
            }
            80..90 => {
                let size = random.random_range(0..SIZE_MAX);
                file.set_len(size as u64).unwrap();
                model.resize(size, 0);
            }
            90..95 => file.sync_all().unwrap(),
            _ => file = read_write(path),
        }
        assert_eq!(fs::metadata(path).unwrap().len(), model.len() as u64, "size after step {step}");
    }
    drop(file);
    assert!(fs::read(path).unwrap() == model, "the whole file at the end");
}

#[test]
fn an_unflushed_write_shows_in_stat_and_through_other_descriptors() {
    let Some(dir) = on_mount(OWN_WRITES) else { return };
    let path = dir.path().join("file");
    let mut writer = File::create(&path).unwrap();
    let before = fs::metadata(&path).unwrap();
    writer.write_all(b"not flushed").unwrap();

    let after = fs::metadata(&path).unwrap();
    assert_eq!(after.len(), 11);
    assert!((after.mtime(), after.mtime_nsec()) >= (before.mtime(), before.mtime_nsec()));
    assert_eq!(fs::read(&path).unwrap(), b"not flushed");
}

#[test]
fn holes_read_as_zeros() {
    let Some(dir) = on_mount("holes that were never written read as zeros") else { return };
    let path = dir.path().join("sparse");
    let file = read_write(&path);
    file.write_all_at(b"end", 200 << 20).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    drop(file);

    let file = File::open(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), (200 << 20) + 3);
    let mut bytes = vec![1; 1 << 20];
    file.read_exact_at(&mut bytes, 100 << 20).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 0));
    file.read_exact_at(&mut bytes[..8], 0).unwrap();
    assert_eq!(&bytes[..8], b"start\0\0\0");
}

#[test]
fn what_was_cut_off_does_not_come_back() {
    let Some(dir) = on_mount("holes that were never written read as zeros") else { return };
    let path = dir.path().join("file");
    fs::write(&path, noise(1, 300_000)).unwrap();
    let file = read_write(&path);
    file.set_len(1000).unwrap();
    file.set_len(300_000).unwrap();
    drop(file);

    let bytes = fs::read(&path).unwrap();
    assert!(bytes[..1000] == noise(1, 300_000)[..1000]);
    assert!(bytes[1000..].iter().all(|&byte| byte == 0));
}

#[test]
fn truncation_on_open_empties_the_file_for_everybody() {
    let Some(dir) = on_mount(OWN_WRITES) else { return };
    let path = dir.path().join("file");
    fs::write(&path, noise(2, 100_000)).unwrap();
    let mut reader = File::open(&path).unwrap();
    let mut writer = File::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(reader.read(&mut [0; 10]).unwrap(), 0);
    writer.write_all(b"new").unwrap();
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

#[test]
fn appends_go_to_the_end_whatever_the_position() {
    let Some(dir) = on_mount("each `write` lands as one piece at the end of the file as the cluster knows it") else {
        return;
    };
    let path = dir.path().join("log");
    let mut log = OpenOptions::new().create(true).append(true).read(true).open(&path).unwrap();
    log.write_all(b"one,").unwrap();
    log.rewind().unwrap();
    log.write_all(b"two,").unwrap();
    OpenOptions::new().append(true).open(&path).unwrap().write_all(b"three,").unwrap();
    log.write_all(b"four").unwrap();

    let mut text = String::new();
    log.seek(SeekFrom::Start(0)).unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text, "one,two,three,four");
    assert_eq!(fs::read(&path).unwrap(), b"one,two,three,four");
}

#[test]
fn an_append_descriptor_that_gave_up_appending_writes_where_it_is_told() {
    let Some(dir) = on_mount("`O_APPEND` works across mounts") else { return };
    let path = dir.path().join("log");
    fs::write(&path, b"0123456789").unwrap();
    let mut log = OpenOptions::new().append(true).open(&path).unwrap();
    rustix::fs::fcntl_setfl(&log, rustix::fs::OFlags::empty()).unwrap();
    log.seek(SeekFrom::Start(2)).unwrap();
    log.write_all(b"ab").unwrap();
    drop(log);
    assert_eq!(fs::read(&path).unwrap(), b"01ab456789");
}

#[test]
fn an_unlinked_file_lives_until_its_last_descriptor_is_closed() {
    let Some(dir) = on_mount(
        "A file that is unlinked or replaced while it is open stays readable and writable through its descriptors \
         until the last one is closed.",
    ) else {
        return;
    };
    let path = dir.path().join("file");
    fs::write(&path, b"before").unwrap();
    let file = read_write(&path);
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    assert_eq!(file.metadata().unwrap().nlink(), 0);

    file.write_all_at(&noise(3, 100_000), 6).unwrap();
    file.sync_all().unwrap();
    let mut bytes = vec![0; 100_006];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..6] == *b"before" && bytes[6..] == noise(3, 100_000));

    fs::write(&path, b"another file").unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_006);
}

#[test]
fn a_replaced_file_lives_until_its_last_descriptor_is_closed() {
    let Some(dir) = on_mount("A file that is unlinked or replaced while it is open stays readable and writable") else {
        return;
    };
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    fs::write(&old, b"old bytes").unwrap();
    fs::write(&new, b"new bytes").unwrap();
    let file = read_write(&old);
    fs::rename(&new, &old).unwrap();

    file.write_all_at(b"OLD", 0).unwrap();
    let mut bytes = [0; 9];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"OLD bytes");
    drop(file);
    assert_eq!(fs::read(&old).unwrap(), b"new bytes");
}

#[test]
fn a_large_file_across_chunks_keeps_every_byte_and_can_be_mapped() {
    let Some(dir) = on_mount("every byte written through that descriptor is stored") else { return };
    let path = dir.path().join("large");
    let mut written = blake3::Hasher::new();
    let mut file = File::create(&path).unwrap();
    for part in 0..70 {
        let bytes = noise(part, 1 << 20);
        written.update(&bytes);
        file.write_all(&bytes).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    let written = written.finalize();

    let mut read = blake3::Hasher::new();
    read.update_reader(File::open(&path).unwrap()).unwrap();
    assert_eq!(read.finalize(), written, "by read");
    let mut mapped = blake3::Hasher::new();
    mapped.update_mmap(&path).unwrap();
    assert_eq!(mapped.finalize(), written, "by mmap");
    // The seam between two chunks.
    let mut seam = vec![0; 2 << 20];
    File::open(&path).unwrap().read_exact_at(&mut seam, 63 << 20).unwrap();
    assert!(seam[..1 << 20] == noise(63, 1 << 20) && seam[1 << 20..] == noise(64, 1 << 20));
}

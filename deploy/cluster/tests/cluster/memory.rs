//! What a mount's process takes of its machine.

use std::fs::{self, File};
use std::io::{Read, Write};

use crate::bed::{Bed, promised};

/// What a mount may hold, in MiB: the client's write-back buffer (256) and read-ahead (128), writes that wait for room
/// in the buffer (256), the kernel's background requests (64 of 1 MiB) each with its reply, and what the process is
/// without any of it, allocator and program text included (128).
const LIMIT_MIB: u64 = 256 + 128 + 256 + 2 * 64 + 128;

/// Far above the limit: whatever grows with the bytes that pass through shows.
const FILE_MIB: u64 = 2048;

#[test]
fn a_large_copy_does_not_grow_the_mount_past_its_limits() {
    promised("The mount's process has a limit to its memory, however much passes through it");
    let bed = Bed::start(1, 3, &[]);
    let path = bed.mount().join("large");
    let mut piece = vec![0; 1 << 20];
    let mut written = blake3::Hasher::new();
    let mut file = File::create(&path).unwrap();
    for number in 0..FILE_MIB {
        blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut piece);
        written.update(&piece);
        file.write_all(&piece).unwrap();
    }
    drop(file);
    let after_write = peak_mib(&bed);

    // Read from the datanodes and not from the kernel's pages.
    let _ = fs::write("/proc/sys/vm/drop_caches", "1");
    let mut read = blake3::Hasher::new();
    let mut file = File::open(&path).unwrap();
    loop {
        match file.read(&mut piece).unwrap() {
            0 => break,
            len => read.update(&piece[..len]),
        };
    }
    let after_read = peak_mib(&bed);
    assert_eq!(written.finalize(), read.finalize());
    eprintln!("at most {after_write} MiB while writing, {after_read} MiB in all; the limit is {LIMIT_MIB} MiB");
    assert!(after_read < LIMIT_MIB);
}

/// The most that the mount's process ever had in memory.
fn peak_mib(bed: &Bed) -> u64 {
    let pid = bed.cluster.pid("m1").unwrap().as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

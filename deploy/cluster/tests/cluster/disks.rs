//! Disks that are really full.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use dfs_cluster::{Verdict, check_at_rest, digest_file};
use serde_json::Value;

use crate::bed::{Bed, DEADLINE};

const FILE_BYTES: usize = 16 << 20;
/// More than three disks of 400 MiB hold at three copies.
const FILES_MAX: u64 = 64;

fn bytes_of(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn store(path: &Path, number: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&bytes_of(number))?;
    file.sync_all()
}

fn expect_stored(path: &Path, number: u64) {
    let (digest, len) = digest_file(path).unwrap();
    assert_eq!((digest, len), (blake3::hash(&bytes_of(number)), FILE_BYTES as u64), "{}", path.display());
}

#[test]
fn a_full_cluster_says_so_keeps_what_it_has_and_takes_writes_again_once_something_is_deleted() {
    let bed = Bed::start(1, 3, &["--fs", "xfs:400M"]);
    let path = |number: u64| bed.mount().join(format!("file{number}"));
    let mut stored = 0;
    let refused = loop {
        match store(&path(stored), stored) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < FILES_MAX, "the disks take more than they have room for");
    };
    assert_eq!(refused.kind(), ErrorKind::StorageFull, "{refused}");
    assert!(stored > 4, "only {stored} files of 16 MiB on disks of 400 MiB");
    (0..stored).for_each(|number| expect_stored(&path(number), number));

    // Names need no room on a datanode's disk, and deleting makes some.
    fs::create_dir(bed.mount().join("dir")).unwrap();
    fs::remove_file(path(stored)).unwrap();
    (0..stored / 2).for_each(|number| fs::remove_file(path(number)).unwrap());
    let end = Instant::now() + DEADLINE;
    while let Err(error) = store(&bed.mount().join("again"), 1000) {
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        assert!(Instant::now() < end, "no room although half of the files are deleted");
        std::thread::park_timeout(Duration::from_millis(200));
    }
    expect_stored(&bed.mount().join("again"), 1000);
    (stored / 2..stored).for_each(|number| expect_stored(&path(number), number));
    // The first datanodes that had room again took the last file; the third copy follows.
    bed.cluster.wait_healthy(DEADLINE).unwrap();
    assert!(bed.cluster.run(["fsck", "/"]).unwrap().contains("is HEALTHY"));
}

#[test]
fn room_of_dead_bytes_comes_back_although_something_in_each_chunk_lives() {
    let bed = Bed::start(1, 3, &["--fs", "xfs:400M"]);
    let path = |number: u64| bed.mount().join(format!("file{number}"));
    // Twice what the disks hold, and a 64th of each file stays.
    const KEPT: u64 = FILE_BYTES as u64 / 64;
    let files = 48;
    for number in 0..files {
        let end = Instant::now() + DEADLINE;
        while let Err(error) = store(&path(number), number) {
            assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
            assert!(Instant::now() < end, "no room for file {number}, although hardly anything lives");
            std::thread::park_timeout(Duration::from_millis(200));
        }
        let file = File::options().write(true).open(path(number)).unwrap();
        file.set_len(KEPT).unwrap();
        file.sync_all().unwrap();
    }
    for number in 0..files {
        let bytes = fs::read(path(number)).unwrap();
        assert!(bytes == bytes_of(number)[..KEPT as usize], "file {number}, {} bytes", bytes.len());
    }
    bed.cluster.wait_healthy(DEADLINE).unwrap();
    assert!(bed.cluster.run(["fsck", "/"]).unwrap().contains("is HEALTHY"));
}

#[test]
fn a_datanode_that_joins_gets_its_share() {
    let bed = Bed::start(1, 3, &["--fs", "xfs:400M"]);
    let path = |number: u64| bed.mount().join(format!("file{number}"));
    let files = 10;
    (0..files).for_each(|number| store(&path(number), number).unwrap());
    assert!(bed.cluster.run(["datanode", "add"]).unwrap().contains("dn4 serves"));
    bed.cluster.run(["balance", "on", "--threshold", "10", "--wait"]).unwrap();
    let report: Value = serde_json::from_str(&bed.cluster.run(["balance", "--json"]).unwrap()).unwrap();
    let full = |node: &Value| node["full_percent"].as_f64().unwrap();
    let shares: Vec<f64> = report["datanodes"].as_array().unwrap().iter().map(full).collect();
    let (least, most) =
        shares.iter().fold((100.0_f64, 0.0_f64), |(least, most), share| (least.min(*share), most.max(*share)));
    assert!(shares.len() == 4 && most - least <= 10.0, "{report}");
    assert!(report["balance"]["moved_chunks"].as_u64().unwrap() > 3, "{report}");
    (0..files).for_each(|number| expect_stored(&path(number), number));
    bed.cluster.wait_healthy(DEADLINE).unwrap();
    let mut verdict = Verdict::default();
    check_at_rest(&bed.cluster, DEADLINE, &mut verdict).unwrap();
    assert!(verdict.is_clean(), "{verdict:?}");
}

/// A mount that has written keeps a chunk in stock for what comes next.
#[test]
fn a_datanode_leaves_although_a_mount_is_idle() {
    let bed = Bed::start(1, 4, &[]);
    let path = |number: u64| bed.mount().join(format!("file{number}"));
    let files = 6;
    (0..files).for_each(|number| store(&path(number), number).unwrap());
    for node in ["dn1", "dn2", "dn3", "dn4"] {
        bed.cluster.run(["datanode", "decommission", node, "--wait"]).unwrap();
        bed.cluster.run(["datanode", "recommission", node]).unwrap();
    }
    (0..files).for_each(|number| expect_stored(&path(number), number));
}

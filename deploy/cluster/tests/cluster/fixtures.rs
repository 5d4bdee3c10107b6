//! What earlier states of the program have written, in the hands of the one of today.

use std::fs::{self, OpenOptions};
use std::io::Write;

use dfs_cluster::fixture::{Fixture, Manifest, expect_fsck_clean};
use tempfile::TempDir;

use crate::bed::{DEADLINE, program};

#[test]
fn every_fixture_opens_holds_what_its_list_says_and_can_be_worked_with() {
    let fixtures = Fixture::all().unwrap();
    assert!(!fixtures.is_empty());
    for fixture in fixtures {
        eprintln!("fixture {}", fixture.name());
        works(&fixture);
    }
}

fn works(fixture: &Fixture) {
    let dir = TempDir::new().unwrap();
    let mounts = ["mnt1", "mnt2"].map(|name| dir.path().join(name));
    let cluster = fixture.open(&program(), &dir.path().join("data"), &mounts, &[]).unwrap();
    cluster.wait_healthy(DEADLINE).unwrap();
    let expected = fixture.manifest().unwrap();
    assert!(expected.names() > 0);
    for mount in &mounts {
        expected.expect_in(&Manifest::of(mount).unwrap()).unwrap();
    }
    expect_fsck_clean(&cluster).unwrap();

    // New files, in new folders and beside old ones; and old files go on.
    let new = mounts[0].join("new");
    fs::create_dir(&new).unwrap();
    for number in 0..20usize {
        fs::write(new.join(format!("file{number}")), vec![number as u8; number * 10_000]).unwrap();
    }
    let mut grown = OpenOptions::new().append(true).open(mounts[0].join("frames")).unwrap();
    grown.write_all(b"and a new end").unwrap();
    grown.sync_all().unwrap();
    fs::remove_file(mounts[0].join("folder/below/number7")).unwrap();
    fs::rename(mounts[0].join("appended"), mounts[0].join("folder/appended")).unwrap();
    let changed = Manifest::of(&mounts[0]).unwrap();

    let leader = cluster.leader(DEADLINE).unwrap();
    cluster.kill(&leader).unwrap();
    let next = cluster.leader(DEADLINE).unwrap();
    assert_ne!(next, leader, "a dead namenode leads");
    let found = Manifest::of(&mounts[1]).unwrap();
    changed.expect_in(&found).unwrap();
    // Nor has anything come back.
    found.expect_in(&changed).unwrap();

    cluster.start(&leader).unwrap();
    cluster.wait_caught_up(DEADLINE).unwrap();
    cluster.wait_healthy(DEADLINE).unwrap();
    expect_fsck_clean(&cluster).unwrap();
    cluster.run(["namenode", "hash"]).unwrap();
}

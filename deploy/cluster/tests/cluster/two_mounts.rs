//! What one mount is to another when processes die between them.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::fs::{FlockOperation, flock};

use crate::bed::{Bed, DEADLINE};

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A program that holds the lock file of `dir` until it is killed. Its first output says that it has it.
fn holder(dir: &Path) -> Child {
    let script = "exec 9>>lock; flock 9; echo locked; exec sleep 1000";
    let mut child = Command::new("sh").args(["-c", script]).current_dir(dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    child
}

#[test]
fn a_waiting_lock_is_had_when_the_other_mount_is_killed_and_its_lease_has_ended() {
    let bed = Bed::start_with_mounts(3, 3, 2, &[]);
    let (here, there) = (bed.cluster.mount(0).to_owned(), bed.cluster.mount(1).to_owned());
    let mut holds = holder(&there);
    let waits = std::thread::spawn(move || {
        let file = open(&here.join("lock"));
        assert_eq!(flock(&file, FlockOperation::NonBlockingLockExclusive), Err(rustix::io::Errno::WOULDBLOCK));
        flock(&file, FlockOperation::LockExclusive).unwrap();
    });
    bed.cluster.kill("m2").unwrap();
    waits.join().unwrap();
    holds.kill().unwrap();
    holds.wait().unwrap();
    assert!(bed.cluster.run(["fsck", "/"]).unwrap().contains("is HEALTHY"));
}

#[test]
fn locks_and_files_without_a_name_outlive_the_leader() {
    let bed = Bed::start_with_mounts(3, 3, 2, &[]);
    let (here, there) = (bed.cluster.mount(0), bed.cluster.mount(1));
    fs::write(here.join("file"), b"before").unwrap();
    let file = open(&here.join("file"));
    let (lock, other) = (open(&here.join("lock")), open(&there.join("lock")));
    flock(&lock, FlockOperation::LockExclusive).unwrap();

    let leader = bed.cluster.leader(DEADLINE).unwrap();
    bed.cluster.kill(&leader).unwrap();
    // The new leader has not heard what is open when the name goes.
    fs::remove_file(there.join("file")).unwrap();
    assert_eq!(flock(&other, FlockOperation::NonBlockingLockExclusive), Err(rustix::io::Errno::WOULDBLOCK));
    bed.cluster.start(&leader).unwrap();

    // Long enough for all to have announced, and for what nobody holds to be gone.
    let next = bed.cluster.leader(DEADLINE).unwrap();
    bed.cluster.wait_caught_up(DEADLINE).unwrap();
    bed.cluster.kill(&next).unwrap();
    let mut bytes = [0; 6];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"before");
    file.write_all_at(b"after!", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(flock(&other, FlockOperation::NonBlockingLockExclusive), Err(rustix::io::Errno::WOULDBLOCK));
    drop(lock);
    flock(&other, FlockOperation::LockExclusive).unwrap();
    bed.cluster.start(&next).unwrap();
    bed.cluster.wait_caught_up(DEADLINE).unwrap();
    assert!(bed.cluster.run(["fsck", "/"]).unwrap().contains("is HEALTHY"));
}

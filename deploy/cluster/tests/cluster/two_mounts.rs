//! What one mount is to another when processes die between them.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dfs_cluster::{Fault, fault};
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::bed::{Bed, DEADLINE, promised};
use crate::mounting::expect_errno;

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

/// A lock of this open file, on all of it; waits for it if it has to.
fn lock_open_file(file: &File, kind: i32, wait: bool) -> nix::Result<()> {
    let all = libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: 0, l_len: 0, l_pid: 0 };
    let request = if wait { FcntlArg::F_OFD_SETLKW(&all) } else { FcntlArg::F_OFD_SETLK(&all) };
    fcntl(file, request).map(|_| ())
}

/// It stands still, so it learns of nothing until it goes on, and then of all at once.
#[test]
fn a_mount_that_stood_still_beyond_its_lease_says_what_it_has_lost() {
    promised(
        "reads, writes, `fsync` and `close` through a descriptor whose lock was lost fail with `EIO`, locking and \
         unlocking with `ENOLCK`, until the lock is given up or the descriptor closed.",
    );
    promised(
        "Through each descriptor of a file that has lost bytes the next `write`, `fsync` or `close` fails with `EIO`, once",
    );
    promised(
        "A write that fails after the system call has returned is reported to every descriptor that the file was open by \
         then: by its next `write`, `fsync` or `close`, once each.",
    );
    promised("All other descriptors go on, and so does whatever is opened from then on.");
    promised(
        "A mount that was cut off for longer than its lease loses such files: its descriptors then fail with `ESTALE`.",
    );
    let bed = Bed::start_with_mounts(3, 3, 2, &[]);
    let (here, there) = (bed.cluster.mount(0), bed.cluster.mount(1));
    let before = |name: &str| {
        fs::write(here.join(name), b"before").unwrap();
        open(&here.join(name))
    };
    let [whole, range, clean] = ["whole", "range", "clean"].map(before);
    let [written, synced, closed] = ["written", "synced", "closed"].map(before);
    let [not_written, late] = ["synced", "closed"].map(|name| open(&here.join(name)));
    let nameless = before("nameless");
    fs::remove_file(there.join("nameless")).unwrap();
    flock(&whole, FlockOperation::LockExclusive).unwrap();
    lock_open_file(&range, libc::F_WRLCK, false).unwrap();
    let (whole_there, range_there) = (open(&there.join("whole")), open(&there.join("range")));
    assert_eq!(flock(&whole_there, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));

    // Without datanodes to take them the bytes stay in the mount's memory.
    let datanodes: Vec<Fault> =
        bed.cluster.datanodes().iter().map(|node| fault::process::pause(&bed.cluster, node).unwrap()).collect();
    for file in [&written, &synced, &closed] {
        file.write_all_at(b"behind", 6).unwrap();
    }
    let still = fault::process::pause(&bed.cluster, "m1").unwrap();
    datanodes.into_iter().for_each(|fault| fault.undo().unwrap());
    // They come free with the lease.
    flock(&whole_there, FlockOperation::LockExclusive).unwrap();
    lock_open_file(&range_there, libc::F_WRLCK, true).unwrap();
    whole_there.write_all_at(b"theirs", 0).unwrap();
    still.undo().unwrap();

    let mut bytes = [0; 6];
    for file in [&whole, &range] {
        expect_errno(file.write_all_at(b"ours", 0), Errno::IO);
        expect_errno(file.read_exact_at(&mut bytes, 0), Errno::IO);
        expect_errno(file.sync_all(), Errno::IO);
    }
    assert_eq!(flock(&whole, FlockOperation::NonBlockingLockExclusive), Err(Errno::NOLCK));
    assert_eq!(lock_open_file(&range, libc::F_WRLCK, false), Err(nix::errno::Errno::ENOLCK));
    assert_eq!(nix::unistd::close(range.into_raw_fd()), Err(nix::errno::Errno::EIO));
    assert_eq!(flock(&whole, FlockOperation::Unlock), Err(Errno::NOLCK));
    // That gave it up.
    assert_eq!(flock(&whole, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    whole.read_exact_at(&mut bytes, 0).unwrap();

    expect_errno(written.write_all_at(b"again", 20).and_then(|()| written.sync_all()), Errno::IO);
    expect_errno(synced.sync_all(), Errno::IO);
    assert_eq!(nix::unistd::close(closed.into_raw_fd()), Err(nix::errno::Errno::EIO));
    // Whoever else had them open.
    expect_errno(not_written.sync_all(), Errno::IO);
    not_written.sync_all().unwrap();
    assert_eq!(nix::unistd::close(late.into_raw_fd()), Err(nix::errno::Errno::EIO));
    open(&here.join("closed")).sync_all().unwrap();
    expect_errno(nameless.read_exact_at(&mut bytes, 0), rustix::io::Errno::STALE);
    for file in [written, synced] {
        file.sync_all().unwrap();
        file.write_all_at(b"after!", 6).unwrap();
        assert_eq!(nix::unistd::close(file.into_raw_fd()), Ok(()));
    }
    clean.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"before");
    clean.write_all_at(b"after!", 6).unwrap();
    clean.sync_all().unwrap();
    for (name, content) in
        [("written", "beforeafter!"), ("synced", "beforeafter!"), ("closed", "before"), ("clean", "beforeafter!")]
    {
        assert_eq!(fs::read_to_string(there.join(name)).unwrap(), content, "{name}");
    }

    drop((whole_there, range_there));
    let (whole, range) = (open(&here.join("whole")), open(&here.join("range")));
    flock(&whole, FlockOperation::LockExclusive).unwrap();
    lock_open_file(&range, libc::F_WRLCK, true).unwrap();
    whole.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"theirs");
    fs::write(here.join("new"), b"new").unwrap();
    assert_eq!(fs::read(there.join("new")).unwrap(), b"new");
    assert!(bed.cluster.run(["fsck", "/"]).unwrap().contains("is HEALTHY"));
}

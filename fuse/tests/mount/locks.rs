//! `flock` and `fcntl` locks, on one mount and across two.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};

use crate::{on_mount, on_two_mounts};

const ACROSS: &str = "`flock` and `fcntl` locks, of processes and of open file descriptions, exclude each other across \
    all mounts.";
const KILLED: &str = "When a program has been killed, its locks are gone as soon as its descriptors are";
const ENDS: &str = "A process that closes any descriptor of a file loses its `fcntl` locks of that file; locks of an \
    open file end when its last descriptor is closed.";
const CAN_BE_KILLED: &str = "A process that waits can be killed at once, and a signal with a handler interrupts it";

/// Longer than anything here takes on a machine that is busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);

fn open(dir: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(dir.join("lock")).unwrap()
}

/// A lock of `len` bytes (0: to the end) from `start`.
fn range(kind: i32, start: i64, len: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: start, l_len: len, l_pid: 0 }
}

/// Of this open file: threads of one process then exclude each other like processes.
fn lock_open_file(file: &File, kind: i32, start: i64, len: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_OFD_SETLK(&range(kind, start, len))).map(|_| ())
}

fn lock_process(file: &File, kind: i32, start: i64, len: i64) -> Result<(), Errno> {
    fcntl(file, FcntlArg::F_SETLK(&range(kind, start, len))).map(|_| ())
}

fn try_flock(file: &File) -> bool {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => true,
        Err(rustix::io::Errno::WOULDBLOCK) => false,
        Err(error) => panic!("{error}"),
    }
}

fn until(what: &str, mut attempt: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !attempt() {
        assert!(Instant::now() < end, "{what}: not within {DEADLINE:?}");
        std::thread::yield_now();
    }
}

/// A program that holds the lock file of `dir` until it is killed.
fn holder(dir: &Path) -> Child {
    let script = "exec 9>>lock; flock 9; echo locked; exec sleep 1000";
    let mut child = Command::new("sh").args(["-c", script]).current_dir(dir).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    child
}

/// A program that waits for the lock file of `dir` and ends when it has it.
fn waiter(dir: &Path) -> Child {
    let child = Command::new("flock").args(["lock", "true"]).current_dir(dir).spawn().unwrap();
    let call = format!("/proc/{}/syscall", child.id());
    let in_flock = format!("{} ", libc::SYS_flock);
    until("the program waits", || std::fs::read_to_string(&call).is_ok_and(|call| call.starts_with(&in_flock)));
    child
}

#[test]
fn whole_file_locks_reach_the_other_mount() {
    let Some((dir, other)) = on_two_mounts(ACROSS) else { return };
    let (here, there) = (open(dir.path()), open(&other));
    flock(&here, FlockOperation::LockShared).unwrap();
    flock(&there, FlockOperation::NonBlockingLockShared).unwrap();
    assert!(!try_flock(&there));
    flock(&here, FlockOperation::Unlock).unwrap();
    assert!(try_flock(&there));
    assert!(!try_flock(&here));
    // A second open file of one mount is another owner too.
    assert!(!try_flock(&open(&other)));
    flock(&there, FlockOperation::LockShared).unwrap();
    flock(&here, FlockOperation::NonBlockingLockShared).unwrap();
}

#[test]
fn ranges_reach_the_other_mount_and_are_cut_and_joined() {
    let Some((dir, other)) = on_two_mounts(ACROSS) else { return };
    let (here, there) = (open(dir.path()), open(&other));
    lock_open_file(&here, libc::F_WRLCK, 0, 100).unwrap();
    lock_open_file(&here, libc::F_UNLCK, 40, 20).unwrap();
    lock_open_file(&there, libc::F_WRLCK, 40, 20).unwrap();
    for start in [0, 39, 60, 99] {
        assert_eq!(lock_open_file(&there, libc::F_RDLCK, start, 1), Err(Errno::EAGAIN));
    }
    lock_open_file(&there, libc::F_WRLCK, 100, 0).unwrap();
    assert_eq!(lock_open_file(&here, libc::F_WRLCK, 1 << 40, 1), Err(Errno::EAGAIN));

    let mut found = range(libc::F_WRLCK, 0, 0);
    fcntl(&there, FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
    assert_eq!((i32::from(found.l_type), found.l_start, found.l_len), (libc::F_WRLCK, 0, 40));
    let mut free = range(libc::F_WRLCK, 40, 20);
    fcntl(&there, FcntlArg::F_OFD_GETLK(&mut free)).unwrap();
    assert_eq!(i32::from(free.l_type), libc::F_UNLCK);
}

#[test]
fn the_two_kinds_of_locks_do_not_see_each_other() {
    let Some((dir, other)) = on_two_mounts("As on a local file system, `flock` and `fcntl` do not see each other.")
    else {
        return;
    };
    let (here, there) = (open(dir.path()), open(&other));
    assert!(try_flock(&here));
    lock_open_file(&there, libc::F_WRLCK, 0, 0).unwrap();
    assert!(!try_flock(&there));
    assert_eq!(lock_open_file(&here, libc::F_WRLCK, 0, 0), Err(Errno::EAGAIN));
    flock(&here, FlockOperation::Unlock).unwrap();
    assert_eq!(lock_open_file(&here, libc::F_WRLCK, 0, 0), Err(Errno::EAGAIN));
}

#[test]
fn a_processes_locks_go_with_any_descriptor_and_an_open_files_with_the_last() {
    let Some((dir, other)) = on_two_mounts(ENDS) else { return };
    let (here, there) = (open(dir.path()), open(&other));
    lock_process(&here, libc::F_WRLCK, 0, 10).unwrap();
    assert_eq!(lock_open_file(&there, libc::F_WRLCK, 5, 1), Err(Errno::EAGAIN));
    drop(open(dir.path()));
    lock_open_file(&there, libc::F_WRLCK, 5, 1).unwrap();

    assert!(try_flock(&there));
    let second = there.try_clone().unwrap();
    drop(open(&other));
    drop(there);
    assert!(!try_flock(&here));
    assert_eq!(lock_open_file(&here, libc::F_WRLCK, 5, 1), Err(Errno::EAGAIN));
    drop(second);
    until("the last descriptor takes the locks along", || try_flock(&here));
    until("of both kinds", || lock_open_file(&here, libc::F_WRLCK, 5, 1).is_ok());
}

#[test]
fn a_lock_can_be_taken_on_one_mount_as_soon_as_its_holder_has_closed_it() {
    let Some(dir) = on_mount("and a request for a lock on the same mount waits for that.") else { return };
    for _ in 0..50 {
        let file = open(dir.path());
        assert!(try_flock(&file), "the descriptor of the round before still has the lock");
    }
}

#[test]
fn a_waiting_program_gets_the_lock_of_one_that_was_killed_on_the_other_mount() {
    let Some((dir, other)) = on_two_mounts(KILLED) else { return };
    let mut holds = holder(&other);
    let mut waits = waiter(dir.path());
    assert!(waits.try_wait().unwrap().is_none());
    holds.kill().unwrap();
    holds.wait().unwrap();
    assert!(waits.wait().unwrap().success());
}

#[test]
fn a_program_that_waits_for_a_lock_can_be_killed_and_interrupted() {
    let Some(dir) = on_mount(CAN_BE_KILLED) else { return };
    let held = open(dir.path());
    assert!(try_flock(&held));
    let mut waits = waiter(dir.path());
    waits.kill().unwrap();
    until("the killed program is gone", || waits.try_wait().unwrap().is_some());

    let mut waits =
        Command::new("timeout").args(["1", "flock", "lock", "true"]).current_dir(dir.path()).spawn().unwrap();
    assert_eq!(waits.wait().unwrap().code(), Some(124));
    flock(&held, FlockOperation::Unlock).unwrap();
    assert!(try_flock(&open(dir.path())));
}

/// Each adds one to a number, through a descriptor that stays open.
#[test]
fn a_number_that_two_mounts_count_up_under_a_lock_loses_nothing() {
    let Some((dir, other)) = on_two_mounts(
        "Whoever gets a lock reads everything that was written to the file before its last holder gave it up.",
    ) else {
        return;
    };
    const ROUNDS: u64 = 40;
    open(dir.path()).write_all_at(&0u64.to_le_bytes(), 0).unwrap();
    let count = |dir: &Path, by_range: bool| {
        let file = open(dir);
        for _ in 0..ROUNDS {
            match by_range {
                true => fcntl(&file, FcntlArg::F_OFD_SETLKW(&range(libc::F_WRLCK, 0, 0))).map(|_| ()).unwrap(),
                false => flock(&file, FlockOperation::LockExclusive).unwrap(),
            }
            let mut number = [0; 8];
            file.read_exact_at(&mut number, 0).unwrap();
            let number = u64::from_le_bytes(number) + 1;
            file.write_all_at(&number.to_le_bytes(), 0).unwrap();
            match by_range {
                true => lock_open_file(&file, libc::F_UNLCK, 0, 0).unwrap(),
                false => flock(&file, FlockOperation::Unlock).unwrap(),
            }
        }
    };
    for by_range in [false, true] {
        std::thread::scope(|scope| {
            for dir in [dir.path(), &other, dir.path(), &other] {
                scope.spawn(move || count(dir, by_range));
            }
        });
    }
    let mut number = [0; 8];
    open(&other).read_exact_at(&mut number, 0).unwrap();
    assert_eq!(u64::from_le_bytes(number), 2 * 4 * ROUNDS);
}

#[test]
fn processes_that_wait_for_each_other_are_told() {
    let Some((dir, other)) = on_two_mounts(
        "When processes wait for each other's `fcntl` locks in a circle, on whatever mounts, one of them gets `EDEADLK`",
    ) else {
        return;
    };
    // Two processes are needed; this one holds the first byte, a script the second.
    let script = "import fcntl, sys\n\
        f = open('lock', 'r+')\n\
        fcntl.lockf(f, fcntl.LOCK_EX, 1, 1)\n\
        print('locked', flush=True)\n\
        try:\n    fcntl.lockf(f, fcntl.LOCK_EX, 1, 0)\n\
        except OSError as error:\n    sys.exit(error.errno)\n";
    let here = open(dir.path());
    lock_process(&here, libc::F_WRLCK, 0, 1).unwrap();
    let python = Command::new("python3").args(["-c", script]).current_dir(&other).stdout(Stdio::piped()).spawn();
    let Ok(mut child) = python else { return println!("skipped: no python3") };
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "locked\n");
    match fcntl(&here, FcntlArg::F_SETLKW(&range(libc::F_WRLCK, 1, 1))) {
        Err(Errno::EDEADLK) => {
            lock_process(&here, libc::F_UNLCK, 0, 0).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        // The other one was told, and went.
        Ok(_) => assert_eq!(child.wait().unwrap().code(), Some(libc::EDEADLK)),
        Err(other) => panic!("{other}"),
    }
}

//! How mounts end: in order, in disorder, and with programs still at work on them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use dfs_cluster::is_alive;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use crate::bed::{Bed, DEADLINE, promised};
use crate::mounting::{Mount, expect_errno, must};

/// Mounts, and returns the process that serves it.
fn mount(bed: &Bed, on: &Mount) -> Pid {
    mount_with(bed, on, "rw")
}

fn mount_with(bed: &Bed, on: &Mount, options: &str) -> Pid {
    let pid_file = on.0.with_extension("pid");
    let (file, dir) = (pid_file.to_str().unwrap(), on.0.to_str().unwrap());
    must(bed.cluster.output(["mount", "-o", options, "--pid-file", file, dir]).unwrap());
    Pid::from_raw(fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap()).unwrap()
}

fn wait_for_end(pid: Pid) {
    let end = Instant::now() + DEADLINE;
    while is_alive(pid) {
        assert!(Instant::now() < end, "the mount's process does not end");
        std::thread::yield_now();
    }
}

fn umount(flags: &[&str], dir: &Path) {
    must(std::process::Command::new("umount").args(flags).arg(dir).output().unwrap());
}

#[test]
fn after_a_lazy_unmount_programs_go_on_and_then_the_process_ends() {
    promised(
        "After `umount -l` programs go on with what they have open, and the process behind the mount ends when they are done.",
    );
    let bed = Bed::start(1, 3, &[]);
    let mounted = Mount::point(&bed, "lazy");
    let pid = mount(&bed, &mounted);
    let mut file = File::create(mounted.path("file")).unwrap();
    file.write_all(b"before ").unwrap();
    let busy = std::process::Command::new("umount").arg(&mounted.0).output().unwrap();
    assert!(!busy.status.success(), "a mount that is in use goes away by umount -l only");

    umount(&["-l"], &mounted.0);
    assert_eq!(mounted.in_table(), None);
    file.write_all(b"and after").unwrap();
    drop(file);
    wait_for_end(pid);
    assert_eq!(fs::read(bed.mount().join("file")).unwrap(), b"before and after");
}

#[test]
fn sigterm_detaches_a_mount_in_use_and_flushes_what_was_written() {
    promised("the mount is detached, what was written is flushed, and the programs get `ENOTCONN`, or `ECONNABORTED`");
    let bed = Bed::start(1, 3, &[]);
    let mounted = Mount::point(&bed, "term");
    let pid = mount(&bed, &mounted);
    let mut file = File::create(mounted.path("file")).unwrap();
    file.write_all(b"never closed").unwrap();

    kill_process(pid, Signal::TERM).unwrap();
    wait_for_end(pid);
    assert_eq!(mounted.in_table(), None);
    // The process may still be closing its end when this call is sent.
    expect_cut_off(&file.write_all(b"x").unwrap_err());
    assert_eq!(fs::read(bed.mount().join("file")).unwrap(), b"never closed");
}

#[test]
fn sigkill_ends_every_call_and_the_folder_can_be_mounted_again_at_once() {
    promised("a new `dfs mount` on the same directory works at once.");
    let bed = Bed::start(1, 3, &[]);
    let mounted = Mount::point(&bed, "killed");
    let pid = mount(&bed, &mounted);
    fs::write(mounted.path("file"), b"synced").unwrap();
    File::open(mounted.path("file")).unwrap().sync_all().unwrap();
    let mut open = File::open(mounted.path("file")).unwrap();

    // A call that cannot end by itself soon: whom it asks does not answer.
    bed.cluster.signal("nn1", Signal::STOP).unwrap();
    let (told, calls) = mpsc::channel();
    let path = mounted.path("missing");
    let caller = std::thread::spawn(move || {
        told.send(()).unwrap();
        fs::metadata(path)
    });
    calls.recv_timeout(DEADLINE).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    wait_for_end(pid);
    // Without its process the kernel ends the call, whether it was under way by then or came after.
    let ended = caller.join().unwrap().unwrap_err();
    expect_cut_off(&ended);
    expect_errno(open.read(&mut [0; 8]), Errno::NOTCONN);
    expect_errno(fs::read_dir(&mounted.0), Errno::NOTCONN);
    bed.cluster.signal("nn1", Signal::CONT).unwrap();

    // With the old file still open, and without anybody having cleaned up.
    let again = mount(&bed, &mounted);
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"synced");
    drop(open);
    umount(&[], &mounted.0);
    assert_eq!(mounted.in_table(), None, "the dead mount below is gone as well");
    wait_for_end(again);
}

/// The mount's process is gone, or went while the call was under way.
fn expect_cut_off(error: &io::Error) {
    let errnos = [Errno::NOTCONN, Errno::CONNABORTED].map(|errno| Some(errno.raw_os_error()));
    assert!(errnos.contains(&error.raw_os_error()), "{error}");
}

#[test]
fn a_mount_that_dies_leaves_what_it_has_synced_and_its_directories_to_everybody() {
    promised("`fsync` of any file or directory stores all names and attributes that were changed before");
    let bed = Bed::start(3, 3, &[]);
    let mounted = Mount::point(&bed, "dies");
    let pid = mount_with(&bed, &mounted, "writebehind");
    let (top, there) = (mounted.path("top"), bed.mount().join("top"));
    fs::create_dir(&top).unwrap();
    for number in 0..200 {
        fs::create_dir_all(top.join(format!("d{number}/deep"))).unwrap();
        fs::rename(top.join(format!("d{number}/deep")), top.join(format!("d{number}/renamed"))).unwrap();
    }
    fs::write(top.join("d7/file"), b"synced").unwrap();
    File::open(top.join("d7/file")).unwrap().sync_all().unwrap();
    // The next leader has only the rows to tell it whose the directories are.
    let leader = bed.cluster.leader(DEADLINE).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    bed.cluster.kill(&leader).unwrap();
    wait_for_end(pid);
    // Waits until the lease of the dead mount is over.
    assert_eq!(fs::read_dir(&there).unwrap().count(), 200);
    for number in 0..200 {
        assert!(there.join(format!("d{number}/renamed")).is_dir(), "d{number}");
    }
    assert_eq!(fs::read(there.join("d7/file")).unwrap(), b"synced");
    fs::remove_dir_all(&there).unwrap();
    umount(&["-l"], &mounted.0);
    bed.cluster.start(&leader).unwrap();
    must(bed.cluster.output(["fsck"]).unwrap());
}

#[test]
fn private_directories_outlive_the_leader_and_are_seen_whole_after_it() {
    promised("Before another client sees anything in a private directory, all of it is committed");
    let bed = Bed::start(3, 3, &[]);
    let mounted = Mount::point(&bed, "private");
    mount_with(&bed, &mounted, "writebehind");
    let (here, there) = (mounted.path("top"), bed.mount().join("top"));
    fs::create_dir(&here).unwrap();
    for round in 0..3 {
        let dir = |top: &Path| top.join(format!("r{round}"));
        fs::create_dir(dir(&here)).unwrap();
        for number in 0..300 {
            fs::write(dir(&here).join(format!("f{number}")), format!("{number}")).unwrap();
        }
        let leader = bed.cluster.leader(DEADLINE).unwrap();
        bed.cluster.kill(&leader).unwrap();
        fs::write(dir(&here).join("last"), b"while nobody leads").unwrap();
        assert_eq!(fs::read_dir(dir(&there)).unwrap().count(), 301);
        for number in 0..300 {
            assert_eq!(fs::read_to_string(dir(&there).join(format!("f{number}"))).unwrap(), number.to_string());
        }
        assert_eq!(fs::read(dir(&there).join("last")).unwrap(), b"while nobody leads");
        bed.cluster.start(&leader).unwrap();
    }
    umount(&[], &mounted.0);
    must(bed.cluster.output(["fsck"]).unwrap());
}

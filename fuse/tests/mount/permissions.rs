//! Who may do what, on one mount.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::{NOBODY, as_nobody, expect, on_mount_as_root, set_mode};

const ENFORCED: &str = "Permission bits, owner, group and supplementary groups are enforced by the namenode for every \
    call, and by the kernel of the mount as well.";

#[test]
fn others_get_what_the_bits_give_them() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    let (secret, public) = (dir.path().join("secret"), dir.path().join("public"));
    fs::write(&secret, b"secret").unwrap();
    fs::write(&public, b"public").unwrap();
    set_mode(&secret, 0o600);
    set_mode(&public, 0o644);
    fs::create_dir(dir.path().join("closed")).unwrap();
    fs::write(dir.path().join("closed/file"), b"").unwrap();
    set_mode(&dir.path().join("closed"), 0o700);

    expect(&as_nobody(dir.path(), &[], "cat public"), true);
    for refused in [
        "cat secret",
        "echo x >> public",
        "echo x > new",
        "mkdir new",
        "rm -f public",
        "mv public other",
        "chmod 777 public",
        "touch -d @0 public",
        "chown 65534 public",
        "ls closed",
        "cat closed/file",
    ] {
        expect(&as_nobody(dir.path(), &[], refused), false);
    }
    assert_eq!(fs::read(&public).unwrap(), b"public");
}

#[test]
fn a_new_file_belongs_to_its_maker_and_obeys_the_umask() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    set_mode(dir.path(), 0o777);
    expect(&as_nobody(dir.path(), &[], "umask 027; echo x > file; mkdir directory; chmod 4711 file"), true);
    let file = fs::metadata(dir.path().join("file")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (NOBODY, NOBODY, 0o4711));
    assert_eq!(fs::metadata(dir.path().join("directory")).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn a_file_made_read_only_can_be_written_by_who_made_it() {
    let Some(dir) = on_mount_as_root("A descriptor keeps the access it was opened with, whatever `chmod` does later.")
    else {
        return;
    };
    set_mode(dir.path(), 0o777);
    expect(&as_nobody(dir.path(), &[], "umask 0777; echo written > file"), true);
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"written\n");
}

#[test]
fn a_descriptor_outlives_the_permission_it_was_opened_with() {
    let Some(dir) = on_mount_as_root("A descriptor keeps the access it was opened with, whatever `chmod` does later.")
    else {
        return;
    };
    let path = dir.path().join("file");
    fs::write(&path, b"open").unwrap();
    set_mode(&path, 0o644);
    let mut child = Command::new("sh")
        .args(["-c", "exec 3<file && echo opened && read go && cat <&3 && ! cat file 2>/dev/null"])
        .current_dir(dir.path())
        .uid(NOBODY)
        .gid(NOBODY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut opened = [0; 7];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut opened).unwrap();
    set_mode(&path, 0o600);
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = child.wait_with_output().unwrap();
    expect(&output, true);
    assert_eq!(output.stdout, b"open");
}

#[test]
fn supplementary_groups_count() {
    let Some(dir) = on_mount_as_root("Supplementary groups are those of the calling thread at the time of the call")
    else {
        return;
    };
    const GROUP: u32 = 4711;
    let shared = dir.path().join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(0), Some(GROUP)).unwrap();
    set_mode(&shared, 0o2770);

    expect(&as_nobody(dir.path(), &[1, GROUP], "echo x > shared/file && cat shared/file"), true);
    expect(&as_nobody(dir.path(), &[1], "cat shared/file"), false);
    expect(&as_nobody(dir.path(), &[], "ls shared"), false);
    assert_eq!(fs::metadata(shared.join("file")).unwrap().gid(), GROUP, "set-group-id directories pass on their group");
}

#[test]
fn in_a_sticky_directory_only_the_owner_removes() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    set_mode(dir.path(), 0o1777);
    fs::write(dir.path().join("roots"), b"").unwrap();
    set_mode(&dir.path().join("roots"), 0o666);
    expect(&as_nobody(dir.path(), &[], "rm -f roots"), false);
    expect(&as_nobody(dir.path(), &[], "mv roots mine"), false);
    expect(&as_nobody(dir.path(), &[], "echo x > mine && mv mine mine2 && rm mine2"), true);
}

#[test]
fn only_root_gives_files_away() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    set_mode(dir.path(), 0o777);
    let path = dir.path().join("file");
    expect(&as_nobody(dir.path(), &[], "echo x > file"), true);
    expect(&as_nobody(dir.path(), &[], "chown 0 file"), false);
    expect(&as_nobody(dir.path(), &[4711], "chgrp 4711 file"), true);
    expect(&as_nobody(dir.path(), &[], "chgrp 4712 file"), false);
    chown(&path, Some(1), Some(2)).unwrap();
    let stat = fs::metadata(&path).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (1, 2));
}

#[test]
fn writing_and_giving_away_clear_set_id_bits() {
    let Some(dir) =
        on_mount_as_root("Writing to a file or changing its owner clears its set-user-id and set-group-id bits.")
    else {
        return;
    };
    let path = dir.path().join("program");
    File::create(&path).unwrap();
    set_mode(&path, 0o6777);
    // `stat` asks for the mode alone, which the kernel may know: it is not told how the write has changed it.
    expect(&as_nobody(dir.path(), &[], "echo x >> program && test $(stat -c %a program) = 777"), true);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);

    set_mode(&path, 0o6777);
    chown(&path, Some(NOBODY), None).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
}

#[test]
fn a_program_may_be_run_without_being_readable() {
    let Some(dir) = on_mount_as_root(ENFORCED) else { return };
    let path = dir.path().join("program");
    fs::copy("/bin/true", &path).unwrap();
    set_mode(&path, 0o711);
    expect(&as_nobody(dir.path(), &[], "cat program"), false);
    expect(&as_nobody(dir.path(), &[], "./program"), true);
}

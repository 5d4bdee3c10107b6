//! How mounts begin: by mount(8) and fstab, of a part, as somebody else.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dfs_cluster::MountHelper;
use rustix::io::Errno;

use crate::bed::{Bed, program, promised};

/// A mount in a folder of the bed; unmounted with it, also when the test fails.
pub struct Mount(pub PathBuf);

impl Mount {
    /// A folder to mount on.
    pub fn point(bed: &Bed, name: &str) -> Mount {
        let dir = bed.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        Mount(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The line of the mount table: source, folder, type and options.
    pub fn in_table(&self) -> Option<String> {
        let table = fs::read_to_string("/proc/self/mounts").unwrap();
        table.lines().find(|line| line.split(' ').nth(1) == self.0.to_str()).map(str::to_owned)
    }

    /// By the program itself, with options.
    fn dfs(&self, bed: &Bed, options: &str) -> Output {
        bed.cluster.output(["mount", "-o", options, self.0.to_str().unwrap()]).unwrap()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        while self.in_table().is_some() {
            if !Command::new("umount").arg("-l").arg(&self.0).status().is_ok_and(|status| status.success()) {
                return;
            }
        }
    }
}

pub fn must(output: Output) {
    assert!(output.status.success(), "{output:?}");
}

pub fn expect_errno<T: std::fmt::Debug>(result: io::Result<T>, errno: Errno) {
    match result {
        Err(error) if error.raw_os_error() == Some(errno.raw_os_error()) => {}
        other => panic!("{errno:?} was expected, not {other:?}"),
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn an_fstab_line_is_mounted_remounted_and_unmounted_by_the_usual_commands() {
    promised("`mount -t dfs` and lines of `/etc/fstab` work");
    promised("A mount with `ro` refuses every change with `EROFS`.");
    if !is_root() {
        return;
    }
    let bed = Bed::start(1, 3, &[]);
    fs::create_dir_all(bed.mount().join("projects/inner")).unwrap();
    fs::write(bed.mount().join("projects/file"), b"there").unwrap();
    let _helper = MountHelper::install(&program()).unwrap();
    let mounted = Mount::point(&bed, "by fstab");
    let (table, config) = (bed.dir.path().join("fstab"), bed.cluster.config());
    let folder = mounted.0.to_str().unwrap().replace(' ', "\\040");
    let line = |options: &str| format!("{} {folder} dfs {options} 0 0\n", config.display());
    let mount = |arguments: &[&str]| Command::new("mount").arg("-T").arg(&table).args(arguments).output().unwrap();

    fs::write(&table, line("ro,nofail,_netdev,x-systemd.automount,subdir=/projects,deadline=20s,soft")).unwrap();
    must(mount(&["-a"]));
    assert_eq!(fs::read(mounted.path("file")).unwrap(), b"there");
    let shown =
        Command::new("findmnt").args(["-n", "-o", "SOURCE,FSTYPE", "--mountpoint"]).arg(&mounted.0).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let shown: Vec<&str> = shown.split_whitespace().collect();
    assert_eq!(shown, [config.to_str().unwrap(), "fuse.dfs"]);
    for refused in [fs::write(mounted.path("new"), b""), fs::write(mounted.path("file"), b"")] {
        expect_errno(refused, Errno::ROFS);
    }
    expect_errno(fs::remove_dir(mounted.path("inner")), Errno::ROFS);
    expect_errno(fs::set_permissions(mounted.path("file"), fs::Permissions::from_mode(0o600)), Errno::ROFS);
    // It is seen to be mounted: no second mount on top of the first.
    must(mount(&["-a"]));
    let table_now = fs::read_to_string("/proc/self/mounts").unwrap();
    assert_eq!(table_now.matches("by\\040fstab").count(), 1);

    must(mount(&["-o", "remount,rw", mounted.0.to_str().unwrap()]));
    fs::write(mounted.path("new"), b"written").unwrap();
    assert_eq!(fs::read(bed.mount().join("projects/new")).unwrap(), b"written");
    must(mount(&["-o", "remount,ro", mounted.0.to_str().unwrap()]));
    expect_errno(fs::remove_file(mounted.path("new")), Errno::ROFS);

    must(Command::new("umount").arg(&mounted.0).output().unwrap());
    assert_eq!(fs::read_dir(&mounted.0).unwrap().count(), 0);

    fs::write(&table, line("defaults,frobnicate")).unwrap();
    let refused = mount(&[mounted.0.to_str().unwrap()]);
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("frobnicate"),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(&mounted.0).unwrap().count(), 0);
}

#[test]
fn a_subdir_is_all_that_its_mount_shows() {
    promised(
        "nothing outside of it can be reached through the mount, and `..` at the top is the directory that holds the mount point.",
    );
    let bed = Bed::start(1, 3, &[]);
    let whole = bed.mount();
    fs::create_dir_all(whole.join("a/b/inside")).unwrap();
    fs::write(whole.join("a/secret"), b"outside").unwrap();
    let part = Mount::point(&bed, "part");
    must(part.dfs(&bed, "subdir=/a/b"));

    assert_eq!(fs::read_dir(&part.0).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>(), ["inside"]);
    // Up from the top is the folder that holds the mount point, and the cluster's directory is not to be seen there.
    let above = fs::metadata(part.path("inside/../..")).unwrap();
    let local = fs::metadata(bed.dir.path()).unwrap();
    assert_eq!((above.dev(), above.ino()), (local.dev(), local.ino()));
    expect_errno(fs::read(part.path("inside/../../secret")), Errno::NOENT);
    expect_errno(fs::read(part.path("../a/secret")), Errno::NOENT);
    std::os::unix::fs::symlink("../secret", part.path("way-out")).unwrap();
    expect_errno(fs::read(part.path("way-out")), Errno::NOENT);

    // Both show one directory, by its names and its number.
    fs::write(part.path("new"), b"1").unwrap();
    fs::rename(part.path("new"), part.path("inside/new")).unwrap();
    assert_eq!(fs::read(whole.join("a/b/inside/new")).unwrap(), b"1");
    set_mode(&part.0, 0o711);
    let (top, same) = (fs::metadata(&part.0).unwrap(), fs::metadata(whole.join("a/b")).unwrap());
    assert_eq!((top.ino(), top.mode(), top.nlink()), (same.ino(), same.mode(), same.nlink()));
    // Held by its number: moved by another mount it stays the top.
    fs::rename(whole.join("a/b"), whole.join("moved")).unwrap();
    assert_eq!(fs::read(part.path("inside/new")).unwrap(), b"1");

    let other = Mount::point(&bed, "other");
    for (wrong, why) in [("/nowhere", "there is no `nowhere`"), ("/a/secret", "not a directory"), ("/a/../a", "..")] {
        let refused = other.dfs(&bed, &format!("subdir={wrong}"));
        assert!(!refused.status.success(), "{wrong}: {refused:?}");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains(why), "{wrong}: {said}");
        assert_eq!(other.in_table(), None);
    }
}

#[test]
fn squashed_users_are_somebody_else_to_the_cluster() {
    promised(
        "`root_squash` makes root, and the group of root, another user to the cluster; `all_squash` makes everybody so",
    );
    if !is_root() {
        return;
    }
    let bed = Bed::start(1, 3, &[]);
    set_mode(bed.dir.path(), 0o755);
    set_mode(&bed.mount(), 0o1777);
    fs::write(bed.mount().join("of-root"), b"secret").unwrap();
    set_mode(&bed.mount().join("of-root"), 0o600);

    let squashed = Mount::point(&bed, "root-squash");
    must(squashed.dfs(&bed, "root_squash"));
    expect_errno(fs::read(squashed.path("of-root")), Errno::ACCESS);
    expect_errno(std::os::unix::fs::chown(squashed.path("of-root"), Some(5), None), Errno::PERM);
    fs::write(squashed.path("mine"), b"").unwrap();
    let owner = |path: &Path| fs::metadata(path).map(|stat| (stat.uid(), stat.gid())).unwrap();
    assert_eq!(owner(&squashed.path("mine")), (65534, 65534));
    must(as_user(1000, &squashed.0, "echo x >of-1000"));
    assert_eq!(owner(&squashed.path("of-1000")), (1000, 1000));

    let all = Mount::point(&bed, "all-squash");
    must(all.dfs(&bed, "all_squash,anonuid=1234,anongid=1235"));
    must(as_user(1000, &all.0, "echo by-1000 >shared && chmod 600 shared"));
    assert_eq!(owner(&all.path("shared")), (1234, 1235));
    // Who it is here makes no difference: they are all one user there.
    must(as_user(1001, &all.0, "echo by-1001 >>shared && mv shared renamed && chmod 640 renamed"));
    fs::write(all.path("of-local-root"), b"").unwrap();
    assert_eq!(owner(&all.path("of-local-root")), (1234, 1235));
    assert!(!as_user(1000, &all.0, "cat of-root").status.success());
    assert!(!as_user(1000, &all.0, "rm -f of-1000").status.success(), "another's file in a sticky directory");
    assert_eq!(fs::read_to_string(bed.mount().join("renamed")).unwrap(), "by-1000\nby-1001\n");
}

fn as_user(id: u32, dir: &Path, script: &str) -> Output {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={id}"), &format!("--regid={id}"), "--clear-groups", "sh", "-c", script]);
    command.current_dir(dir).output().expect("setpriv of util-linux")
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

//! Extended attributes.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{
    XattrFlags, fgetxattr, fsetxattr, getxattr, getxattr_query, lgetxattr, listxattr, listxattr_query, llistxattr,
    lsetxattr, removexattr, setxattr,
};
use rustix::io::Errno;

use crate::{as_nobody, expect, on_mount, on_mount_as_root, on_two_mounts, set_mode};

const AS_EXT4: &str = "Extended attributes in `user`, `trusted` and `security` work as on ext4, with names of up to 255 \
    bytes and values of up to 65,536.";

fn get(path: &Path, name: &str) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 65_536];
    let len = getxattr(path, name, &mut buffer[..])?;
    buffer.truncate(len);
    Ok(buffer)
}

fn names(path: &Path) -> Vec<String> {
    let mut buffer = vec![0; 65_536];
    let len = listxattr(path, &mut buffer[..]).unwrap();
    split(&buffer[..len])
}

/// The names in a list as the kernel gives it: a NUL behind each.
fn split(list: &[u8]) -> Vec<String> {
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names.map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

fn set(path: &Path, name: &str, value: &[u8]) -> Result<(), Errno> {
    setxattr(path, name, value, XattrFlags::empty())
}

/// What `setcap cap_net_raw+ep` stores.
fn capability() -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&0x0200_0001u32.to_le_bytes());
    bytes[4..8].copy_from_slice(&0x2000u32.to_le_bytes());
    bytes
}

#[test]
fn an_attribute_is_what_it_was_set_to() {
    let Some(dir) = on_mount(AS_EXT4) else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    assert_eq!(get(&path, "user.a"), Err(Errno::NODATA));
    assert!(names(&path).is_empty());
    for path in [path.as_path(), dir.path()] {
        set(path, "user.a", b"1").unwrap();
        set(path, "user.b", b"").unwrap();
        set(path, "user.a", b"\0\xff").unwrap();
        assert_eq!(get(path, "user.a").unwrap(), b"\0\xff");
        assert_eq!(get(path, "user.b").unwrap(), b"");
        assert_eq!(names(path), ["user.a", "user.b"]);
        removexattr(path, "user.a").unwrap();
        assert_eq!(removexattr(path, "user.a"), Err(Errno::NODATA));
        assert_eq!(names(path), ["user.b"]);
    }
    let file = File::open(&path).unwrap();
    fsetxattr(&file, "user.c", b"3", XattrFlags::empty()).unwrap();
    assert_eq!(fgetxattr(&file, "user.c", &mut [0; 9][..]), Ok(1));
    // It stays with the file, whatever that is called.
    fs::rename(&path, dir.path().join("renamed")).unwrap();
    assert_eq!(get(&dir.path().join("renamed"), "user.c").unwrap(), b"3");
    fs::remove_file(dir.path().join("renamed")).unwrap();
    assert_eq!(fgetxattr(&file, "user.c", &mut [0; 9][..]), Ok(1));
}

#[test]
fn flags_and_buffers_are_obeyed() {
    let Some(dir) = on_mount(AS_EXT4) else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    assert_eq!(setxattr(&path, "user.a", b"1", XattrFlags::REPLACE), Err(Errno::NODATA));
    setxattr(&path, "user.a", b"12345", XattrFlags::CREATE).unwrap();
    assert_eq!(setxattr(&path, "user.a", b"1", XattrFlags::CREATE), Err(Errno::EXIST));
    setxattr(&path, "user.a", b"123456", XattrFlags::REPLACE).unwrap();
    assert_eq!(getxattr_query(&path, "user.a"), Ok(6));
    assert_eq!(getxattr(&path, "user.a", &mut [0; 5][..]), Err(Errno::RANGE));
    assert_eq!(getxattr(&path, "user.a", &mut [0; 6][..]), Ok(6));
    assert_eq!(listxattr_query(&path), Ok(7));
    assert_eq!(listxattr(&path, &mut [0; 6][..]), Err(Errno::RANGE));
}

#[test]
fn a_change_of_an_attribute_changes_ctime_only() {
    let Some(dir) = on_mount(AS_EXT4) else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    let times = || {
        let stat = fs::metadata(&path).unwrap();
        ((stat.ctime(), stat.ctime_nsec()), (stat.mtime(), stat.mtime_nsec()))
    };
    let made = times();
    set(&path, "user.a", b"1").unwrap();
    let set = times();
    removexattr(&path, "user.a").unwrap();
    let removed = times();
    assert!(made.0 < set.0 && set.0 < removed.0);
    assert!(made.1 == set.1 && set.1 == removed.1);
}

#[test]
fn sizes_have_limits() {
    let Some(dir) = on_mount(
        "The names of one file have at most 65,536 bytes together, and all its attributes 256 KiB, where each counts 64 \
         bytes more than its name and value; beyond that `ENOSPC`.",
    ) else {
        return;
    };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    let longest = format!("user.{}", "x".repeat(250));
    set(&path, &longest, b"1").unwrap();
    assert_eq!(set(&path, &format!("{longest}x"), b"1"), Err(Errno::RANGE));
    removexattr(&path, &longest).unwrap();

    let value = crate::noise(1, 65_536);
    for name in ["user.a", "user.b", "user.c"] {
        set(&path, name, &value).unwrap();
        assert!(get(&path, name).unwrap() == value);
    }
    assert_eq!(set(&path, "user.d", &value), Err(Errno::NOSPC));
    assert_eq!(set(&path, "user.d", &[0; 65_537]), Err(Errno::TOOBIG));
    set(&path, "user.a", b"short").unwrap();
    set(&path, "user.d", &value).unwrap();
}

#[test]
fn other_namespaces_are_refused() {
    let Some(dir) = on_mount("Other namespaces fail with `EOPNOTSUPP`.") else { return };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    for name in ["nonsense", "system.nonsense", "os2.a"] {
        assert_eq!(set(&path, name, b"1"), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(get(&path, name), Err(Errno::OPNOTSUPP), "{name}");
        assert_eq!(removexattr(&path, name), Err(Errno::OPNOTSUPP), "{name}");
    }
    assert_eq!(set(&path, "user.", b"1"), Err(Errno::INVAL));
}

#[test]
fn each_namespace_has_its_rules() {
    let Some(dir) = on_mount_as_root(
        "`user` attributes are for files and directories, read by who may read the file and written by who may write it, \
         in a sticky directory only by its owner. `trusted` attributes exist for root only. `security` attributes are read \
         by everybody and written by root.",
    ) else {
        return;
    };
    let path = dir.path().join("file");
    File::create(&path).unwrap();
    for name in ["user.a", "trusted.a", "security.a"] {
        set(&path, name, b"1").unwrap();
    }
    assert_eq!(names(&path), ["security.a", "trusted.a", "user.a"]);
    fs::create_dir(dir.path().join("sticky")).unwrap();
    set_mode(&dir.path().join("sticky"), 0o1777);

    let nobody = |script: &str, success| expect(&as_nobody(dir.path(), &[], script), success);
    nobody("test \"$(getfattr --only-values -n user.a file)\" = 1", true);
    nobody("test \"$(getfattr --only-values -n security.a file)\" = 1", true);
    nobody("getfattr -n trusted.a file", false);
    nobody("getfattr -m - file | grep -q trusted", false);
    nobody("getfattr -m - file | grep -q security.a", true);
    for name in ["user.a", "trusted.a", "security.a"] {
        nobody(&format!("setfattr -n {name} -v 2 file"), false);
        nobody(&format!("setfattr -x {name} file"), false);
    }
    nobody("setfattr -n user.a -v 2 sticky", false);
    set_mode(&path, 0o622);
    nobody("getfattr -n user.a file", false);
    nobody("setfattr -n user.a -v 2 file", true);
    assert_eq!(get(&path, "user.a").unwrap(), b"2");

    let link = dir.path().join("link");
    symlink("file", &link).unwrap();
    assert_eq!(lsetxattr(&link, "user.a", b"1", XattrFlags::empty()), Err(Errno::PERM));
    lsetxattr(&link, "trusted.a", b"1", XattrFlags::empty()).unwrap();
    assert_eq!(lgetxattr(&link, "trusted.a", &mut [0; 9][..]), Ok(1));
    let mut buffer = [0; 99];
    let len = llistxattr(&link, &mut buffer[..]).unwrap();
    assert_eq!(split(&buffer[..len]), ["trusted.a"]);
}

#[test]
fn a_capability_goes_when_the_file_changes() {
    let Some(dir) =
        on_mount_as_root("`security.capability` is taken away by the first change of the file's bytes or owner.")
    else {
        return;
    };
    const NAME: &str = "security.capability";
    let path = dir.path().join("program");
    fs::write(&path, b"program").unwrap();
    let grant = || {
        set(&path, NAME, &capability()).unwrap();
        set(&path, "user.stays", b"1").unwrap();
        assert_eq!(get(&path, NAME).unwrap(), capability());
    };
    let is_gone = || {
        assert_eq!(get(&path, NAME), Err(Errno::NODATA));
        assert_eq!(names(&path), ["user.stays"]);
    };
    grant();
    assert_eq!(fs::read(&path).unwrap(), b"program");
    set_mode(&path, 0o777);
    assert_eq!(get(&path, NAME).unwrap(), capability());

    File::options().append(true).open(&path).unwrap().write_all(b"x").unwrap();
    is_gone();
    grant();
    // The first write, not the close.
    let mut file = File::options().write(true).open(&path).unwrap();
    file.write_all(b"x").unwrap();
    is_gone();
    drop(file);
    grant();
    expect(&as_nobody(dir.path(), &[], "echo x >> program"), true);
    is_gone();
    grant();
    File::options().write(true).open(&path).unwrap().set_len(3).unwrap();
    is_gone();
    grant();
    File::options().write(true).truncate(true).open(&path).unwrap();
    is_gone();
    grant();
    chown(&path, Some(1), None).unwrap();
    is_gone();
}

#[test]
fn attributes_show_on_the_other_mount() {
    let Some((dir, other)) =
        on_two_mounts("An extended attribute that was changed on another mount shows at the next call here")
    else {
        return;
    };
    let (here, there) = (dir.path().join("file"), other.join("file"));
    File::create(&here).unwrap();
    for round in 0..20u8 {
        assert!(names(&there).is_empty());
        set(&here, "user.a", &[round]).unwrap();
        assert_eq!(names(&there), ["user.a"]);
        assert_eq!(get(&there, "user.a").unwrap(), [round]);
        removexattr(&there, "user.a").unwrap();
        assert_eq!(get(&here, "user.a"), Err(Errno::NODATA));
        assert!(names(&here).is_empty());
    }
}

#[test]
fn copies_take_attributes_and_acls_along() {
    let Some(dir) = on_mount_as_root(AS_EXT4) else { return };
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), b"bytes").unwrap();
    set(&from.join("file"), "user.a", &crate::noise(2, 3000)).unwrap();
    set(&from.join("file"), "trusted.a", b"t").unwrap();
    set(&from.join("file"), "security.capability", &capability()).unwrap();
    set(&from, "user.dir", b"d").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(dir.path()).output().unwrap();
        expect(&output, true);
        output.stdout
    };
    run("setfacl", &["-m", "u:nobody:rw,g:nogroup:r,m::rwx", "from/file"]);
    run("setfacl", &["-d", "-m", "u:nobody:rwx", "from"]);
    let all = |at: &str| (run("getfacl", &["-R", "-n", "-c", "-p", at]), names(&dir.path().join(at).join("file")));
    run("cp", &["-a", "from", "copied"]);
    run("rsync", &["-aAX", "from/", "synced/"]);
    for to in ["copied", "synced"] {
        assert_eq!(all(to), all("from"), "{to}");
        for (name, file) in
            [("user.a", "file"), ("trusted.a", "file"), ("security.capability", "file"), ("user.dir", "")]
        {
            let (from, to) = (dir.path().join("from").join(file), dir.path().join(to).join(file));
            assert!(get(&to, name).unwrap() == get(&from, name).unwrap(), "{name} {}", to.display());
        }
    }
}

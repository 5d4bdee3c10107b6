//! What must be on the machine before anything can be built or mounted.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::programs::PYTHON;
use crate::run::must;

/// Debian packages, and a file or program that shows that each is there.
type Package = (&'static str, &'static [&'static str]);

/// To build and to mount.
const NEEDED: [Package; 4] = [
    ("libclang-dev", &["/usr/lib/llvm-14/lib", "/usr/lib/llvm-15/lib", "/usr/lib/llvm-16/lib", "/usr/lib/llvm-19/lib"]),
    ("g++", &["/usr/bin/g++"]),
    ("fuse3", &["/usr/bin/fusermount3", "/bin/fusermount3"]),
    ("xfsprogs", &["/usr/sbin/mkfs.xfs", "/sbin/mkfs.xfs"]),
];

/// What `programs` runs on the mount. libacl1-dev is what pjdfstest is linked with.
const FOR_PROGRAMS: [Package; 10] = [
    ("acl", &["/usr/bin/setfacl", "/bin/setfacl"]),
    ("attr", &["/usr/bin/setfattr", "/bin/setfattr"]),
    ("git", &["/usr/bin/git", "/usr/local/bin/git"]),
    ("python3", &[PYTHON]),
    ("sqlite3", &["/usr/bin/sqlite3"]),
    ("rsync", &["/usr/bin/rsync"]),
    ("fio", &["/usr/bin/fio"]),
    ("stress-ng", &["/usr/bin/stress-ng"]),
    ("dbench", &["/usr/bin/dbench"]),
    ("libacl1-dev", &["/usr/include/sys/acl.h"]),
];

/// What `bench peers` compares with.
const PEERS: [Package; 6] = [
    ("moosefs-master", &["/usr/sbin/mfsmaster"]),
    ("moosefs-chunkserver", &["/usr/sbin/mfschunkserver"]),
    ("moosefs-client", &["/usr/bin/mfsmount"]),
    ("moosefs-cli", &["/usr/bin/mfscli"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip", "/bin/ip"]),
    ("git", &["/usr/bin/git", "/usr/local/bin/git"]),
];

/// What `torture` makes faults with.
const FOR_TORTURE: [Package; 4] = [
    ("faketime", &["/usr/bin/faketime"]),
    ("strace", &["/usr/bin/strace"]),
    ("iproute2", &["/usr/sbin/ip", "/sbin/ip"]),
    ("nftables", &["/usr/sbin/nft", "/sbin/nft"]),
];

/// Installs what is missing to build and mount, or says exactly what to install.
pub fn install() -> Result<()> {
    install_missing(&NEEDED)?;
    if !Path::new("/dev/fuse").exists() {
        bail!("/dev/fuse is not there: this kernel or container does not offer FUSE (try `modprobe fuse`)");
    }
    Ok(())
}

/// As `install`, for the programs that are tried on the mount.
pub fn install_for_programs() -> Result<()> {
    install_missing(&FOR_PROGRAMS)
}

/// As `install`, for Python's tests: the package has the version in its name.
pub fn install_python_tests() -> Result<()> {
    let version = Command::new(PYTHON).args(["-c", "import sys; print('%d.%d' % sys.version_info[:2])"]).output();
    let version = String::from_utf8(version.with_context(|| format!("{PYTHON} of Debian's python3"))?.stdout)?;
    let version = version.trim();
    let tests = format!("/usr/lib/python{version}/test/test_os.py");
    match Path::new(&tests).exists() {
        true => Ok(()),
        false => install_packages(&[&format!("libpython{version}-testsuite")]),
    }
}

/// As `install`, for the comparison.
pub fn install_peers() -> Result<()> {
    install_missing(&PEERS)
}

/// As `install`, for the faults that are tried on a cluster.
pub fn install_for_torture() -> Result<()> {
    install_missing(&FOR_TORTURE)
}

fn install_missing(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().filter(|(_, signs)| !is_there(signs)).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { install_packages(&missing) }
}

fn install_packages(missing: &[&str]) -> Result<()> {
    let line = format!("apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("missing packages; as root, run:\n\n    apt-get update && {line}\n\nand then this again");
    }
    eprintln!("installing {}", missing.join(" "));
    must(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(missing);
    must(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_there(signs: &[&str]) -> bool {
    signs.iter().any(|sign| match sign.strip_suffix("/lib") {
        // A folder of LLVM counts only with the library that bindgen loads.
        Some(_) => std::fs::read_dir(sign).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libclang")))
        }),
        None => Path::new(sign).exists(),
    })
}

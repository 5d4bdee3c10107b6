//! Programs that are made to find faults by load: fio, stress-ng, dbench.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Place;
use super::run::run;

const DEADLINE: Duration = Duration::from_secs(150);

/// Every block carries its own checksum; two jobs at a time.
pub fn fio(place: &Place) -> Result<String> {
    let jobs = [
        ("random", ["--rw=randwrite", "--bs=64k", "--ioengine=psync", "--fsync=16"]),
        ("sequential", ["--rw=write", "--bs=256k", "--ioengine=psync", "--end_fsync=1"]),
        ("mapped", ["--rw=randwrite", "--bs=16k", "--ioengine=mmap", "--fsync=64"]),
        ("odd", ["--rw=randrw", "--bsrange=512-40k", "--ioengine=psync", "--bs_unaligned=1"]),
    ];
    for (name, arguments) in jobs {
        let mut fio = Command::new("fio");
        fio.arg(format!("--name={name}")).arg("--directory").arg(&place.dir).args(arguments);
        fio.args(["--size=12m", "--numjobs=2", "--verify=xxhash", "--verify_fatal=1", "--do_verify=1"]);
        // It leaves its notes on what is verified where it was started.
        fio.current_dir(&place.local);
        run(&format!("fio-{name}"), &place.logs, &mut fio, DEADLINE)?;
    }
    Ok(format!("{} patterns", jobs.len()))
}

/// The stressors of the file system class, all at once. Left out are:
/// bind-mount, binderfs, dup, eventfd, funccall, io, ioprio, procfs: not about the file system they run in;
/// chdir, link, symlink: make 8192 names each and take them away one by one, for which there is no time here;
/// fiemap, verity: FUSE has no such calls, and they skip themselves;
/// file-ioctl, inode-flags, chattr: FUSE passes no ioctl on, so they would try nothing;
/// open: wants 20,000 descriptors at once, which is a test of the machine;
/// xattr: skips itself as long as there are no extended attributes.
const STRESSORS: [&str; 34] = [
    "access",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dnotify",
    "fallocate",
    "fanotify",
    "fcntl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "handle",
    "hdd",
    "inotify",
    "iomix",
    "lease",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "rename",
    "seek",
    "sync-file",
    "touch",
    "utime",
    "mmap",
    "readahead",
];

pub fn stress_ng(place: &Place) -> Result<String> {
    let mut stress = Command::new("stress-ng");
    for stressor in STRESSORS {
        stress.arg(format!("--{stressor}")).arg("1");
    }
    // Small pieces: most of it is the number of calls, and what is left over is removed one by one.
    stress.args(["--dentries", "64", "--hdd-bytes", "8m", "--iomix-bytes", "8m", "--fallocate-bytes", "16m"]);
    stress.args(["--dirdeep-bytes", "1m", "--sync-file-bytes", "4m", "--seek-size", "8m", "--readahead-bytes", "8m"]);
    stress.args(["--mmap-bytes", "4m", "--mmap-file", "--verify", "--no-rand-seed", "--timeout", "12s"]);
    stress.arg("--temp-path").arg(&place.dir).current_dir(&place.local);
    let said = run("stress-ng", &place.logs, &mut stress, DEADLINE)?;
    ensure!(said.contains("successful run completed"), "no stressor may fail:\n{said}");
    let skipped: Vec<&str> = said.lines().filter(|line| line.contains("skip")).collect();
    ensure!(skipped.is_empty(), "all that are listed must run:\n{}", skipped.join("\n"));
    Ok(format!("{} stressors", STRESSORS.len()))
}

/// The load of a file server.
pub fn dbench(place: &Place) -> Result<String> {
    let mut dbench = Command::new("dbench");
    dbench.args(["-t", "8", "-c", "/usr/share/dbench/client.txt", "-D"]).arg(&place.dir).arg("2");
    let said = run("dbench", &place.logs, &mut dbench, DEADLINE)?;
    let rate = said.lines().rfind(|line| line.starts_with("Throughput"));
    // The semaphore is for its processes to begin together. It goes on without, and says nothing of files by that.
    let failed = |line: &str| line.contains("failed") && !line.contains("barrier semaphore");
    ensure!(rate.is_some() && !said.lines().any(failed), "dbench says:\n{said}");
    Ok(rate.unwrap_or_default().to_owned())
}

//! Clocks that are wrong: a node's wall clock jumps while it runs or runs at another rate, or its monotonic clocks stand
//! elsewhere than those of the others.
//!
//! The kernel has one wall clock for everybody. libfaketime, loaded before the C library of one process, adds an offset
//! to what that process is told, and reads the offset from a file at every question. What asks the kernel without the C
//! library (leases do, by way of rustix) is not reached by it: the monotonic clocks are left alone here, and are moved by
//! a time namespace instead, which the kernel itself applies to every question.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Fault, poll_until, tool};
use crate::local::Cluster;

/// Where Debian's libfaketime is, by architecture. The variant for programs with threads.
pub const LIBRARIES: [&str; 2] =
    ["/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1", "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"];

/// For a process that was just started to have loaded its libraries.
const LOADED_DEADLINE: Duration = Duration::from_secs(20);

/// libfaketime's shared memory of processes that are killed stays behind. Dropped when they are gone, this removes what
/// has come since it was made.
pub struct Leftovers(BTreeSet<PathBuf>);

impl Leftovers {
    pub fn watch() -> Leftovers {
        Leftovers(shared_memory())
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        for path in shared_memory().difference(&self.0) {
            // Its process may have removed it a moment ago.
            let _ = fs::remove_file(path);
        }
    }
}

/// Segments and semaphores with which libfaketime shares a start time among processes.
fn shared_memory() -> BTreeSet<PathBuf> {
    let entries = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let ours = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains("faketime_"));
    entries.map(|entry| entry.path()).filter(ours).collect()
}

/// Nodes and mounts whose wall clocks can be set.
pub struct Clocks {
    library: &'static str,
    /// The file with its offset, for each of them.
    offsets: BTreeMap<String, PathBuf>,
}

impl Clocks {
    /// Starts these processes anew, each with a clock that can be set and still tells the true time. The files are kept
    /// in `dir`.
    pub fn install(cluster: &Cluster, names: &[String], dir: &Path) -> Result<Clocks> {
        let library = LIBRARIES
            .into_iter()
            .find(|path| Path::new(path).exists())
            .context("libfaketime is missing: apt-get install faketime")?;
        let offsets = names.iter().map(|name| (name.clone(), dir.join(format!("{name}.clock")))).collect();
        let clocks = Clocks { library, offsets };
        names.iter().try_for_each(|name| cluster.kill(name))?;
        for name in names {
            clocks.set(name, 0)?;
            clocks.start(cluster, name, &[])?;
        }
        Ok(clocks)
    }

    /// The wall clock of a process jumps by so many seconds. Undone, it jumps back.
    pub fn jump(&self, name: &str, seconds: i64) -> Result<Fault<'_>> {
        self.set(name, seconds)?;
        let back = name.to_owned();
        Ok(Fault::new(format!("clock of {name} {seconds:+} s"), move || self.set(&back, 0)))
    }

    /// A process is killed and started where the clocks that nobody sets are ahead by so many seconds. Undone, it is
    /// killed again and started with the clocks of all.
    pub fn start_ahead<'a>(&'a self, cluster: &'a Cluster, name: &str, seconds: u64) -> Result<Fault<'a>> {
        cluster.kill(name)?;
        let seconds = seconds.to_string();
        let back = name.to_owned();
        let fault = Fault::new(format!("monotonic clocks of {name} {seconds} s ahead"), move || {
            cluster.kill(&back)?;
            self.start(cluster, &back, &[])
        });
        self.start(cluster, name, &["unshare", "--time", "--monotonic", &seconds, "--boottime", &seconds])?;
        Ok(fault)
    }

    /// A process is killed and started with a wall clock that begins with the true time and runs at so many percent of
    /// its rate. Undone, it is killed again and started with the time of all.
    pub fn start_at_rate<'a>(&'a self, cluster: &'a Cluster, name: &str, percent: u64) -> Result<Fault<'a>> {
        cluster.kill(name)?;
        let back = name.to_owned();
        // Once libfaketime has read a rate it keeps it for as long as the process lives.
        let fault = Fault::new(format!("clock of {name} at {percent} %"), move || {
            cluster.kill(&back)?;
            self.set(&back, 0)?;
            self.start(cluster, &back, &[])
        });
        self.write(name, &format!("+0 x{}.{:02}\n", percent / 100, percent % 100))?;
        self.start(cluster, name, &[])?;
        Ok(fault)
    }

    fn file(&self, name: &str) -> Result<&Path> {
        Ok(self.offsets.get(name).with_context(|| format!("the clock of {name} cannot be set"))?)
    }

    fn set(&self, name: &str, seconds: i64) -> Result<()> {
        self.write(name, &format!("{seconds:+}\n"))
    }

    /// Written aside and renamed: half an offset would be another one.
    fn write(&self, name: &str, text: &str) -> Result<()> {
        let file = self.file(name)?;
        let new = file.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(&new, file))?;
        Ok(())
    }

    /// Runs the start script below `prefix`, with the library, and waits until the process has loaded it.
    fn start(&self, cluster: &Cluster, name: &str, prefix: &[&str]) -> Result<()> {
        let script = cluster.dir().join(format!("{name}.start"));
        let mut command = match prefix {
            [] => Command::new(&script),
            [program, args @ ..] => {
                let mut command = Command::new(program);
                command.args(args).arg(&script);
                command
            }
        };
        command.env("LD_PRELOAD", self.library).env("FAKETIME_TIMESTAMP_FILE", self.file(name)?);
        command.env("FAKETIME_NO_CACHE", "1").env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        tool(&mut command)?;
        let loaded = || {
            let maps = fs::read_to_string(format!("/proc/{}/maps", cluster.pid(name)?.as_raw_nonzero()));
            ensure!(maps.is_ok() || cluster.is_running(name), "{name} has ended: {}", cluster.log_tail(name, 5));
            Ok(maps.is_ok_and(|maps| maps.contains("libfaketime")))
        };
        poll_until(LOADED_DEADLINE, &format!("{name} loads libfaketime"), loaded)
    }
}

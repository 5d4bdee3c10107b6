//! Running somebody else's program: with a deadline, and with what it said at hand when it fails.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// How often it is looked whether a program has ended.
const POLL: Duration = Duration::from_millis(10);

/// How long a killed program may take to be gone. One that hangs in the file system never is.
const DEATH: Duration = Duration::from_secs(20);

/// Lines of a program's output that are shown when it fails.
const TAIL_LINES: usize = 40;

/// A program that runs in a process group of its own, its output in a file.
pub struct Running {
    name: String,
    child: Child,
    log: PathBuf,
    end: Instant,
}

impl Running {
    /// `deadline` counts from now.
    pub fn start(name: &str, logs: &Path, command: &mut Command, deadline: Duration) -> Result<Running> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).process_group(0);
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        Ok(Running { name: name.to_owned(), child, log, end: Instant::now() + deadline })
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// What it printed. An exit code other than 0, or no end before the deadline, is an error.
    pub fn finish(mut self) -> Result<String> {
        let ended = wait(&mut self.child, self.end)?;
        if ended.is_none() {
            kill_group(&mut self.child)?;
        }
        let said = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        match ended {
            Some(status) if status.success() => Ok(said),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, tail(&said)),
            None => bail!("{} did not end in time:\n{}", self.name, tail(&said)),
        }
    }
}

/// Starts and finishes.
pub fn run(name: &str, logs: &Path, command: &mut Command, deadline: Duration) -> Result<String> {
    Running::start(name, logs, command, deadline)?.finish()
}

/// `None` if the process still runs at `end`.
pub fn wait(child: &mut Child, end: Instant) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// SIGKILL to a program and all that it has started. Fails if it does not die: then a system call hangs.
pub fn kill_group(child: &mut Child) -> Result<()> {
    let group = Pid::from_child(child);
    // Gone already is as good.
    let _ = kill_process_group(group, Signal::KILL);
    match wait(child, Instant::now() + DEATH)? {
        Some(_) => Ok(()),
        None => bail!("process {} cannot be killed: it hangs in a system call", group.as_raw_nonzero()),
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

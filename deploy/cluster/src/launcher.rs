//! Starts programs from a process that has nothing open.
//!
//! A process that is forked off has its parent's files open and closes them when it runs its program. For one on a mount
//! that is a request to the mount, which takes as long as the cluster does not answer: it would not start the very nodes
//! that are waited for, or mend the link. So a shell is started before there is anything to inherit.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

/// A start script mounts a disk and waits for a process to exist.
const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Launcher {
    shell: Child,
    orders: Mutex<Orders>,
    waiting: Waiting,
}

struct Orders {
    stdin: ChildStdin,
    last: u64,
}

/// Who waits for the exit code of which order.
type Waiting = Arc<Mutex<HashMap<u64, Sender<i32>>>>;

impl Launcher {
    pub fn new() -> Result<Launcher> {
        // Ctrl-C ends a torture after the round under way, for which nodes are still to be started.
        let mut shell = Command::new("sh");
        let mut shell = shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("sh")?;
        let stdin = shell.stdin.take().context("the shell has no input")?;
        let stdout = shell.stdout.take().context("the shell has no output")?;
        let waiting = Waiting::default();
        let hears = waiting.clone();
        // Ends with the shell.
        std::thread::spawn(move || hear(stdout, &hears));
        Ok(Launcher { shell, orders: Mutex::new(Orders { stdin, last: 0 }), waiting })
    }

    /// Runs a program with its arguments to its end. Several may run at the same time.
    pub fn run(&self, words: &[&str]) -> Result<()> {
        let (sender, outcome) = channel();
        let quoted: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        {
            let mut orders = locked(&self.orders);
            orders.last += 1;
            let number = orders.last;
            locked(&self.waiting).insert(number, sender);
            let line = quoted.join(" ");
            writeln!(orders.stdin, "{{ {line} </dev/null >&2; echo {number} $?; }} &").context("order a start")?;
        }
        let code = outcome.recv_timeout(DEADLINE).map_err(|_| anyhow!("{} did not end", words.join(" ")))?;
        ensure!(code == 0, "{} ended with {code}", words.join(" "));
        Ok(())
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Nothing that it has started is in its process group's care.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Lines of a number and an exit code.
fn hear(stdout: ChildStdout, waiting: &Waiting) {
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let mut words = line.split(' ');
        let mut number = || words.next()?.parse::<i64>().ok();
        if let (Some(number), Some(code)) = (number(), number())
            && let Some(sender) = locked(waiting).remove(&number.unsigned_abs())
        {
            // Who asked may not have waited.
            let _ = sender.send(code as i32);
        }
    }
    // Nobody answers any more.
    locked(waiting).clear();
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    fn script(dir: &Path, name: &str, text: &str) -> String {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn programs_run_beside_each_other_and_each_has_its_own_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Launcher::new().unwrap();
        let made = dir.path().join("made");
        // The first ends only when the second has run.
        let waits = script(dir.path(), "it waits", &format!("until [ -e '{}' ]; do sleep 0.01; done", made.display()));
        let text = format!("echo noise; touch \"{}/$1\" '{}'; exit 3", dir.path().display(), made.display());
        let makes = script(dir.path(), "makes", &text);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| launcher.run(&[&waits]));
            let second = launcher.run(&[&makes, "it's"]).unwrap_err().to_string();
            assert!(second.contains("makes it's ended with 3"), "{second}");
            first.join().unwrap().unwrap();
        });
        assert!(dir.path().join("it's").exists());
    }
}

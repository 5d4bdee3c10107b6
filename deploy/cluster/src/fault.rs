//! Faults to give a running cluster. Each lasts until it is undone, which also happens when it is dropped:
//! a test that panics leaves no stopped process, no full disk and no tracer behind.

pub mod calls;
pub mod clock;
pub mod damage;
pub mod disk;
pub mod network;
pub mod power;
pub mod process;

use std::fmt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A fault that is in force.
#[must_use = "a fault that is dropped is undone at once"]
pub struct Fault<'a> {
    what: String,
    undo: Option<Undo<'a>>,
}

type Undo<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

impl<'a> Fault<'a> {
    /// `what` is for messages; `undo` is called once.
    pub fn new(what: impl Into<String>, undo: impl FnOnce() -> Result<()> + 'a) -> Fault<'a> {
        Fault { what: what.into(), undo: Some(Box::new(undo)) }
    }

    /// Ends it.
    ///
    /// # Errors
    /// When the state of before could not be brought back, a node that does not start for example.
    pub fn undo(mut self) -> Result<()> {
        self.undo.take().map_or(Ok(()), |undo| undo()).with_context(|| format!("after {}", self.what))
    }
}

impl Drop for Fault<'_> {
    fn drop(&mut self) {
        if let Some(undo) = self.undo.take()
            && let Err(error) = undo()
        {
            eprintln!("after {}: {error:#}", self.what);
        }
    }
}

impl fmt::Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// How often something is looked at that is waited for.
const POLL: Duration = Duration::from_millis(10);

/// Waits until `done`. Fails with `what` when it takes longer than `deadline`.
pub(crate) fn poll_until(deadline: Duration, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline;
    while !done()? {
        if Instant::now() >= end {
            bail!("{what} within {deadline:?}: no");
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Runs one of the system's tools; what it says on stderr becomes the error.
pub(crate) fn tool(command: &mut Command) -> Result<()> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let line = format!("{command:?}");
    let output = command.env("PATH", path).stdin(Stdio::null()).output().with_context(|| line.clone())?;
    if !output.status.success() {
        bail!("{line}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_fault_is_undone_once_by_hand_or_by_a_panic() {
        let undone = Cell::new(0);
        let count = || {
            undone.set(undone.get() + 1);
            Ok(())
        };
        Fault::new("something", count).undo().unwrap();
        assert_eq!(undone.get(), 1);
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _fault = Fault::new("something", count);
            panic!("on purpose");
        }));
        assert!(unwound.is_err());
        assert_eq!(undone.get(), 2);
    }

    #[test]
    fn an_undo_that_fails_says_after_what() {
        let error = Fault::new("a cut", || bail!("it does not start")).undo().unwrap_err();
        assert_eq!(format!("{error:#}"), "after a cut: it does not start");
    }
}

//! Faults at system calls, by strace: a process that dies at the k-th of them, a sync that fails or is slow.
//!
//! strace counts calls for each thread by itself.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{Fault, poll_until};
use crate::local::Cluster;

/// Kinds of calls by which a process changes something outside of itself.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Calls {
    /// What makes bytes durable.
    Sync,
    /// What writes bytes.
    Write,
    /// What makes, moves, cuts and removes files. There are few of these.
    Names,
    /// What tells others: requests to nodes, and a mount's answers to its kernel.
    Send,
}

impl Calls {
    pub const OF_BYTES: [Calls; 2] = [Calls::Sync, Calls::Write];

    fn list(self) -> &'static str {
        match self {
            Calls::Sync => "fsync,fdatasync,sync_file_range",
            Calls::Write => "write,writev,pwrite64,pwritev",
            Calls::Names => "rename,renameat,renameat2,unlink,unlinkat,ftruncate,fallocate,mkdir,mkdirat",
            Calls::Send => "sendmsg,sendmmsg,write,writev",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Calls::Sync => "sync",
            Calls::Write => "write",
            Calls::Names => "name",
            Calls::Send => "send",
        }
    }
}

/// A process that will be killed at a call it has not made yet.
#[must_use = "dropped, it is undone"]
pub struct CrashPoint<'a> {
    cluster: &'a Cluster,
    node: String,
    tracer: Option<Child>,
}

/// The process of `node` is killed as one of its threads enters its `k`-th call of this kind, counted from now.
pub fn crash_at<'a>(cluster: &'a Cluster, node: &str, calls: Calls, k: u64) -> Result<CrashPoint<'a>> {
    let inject = format!("inject={}:signal=SIGKILL:when={k}", calls.list());
    let tracer = trace(cluster, node, calls.list(), &inject)?;
    Ok(CrashPoint { cluster, node: node.to_owned(), tracer: Some(tracer) })
}

impl CrashPoint<'_> {
    /// Whether the call was made.
    pub fn has_struck(&self) -> bool {
        self.cluster.has_died(&self.node)
    }

    /// Starts the process again; one that has not come to the call is killed first, now.
    pub fn undo(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let Some(tracer) = self.tracer.take() else { return Ok(()) };
        end_tracer(tracer)?;
        self.cluster.kill(&self.node)?;
        self.cluster.start(&self.node)
    }
}

impl Drop for CrashPoint<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("after a crash point of {}: {error:#}", self.node);
        }
    }
}

/// Syncs of `node` fail with EIO, without having been tried: the `nth` of each thread, and with `for_ever` all
/// that follow.
pub fn sync_fails<'a>(cluster: &'a Cluster, node: &str, nth: u64, for_ever: bool) -> Result<Fault<'a>> {
    let more = if for_ever { "+" } else { "" };
    let inject = format!("inject={}:error=EIO:when={nth}{more}", Calls::Sync.list());
    let tracer = trace(cluster, node, Calls::Sync.list(), &inject)?;
    Ok(Fault::new(format!("sync number {nth}{more} of {node} fails"), move || end_tracer(tracer)))
}

/// Each sync of `node` begins so much later.
pub fn sync_is_slow<'a>(cluster: &'a Cluster, node: &str, delay: Duration) -> Result<Fault<'a>> {
    let inject = format!("inject={}:delay_enter={}", Calls::Sync.list(), delay.as_micros());
    let tracer = trace(cluster, node, Calls::Sync.list(), &inject)?;
    Ok(Fault::new(format!("syncs of {node} take {delay:?} longer"), move || end_tracer(tracer)))
}

const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

/// Attaches, and returns when it is in force.
fn trace(cluster: &Cluster, node: &str, calls: &str, inject: &str) -> Result<Child> {
    let pid = cluster.pid(node)?;
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-p", &pid.as_raw_nonzero().to_string()]);
    command.args(["-e", &format!("trace={calls}"), "-e", inject]).stdin(Stdio::null());
    let mut tracer = command.spawn().context("strace, of the package strace")?;
    let attached = poll_until(ATTACH_DEADLINE, "strace attaches", || {
        // It may have died before strace came, or at its very first call.
        if cluster.has_died(node) {
            return Ok(true);
        }
        match tracer.try_wait()? {
            Some(status) if !cluster.has_died(node) => bail!("strace ended with {status}"),
            Some(_) => Ok(true),
            None => Ok(threads_are_traced(pid)),
        }
    });
    if let Err(error) = attached {
        end_tracer(tracer)?;
        return Err(error);
    }
    Ok(tracer)
}

fn threads_are_traced(pid: Pid) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else { return false };
    let mut threads = threads.flatten();
    threads.all(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    })
}

/// How long strace may take to let go of a process.
const DETACH_DEADLINE: Duration = Duration::from_secs(3);

/// SIGTERM has strace let go of the process, which goes on. Now and then it waits for ever for a thread that was killed
/// under it; SIGKILL makes the kernel let go for it.
fn end_tracer(mut tracer: Child) -> Result<()> {
    // Gone already is as good.
    let _ = kill_process(Pid::from_child(&tracer), Signal::TERM);
    if poll_until(DETACH_DEADLINE, "strace ends", || Ok(tracer.try_wait()?.is_some())).is_err() {
        tracer.kill()?;
        tracer.wait()?;
    }
    Ok(())
}

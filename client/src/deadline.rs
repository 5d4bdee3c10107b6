//! Until when an operation goes on trying.

use std::time::Duration;

use dfs_proto::ErrorKind;
use tokio::time::Instant;

use crate::config::Options;
use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    /// `None`: for ever.
    at: Option<Instant>,
    /// From its beginning.
    span: Duration,
}

impl Deadline {
    pub const NEVER: Deadline = Deadline { at: None, span: Duration::ZERO };

    pub fn after(duration: Duration) -> Deadline {
        Deadline { at: Some(Instant::now() + duration), span: duration }
    }

    /// The same, from now: for work that gets on, if slowly.
    pub fn renewed(&self) -> Deadline {
        if self.at.is_some() { Deadline::after(self.span) } else { Deadline::NEVER }
    }

    /// For one operation under these options.
    pub fn of(options: &Options) -> Deadline {
        if options.hard { Deadline::NEVER } else { Deadline::after(options.op_deadline) }
    }

    pub fn passed(&self) -> bool {
        self.at.is_some_and(|at| at <= Instant::now())
    }

    /// `duration`, or what is left if that is less.
    pub fn cap(&self, duration: Duration) -> Duration {
        self.at.map_or(duration, |at| duration.min(at.saturating_duration_since(Instant::now())))
    }

    /// Waits for `work`, but not past the deadline.
    pub async fn bound<T>(&self, what: &str, work: impl Future<Output = T>) -> Result<T> {
        match self.at {
            None => Ok(work.await),
            Some(at) => tokio::time::timeout_at(at, work).await.map_err(|_| timed_out(what)),
        }
    }
}

pub(crate) fn timed_out(what: &str) -> Error {
    Error::new(ErrorKind::Timeout, format!("the deadline passed while {what}"))
        .with_hint("`dfs status` shows which nodes are away")
}

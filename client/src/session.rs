//! The session with the namenode group: opened when first needed, renewed, and opened anew when it has
//! expired.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::msg::meta::{MetaReply, MetaRequest, SessionGrant};
use dfs_proto::{ErrorKind, RequestId, SessionId};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::deadline::Deadline;
use crate::error::{Error, Result, unexpected_answer};
use crate::leader::{ATTEMPT, Group};

/// Bytes of a description that the namenode takes.
const DESCRIPTION_MAX: usize = 255;

pub(crate) struct Session {
    pub grant: SessionGrant,
    numbers: Mutex<Numbers>,
    /// When the last request was sent that certainly renewed the lease: it lasts for so long from there, by
    /// the leader's clock as well.
    renewed: Mutex<Instant>,
}

impl Session {
    /// `asked`: when the session was asked for.
    pub fn new(grant: SessionGrant, asked: Instant) -> Session {
        Session { grant, numbers: Mutex::new(Numbers::default()), renewed: Mutex::new(asked) }
    }

    /// Whether the lease cannot have run out yet, whatever the leader has heard since.
    pub fn lease_lasts(&self) -> bool {
        !self.lease_left().is_zero()
    }

    /// For how long it lasts if it is not renewed.
    pub fn lease_left(&self) -> Duration {
        Duration::from_millis(self.grant.lease_ms).saturating_sub(self.renewed.lock().elapsed())
    }

    pub fn id(&self) -> SessionId {
        self.grant.session
    }

    /// A number for one mutation; it counts as outstanding until the ticket is dropped.
    pub fn begin(self: &Arc<Self>) -> Ticket {
        Ticket { number: self.numbers.lock().begin(), session: self.clone() }
    }
}

/// One outstanding mutation.
pub(crate) struct Ticket {
    session: Arc<Session>,
    number: u64,
}

impl Ticket {
    pub fn id(&self) -> RequestId {
        RequestId { session: self.session.id(), number: self.number }
    }

    /// Below this number every mutation of the session is over.
    pub fn acked_below(&self) -> u64 {
        self.session.numbers.lock().lowest_outstanding()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.session.numbers.lock().end(self.number);
    }
}

#[derive(Default)]
struct Numbers {
    last: u64,
    outstanding: BTreeSet<u64>,
}

impl Numbers {
    fn begin(&mut self) -> u64 {
        self.last += 1;
        self.outstanding.insert(self.last);
        self.last
    }

    fn end(&mut self, number: u64) {
        self.outstanding.remove(&number);
    }

    fn lowest_outstanding(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.last + 1)
    }
}

/// What a leader says to a renewal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Renewed {
    Done,
    /// It is new and wants to know what is open.
    Announce,
}

pub(crate) struct Sessions {
    group: Arc<Group>,
    description: String,
    current: Mutex<Option<Arc<Session>>>,
    /// Held while a session is being opened, so that only one is.
    opening: tokio::sync::Mutex<()>,
}

impl Sessions {
    pub fn new(group: Arc<Group>, description: &str) -> Sessions {
        let mut end = description.len().min(DESCRIPTION_MAX);
        while !description.is_char_boundary(end) {
            end -= 1;
        }
        Sessions {
            group,
            description: description[..end].to_owned(),
            current: Mutex::new(None),
            opening: tokio::sync::Mutex::new(()),
        }
    }

    pub fn current(&self) -> Option<Arc<Session>> {
        self.current.lock().clone()
    }

    /// The session, opened if there is none. `true` with a session that this call has opened.
    pub async fn ensure(&self, deadline: Deadline) -> Result<(Arc<Session>, bool)> {
        if let Some(session) = self.current() {
            return Ok((session, false));
        }
        let _opening = deadline.bound("opening a session", self.opening.lock()).await?;
        if let Some(session) = self.current() {
            return Ok((session, false));
        }
        let request = MetaRequest::OpenSession { description: self.description.clone() };
        let asked = Instant::now();
        match self.group.call(&request, ATTEMPT, deadline).await? {
            MetaReply::Session(grant) => {
                info!(session = %grant.session, lease_ms = grant.lease_ms, "session opened");
                let session = Arc::new(Session::new(grant, asked));
                *self.current.lock() = Some(session.clone());
                Ok((session, true))
            }
            _ => Err(unexpected_answer("OpenSession")),
        }
    }

    /// Takes the session out, to be closed.
    pub fn take(&self) -> Option<Arc<Session>> {
        self.current.lock().take()
    }

    /// Forgets the session. `false` if somebody else already did.
    pub fn forget(&self, session: SessionId) -> bool {
        let mut current = self.current.lock();
        let is_current = current.as_ref().is_some_and(|current| current.id() == session);
        if is_current {
            warn!(%session, "session expired");
            *current = None;
        }
        is_current
    }

    /// Renews the lease once. An error only if the session is over.
    pub async fn renew(&self, session: &Session) -> Result<Renewed> {
        let lease = Duration::from_millis(session.grant.lease_ms);
        let request = MetaRequest::Renew { session: session.id() };
        let sent = Instant::now();
        match self.group.call(&request, ATTEMPT, Deadline::after(lease / 3)).await {
            Err(failed) if failed.error.kind == ErrorKind::SessionExpired => Err(failed.error),
            Err(failed) => {
                debug!(error = %failed.error, "lease not renewed");
                Ok(Renewed::Done)
            }
            Ok(reply) => {
                *session.renewed.lock() = sent;
                Ok(if matches!(reply, MetaReply::Announce) { Renewed::Announce } else { Renewed::Done })
            }
        }
    }
}

/// What an open file with unsaved bytes hears when its session is gone.
pub(crate) fn session_lost() -> Error {
    Error::new(
        ErrorKind::SessionExpired,
        "the session with the cluster expired before these bytes were stored: they are lost",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_kept_until_the_oldest_outstanding_request_is_answered() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.lowest_outstanding(), 1);
        let (a, b, c) = (numbers.begin(), numbers.begin(), numbers.begin());
        assert_eq!((a, b, c), (1, 2, 3));
        numbers.end(b);
        assert_eq!(numbers.lowest_outstanding(), 1);
        numbers.end(a);
        assert_eq!(numbers.lowest_outstanding(), 3);
        numbers.end(c);
        assert_eq!(numbers.lowest_outstanding(), 4);
    }

    #[test]
    fn a_ticket_that_is_dropped_is_no_longer_outstanding() {
        let grant = SessionGrant { session: SessionId(5), lease_ms: 1, min_copies: 2, default_replication: 3 };
        let session = Arc::new(Session::new(grant, Instant::now()));
        let first = session.begin();
        let second = session.begin();
        assert_eq!(second.id(), RequestId { session: SessionId(5), number: 2 });
        assert_eq!(second.acked_below(), 1);
        drop(first);
        assert_eq!(second.acked_below(), 2);
    }
}

//! Leases of client sessions.
//!
//! The rows say which sessions exist; when each was renewed last is known to the leader alone. A new
//! leader cannot know it and gives every session a full lease.

use std::collections::HashMap;
use std::time::Duration;

use dfs_proto::{ErrorKind, NodeId, SessionId, WireError};
use parking_lot::Mutex;
use tokio::time::Instant;

#[derive(Default)]
pub struct Sessions(Mutex<Leases>);

#[derive(Default)]
struct Leases {
    lease: Duration,
    /// As many as there are session rows.
    sessions: HashMap<SessionId, Lease>,
}

struct Lease {
    holder: NodeId,
    renewed: Instant,
    /// This leader has heard from it.
    heard: bool,
}

impl Sessions {
    /// Starts over with the sessions that the rows name, each with a full lease from now.
    pub fn begin(&self, sessions: impl IntoIterator<Item = (SessionId, NodeId)>, lease: Duration, now: Instant) {
        let sessions =
            sessions.into_iter().map(|(id, holder)| (id, Lease { holder, renewed: now, heard: false })).collect();
        *self.0.lock() = Leases { lease, sessions };
    }

    /// Gives a full lease to sessions that have rows and none here: whoever opened one may have gone
    /// before it was told, and then nobody would ever end it.
    pub fn adopt(&self, sessions: impl IntoIterator<Item = (SessionId, NodeId)>, now: Instant) {
        let mut leases = self.0.lock();
        for (session, holder) in sessions {
            leases.sessions.entry(session).or_insert(Lease { holder, renewed: now, heard: false });
        }
    }

    pub fn opened(&self, session: SessionId, holder: NodeId, now: Instant) {
        self.0.lock().sessions.insert(session, Lease { holder, renewed: now, heard: true });
    }

    pub fn closed(&self, session: SessionId) {
        self.0.lock().sessions.remove(&session);
    }

    /// Renews the lease. Every request of a session does, not only `Renew`.
    ///
    /// # Errors
    /// `SessionExpired` if the session has ended or its lease has run out, even when the command that
    /// ends it is not committed yet; `Forbidden` if it belongs to another certificate.
    pub fn renew(&self, session: SessionId, holder: NodeId, now: Instant) -> Result<(), WireError> {
        let mut leases = self.0.lock();
        let expires_after = leases.lease;
        match leases.sessions.get_mut(&session) {
            Some(lease) if lease.holder != holder => {
                Err(WireError::new(ErrorKind::Forbidden, format!("session {session} belongs to another client")))
            }
            Some(lease) if now.saturating_duration_since(lease.renewed) <= expires_after => {
                (lease.renewed, lease.heard) = (now, true);
                Ok(())
            }
            _ => Err(WireError::new(ErrorKind::SessionExpired, format!("session {session} has ended"))),
        }
    }

    /// Sessions whose lease has run out, at most `limit`. They stay listed until `closed`, so that a
    /// failed proposal is made again.
    pub fn expired(&self, limit: usize, now: Instant) -> Vec<SessionId> {
        let leases = self.0.lock();
        let out = |lease: &Lease| now.saturating_duration_since(lease.renewed) > leases.lease;
        leases.sessions.iter().filter(|(_, lease)| out(lease)).map(|(session, _)| *session).take(limit).collect()
    }

    /// Sessions that have not been heard from for more than half a lease, or not at all by this leader. A client that
    /// lives renews every third of the lease, so what these have open is most likely left behind.
    pub fn silent(&self, now: Instant) -> Vec<SessionId> {
        let leases = self.0.lock();
        let silent = |lease: &Lease| !lease.heard || now.saturating_duration_since(lease.renewed) > leases.lease / 2;
        leases.sessions.iter().filter(|(_, lease)| silent(lease)).map(|(session, _)| *session).collect()
    }

    /// Adds to every lease the time in which this process stood still and could not be renewed at.
    pub fn forgive(&self, pause: Duration) {
        for lease in self.0.lock().sessions.values_mut() {
            lease.renewed += pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn kind(result: Result<(), WireError>) -> Option<ErrorKind> {
        result.err().map(|error| error.kind)
    }

    #[test]
    fn a_lease_that_ran_out_stays_out_and_a_renewed_one_goes_on() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        sessions.begin([(SessionId(1), NodeId(7)), (SessionId(2), NodeId(8))], LEASE, start);
        assert_eq!(kind(sessions.renew(SessionId(1), NodeId(7), start + LEASE)), None);
        let later = start + LEASE + Duration::from_millis(1);
        assert_eq!(sessions.expired(10, later), [SessionId(2)]);
        assert_eq!(kind(sessions.renew(SessionId(2), NodeId(8), later)), Some(ErrorKind::SessionExpired));
        assert_eq!(kind(sessions.renew(SessionId(1), NodeId(8), later)), Some(ErrorKind::Forbidden));
        assert_eq!(kind(sessions.renew(SessionId(3), NodeId(8), later)), Some(ErrorKind::SessionExpired));
        sessions.adopt([(SessionId(2), NodeId(8)), (SessionId(3), NodeId(8))], later);
        assert_eq!(sessions.expired(10, later), [SessionId(2)]);
        assert_eq!(kind(sessions.renew(SessionId(3), NodeId(8), later)), None);
    }

    #[test]
    fn a_session_is_silent_until_this_leader_has_heard_from_it_and_after_half_a_lease_without_a_word() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        sessions.begin([(SessionId(1), NodeId(7)), (SessionId(2), NodeId(8))], LEASE, start);
        sessions.opened(SessionId(3), NodeId(9), start);
        sessions.renew(SessionId(1), NodeId(7), start).unwrap();
        assert_eq!(sessions.silent(start), [SessionId(2)]);
        assert_eq!(sessions.silent(start + LEASE / 2), [SessionId(2)]);
        assert_eq!(sessions.silent(start + LEASE * 2 / 3).len(), 3);
        sessions.closed(SessionId(2));
        assert_eq!(sessions.silent(start), []);
    }

    #[test]
    fn a_new_leader_and_a_pause_of_the_leader_cost_no_session() {
        let (sessions, start) = (Sessions::default(), Instant::now());
        sessions.begin([(SessionId(1), NodeId(7))], LEASE, start);
        let pause = Duration::from_secs(60);
        sessions.forgive(pause);
        assert!(sessions.expired(10, start + pause).is_empty());
        sessions.begin([(SessionId(1), NodeId(7))], LEASE, start + 3 * pause);
        assert_eq!(kind(sessions.renew(SessionId(1), NodeId(7), start + 3 * pause + LEASE)), None);
    }
}

//! Which session has which inode open, as far as this reign has heard of it.
//!
//! It decides who holds an inode that loses its last name. What a new leader does not know yet it does not
//! guess: until every session of the reign before has announced what it has open, or has ended, such inodes
//! are held for nobody in particular.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dfs_proto::limits::OPENS_PER_SESSION_MAX;
use dfs_proto::{ErrorKind, InodeId, Name, SessionId, WireError};
use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Default)]
pub struct Opens {
    known: Mutex<Known>,
    /// A removal is over.
    removed: Notify,
}

#[derive(Default)]
struct Known {
    by_inode: HashMap<InodeId, Vec<SessionId>>,
    by_session: HashMap<SessionId, HashSet<InodeId>>,
    /// Sessions of earlier reigns that have not said what they have open.
    unannounced: HashSet<SessionId>,
    /// Inodes whose name is being removed: who has them open is already written down.
    removing: HashMap<InodeId, usize>,
    /// Names that are being made or found, and opened in the same step.
    making: HashMap<(InodeId, Name), usize>,
}

/// What goes into a command that may take a last name away.
#[derive(Debug, PartialEq, Eq)]
pub struct Knowledge {
    pub holders: Vec<SessionId>,
    pub undecided: bool,
}

/// While it lives, the inode is not opened: an open would come too late to be taken along.
pub struct Removing {
    opens: Arc<Opens>,
    inode: Option<InodeId>,
}

/// A session lets go of an inode.
pub struct Leaving {
    pub inode: InodeId,
    pub session: SessionId,
    _guard: Removing,
}

/// While it lives, what the name leads to may be opened by a command under way.
pub struct Making {
    opens: Arc<Opens>,
    name: (InodeId, Name),
}

impl Opens {
    /// Starts over with sessions that have not announced anything.
    pub fn begin(&self, sessions: impl IntoIterator<Item = SessionId>) {
        let mut known = self.known.lock();
        known.by_inode.clear();
        known.by_session.clear();
        known.unannounced = sessions.into_iter().collect();
    }

    /// Notes that a session opens an inode, after any removal of its name that is under way. To be called
    /// before the rows are looked at that say whether it can be opened.
    pub async fn open(&self, session: SessionId, inode: InodeId) -> Result<(), WireError> {
        loop {
            let removed = self.removed.notified();
            {
                let mut known = self.known.lock();
                if !known.removing.contains_key(&inode) {
                    return known.note(session, inode);
                }
            }
            removed.await;
        }
    }

    /// As `open`, if nothing has to be waited for; whether it is noted.
    pub fn open_now(&self, session: SessionId, inode: InodeId) -> bool {
        let mut known = self.known.lock();
        !known.removing.contains_key(&inode) && known.note(session, inode).is_ok()
    }

    pub fn closed(&self, session: SessionId, inodes: &[InodeId]) {
        let mut known = self.known.lock();
        for inode in inodes {
            if known.by_session.get_mut(&session).is_some_and(|open| open.remove(inode)) {
                known.forget(session, *inode);
            }
        }
    }

    /// A session says what it has open; with the last page it has said all.
    pub fn announced(&self, session: SessionId, inodes: &[InodeId], last: bool) -> Result<(), WireError> {
        let mut known = self.known.lock();
        for inode in inodes {
            known.note(session, *inode)?;
        }
        if last {
            known.unannounced.remove(&session);
        }
        Ok(())
    }

    pub fn must_announce(&self, session: SessionId) -> bool {
        self.known.lock().unannounced.contains(&session)
    }

    /// Whether everything that is open is known.
    pub fn is_complete(&self) -> bool {
        self.known.lock().unannounced.is_empty()
    }

    pub fn ended(&self, session: SessionId) {
        let mut known = self.known.lock();
        known.unannounced.remove(&session);
        for inode in known.by_session.remove(&session).unwrap_or_default() {
            known.forget(session, inode);
        }
    }

    pub fn is_open(&self, session: SessionId, inode: InodeId) -> bool {
        self.known.lock().by_session.get(&session).is_some_and(|open| open.contains(&inode))
    }

    /// Who has the inode open that a name leads to, which is about to be removed.
    pub fn remove(self: &Arc<Self>, name: (InodeId, Name), inode: Option<InodeId>) -> (Removing, Knowledge) {
        let mut known = self.known.lock();
        let undecided = !known.unannounced.is_empty() || known.making.contains_key(&name);
        let holders = known.begin_removal(inode);
        (Removing { opens: self.clone(), inode }, Knowledge { holders, undecided })
    }

    /// Who has a nameless inode open; nobody else opens it while the guard lives.
    pub fn settle(self: &Arc<Self>, inode: InodeId) -> (Removing, Vec<SessionId>) {
        let holders = self.known.lock().begin_removal(Some(inode));
        (Removing { opens: self.clone(), inode: Some(inode) }, holders)
    }

    /// Of sessions that hold nameless inodes, those that do not have them open and are to let go; nobody opens those
    /// inodes while the guards live.
    pub fn leaving(self: &Arc<Self>, held: &[(InodeId, SessionId)]) -> Vec<Leaving> {
        let mut known = self.known.lock();
        let is_open = |known: &Known, inode, session| {
            known.by_session.get(&session).is_some_and(|open: &HashSet<InodeId>| open.contains(&inode))
        };
        let closed: Vec<_> = held.iter().filter(|(inode, session)| !is_open(&known, *inode, *session)).collect();
        let leave = |(inode, session): &(InodeId, SessionId)| {
            known.begin_removal(Some(*inode));
            let guard = Removing { opens: self.clone(), inode: Some(*inode) };
            Leaving { inode: *inode, session: *session, _guard: guard }
        };
        closed.into_iter().map(leave).collect()
    }

    pub fn making(self: &Arc<Self>, name: (InodeId, Name)) -> Making {
        *self.known.lock().making.entry(name.clone()).or_default() += 1;
        Making { opens: self.clone(), name }
    }
}

impl Known {
    fn note(&mut self, session: SessionId, inode: InodeId) -> Result<(), WireError> {
        let open = self.by_session.entry(session).or_default();
        if open.contains(&inode) {
            return Ok(());
        }
        if open.len() >= OPENS_PER_SESSION_MAX {
            let message = format!("session {session} has {OPENS_PER_SESSION_MAX} files open");
            return Err(WireError::new(ErrorKind::TooManyOpen, message));
        }
        open.insert(inode);
        self.by_inode.entry(inode).or_default().push(session);
        Ok(())
    }

    fn forget(&mut self, session: SessionId, inode: InodeId) {
        if let Some(sessions) = self.by_inode.get_mut(&inode) {
            sessions.retain(|other| *other != session);
            if sessions.is_empty() {
                self.by_inode.remove(&inode);
            }
        }
        if self.by_session.get(&session).is_some_and(HashSet::is_empty) {
            self.by_session.remove(&session);
        }
    }

    fn begin_removal(&mut self, inode: Option<InodeId>) -> Vec<SessionId> {
        let Some(inode) = inode else { return Vec::new() };
        *self.removing.entry(inode).or_default() += 1;
        self.by_inode.get(&inode).cloned().unwrap_or_default()
    }
}

/// Takes one off a counter, and the counter away with the last.
fn uncount<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Drop for Removing {
    fn drop(&mut self) {
        if let Some(inode) = self.inode {
            uncount(&mut self.opens.known.lock().removing, &inode);
            self.opens.removed.notify_waiters();
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        uncount(&mut self.opens.known.lock().making, &self.name);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const FILE: InodeId = InodeId(10);

    fn name() -> (InodeId, Name) {
        (InodeId::ROOT, Name::new("f").unwrap())
    }

    fn knows(opens: &Arc<Opens>) -> (Vec<SessionId>, bool) {
        let knowledge = opens.remove(name(), Some(FILE)).1;
        (knowledge.holders, knowledge.undecided)
    }

    #[test]
    fn holders_are_those_who_have_opened_and_not_closed() {
        let opens = Arc::<Opens>::default();
        for session in [A, B, A] {
            opens.announced(session, &[FILE], false).unwrap();
        }
        assert_eq!(knows(&opens), (vec![A, B], false));
        opens.closed(A, &[FILE, InodeId(99)]);
        assert_eq!(knows(&opens), (vec![B], false));
        opens.ended(B);
        assert_eq!(knows(&opens), (vec![], false));
        assert!(opens.known.lock().by_session.is_empty());
    }

    #[test]
    fn nothing_is_decided_until_every_session_has_announced_or_ended() {
        let opens = Arc::<Opens>::default();
        opens.begin([A, B]);
        opens.announced(A, &[FILE], false).unwrap();
        assert_eq!(knows(&opens), (vec![A], true));
        opens.announced(A, &[InodeId(11)], true).unwrap();
        assert!(!opens.must_announce(A) && opens.must_announce(B) && !opens.is_complete());
        opens.ended(B);
        assert_eq!(knows(&opens), (vec![A], false));
    }

    #[test]
    fn an_open_waits_for_the_removal_of_its_name_and_a_removal_doubts_what_is_being_made() {
        let opens = Arc::<Opens>::default();
        let mut context = Context::from_waker(Waker::noop());
        let (removing, _) = opens.remove(name(), Some(FILE));
        {
            let mut open = pin!(opens.open(A, FILE));
            assert!(open.as_mut().poll(&mut context).is_pending());
            assert!(matches!(pin!(opens.open(A, InodeId(11))).poll(&mut context), Poll::Ready(Ok(()))));
            assert!(!opens.open_now(A, FILE) && opens.open_now(A, InodeId(12)));
            assert!(!opens.is_open(A, FILE) && opens.is_open(A, InodeId(12)));
            drop(removing);
            assert!(matches!(open.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
        }
        assert!(opens.is_open(A, FILE));
        let making = opens.making(name());
        assert_eq!(knows(&opens), (vec![A], true));
        drop(making);
        assert_eq!(knows(&opens), (vec![A], false));
    }

    #[test]
    fn whoever_lets_go_of_an_inode_does_not_open_it_meanwhile() {
        let opens = Arc::<Opens>::default();
        let mut context = Context::from_waker(Waker::noop());
        opens.announced(B, &[FILE], false).unwrap();
        // A waits for the removal of the name; it must not have the file between that and letting go of it.
        let (removing, _) = opens.remove(name(), Some(FILE));
        let mut open = pin!(opens.open(A, FILE));
        assert!(open.as_mut().poll(&mut context).is_pending());
        let leaving = opens.leaving(&[(FILE, A), (FILE, B)]);
        drop(removing);
        let who: Vec<_> = leaving.iter().map(|leaving| (leaving.inode, leaving.session)).collect();
        assert_eq!(who, [(FILE, A)]);
        assert!(open.as_mut().poll(&mut context).is_pending());
        drop(leaving);
        assert!(matches!(open.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
    }

    #[test]
    fn a_session_has_a_bounded_number_of_files_open() {
        let opens = Arc::<Opens>::default();
        let all: Vec<InodeId> = (0..OPENS_PER_SESSION_MAX as u64).map(|at| InodeId(100 + at)).collect();
        opens.announced(A, &all, true).unwrap();
        assert_eq!(opens.announced(A, &[FILE], false).map_err(|error| error.kind), Err(ErrorKind::TooManyOpen));
        opens.announced(A, &all[..1], false).unwrap();
        opens.closed(A, &all[..1]);
        opens.announced(A, &[FILE], false).unwrap();
    }
}

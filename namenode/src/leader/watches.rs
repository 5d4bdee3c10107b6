//! Which sessions remember which inodes, and are told before anybody sees them changed.
//!
//! A session that watches an inode may answer from memory as long as two things hold: it was not told to
//! forget the inode, and its *validity* has not run out. A change is made visible in this order: the
//! watching sessions are noted as owing an answer, then the rows are written, then the sessions are told;
//! and until each has answered, or its validity is over, no query that touches the inode is answered and
//! the change is not acknowledged. So nobody can see the new state while somebody else still sees the
//! old one.
//!
//! Validity is never longer than the leader's own lease. Whoever leads next has therefore nothing to
//! revoke: when it can be elected, all validities that its predecessor gave have run out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use dfs_proto::limits::REVOKED_MAX;
use dfs_proto::msg::meta::Revocation;
use dfs_proto::{InodeId, RequestId, SessionId};
use dfs_rpc::Moment;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

/// Inodes that one session may watch. One that asks for more loses its stream and begins anew with nothing.
const WATCHED_MAX: usize = 1 << 18;
/// Inodes watched by all sessions: about 100 bytes each. Whoever asks for more begins anew, too.
const WATCHED_BY_ALL_MAX: usize = 1 << 21;
/// Revocations on their way to one session. One that does not keep up loses its stream, and with it all
/// that it remembers.
const QUEUE: usize = 256;
/// Debts that are kept before those that are settled are swept out.
const SWEEP_AT: usize = 1024;

#[derive(Default)]
pub struct Watches {
    table: Mutex<Table>,
    /// Some session has answered, or is gone.
    progress: Notify,
}

#[derive(Default)]
struct Table {
    last_life: u64,
    lives: HashMap<SessionId, Life>,
    watchers: HashMap<InodeId, Vec<SessionId>>,
    watched: usize,
    /// Inodes whose rows are being written: a reader cannot know which of the two states it gets.
    writing: HashSet<InodeId>,
    /// Goes up before rows are written, and when they are.
    writes: u64,
    /// What is owed before something about these inodes may be said.
    by_inode: HashMap<InodeId, Vec<Debt>>,
    /// What is owed before these requests may be answered, and which inodes their own session has to forget.
    /// Kept for a while after that: an answer that was lost is asked for again.
    by_request: HashMap<RequestId, Consequence>,
    sweep_at: usize,
}

/// One watch stream.
struct Life {
    number: u64,
    /// `None` once the stream is broken: its session may not know that yet, and nobody can tell it.
    revocations: Option<mpsc::Sender<Revocation>>,
    watched: HashSet<InodeId>,
    /// Until then the session may believe what it remembers.
    valid_until: Moment,
    sent: u64,
    done: u64,
}

/// A session owes the answer to a revocation, until its validity is over.
#[derive(Clone, Copy, Debug)]
struct Debt {
    session: SessionId,
    life: u64,
    number: u64,
    until: Moment,
}

#[derive(Clone, Default, Debug)]
struct Consequence {
    debts: Vec<Debt>,
    own: Vec<InodeId>,
}

/// What one applied command has changed.
pub struct Changed<'a> {
    /// Who asked for it, if it was a client.
    pub request: Option<RequestId>,
    pub inodes: &'a [InodeId],
}

/// Revocations for the streams, to be sent once the rows are written.
pub struct Notices(Vec<(mpsc::Sender<Revocation>, SessionId, u64, Revocation)>);

impl Table {
    fn owes(&self, debt: &Debt, now: Moment) -> bool {
        now < debt.until
            && self.lives.get(&debt.session).is_none_or(|life| life.number != debt.life || life.done < debt.number)
    }

    fn is_owed_by(&self, session: SessionId, inode: InodeId, now: Moment) -> bool {
        let debts = self.by_inode.get(&inode).into_iter().flatten();
        debts.into_iter().any(|debt| debt.session == session && self.owes(debt, now))
    }

    fn forget(&mut self, session: SessionId, inode: InodeId) {
        if let Some(life) = self.lives.get_mut(&session)
            && life.watched.remove(&inode)
        {
            self.watched -= 1;
        }
        if let Some(sessions) = self.watchers.get_mut(&inode) {
            sessions.retain(|watcher| *watcher != session);
            if sessions.is_empty() {
                self.watchers.remove(&inode);
            }
        }
    }

    /// The session remembers nothing any more.
    fn remove(&mut self, session: SessionId) {
        let Some(life) = self.lives.remove(&session) else { return };
        self.watched -= life.watched.len();
        for inode in &life.watched {
            if let Some(sessions) = self.watchers.get_mut(inode) {
                sessions.retain(|watcher| *watcher != session);
                if sessions.is_empty() {
                    self.watchers.remove(inode);
                }
            }
        }
    }

    /// Forgets the sessions that lost their stream and whose validity has run out since.
    fn remove_silent(&mut self, now: Moment) {
        let silent = |life: &Life| life.revocations.is_none() && now >= life.valid_until;
        let gone: Vec<_> = self.lives.iter().filter(|(_, life)| silent(life)).map(|(session, _)| *session).collect();
        gone.into_iter().for_each(|session| self.remove(session));
    }

    fn sweep(&mut self, now: Moment) {
        if self.by_inode.len() + self.by_request.len() < self.sweep_at.max(SWEEP_AT) {
            return;
        }
        let mut by_inode = std::mem::take(&mut self.by_inode);
        by_inode.retain(|_, debts| debts.iter().any(|debt| self.owes(debt, now)));
        self.by_inode = by_inode;
        let old = |consequence: &Consequence| consequence.debts.iter().all(|debt| now >= debt.until);
        self.by_request.retain(|_, consequence| !old(consequence));
        self.sweep_at = 2 * (self.by_inode.len() + self.by_request.len());
    }
}

impl Watches {
    /// Ends every stream: this node has begun or ended to lead.
    pub fn clear(&self) {
        let mut table = self.table.lock();
        let writing = std::mem::take(&mut table.writing);
        *table = Table { last_life: table.last_life, writing, writes: table.writes + 1, ..Table::default() };
        drop(table);
        self.progress.notify_waiters();
    }

    /// Breaks every stream: this process stops. What the sessions remember counts on.
    pub fn break_streams(&self) {
        self.table.lock().lives.values_mut().for_each(|life| life.revocations = None);
    }

    /// A session's new stream. By opening it the session says that it has forgotten everything.
    pub fn begin(&self, session: SessionId, now: Moment) -> (u64, mpsc::Receiver<Revocation>) {
        let (revocations, receiver) = mpsc::channel(QUEUE);
        let mut table = self.table.lock();
        table.remove(session);
        table.remove_silent(now);
        table.last_life += 1;
        let number = table.last_life;
        let revocations = Some(revocations);
        let life = Life { number, revocations, watched: HashSet::new(), valid_until: now, sent: 0, done: 0 };
        table.lives.insert(session, life);
        (number, receiver)
    }

    /// The stream is broken. What the session remembers counts until its validity is over.
    pub fn end(&self, session: SessionId, life: u64) {
        if let Some(current) = self.table.lock().lives.get_mut(&session).filter(|current| current.number == life) {
            current.revocations = None;
        }
    }

    /// The session has forgotten everything up to this revocation.
    pub fn done(&self, session: SessionId, life: u64, number: u64) {
        if let Some(current) = self.table.lock().lives.get_mut(&session).filter(|current| current.number == life) {
            current.done = current.done.max(number.min(current.sent));
        }
        self.progress.notify_waiters();
    }

    /// As long as this stays the same no writing of rows begins, and none ends.
    pub fn writes(&self) -> u64 {
        self.table.lock().writes
    }

    /// Lets a session remember what it reads about these inodes. Call before reading; what was read before that is as good
    /// if `writes` has stayed the same since before it was. `lease` is the leader's own from `now` on. Returns for how
    /// long the session may believe what it remembers, or `None` if it may not remember this.
    pub fn watch(
        &self,
        session: SessionId,
        life: u64,
        inodes: &[InodeId],
        lease: Duration,
        now: Moment,
    ) -> Option<Duration> {
        let mut table = self.table.lock();
        let room = table.watched + inodes.len() <= WATCHED_BY_ALL_MAX;
        let changing = inodes.iter().any(|inode| {
            table.writing.contains(inode)
                || table.by_inode.get(inode).is_some_and(|debts| debts.iter().any(|debt| table.owes(debt, now)))
        });
        let current = table.lives.get_mut(&session).filter(|current| current.number == life)?;
        // A session that owes an answer gets no more time for it.
        if changing || lease.is_zero() || current.done < current.sent || current.revocations.is_none() {
            return None;
        }
        if !room || current.watched.len() + inodes.len() > WATCHED_MAX {
            current.revocations = None;
            return None;
        }
        current.valid_until = current.valid_until.max(now + lease);
        let new: Vec<InodeId> = inodes.iter().copied().filter(|inode| current.watched.insert(*inode)).collect();
        table.watched += new.len();
        for inode in new {
            table.watchers.entry(inode).or_default().push(session);
        }
        Some(lease)
    }

    /// Notes who has to be told. Call before the rows are written, and `tell` afterwards.
    pub fn about_to_change<'a>(&self, changes: impl Iterator<Item = Changed<'a>>, now: Moment) -> Notices {
        let mut notices: HashMap<SessionId, Vec<InodeId>> = HashMap::new();
        let mut table = self.table.lock();
        table.sweep(now);
        table.writes += 1;
        for change in changes {
            table.writing.extend(change.inodes);
            let author = change.request.map(|request| request.session);
            for inode in change.inodes {
                if let Some(request) = change.request
                    && table.is_owed_by(request.session, *inode, now)
                {
                    // What it has to forget for another's sake has perhaps not reached it when this answer does.
                    table.by_request.entry(request).or_default().own.push(*inode);
                }
                for watcher in table.watchers.get(inode).cloned().unwrap_or_default() {
                    let consequence = change.request.map(|request| table.by_request.entry(request).or_default());
                    if Some(watcher) == author {
                        // Its own answer names what it has to forget. It goes on watching, because of a directory
                        // it keeps the names that this change has not touched.
                        consequence.into_iter().for_each(|consequence| consequence.own.push(*inode));
                        continue;
                    }
                    table.forget(watcher, *inode);
                    let Some(life) = table.lives.get(&watcher) else { continue };
                    let (number, until) = (life.sent + 1, life.valid_until);
                    let debt = Debt { session: watcher, life: life.number, number, until };
                    notices.entry(watcher).or_default().push(*inode);
                    table.by_inode.entry(*inode).or_default().push(debt);
                    if let Some(request) = change.request {
                        table.by_request.entry(request).or_default().debts.push(debt);
                    }
                }
            }
        }
        let mut ready = Vec::with_capacity(notices.len());
        for (session, inodes) in notices {
            let Some(life) = table.lives.get_mut(&session) else { continue };
            // All of it has one number, that of the last piece.
            life.sent += 1;
            let number = life.sent;
            let mut pieces: VecDeque<_> = inodes.chunks(REVOKED_MAX).collect();
            let Some(stream) = &life.revocations else { continue };
            while let Some(piece) = pieces.pop_front() {
                let number = if pieces.is_empty() { number } else { number - 1 };
                let revocation = Revocation { number, inodes: piece.to_vec(), recalled: Vec::new() };
                ready.push((stream.clone(), session, life.number, revocation));
            }
        }
        Notices(ready)
    }

    /// Asks a session to share directories that it has for itself, if it can be reached now.
    pub fn recall(&self, session: SessionId, inodes: &[InodeId]) {
        let table = self.table.lock();
        let Some(life) = table.lives.get(&session) else { return };
        let Some(stream) = &life.revocations else { return };
        for piece in inodes.chunks(REVOKED_MAX) {
            // It answers to all that it was sent before, which is what it has done by then. One that does not keep up
            // is asked again.
            let revocation = Revocation { number: life.sent, inodes: Vec::new(), recalled: piece.to_vec() };
            let _ = stream.try_send(revocation);
        }
    }

    /// The rows are written. Tells the sessions; one whose queue is full loses its stream.
    pub fn tell(&self, notices: Notices) {
        {
            let mut table = self.table.lock();
            table.writing.clear();
            table.writes += 1;
        }
        for (stream, session, life, revocation) in notices.0 {
            if stream.try_send(revocation).is_err() {
                self.end(session, life);
            }
        }
    }

    /// Returns when nobody believes older answers about these inodes any more.
    pub async fn settled(&self, inodes: &[InodeId]) {
        self.wait(|table| {
            let debts = inodes.iter().filter_map(|inode| table.by_inode.get(inode));
            debts.flatten().copied().collect()
        })
        .await;
    }

    /// Returns when nobody believes any more what was true before this request, with the inodes that its
    /// own session has to forget.
    pub async fn consequences(&self, request: RequestId) -> Vec<InodeId> {
        self.wait(|table| table.by_request.get(&request).map(|found| found.debts.clone()).unwrap_or_default()).await;
        self.table.lock().by_request.get(&request).map(|found| found.own.clone()).unwrap_or_default()
    }

    async fn wait(&self, debts: impl Fn(&Table) -> Vec<Debt>) {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            // From here on nothing is missed.
            progress.as_mut().enable();
            let now = Moment::now();
            let until = {
                let table = self.table.lock();
                if table.by_inode.is_empty() && table.by_request.is_empty() {
                    return;
                }
                debts(&table).iter().filter(|debt| table.owes(debt, now)).map(|debt| debt.until).max()
            };
            let Some(until) = until else { return };
            tokio::select! {
                () = progress => {}
                () = tokio::time::sleep(until.since(now)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_millis(400);
    const A: SessionId = SessionId(1);
    const B: SessionId = SessionId(2);
    const DIR: InodeId = InodeId(7);

    fn request(session: SessionId) -> RequestId {
        RequestId { session, number: 1 }
    }

    fn change(watches: &Watches, request: RequestId, now: Moment) {
        let inodes = [DIR];
        let changes = [Changed { request: Some(request), inodes: &inodes }];
        watches.tell(watches.about_to_change(changes.into_iter(), now));
    }

    fn is_settled(watches: &Watches, now: Moment) -> bool {
        let table = watches.table.lock();
        table.by_inode.values().flatten().all(|debt| !table.owes(debt, now))
    }

    #[test]
    fn a_change_waits_for_everybody_else_who_remembers_and_tells_its_own_session_in_the_answer() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life_a, mut to_a) = watches.begin(A, now);
        let (life_b, mut to_b) = watches.begin(B, now);
        assert_eq!(watches.watch(A, life_a, &[DIR], LEASE, now), Some(LEASE));
        assert_eq!(watches.watch(B, life_b, &[DIR], LEASE, now), Some(LEASE));
        change(&watches, request(A), now);
        assert!(to_a.try_recv().is_err());
        assert_eq!(to_b.try_recv().unwrap(), Revocation { number: 1, inodes: vec![DIR], recalled: Vec::new() });
        assert!(!is_settled(&watches, now));
        assert_eq!(watches.table.lock().by_request[&request(A)].own, [DIR]);
        watches.done(B, life_b, 1);
        assert!(is_settled(&watches, now));
        // B watches no more: A's next change does not concern it.
        change(&watches, request(A), now);
        assert!(to_b.try_recv().is_err());
        // A still watches what it changed itself.
        change(&watches, request(B), now);
        assert_eq!(to_a.try_recv().unwrap(), Revocation { number: 1, inodes: vec![DIR], recalled: Vec::new() });
    }

    #[test]
    fn an_answer_names_what_its_session_is_just_being_told_to_forget() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life, _to_a) = watches.begin(A, now);
        watches.watch(A, life, &[DIR], LEASE, now);
        change(&watches, request(B), now);
        change(&watches, request(A), now);
        assert_eq!(watches.table.lock().by_request[&request(A)].own, [DIR]);
    }

    #[test]
    fn what_was_read_before_it_was_noted_is_as_good_only_if_nothing_was_being_written() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life, _to_a) = watches.begin(A, now);
        let (before, notices) = (watches.writes(), watches.about_to_change([].into_iter(), now));
        let meanwhile = watches.writes();
        watches.tell(notices);
        let after = watches.writes();
        assert!(before != meanwhile && meanwhile != after && after != before);
        watches.watch(A, life, &[DIR], LEASE, now);
        assert_eq!(watches.writes(), after);
        watches.clear();
        assert_ne!(watches.writes(), after);
        // What is being written all the time is not noted.
        let inodes = [DIR];
        let notices = watches.about_to_change([Changed { request: None, inodes: &inodes }].into_iter(), now);
        let (life, _to_a) = watches.begin(A, now);
        assert_eq!(watches.watch(A, life, &[DIR], LEASE, now), None);
        watches.tell(notices);
        assert_eq!(watches.watch(A, life, &[DIR], LEASE, now), Some(LEASE));
    }

    #[test]
    fn a_session_that_watches_too_much_begins_anew() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life, mut receiver) = watches.begin(A, now);
        let all: Vec<InodeId> = (0..WATCHED_MAX as u64).map(InodeId).collect();
        assert_eq!(watches.watch(A, life, &all, LEASE, now), Some(LEASE));
        assert_eq!(watches.watch(A, life, &[InodeId(u64::MAX)], LEASE, now), None);
        assert_eq!(receiver.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
        let (life, _receiver) = watches.begin(A, now);
        assert_eq!(watches.watch(A, life, &[InodeId(u64::MAX)], LEASE, now), Some(LEASE));
        assert_eq!(watches.table.lock().watched, 1);
    }

    #[test]
    fn a_session_that_does_not_answer_is_waited_for_until_its_validity_ends_and_gets_no_more() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life, _receiver) = watches.begin(B, now);
        watches.watch(B, life, &[DIR, InodeId(8)], LEASE, now);
        change(&watches, request(A), now);
        let later = now + LEASE / 2;
        assert_eq!(watches.watch(B, life, &[InodeId(9)], LEASE, later), None);
        assert!(!is_settled(&watches, later));
        assert!(is_settled(&watches, now + LEASE));
    }

    #[test]
    fn a_stream_that_breaks_does_not_end_what_its_session_may_still_believe() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life, receiver) = watches.begin(B, now);
        watches.watch(B, life, &[DIR], LEASE, now);
        change(&watches, request(A), now);
        drop(receiver);
        watches.end(B, life);
        assert!(!is_settled(&watches, now));
        let (next, _receiver) = watches.begin(B, now);
        watches.done(B, next, 1);
        assert!(!is_settled(&watches, now), "an answer in a new life says nothing about the old one");
        assert!(is_settled(&watches, now + LEASE));
        assert_eq!(watches.watch(B, life, &[DIR], LEASE, now + LEASE), None, "an old life watches nothing");
    }

    #[test]
    fn a_change_after_the_stream_broke_waits_for_what_its_session_may_still_believe() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life, receiver) = watches.begin(B, now);
        watches.watch(B, life, &[DIR], LEASE, now);
        drop(receiver);
        watches.end(B, life);
        assert_eq!(watches.watch(B, life, &[DIR], LEASE, now), None);
        change(&watches, request(A), now);
        assert!(!is_settled(&watches, now));
        assert!(is_settled(&watches, now + LEASE));
        watches.begin(A, now + LEASE);
        assert!(!watches.table.lock().lives.contains_key(&B));
    }

    #[test]
    fn what_is_being_written_may_not_be_remembered_whoever_watches_it() {
        let (watches, now) = (Watches::default(), Moment::now());
        let inodes = [DIR];
        let notices = watches.about_to_change([Changed { request: None, inodes: &inodes }].into_iter(), now);
        let (life, _receiver) = watches.begin(B, now);
        assert_eq!(watches.watch(B, life, &[DIR], LEASE, now), None);
        watches.tell(notices);
        assert_eq!(watches.watch(B, life, &[DIR], LEASE, now), Some(LEASE));
    }

    #[test]
    fn what_is_changing_may_not_be_remembered() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life_a, _to_a) = watches.begin(A, now);
        let (life_b, _to_b) = watches.begin(B, now);
        watches.watch(B, life_b, &[DIR], LEASE, now);
        change(&watches, request(A), now);
        assert_eq!(watches.watch(A, life_a, &[DIR], LEASE, now), None);
        watches.done(B, life_b, 1);
        assert_eq!(watches.watch(A, life_a, &[DIR], LEASE, now), Some(LEASE));
        assert_eq!(watches.watch(A, life_a, &[DIR], Duration::ZERO, now), None, "a leader without a lease");
    }

    #[test]
    fn a_session_that_is_not_connected_when_the_stream_is_full_is_waited_for_like_any_other() {
        let (watches, now) = (Watches::default(), Moment::now());
        let (life, mut receiver) = watches.begin(B, now);
        for number in 0..=QUEUE as u64 {
            watches.table.lock().lives.get_mut(&B).unwrap().done = number;
            watches.watch(B, life, &[DIR], LEASE, now).unwrap();
            change(&watches, request(A), now);
        }
        assert!(!is_settled(&watches, now));
        assert!(watches.table.lock().lives[&B].revocations.is_none());
        assert_eq!(std::iter::from_fn(|| receiver.try_recv().ok()).count(), QUEUE);
    }
}

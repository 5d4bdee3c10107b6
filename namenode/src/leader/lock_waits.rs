//! Who waits for which lock, first come first served.
//!
//! Soft and bounded. The locks themselves are rows; a client that waits asks again until it has its lock,
//! so a new leader learns of it within seconds and nothing but the order of the queue is lost.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::Fault;
use dfs_meta::locks::{Held, Holder, conflict, in_the_way};
use dfs_proto::limits::LOCK_WAIT_MAX_MS;
use dfs_proto::msg::meta::LockClaim;
use dfs_proto::{ErrorKind, InodeId, SessionId, WireError};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Waiting claims, in all and of one session: each is about 200 bytes and one parked request.
const WAITS_MAX: usize = 16_384;
const WAITS_PER_SESSION_MAX: usize = 4096;

/// How long the place of a claim is kept after its request has ended: the client's way to ask again.
const GRACE: Duration = Duration::from_secs(1);

/// Owners that one search for a circle looks at. A longer chain is not seen as one, and ends by itself or
/// when somebody is killed.
const CHAIN_MAX: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Nothing is in the way.
    Go,
    Wait,
    /// The owner waits for owners that wait for it.
    Deadlock,
}

#[derive(Default)]
pub struct LockWaits(Mutex<Waits>);

#[derive(Default)]
struct Waits {
    queues: HashMap<InodeId, Queue>,
    /// Where owners wait that can be part of a circle.
    owners: HashMap<Holder, Vec<InodeId>>,
    per_session: HashMap<SessionId, usize>,
    count: usize,
}

#[derive(Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    changed: Arc<Notify>,
}

struct Waiter {
    holder: Holder,
    claim: LockClaim,
    detect_deadlock: bool,
    /// When its place is given up.
    until: Instant,
}

impl LockWaits {
    /// Takes a place in the queue of the inode, or keeps the one it has. What is returned says when to look
    /// again.
    pub fn join(
        &self,
        inode: InodeId,
        holder: Holder,
        claim: LockClaim,
        detect_deadlock: bool,
        now: Instant,
    ) -> Result<Arc<Notify>, WireError> {
        let mut waits = self.0.lock();
        waits.prune(inode, now);
        let until = now + Duration::from_millis(LOCK_WAIT_MAX_MS) + GRACE;
        if let Some(queue) = waits.queues.get_mut(&inode)
            && let Some(waiter) = queue.waiters.iter_mut().find(|waiter| waiter.is(holder, &claim))
        {
            waiter.until = until;
            return Ok(queue.changed.clone());
        }
        if waits.count >= WAITS_MAX {
            waits.prune_all(now);
        }
        let of_session = waits.per_session.get(&holder.session).copied().unwrap_or(0);
        if waits.count >= WAITS_MAX || of_session >= WAITS_PER_SESSION_MAX {
            return Err(WireError::new(ErrorKind::NoLocks, "too many wait for locks"));
        }
        waits.count += 1;
        *waits.per_session.entry(holder.session).or_default() += 1;
        if detect_deadlock {
            waits.owners.entry(holder).or_default().push(inode);
        }
        let queue = waits.queues.entry(inode).or_default();
        queue.waiters.push_back(Waiter { holder, claim, detect_deadlock, until });
        Ok(queue.changed.clone())
    }

    /// Gives the place up, because the lock is had or no longer wanted.
    pub fn leave(&self, inode: InodeId, holder: Holder, claim: &LockClaim) {
        self.0.lock().remove(inode, |waiter| waiter.is(holder, claim));
    }

    /// Whether a claim that has joined has a chance now.
    pub fn judge(
        &self,
        inode: InodeId,
        holder: Holder,
        claim: &LockClaim,
        held: &dyn Fn(InodeId) -> Result<Vec<Held>, Fault>,
    ) -> Result<Verdict, Fault> {
        let mut waits = self.0.lock();
        let locks = held(inode)?;
        if in_the_way(&locks, holder.session, claim).next().is_none() {
            let Some(queue) = waits.queues.get_mut(&inode) else { return Ok(Verdict::Go) };
            let earlier = queue.waiters.iter().take_while(|waiter| !waiter.is(holder, claim));
            let mut earlier = earlier.map(|waiter| (waiter.holder, &waiter.claim));
            return Ok(match earlier.any(|other| conflict(other, (holder, claim))) {
                true => Verdict::Wait,
                false => Verdict::Go,
            });
        }
        let detects = waits
            .queues
            .get(&inode)
            .is_some_and(|queue| queue.waiters.iter().any(|waiter| waiter.detect_deadlock && waiter.is(holder, claim)));
        match detects && waits.circle(holder, &locks, claim, held)? {
            true => Ok(Verdict::Deadlock),
            false => Ok(Verdict::Wait),
        }
    }

    /// A lock of the inode has gone.
    pub fn released(&self, inode: InodeId) {
        if let Some(queue) = self.0.lock().queues.get(&inode) {
            queue.changed.notify_waiters();
        }
    }

    /// Another reign: whoever waits asks again.
    pub fn clear(&self) {
        let waits = std::mem::take(&mut *self.0.lock());
        waits.queues.values().for_each(|queue| queue.changed.notify_waiters());
    }
}

impl Waiter {
    fn is(&self, holder: Holder, claim: &LockClaim) -> bool {
        self.holder == holder && self.claim.range == claim.range && self.claim.mode == claim.mode
    }
}

impl Waits {
    fn prune(&mut self, inode: InodeId, now: Instant) {
        self.remove(inode, |waiter| waiter.until <= now);
    }

    fn prune_all(&mut self, now: Instant) {
        let inodes: Vec<InodeId> = self.queues.keys().copied().collect();
        inodes.into_iter().for_each(|inode| self.prune(inode, now));
    }

    /// Takes waiters out, and wakes those behind them.
    fn remove(&mut self, inode: InodeId, gone: impl Fn(&Waiter) -> bool) {
        let Some(queue) = self.queues.get_mut(&inode) else { return };
        let before = queue.waiters.len();
        let mut removed = Vec::new();
        queue.waiters.retain(|waiter| {
            let gone = gone(waiter);
            if gone {
                removed.push((waiter.holder, waiter.detect_deadlock));
            }
            !gone
        });
        if queue.waiters.len() < before {
            queue.changed.notify_waiters();
        }
        if queue.waiters.is_empty() {
            self.queues.remove(&inode);
        }
        for (holder, detects) in removed {
            self.count -= 1;
            if let Some(count) = self.per_session.get_mut(&holder.session) {
                *count -= 1;
                if *count == 0 {
                    self.per_session.remove(&holder.session);
                }
            }
            if detects && let Some(inodes) = self.owners.get_mut(&holder) {
                if let Some(at) = inodes.iter().position(|other| *other == inode) {
                    inodes.swap_remove(at);
                }
                if inodes.is_empty() {
                    self.owners.remove(&holder);
                }
            }
        }
    }

    /// Whether those who are in the way wait, directly or over others, for `holder`.
    fn circle(
        &self,
        holder: Holder,
        locks: &[Held],
        claim: &LockClaim,
        held: &dyn Fn(InodeId) -> Result<Vec<Held>, Fault>,
    ) -> Result<bool, Fault> {
        let mut open: Vec<Holder> = in_the_way(locks, holder.session, claim).map(Held::holder).collect();
        let mut seen: HashSet<Holder> = open.iter().copied().collect();
        while let Some(next) = open.pop() {
            for inode in self.owners.get(&next).into_iter().flatten() {
                let locks = held(*inode)?;
                let waiters = self.queues.get(inode).into_iter().flat_map(|queue| &queue.waiters);
                for waiter in waiters.filter(|waiter| waiter.holder == next && waiter.detect_deadlock) {
                    for blocker in in_the_way(&locks, next.session, &waiter.claim).map(Held::holder) {
                        if blocker == holder {
                            return Ok(true);
                        }
                        if seen.len() < CHAIN_MAX && seen.insert(blocker) {
                            open.push(blocker);
                        }
                    }
                }
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::{LockMode, LockOwner, LockRange, LockSpace};

    use super::*;

    const A: InodeId = InodeId(10);
    const B: InodeId = InodeId(11);

    fn holder(number: u64) -> Holder {
        Holder { session: SessionId(number), owner: LockOwner { space: LockSpace::Range, number } }
    }

    fn claim(number: u64, mode: LockMode) -> LockClaim {
        LockClaim { owner: holder(number).owner, range: LockRange::ALL, mode, process: 0 }
    }

    fn held(number: u64) -> Held {
        Held { session: SessionId(number), claim: claim(number, LockMode::Exclusive) }
    }

    fn judge(waits: &LockWaits, inode: InodeId, number: u64, mode: LockMode, locks: &[(InodeId, Held)]) -> Verdict {
        let held = |inode| Ok(locks.iter().filter(|(at, _)| *at == inode).map(|(_, held)| *held).collect());
        waits.judge(inode, holder(number), &claim(number, mode), &held).unwrap()
    }

    fn join(waits: &LockWaits, inode: InodeId, number: u64, mode: LockMode, now: Instant) {
        waits.join(inode, holder(number), claim(number, mode), true, now).unwrap();
    }

    #[test]
    fn the_first_to_come_is_served_first_and_readers_together() {
        use LockMode::{Exclusive, Shared};
        let (waits, now) = (LockWaits::default(), Instant::now());
        for (number, mode) in [(1, Shared), (2, Shared), (3, Exclusive), (4, Shared)] {
            join(&waits, A, number, mode, now);
        }
        let locks = [(A, held(9))];
        assert_eq!(judge(&waits, A, 1, Shared, &locks), Verdict::Wait);
        assert_eq!(judge(&waits, A, 1, Shared, &[]), Verdict::Go);
        assert_eq!(judge(&waits, A, 2, Shared, &[]), Verdict::Go);
        assert_eq!(judge(&waits, A, 3, Exclusive, &[]), Verdict::Wait);
        // It came after the writer, and asking again does not bring it forward.
        join(&waits, A, 4, Shared, now);
        assert_eq!(judge(&waits, A, 4, Shared, &[]), Verdict::Wait);
        for number in [1, 2] {
            waits.leave(A, holder(number), &claim(number, Shared));
        }
        assert_eq!(judge(&waits, A, 3, Exclusive, &[]), Verdict::Go);
    }

    #[test]
    fn a_place_is_given_up_when_nobody_asks_again() {
        let (waits, now) = (LockWaits::default(), Instant::now());
        join(&waits, A, 1, LockMode::Exclusive, now);
        join(&waits, A, 2, LockMode::Exclusive, now);
        assert_eq!(judge(&waits, A, 2, LockMode::Exclusive, &[]), Verdict::Wait);
        let later = now + Duration::from_millis(LOCK_WAIT_MAX_MS) + GRACE;
        join(&waits, A, 2, LockMode::Exclusive, later);
        assert_eq!(judge(&waits, A, 2, LockMode::Exclusive, &[]), Verdict::Go);
        assert_eq!(waits.0.lock().count, 1);
    }

    #[test]
    fn owners_that_wait_in_a_circle_are_found_and_a_chain_is_none() {
        use LockMode::Exclusive;
        let (waits, now) = (LockWaits::default(), Instant::now());
        let locks = [(A, held(1)), (B, held(2))];
        join(&waits, B, 1, Exclusive, now);
        assert_eq!(judge(&waits, B, 1, Exclusive, &locks), Verdict::Wait);
        join(&waits, A, 3, Exclusive, now);
        assert_eq!(judge(&waits, A, 3, Exclusive, &locks), Verdict::Wait);
        join(&waits, A, 2, Exclusive, now);
        assert_eq!(judge(&waits, A, 2, Exclusive, &locks), Verdict::Deadlock);
        waits.leave(B, holder(1), &claim(1, Exclusive));
        assert_eq!(judge(&waits, A, 2, Exclusive, &locks), Verdict::Wait);
    }

    #[test]
    fn a_session_has_a_bounded_number_of_waits_and_gets_its_places_back() {
        let (waits, now) = (LockWaits::default(), Instant::now());
        let one = |at: u64| LockClaim { range: LockRange { first: at, last: at }, ..claim(1, LockMode::Shared) };
        for at in 0..WAITS_PER_SESSION_MAX as u64 {
            waits.join(InodeId(at), holder(1), one(at), false, now).unwrap();
        }
        let more = |inode| waits.join(inode, holder(1), one(0), false, now).map(|_| ());
        assert_eq!(more(A).map_err(|error| error.kind), Err(ErrorKind::NoLocks));
        join(&waits, A, 2, LockMode::Shared, now);
        waits.leave(InodeId(0), holder(1), &one(0));
        more(InodeId(5000)).unwrap();
        waits.clear();
        assert_eq!(waits.0.lock().count, 0);
    }
}

//! What a set of locks allows and becomes: conflicts, merging, splitting. Pure; nothing here knows rows.
//!
//! The rules are those of `fcntl` on Linux: an owner's locks never conflict with each other, a new one
//! replaces what that owner has locked in its range, and neighbours of one mode are one lock.

use dfs_proto::SessionId;
use dfs_proto::msg::meta::{LockClaim, LockMode, LockOwner, LockRange};

/// Who holds a lock in the whole cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Holder {
    pub session: SessionId,
    pub owner: LockOwner,
}

/// One lock of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    pub session: SessionId,
    pub claim: LockClaim,
}

impl Held {
    pub fn holder(&self) -> Holder {
        Holder { session: self.session, owner: self.claim.owner }
    }
}

/// Whether two claims cannot both stand.
pub fn conflict(a: (Holder, &LockClaim), b: (Holder, &LockClaim)) -> bool {
    a.0 != b.0
        && a.1.owner.space == b.1.owner.space
        && a.1.range.overlaps(&b.1.range)
        && (a.1.mode == LockMode::Exclusive || b.1.mode == LockMode::Exclusive)
}

/// The locks that stand in the way of a claim.
pub fn in_the_way<'a>(
    held: &'a [Held],
    session: SessionId,
    claim: &'a LockClaim,
) -> impl Iterator<Item = &'a Held> + 'a {
    let asker = Holder { session, owner: claim.owner };
    held.iter().filter(move |other| conflict((other.holder(), &other.claim), (asker, claim)))
}

/// A change of one owner's locks on one inode.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Change {
    /// First bytes of the locks that go.
    pub removed: Vec<u64>,
    pub added: Vec<LockClaim>,
}

/// Puts a lock into an owner's own locks.
pub fn lock(own: &[LockClaim], claim: LockClaim) -> Change {
    let mut grown = claim;
    let mut change = Change::default();
    for old in own {
        if old.mode == claim.mode && touches(&old.range, &claim.range) {
            grown.range.first = grown.range.first.min(old.range.first);
            grown.range.last = grown.range.last.max(old.range.last);
            change.removed.push(old.range.first);
        } else if old.range.overlaps(&claim.range) {
            change.removed.push(old.range.first);
            change.added.extend(outside(old, &claim.range));
        }
    }
    change.added.push(grown);
    change
}

/// Takes a range out of an owner's own locks.
pub fn unlock(own: &[LockClaim], range: LockRange) -> Change {
    let mut change = Change::default();
    for old in own.iter().filter(|old| old.range.overlaps(&range)) {
        change.removed.push(old.range.first);
        change.added.extend(outside(old, &range));
    }
    change
}

/// The parts of a lock that lie before and behind a range.
fn outside(old: &LockClaim, range: &LockRange) -> impl Iterator<Item = LockClaim> + use<> {
    let before = range.first.checked_sub(1).filter(|last| old.range.first <= *last);
    let before = before.map(|last| LockRange { first: old.range.first, last });
    let behind = range.last.checked_add(1).filter(|first| *first <= old.range.last);
    let behind = behind.map(|first| LockRange { first, last: old.range.last });
    let old = *old;
    before.into_iter().chain(behind).map(move |range| LockClaim { range, ..old })
}

/// Overlapping, or with nothing between them.
fn touches(a: &LockRange, b: &LockRange) -> bool {
    a.first <= b.last.saturating_add(1) && b.first <= a.last.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dfs_proto::msg::meta::LockSpace;
    use proptest::prelude::*;

    use super::*;

    /// Bytes of the naive model; the last one stands for all behind it.
    const BYTES: u64 = 12;

    fn claim(number: u64, first: u64, last: u64, mode: LockMode) -> LockClaim {
        let owner = LockOwner { space: LockSpace::Range, number };
        let last = if last + 1 >= BYTES { u64::MAX } else { last };
        LockClaim { owner, range: LockRange { first, last }, mode, process: 1 }
    }

    fn own(held: &BTreeMap<(u64, u64), LockClaim>, number: u64) -> Vec<LockClaim> {
        held.range((number, 0)..=(number, u64::MAX)).map(|(_, claim)| *claim).collect()
    }

    fn take(held: &mut BTreeMap<(u64, u64), LockClaim>, number: u64, change: Change) {
        for first in change.removed {
            assert!(held.remove(&(number, first)).is_some());
        }
        for added in change.added {
            assert!(held.insert((number, added.range.first), added).is_none());
        }
    }

    proptest! {
        /// Each byte has a set of holders; ranges must say the same, in as few pieces as possible.
        #[test]
        fn ranges_say_of_each_byte_what_a_map_of_bytes_says(
            steps in proptest::collection::vec((0..3u64, 0..BYTES, 0..BYTES, 0..3u8), 1..60),
        ) {
            let mut held: BTreeMap<(u64, u64), LockClaim> = BTreeMap::new();
            let mut bytes: Vec<BTreeMap<u64, LockMode>> = vec![BTreeMap::new(); BYTES as usize];
            for (number, a, b, what) in steps {
                let (first, last) = (a.min(b), a.max(b));
                let inside = first as usize..=last as usize;
                let mode = if what == 0 { LockMode::Shared } else { LockMode::Exclusive };
                let claim = claim(number, first, last, mode);
                if what == 2 {
                    let change = unlock(&own(&held, number), claim.range);
                    take(&mut held, number, change);
                    bytes[inside].iter_mut().for_each(|holders| { holders.remove(&number); });
                } else {
                    let all: Vec<Held> =
                        held.values().map(|claim| Held { session: SessionId(1), claim: *claim }).collect();
                    let refused = in_the_way(&all, SessionId(1), &claim).next().is_some();
                    let expected = bytes[inside.clone()].iter().flatten().any(|(other, theirs)| {
                        *other != number && (mode == LockMode::Exclusive || *theirs == LockMode::Exclusive)
                    });
                    prop_assert_eq!(refused, expected);
                    if !refused {
                        let change = lock(&own(&held, number), claim);
                        take(&mut held, number, change);
                        bytes[inside].iter_mut().for_each(|holders| { holders.insert(number, mode); });
                    }
                }
                for number in 0..3 {
                    let mut pieces = 0;
                    let mut before = None;
                    for (at, holders) in bytes.iter().enumerate() {
                        let mode = holders.get(&number).copied();
                        pieces += usize::from(mode.is_some() && mode != before);
                        before = mode;
                        let covering: Vec<_> = own(&held, number)
                            .into_iter()
                            .filter(|claim| claim.range.first <= at as u64 && at as u64 <= claim.range.last)
                            .collect();
                        prop_assert_eq!(covering.len(), usize::from(mode.is_some()));
                        prop_assert_eq!(covering.first().map(|claim| claim.mode), mode);
                    }
                    prop_assert_eq!(own(&held, number).len(), pieces);
                }
            }
        }
    }

    #[test]
    fn spaces_and_sessions_are_told_apart() {
        let mine = claim(7, 0, 5, LockMode::Exclusive);
        let held = [Held { session: SessionId(1), claim: mine }];
        assert_eq!(in_the_way(&held, SessionId(1), &mine).count(), 0);
        assert_eq!(in_the_way(&held, SessionId(2), &mine).count(), 1);
        let whole = LockClaim { owner: LockOwner { space: LockSpace::Whole, number: 8 }, ..mine };
        assert_eq!(in_the_way(&held, SessionId(2), &whole).count(), 0);
    }

    #[test]
    fn the_ends_of_the_number_range_do_not_overflow() {
        let all = LockClaim { range: LockRange::ALL, ..claim(1, 0, 0, LockMode::Shared) };
        let last = LockRange { first: u64::MAX, last: u64::MAX };
        assert_eq!(unlock(&[all], last).added[0].range, LockRange { first: 0, last: u64::MAX - 1 });
        assert_eq!(unlock(&[all], LockRange { first: 0, last: 0 }).added[0].range.first, 1);
        assert!(unlock(&[all], LockRange::ALL).added.is_empty());
        let end = LockClaim { range: last, ..all };
        assert_eq!(lock(&[end], all).added, [all]);
    }
}

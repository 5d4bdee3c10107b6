use dfs_proto::msg::meta::{Answer, LockMode, Op, Query};

use super::*;
use crate::command::Body;
use crate::testing::{Rig, kind_of};

fn claim(number: u64, first: u64, last: u64, mode: LockMode) -> LockClaim {
    let owner = LockOwner { space: LockSpace::Range, number };
    LockClaim { owner, range: LockRange { first, last }, mode, process: 9 }
}

fn lock_as(rig: &mut Rig, session: SessionId, inode: InodeId, claim: LockClaim) -> Option<ErrorKind> {
    rig.session = session;
    kind_of(rig.op(Op::Lock { inode, claim }))
}

fn unlock(rig: &mut Rig, inode: InodeId, claim: LockClaim) {
    rig.op(Op::Unlock { inode, owner: claim.owner, range: claim.range }).unwrap();
}

/// A rig with a file and two sessions.
fn rig() -> (Rig, InodeId, [SessionId; 2]) {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "f").inode;
    let first = rig.session;
    rig.open_session();
    let second = rig.session;
    (rig, file, [first, second])
}

#[test]
fn owners_exclude_each_other_within_and_across_sessions() {
    let (mut rig, file, [a, b]) = rig();
    let (one, two) = (claim(1, 0, 9, LockMode::Exclusive), claim(2, 5, 20, LockMode::Shared));
    assert_eq!(lock_as(&mut rig, a, file, one), None);
    assert_eq!(lock_as(&mut rig, a, file, two), Some(ErrorKind::WouldBlock));
    assert_eq!(lock_as(&mut rig, b, file, two), Some(ErrorKind::WouldBlock));
    // The same number in another session is another owner.
    assert_eq!(lock_as(&mut rig, b, file, one), Some(ErrorKind::WouldBlock));
    assert_eq!(rig.query(Query::TestLock { inode: file, claim: two }), Ok(Answer::Lock(Some((a, one)))));
    rig.session = a;
    unlock(&mut rig, file, LockClaim { range: LockRange { first: 5, last: 9 }, ..one });
    assert!(rig.events.contains(&Event::LocksReleased(file)));
    assert_eq!(lock_as(&mut rig, b, file, two), None);
    assert_eq!(lock_as(&mut rig, a, file, two), None);
}

#[test]
fn an_upgrade_is_refused_while_another_reads_and_a_downgrade_lets_readers_in() {
    let (mut rig, file, [a, b]) = rig();
    let (shared, exclusive) = (claim(1, 0, 9, LockMode::Shared), claim(1, 0, 9, LockMode::Exclusive));
    assert_eq!(lock_as(&mut rig, a, file, shared), None);
    assert_eq!(lock_as(&mut rig, b, file, shared), None);
    assert_eq!(lock_as(&mut rig, a, file, exclusive), Some(ErrorKind::WouldBlock));
    rig.session = b;
    unlock(&mut rig, file, shared);
    assert_eq!(lock_as(&mut rig, a, file, exclusive), None);
    assert_eq!(lock_as(&mut rig, b, file, shared), Some(ErrorKind::WouldBlock));
    assert_eq!(lock_as(&mut rig, a, file, shared), None);
    assert!(rig.events.contains(&Event::LocksReleased(file)));
    assert_eq!(lock_as(&mut rig, b, file, shared), None);
}

#[test]
fn locks_go_with_their_session_however_it_ends() {
    for in_order in [true, false] {
        let (mut rig, file, [a, b]) = rig();
        for range in 0..5 {
            assert_eq!(lock_as(&mut rig, a, file, claim(1, range * 10, range * 10 + 5, LockMode::Exclusive)), None);
        }
        match in_order {
            true => rig.op(Op::CloseSession).map(|_| ()).unwrap(),
            false => rig.apply(Body::ExpireSessions { sessions: vec![a] }).map(|_| ()).unwrap(),
        }
        assert!(rig.events.contains(&Event::LocksReleased(file)));
        assert!(rows::locks(&rig.state, file).unwrap().is_empty());
        assert_eq!(lock_as(&mut rig, b, file, claim(1, 0, 99, LockMode::Exclusive)), None);
    }
}

#[test]
fn locks_go_with_their_inode() {
    let (mut rig, file, [a, _]) = rig();
    assert_eq!(lock_as(&mut rig, a, file, claim(1, 0, 9, LockMode::Shared)), None);
    rig.unlink(InodeId::ROOT, "f", Some(file)).unwrap();
    assert_eq!(rows::locks(&rig.state, file).unwrap().len(), 1);
    rig.release(file);
    assert!(rows::locks(&rig.state, file).unwrap().is_empty());
    assert_eq!(rows::session_locks(&rig.state, a, ALL_INODES).unwrap(), 0);
    assert_eq!(lock_as(&mut rig, a, file, claim(1, 0, 9, LockMode::Shared)), Some(ErrorKind::Stale));
}

#[test]
fn a_late_duplicate_of_a_lock_does_not_lock_again() {
    let (mut rig, file, [a, _]) = rig();
    rig.session = a;
    let body = rig.client(Op::Lock { inode: file, claim: claim(1, 0, 9, LockMode::Exclusive) }, Vec::new());
    rig.apply(body.clone()).unwrap();
    unlock(&mut rig, file, claim(1, 0, 9, LockMode::Exclusive));
    rig.apply(body).unwrap();
    assert!(rows::locks(&rig.state, file).unwrap().is_empty());
}

#[test]
fn an_inode_has_a_bounded_number_of_locks_and_unlocking_works_at_the_bound() {
    let (mut rig, file, [a, b]) = rig();
    rig.session = a;
    let nth = |n: u64| claim(1, n * 10, n * 10 + 4, LockMode::Shared);
    let bodies: Vec<_> = (0..LOCKS_PER_INODE_MAX as u64)
        .map(|n| rig.client(Op::Lock { inode: file, claim: nth(n) }, Vec::new()))
        .collect();
    assert!(rig.apply_batch(bodies).iter().all(Result::is_ok));
    assert_eq!(lock_as(&mut rig, b, file, nth(0)), Some(ErrorKind::NoLocks));
    rig.session = a;
    let split = Op::Unlock { inode: file, owner: nth(0).owner, range: LockRange { first: 2, last: 2 } };
    assert_eq!(kind_of(rig.op(split)), Some(ErrorKind::NoLocks));
    unlock(&mut rig, file, nth(0));
    assert_eq!(lock_as(&mut rig, b, file, nth(0)), None);
}

#[test]
fn nonsense_ranges_are_refused() {
    let (mut rig, file, [a, _]) = rig();
    assert_eq!(lock_as(&mut rig, a, file, claim(1, 5, 4, LockMode::Shared)), Some(ErrorKind::InvalidArgument));
    let mut whole = claim(1, 0, 4, LockMode::Shared);
    whole.owner.space = LockSpace::Whole;
    assert_eq!(lock_as(&mut rig, a, file, whole), Some(ErrorKind::InvalidArgument));
    whole.range = LockRange::ALL;
    assert_eq!(lock_as(&mut rig, a, file, whole), None);
    // flock and fcntl do not see each other.
    assert_eq!(lock_as(&mut rig, a, file, claim(2, 0, 4, LockMode::Exclusive)), None);
}

//! Locks: replicated, waited for in order, gone with their session.

use dfs_proto::msg::meta::{
    LockClaim, LockMode, LockOwner, LockRange, LockSpace, MetaReply, MetaRequest, Op, SessionGrant,
};
use dfs_proto::{ErrorKind, InodeId, Role, WireError};

use crate::request;
use crate::support::{Client, Group, create, kind, until};

fn claim(number: u64, mode: LockMode) -> LockClaim {
    let owner = LockOwner { space: LockSpace::Range, number };
    LockClaim { owner, range: LockRange { first: 10, last: 19 }, mode, process: 1 }
}

fn wait(client: &Client<'_>, session: SessionGrant, inode: InodeId, claim: LockClaim) -> Result<MetaReply, WireError> {
    let session = session.session;
    client.ask_leader(&MetaRequest::AwaitLock { session, inode, claim, detect_deadlock: true, wait_ms: 2000 })
}

/// Asks again until there is a chance, as clients do.
fn wait_for_chance(client: &Client<'_>, session: SessionGrant, inode: InodeId, claim: LockClaim) {
    until("a chance for the lock", || match wait(client, session, inode, claim) {
        Ok(MetaReply::Done) => Some(()),
        Err(error) if error.kind == ErrorKind::WouldBlock => None,
        other => panic!("{other:?}"),
    })
}

#[test]
fn locks_outlive_the_leader_and_go_with_their_session() {
    let mut group = Group::formed(3, |_| {});
    let (holder, waiter, file, leader);
    {
        let client = group.client(Role::Client, 100);
        (holder, waiter) = (client.open_session(), client.open_session());
        file = create(&client, request(holder.session, 1), "file");
        client
            .mutate(request(holder.session, 2), Op::Lock { inode: file, claim: claim(1, LockMode::Exclusive) })
            .unwrap();
        leader = client.leader();
    }
    group.kill(leader);
    let client = group.client(Role::Client, 100);
    let lock = Op::Lock { inode: file, claim: claim(1, LockMode::Shared) };
    assert_eq!(kind(client.mutate(request(waiter.session, 1), lock.clone())), Some(ErrorKind::WouldBlock));
    // A retry of what the old leader has done is answered and not done again.
    client.mutate(request(holder.session, 2), Op::Lock { inode: file, claim: claim(1, LockMode::Exclusive) }).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let client = group.client(Role::Client, 100);
            wait_for_chance(&client, waiter, file, claim(1, LockMode::Shared));
            client.mutate(request(waiter.session, 2), lock).unwrap();
        });
        client.mutate(request(holder.session, 3), Op::CloseSession).unwrap();
        waiting.join().unwrap();
    });
}

#[test]
fn two_owners_that_wait_for_each_other_are_told() {
    let group = Group::formed(1, |_| {});
    let client = group.client(Role::Client, 100);
    let (a, b) = (client.open_session(), client.open_session());
    let one = create(&client, request(a.session, 1), "one");
    let two = create(&client, request(a.session, 2), "two");
    let exclusive = claim(1, LockMode::Exclusive);
    client.mutate(request(a.session, 3), Op::Lock { inode: one, claim: exclusive }).unwrap();
    client.mutate(request(b.session, 1), Op::Lock { inode: two, claim: exclusive }).unwrap();
    // Whoever closes the circle is told, and gives way. That may be either.
    let give_way_or_get_on = |session: SessionGrant, has: InodeId, wants: InodeId| {
        let client = group.client(Role::Client, 100);
        let told = until("a circle or a chance", || match wait(&client, session, wants, exclusive) {
            Ok(MetaReply::Done) => Some(false),
            Err(error) if error.kind == ErrorKind::Deadlock => Some(true),
            Err(error) if error.kind == ErrorKind::WouldBlock => None,
            other => panic!("{other:?}"),
        });
        if told {
            let unlock = Op::Unlock { inode: has, owner: exclusive.owner, range: LockRange::ALL };
            client.mutate(request(session.session, 10), unlock).unwrap();
        }
        told
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| give_way_or_get_on(a, one, two));
        let told = give_way_or_get_on(b, two, one);
        assert!(other.join().unwrap() || told);
    });
}

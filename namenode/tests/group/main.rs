//! Namenodes as a group: elections, retries, snapshots, roles, datanodes.

mod balance;
mod compaction;
mod datanodes;
mod identity;
mod large_directory;
mod locks;
mod membership;
mod opens;
mod remembering;
mod support;

use dfs_proto::msg::admin::AdminRequest;
use dfs_proto::msg::meta::{MetaRequest, Op};
use dfs_proto::{ErrorKind, RequestId, Role, SessionId};
use support::{Group, kind, mkdir, until};

fn request(session: SessionId, number: u64) -> RequestId {
    RequestId { session, number }
}

#[test]
fn a_retry_after_the_loss_of_the_leader_is_answered_and_not_done_twice() {
    let mut group = Group::formed(3, |_| {});
    let session;
    let first;
    let leader;
    {
        let client = group.client(Role::Client, 100);
        session = client.open_session();
        first = client.mutate(request(session.session, 1), mkdir("a")).unwrap();
        leader = client.leader();
    }
    group.kill(leader);
    {
        let client = group.client(Role::Client, 100);
        assert_eq!(client.mutate(request(session.session, 1), mkdir("a")).unwrap(), first);
        // Really a second time is refused.
        assert_eq!(kind(client.mutate(request(session.session, 2), mkdir("a"))), Some(ErrorKind::Exists));
        client.mutate(request(session.session, 3), mkdir("b")).unwrap();
        assert_ne!(client.leader(), leader);
        assert_eq!(client.names(session), ["a", "b"]);
    }
    group.restart(leader);
    let client = group.client(Role::Client, 100);
    let applied = client.status(client.leader()).unwrap().namenodes.iter().map(|node| node.applied_index).max();
    until("the restarted namenode has caught up", || {
        client.status(leader)?.namenodes.iter().any(|node| Some(node.applied_index) >= applied).then_some(())
    });
}

#[test]
fn everything_acknowledged_survives_the_kill_of_all_namenodes_at_once() {
    let mut group = Group::formed(3, |_| {});
    let session;
    {
        let client = group.client(Role::Client, 100);
        session = client.open_session();
        for number in 1..=20 {
            client.mutate(request(session.session, number), mkdir(&format!("d{number}"))).unwrap();
        }
    }
    (0..3).for_each(|index| group.kill(index));
    (0..3).for_each(|index| group.restart(index));
    let client = group.client(Role::Client, 100);
    assert_eq!(client.names(session).len(), 20);
    client.mutate(request(session.session, 21), Op::CloseSession).unwrap();
    let again = client.mutate(request(session.session, 22), mkdir("late"));
    assert_eq!(kind(again), Some(ErrorKind::SessionExpired));
}

#[test]
fn a_namenode_away_for_longer_than_the_log_catches_up_by_a_snapshot() {
    let mut group = Group::formed(3, |config| {
        config.snapshot_log_entries = 40;
        config.log_keep_entries = 5;
    });
    let session;
    let (leader, away);
    {
        let client = group.client(Role::Client, 100);
        session = client.open_session();
        leader = client.leader();
        away = (leader + 1) % 3;
    }
    group.kill(away);
    let applied;
    {
        let client = group.client(Role::Client, 100);
        for number in 1..=120 {
            client.mutate(request(session.session, number), mkdir(&format!("d{number}"))).unwrap();
        }
        let leader = client.leader();
        applied = until("a snapshot by itself", || {
            let own = client.status(leader)?.namenodes.into_iter().find(|node| node.applied_index > 0)?;
            (own.snapshot_index > 0).then_some(own.applied_index)
        });
        // And one that is asked for, which purges the log up to its end.
        group.admin().ask(leader, &MetaRequest::Admin(AdminRequest::Snapshot)).unwrap();
    }
    group.restart(away);
    {
        let client = group.client(Role::Client, 100);
        until("the returned namenode has installed the snapshot", || {
            let status = client.status(away)?;
            status.namenodes.iter().any(|node| node.applied_index >= applied && node.snapshot_index > 0).then_some(())
        });
    }
    // Without the others' log it holds everything: it and one that was there are a majority.
    let leader = group.client(Role::Client, 100).leader();
    let other = (0..3).find(|index| *index != leader && *index != away).unwrap_or(leader);
    group.kill(other);
    let client = group.client(Role::Client, 100);
    client.mutate(request(session.session, 121), mkdir("last")).unwrap();
    assert_eq!(client.names(session).len(), 121);
}

#[test]
fn leaders_lost_one_right_after_the_other_take_nothing_acknowledged_with_them() {
    let mut group = Group::formed(3, |_| {});
    let session = group.client(Role::Client, 100).open_session();
    let rounds = 6;
    for number in 1..=rounds {
        let leader;
        {
            let client = group.client(Role::Client, 100);
            client.mutate(request(session.session, number), mkdir(&format!("d{number}"))).unwrap();
            leader = client.leader();
        }
        // The one killed the round before may only just be starting, with a log that is behind.
        group.kill(leader);
        group.client(Role::Client, 100).leader();
        group.restart(leader);
    }
    let client = group.client(Role::Client, 100);
    assert_eq!(client.names(session).len(), rounds as usize);
}

#[test]
fn a_cluster_is_made_once_and_by_an_administrator() {
    let mut group = Group::start(1, |_| {});
    assert_eq!(kind(group.client(Role::Client, 100).initialize()), Some(ErrorKind::Forbidden));
    assert_eq!(kind(group.client(Role::Datanode, 7).initialize()), Some(ErrorKind::Forbidden));
    group.admin().initialize().unwrap();
    assert_eq!(kind(group.admin().initialize()), Some(ErrorKind::Exists));
    let datanode = group.client(Role::Datanode, 7);
    let forbidden = datanode.ask_leader(&MetaRequest::OpenSession { description: "x".into() });
    assert_eq!(kind(forbidden), Some(ErrorKind::Forbidden));
    drop(datanode);
    group.stop(0).unwrap();
    group.restart(0);
    assert_eq!(kind(group.admin().initialize()), Some(ErrorKind::Exists));
}

#[test]
fn a_session_of_another_certificate_is_not_lent() {
    let group = Group::formed(1, |_| {});
    let session = group.client(Role::Client, 100).open_session();
    let thief = group.client(Role::Client, 101);
    assert_eq!(kind(thief.mutate(request(session.session, 1), mkdir("a"))), Some(ErrorKind::Forbidden));
}

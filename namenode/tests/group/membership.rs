//! CONSISTENCY.md, section 11: the group changes while it serves, and nothing that was acknowledged is lost.

use dfs_proto::msg::group::{GroupReply, GroupRequest};
use dfs_proto::msg::meta::Op;
use dfs_proto::{ErrorKind, NodeId, Role, SessionId};

use crate::request;
use crate::support::{Client, Group, kind, mkdir, until};

fn add(group: &Group, index: usize) -> GroupRequest {
    GroupRequest::Add(group.addr(index))
}

/// Makes directories as the load under which the group changes; returns how many there are.
struct Load {
    session: SessionId,
    made: u64,
}

impl Load {
    fn start(client: &Client<'_>) -> Load {
        Load { session: client.open_session().session, made: 0 }
    }

    fn some(&mut self, client: &Client<'_>) {
        for _ in 0..10 {
            self.made += 1;
            client.mutate(request(self.session, self.made), mkdir(&format!("d{}", self.made))).unwrap();
        }
    }

    fn check(&self, client: &Client<'_>) {
        let session = client.open_session();
        assert_eq!(client.names(session).len() as u64, self.made);
    }
}

#[test]
fn a_group_grows_from_one_to_three_to_five_and_shrinks_again_under_load() {
    let mut group = Group::formed(1, |_| {});
    let mut load = Load::start(&group.client(Role::Client, 100));
    for _ in 0..4 {
        let new = group.spare(|_| {});
        let client = group.client(Role::Client, 100);
        load.some(&client);
        assert_eq!(group.admin().group(add(&group, new)), Ok(GroupReply::Changed));
        // Asked again it is done already.
        assert_eq!(group.admin().group(add(&group, new)), Ok(GroupReply::Changed));
        load.some(&client);
    }
    assert_eq!(group.admin().voters(), [1, 2, 3, 4, 5]);
    // Two of five are lost, and the rest serves.
    let leader = group.admin().leader();
    let lost = [leader, (leader + 1) % 5];
    lost.iter().for_each(|index| group.kill(*index));
    load.some(&group.client(Role::Client, 100));
    lost.iter().for_each(|index| group.restart(*index));
    // Whoever leads may be among those that go, down to the last.
    for node in [1, 2, 3, 4] {
        let request = GroupRequest::Remove { node: NodeId(node) };
        assert_eq!(group.admin().group(request), Ok(GroupReply::Changed));
        load.some(&group.client(Role::Client, 100));
    }
    assert_eq!(group.admin().voters(), [5]);
    load.check(&group.client(Role::Client, 100));
    let last = GroupRequest::Remove { node: NodeId(5) };
    assert_eq!(kind(group.admin().group(last)), Some(ErrorKind::InvalidArgument));
}

#[test]
fn a_newcomer_that_needs_a_snapshot_gets_one() {
    let tune = |config: &mut dfs_namenode::Config| {
        config.snapshot_log_entries = 20;
        config.log_keep_entries = 5;
    };
    let mut group = Group::formed(1, tune);
    let mut load = Load::start(&group.client(Role::Client, 100));
    (0..10).for_each(|_| load.some(&group.client(Role::Client, 100)));
    let new = group.spare(tune);
    assert_eq!(group.admin().group(add(&group, new)), Ok(GroupReply::Changed));
    let client = group.admin();
    until("the newcomer has a snapshot", || {
        client.status(new)?.namenodes.iter().any(|node| node.snapshot_index > 0).then_some(())
    });
    load.check(&group.client(Role::Client, 100));
}

#[test]
fn one_that_is_lost_for_good_is_replaced_and_its_number_is_not_given_again() {
    let mut group = Group::formed(3, |_| {});
    let mut load = Load::start(&group.client(Role::Client, 100));
    load.some(&group.client(Role::Client, 100));
    let lost = (group.admin().leader() + 1) % 3;
    group.kill(lost);
    let new = group.spare(|_| {});
    let old = NodeId(group.nodes[lost].id);
    let request = GroupRequest::Replace { old, new: group.addr(new) };
    assert_eq!(group.admin().group(request), Ok(GroupReply::Changed));
    load.some(&group.client(Role::Client, 100));
    assert!(!group.admin().voters().contains(&old.0) && group.admin().voters().contains(&4));
    let GroupReply::Members(members) = group.admin().group(GroupRequest::Show).unwrap() else { panic!("members") };
    assert_eq!(members.used, [1, 2, 3, 4].map(NodeId));
    let again = GroupRequest::Add(dfs_proto::msg::group::NamenodeAddr { node: old, ..group.addr(lost) });
    assert_eq!(kind(group.admin().group(again)), Some(ErrorKind::InvalidArgument));
    // With the leader gone the new one makes up the majority.
    let leader = group.admin().leader();
    group.kill(leader);
    load.some(&group.client(Role::Client, 100));
    load.check(&group.client(Role::Client, 100));
}

#[test]
fn a_change_that_would_leave_no_majority_is_refused() {
    let mut group = Group::formed(3, |_| {});
    let leader = group.admin().leader();
    let (dead, alive) = ((leader + 1) % 3, (leader + 2) % 3);
    group.kill(dead);
    let admin = group.admin();
    until("the silence is noticed", || {
        let members = admin.members(leader)?.members;
        (!members[dead].reachable).then_some(())
    });
    let refused = admin.group(GroupRequest::Remove { node: NodeId(group.nodes[alive].id) });
    assert_eq!(kind(refused), Some(ErrorKind::InvalidArgument));
    // Nobody listens there.
    let nobody = GroupRequest::Add(dfs_proto::msg::group::NamenodeAddr {
        node: NodeId(9),
        name: "nn9".into(),
        addr: crate::support::free_addr(),
        raft_addr: crate::support::free_addr(),
    });
    assert_eq!(kind(admin.group(nobody)), Some(ErrorKind::InvalidArgument));
    assert_eq!(admin.voters(), [1, 2, 3]);
}

#[test]
fn a_change_whose_leader_dies_is_finished_by_the_next_one() {
    let mut group = Group::formed(3, |_| {});
    let mut load = Load::start(&group.client(Role::Client, 100));
    load.some(&group.client(Role::Client, 100));
    for _ in 0..2 {
        let new = group.spare(|_| {});
        let leader = group.admin().leader();
        let tls = group.certificate(Role::Admin, 901);
        let target = group.addr(leader);
        let request = add(&group, new);
        // Asked without waiting for the answer, at the very leader that is about to die.
        let (asked, go) = std::sync::mpsc::channel();
        let asking = group.runtime.spawn(async move {
            let tls = dfs_rpc::Tls::load(&tls).unwrap();
            let pool = dfs_rpc::Pool::new(dfs_rpc::Endpoint::client(&tls).unwrap());
            let target = dfs_rpc::Target {
                plane: dfs_proto::Plane::Meta,
                role: Role::Namenode,
                node: target.node,
                addr: target.addr,
            };
            let connection = pool.get(&target).await.unwrap();
            asked.send(()).unwrap();
            let request = dfs_proto::msg::meta::MetaRequest::Admin(dfs_proto::msg::admin::AdminRequest::Group(request));
            let _: Result<dfs_proto::msg::meta::MetaReply, _> =
                dfs_rpc::call(&connection, &request, std::time::Duration::from_secs(1)).await;
        });
        go.recv().unwrap();
        group.kill(leader);
        load.some(&group.client(Role::Client, 100));
        assert_eq!(group.admin().group(add(&group, new)), Ok(GroupReply::Changed));
        group.restart(leader);
        group.runtime.block_on(asking).unwrap();
    }
    assert_eq!(group.admin().voters(), [1, 2, 3, 4, 5]);
    load.check(&group.client(Role::Client, 100));
}

#[test]
fn the_lead_goes_where_it_is_sent_and_a_leader_that_stops_hands_it_over() {
    let mut group = Group::formed(3, |_| {});
    let mut load = Load::start(&group.client(Role::Client, 100));
    load.some(&group.client(Role::Client, 100));
    let leader = group.admin().leader();
    let next = (leader + 1) % 3;
    let to = NodeId(group.nodes[next].id);
    let handed = group.admin().group(GroupRequest::HandOver { to });
    assert_eq!(handed, Ok(GroupReply::Leads(to)));
    assert_eq!(group.admin().leader(), next);
    load.some(&group.client(Role::Client, 100));
    let term = group.admin().status(next).unwrap().term;
    group.stop(next).unwrap();
    // Whoever leads was asked to: nobody had to notice the silence first.
    let successor = group.admin().leader();
    assert_eq!(group.admin().status(successor).unwrap().term, term + 1);
    load.some(&group.client(Role::Client, 100));
    load.check(&group.client(Role::Client, 100));
    let dead = GroupRequest::HandOver { to };
    assert_eq!(kind(group.admin().group(dead)), Some(ErrorKind::InvalidArgument));
}

#[test]
fn only_administrators_change_the_group_and_everybody_may_see_it() {
    let group = Group::formed(1, |_| {});
    let remove = GroupRequest::Remove { node: NodeId(1) };
    assert_eq!(kind(group.client(Role::Client, 100).group(remove.clone())), Some(ErrorKind::Forbidden));
    assert_eq!(kind(group.client(Role::Datanode, 101).group(remove)), Some(ErrorKind::Forbidden));
    let client = group.client(Role::Datanode, 101);
    let members = client.members(0).unwrap();
    assert_eq!((members.members[0].name.as_str(), members.members[0].addr), ("nn1", group.addr(0).addr));
    assert_eq!(members.members[0].raft_addr, Some(group.addr(0).raft_addr));
    let session = group.client(Role::Client, 100).open_session();
    group.client(Role::Client, 100).mutate(request(session.session, 1), Op::CloseSession).unwrap();
}

#[test]
fn a_leader_without_a_majority_does_not_say_that_it_leads() {
    let mut group = Group::formed(3, |_| {});
    let leader = group.admin().leader();
    for other in (0..3).filter(|index| *index != leader) {
        group.kill(other);
    }
    let admin = group.admin();
    until("it names nobody, in its status and as a member", || {
        let status = admin.status(leader)?;
        let members = admin.members(leader)?;
        assert_eq!(members.members.len(), 3);
        (status.leader.is_none() && status.datanodes.is_empty() && members.leader.is_none()).then_some(())
    });
}

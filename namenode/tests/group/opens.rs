//! Files that lose their names while sessions have them open.

use std::time::Duration;

use dfs_proto::limits::OPEN_AHEAD_MAX;
use dfs_proto::msg::meta::{Answer, MetaReply, MetaRequest, NewNode, Op, OpReply, Query, SessionGrant};
use dfs_proto::{Caller, ErrorKind, InodeId, Name, Role};
use dfs_rpc::RpcError;

use crate::request;
use crate::support::{Client, Group, create, kind, until};

fn open(client: &Client<'_>, session: SessionGrant, inode: InodeId) -> Option<ErrorKind> {
    kind(client.query(session, Query::Open { inode, read: true, write: false }))
}

fn unlink(name: &str) -> Op {
    Op::Unlink { parent: InodeId::ROOT, name: Name::new(name).unwrap(), hold: None }
}

fn links(client: &Client<'_>, session: SessionGrant, inode: InodeId) -> Option<u32> {
    match client.query(session, Query::GetAttr { inode }) {
        Ok(Answer::Attr(attr)) => Some(attr.nlink),
        Err(error) if error.kind == ErrorKind::Stale => None,
        other => panic!("{other:?}"),
    }
}

fn closed(client: &Client<'_>, session: SessionGrant, inode: InodeId) {
    client.ask_leader(&MetaRequest::Closed { session: session.session, inodes: vec![inode] }).unwrap();
}

#[test]
fn a_file_lives_without_a_name_until_the_last_session_has_closed_it() {
    let group = Group::formed(1, |_| {});
    let client = group.client(Role::Client, 100);
    let (a, b, c) = (client.open_session(), client.open_session(), client.open_session());
    // Made and opened by one, opened by another, removed by a third.
    let file = create(&client, request(a.session, 1), "file");
    assert_eq!(open(&client, b, file), None);
    client.mutate(request(c.session, 1), unlink("file")).unwrap();
    assert_eq!(links(&client, c, file), Some(0));
    assert_eq!(open(&client, c, file), Some(ErrorKind::Stale), "whoever does not hold it gets no hold of it");
    assert_eq!(open(&client, b, file), None);
    closed(&client, a, file);
    assert_eq!(links(&client, c, file), Some(0));
    closed(&client, b, file);
    assert_eq!(links(&client, c, file), None);

    let closed_before = create(&client, request(a.session, 2), "second");
    closed(&client, a, closed_before);
    client.mutate(request(c.session, 2), unlink("second")).unwrap();
    assert_eq!(links(&client, c, closed_before), None);
}

#[test]
fn files_that_were_opened_ahead_are_open_until_they_are_closed() {
    let group = Group::formed(1, |_| {});
    let client = group.client(Role::Client, 100);
    let (a, b) = (client.open_session(), client.open_session());
    let files: Vec<_> = (1..4).map(|n| create(&client, request(a.session, n), &n.to_string())).collect();
    closed(&client, a, files[1]);
    let ahead = |others| client.query(b, Query::OpenAhead { inode: files[0], others });
    let Ok(Answer::OpenedAhead { others, .. }) = ahead(vec![files[1]]) else { panic!("not opened") };
    assert_eq!(others.iter().map(|other| other.attr.inode).collect::<Vec<_>>(), [files[1]]);
    client.mutate(request(a.session, 5), unlink("2")).unwrap();
    assert_eq!(links(&client, a, files[1]), Some(0), "it is held for who may open it");
    closed(&client, b, files[1]);
    assert_eq!(links(&client, a, files[1]), None);
    assert_eq!(kind(ahead(vec![files[1]; OPEN_AHEAD_MAX + 1])), Some(ErrorKind::InvalidArgument));
}

#[test]
fn a_new_leader_keeps_what_may_be_open_until_it_has_been_told() {
    let mut group = Group::formed(3, |_| {});
    let (holder, other, held, free, leader);
    {
        let client = group.client(Role::Client, 100);
        (holder, other) = (client.open_session(), client.open_session());
        held = create(&client, request(holder.session, 1), "held");
        free = create(&client, request(other.session, 1), "free");
        closed(&client, other, free);
        leader = client.leader();
    }
    group.kill(leader);
    let client = group.client(Role::Client, 100);
    client.mutate(request(other.session, 2), unlink("held")).unwrap();
    client.mutate(request(other.session, 3), unlink("free")).unwrap();
    assert_eq!((links(&client, other, held), links(&client, other, free)), (Some(0), Some(0)));

    for (session, inodes) in [(other, vec![]), (holder, vec![held])] {
        let renew = MetaRequest::Renew { session: session.session };
        assert!(matches!(client.ask_leader(&renew), Ok(MetaReply::Announce)));
        assert!(links(&client, other, free).is_some(), "it may be open elsewhere");
        client.ask_leader(&MetaRequest::Announce { session: session.session, inodes, last: true }).unwrap();
        assert!(matches!(client.ask_leader(&renew), Ok(MetaReply::Done)));
    }
    until("what nobody has open is gone", || links(&client, other, free).is_none().then_some(()));
    assert_eq!(links(&client, other, held), Some(0));
    assert_eq!(open(&client, holder, held), None);
    client.mutate(request(holder.session, 2), Op::CloseSession).unwrap();
    until("and what was held, with its holder", || links(&client, other, held).is_none().then_some(()));
}

fn open_or_create(name: &str) -> Op {
    let name = Name::new(name).unwrap();
    let (node, open) = (NewNode::File, Some((true, true)));
    Op::Make { parent: InodeId::ROOT, name, node, mode: 0o644, exclusive: false, open, replication: None }
}

/// Asked again, it is answered from what is remembered, which was true when the command was applied.
#[test]
fn a_file_that_was_opened_by_its_name_and_is_gone_before_that_is_noted_is_not_open() {
    let group = Group::formed(1, |_| {});
    let client = group.client(Role::Client, 100);
    let (a, b) = (client.open_session(), client.open_session());
    let file = create(&client, request(b.session, 1), "file");
    closed(&client, b, file);
    for (number, name) in [(1, "file"), (2, "made")] {
        let made = |reply: OpReply| match reply {
            OpReply::Made { attr, grant: Some(_), .. } => attr.inode,
            other => panic!("{other:?}"),
        };
        let inode = made(client.mutate(request(a.session, number), open_or_create(name)).unwrap());
        // By another name than it was found under.
        let rename = Op::Rename {
            from_parent: InodeId::ROOT,
            from_name: Name::new(name).unwrap(),
            to_parent: InodeId::ROOT,
            to_name: Name::new("renamed").unwrap(),
            mode: dfs_proto::msg::meta::RenameMode::Replace,
            hold: None,
        };
        client.mutate(request(b.session, 10 * number), rename).unwrap();
        // Asked again while it has a name, and then while it is held: it is open.
        assert_eq!(made(client.mutate(request(a.session, number), open_or_create(name)).unwrap()), inode);
        client.mutate(request(b.session, 10 * number + 1), unlink("renamed")).unwrap();
        assert_eq!(made(client.mutate(request(a.session, number), open_or_create(name)).unwrap()), inode);
        closed(&client, a, inode);
        assert_eq!(links(&client, b, inode), None);
        let again = client.mutate(request(a.session, number), open_or_create(name));
        assert_eq!(kind(again), Some(ErrorKind::Stale), "{name}: a permission for a file that is gone");
        let new = made(client.mutate(request(a.session, 100 + number), open_or_create(name)).unwrap());
        assert_ne!(new, inode);
        closed(&client, a, new);
    }
}

/// The caller is told that it is not known whether the name is gone; until it is, nobody must find the file by it.
#[test]
fn a_removal_that_nobody_waits_for_any_more_still_keeps_others_from_opening_the_file() {
    let mut group = Group::formed(3, |_| {});
    let (a, b, file, leader);
    {
        let client = group.client(Role::Client, 100);
        (a, b) = (client.open_session(), client.open_session());
        file = create(&client, request(a.session, 1), "file");
        closed(&client, a, file);
        leader = client.leader();
    }
    let others: Vec<usize> = (0..3).filter(|index| *index != leader).collect();
    others.iter().for_each(|index| group.kill(*index));
    {
        let client = group.client(Role::Client, 100);
        let (id, op) = (request(a.session, 2), unlink("file"));
        let remove = MetaRequest::Mutate { id, acked_below: 0, caller: Caller::ROOT, op };
        let refused = client.ask_for(leader, &remove, Duration::from_secs(30));
        assert!(matches!(&refused, Err(RpcError::Refused(error)) if error.kind == ErrorKind::Timeout), "{refused:?}");
        let query = Query::Open { inode: file, read: true, write: false };
        let open = MetaRequest::Query { session: b.session, caller: Caller::ROOT, query };
        let answer = client.ask(leader, &open);
        assert!(matches!(answer, Err(RpcError::Timeout(_))), "it goes on as if there was no removal: {answer:?}");
    }
    others.iter().for_each(|index| group.restart(*index));
    let client = group.client(Role::Client, 100);
    // Applied then, or lost with the lead of this namenode: whoever got the file keeps it.
    let opened = open(&client, b, file);
    client.mutate(request(a.session, 2), unlink("file")).unwrap();
    match opened {
        None => assert_eq!(links(&client, b, file), Some(0)),
        refused => assert_eq!((refused, links(&client, b, file)), (Some(ErrorKind::Stale), None)),
    }
}

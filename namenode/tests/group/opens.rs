//! Files that lose their names while sessions have them open.

use dfs_proto::msg::meta::{Answer, MetaReply, MetaRequest, Op, Query, SessionGrant};
use dfs_proto::{ErrorKind, InodeId, Name, Role};

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

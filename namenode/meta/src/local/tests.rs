//! The copy and the cluster come to the same rows, whatever is done.

use std::collections::VecDeque;

use dfs_proto::ErrorKind;
use dfs_proto::msg::meta::{NewNode, RenameMode, Step};
use dfs_proto::{SetAttr, SetTime, XattrMode, XattrName, XattrValue};

use super::*;
use crate::command::Body;
use crate::rows::InodeRow;
use crate::testing::{Rig, kind_of, name};

fn make_private(parent: InodeId, text: &str) -> Op {
    make(parent, text, NewNode::Directory)
}

fn make(parent: InodeId, text: &str, node: NewNode) -> Op {
    let private = node == NewNode::Directory;
    let (mode, umask, replication) = (0o777, 0o022, None);
    Op::MakeMasked { parent, name: name(text), node, mode, umask, exclusive: true, open: None, replication, private }
}

/// A cluster, a session with a private directory in it, and the session's copy.
struct Pair {
    rig: Rig,
    tree: LocalTree,
    top: InodeId,
    steps: VecDeque<Step>,
    clock: i64,
}

impl Pair {
    fn new() -> Pair {
        let mut rig = Rig::new();
        let Ok(OpReply::Made { attr, .. }) = rig.op(make_private(InodeId::ROOT, "top")) else { panic!() };
        let mut tree = LocalTree::new(rig.session, 3).unwrap();
        assert!(tree.adopt(InodeId::ROOT, &name("top"), &attr).unwrap());
        let Ok(OpReply::Reserved { first }) = rig.op(Op::Reserve { count: 4096 }) else { panic!() };
        tree.give_numbers(first, 4096);
        Pair { rig, tree, top: attr.inode, steps: VecDeque::new(), clock: 5000 }
    }

    fn here(&mut self, caller: &Caller, op: Op) -> Result<OpReply, WireError> {
        assert_eq!(self.tree.route_op(&op).unwrap(), Routed::Here, "{op:?}");
        self.clock += 1;
        let at = Timestamp { secs: self.clock, nanos: 7 };
        let reply = self.tree.apply(caller, at, &op).unwrap()?;
        let inode = match &reply {
            OpReply::Made { attr, created: true, .. } => Some(attr.inode),
            _ => None,
        };
        self.steps.push_back(Step { at, caller: caller.clone(), inode, op });
        Ok(reply)
    }

    fn made(&mut self, op: Op) -> InodeId {
        match self.here(&Caller::ROOT, op) {
            Ok(OpReply::Made { attr, .. }) => attr.inode,
            other => panic!("{other:?}"),
        }
    }

    fn send(&mut self) {
        let steps = self.steps.drain(..).collect();
        let caller = std::mem::replace(&mut self.rig.caller, Caller::ROOT);
        let sent = self.rig.op(Op::Sequence { steps });
        self.rig.caller = caller;
        assert!(matches!(sent, Ok(OpReply::Sequence { .. })), "{sent:?}");
    }

    /// Every row of an inode, a name or an attribute that the copy has is the cluster's, and it has all below `top`.
    fn compare(&self) {
        let private = self.tree.below(self.top).unwrap();
        let mut compared = 0;
        for (table, key, value) in self.tree.view.rows() {
            if !matches!(table, Table::Inodes | Table::Dentries | Table::DirIndex | Table::Xattrs) {
                continue;
            }
            let theirs = self.rig.state.get(table, key).unwrap();
            if table == Table::Inodes && InodeRow::inode_of_key(key) == Some(self.top) {
                // But for where it lies, which the copy does not know.
                let inode = self.top;
                assert_eq!(self.tree.attr(inode).unwrap(), Some(self.rig.attr(inode)));
                continue;
            }
            assert_eq!(theirs.as_deref(), Some(value), "{table:?} {key:?}");
            compared += 1;
        }
        for directory in private {
            let theirs = rows::list_dir(&self.rig.state, directory, 0, usize::MAX).unwrap();
            assert_eq!(rows::list_dir(&self.tree.view, directory, 0, usize::MAX).unwrap(), theirs);
            compared += 1;
        }
        assert!(compared > 0);
    }
}

/// A small generator: the same numbers from the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % count as u64) as usize
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

#[test]
fn what_a_session_has_done_by_itself_the_cluster_comes_to_as_well() {
    for seed in 1..=6 {
        let mut pair = Pair::new();
        let mut dice = Dice(seed);
        let names = ["a", "b", "c", "d", "e"];
        let callers =
            [Caller::ROOT, Caller { uid: 7, gid: 7, groups: vec![8] }, Caller { uid: 9, gid: 8, groups: Vec::new() }];
        let mut inodes = vec![pair.top];
        let mut done = 0;
        for round in 0..600 {
            let caller = dice.pick(&callers).clone();
            let directory = *dice.pick(&pair.tree.below(pair.top).unwrap());
            let text = *dice.pick(&names);
            let inode = *dice.pick(&inodes);
            let op = match dice.below(12) {
                0 | 1 => make_private(directory, text),
                2 | 3 => make(directory, text, NewNode::File),
                4 => make(directory, text, NewNode::Symlink(b"there".to_vec())),
                5 => Op::Unlink { parent: directory, name: name(text), hold: None },
                6 => Op::Rmdir { parent: directory, name: name(text) },
                7 | 8 => {
                    let to_parent = *dice.pick(&pair.tree.below(pair.top).unwrap());
                    let mode = *dice.pick(&[RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
                    let to_name = name(names[dice.below(names.len())]);
                    Op::Rename { from_parent: directory, from_name: name(text), to_parent, to_name, mode, hold: None }
                }
                9 => Op::Link { inode, parent: directory, name: name(text) },
                10 => {
                    let mode = Some(*dice.pick(&[0o777, 0o1777, 0o2775, 0o644, 0o4755]));
                    let mtime = Some(SetTime::At(Timestamp { secs: 9, nanos: 9 }));
                    Op::SetAttr { inode, set: SetAttr { mode, mtime, ..SetAttr::default() }, grant: None }
                }
                _ => {
                    let (key, value) = (XattrName::new(b"user.x".to_vec()), XattrValue::new(vec![1; 9]));
                    Op::SetXattr { inode, name: key.unwrap(), value: value.unwrap(), mode: XattrMode::Set }
                }
            };
            if pair.tree.route_op(&op).unwrap() != Routed::Here {
                continue;
            }
            // Refused or not: what is refused here is not sent.
            if let Ok(reply) = pair.here(&caller, op) {
                done += 1;
                if let OpReply::Made { attr, .. } = reply {
                    inodes.push(attr.inode);
                }
            }
            if round % 40 == 39 {
                pair.send();
                pair.compare();
            }
        }
        assert!(done > 60, "seed {seed}: only {done} operations were done");
    }
}

#[test]
fn nobody_else_sees_a_private_directory_or_changes_it_until_it_is_shared() {
    let mut pair = Pair::new();
    let (owner, top) = (pair.rig.session, pair.top);
    pair.rig.open_session();
    let other = pair.rig.session;
    let lookup = Query::Lookup { parent: InodeId::ROOT, name: name("top") };
    let ways = |rig: &Rig, query: &Query| {
        let answer = rig.query(query.clone());
        query::private_in_answer(&rig.state, other, query, &answer).unwrap()
    };
    let listing = Query::ReadDir { inode: InodeId::ROOT, after: 0, limit: 10, attrs: true };
    for query in [&lookup, &listing, &Query::GetAttr { inode: top }] {
        assert_eq!(ways(&pair.rig, query), [(top, owner)], "{query:?}");
    }
    let rmdir = Op::Rmdir { parent: InodeId::ROOT, name: name("top") };
    let mut command = pair.rig.client(rmdir, Vec::new());
    let outcome = pair.rig.apply(command.clone());
    assert_eq!(outcome.unwrap_err().kind, ErrorKind::Private);

    let share = Body::Client {
        id: dfs_proto::RequestId { session: owner, number: 1 << 15 },
        acked_below: 1,
        caller: Caller::ROOT,
        op: Op::Share { inodes: vec![top, InodeId(999)] },
        placement: Vec::new(),
    };
    pair.rig.apply(share).unwrap();
    assert_eq!(ways(&pair.rig, &lookup), []);
    // The refusal was not remembered: the same request is done now.
    if let Body::Client { acked_below, .. } = &mut command {
        *acked_below = 1;
    }
    assert!(pair.rig.apply(command).is_ok());
}

#[test]
fn what_a_session_had_for_itself_is_everybodys_when_it_has_ended() {
    let mut pair = Pair::new();
    let owner = pair.rig.session;
    pair.rig.open_session();
    pair.rig.apply(Body::ExpireSessions { sessions: vec![owner] }).unwrap();
    pair.rig.rmdir(InodeId::ROOT, "top").unwrap();
}

#[test]
fn a_sequence_is_done_wholly_or_not_at_all_and_only_where_it_may_be() {
    let mut pair = Pair::new();
    let top = pair.top;
    pair.made(make(top, "a", NewNode::File));
    let mut foreign = pair.steps[0].clone();
    foreign.op = make(InodeId::ROOT, "b", NewNode::File);
    let mut unreserved = pair.steps[0].clone();
    unreserved.inode = Some(InodeId(1 << 40));
    unreserved.op = make(top, "b", NewNode::File);
    let mut odd = pair.steps[0].clone();
    odd.op = Op::AllocateChunks { count: 1, replication: 3, avoid: Vec::new() };
    for (bad, kind) in
        [(foreign, ErrorKind::Forbidden), (unreserved, ErrorKind::Malformed), (odd, ErrorKind::Malformed)]
    {
        let steps = vec![pair.steps[0].clone(), bad];
        assert_eq!(kind_of(pair.rig.op(Op::Sequence { steps })), Some(kind));
        assert_eq!(kind_of(pair.rig.lookup(top, "a")), Some(ErrorKind::NotFound));
    }
    pair.send();
    assert!(pair.rig.lookup(top, "a").is_ok());
    // A number is used once.
    let again = Op::Sequence {
        steps: vec![Step {
            at: Timestamp::default(),
            caller: Caller::ROOT,
            inode: Some(pair.rig.lookup(top, "a").unwrap().inode),
            op: make(top, "c", NewNode::File),
        }],
    };
    assert_eq!(kind_of(pair.rig.op(again)), Some(ErrorKind::Malformed));
}

#[test]
fn the_files_of_a_directory_are_told_unless_there_are_many() {
    let mut pair = Pair::new();
    let top = pair.top;
    let files = ["a", "b"].map(|text| pair.made(make(top, text, NewNode::File)));
    pair.made(make_private(top, "folder"));
    assert_eq!(pair.tree.files_in(top, 3).unwrap(), files);
    assert!(pair.tree.files_in(top, 2).unwrap().is_empty());
}

#[test]
fn what_reaches_outside_is_not_decided_here() {
    let mut pair = Pair::new();
    let top = pair.top;
    let file = pair.made(make(top, "file", NewNode::File));
    let below = pair.made(make_private(top, "below"));
    let outside = InodeId::ROOT;
    let out = |from: &str| Op::Rename {
        from_parent: top,
        from_name: name(from),
        to_parent: outside,
        to_name: name("x"),
        mode: RenameMode::Replace,
        hold: None,
    };
    let grow = SetAttr { size_bytes: Some(9), ..SetAttr::default() };
    let cases = [
        (out("file"), Routed::Both),
        (Op::Link { inode: file, parent: outside, name: name("x") }, Routed::Both),
        (Op::SetAttr { inode: file, set: grow, grant: None }, Routed::Both),
        (Op::Rmdir { parent: outside, name: name("top") }, Routed::There),
        (Op::Rmdir { parent: top, name: name("below") }, Routed::Here),
    ];
    for (op, routed) in cases {
        assert_eq!(pair.tree.route_op(&op).unwrap(), routed, "{op:?}");
    }
    assert_eq!(pair.tree.top_named(outside, &name("top")), Some(top));

    // What is forgotten is asked for elsewhere; a directory in it goes on by itself.
    pair.send();
    pair.tree.forget(top).unwrap();
    assert_eq!(pair.tree.route_query(&Query::GetAttr { inode: file }).unwrap(), Routed::There);
    assert_eq!(pair.tree.top_named(top, &name("below")), Some(below));
    let moved = make_private(below, "deeper");
    assert_eq!(pair.tree.route_op(&moved).unwrap(), Routed::Here);
    let deeper = pair.made(moved);
    let Ok(Answer::Page(page)) =
        pair.tree.answer(&Caller::ROOT, &Query::ReadDir { inode: below, after: 0, limit: 9, attrs: false }).unwrap()
    else {
        panic!()
    };
    assert_eq!((page.parent, page.entries[0].inode), (top, deeper));
    // A walk upwards ends at the end of the copy.
    let rename = Op::Rename {
        from_parent: below,
        from_name: name("deeper"),
        to_parent: below,
        to_name: name("renamed"),
        mode: RenameMode::Replace,
        hold: None,
    };
    pair.here(&Caller::ROOT, rename).unwrap();
    pair.send();
    assert!(pair.rig.lookup(below, "renamed").is_ok());
}

#[test]
fn bytes_that_the_namenode_has_committed_are_seen_with_what_was_changed_here() {
    let mut pair = Pair::new();
    let file = pair.made(make(pair.top, "file", NewNode::File));
    pair.send();
    let chunk = pair.rig.allocate(1)[0];
    pair.rig.commit_at(file, chunk, 0, 500, false).unwrap();
    pair.here(&Caller::ROOT, Op::Link { inode: file, parent: pair.top, name: name("second") }).unwrap();
    pair.tree.observe(&pair.rig.attr(file)).unwrap();
    let attr = pair.tree.attr(file).unwrap().unwrap();
    assert_eq!((attr.size_bytes, attr.nlink), (500, 2));
    pair.send();
    assert_eq!(pair.rig.attr(file).size_bytes, 500);
    assert_eq!(pair.rig.attr(file).nlink, 2);
    let unlink = |text: &str| Op::Unlink { parent: pair.top, name: Name::new(text.as_bytes()).unwrap(), hold: None };
    let (first, second) = (unlink("file"), unlink("second"));
    pair.here(&Caller::ROOT, first).unwrap();
    pair.here(&Caller::ROOT, second).unwrap();
    pair.send();
    assert_eq!(pair.rig.totals().counts.mapped_bytes, 0);
}

#[test]
fn no_step_touches_what_is_private_to_another_session() {
    let mut pair = Pair::new();
    let (owner, top) = (pair.rig.session, pair.top);
    pair.rig.open_session();
    let set = SetAttr { mode: Some(0o700), ..SetAttr::default() };
    let op = Op::SetAttr { inode: top, set, grant: None };
    let steps = vec![Step { at: Timestamp::default(), caller: Caller::ROOT, inode: None, op }];
    assert_eq!(kind_of(pair.rig.op(Op::Sequence { steps: steps.clone() })), Some(ErrorKind::Forbidden));
    assert_eq!(pair.rig.attr(top).mode, 0o755);
    pair.rig.session = owner;
    assert_eq!(kind_of(pair.rig.op(Op::Sequence { steps })), None);
    assert_eq!(pair.rig.attr(top).mode, 0o700);
}

#[test]
fn numbers_are_reserved_within_a_limit_and_go_with_their_session() {
    let mut pair = Pair::new();
    assert_eq!(kind_of(pair.rig.op(Op::Reserve { count: 0 })), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind_of(pair.rig.op(Op::Reserve { count: 4097 })), Some(ErrorKind::InvalidArgument));
    let next = pair.rig.totals().next_inode;
    let reserved = pair.rig.op(Op::Reserve { count: 4096 });
    assert!(matches!(reserved, Ok(OpReply::Reserved { first }) if first == next), "{reserved:?}");
    assert_eq!(kind_of(pair.rig.op(Op::Reserve { count: 1 })), Some(ErrorKind::InvalidArgument));
    let session = pair.rig.session;
    pair.rig.apply(Body::ExpireSessions { sessions: vec![session] }).unwrap();
    assert!(rows::session_inodes(&pair.rig.state, session).unwrap().is_empty());
    // Used or not, they are never given out again.
    pair.rig.open_session();
    assert_eq!(pair.rig.mkdir(InodeId::ROOT, "later").inode, InodeId(next.0 + 4096));
}

use dfs_proto::limits::{LOCATE_EXTENTS_MAX, OPENED_EXTENTS_MAX};
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{Access, Capability, ChunkId, SetAttr};

use dfs_proto::msg::meta::OpReply;

use super::*;
use crate::testing::{HOLDER, NODES, Rig, kind_of, name};

const ROOT: InodeId = InodeId::ROOT;

fn page(rig: &Rig, inode: InodeId, after: u64, limit: u32, attrs: bool) -> Result<DirPage, WireError> {
    match rig.query(Query::ReadDir { inode, after, limit, attrs })? {
        Answer::Page(page) => Ok(page),
        other => panic!("{other:?}"),
    }
}

fn map(rig: &Rig, inode: InodeId, offset: u64, len: u64) -> dfs_proto::msg::meta::FileMap {
    match rig.query(Query::Locate { inode, grant: rig.grant(inode), offset, len }) {
        Ok(Answer::Map(map)) => map,
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_are_found_by_those_who_may_search() {
    let mut rig = Rig::new();
    let dir = rig.mkdir(ROOT, "d").inode;
    let file = rig.create(dir, "f").inode;
    assert_eq!(rig.lookup(dir, "f").unwrap().inode, file);
    assert_eq!(kind_of(rig.lookup(dir, "x")), Some(ErrorKind::NotFound));
    assert_eq!(kind_of(rig.lookup(file, "x")), Some(ErrorKind::NotADirectory));
    rig.chmod(dir, 0o744).unwrap();
    rig.become_user(5, 5);
    assert_eq!(kind_of(rig.lookup(dir, "f")), Some(ErrorKind::AccessDenied));
    // Reading the names is allowed, and tells nothing of what is behind them.
    let listed = page(&rig, dir, 0, 9, true).unwrap();
    assert_eq!((listed.entries.len(), listed.entries[0].attr.as_ref()), (1, None));
}

#[test]
fn a_listing_goes_on_where_it_stopped_whatever_happens_between() {
    let mut rig = Rig::new();
    for i in 0..10 {
        rig.create(ROOT, &format!("f{i}"));
    }
    let first = page(&rig, ROOT, 0, 4, true).unwrap();
    assert_eq!((first.entries.len(), first.end, first.parent), (4, false, ROOT));
    assert!(first.entries.iter().all(|entry| entry.cookie > 2 && entry.attr.is_some()));
    rig.unlink(ROOT, "f3", None).unwrap();
    rig.unlink(ROOT, "f5", None).unwrap();
    rig.create(ROOT, "new");
    let rest = page(&rig, ROOT, first.entries[3].cookie, 99, false).unwrap();
    let names: Vec<_> = rest.entries.iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!((names, rest.end), (["f4", "f6", "f7", "f8", "f9", "new"].map(String::from).to_vec(), true));
    assert!(page(&rig, ROOT, rest.entries[5].cookie, 9, false).unwrap().end);
    assert!(page(&rig, ROOT, u64::MAX, 9, false).unwrap().entries.is_empty());
}

#[test]
fn opening_checks_permission_once_and_proves_it_with_a_grant() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    rig.become_user(5, 5);
    let open = |rig: &Rig, read, write| rig.query(Query::Open { inode: file, read, write });
    assert_eq!(kind_of(open(&rig, true, true)), Some(ErrorKind::AccessDenied));
    let Ok(Answer::Opened(OpenedFile { grant, .. })) = open(&rig, true, false) else { panic!("not opened") };
    assert!(grant.read && !grant.write);
    assert_eq!(kind_of(rig.query(Query::Open { inode: ROOT, read: true, write: true })), Some(ErrorKind::IsADirectory));
    // Taking the permission away does not take away what is open.
    rig.become_root();
    rig.chmod(file, 0).unwrap();
    rig.become_user(5, 5);
    assert!(rig.query(Query::Locate { inode: file, grant, offset: 0, len: 9 }).is_ok());
    assert_eq!(kind_of(rig.query(Query::Access { inode: file, mask: 4 })), Some(ErrorKind::AccessDenied));
}

#[test]
fn a_map_names_the_extents_that_overlap_and_every_chunk_once() {
    let mut rig = Rig::new();
    let file = rig.write_scattered(ROOT, "f", 10);
    let part = map(&rig, file, 15, 20);
    assert_eq!(part.extents.iter().map(|e| e.file_offset).collect::<Vec<_>>(), [10, 20, 30]);
    assert_eq!((part.chunks.len(), part.size_bytes, part.complete_to), (1, 100, 35));
    let capability = part.chunks[0].capability.as_ref().unwrap();
    assert_eq!(capability.check(&rig.keys(), part.chunks[0].chunk, Access::Read, rig.now()), Ok(()));
    assert_eq!(capability.holder, HOLDER);
    assert!(map(&rig, file, 100, 50).extents.is_empty());
    assert_eq!(map(&rig, file, 0, u64::MAX).extents.len(), 10);
}

#[test]
fn a_long_map_says_how_far_it_goes() {
    let mut rig = Rig::new();
    let file = rig.write_scattered(ROOT, "f", LOCATE_EXTENTS_MAX + 5);
    let part = map(&rig, file, 0, u64::MAX);
    assert_eq!(part.complete_to, u64::from(LOCATE_EXTENTS_MAX) * 10);
    let rest = map(&rig, file, part.complete_to, u64::MAX);
    assert_eq!((rest.extents.len(), rest.complete_to), (5, u64::MAX));
}

#[test]
fn an_open_for_reading_says_where_the_front_of_the_file_is() {
    let mut rig = Rig::new();
    let opened = |rig: &Rig, inode, read, write| match rig.query(Query::Open { inode, read, write }) {
        Ok(Answer::Opened(OpenedFile { front, .. })) => front.map(|front| *front),
        other => panic!("{other:?}"),
    };
    let small = rig.write_new(ROOT, "small", 10);
    assert_eq!(opened(&rig, small, true, false), Some(map(&rig, small, 0, u64::MAX)));
    assert_eq!(opened(&rig, small, false, true), None);
    assert_eq!(opened(&rig, ROOT, true, false), None);
    let many = rig.write_scattered(ROOT, "many", OPENED_EXTENTS_MAX + 1);
    let front = opened(&rig, many, true, true).unwrap();
    assert_eq!(front.extents.len(), OPENED_EXTENTS_MAX as usize);
    assert_eq!(front.complete_to, u64::from(OPENED_EXTENTS_MAX) * 10);
}

#[test]
fn files_are_opened_ahead_only_for_whom_they_would_be_opened() {
    let mut rig = Rig::new();
    let (wanted, next) = (rig.write_new(ROOT, "wanted", 10), rig.write_new(ROOT, "next", 10));
    let (secret, folder) = (rig.write_new(ROOT, "secret", 10), rig.mkdir(ROOT, "folder").inode);
    rig.chmod(secret, 0o600).unwrap();
    rig.caller = Caller { uid: 77, gid: 77, groups: Vec::new() };
    let others = vec![secret, folder, InodeId(9999), next];
    let Ok(Answer::OpenedAhead { opened, others }) = rig.query(Query::OpenAhead { inode: wanted, others }) else {
        panic!("not opened")
    };
    let alone = |inode| match rig.query(Query::Open { inode, read: true, write: false }) {
        Ok(Answer::Opened(opened)) => opened,
        other => panic!("{other:?}"),
    };
    assert_eq!((opened, others), (alone(wanted), vec![alone(next)]));
    let refused = rig.query(Query::OpenAhead { inode: secret, others: vec![next] });
    assert_eq!(kind_of(refused), Some(ErrorKind::AccessDenied));
}

#[test]
fn replicas_on_live_nodes_come_first() {
    let mut rig = Rig::new();
    let file = rig.write_new(ROOT, "f", 10);
    let asker = Asker { caller: &rig.caller, session: rig.session, holder: HOLDER, now: rig.now() };
    let query = Query::Locate { inode: file, grant: rig.grant(file), offset: 0, len: 10 };
    let liveness = |node| match node {
        node if node == NODES[0] => Liveness::Dead,
        node if node == NODES[1] => Liveness::Suspect,
        _ => Liveness::Live,
    };
    let Ok(Answer::Map(map)) = answer(&rig.state, &asker, &query, &liveness).unwrap() else { panic!("no map") };
    let order: Vec<_> = map.chunks[0].replicas.iter().map(|at| at.node).collect();
    assert_eq!(order, [NODES[2], NODES[1], NODES[0]]);
}

fn chunks(rig: &Rig, inode: InodeId, grant: Grant, ids: &[ChunkId]) -> Result<Vec<(ChunkId, Access)>, WireError> {
    match rig.query(Query::LocateChunks { inode, grant, chunks: ids.to_vec() })? {
        Answer::Chunks(found) => {
            let access = |capability: Option<Capability>| capability.unwrap().access;
            Ok(found.into_iter().map(|location| (location.chunk, access(location.capability))).collect())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn chunks_of_other_files_are_not_given_out() {
    let mut rig = Rig::new();
    let (mine, theirs) = (rig.write_new(ROOT, "mine", 10), rig.write_new(ROOT, "theirs", 10));
    let (own, other) = (rig.extents(mine)[0].chunk, rig.extents(theirs)[0].chunk);
    let open = rig.allocate(1)[0];
    let asked = [own, other, open, ChunkId(99)];
    let found = chunks(&rig, mine, rig.grant(mine), &asked).unwrap();
    assert_eq!(found, [(own, Access::Read), (open, Access::Append)]);
    let write_only = Grant::sign(rig.keys().last().unwrap(), mine, rig.session, false, true);
    assert_eq!(chunks(&rig, mine, write_only, &asked).unwrap(), [(open, Access::Append)]);
    let forged = Grant { inode: theirs, ..rig.grant(mine) };
    assert_eq!(kind_of(chunks(&rig, theirs, forged, &asked)), Some(ErrorKind::Forbidden));
    rig.open_session();
    assert!(chunks(&rig, mine, rig.grant(mine), &[open]).unwrap().is_empty());
}

#[test]
fn allocated_chunks_are_signed_for_their_session_only() {
    let mut rig = Rig::new();
    let op = Op::AllocateChunks { count: 1, replication: 3, avoid: Vec::new() };
    let mut reply = rig.op_placed(op, vec![NODES[..3].to_vec()]).unwrap();
    let mut capability_for = |session| {
        let asker = Asker { caller: &rig.caller, session, holder: HOLDER, now: rig.now() };
        sign_reply(&rig.state, &asker, &mut reply, &|_| Liveness::Live).unwrap();
        let OpReply::Chunks(locations) = &reply else { panic!("{reply:?}") };
        locations[0].capability.clone()
    };
    assert!(capability_for(rig.session).is_some_and(|capability| capability.access == Access::Append));
    assert_eq!(capability_for(SessionId(99)), None);
}

#[test]
fn grants_of_others_do_not_write() {
    let mut rig = Rig::new();
    let (a, b) = (rig.create(ROOT, "a").inode, rig.create(ROOT, "b").inode);
    let check = |rig: &Rig, op: Op| kind_of(check_grants(&rig.state, rig.session, &op).unwrap());
    let set = |grant| Op::SetAttr { inode: a, set: SetAttr::default(), grant };
    assert_eq!(check(&rig, set(None)), None);
    assert_eq!(check(&rig, set(Some(rig.grant(a)))), None);
    assert_eq!(check(&rig, set(Some(rig.grant(b)))), Some(ErrorKind::Forbidden));
    let commit = |grant| {
        let files = vec![dfs_proto::msg::meta::FileCommit { grant, ..rig.file_commit(a, vec![]) }];
        Op::Commit { chunks: vec![], files }
    };
    assert_eq!(check(&rig, commit(rig.grant(a))), None);
    let read_only = Grant::sign(rig.keys().last().unwrap(), a, rig.session, true, false);
    assert_eq!(check(&rig, commit(read_only)), Some(ErrorKind::Forbidden));
    let retired = Grant { key: 77, ..rig.grant(a) };
    assert_eq!(check(&rig, commit(retired)), Some(ErrorKind::CapabilityExpired));
}

#[test]
fn only_its_client_uses_a_session() {
    let rig = Rig::new();
    let check = |session, holder| kind_of(check_session(&rig.state, session, holder).unwrap());
    assert_eq!(check(rig.session, HOLDER), None);
    assert_eq!(check(rig.session, NodeId(1)), Some(ErrorKind::Forbidden));
    assert_eq!(check(SessionId(99), HOLDER), Some(ErrorKind::SessionExpired));
}

#[test]
fn symlinks_tell_where_they_lead() {
    let mut rig = Rig::new();
    let node = NewNode::Symlink(b"../x".to_vec());
    let op = Op::Make { parent: ROOT, name: name("l"), node, mode: 0, exclusive: true, open: None, replication: None };
    rig.op(op).unwrap();
    let link = rig.lookup(ROOT, "l").unwrap().inode;
    assert_eq!(rig.query(Query::ReadLink { inode: link }), Ok(Answer::Target(b"../x".to_vec())));
    assert_eq!(kind_of(rig.query(Query::ReadLink { inode: ROOT })), Some(ErrorKind::InvalidArgument));
}

#[test]
fn free_space_counts_live_nodes_and_copies() {
    let rig = Rig::new();
    let node = |n, liveness| NodeView {
        node: NodeId(n),
        liveness,
        free_bytes: 300,
        total_bytes: 900,
        writable: true,
        load: 0,
    };
    let stat = stat_fs(&rig.state, &[node(1, Liveness::Live), node(2, Liveness::Live), node(3, Liveness::Dead)]);
    assert_eq!(stat, Ok(StatFs { total_bytes: 600, free_bytes: 200, files: 1 }));
}

#[test]
fn a_files_chunks_are_shown_to_administrators() {
    let mut rig = Rig::new();
    let file = rig.write_new(ROOT, "f", 10);
    let info = file_info(&rig.state, file, &|_| Liveness::Live).unwrap().unwrap();
    assert_eq!((info.extents.len(), info.chunks.len(), info.chunks[0].live_bytes), (1, 1, 10));
    assert_eq!(info.chunks[0].replicas.len(), 3);
}

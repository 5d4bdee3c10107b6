use dfs_proto::NodeId;
use dfs_proto::limits::CHUNK_MAX;
use dfs_proto::msg::admin::{Duty, FsckReport};
use dfs_proto::msg::meta::{LockClaim, LockMode, LockOwner, LockRange, LockSpace, Op};
use dfs_proto::{Epoch, XattrValue};

use super::*;
use crate::acl::tests::acl;
use crate::command::Body;
use crate::rows::{
    AttentionRow, ChunkFileRow, ChunkRow, Content, DentryRow, DutyRow, InodeRow, Key, LostEndRow, NodeChunkRow, Row,
    XattrRow,
};
use crate::testing::{NODES, Rig, name, xattr_name};
use crate::view::Change;

const ROOT: InodeId = InodeId::ROOT;

fn everything(rig: &Rig, live: &dyn Fn(NodeId) -> bool) -> FsckReport {
    check(&rig.state, ROOT, Known { live, bad: &|_, _| false }).unwrap()
}

/// A rig with a bit of everything.
fn filled() -> (Rig, InodeId, ChunkId) {
    let mut rig = Rig::new();
    let dir = rig.mkdir(ROOT, "dir").inode;
    let file = rig.write_new(dir, "file", 100);
    let held = rig.write_new(ROOT, "held", 100);
    rig.unlink(ROOT, "held", Some(held)).unwrap();
    rig.allocate(1);
    rig.op(Op::Lock { inode: file, claim: claim(1) }).unwrap();
    rig.set_xattr(file, "user.a", b"x").unwrap();
    rig.set_xattr(file, "system.posix_acl_access", &acl("u::rw,u:5:r,g::r,m::r,o::")).unwrap();
    let chunk = rig.extents(file)[0].chunk;
    (rig, file, chunk)
}

/// An owner's claim to all of a file.
fn claim(number: u64) -> LockClaim {
    let owner = LockOwner { space: LockSpace::Range, number };
    LockClaim { owner, range: LockRange::ALL, mode: LockMode::Exclusive, process: 1 }
}

#[test]
fn a_healthy_cluster_has_no_problems() {
    let (rig, ..) = filled();
    let report = everything(&rig, &|_| true);
    assert_eq!((report.problems_total, report.counts), (0, rig.totals().counts));
    assert_eq!((report.chunks.total, report.chunks.healthy, report.chunks.open), (3, 2, 1));
}

#[test]
fn lost_files_are_named_with_their_paths() {
    let (rig, file, chunk) = filled();
    let report = everything(&rig, &|_| false);
    let lost = report.problems.iter().find(|problem| problem.inode == Some(file)).unwrap();
    assert_eq!((lost.kind, lost.chunk), (ProblemKind::Missing, Some(chunk)));
    assert_eq!(lost.path.as_deref(), Some("/dir/file"));
    assert_eq!(report.chunks.missing, 2);
}

#[test]
fn a_file_whose_replicas_are_all_damaged_is_named_and_one_with_a_good_one_is_degraded() {
    let (rig, file, chunk) = filled();
    let check =
        |bad: &dyn Fn(ChunkId, NodeId) -> bool| check(&rig.state, ROOT, Known { live: &|_| true, bad }).unwrap();
    let report = check(&|of, _| of == chunk);
    assert_eq!((report.chunks.missing, report.problems_total), (1, 1));
    let lost = &report.problems[0];
    assert_eq!((lost.kind, lost.inode, lost.path.as_deref()), (ProblemKind::Missing, Some(file), Some("/dir/file")));
    assert!(lost.text.contains("100 bytes") && lost.text.contains("damaged"), "{}", lost.text);
    let report = check(&|of, node| of == chunk && node != NODES[1]);
    assert_eq!((report.chunks.missing, report.chunks.under_replicated, report.chunks.one_copy), (0, 1, 1));
}

#[test]
fn a_node_that_is_done_and_has_replicas_is_a_contradiction() {
    let (mut rig, ..) = filled();
    let duty = Duty::Decommissioned { since: dfs_proto::Timestamp::default() };
    change(&mut rig, DutyRow::key(NODES[0]), Some(&DutyRow { duty }));
    assert_eq!(everything(&rig, &|_| true).problems_total, 1);
}

#[test]
fn files_with_bytes_behind_a_lost_end_are_named_with_how_many() {
    let (mut rig, file, chunk) = filled();
    let cut = |rig: &mut Rig, len| {
        let row = rows::chunk(&rig.state, chunk).unwrap().unwrap();
        rig.apply(Body::CutChunk { chunk, epoch: row.epoch, len, replicas: row.replicas }).unwrap();
        everything(rig, &|_| true)
    };
    let report = cut(&mut rig, 70);
    assert_eq!((report.chunks.lost_ends, report.chunks.missing, report.chunks.under_replicated), (1, 0, 0));
    assert_eq!(report.problems_total, 1);
    let lost = &report.problems[0];
    assert_eq!((lost.kind, lost.inode, lost.path.as_deref()), (ProblemKind::Lost, Some(file), Some("/dir/file")));
    assert!(lost.text.starts_with("30 bytes"), "{}", lost.text);
    assert!(cut(&mut rig, 0).problems[0].text.starts_with("100 bytes"));
    // Cut off or deleted, and nothing is left of it.
    let set = dfs_proto::SetAttr { size_bytes: Some(0), ..dfs_proto::SetAttr::default() };
    rig.set_attr(file, set).unwrap();
    let report = everything(&rig, &|_| true);
    assert_eq!((report.chunks.lost_ends, report.problems_total), (0, 0));
}

#[test]
fn short_chunks_are_told_apart_by_what_they_lack() {
    let (rig, ..) = filled();
    let one = everything(&rig, &|node| node == NODES[0]).chunks;
    assert_eq!((one.under_replicated, one.one_copy, one.lacking_nodes), (2, 2, 2));
    let two = everything(&rig, &|node| node != NODES[0]).chunks;
    assert_eq!((two.under_replicated, two.one_copy, two.lacking_nodes), (2, 0, 0));
}

#[test]
fn a_subtree_is_checked_alone() {
    let (mut rig, file, _) = filled();
    let elsewhere = rig.write_new(ROOT, "elsewhere", 50);
    let report =
        check(&rig.state, rig.lookup(ROOT, "dir").unwrap().inode, Known { live: &|_| false, bad: &|_, _| false })
            .unwrap();
    assert_eq!((report.counts.files, report.counts.directories, report.counts.mapped_bytes), (1, 1, 100));
    assert_eq!(report.chunks.total, 1);
    assert!(report.problems.iter().all(|problem| problem.inode == Some(file)));
    let single = check(&rig.state, elsewhere, Known::ALL_WELL).unwrap();
    assert_eq!((single.counts.files, single.problems_total), (1, 0));
    assert_eq!(check(&rig.state, InodeId(999), Known::ALL_WELL).unwrap().problems_total, 1);
}

fn change<R: Row>(rig: &mut Rig, key: Key<R>, row: Option<&R>) {
    let value = row.map(|row| dfs_proto::codec::encode(row).unwrap());
    rig.state.write(vec![Change { table: R::TABLE, key: key.into_bytes(), value }]);
}

/// Puts damage into one table and says whether the recount finds it.
fn finds(damage: impl FnOnce(&mut Rig, InodeId, ChunkId)) -> bool {
    let (mut rig, file, chunk) = filled();
    damage(&mut rig, file, chunk);
    let report = everything(&rig, &|_| true);
    report.problems.iter().any(|problem| problem.kind == ProblemKind::Inconsistent)
}

#[test]
fn damage_in_any_table_is_found() {
    assert!(finds(|rig, file, _| change(rig, InodeRow::key(file), None)));
    assert!(finds(|rig, _, chunk| change(rig, LostEndRow::key(chunk), Some(&LostEndRow { lost: CHUNK_MAX }))));
    assert!(finds(|rig, _, chunk| change(rig, LostEndRow::key(chunk), Some(&LostEndRow { lost: 0 }))));
    assert!(finds(|rig, _, _| change(rig, LostEndRow::key(ChunkId(999)), Some(&LostEndRow { lost: 1 }))));
    assert!(finds(|rig, _, chunk| {
        let row = rows::chunk(&rig.state, chunk).unwrap().unwrap();
        rig.apply(Body::CutChunk { chunk, epoch: row.epoch, len: 1, replicas: row.replicas }).unwrap();
        change(rig, LostEndRow::key(chunk), None);
    }));
    assert!(finds(|rig, file, _| {
        let mut row = rows::inode(&rig.state, file).unwrap().unwrap();
        row.nlink += 1;
        change(rig, InodeRow::key(file), Some(&row));
    }));
    assert!(finds(|rig, file, _| {
        let mut row = rows::inode(&rig.state, file).unwrap().unwrap();
        row.content = Content::File { size_bytes: 50, mapped_bytes: 100, replication: 3 };
        change(rig, InodeRow::key(file), Some(&row));
    }));
    assert!(finds(|rig, _, _| change(rig, DentryRow::key(ROOT, &name("dir")), None)));
    assert!(finds(|rig, _, _| {
        let entry = rows::dentry(&rig.state, ROOT, &name("dir")).unwrap().unwrap();
        change(rig, rows::DirIndexRow::key(ROOT, entry.cookie), None);
    }));
    assert!(finds(|rig, file, _| {
        let extent = rig.extents(file)[0];
        change(rig, rows::ExtentRow::key(file, &extent), None);
    }));
    assert!(finds(|rig, _, chunk| change(rig, ChunkRow::key(chunk), None)));
    assert!(finds(|rig, _, chunk| {
        let mut row = rows::chunk(&rig.state, chunk).unwrap().unwrap();
        row.epoch = Epoch(9);
        change(rig, ChunkRow::key(chunk), Some(&row));
    }));
    assert!(finds(|rig, file, chunk| change(rig, ChunkFileRow::key(chunk, file), None)));
    assert!(finds(|rig, _, chunk| change(rig, NodeChunkRow::key(NODES[0], chunk), None)));
    assert!(finds(|rig, _, chunk| change(rig, AttentionRow::key(chunk), Some(&AttentionRow))));
    assert!(finds(|rig, _, _| change(rig, rows::SessionRow::key(rig.session), None)));
    assert!(finds(|rig, _, _| {
        let held = rows::orphans(&rig.state, rig.session, 1).unwrap()[0];
        change(rig, rows::OrphanRow::key(rig.session, held), None);
    }));
    assert!(finds(|rig, _, _| {
        let held = rows::orphans(&rig.state, rig.session, 1).unwrap()[0];
        change(rig, rows::HolderRow::key(held, rig.session), None);
    }));
    assert!(finds(|rig, file, _| change(rig, rows::HolderRow::key(file, rig.session), Some(&rows::HolderRow))));
    assert!(finds(|rig, _, _| {
        let open = rows::session_chunks(&rig.state, rig.session).unwrap()[0];
        change(rig, rows::SessionChunkRow::key(rig.session, open), None);
    }));
    assert!(finds(|rig, _, _| {
        let mut totals = rig.totals();
        totals.counts.files += 1;
        change(rig, rows::Totals::key(), Some(&totals));
    }));
    assert!(finds(|rig, file, _| {
        let second = rows::LockRow::of(&claim(2));
        change(rig, rows::LockRow::key(file, rig.session, claim(2).owner, 0), Some(&second));
        let counted = rows::SessionLocksRow { locks: 2 };
        change(rig, rows::SessionLocksRow::key(rig.session, file), Some(&counted));
        change(rig, rows::SessionLocksRow::key(rig.session, rows::ALL_INODES), Some(&counted));
    }));
    assert!(finds(|rig, file, _| change(rig, rows::LockRow::key(file, rig.session, claim(1).owner, 0), None)));
    assert!(finds(|rig, file, _| change(rig, rows::SessionLocksRow::key(rig.session, file), None)));
    assert!(finds(|rig, file, _| {
        let row = XattrRow { value: XattrValue::new("x").unwrap() };
        change(rig, XattrRow::key(file, &xattr_name("security.capability")), Some(&row));
    }));
    assert!(finds(|rig, file, _| change(rig, XattrRow::key(file, &xattr_name("user.a")), None)));
    assert!(finds(|rig, _, _| {
        let row = XattrRow { value: XattrValue::new("x").unwrap() };
        change(rig, XattrRow::key(InodeId(999), &xattr_name("user.a")), Some(&row));
    }));
    assert!(finds(|rig, file, _| {
        let mut row = rows::inode(&rig.state, file).unwrap().unwrap();
        row.mode ^= 0o010;
        change(rig, InodeRow::key(file), Some(&row));
    }));
    assert!(finds(|rig, file, _| {
        let row = XattrRow { value: XattrValue::new("not an ACL").unwrap() };
        change(rig, XattrRow::key(file, &xattr_name("system.posix_acl_access")), Some(&row));
    }));
    assert!(!finds(|_, _, _| {}));
}

#[test]
fn a_directory_below_itself_is_found() {
    let mut rig = Rig::new();
    let a = rig.mkdir(ROOT, "a").inode;
    let b = rig.mkdir(a, "b").inode;
    let entry = rows::dentry(&rig.state, ROOT, &name("a")).unwrap().unwrap();
    change(&mut rig, DentryRow::key(ROOT, &name("a")), None);
    change(&mut rig, DentryRow::key(b, &name("a")), Some(&entry));
    let report = everything(&rig, &|_| true);
    assert!(report.problems.iter().any(|problem| problem.text.contains("cannot be reached")));
}

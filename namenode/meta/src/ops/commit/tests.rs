use dfs_proto::msg::meta::Op;
use dfs_proto::{Epoch, NodeId, SetAttr, WireError};

use super::*;
use crate::command::{Body, Event};
use crate::testing::{NODES, Rig, kind_of};

fn chunk_commit(chunk: ChunkId, len: u32, nodes: &[NodeId], seal: bool) -> ChunkCommit {
    ChunkCommit { chunk, epoch: Epoch::FIRST, len, replicas: nodes.to_vec(), seal }
}

fn extent(file_offset: u64, chunk: ChunkId, chunk_offset: u32, len: u32) -> Extent {
    Extent { file_offset, chunk, chunk_offset, len }
}

fn chunk_row(rig: &Rig, chunk: ChunkId) -> Option<ChunkRow> {
    rows::chunk(&rig.state, chunk).unwrap()
}

fn commit(rig: &mut Rig, chunks: Vec<ChunkCommit>, files: Vec<FileCommit>) -> Result<Vec<Attr>, WireError> {
    match rig.op(Op::Commit { chunks, files })? {
        OpReply::Committed { files } => Ok(files),
        other => panic!("{other:?}"),
    }
}

#[test]
fn committed_bytes_are_part_of_the_file() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    let mtime = Timestamp { secs: 77, nanos: 0 };
    let mut change = rig.file_commit(file, vec![extent(100, chunk, 0, 50)]);
    change.mtime = Some(mtime);
    let attrs = commit(&mut rig, vec![chunk_commit(chunk, 60, &NODES[..3], false)], vec![change]).unwrap();
    assert_eq!((attrs[0].size_bytes, attrs[0].mapped_bytes, attrs[0].version, attrs[0].mtime), (150, 50, 2, mtime));
    let row = chunk_row(&rig, chunk).unwrap();
    assert_eq!((row.len, row.live_bytes, row.is_sealed()), (60, 50, false));
}

#[test]
fn an_overwrite_takes_its_bytes_from_the_old_chunk() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let (old, new) = (rig.allocate(1)[0], rig.allocate(1)[0]);
    rig.commit_at(file, old, 0, 100, true).unwrap();
    let change = rig.file_commit(file, vec![extent(30, new, 0, 20)]);
    commit(&mut rig, vec![chunk_commit(new, 20, &NODES[..3], false)], vec![change]).unwrap();
    assert_eq!(chunk_row(&rig, old).unwrap().live_bytes, 80);
    assert_eq!(chunk_row(&rig, new).unwrap().live_bytes, 20);
    assert_eq!(rig.extents(file).len(), 3);
}

#[test]
fn a_sealed_chunk_goes_with_its_last_living_byte() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let (old, new) = (rig.allocate(1)[0], rig.allocate(1)[0]);
    rig.commit_at(file, old, 0, 100, true).unwrap();
    let row = chunk_row(&rig, old).unwrap();
    let change = rig.file_commit(file, vec![extent(0, new, 0, 100)]);
    commit(&mut rig, vec![chunk_commit(new, 100, &NODES[..3], false)], vec![change]).unwrap();
    assert_eq!(chunk_row(&rig, old), None);
    assert!(rig.events.contains(&Event::ChunkDeleted { chunk: old, epoch: row.epoch, replicas: row.replicas }));
    assert_eq!(rows::node_chunks(&rig.state, NODES[0], 9).unwrap(), [new]);
    // The open one stays, even with nothing alive in it, until it is sealed.
    rig.set_attr(file, SetAttr { size_bytes: Some(0), ..SetAttr::default() }).unwrap();
    assert_eq!(chunk_row(&rig, new).unwrap().live_bytes, 0);
    commit(&mut rig, vec![chunk_commit(new, 100, &NODES[..3], true)], vec![]).unwrap();
    assert_eq!(chunk_row(&rig, new), None);
}

#[test]
fn sealing_names_the_survivors_and_asks_for_repair() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    let change = rig.file_commit(file, vec![extent(0, chunk, 0, 50)]);
    commit(&mut rig, vec![chunk_commit(chunk, 50, &NODES[1..3], true)], vec![change]).unwrap();
    let row = chunk_row(&rig, chunk).unwrap();
    assert_eq!((row.epoch, row.replicas.as_slice(), row.target), (Epoch::FIRST.next(), &NODES[1..3], 3));
    assert_eq!(rows::attention(&rig.state, 9).unwrap(), [chunk]);
    assert!(rows::node_chunks(&rig.state, NODES[0], 9).unwrap().is_empty());
    // Deleting the one left out reaches only the epoch it was written under.
    assert!(rig.events.contains(&Event::ReplicaDropped { chunk, epoch: Epoch::FIRST, node: NODES[0] }));
    let sealed = Event::Sealed { chunk, epoch: row.epoch, len: 50, replicas: row.replicas };
    assert!(rig.events.contains(&sealed));
}

#[test]
fn a_replica_that_a_commit_leaves_out_counts_no_more() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    rig.commit_at(file, chunk, 0, 50, false).unwrap();
    let change = rig.file_commit(file, vec![extent(50, chunk, 50, 10)]);
    commit(&mut rig, vec![chunk_commit(chunk, 60, &NODES[1..3], false)], vec![change]).unwrap();
    let row = chunk_row(&rig, chunk).unwrap();
    assert_eq!((row.is_sealed(), row.epoch, row.len, row.replicas.as_slice()), (false, Epoch::FIRST, 60, &NODES[1..3]));
    assert!(rows::node_chunks(&rig.state, NODES[0], 9).unwrap().is_empty());
    let back = commit(&mut rig, vec![chunk_commit(chunk, 60, &NODES[..3], false)], vec![]);
    assert_eq!(kind_of(back), Some(ErrorKind::Malformed));
    let too_few = commit(&mut rig, vec![chunk_commit(chunk, 60, &NODES[2..3], false)], vec![]);
    assert_eq!(kind_of(too_few), Some(ErrorKind::Malformed));
    commit(&mut rig, vec![chunk_commit(chunk, 60, &NODES[1..3], true)], vec![]).unwrap();
    assert_eq!((chunk_row(&rig, chunk).unwrap().target, rows::attention(&rig.state, 9).unwrap()), (3, vec![chunk]));
}

#[test]
fn nothing_is_committed_to_a_sealed_or_foreign_chunk() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    rig.commit_at(file, chunk, 0, 50, true).unwrap();
    let again = commit(&mut rig, vec![chunk_commit(chunk, 60, &NODES[..3], false)], vec![]);
    assert_eq!(kind_of(again), Some(ErrorKind::StaleEpoch));
    let change = rig.file_commit(file, vec![extent(50, chunk, 0, 50)]);
    assert_eq!(kind_of(commit(&mut rig, vec![], vec![change])), Some(ErrorKind::StaleEpoch));

    let mine = rig.allocate(1)[0];
    rig.open_session();
    let foreign = commit(&mut rig, vec![chunk_commit(mine, 60, &NODES[..3], false)], vec![]);
    assert_eq!(kind_of(foreign), Some(ErrorKind::StaleEpoch));
}

#[test]
fn a_writer_that_was_given_up_commits_nothing_more() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    rig.commit_at(file, chunk, 0, 50, false).unwrap();
    rig.apply(Body::ExpireSessions { sessions: vec![rig.session] }).unwrap();
    let late = commit(&mut rig, vec![chunk_commit(chunk, 60, &NODES[..3], false)], vec![]);
    assert_eq!(kind_of(late), Some(ErrorKind::SessionExpired));
    assert_eq!(chunk_row(&rig, chunk).unwrap().len, 50);
}

#[test]
fn impossible_commits_are_refused_and_change_nothing() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let dir = rig.mkdir(InodeId::ROOT, "d").inode;
    let chunk = rig.allocate(1)[0];
    rig.commit_at(file, chunk, 0, 50, false).unwrap();
    let all = &NODES[..3];
    let good = || vec![chunk_commit(chunk, 60, all, false)];
    let of = |inode, extents| vec![rig.file_commit(inode, extents)];
    let overlapping = vec![extent(0, chunk, 0, 10), extent(9, chunk, 20, 10)];
    let cases: Vec<(Vec<ChunkCommit>, Vec<FileCommit>, ErrorKind)> = vec![
        (vec![chunk_commit(chunk, 49, all, false)], vec![], ErrorKind::Malformed),
        (vec![chunk_commit(chunk, CHUNK_MAX + 1, all, false)], vec![], ErrorKind::Malformed),
        (vec![chunk_commit(chunk, 60, &NODES[..1], false)], vec![], ErrorKind::Malformed),
        (vec![chunk_commit(chunk, 60, &[], true)], vec![], ErrorKind::Malformed),
        (vec![chunk_commit(chunk, 60, &[NODES[0], NODES[0]], true)], vec![], ErrorKind::Malformed),
        (vec![chunk_commit(chunk, 60, &[NODES[0], NODES[3]], true)], vec![], ErrorKind::Malformed),
        (vec![chunk_commit(chunk, 60, &NODES[..1], true)], vec![], ErrorKind::Malformed),
        (vec![chunk_commit(chunk, 60, all, false); 2], vec![], ErrorKind::Malformed),
        (vec![ChunkCommit { epoch: Epoch(2), ..good().remove(0) }], vec![], ErrorKind::StaleEpoch),
        (good(), of(file, vec![extent(0, chunk, 0, 0)]), ErrorKind::Malformed),
        (good(), of(file, vec![extent(0, chunk, 0, 61)]), ErrorKind::Malformed),
        (good(), of(file, overlapping), ErrorKind::Malformed),
        (good(), of(file, vec![extent(FILE_MAX - 5, chunk, 0, 10)]), ErrorKind::FileTooLarge),
        (good(), of(file, vec![extent(u64::MAX, chunk, 0, 10)]), ErrorKind::FileTooLarge),
        (good(), of(file, vec![extent(0, ChunkId(99), 0, 10)]), ErrorKind::StaleEpoch),
        (good(), of(dir, vec![extent(0, chunk, 0, 10)]), ErrorKind::InvalidArgument),
    ];
    for (i, (chunks, files, kind)) in cases.into_iter().enumerate() {
        assert_eq!(kind_of(commit(&mut rig, chunks, files)), Some(kind), "case {i}");
        assert_eq!(chunk_row(&rig, chunk).unwrap().len, 50, "case {i}");
    }
}

#[test]
fn a_vanished_file_does_not_fail_the_others_of_its_batch() {
    let mut rig = Rig::new();
    let (gone, kept) = (rig.create(InodeId::ROOT, "gone").inode, rig.create(InodeId::ROOT, "kept").inode);
    let chunk = rig.allocate(1)[0];
    rig.unlink(InodeId::ROOT, "gone", None).unwrap();
    let files = vec![
        rig.file_commit(gone, vec![extent(0, chunk, 0, 10)]),
        rig.file_commit(kept, vec![extent(0, chunk, 10, 10)]),
    ];
    let attrs = commit(&mut rig, vec![chunk_commit(chunk, 20, &NODES[..3], false)], files).unwrap();
    assert_eq!((attrs[0].inode, attrs[0].nlink, attrs[0].size_bytes), (gone, 0, 0));
    assert_eq!((attrs[1].inode, attrs[1].nlink, attrs[1].size_bytes), (kept, 1, 10));
    assert_eq!(chunk_row(&rig, chunk).unwrap().live_bytes, 10);
}

#[test]
fn a_held_file_without_a_name_is_still_written() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    rig.unlink(InodeId::ROOT, "a", Some(file)).unwrap();
    rig.commit_at(file, chunk, 0, 10, false).unwrap();
    assert_eq!(rig.attr(file).size_bytes, 10);
}

#[test]
fn appends_of_two_clients_never_overwrite_each_other() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "log").inode;
    for (i, len) in [10, 20, 5].into_iter().enumerate() {
        rig.open_session();
        let chunk = rig.allocate(1)[0];
        let mut change = rig.file_commit(file, vec![extent(0, chunk, 0, len), extent(u64::from(len), chunk, len, 1)]);
        change.append = true;
        let attrs = commit(&mut rig, vec![chunk_commit(chunk, len + 1, &NODES[..3], false)], vec![change]).unwrap();
        assert_eq!(attrs[0].size_bytes, [11, 32, 38][i]);
    }
    assert_eq!(rig.attr(file).mapped_bytes, 38);
}

#[test]
fn sequential_commits_leave_one_extent() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    for i in 0..10 {
        rig.commit_at(file, chunk, i * 64, 64, false).unwrap();
    }
    assert_eq!(rig.extents(file), [extent(0, chunk, 0, 640)]);
}

#[test]
fn writing_takes_the_set_id_bits_from_a_users_file() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    rig.chmod(file, 0o6755).unwrap();
    rig.commit_at(file, chunk, 0, 10, false).unwrap();
    assert_eq!(rig.attr(file).mode, 0o6755);
    rig.become_user(5, 5);
    rig.commit_at(file, chunk, 10, 10, false).unwrap();
    assert_eq!(rig.attr(file).mode, 0o755);
}

#[test]
fn a_file_that_wants_more_copies_raises_its_chunks_target() {
    let mut rig = Rig::new();
    let file = rig.create(InodeId::ROOT, "a").inode;
    let chunk = rig.allocate(1)[0];
    rig.set_attr(file, SetAttr { replication: Some(4), ..SetAttr::default() }).unwrap();
    rig.commit_at(file, chunk, 0, 10, true).unwrap();
    assert_eq!(chunk_row(&rig, chunk).unwrap().target, 4);
    assert_eq!(rows::attention(&rig.state, 9).unwrap(), [chunk]);
}

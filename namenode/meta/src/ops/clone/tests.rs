use dfs_proto::limits::FILE_MAX;
use dfs_proto::msg::meta::Op;
use dfs_proto::{Attr, SetAttr, WireError};

use super::*;
use crate::rows::ChunkFileRow;
use crate::testing::{Rig, kind_of};
use crate::usage::PIECE_EXTENTS_MAX;

fn clone(
    rig: &mut Rig,
    (source, source_offset): (InodeId, u64),
    (inode, offset): (InodeId, u64),
    len: u64,
) -> Result<(Attr, u64), WireError> {
    let (source_grant, grant) = (rig.grant(source), rig.grant(inode));
    match rig.op(Op::CloneRange { source, source_grant, source_offset, inode, grant, offset, len })? {
        OpReply::Ranged { attr, done_bytes } => Ok((attr, done_bytes)),
        other => panic!("{other:?}"),
    }
}

/// File offset, chunk offset and length of each extent.
fn shape(rig: &Rig, inode: InodeId) -> Vec<(u64, u32, u32)> {
    rig.extents(inode).iter().map(|extent| (extent.file_offset, extent.chunk_offset, extent.len)).collect()
}

#[test]
fn a_clone_shares_the_bytes_and_counts_for_both_files() {
    let mut rig = Rig::new();
    let a = rig.write_new(InodeId::ROOT, "a", 1000);
    let b = rig.create(InodeId::ROOT, "b").inode;
    let chunk = rig.extents(a)[0].chunk;
    let before = rig.attr(b);
    let (attr, done) = clone(&mut rig, (a, 100), (b, 5000), 600).unwrap();
    assert_eq!((done, attr.size_bytes, attr.mapped_bytes), (600, 5600, 600));
    assert!(attr.version > before.version && attr.mtime > before.mtime && attr.ctime > before.ctime);
    assert_eq!(shape(&rig, b), [(5000, 100, 600)]);
    assert_eq!(rows::chunk(&rig.state, chunk).unwrap().unwrap().live_bytes, 1600);
    assert_eq!(rows::get(&rig.state, &ChunkFileRow::key(chunk, b)).unwrap(), Some(ChunkFileRow { bytes: 600 }));
    assert_eq!(rig.totals().counts.mapped_bytes, 1600);

    rig.unlink(InodeId::ROOT, "a", None).unwrap();
    assert_eq!(rows::chunk(&rig.state, chunk).unwrap().unwrap().live_bytes, 600);
    rig.unlink(InodeId::ROOT, "b", None).unwrap();
    assert_eq!(rig.totals().counts.chunks, 0);
}

#[test]
fn holes_are_cloned_as_holes_and_the_end_of_the_source_ends_it() {
    let mut rig = Rig::new();
    let a = rig.write_new(InodeId::ROOT, "a", 100);
    rig.set_attr(a, SetAttr { size_bytes: Some(300), ..SetAttr::default() }).unwrap();
    let b = rig.write_new(InodeId::ROOT, "b", 1000);
    let (attr, done) = clone(&mut rig, (a, 50), (b, 200), 9999).unwrap();
    assert_eq!((done, attr.size_bytes, attr.mapped_bytes), (250, 1000, 200 + 50 + 550));
    assert_eq!(shape(&rig, b), [(0, 0, 200), (200, 50, 50), (450, 450, 550)]);
    let version = attr.version;
    let (attr, done) = clone(&mut rig, (a, 300), (b, 0), 10).unwrap();
    assert_eq!((done, attr.version), (0, version), "nothing is behind the end of the source");
}

#[test]
fn within_one_file_ranges_may_touch_and_not_overlap() {
    let mut rig = Rig::new();
    let a = rig.write_new(InodeId::ROOT, "a", 100);
    let chunk = rig.extents(a)[0].chunk;
    assert_eq!(kind_of(clone(&mut rig, (a, 0), (a, 99), 100)), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind_of(clone(&mut rig, (a, 50), (a, 0), 100).map(|_| ())), None, "cut at the end of the source");
    assert_eq!(shape(&rig, a), [(0, 50, 50), (50, 50, 50)]);
    assert_eq!(clone(&mut rig, (a, 0), (a, 100), 100).unwrap().0.size_bytes, 200);
    assert_eq!(rows::chunk(&rig.state, chunk).unwrap().unwrap().live_bytes, 200);
}

#[test]
fn an_open_chunk_is_shared_within_its_session_only() {
    let mut rig = Rig::new();
    let a = rig.write_new(InodeId::ROOT, "a", 40);
    let open = rig.allocate(1)[0];
    let at_40 = Extent { file_offset: 40, chunk: open, chunk_offset: 0, len: 60 };
    rig.commit(a, vec![at_40], open, 60, false).unwrap();
    let b = rig.create(InodeId::ROOT, "b").inode;
    assert_eq!(clone(&mut rig, (a, 0), (b, 0), 100).unwrap().1, 100);

    let session = rig.session;
    rig.open_session();
    let c = rig.create(InodeId::ROOT, "c").inode;
    assert_eq!(clone(&mut rig, (a, 0), (c, 0), 100).unwrap().1, 40);
    let version = rig.attr(c).version;
    let (attr, done) = clone(&mut rig, (a, 50), (c, 50), 50).unwrap();
    assert_eq!((done, attr.version), (0, version));
    // The writer ends: its chunk is sealed.
    rig.apply(crate::Body::ExpireSessions { sessions: vec![session] }).unwrap();
    assert_eq!(clone(&mut rig, (a, 40), (c, 40), 60).unwrap().1, 60);
}

#[test]
fn a_shared_chunk_has_as_many_copies_as_the_file_that_wants_most() {
    let mut rig = Rig::new();
    let a = rig.write_new(InodeId::ROOT, "a", 40);
    let b = rig.create(InodeId::ROOT, "b").inode;
    rig.set_attr(b, SetAttr { replication: Some(4), ..SetAttr::default() }).unwrap();
    clone(&mut rig, (a, 0), (b, 0), 40).unwrap();
    let chunk = rig.extents(a)[0].chunk;
    assert_eq!(rows::chunk(&rig.state, chunk).unwrap().unwrap().target, 4);
    assert_eq!(rows::attention(&rig.state, 9).unwrap(), [chunk]);
}

#[test]
fn many_extents_are_cloned_piece_by_piece() {
    let mut rig = Rig::new();
    let a = rig.write_scattered(InodeId::ROOT, "a", 12);
    let b = rig.write_scattered(InodeId::ROOT, "b", 30);
    let mut done = 0;
    let mut pieces = 0;
    while done < 120 {
        let (_, more) = clone(&mut rig, (a, done), (b, 33 + done), 120 - done).unwrap();
        assert!(more > 0 && more <= 10 * PIECE_EXTENTS_MAX as u64);
        done += more;
        pieces += 1;
    }
    assert!(pieces >= 3, "{pieces}");
    let source = rig.extents(a);
    let cloned: Vec<_> = rig.extents(b).into_iter().filter_map(|extent| extent.clip(33, 153)).collect();
    let moved = |extent: &Extent| Extent { file_offset: extent.file_offset + 33, ..*extent };
    assert_eq!(cloned, source.iter().map(moved).collect::<Vec<_>>());
    assert_eq!(rig.attr(b).mapped_bytes, 300);
}

#[test]
fn refusals_say_what_is_wrong() {
    let mut rig = Rig::new();
    let a = rig.write_new(InodeId::ROOT, "a", 40);
    let b = rig.create(InodeId::ROOT, "b").inode;
    assert_eq!(kind_of(clone(&mut rig, (a, 0), (b, 0), 0)), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind_of(clone(&mut rig, (a, 0), (b, FILE_MAX), 1)), Some(ErrorKind::FileTooLarge));
    assert_eq!(kind_of(clone(&mut rig, (InodeId::ROOT, 0), (b, 0), 1)), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind_of(clone(&mut rig, (a, 0), (InodeId::ROOT, 0), 1)), Some(ErrorKind::InvalidArgument));
    assert_eq!(kind_of(clone(&mut rig, (InodeId(99), 0), (b, 0), 1)), Some(ErrorKind::Stale));
    rig.chmod(b, 0o6777).unwrap();
    rig.become_user(5, 5);
    assert_eq!(clone(&mut rig, (a, 0), (b, 0), 40).unwrap().0.mode, 0o777);
}

#[test]
fn grants_are_asked_for_both_files() {
    let mut rig = Rig::new();
    let a = rig.write_new(InodeId::ROOT, "a", 40);
    let b = rig.create(InodeId::ROOT, "b").inode;
    let key = rig.keys().pop().unwrap();
    let sign = |inode, read, write| dfs_proto::Grant::sign(&key, inode, rig.session, read, write);
    let check = |source_grant, grant| {
        let op = Op::CloneRange { source: a, source_grant, source_offset: 0, inode: b, grant, offset: 0, len: 1 };
        crate::query::check_grants(&rig.state, rig.session, &op).unwrap()
    };
    assert_eq!(check(sign(a, true, false), sign(b, false, true)), Ok(()));
    assert!(check(sign(a, false, true), sign(b, false, true)).is_err());
    assert!(check(sign(a, true, false), sign(b, true, false)).is_err());
    assert!(check(sign(b, true, true), sign(a, true, true)).is_err());
}

//! Fallocate: a range of a file's bytes goes, or the file grows over it.

use dfs_proto::limits::FILE_MAX;
use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ErrorKind, InodeId};

use crate::apply::Client;
use crate::permission::without_set_id;
use crate::rows::{Content, FileSpan, InodeRow};
use crate::tree;
use crate::tx::{Failure, Tx, refuse};
use crate::usage::{Usage, shifted};

/// With `zero` the range becomes a hole, a piece of it if it has many extents; without, what is there stays. The
/// leader has verified the grant.
pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    offset: u64,
    len: u64,
    zero: bool,
    keep_size: bool,
) -> Result<OpReply, Failure> {
    let end = range_end(offset, len)?;
    let mut row = tree::live_inode(tx.view(), inode)?;
    let Content::File { size_bytes, mapped_bytes, .. } = &mut row.content else {
        return Err(refuse(ErrorKind::InvalidArgument, format!("inode {inode} is not a regular file")));
    };

    let mut done_to = end;
    let mut grown = 0;
    if zero {
        let (mut usage, file) = (Usage::default(), FileSpan { inode, size_bytes: *size_bytes });
        (grown, done_to) = usage.punch(tx, file, offset, end)?;
        usage.settle(tx)?;
        *mapped_bytes = shifted(*mapped_bytes, grown, "mapped bytes of a file")?;
    }
    let wanted_size = if keep_size { *size_bytes } else { done_to.max(*size_bytes) };
    if grown != 0 || wanted_size != *size_bytes {
        *size_bytes = wanted_size;
        row.version += 1;
    }
    touched(client, &mut row);
    tx.put(InodeRow::key(inode), &row)?;
    Ok(OpReply::Ranged { attr: row.attr(inode), done_bytes: done_to - offset })
}

/// Where a range ends that a file can have.
pub(super) fn range_end(offset: u64, len: u64) -> Result<u64, Failure> {
    if len == 0 {
        return Err(refuse(ErrorKind::InvalidArgument, "the range is empty"));
    }
    let end = offset.checked_add(len).filter(|end| *end <= FILE_MAX);
    end.ok_or_else(|| refuse(ErrorKind::FileTooLarge, format!("a file has at most {FILE_MAX} bytes")))
}

/// What every change of a file's content does to its attributes.
pub(super) fn touched(client: &Client<'_>, row: &mut InodeRow) {
    if client.caller.uid != 0 {
        row.mode = without_set_id(row.mode);
    }
    row.mtime = client.now;
    row.ctime = client.now;
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::Op;
    use dfs_proto::{Attr, SetAttr, WireError};

    use super::*;
    use crate::testing::{Rig, kind_of};
    use crate::usage::PIECE_EXTENTS_MAX;

    fn fallocate(
        rig: &mut Rig,
        inode: InodeId,
        (offset, len): (u64, u64),
        zero: bool,
        keep_size: bool,
    ) -> Result<(Attr, u64), WireError> {
        let grant = rig.grant(inode);
        match rig.op(Op::Fallocate { inode, grant, offset, len, zero, keep_size })? {
            OpReply::Ranged { attr, done_bytes } => Ok((attr, done_bytes)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_punched_range_is_a_hole_and_gives_its_bytes_back() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 1000);
        let before = rig.attr(file);
        let (attr, done) = fallocate(&mut rig, file, (100, 300), true, true).unwrap();
        assert_eq!((attr.size_bytes, attr.mapped_bytes, done), (1000, 700, 300));
        assert_eq!(attr.version, before.version + 1);
        assert!(attr.mtime > before.mtime && attr.ctime > before.ctime);
        let extents = rig.extents(file);
        assert_eq!(
            extents.iter().map(|e| (e.file_offset, e.chunk_offset, e.len)).collect::<Vec<_>>(),
            [(0, 0, 100), (400, 400, 600)]
        );
        // All of it, and beyond the end.
        let (attr, _) = fallocate(&mut rig, file, (0, 5000), true, true).unwrap();
        assert_eq!((attr.size_bytes, attr.mapped_bytes), (1000, 0));
        assert_eq!(rig.totals().counts.chunks, 0);
    }

    #[test]
    fn only_without_keep_size_the_file_grows() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 1000);
        for zero in [false, true] {
            let version = rig.attr(file).version;
            let (attr, _) = fallocate(&mut rig, file, (2000, 500), zero, true).unwrap();
            assert_eq!((attr.size_bytes, attr.version), (1000, version), "nothing has changed but the times");
        }
        assert_eq!(fallocate(&mut rig, file, (500, 600), false, false).unwrap().0.size_bytes, 1100);
        let (attr, _) = fallocate(&mut rig, file, (500, 1000), true, false).unwrap();
        assert_eq!((attr.size_bytes, attr.mapped_bytes), (1500, 500));
        assert_eq!(fallocate(&mut rig, file, (0, 10), false, false).unwrap().0.size_bytes, 1500);
    }

    #[test]
    fn many_extents_go_piece_by_piece_from_the_front() {
        let mut rig = Rig::new();
        let file = rig.write_scattered(InodeId::ROOT, "a", 12);
        let piece = 10 * PIECE_EXTENTS_MAX as u64;
        let (attr, done) = fallocate(&mut rig, file, (5, 110), true, false).unwrap();
        assert_eq!((attr.size_bytes, done), (120, piece - 5), "the first extent keeps a front part");
        assert_eq!(rig.extents(file)[1].file_offset, piece);
        let (_, more) = fallocate(&mut rig, file, (5 + done, 110 - done), true, false).unwrap();
        let (attr, last) = fallocate(&mut rig, file, (5 + done + more, 110 - done - more), true, false).unwrap();
        assert_eq!(done + more + last, 110);
        assert_eq!((attr.size_bytes, attr.mapped_bytes), (120, 10));
    }

    #[test]
    fn a_truncation_is_cut_in_pieces_from_the_end_and_the_rest_comes_with_the_last() {
        let mut rig = Rig::new();
        let file = rig.write_scattered(InodeId::ROOT, "a", 12);
        let set = SetAttr { size_bytes: Some(15), mode: Some(0o600), ..SetAttr::default() };
        let mut sizes = Vec::new();
        loop {
            let attr = rig.set_attr(file, set.clone()).unwrap();
            sizes.push(attr.size_bytes);
            assert_eq!(attr.mode == 0o600, attr.size_bytes == 15);
            assert_eq!(attr.mapped_bytes, attr.size_bytes);
            if attr.size_bytes == 15 {
                break;
            }
        }
        assert_eq!(sizes, [70, 20, 15]);
    }

    #[test]
    fn others_than_root_take_the_set_id_bits_away() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 10);
        rig.chmod(file, 0o6755).unwrap();
        assert_eq!(fallocate(&mut rig, file, (0, 5), false, true).unwrap().0.mode, 0o6755);
        rig.become_user(5, 5);
        assert_eq!(fallocate(&mut rig, file, (0, 5), false, true).unwrap().0.mode, 0o755);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let mut rig = Rig::new();
        let file = rig.create(InodeId::ROOT, "a").inode;
        let at = |rig: &mut Rig, inode, range| kind_of(fallocate(rig, inode, range, true, false));
        assert_eq!(at(&mut rig, file, (0, 0)), Some(ErrorKind::InvalidArgument));
        assert_eq!(at(&mut rig, file, (FILE_MAX, 1)), Some(ErrorKind::FileTooLarge));
        assert_eq!(at(&mut rig, file, (u64::MAX, 2)), Some(ErrorKind::FileTooLarge));
        assert_eq!(at(&mut rig, InodeId::ROOT, (0, 1)), Some(ErrorKind::InvalidArgument));
        assert_eq!(at(&mut rig, InodeId(99), (0, 1)), Some(ErrorKind::Stale));
        assert_eq!(fallocate(&mut rig, file, (FILE_MAX - 1, 1), false, false).unwrap().0.size_bytes, FILE_MAX);
        assert!(rig.extents(file).is_empty());
    }
}

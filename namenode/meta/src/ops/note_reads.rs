//! NoteReads: files were read, and their atime moves on behind the reads' back.

use dfs_proto::limits::READS_MAX;
use dfs_proto::msg::meta::{FileRead, OpReply};
use dfs_proto::{ErrorKind, FileKind};

use crate::rows::{self, InodeRow, RECLAIM_QUEUE};
use crate::tx::{Failure, Tx, refuse};

/// The leader has verified the grants. Neither ctime nor the version changes: no byte has.
pub(crate) fn apply(tx: &mut Tx<'_>, reads: &[FileRead]) -> Result<OpReply, Failure> {
    if reads.len() > READS_MAX {
        return Err(refuse(ErrorKind::Malformed, format!("more than {READS_MAX} reads at once")));
    }
    for FileRead { inode, seen_ctime, at, .. } in reads {
        let Some(row) = rows::inode(tx.view(), *inode)? else { continue };
        let is_file = row.kind() == FileKind::File && row.orphan != Some(RECLAIM_QUEUE);
        // Changed since the read, or set to some time: then the read is no news.
        let unchanged = row.ctime == *seen_ctime && row.attr(*inode).wants_atime(*at);
        if is_file && unchanged && at.nanos < 1_000_000_000 {
            tx.put(InodeRow::key(*inode), &InodeRow { atime: *at, ..row })?;
        }
    }
    Ok(OpReply::Done)
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::Op;
    use dfs_proto::{Attr, InodeId, SetAttr, SetTime, Timestamp};

    use super::*;
    use crate::testing::{Rig, kind_of};

    /// A read `secs` after the file was as `seen`; the atime after it.
    fn read(rig: &mut Rig, seen: &Attr, secs: i64) -> Timestamp {
        let at = Timestamp { secs: seen.ctime.secs + secs, nanos: 7 };
        let grant = rig.grant(seen.inode);
        let reads = vec![FileRead { inode: seen.inode, grant, seen_ctime: seen.ctime, at }];
        rig.op(Op::NoteReads { reads }).unwrap();
        rig.attr(seen.inode).atime
    }

    #[test]
    fn the_first_read_after_a_change_and_one_a_day_set_atime_and_nothing_else() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 10);
        let seen = rig.attr(file);
        let first = read(&mut rig, &seen, 100);
        assert_eq!(first.secs, seen.ctime.secs + 100);
        assert_eq!(rig.attr(file), Attr { atime: first, ..seen.clone() });
        assert_eq!(read(&mut rig, &seen, 5000), first, "not twice a day");
        assert_eq!(read(&mut rig, &seen, 50), first, "never back");
        assert!(read(&mut rig, &seen, 100 + 86_400) > first);
    }

    #[test]
    fn a_time_that_was_set_after_the_read_stays() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 10);
        let seen = rig.attr(file);
        let old = Timestamp { secs: 5, nanos: 0 };
        rig.set_attr(file, SetAttr { atime: Some(SetTime::At(old)), ..SetAttr::default() }).unwrap();
        assert_eq!(read(&mut rig, &seen, 100), old);
        let seen = rig.attr(file);
        assert!(read(&mut rig, &seen, 100) > old);
    }

    #[test]
    fn what_is_gone_or_no_file_is_passed_over_and_floods_are_refused() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 10);
        let (seen, root) = (rig.attr(file), rig.attr(InodeId::ROOT));
        rig.unlink(InodeId::ROOT, "a", None).unwrap();
        let grant = rig.grant(file);
        let gone = FileRead { inode: file, grant, seen_ctime: seen.ctime, at: Timestamp { secs: 1 << 40, nanos: 0 } };
        rig.op(Op::NoteReads { reads: vec![gone.clone()] }).unwrap();
        let root = rig.attr(root.inode);
        assert_eq!(read(&mut rig, &root, 100), root.atime);
        assert_eq!(kind_of(rig.op(Op::NoteReads { reads: vec![gone; READS_MAX + 1] })), Some(ErrorKind::Malformed));
    }
}

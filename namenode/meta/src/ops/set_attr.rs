//! SetAttr: chmod, chown, truncate, utimes and the number of copies, by Linux's rules.

use std::collections::BTreeSet;

use dfs_proto::limits::{FILE_MAX, REPLICATION_MAX};
use dfs_proto::msg::meta::OpReply;
use dfs_proto::{ChunkId, ErrorKind, InodeId, SetAttr, SetTime};

use crate::apply::Client;
use crate::permission::{self, MODE_MASK, SET_GID, WRITE, without_set_id};
use crate::rows::{self, ChunkRow, Content, FileSpan, InodeRow};
use crate::tx::{Failure, Tx, refuse};
use crate::usage::{Usage, shifted};
use crate::{chunks, tree, xattrs};

/// `granted`: the request brings a write grant for this inode, which the leader has verified.
pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    set: &SetAttr,
    granted: bool,
) -> Result<OpReply, Failure> {
    let before = tree::live_inode(tx.view(), inode)?;
    let mut row = before.clone();
    change_owner(tx, client, inode, &before, set, &mut row)?;
    change_mode(tx, client, inode, &before, set, &mut row)?;
    change_times(tx, client, inode, &before, set, granted, &mut row)?;
    if let Some(size_bytes) = set.size_bytes
        && !change_size(tx, client, inode, size_bytes, set, granted, &mut row)?
    {
        return part_cut(tx, client, inode, before, row);
    }
    if *set != SetAttr::default() {
        row.ctime = client.now;
    }
    tx.put(InodeRow::key(inode), &row)?;
    if let Some(replication) = set.replication {
        change_replication(tx, client, inode, replication, &mut row)?;
    }
    Ok(OpReply::Attr(row.attr(inode)))
}

/// Only root gives files away; an owner may choose among the groups it is in.
fn change_owner(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    before: &InodeRow,
    set: &SetAttr,
    row: &mut InodeRow,
) -> Result<(), Failure> {
    if set.uid.is_none() && set.gid.is_none() {
        return Ok(());
    }
    let caller = client.caller;
    permission::require_owner(before, caller)?;
    if caller.uid != 0 && set.uid.is_some_and(|uid| uid != before.uid) {
        return Err(refuse(ErrorKind::NotPermitted, "only root may change the owner"));
    }
    if caller.uid != 0 && set.gid.is_some_and(|gid| gid != before.gid && !caller.in_group(gid)) {
        return Err(refuse(ErrorKind::NotPermitted, "the caller is not in that group"));
    }
    row.uid = set.uid.unwrap_or(row.uid);
    row.gid = set.gid.unwrap_or(row.gid);
    if !row.is_directory() {
        row.mode = without_set_id(row.mode);
        xattrs::drop_capability(tx, inode, row)?;
    }
    Ok(())
}

fn change_mode(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    before: &InodeRow,
    set: &SetAttr,
    row: &mut InodeRow,
) -> Result<(), Failure> {
    let Some(mode) = set.mode else { return Ok(()) };
    permission::require_owner(before, client.caller)?;
    row.mode = mode & MODE_MASK;
    if client.caller.uid != 0 && !client.caller.in_group(row.gid) {
        row.mode &= !SET_GID;
    }
    Ok(xattrs::follow_mode(tx, inode, row)?)
}

/// "Now" is for whoever may write; any other time for the owner.
fn change_times(
    tx: &Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    before: &InodeRow,
    set: &SetAttr,
    granted: bool,
    row: &mut InodeRow,
) -> Result<(), Failure> {
    for (change, time) in [(set.atime, &mut row.atime), (set.mtime, &mut row.mtime)] {
        match change {
            None => {}
            Some(SetTime::At(at)) => {
                permission::require_owner(before, client.caller)?;
                if at.nanos >= 1_000_000_000 {
                    return Err(refuse(ErrorKind::InvalidArgument, "a second has fewer nanoseconds"));
                }
                *time = at;
            }
            Some(SetTime::Now) => {
                if !granted && !permission::owns(before, client.caller) {
                    permission::require(tx.view(), inode, before, client.caller, WRITE)?;
                }
                *time = client.now;
            }
        }
    }
    Ok(())
}

/// `false` if the file is only a piece shorter, because it has many extents.
fn change_size(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    new_size_bytes: u64,
    set: &SetAttr,
    granted: bool,
    row: &mut InodeRow,
) -> Result<bool, Failure> {
    if !granted {
        // By the bits as they were: a mode in the same request does not open the way for itself.
        let before = tree::live_inode(tx.view(), inode)?;
        permission::require(tx.view(), inode, &before, client.caller, WRITE)?;
    }
    let Content::File { size_bytes, mapped_bytes, .. } = &mut row.content else {
        return Err(match row.is_directory() {
            true => refuse(ErrorKind::IsADirectory, "a directory has no size to set"),
            false => refuse(ErrorKind::InvalidArgument, "only a regular file has a size to set"),
        });
    };
    if new_size_bytes > FILE_MAX {
        return Err(refuse(ErrorKind::FileTooLarge, format!("a file has at most {FILE_MAX} bytes")));
    }
    if new_size_bytes < *size_bytes {
        let (mut usage, file) = (Usage::default(), FileSpan { inode, size_bytes: *size_bytes });
        let (grown, end) = usage.cut(tx, file, new_size_bytes)?;
        usage.settle(tx)?;
        *mapped_bytes = shifted(*mapped_bytes, grown, "mapped bytes of a file")?;
        if end > new_size_bytes {
            *size_bytes = end;
            row.version += 1;
            return Ok(false);
        }
    }
    if new_size_bytes != *size_bytes {
        *size_bytes = new_size_bytes;
        row.version += 1;
    }
    if client.caller.uid != 0 && set.mode.is_none() {
        row.mode = without_set_id(row.mode);
    }
    xattrs::drop_capability(tx, inode, row)?;
    if set.mtime.is_none() {
        row.mtime = client.now;
    }
    Ok(true)
}

/// A piece is cut: the file is as after a truncation to where that ends. What else was asked for comes with the
/// last piece.
fn part_cut(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    before: InodeRow,
    cut: InodeRow,
) -> Result<OpReply, Failure> {
    let mode = if client.caller.uid != 0 { without_set_id(before.mode) } else { before.mode };
    let InodeRow { content, version, .. } = cut;
    let row = InodeRow { content, version, mode, mtime: client.now, ctime: client.now, ..before };
    tx.put(InodeRow::key(inode), &row)?;
    Ok(OpReply::Attr(row.attr(inode)))
}

/// A chunk has as many copies as the file that wants most of it. Runs when the inode's row is written
/// but for this.
fn change_replication(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    inode: InodeId,
    wanted: u8,
    row: &mut InodeRow,
) -> Result<(), Failure> {
    permission::require_owner(row, client.caller)?;
    let Content::File { replication, .. } = &mut row.content else {
        return Err(refuse(ErrorKind::InvalidArgument, "only a regular file has copies"));
    };
    if wanted == 0 || wanted > REPLICATION_MAX {
        let message = format!("a file has 1 to {REPLICATION_MAX} copies, not {wanted}");
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    *replication = wanted;
    tx.put(InodeRow::key(inode), row)?;

    let mut used = BTreeSet::new();
    rows::extents_past(tx.view(), row.span(inode), 0, &mut |extent| {
        used.insert(extent.chunk);
        true
    })?;
    for chunk in used {
        retarget(tx, chunk, wanted)?;
    }
    Ok(())
}

/// Sets a chunk's target to the highest replication among its files, of which one is `wanted`.
fn retarget(tx: &mut Tx<'_>, chunk: ChunkId, wanted: u8) -> Result<(), Failure> {
    let Some(mut row) = rows::chunk(tx.view(), chunk)? else { return Ok(()) };
    let mut target = wanted;
    if wanted < row.target {
        // Files that share a pack mostly want the same: the first one that keeps the target ends the walk.
        let mut fault = None;
        rows::chunk_files(tx.view(), chunk, &mut |inode, _| {
            match tree::existing(tx.view(), inode) {
                Ok(file) => target = target.max(file.attr(inode).replication),
                Err(damage) => fault = Some(damage),
            }
            fault.is_none() && target < row.target
        })?;
        fault.map_or(Ok(()), Err)?;
    }
    if target != row.target {
        row.target = target;
        tx.put(ChunkRow::key(chunk), &row)?;
        chunks::note_attention(tx, chunk, &row)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dfs_proto::{Attr, Timestamp, WireError};

    use super::*;
    use crate::testing::{Rig, kind_of};

    fn set(rig: &mut Rig, inode: InodeId, set: SetAttr) -> Result<Attr, WireError> {
        rig.set_attr(inode, set)
    }

    fn owner(uid: u32, gid: u32) -> SetAttr {
        SetAttr { uid: Some(uid), gid: Some(gid), ..SetAttr::default() }
    }

    fn mode(mode: u16) -> SetAttr {
        SetAttr { mode: Some(mode), ..SetAttr::default() }
    }

    fn size(size_bytes: u64) -> SetAttr {
        SetAttr { size_bytes: Some(size_bytes), ..SetAttr::default() }
    }

    /// A file of user 5 in group 50, and a rig that acts for the user asked for.
    fn users_file(bits: u16) -> (Rig, InodeId) {
        let mut rig = Rig::new();
        let file = rig.create(InodeId::ROOT, "f").inode;
        set(&mut rig, file, owner(5, 50)).unwrap();
        set(&mut rig, file, mode(bits)).unwrap();
        (rig, file)
    }

    #[test]
    fn only_owner_and_root_change_the_mode() {
        let (mut rig, file) = users_file(0o666);
        rig.become_user(6, 50);
        assert_eq!(kind_of(set(&mut rig, file, mode(0o777))), Some(ErrorKind::NotPermitted));
        rig.become_user(5, 50);
        assert_eq!(set(&mut rig, file, mode(0o12755)).unwrap().mode, 0o2755);
        // Not in the file's group: no setgid.
        rig.become_user(5, 51);
        assert_eq!(set(&mut rig, file, mode(0o2755)).unwrap().mode, 0o755);
    }

    #[test]
    fn only_root_gives_a_file_away_and_owners_choose_among_their_groups() {
        let (mut rig, file) = users_file(0o644);
        rig.become_user(5, 50);
        assert_eq!(kind_of(set(&mut rig, file, owner(6, 50))), Some(ErrorKind::NotPermitted));
        assert_eq!(kind_of(set(&mut rig, file, owner(5, 77))), Some(ErrorKind::NotPermitted));
        rig.caller.groups = vec![77];
        assert_eq!(set(&mut rig, file, owner(5, 77)).unwrap().gid, 77);
        rig.become_user(6, 77);
        assert_eq!(kind_of(set(&mut rig, file, owner(5, 77))), Some(ErrorKind::NotPermitted));
        rig.become_root();
        assert_eq!(set(&mut rig, file, owner(6, 1)).unwrap().uid, 6);
    }

    #[test]
    fn a_file_given_to_another_group_no_longer_runs_as_its_owner() {
        let (mut rig, file) = users_file(0o6755);
        rig.become_user(5, 50);
        assert_eq!(set(&mut rig, file, owner(5, 50)).unwrap().mode, 0o755);
    }

    #[test]
    fn cutting_a_file_frees_its_bytes_and_changes_its_version() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 1000);
        let before = rig.attr(file);
        let cut = set(&mut rig, file, size(400)).unwrap();
        assert_eq!((cut.size_bytes, cut.mapped_bytes, cut.version), (400, 400, before.version + 1));
        assert!(cut.mtime > before.mtime && cut.ctime > before.ctime);
        let grown = set(&mut rig, file, size(5000)).unwrap();
        assert_eq!((grown.size_bytes, grown.mapped_bytes, grown.version), (5000, 400, cut.version + 1));
        let same = set(&mut rig, file, size(5000)).unwrap();
        assert_eq!(same.version, grown.version);
        set(&mut rig, file, size(0)).unwrap();
        assert_eq!(rig.totals().counts.mapped_bytes, 0);
    }

    #[test]
    fn setting_the_size_needs_permission_or_a_grant_and_a_regular_file() {
        let (mut rig, file) = users_file(0o444);
        rig.become_user(5, 50);
        assert_eq!(kind_of(set(&mut rig, file, size(9))), Some(ErrorKind::AccessDenied));
        let opening = SetAttr { mode: Some(0o666), ..size(9) };
        assert_eq!(kind_of(set(&mut rig, file, opening)), Some(ErrorKind::AccessDenied));
        assert_eq!(rig.set_attr_granted(file, size(9)).unwrap().size_bytes, 9);
        assert_eq!(kind_of(rig.set_attr_granted(file, size(FILE_MAX + 1))), Some(ErrorKind::FileTooLarge));
        assert_eq!(rig.set_attr_granted(file, size(FILE_MAX)).unwrap().size_bytes, FILE_MAX);
        rig.become_root();
        assert_eq!(kind_of(set(&mut rig, InodeId::ROOT, size(9))), Some(ErrorKind::IsADirectory));
    }

    #[test]
    fn writers_may_set_the_time_to_now_and_owners_to_any_time() {
        let (mut rig, file) = users_file(0o664);
        let now = SetAttr { atime: Some(SetTime::Now), mtime: Some(SetTime::Now), ..SetAttr::default() };
        let at = Timestamp { secs: -5, nanos: 7 };
        let then = SetAttr { mtime: Some(SetTime::At(at)), ..SetAttr::default() };
        rig.become_user(6, 50);
        assert!(set(&mut rig, file, now.clone()).is_ok());
        assert_eq!(kind_of(set(&mut rig, file, then.clone())), Some(ErrorKind::NotPermitted));
        rig.become_user(7, 7);
        assert_eq!(kind_of(set(&mut rig, file, now.clone())), Some(ErrorKind::AccessDenied));
        rig.become_user(5, 1);
        assert_eq!(set(&mut rig, file, then).unwrap().mtime, at);
        let (mut rig, file) = users_file(0o000);
        rig.become_user(5, 50);
        assert!(set(&mut rig, file, now).is_ok());
        let odd = SetTime::At(Timestamp { secs: 0, nanos: 1_000_000_000 });
        let odd = SetAttr { atime: Some(odd), ..SetAttr::default() };
        assert_eq!(kind_of(set(&mut rig, file, odd)), Some(ErrorKind::InvalidArgument));
    }

    #[test]
    fn a_chunk_has_as_many_copies_as_the_file_that_wants_most() {
        let mut rig = Rig::new();
        let copies = |n| SetAttr { replication: Some(n), ..SetAttr::default() };
        let (a, b) = (rig.create(InodeId::ROOT, "a").inode, rig.create(InodeId::ROOT, "b").inode);
        let chunk = rig.allocate(1)[0];
        rig.commit_at(a, chunk, 0, 10, false).unwrap();
        rig.commit_at(b, chunk, 10, 10, true).unwrap();
        let target = |rig: &Rig| rows::chunk(&rig.state, chunk).unwrap().unwrap().target;

        assert_eq!(set(&mut rig, a, copies(4)).unwrap().replication, 4);
        assert_eq!(target(&rig), 4);
        assert_eq!(rows::attention(&rig.state, 9).unwrap(), [chunk]);
        set(&mut rig, a, copies(1)).unwrap();
        assert_eq!(target(&rig), 3);
        assert!(rows::attention(&rig.state, 9).unwrap().is_empty());
        set(&mut rig, b, copies(2)).unwrap();
        assert_eq!(target(&rig), 2);

        assert_eq!(kind_of(set(&mut rig, a, copies(9))), Some(ErrorKind::InvalidArgument));
        assert_eq!(kind_of(set(&mut rig, InodeId::ROOT, copies(2))), Some(ErrorKind::InvalidArgument));
        rig.become_user(6, 6);
        assert_eq!(kind_of(set(&mut rig, a, copies(2))), Some(ErrorKind::NotPermitted));
    }

    #[test]
    fn a_refused_part_leaves_the_other_parts_undone() {
        let (mut rig, file) = users_file(0o644);
        rig.become_user(5, 50);
        let both = SetAttr { mode: Some(0o600), uid: Some(6), ..SetAttr::default() };
        assert_eq!(kind_of(set(&mut rig, file, both)), Some(ErrorKind::NotPermitted));
        assert_eq!(rig.attr(file).mode, 0o644);
    }
}

//! Names in directories: the rows behind an entry, kept together.

use std::collections::BTreeSet;

use dfs_proto::{Attr, ErrorKind, FileKind, InodeId, Name, SessionId, Timestamp};

use crate::apply::Client;
use crate::ops::reclaim;
use crate::rows::{self, Content, DentryRow, DirIndexRow, InodeRow, RECLAIM_QUEUE, UNDECIDED};
use crate::tx::{Failure, Tx, refuse};
use crate::view::{Fault, View};

/// An inode that a client may still name: not one that is being taken apart.
pub(crate) fn live_inode(view: &dyn View, inode: InodeId) -> Result<InodeRow, Failure> {
    match rows::inode(view, inode)? {
        Some(row) if row.orphan != Some(RECLAIM_QUEUE) => Ok(row),
        _ => Err(refuse(ErrorKind::Stale, format!("inode {inode} no longer exists"))),
    }
}

/// A `live_inode` that is a directory.
pub(crate) fn directory(view: &dyn View, inode: InodeId) -> Result<InodeRow, Failure> {
    let row = live_inode(view, inode)?;
    match row.is_directory() {
        true => Ok(row),
        false => Err(refuse(ErrorKind::NotADirectory, format!("inode {inode} is not a directory"))),
    }
}

/// The entry `name`, or `NotFound`.
pub(crate) fn entry(view: &dyn View, parent: InodeId, name: &Name) -> Result<DentryRow, Failure> {
    rows::dentry(view, parent, name)?.ok_or_else(|| refuse(ErrorKind::NotFound, format!("there is no `{name}`")))
}

/// The inode behind an entry. That it is missing is damage.
pub(crate) fn named_inode(view: &dyn View, entry: &DentryRow) -> Result<InodeRow, Fault> {
    rows::inode(view, entry.inode)?
        .ok_or_else(|| Fault(format!("a name leads to inode {}, which is gone", entry.inode)))
}

/// Adds an entry that is not there yet. A subdirectory's `..` counts as a link of the parent.
pub(crate) fn insert(
    tx: &mut Tx<'_>,
    parent: InodeId,
    name: &Name,
    inode: InodeId,
    kind: FileKind,
    now: Timestamp,
) -> Result<(), Fault> {
    let mut cookie = 0;
    change_directory(tx, parent, now, |row, next_cookie| {
        cookie = *next_cookie;
        *next_cookie += 1;
        row.nlink += u32::from(kind == FileKind::Directory);
    })?;
    put_entry(tx, parent, name, DentryRow { inode, kind, cookie })
}

/// Takes an entry away.
pub(crate) fn remove(
    tx: &mut Tx<'_>,
    parent: InodeId,
    name: &Name,
    entry: &DentryRow,
    now: Timestamp,
) -> Result<(), Fault> {
    tx.delete(DentryRow::key(parent, name));
    tx.delete(DirIndexRow::key(parent, entry.cookie));
    change_directory(tx, parent, now, |row, _| row.nlink -= u32::from(entry.kind == FileKind::Directory))
}

/// Lets an entry lead to another inode. It keeps its cookie, so a listing that is under way sees it once.
pub(crate) fn redirect(
    tx: &mut Tx<'_>,
    parent: InodeId,
    name: &Name,
    old: &DentryRow,
    to: &DentryRow,
    now: Timestamp,
) -> Result<(), Fault> {
    change_directory(tx, parent, now, |row, _| {
        row.nlink += u32::from(to.kind == FileKind::Directory);
        row.nlink -= u32::from(old.kind == FileKind::Directory);
    })?;
    put_entry(tx, parent, name, DentryRow { cookie: old.cookie, ..*to })
}

/// Gives an entry of one directory another name there. It keeps its cookie: a listing that is under
/// way sees it once, under the one name or the other.
pub(crate) fn rename_within(
    tx: &mut Tx<'_>,
    parent: InodeId,
    from: &Name,
    to: &Name,
    entry: &DentryRow,
    now: Timestamp,
) -> Result<(), Fault> {
    tx.delete(DentryRow::key(parent, from));
    change_directory(tx, parent, now, |_, _| {})?;
    put_entry(tx, parent, to, *entry)
}

/// A file (not a directory) has lost one of its names. With the last one it goes, unless somebody may have
/// it open. Answers its attributes after that.
pub(crate) fn drop_link(
    tx: &mut Tx<'_>,
    inode: InodeId,
    client: &Client<'_>,
    hold: Option<InodeId>,
) -> Result<Attr, Failure> {
    let mut row = existing(tx.view(), inode)?;
    row.nlink =
        row.nlink.checked_sub(1).ok_or_else(|| Fault(format!("inode {inode} has a name and no link to count")))?;
    row.ctime = client.now;
    let attr = row.attr(inode);
    if row.nlink > 0 {
        tx.put(InodeRow::key(inode), &row)?;
        return Ok(attr);
    }
    let holders = holders(tx.view(), client, inode, hold)?;
    match holders.is_empty() {
        true => reclaim::let_go(tx, inode, row)?,
        false => reclaim::hold(tx, inode, row, &holders)?,
    }
    Ok(attr)
}

/// Who holds an inode that has just lost its last name.
fn holders(
    view: &dyn View,
    client: &Client<'_>,
    inode: InodeId,
    hold: Option<InodeId>,
) -> Result<BTreeSet<SessionId>, Fault> {
    let mut holders = BTreeSet::new();
    if hold == Some(inode) {
        holders.insert(client.session);
    }
    let Some(knowledge) = client.knowledge else { return Ok(holders) };
    // The name may lead elsewhere by now, of which the leader did not ask who has it open.
    let expected = knowledge.expected == Some(inode);
    if knowledge.undecided || !expected {
        holders.insert(UNDECIDED);
    }
    for session in knowledge.holders.iter().filter(|_| expected) {
        // One that has ended meanwhile holds nothing.
        if rows::session(view, *session)?.is_some() {
            holders.insert(*session);
        }
    }
    Ok(holders)
}

/// An inode that the rows say exists.
pub(crate) fn existing(view: &dyn View, inode: InodeId) -> Result<InodeRow, Fault> {
    rows::inode(view, inode)?.ok_or_else(|| Fault(format!("inode {inode} has gone within one command")))
}

fn put_entry(tx: &mut Tx<'_>, parent: InodeId, name: &Name, entry: DentryRow) -> Result<(), Fault> {
    tx.put(DentryRow::key(parent, name), &entry)?;
    let listed = DirIndexRow { name: name.clone(), inode: entry.inode, kind: entry.kind };
    tx.put(DirIndexRow::key(parent, entry.cookie), &listed)
}

/// Changes the row of a directory whose entries have changed.
fn change_directory(
    tx: &mut Tx<'_>,
    directory: InodeId,
    now: Timestamp,
    change: impl FnOnce(&mut InodeRow, &mut u64),
) -> Result<(), Fault> {
    let mut row = existing(tx.view(), directory)?;
    let Content::Directory { parent, mut next_cookie, private } = row.content else {
        return Err(Fault(format!("inode {directory} has entries and is not a directory")));
    };
    change(&mut row, &mut next_cookie);
    row.content = Content::Directory { parent, next_cookie, private };
    row.mtime = now;
    row.ctime = now;
    row.version += 1;
    tx.put(InodeRow::key(directory), &row)
}

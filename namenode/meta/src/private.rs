//! Private directories: what one session alone sees and changes, and who has to be asked before anybody else may.
//!
//! A directory that a session has made is private to it until it shares it (`Op::Share`) or ends. The session keeps a
//! copy of everything in it, changes that copy without asking, and sends what it did later (`Op::Sequence`). So the rows
//! here may be older than what its programs have seen, and nobody else may see them, nor change them.

use dfs_proto::msg::meta::{Answer, Op, Query};
use dfs_proto::{ErrorKind, FileKind, InodeId, Name, SessionId};

use crate::rows;
use crate::tx::{Failure, refuse};
use crate::view::{Fault, View};

/// What a request names.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Touched<'a> {
    pub inodes: Vec<InodeId>,
    /// Names, by directory: the directory is touched, and what has the name.
    pub names: Vec<(InodeId, &'a Name)>,
}

impl<'a> Touched<'a> {
    fn inode(inode: InodeId) -> Touched<'a> {
        Touched { inodes: vec![inode], names: Vec::new() }
    }

    fn name(parent: InodeId, name: &'a Name) -> Touched<'a> {
        Touched { inodes: Vec::new(), names: vec![(parent, name)] }
    }

    pub fn by_op(op: &'a Op) -> Touched<'a> {
        match op {
            Op::Make { parent, name, .. }
            | Op::MakeMasked { parent, name, .. }
            | Op::Unlink { parent, name, .. }
            | Op::Rmdir { parent, name } => Touched::name(*parent, name),
            Op::Link { inode, parent, name } => Touched { inodes: vec![*inode], ..Touched::name(*parent, name) },
            Op::Rename { from_parent, from_name, to_parent, to_name, .. } => {
                Touched { inodes: Vec::new(), names: vec![(*from_parent, from_name), (*to_parent, to_name)] }
            }
            Op::SetAttr { inode, .. }
            | Op::SetXattr { inode, .. }
            | Op::RemoveXattr { inode, .. }
            | Op::Fallocate { inode, .. }
            | Op::Open { inode, .. }
            | Op::Lock { inode, .. }
            | Op::Unlock { inode, .. } => Touched::inode(*inode),
            Op::CloneRange { source, inode, .. } => Touched { inodes: vec![*source, *inode], names: Vec::new() },
            Op::Release { inodes } => Touched { inodes: inodes.clone(), names: Vec::new() },
            Op::NoteReads { reads } => {
                Touched { inodes: reads.iter().map(|read| read.inode).collect(), names: Vec::new() }
            }
            // Bytes are committed as they come, whoever sees the name.
            Op::Commit { .. }
            | Op::AllocateChunks { .. }
            | Op::CloseSession
            | Op::Reserve { .. }
            | Op::Sequence { .. }
            | Op::Share { .. } => Touched::default(),
        }
    }

    pub fn by_query(query: &'a Query) -> Touched<'a> {
        match query {
            Query::Lookup { parent, name } => Touched::name(*parent, name),
            query => query.inode().map_or_else(Touched::default, Touched::inode),
        }
    }
}

/// The directories among what is touched that are private to a session other than this one, and to which.
pub fn in_the_way(
    view: &dyn View,
    session: SessionId,
    touched: &Touched<'_>,
) -> Result<Vec<(InodeId, SessionId)>, Fault> {
    let mut found = Vec::new();
    for inode in &touched.inodes {
        found.extend(private_to_another(view, session, *inode)?);
    }
    for (parent, name) in &touched.names {
        found.extend(private_to_another(view, session, *parent)?);
        let entry = rows::dentry(view, *parent, name)?;
        if let Some(entry) = entry.filter(|entry| entry.kind == FileKind::Directory) {
            found.extend(private_to_another(view, session, entry.inode)?);
        }
    }
    Ok(found)
}

/// As `in_the_way`, for the directories of which an answer shows attributes.
pub fn shown(view: &dyn View, session: SessionId, answer: &Answer) -> Result<Vec<(InodeId, SessionId)>, Fault> {
    let Answer::Page(page) = answer else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in page.entries.iter().filter(|entry| entry.kind == FileKind::Directory && entry.attr.is_some()) {
        found.extend(private_to_another(view, session, entry.inode)?);
    }
    Ok(found)
}

/// A refusal that is not remembered: the same request is put again when the directory is shared.
pub(crate) fn refusal(inode: InodeId, session: SessionId) -> Failure {
    refuse(ErrorKind::Private, format!("directory {inode} is private to session {session}"))
}

fn private_to_another(
    view: &dyn View,
    session: SessionId,
    inode: InodeId,
) -> Result<Option<(InodeId, SessionId)>, Fault> {
    let owner = rows::inode(view, inode)?.and_then(|row| row.private()).filter(|owner| *owner != session);
    let Some(owner) = owner else { return Ok(None) };
    // What a session had for itself is everybody's when it has ended; the row need not say so.
    Ok(rows::session(view, owner)?.map(|_| (inode, owner)))
}

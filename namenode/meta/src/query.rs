//! Linearizable reads: what clients ask, answered from one view, with the permissions that Linux asks for.

mod locate;
mod xattrs;

use std::collections::BTreeSet;

use dfs_proto::limits::READDIR_PAGE_MAX;
use dfs_proto::msg::admin::{ChunkInfo, FileInfo, Liveness};
use dfs_proto::msg::meta::{Answer, DirEntry, DirPage, LockClaim, Op, OpenedFile, Query, StatFs};
use dfs_proto::{Caller, ErrorKind, Grant, InodeId, Name, NodeId, Refusal, SessionId, Timestamp, WireError};

use crate::locks;
use crate::permission::{self, EXECUTE, READ, WRITE};
use crate::placement::NodeView;
use crate::private::{self, Touched};
use crate::rows::{self, Content, UNDECIDED};
use crate::tree;
use crate::tx::{Failure, refuse};
use crate::view::{Fault, View};

pub use locate::sign_reply;

/// Who asks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Asker<'a> {
    pub caller: &'a Caller,
    pub session: SessionId,
    /// Number of the client's certificate. Refused as `Forbidden` if the session is somebody else's.
    pub holder: NodeId,
    /// The leader's clock: capabilities run from here.
    pub now: Timestamp,
}

/// Whether another session has a directory for itself that the query or its answer would show: `answer` must not be
/// given before those are shared.
pub fn private_in_answer(
    view: &dyn View,
    session: SessionId,
    query: &Query,
    answer: &Result<Answer, WireError>,
) -> Result<Vec<(InodeId, SessionId)>, Fault> {
    let mut found = private::in_the_way(view, session, &Touched::by_query(query))?;
    if let Ok(answer) = answer {
        found.extend(private::shown(view, session, answer)?);
    }
    Ok(found)
}

/// Answers a client's query. Capabilities are good for 10 minutes; replicas on live nodes come first.
/// `Query::StatFs` gets the number of files and zeros for the bytes: see [`stat_fs`].
pub fn answer(
    view: &dyn View,
    asker: &Asker<'_>,
    query: &Query,
    nodes: &dyn Fn(NodeId) -> Liveness,
) -> Result<Result<Answer, WireError>, Fault> {
    settle(require_session(view, asker.session, asker.holder).and_then(|()| match query {
        Query::Lookup { parent, name } => look_up(view, asker, *parent, name),
        Query::GetAttr { inode } => Ok(Answer::Attr(tree::live_inode(view, *inode)?.attr(*inode))),
        Query::ReadLink { inode } => read_link(view, *inode),
        Query::ReadDir { inode, after, limit, attrs } => read_dir(view, asker, *inode, *after, *limit, *attrs),
        Query::Open { inode, read, write } => open(view, asker, nodes, *inode, *read, *write).map(Answer::Opened),
        Query::OpenAhead { inode, others } => open_ahead(view, asker, nodes, *inode, others),
        Query::Locate { inode, grant, offset, len } => locate::locate(view, asker, nodes, *inode, grant, *offset, *len),
        Query::LocateChunks { inode, grant, chunks } => {
            locate::locate_chunks(view, asker, nodes, *inode, grant, chunks)
        }
        Query::StatFs => Ok(Answer::StatFs(stat_fs(view, &[])?)),
        Query::Access { inode, mask } => access(view, asker, *inode, *mask),
        Query::TestLock { inode, claim } => test_lock(view, asker, *inode, claim),
        Query::GetXattr { inode, name } => xattrs::get(view, asker, *inode, name),
        Query::ListXattrs { inode } => xattrs::list(view, asker, *inode),
    }))
}

/// Whether the session lives and belongs to this client. The server asks before it proposes a
/// mutation; `answer` asks by itself.
pub fn check_session(view: &dyn View, session: SessionId, holder: NodeId) -> Result<Result<(), WireError>, Fault> {
    settle(require_session(view, session, holder))
}

/// Whether the grants in a mutation are genuine, this session's and for the right inodes. The leader
/// asks before it proposes; `apply` relies on that.
pub fn check_grants(view: &dyn View, session: SessionId, op: &Op) -> Result<Result<(), WireError>, Fault> {
    let keys = rows::capability_keys(view)?.0;
    let check_for = |grant: &Grant, inode: InodeId, write: bool| {
        grant.check(&keys, inode, session, write).map_err(|refusal| forbidden_grant(inode, refusal))
    };
    let check = |grant: &Grant, inode: InodeId| check_for(grant, inode, true);
    Ok(match op {
        Op::SetAttr { inode, grant: Some(grant), .. } => check(grant, *inode),
        Op::Commit { files, .. } => files.iter().try_for_each(|file| check(&file.grant, file.inode)),
        Op::Fallocate { inode, grant, .. } => check(grant, *inode),
        Op::CloneRange { source, source_grant, inode, grant, .. } => {
            check_for(source_grant, *source, false).and_then(|()| check(grant, *inode))
        }
        Op::NoteReads { reads } => reads.iter().try_for_each(|read| check_for(&read.grant, read.inode, false)),
        _ => Ok(()),
    })
}

/// Space for `df`: of the live nodes' disks, divided by the default replication.
pub fn stat_fs(view: &dyn View, nodes: &[NodeView]) -> Result<StatFs, Fault> {
    let copies = rows::config(view)?.map_or(1, |config| u64::from(config.default_replication.max(1)));
    let counts = rows::totals(view)?.counts;
    let sum = |bytes: fn(&NodeView) -> u64| {
        let live = nodes.iter().filter(|node| node.liveness == Liveness::Live);
        live.fold(0u64, |total, node| total.saturating_add(bytes(node))) / copies
    };
    Ok(StatFs {
        total_bytes: sum(|node| node.total_bytes),
        free_bytes: sum(|node| node.free_bytes),
        files: counts.files + counts.directories + counts.symlinks_and_specials,
    })
}

/// The extents of a file and the replicas behind them, for administrators.
pub fn file_info(
    view: &dyn View,
    inode: InodeId,
    nodes: &dyn Fn(NodeId) -> Liveness,
) -> Result<Result<FileInfo, WireError>, Fault> {
    let info = || -> Result<FileInfo, Failure> {
        let file = tree::live_inode(view, inode)?.span(inode);
        let extents = rows::extents_touching(view, file, 0, u64::MAX)?;
        let ids: BTreeSet<_> = extents.iter().map(|extent| extent.chunk).collect();
        let mut chunks = Vec::new();
        for chunk in ids {
            let Some(row) = rows::chunk(view, chunk)? else { continue };
            chunks.push(ChunkInfo {
                chunk,
                epoch: row.epoch,
                len: row.len,
                lost: rows::lost_end(view, chunk)?,
                live_bytes: row.live_bytes,
                sealed: row.is_sealed(),
                target: row.target,
                replicas: row.replicas.iter().map(|node| (*node, nodes(*node))).collect(),
                damaged: Vec::new(),
            });
        }
        Ok(FileInfo { extents, chunks })
    };
    settle(info())
}

fn require_session(view: &dyn View, session: SessionId, holder: NodeId) -> Result<(), Failure> {
    match rows::session(view, session)? {
        None => Err(refuse(ErrorKind::SessionExpired, "the session has ended")),
        Some(row) if row.holder != holder => {
            Err(refuse(ErrorKind::Forbidden, format!("session {session} is another client's")))
        }
        Some(_) => Ok(()),
    }
}

fn look_up(view: &dyn View, asker: &Asker<'_>, parent: InodeId, name: &Name) -> Result<Answer, Failure> {
    let directory = tree::directory(view, parent)?;
    permission::require(view, parent, &directory, asker.caller, EXECUTE)?;
    let entry = tree::entry(view, parent, name)?;
    Ok(Answer::Attr(tree::named_inode(view, &entry)?.attr(entry.inode)))
}

fn read_link(view: &dyn View, inode: InodeId) -> Result<Answer, Failure> {
    match tree::live_inode(view, inode)?.content {
        Content::Symlink { target } => Ok(Answer::Target(target)),
        _ => Err(refuse(ErrorKind::InvalidArgument, "not a symlink")),
    }
}

fn read_dir(
    view: &dyn View,
    asker: &Asker<'_>,
    inode: InodeId,
    after: u64,
    limit: u32,
    attrs: bool,
) -> Result<Answer, Failure> {
    let directory = tree::directory(view, inode)?;
    permission::require(view, inode, &directory, asker.caller, READ)?;
    let Content::Directory { parent, .. } = directory.content else {
        return Err(refuse(ErrorKind::NotADirectory, "not a directory"));
    };
    // What is behind a name is for those who may search the directory; its names for those who may read it.
    let attrs = attrs && permission::allows(view, inode, &directory, asker.caller, EXECUTE)?;
    let limit = limit.clamp(1, READDIR_PAGE_MAX) as usize;
    let mut listed = rows::list_dir(view, inode, after, limit + 1)?;
    let end = listed.len() <= limit;
    listed.truncate(limit);
    let mut entries = Vec::with_capacity(listed.len());
    for (cookie, row) in listed {
        let attr = match attrs {
            true => rows::inode(view, row.inode)?.map(|found| found.attr(row.inode)),
            false => None,
        };
        entries.push(DirEntry { name: row.name, inode: row.inode, kind: row.kind, cookie, attr });
    }
    Ok(Answer::Page(DirPage { parent, entries, end }))
}

fn open(
    view: &dyn View,
    asker: &Asker<'_>,
    nodes: &dyn Fn(NodeId) -> Liveness,
    inode: InodeId,
    read: bool,
    write: bool,
) -> Result<OpenedFile, Failure> {
    let row = tree::live_inode(view, inode)?;
    if write && row.is_directory() {
        return Err(refuse(ErrorKind::IsADirectory, "a directory is not opened for writing"));
    }
    permission::require(view, inode, &row, asker.caller, READ * u8::from(read) + WRITE * u8::from(write))?;
    if !is_kept(view, inode, asker.session)? {
        return Err(refuse(ErrorKind::Stale, format!("inode {inode} has no name any more")));
    }
    let keys = rows::capability_keys(view)?;
    let grant = Grant::sign(keys.newest()?, inode, asker.session, read, write);
    let front = if read { locate::front(view, asker, nodes, inode, &row)? } else { None };
    Ok(OpenedFile { attr: row.attr(inode), grant, front: front.map(Box::new) })
}

fn open_ahead(
    view: &dyn View,
    asker: &Asker<'_>,
    nodes: &dyn Fn(NodeId) -> Liveness,
    inode: InodeId,
    others: &[InodeId],
) -> Result<Answer, Failure> {
    let opened = open(view, asker, nodes, inode, true, false)?;
    let mut ahead = Vec::with_capacity(others.len());
    for other in others {
        match open(view, asker, nodes, *other, true, false) {
            // Nobody asked for it: no reason to give is of interest.
            Err(Failure::Refused(_)) => {}
            Err(fault) => return Err(fault),
            // Only regular files have a map.
            Ok(other) => ahead.extend(Some(other).filter(|other| other.front.is_some())),
        }
    }
    Ok(Answer::OpenedAhead { opened, others: ahead })
}

/// Whether a session that the leader has noted to have an inode open keeps it: it has a name, or is held. Whoever does
/// not hold it would lose it without notice.
pub fn is_kept(view: &dyn View, inode: InodeId, session: SessionId) -> Result<bool, Fault> {
    let Some(row) = rows::inode(view, inode)? else { return Ok(false) };
    if row.nlink > 0 {
        return Ok(true);
    }
    let holders = rows::holders(view, inode, usize::MAX)?;
    Ok(holders.contains(&session) || holders.contains(&UNDECIDED))
}

fn access(view: &dyn View, asker: &Asker<'_>, inode: InodeId, mask: u8) -> Result<Answer, Failure> {
    let row = tree::live_inode(view, inode)?;
    permission::require(view, inode, &row, asker.caller, mask & (READ | WRITE | EXECUTE))?;
    Ok(Answer::Attr(row.attr(inode)))
}

fn test_lock(view: &dyn View, asker: &Asker<'_>, inode: InodeId, claim: &LockClaim) -> Result<Answer, Failure> {
    tree::live_inode(view, inode)?;
    let held = rows::locks(view, inode)?;
    let first = locks::in_the_way(&held, asker.session, claim).min_by_key(|other| other.claim.range.first);
    Ok(Answer::Lock(first.map(|other| (other.session, other.claim))))
}

/// A grant under a retired key can be renewed by opening again; any other refusal is final.
fn forbidden_grant(inode: InodeId, refusal: Refusal) -> WireError {
    let kind = match refusal {
        Refusal::UnknownKey | Refusal::Expired => ErrorKind::CapabilityExpired,
        Refusal::Forged | Refusal::Mismatch => ErrorKind::Forbidden,
    };
    WireError::new(kind, format!("grant for inode {inode}: {refusal}"))
}

fn settle<T>(result: Result<T, Failure>) -> Result<Result<T, WireError>, Fault> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(Failure::Refused(error)) => Ok(Err(error)),
        Err(Failure::Fault(fault)) => Err(fault),
    }
}

#[cfg(test)]
mod tests;

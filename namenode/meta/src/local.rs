//! A session's own copy of its private directories: the same rows, changed by the same operations, so that what it
//! answers its programs is what the namenodes will come to when they are told.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::limits::READDIR_PAGE_MAX;
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::meta::{Answer, Op, OpReply, Query};
use dfs_proto::{
    Attr, Caller, ClusterId, FileKind, InodeId, Name, NodeId, SessionId, Timestamp, WireError, XattrKinds,
};

use crate::apply::{Client, perform};
use crate::ops::sequence::may_be_step;
use crate::private::Touched;
use crate::query::{self, Asker};
use crate::rows::{self, Config, Content, FIRST_COOKIE, InodeRow, Row, SessionRow, Totals};
use crate::tx::Tx;
use crate::view::{Change, Fault, MemoryView, Table, View};
use crate::xattrs;

/// Where the counters start that must not go below zero. They count what is elsewhere, too, and are not sent.
const MANY: u64 = 1 << 48;

/// Whose certificate the session is under plays no part here.
const HOLDER: NodeId = NodeId(0);

/// Which of two places decides about a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Routed {
    /// All that it touches is here.
    Here,
    /// Some of what it touches is here: the namenode decides, once it knows everything that was done.
    Both,
    /// Nothing is.
    There,
}

pub struct LocalTree {
    session: SessionId,
    view: MemoryView,
    /// Directories whose every name is here.
    directories: BTreeSet<InodeId>,
    /// Directories whose own name is not in one of `directories`, and where it is.
    tops: BTreeMap<InodeId, (InodeId, Name)>,
    /// Numbers for what is made next.
    numbers: std::ops::Range<u64>,
}

impl LocalTree {
    pub fn new(session: SessionId, default_replication: u8) -> Result<LocalTree, Fault> {
        let mut tree = LocalTree {
            session,
            view: MemoryView::new(),
            directories: BTreeSet::new(),
            tops: BTreeMap::new(),
            numbers: 0..0,
        };
        let config = Config { cluster: ClusterId([0; 16]), default_replication, min_copies: 1, lease_ms: 0 };
        tree.put(Config::key(), &config)?;
        let row =
            SessionRow { description: String::new(), holder: HOLDER, opened: Timestamp::default(), acked_below: 0 };
        tree.put(SessionRow::key(session), &row)?;
        let mut totals = Totals::default();
        let counts = &mut totals.counts;
        (counts.files, counts.directories, counts.symlinks_and_specials) = (MANY, MANY, MANY);
        tree.put(Totals::key(), &totals)?;
        Ok(tree)
    }

    pub fn session(&self) -> SessionId {
        self.session
    }

    pub fn is_empty(&self) -> bool {
        self.directories.is_empty()
    }

    /// Rows held, of all kinds.
    pub fn len(&self) -> usize {
        self.view.len()
    }

    /// How many more inodes can be made.
    pub fn numbers_left(&self) -> u64 {
        self.numbers.end - self.numbers.start
    }

    /// More numbers, reserved for this session. What was left of the last ones is not used any more.
    pub fn give_numbers(&mut self, first: InodeId, count: u32) {
        self.numbers = first.0..first.0 + u64::from(count);
    }

    /// Takes in a directory that the session has just made as a private one, so that it is empty. `false` if not all
    /// of it can be known here.
    pub fn adopt(&mut self, parent: InodeId, name: &Name, attr: &Attr) -> Result<bool, Fault> {
        if attr.kind != FileKind::Directory || attr.xattrs != XattrKinds::NONE {
            return Ok(false);
        }
        // A walk upwards ends where this copy does.
        let private = Some(self.session);
        let content = Content::Directory { parent: InodeId::ROOT, next_cookie: FIRST_COOKIE, private };
        self.put(InodeRow::key(attr.inode), &row_of(attr, content))?;
        self.directories.insert(attr.inode);
        self.tops.insert(attr.inode, (parent, name.clone()));
        Ok(true)
    }

    /// The inode as the session sees it, if it is here.
    pub fn attr(&self, inode: InodeId) -> Result<Option<Attr>, Fault> {
        Ok(rows::inode(&self.view, inode)?.map(|row| row.attr(inode)))
    }

    pub fn is_directory(&self, inode: InodeId) -> bool {
        self.directories.contains(&inode)
    }

    /// The directory here that has a name in `parent`, which is not.
    pub fn top_named(&self, parent: InodeId, name: &Name) -> Option<InodeId> {
        let mut tops = self.tops.iter();
        tops.find(|(_, (above, called))| *above == parent && called == name).map(|(top, _)| *top)
    }

    pub fn route_op(&self, op: &Op) -> Result<Routed, Fault> {
        let routed = self.route(&Touched::by_op(op))?;
        Ok(if routed == Routed::Here && !may_be_step(op) { Routed::Both } else { routed })
    }

    pub fn route_query(&self, query: &Query) -> Result<Routed, Fault> {
        let routed = self.route(&Touched::by_query(query))?;
        let answered = matches!(
            query,
            Query::Lookup { .. }
                | Query::GetAttr { .. }
                | Query::ReadLink { .. }
                | Query::ReadDir { .. }
                | Query::Access { .. }
                | Query::GetXattr { .. }
                | Query::ListXattrs { .. }
        );
        Ok(if routed == Routed::Here && !answered { Routed::Both } else { routed })
    }

    /// Everything that is here of what is touched.
    pub fn named(&self, touched: &Touched<'_>) -> Result<Vec<InodeId>, Fault> {
        let mut named = Vec::new();
        for inode in touched.inodes.iter().chain(touched.names.iter().map(|(parent, _)| parent)) {
            if self.has(*inode)? {
                named.push(*inode);
            }
        }
        for (parent, name) in &touched.names {
            if let Some(entry) = rows::dentry(&self.view, *parent, name)?
                && self.has(entry.inode)?
            {
                named.push(entry.inode);
            }
        }
        Ok(named)
    }

    fn route(&self, touched: &Touched<'_>) -> Result<Routed, Fault> {
        let (mut here, mut elsewhere) = (0, 0);
        let mut count = |is_here: bool| if is_here { here += 1 } else { elsewhere += 1 };
        for inode in &touched.inodes {
            count(self.has(*inode)?);
        }
        for (parent, name) in &touched.names {
            count(self.is_directory(*parent));
            if let Some(entry) = rows::dentry(&self.view, *parent, name)? {
                count(self.has(entry.inode)?);
            }
        }
        Ok(match (here, elsewhere) {
            (0, _) => Routed::There,
            (_, 0) => Routed::Here,
            _ => Routed::Both,
        })
    }

    fn has(&self, inode: InodeId) -> Result<bool, Fault> {
        Ok(self.view.get(Table::Inodes, InodeRow::key(inode).bytes())?.is_some())
    }

    /// Carries out an operation that is routed here. A new inode gets the next of the reserved numbers, of which there
    /// must be one. The reply brings no grants.
    pub fn apply(&mut self, caller: &Caller, now: Timestamp, op: &Op) -> Result<Result<OpReply, WireError>, Fault> {
        let unopened;
        let op = match op {
            Op::MakeMasked { open: Some(_), .. } => {
                unopened = without_open(op);
                &unopened
            }
            op => op,
        };
        let mut tx = Tx::open(&self.view)?;
        tx.totals.next_inode = InodeId(self.numbers.start);
        let client = Client { session: self.session, caller, now, knowledge: None, chosen: None };
        let reply = match tx.attempt(|tx| perform(tx, &client, op, &[]))? {
            Ok(reply) => reply,
            Err(error) => return Ok(Err(error)),
        };
        let (next, changed) = (tx.totals.next_inode.0, tx.keep());
        let (changes, _) = tx.finish()?;
        self.numbers.start = next;
        self.view.write(changes);
        for inode in changed {
            self.follow(inode)?;
        }
        Ok(Ok(reply))
    }

    /// Keeps the lists of directories in step with an inode's row.
    fn follow(&mut self, inode: InodeId) -> Result<(), Fault> {
        match rows::inode(&self.view, inode)?.map(|row| row.content) {
            Some(Content::Directory { parent, private: Some(_), .. }) => {
                self.directories.insert(inode);
                if parent != InodeId::ROOT {
                    self.tops.remove(&inode);
                }
            }
            _ => {
                self.directories.remove(&inode);
                self.tops.remove(&inode);
            }
        }
        Ok(())
    }

    /// Answers a query that is routed here.
    pub fn answer(&self, caller: &Caller, query: &Query) -> Result<Result<Answer, WireError>, Fault> {
        let asker = Asker { caller, session: self.session, holder: HOLDER, now: Timestamp::default() };
        let mut answer = query::answer(&self.view, &asker, query, &|_| Liveness::Dead)?;
        if let (Query::ReadDir { inode, .. }, Ok(Answer::Page(page))) = (query, &mut answer)
            && let Some((parent, _)) = self.tops.get(inode)
        {
            page.parent = *parent;
        }
        Ok(answer)
    }

    /// The namenode has changed a file's bytes, and this is what it is now. What only this copy knows of it is kept.
    pub fn observe(&mut self, attr: &Attr) -> Result<(), Fault> {
        let Some(mut row) = rows::inode(&self.view, attr.inode)? else { return Ok(()) };
        let Content::File { size_bytes, mapped_bytes, .. } = &mut row.content else { return Ok(()) };
        if attr.kind != FileKind::File || attr.version < row.version {
            return Ok(());
        }
        (*size_bytes, *mapped_bytes) = (attr.size_bytes, attr.mapped_bytes);
        (row.mode, row.version, row.mtime, row.ctime) =
            (attr.mode, attr.version, attr.mtime, row.ctime.max(attr.ctime));
        let mut tx = Tx::open(&self.view)?;
        if !attr.xattrs.contains(XattrKinds::CAPABILITY) {
            xattrs::drop_capability(&mut tx, attr.inode, &mut row)?;
        }
        tx.put(InodeRow::key(attr.inode), &row)?;
        let (changes, _) = tx.finish()?;
        self.view.write(changes);
        Ok(())
    }

    /// What the name leads to in a directory that is here.
    pub fn entry(&self, parent: InodeId, name: &Name) -> Result<Option<InodeId>, Fault> {
        Ok(rows::dentry(&self.view, parent, name)?.map(|entry| entry.inode))
    }

    /// The private directories from this one downwards, itself first.
    pub fn below(&self, directory: InodeId) -> Result<Vec<InodeId>, Fault> {
        let mut found = vec![directory];
        let mut at = 0;
        while let Some(next) = found.get(at).copied() {
            let children = self.children(next)?;
            found.extend(children.into_iter().filter(|child| self.is_directory(*child)));
            at += 1;
        }
        found.retain(|inode| self.is_directory(*inode));
        Ok(found)
    }

    /// Whatever has a name in the directory.
    pub fn children(&self, directory: InodeId) -> Result<Vec<InodeId>, Fault> {
        Ok(self.entries(directory)?.into_iter().map(|(inode, _)| inode).collect())
    }

    /// The regular files in a directory; none if it has more than `max` names, which are not looked at.
    pub fn files_in(&self, directory: InodeId, max: usize) -> Result<Vec<InodeId>, Fault> {
        let names = rows::list_dir(&self.view, directory, 0, max + 1)?;
        let files = names.iter().filter(|(_, entry)| entry.kind == FileKind::File).map(|(_, entry)| entry.inode);
        Ok(if names.len() > max { Vec::new() } else { files.collect() })
    }

    fn entries(&self, directory: InodeId) -> Result<Vec<(InodeId, Name)>, Fault> {
        let mut entries = Vec::new();
        let mut after = 0;
        loop {
            let page = rows::list_dir(&self.view, directory, after, READDIR_PAGE_MAX as usize)?;
            let Some((last, _)) = page.last() else { return Ok(entries) };
            after = *last;
            entries.extend(page.into_iter().map(|(_, entry)| (entry.inode, entry.name)));
        }
    }

    /// Knows nothing more of a file, or of a directory, its names and its files. Directories in it stay.
    pub fn forget(&mut self, inode: InodeId) -> Result<(), Fault> {
        let mut gone = vec![inode];
        if self.directories.remove(&inode) {
            self.tops.remove(&inode);
            for (child, name) in self.entries(inode)? {
                match self.is_directory(child) {
                    true => self.make_top(child, inode, name)?,
                    false => gone.push(child),
                }
            }
            self.delete_all(Table::Dentries, inode)?;
            self.delete_all(Table::DirIndex, inode)?;
        }
        for inode in gone {
            self.delete_all(Table::Inodes, inode)?;
            self.delete_all(Table::Xattrs, inode)?;
        }
        Ok(())
    }

    /// The name of a directory that is here is in `above`, which no longer is.
    fn make_top(&mut self, directory: InodeId, above: InodeId, name: Name) -> Result<(), Fault> {
        let Some(mut row) = rows::inode(&self.view, directory)? else { return Ok(()) };
        if let Content::Directory { parent, .. } = &mut row.content {
            *parent = InodeId::ROOT;
        }
        self.put(InodeRow::key(directory), &row)?;
        self.tops.insert(directory, (above, name));
        Ok(())
    }

    /// Deletes the rows whose keys begin with the inode.
    fn delete_all(&mut self, table: Table, inode: InodeId) -> Result<(), Fault> {
        let mut keys = Vec::new();
        let (start, end) = (inode.0.to_be_bytes(), (inode.0 + 1).to_be_bytes());
        self.view.scan(table, &start, &end, &mut |key, _| {
            keys.push(key.to_vec());
            true
        })?;
        self.view.write(keys.into_iter().map(|key| Change { table, key, value: None }).collect());
        Ok(())
    }

    fn put<R: Row>(&mut self, key: rows::Key<R>, row: &R) -> Result<(), Fault> {
        let value = Some(rows::encode(row)?);
        self.view.write(vec![Change { table: R::TABLE, key: key.into_bytes(), value }]);
        Ok(())
    }
}

fn without_open(op: &Op) -> Op {
    let mut op = op.clone();
    if let Op::MakeMasked { open, .. } = &mut op {
        *open = None;
    }
    op
}

fn row_of(attr: &Attr, content: Content) -> InodeRow {
    InodeRow {
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        atime: attr.atime,
        mtime: attr.mtime,
        ctime: attr.ctime,
        crtime: attr.crtime,
        version: attr.version,
        content,
        orphan: None,
        xattrs: attr.xattrs,
    }
}

#[cfg(test)]
mod tests;

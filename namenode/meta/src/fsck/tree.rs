//! Inodes and names.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::msg::admin::Counts;
use dfs_proto::{FileKind, InodeId, Name};

use super::Findings;
use crate::rows::{self, Content, DentryRow, DirIndexRow, InodeRow};
use crate::view::{Fault, Table, View};

pub(super) struct Tree {
    pub inodes: BTreeMap<InodeId, InodeRow>,
    /// The names in each directory.
    entries: BTreeMap<InodeId, Vec<(Name, InodeId)>>,
    /// One of the names of each inode.
    named: BTreeMap<InodeId, (InodeId, Name)>,
}

impl Tree {
    /// Reads inodes and names, and checks them against each other.
    pub fn load(view: &dyn View, found: &mut Findings) -> Result<Tree, Fault> {
        let mut tree = Tree { inodes: BTreeMap::new(), entries: BTreeMap::new(), named: BTreeMap::new() };
        rows::inodes(view, &mut |inode, row| {
            tree.inodes.insert(inode, row);
        })?;
        let mut listed = load_index(view)?;
        rows::scan_all::<DentryRow>(view, &mut |key, row| match entry_key(key) {
            None => found.broken(format!("{} key {key:02x?} is no directory and name", Table::Dentries.name())),
            Some((parent, name)) => {
                let index = DirIndexRow { name: name.clone(), inode: row.inode, kind: row.kind };
                if listed.remove(&(parent, row.cookie)) != Some(index) {
                    found.broken_inode(parent, format!("`{name}` is found by name and not listed as the same"));
                }
                tree.check_entry(parent, &name, &row, found);
                tree.named.entry(row.inode).or_insert_with(|| (parent, name.clone()));
                tree.entries.entry(parent).or_default().push((name, row.inode));
            }
        })?;
        for ((parent, _), row) in listed {
            found.broken_inode(parent, format!("`{}` is listed and not found by name", row.name));
        }
        tree.check_links(found);
        tree.check_reachable(found);
        Ok(tree)
    }

    /// Inodes of each kind, of all or of some.
    pub fn counts(&self, only: Option<&BTreeSet<InodeId>>, chunks: usize, sessions: usize) -> Counts {
        let mut counts = Counts { chunks: chunks as u64, sessions: sessions as u64, ..Counts::default() };
        for (inode, row) in &self.inodes {
            if only.is_some_and(|only| !only.contains(inode)) {
                continue;
            }
            match &row.content {
                Content::File { mapped_bytes, .. } => {
                    counts.files += 1;
                    counts.mapped_bytes += mapped_bytes;
                }
                Content::Directory { .. } => counts.directories += 1,
                Content::Symlink { .. } | Content::Special { .. } => counts.symlinks_and_specials += 1,
            }
        }
        counts
    }

    /// `root` and everything below it; nothing if it does not exist.
    pub fn below(&self, root: InodeId) -> BTreeSet<InodeId> {
        let mut seen = BTreeSet::new();
        let mut open = vec![root];
        while let Some(inode) = open.pop() {
            if self.inodes.contains_key(&inode) && seen.insert(inode) {
                open.extend(self.entries.get(&inode).into_iter().flatten().map(|(_, inode)| *inode));
            }
        }
        seen
    }

    /// One of the paths of an inode, from the root; `None` if it has no name.
    pub fn path(&self, inode: InodeId) -> Option<String> {
        let mut names = Vec::new();
        let mut at = inode;
        while at != InodeId::ROOT {
            let (parent, name) = self.named.get(&at)?;
            names.push(name.to_string());
            // Longer than the tree has names: a circle.
            if names.len() > self.named.len() {
                return None;
            }
            at = *parent;
        }
        names.push(String::new());
        names.reverse();
        let path = names.join("/");
        Some(if path.is_empty() { "/".into() } else { path })
    }

    fn check_entry(&self, parent: InodeId, name: &Name, row: &DentryRow, found: &mut Findings) {
        match self.inodes.get(&parent).map(|row| &row.content) {
            Some(Content::Directory { next_cookie, .. }) if row.cookie < *next_cookie => {}
            Some(Content::Directory { .. }) => {
                found.broken_inode(parent, format!("`{name}` has a cookie that was not given out"))
            }
            _ => found.broken_inode(parent, format!("`{name}` lies in what is no directory")),
        }
        match self.inodes.get(&row.inode) {
            None => found.broken_inode(row.inode, format!("`{name}` leads to inode {}, which is gone", row.inode)),
            Some(inode) if inode.kind() != row.kind => {
                found.broken_inode(row.inode, format!("`{name}` says {:?}, the inode {:?}", row.kind, inode.kind()));
            }
            Some(_) => {}
        }
    }

    /// Link counts against names; parents of directories.
    fn check_links(&self, found: &mut Findings) {
        let mut names: BTreeMap<InodeId, u32> = BTreeMap::new();
        let mut subdirectories: BTreeMap<InodeId, u32> = BTreeMap::new();
        for (parent, entries) in &self.entries {
            for (name, inode) in entries {
                *names.entry(*inode).or_default() += 1;
                let Some(Content::Directory { parent: up, .. }) = self.inodes.get(inode).map(|row| &row.content) else {
                    continue;
                };
                *subdirectories.entry(*parent).or_default() += 1;
                if up != parent {
                    found.broken_inode(*inode, format!("directory `{name}` lies in {parent} and says {up}"));
                }
            }
        }
        for (inode, row) in &self.inodes {
            let named = names.get(inode).copied().unwrap_or(0);
            let expected = match row.kind() {
                FileKind::Directory => 2 + subdirectories.get(inode).copied().unwrap_or(0),
                _ => named,
            };
            if row.nlink != expected {
                found.broken_inode(*inode, format!("inode {inode} counts {} links and has {expected}", row.nlink));
            }
            if row.is_directory() && named != u32::from(*inode != InodeId::ROOT) {
                found.broken_inode(*inode, format!("directory {inode} has {named} names"));
            }
            if row.orphan.is_some() != (row.nlink == 0) {
                found.broken_inode(*inode, format!("inode {inode} has {} links and {:?}", row.nlink, row.orphan));
            }
        }
    }

    /// Every directory hangs on the root: none lies below itself.
    fn check_reachable(&self, found: &mut Findings) {
        let reached = self.below(InodeId::ROOT);
        for (inode, row) in &self.inodes {
            if row.is_directory() && !reached.contains(inode) {
                found.broken_inode(*inode, format!("directory {inode} cannot be reached from the root"));
            }
        }
    }
}

fn load_index(view: &dyn View) -> Result<BTreeMap<(InodeId, u64), DirIndexRow>, Fault> {
    let mut listed = BTreeMap::new();
    let mut fault = None;
    rows::scan_all::<DirIndexRow>(view, &mut |key, row| {
        let parts = number_at(key, 0).zip(number_at(key, 8));
        match parts {
            Some((parent, cookie)) => {
                listed.insert((InodeId(parent), cookie), row);
            }
            None => fault = Some(Fault(format!("{} key {key:02x?} is too short", Table::DirIndex.name()))),
        }
    })?;
    fault.map_or(Ok(listed), Err)
}

fn entry_key(key: &[u8]) -> Option<(InodeId, Name)> {
    let parent = number_at(key, 0)?;
    Some((InodeId(parent), Name::new(&key[8..]).ok()?))
}

/// The number at byte `at` of a key, if it is long enough.
pub(super) fn number_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

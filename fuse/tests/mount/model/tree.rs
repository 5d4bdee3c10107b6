//! A tree of files in memory, with the answers that Linux gives.

use std::collections::BTreeMap;

use rustix::io::Errno;

pub type Answer = Result<(), Errno>;

/// Of a node, never used again.
pub type Id = usize;

pub const ROOT: Id = 0;

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: Kind,
    pub mode: u32,
    /// As it was set last, unless something has changed it since.
    pub mtime: Option<(i64, i64)>,
}

#[derive(Clone, Debug)]
pub enum Kind {
    File(Vec<u8>),
    Directory(BTreeMap<String, Id>),
    Symlink(String),
}

/// A name in a directory.
#[derive(Clone, Debug)]
pub struct At {
    pub parent: Id,
    pub name: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rename {
    Replace,
    NoReplace,
    Exchange,
}

pub struct Tree {
    /// Those without a name stay: it is a test, and the numbers are places here.
    pub nodes: Vec<Node>,
}

impl Tree {
    pub fn new(mode: u32) -> Tree {
        Tree { nodes: vec![Node { kind: Kind::Directory(BTreeMap::new()), mode, mtime: None }] }
    }

    pub fn find(&self, at: &At) -> Option<Id> {
        self.entries(at.parent).get(&at.name).copied()
    }

    pub fn is_directory(&self, id: Id) -> bool {
        matches!(self.nodes[id].kind, Kind::Directory(_))
    }

    pub fn entries(&self, directory: Id) -> &BTreeMap<String, Id> {
        match &self.nodes[directory].kind {
            Kind::Directory(entries) => entries,
            other => panic!("{other:?} is no directory"),
        }
    }

    /// Names of a file; for a directory its own, its `.` and the `..` of those in it.
    pub fn links(&self, id: Id) -> u64 {
        if self.is_directory(id) {
            return 2 + self.entries(id).values().filter(|&&child| self.is_directory(child)).count() as u64;
        }
        let directories = self.nodes.iter().filter_map(|node| match &node.kind {
            Kind::Directory(entries) => Some(entries),
            _ => None,
        });
        directories.flat_map(|entries| entries.values()).filter(|&&named| named == id).count() as u64
    }

    /// Every node that a path leads to, with the path; parents before what is in them.
    pub fn paths(&self) -> Vec<(String, Id)> {
        let mut found = vec![(String::new(), ROOT)];
        let mut next = 0;
        while next < found.len() {
            let (path, id) = found[next].clone();
            if self.is_directory(id) {
                found.extend(self.entries(id).iter().map(|(name, &child)| (format!("{path}/{name}"), child)));
            }
            next += 1;
        }
        found
    }

    pub fn make(&mut self, at: &At, kind: Kind, mode: u32) -> Answer {
        if self.find(at).is_some() {
            return Err(Errno::EXIST);
        }
        self.nodes.push(Node { kind, mode, mtime: None });
        let id = self.nodes.len() - 1;
        self.enter(at, id);
        Ok(())
    }

    pub fn link(&mut self, from: &At, to: &At) -> Answer {
        let id = self.find(from).ok_or(Errno::NOENT)?;
        if self.find(to).is_some() {
            return Err(Errno::EXIST);
        }
        if self.is_directory(id) {
            return Err(Errno::PERM);
        }
        self.enter(to, id);
        Ok(())
    }

    pub fn unlink(&mut self, at: &At) -> Answer {
        let id = self.find(at).ok_or(Errno::NOENT)?;
        if self.is_directory(id) {
            return Err(Errno::ISDIR);
        }
        self.leave(at);
        Ok(())
    }

    pub fn rmdir(&mut self, at: &At) -> Answer {
        let id = self.find(at).ok_or(Errno::NOENT)?;
        if !self.is_directory(id) {
            return Err(Errno::NOTDIR);
        }
        if !self.entries(id).is_empty() {
            return Err(Errno::NOTEMPTY);
        }
        self.leave(at);
        Ok(())
    }

    pub fn rename(&mut self, from: &At, to: &At, how: Rename) -> Answer {
        let id = self.find(from).ok_or(Errno::NOENT)?;
        let target = self.find(to);
        match (how, target) {
            (Rename::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (Rename::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if self.holds(id, to.parent) {
            return Err(Errno::INVAL);
        }
        if target.is_some_and(|target| self.holds(target, from.parent)) {
            return Err(if how == Rename::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
        }
        if target == Some(id) {
            return Ok(());
        }
        if how == Rename::Exchange {
            let target = target.ok_or(Errno::NOENT)?;
            self.enter(from, target);
            self.enter(to, id);
            return Ok(());
        }
        if let Some(target) = target {
            match (self.is_directory(id), self.is_directory(target)) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.entries(target).is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
        }
        self.leave(from);
        self.enter(to, id);
        Ok(())
    }

    /// The bytes of the file there, to be changed; the errno that opening it without following symlinks gives.
    pub fn open(&mut self, at: &At) -> Result<&mut Vec<u8>, Errno> {
        let id = self.find(at).ok_or(Errno::NOENT)?;
        let node = &mut self.nodes[id];
        match &mut node.kind {
            Kind::File(bytes) => {
                node.mtime = None;
                Ok(bytes)
            }
            Kind::Directory(_) => Err(Errno::ISDIR),
            Kind::Symlink(_) => Err(Errno::LOOP),
        }
    }

    /// Whether `inner` is `outer` or lies below it.
    fn holds(&self, outer: Id, inner: Id) -> bool {
        outer == inner
            || self.is_directory(outer) && self.entries(outer).values().any(|&child| self.holds(child, inner))
    }

    fn enter(&mut self, at: &At, id: Id) {
        self.change(at.parent).insert(at.name.clone(), id);
    }

    fn leave(&mut self, at: &At) {
        self.change(at.parent).remove(&at.name);
    }

    fn change(&mut self, directory: Id) -> &mut BTreeMap<String, Id> {
        let node = &mut self.nodes[directory];
        node.mtime = None;
        match &mut node.kind {
            Kind::Directory(entries) => entries,
            other => panic!("{other:?} is no directory"),
        }
    }
}

//! A small file tree kept twice: by `apply`, and as a map from paths to bytes. Random operations, and
//! after each one the two are compared whole, and `fsck` recounts the rows.

use std::collections::BTreeMap;

use dfs_proto::msg::meta::{ChunkCommit, NewNode, Op, OpReply, RenameMode};
use dfs_proto::msg::node::Piece;
use dfs_proto::{ChunkId, Extent, FileKind, Grant, InodeId, NodeId, SetAttr, XattrMode, XattrValue};
use proptest::prelude::*;

use crate::acl::tests::acl;
use crate::command::{Body, Command, Outcome, Reply};
use crate::compaction::{self, Candidate, GatherPlan};
use crate::rows::{self, RECLAIM_QUEUE};
use crate::testing::{NODES, Rig, name, xattr_name};
use crate::view::MemoryView;

/// Few files grow beyond this, so that comparing stays cheap and writes often meet edge to edge.
const FILE_MAX: usize = 100;

#[derive(Clone, Debug)]
enum Step {
    Mkdir(Path),
    Create(Path),
    Unlink(Path, bool),
    Rmdir(Path),
    Link(Path, Path),
    Rename(Path, Path, RenameMode),
    Write(Path, u16, u8),
    Append(Path, u8),
    Truncate(Path, u16),
    /// A range of the file, whether it reads as zeros afterwards, and whether the file may grow.
    Fallocate(Path, u16, u8, bool, bool),
    /// From one file at an offset to another at another.
    Clone((Path, u16), (Path, u16), u8),
    Copies(Path, u8),
    SetXattr(Path, &'static str, u8, XattrMode),
    RemoveXattr(Path, &'static str),
    /// Sets one of `ACLS` as the access or default ACL.
    SetAcl(Path, bool, usize),
    Chmod(Path, u16),
    /// Seals the chunk that is written to, on so many of its replicas.
    Seal(usize),
    /// The session ends, in order or not; a new one begins.
    EndSession(bool),
    ReleaseAll,
    Reclaim(u32),
    DropReplica(usize, usize),
    AddReplica(usize, usize),
    /// Cuts a sealed chunk by a part of its length, in 256ths.
    Cut(usize, u8),
    /// Begins to gather what lives in some sealed chunks, one behind the other.
    Gather(usize, usize),
    /// Relocates so many extents of a compaction, or ends it if there are none.
    Relocate(usize, usize),
    EndCompaction(usize),
}

/// Lists, some of which say no more than a mode.
const ACLS: [&str; 3] = ["u::rwx,u:5:rw,g::r,m::rw,o::x", "u::rwx,g::rx,o::r", "u::rwx,g::rwx,g:7:,m::rx,o::"];

/// One to three names, each `a` or `b`: few enough that steps meet.
type Path = Vec<&'static str>;

#[derive(Clone, PartialEq, Debug)]
enum Node {
    Directory,
    /// Index into `Model::files`, so that hard links share.
    File(usize),
}

/// What the tree must be.
#[derive(Default)]
struct Model {
    nodes: BTreeMap<Path, Node>,
    files: Vec<Vec<u8>>,
    /// Of each of `files`: the attributes in `user`.
    xattrs: BTreeMap<usize, BTreeMap<&'static str, u8>>,
}

impl Model {
    fn is_directory(&self, path: &[&'static str]) -> bool {
        path.is_empty() || self.nodes.get(path) == Some(&Node::Directory)
    }

    fn file(&mut self, path: &Path) -> Option<&mut Vec<u8>> {
        match self.nodes.get(path)? {
            Node::File(file) => Some(&mut self.files[*file]),
            Node::Directory => None,
        }
    }

    fn file_xattrs(&mut self, path: &Path) -> Option<&mut BTreeMap<&'static str, u8>> {
        match self.nodes.get(path)? {
            Node::File(file) => Some(self.xattrs.entry(*file).or_default()),
            Node::Directory => None,
        }
    }

    fn has_children(&self, path: &Path) -> bool {
        self.nodes.keys().any(|other| other.len() > path.len() && other.starts_with(path))
    }

    fn is_free(&self, path: &Path) -> bool {
        self.is_directory(&path[..path.len() - 1]) && !self.nodes.contains_key(path)
    }

    fn make(&mut self, path: &Path, file: bool) -> bool {
        let free = self.is_free(path);
        if free {
            let node = if file { Node::File(self.files.len()) } else { Node::Directory };
            self.files.extend(file.then(Vec::new));
            self.nodes.insert(path.clone(), node);
        }
        free
    }

    fn remove(&mut self, path: &Path, directory: bool) -> bool {
        let fits = match self.nodes.get(path) {
            Some(Node::Directory) => directory && !self.has_children(path),
            Some(Node::File(_)) => !directory,
            None => false,
        };
        if fits {
            self.nodes.remove(path);
        }
        fits
    }

    fn link(&mut self, from: &Path, to: &Path) -> bool {
        match self.nodes.get(from).cloned() {
            Some(node @ Node::File(_)) if self.is_free(to) => {
                self.nodes.insert(to.clone(), node);
                true
            }
            _ => false,
        }
    }

    fn rename(&mut self, from: &Path, to: &Path, mode: RenameMode) -> bool {
        let Some(moved) = self.nodes.get(from).cloned() else { return false };
        let there = self.nodes.get(to).cloned();
        if !self.is_directory(&to[..to.len() - 1]) || (to.len() > from.len() && to.starts_with(from)) {
            return false;
        }
        match (&there, mode) {
            (Some(_), RenameMode::NoReplace) | (None, RenameMode::Exchange) => return false,
            (Some(other), _) if from == to || (*other == moved && moved != Node::Directory) => return true,
            (Some(_), RenameMode::Exchange) if from.starts_with(to) => return false,
            (Some(Node::Directory), RenameMode::Replace) if moved != Node::Directory || self.has_children(to) => {
                return false;
            }
            (Some(Node::File(_)), RenameMode::Replace) if moved == Node::Directory => return false,
            _ => {}
        }
        let below_from = self.take(from);
        let below_to = self.take(to);
        self.put(to, below_from);
        if mode == RenameMode::Exchange {
            self.put(from, below_to);
        }
        true
    }

    /// Takes out a path and all below it, as paths relative to it.
    fn take(&mut self, path: &Path) -> Vec<(Path, Node)> {
        let taken: Vec<Path> = self.nodes.keys().filter(|other| other.starts_with(path)).cloned().collect();
        taken.iter().filter_map(|other| Some((other[path.len()..].to_vec(), self.nodes.remove(other)?))).collect()
    }

    fn put(&mut self, path: &Path, nodes: Vec<(Path, Node)>) {
        self.nodes.extend(nodes.into_iter().map(|(rest, node)| ([path.clone(), rest].concat(), node)));
    }
}

/// The file system under test, and what it needs to write.
struct System {
    rig: Rig,
    /// The open chunk, and how much of it is committed.
    open: Option<(ChunkId, u32)>,
    /// Content seen under each version of each inode.
    versions: BTreeMap<(InodeId, u64), Vec<u8>>,
    /// The bytes of chunks that were put together from others.
    gathered: BTreeMap<ChunkId, Vec<u8>>,
}

/// The byte that stands in a chunk at an offset, as if a client had written it there.
fn byte(chunk: ChunkId, offset: u32) -> u8 {
    (chunk.0 as u32).wrapping_mul(31).wrapping_add(offset.wrapping_mul(7)) as u8 | 1
}

impl System {
    fn inode(&self, path: &[&'static str]) -> Option<InodeId> {
        path.iter().try_fold(InodeId::ROOT, |at, part| {
            rows::dentry(&self.rig.state, at, &name(part)).unwrap().map(|entry| entry.inode)
        })
    }

    fn parent(&self, path: &Path) -> Option<InodeId> {
        self.inode(&path[..path.len() - 1])
    }

    /// Does the request, and a second time as a retry, which must change nothing and answer the same.
    fn op(&mut self, op: Option<Op>) -> bool {
        let Some(op) = op else { return false };
        let ends_session = op == Op::CloseSession;
        let body = self.rig.client(op, Vec::new());
        let first = self.rig.apply(body.clone());
        if !ends_session {
            let state = self.rig.state.clone();
            assert_eq!(self.rig.apply(body), first);
            assert!(self.rig.state == state, "a retry changed something");
        }
        first.is_ok()
    }

    fn make(&mut self, path: &Path, node: NewNode) -> bool {
        let op = self.parent(path).map(|parent| Op::Make {
            parent,
            name: name(path[path.len() - 1]),
            node,
            mode: 0o755,
            exclusive: true,
            open: None,
            replication: None,
        });
        self.op(op)
    }

    /// One command of those that may do only a piece; answers how much it did.
    fn ranged(&mut self, inode: InodeId, op: impl FnOnce(Grant) -> Op) -> usize {
        let body = self.rig.client(op(self.rig.grant(inode)), Vec::new());
        match self.rig.apply(body) {
            Ok(Reply::Op(OpReply::Ranged { done_bytes, .. })) => done_bytes as usize,
            other => panic!("{other:?}"),
        }
    }

    /// Writes `len` bytes at `offset`, or at the end; answers what was written.
    fn write(&mut self, inode: InodeId, offset: u64, len: u8, append: bool) -> Vec<u8> {
        let (chunk, at) = match self.open {
            Some(open) => open,
            None => (self.rig.allocate(1)[0], 0),
        };
        let extent = Extent { file_offset: offset, chunk, chunk_offset: at, len: u32::from(len) };
        let end = at + u32::from(len);
        let mut file = self.rig.file_commit(inode, vec![extent]);
        file.append = append;
        assert!(self.op(Some(Op::Commit { chunks: vec![on(chunk, end, 3, false)], files: vec![file] })));
        self.open = Some((chunk, end));
        (at..end).map(|offset| byte(chunk, offset)).collect()
    }

    /// What the datanodes have there.
    fn byte(&self, chunk: ChunkId, offset: u32) -> u8 {
        self.gathered.get(&chunk).map_or_else(|| byte(chunk, offset), |bytes| bytes[offset as usize])
    }

    /// Begins a compaction of sealed chunks as the leader would, though more may live in them.
    fn gather(&mut self, pick: usize, count: usize) {
        let busy = rows::compactions(&self.rig.state).unwrap();
        let lost = rows::lost_ends(&self.rig.state).unwrap();
        let mut chosen = Vec::new();
        rows::chunks(&self.rig.state, &mut |chunk, row| {
            let taken = busy.values().any(|row| row.sources.iter().any(|(source, _)| *source == chunk));
            if row.is_sealed() && !taken && !busy.contains_key(&chunk) && !lost.contains_key(&chunk) {
                let (live_bytes, replicas) = (row.live_bytes.min(u64::from(row.len)) as u32, row.replicas.len() as u8);
                chosen.push(Candidate {
                    chunk,
                    epoch: row.epoch,
                    len: row.len,
                    live_bytes,
                    target: row.target,
                    replicas,
                });
            }
        })
        .unwrap();
        let chosen: Vec<_> = chosen.iter().copied().cycle().skip(pick % 7).take(count.min(chosen.len())).collect();
        let Some(GatherPlan { sources, pieces, target, .. }) = compaction::plan(&self.rig.state, &chosen).unwrap()
        else {
            return;
        };
        let chunk = self.rig.totals().next_chunk;
        let mut bytes = Vec::new();
        for Piece { source, offset, len } in &pieces {
            let source = sources[usize::from(*source)].0;
            bytes.extend((*offset..offset + len).map(|at| self.byte(source, at)));
        }
        self.gathered.insert(chunk, bytes);
        let nodes = NODES[..usize::from(target).min(NODES.len())].to_vec();
        self.rig.apply(Body::BeginCompaction { sources, pieces, nodes }).unwrap();
    }

    fn relocate(&mut self, pick: usize, limit: usize) {
        let Some((chunk, row)) = self.compaction(pick) else { return };
        let extents = compaction::left(&self.rig.state, chunk, &row, limit).unwrap();
        let len = rows::chunk(&self.rig.state, chunk).unwrap().unwrap().len;
        match self.rig.apply(Body::Relocate { chunk, extents: extents.clone() }) {
            Ok(_) => assert!(!extents.is_empty()),
            // Nothing left; or all of it lies behind an end that was cut.
            Err(_) => {
                assert!(extents.is_empty() || u64::from(len) < row.bytes(), "{extents:?} cannot be relocated");
                self.rig.apply(Body::EndCompaction { chunk }).unwrap();
            }
        }
    }

    fn compaction(&self, pick: usize) -> Option<(ChunkId, rows::CompactionRow)> {
        let under_way: Vec<_> = rows::compactions(&self.rig.state).unwrap().into_iter().collect();
        (!under_way.is_empty()).then(|| under_way[pick % under_way.len()].clone())
    }

    fn read(&self, inode: InodeId) -> Vec<u8> {
        let mut bytes = vec![0; self.rig.attr(inode).size_bytes as usize];
        for extent in self.rig.extents(inode) {
            for i in 0..extent.len {
                bytes[(extent.file_offset + u64::from(i)) as usize] = self.byte(extent.chunk, extent.chunk_offset + i);
            }
        }
        bytes
    }

    /// The tree as the rows have it: names, kinds, bytes, hard links.
    fn compare(&mut self, model: &Model) {
        let mut links: BTreeMap<InodeId, (u32, usize)> = BTreeMap::new();
        let mut found = 0;
        let mut open: Vec<(Path, InodeId)> = vec![(Vec::new(), InodeId::ROOT)];
        while let Some((path, directory)) = open.pop() {
            for (_, row) in rows::list_dir(&self.rig.state, directory, 0, 99).unwrap() {
                let part = if row.name == name("a") { "a" } else { "b" };
                let path = [path.clone(), vec![part]].concat();
                found += 1;
                match model.nodes.get(&path) {
                    Some(Node::Directory) => {
                        assert_eq!(row.kind, FileKind::Directory, "{path:?}");
                        open.push((path, row.inode));
                    }
                    Some(Node::File(file)) => {
                        let bytes = self.read(row.inode);
                        assert_eq!(bytes, model.files[*file], "{path:?}");
                        links.entry(row.inode).or_insert((0, *file)).0 += 1;
                        assert_eq!(links[&row.inode].1, *file, "{path:?}");
                        self.compare_xattrs(row.inode, model.xattrs.get(file));
                        let version = self.rig.attr(row.inode).version;
                        let seen = self.versions.entry((row.inode, version)).or_insert_with(|| bytes.clone());
                        assert_eq!(*seen, bytes, "one version, two contents: {path:?}");
                    }
                    None => panic!("{path:?} should not be there"),
                }
            }
        }
        assert_eq!(found, model.nodes.len());
        for (inode, (count, _)) in links {
            assert_eq!(self.rig.attr(inode).nlink, count);
        }
    }

    fn compare_xattrs(&self, inode: InodeId, expected: Option<&BTreeMap<&'static str, u8>>) {
        let mut names = self.rig.xattr_names(inode);
        names.retain(|name| name.starts_with("user."));
        let found: BTreeMap<_, _> =
            names.iter().map(|name| (name.as_str(), self.rig.xattr(inode, name).unwrap())).collect();
        let expected: BTreeMap<_, _> =
            expected.into_iter().flatten().map(|(name, byte)| (*name, vec![*byte])).collect();
        assert_eq!(found, expected);
    }

    fn seal(&mut self, replicas: usize) {
        if let Some((chunk, len)) = self.open.take() {
            assert!(self.op(Some(Op::Commit { chunks: vec![on(chunk, len, replicas, true)], files: vec![] })));
        }
    }

    fn end_session(&mut self, in_order: bool) {
        let session = self.rig.session;
        if in_order {
            assert!(self.op(Some(Op::CloseSession)));
        } else {
            self.rig.apply(Body::ExpireSessions { sessions: vec![session] }).unwrap();
        }
        self.open = None;
        self.rig.open_session();
    }

    /// A sealed chunk, if there is one.
    fn sealed(&self, pick: usize) -> Option<(ChunkId, rows::ChunkRow)> {
        let mut sealed = Vec::new();
        rows::chunks(&self.rig.state, &mut |chunk, row| {
            if row.is_sealed() {
                sealed.push((chunk, row));
            }
        })
        .unwrap();
        (!sealed.is_empty()).then(|| sealed.swap_remove(pick % sealed.len()))
    }
}

fn on(chunk: ChunkId, len: u32, replicas: usize, seal: bool) -> ChunkCommit {
    ChunkCommit { chunk, epoch: dfs_proto::Epoch::FIRST, len, replicas: NODES[..replicas].to_vec(), seal }
}

/// Does one step on both sides; both must agree whether it can be done.
fn take(system: &mut System, model: &mut Model, step: &Step) {
    let last = |path: &Path| name(path[path.len() - 1]);
    match step {
        Step::Mkdir(path) => assert_eq!(system.make(path, NewNode::Directory), model.make(path, false)),
        Step::Create(path) => assert_eq!(system.make(path, NewNode::File), model.make(path, true)),
        Step::Unlink(path, held) => {
            let hold = system.inode(path).filter(|_| *held);
            let op = system.parent(path).map(|parent| Op::Unlink { parent, name: last(path), hold });
            assert_eq!(system.op(op), model.remove(path, false));
        }
        Step::Rmdir(path) => {
            let op = system.parent(path).map(|parent| Op::Rmdir { parent, name: last(path) });
            assert_eq!(system.op(op), model.remove(path, true));
        }
        Step::Link(from, to) => {
            let ends = system.inode(from).zip(system.parent(to));
            let op = ends.map(|(inode, parent)| Op::Link { inode, parent, name: last(to) });
            assert_eq!(system.op(op), model.link(from, to));
        }
        Step::Rename(from, to, mode) => {
            let op = system.parent(from).zip(system.parent(to)).map(|(from_parent, to_parent)| Op::Rename {
                from_parent,
                from_name: last(from),
                to_parent,
                to_name: last(to),
                mode: *mode,
                hold: None,
            });
            assert_eq!(system.op(op), model.rename(from, to, *mode));
        }
        Step::Write(path, offset, len) => {
            if let Some(file) = model.file(path) {
                let offset = usize::from(*offset) % (FILE_MAX / 2);
                let written = system.write(system.inode(path).unwrap(), offset as u64, *len, false);
                file.resize(file.len().max(offset + written.len()), 0);
                file[offset..offset + written.len()].copy_from_slice(&written);
            }
        }
        Step::Append(path, len) => {
            if let Some(file) = model.file(path).filter(|file| file.len() < FILE_MAX) {
                file.extend(system.write(system.inode(path).unwrap(), 0, *len, true));
            }
        }
        Step::Truncate(path, size) => {
            if let Some(file) = model.file(path) {
                let size = usize::from(*size) % FILE_MAX;
                let set = SetAttr { size_bytes: Some(size as u64), ..SetAttr::default() };
                let inode = system.inode(path).unwrap();
                loop {
                    assert!(system.op(Some(Op::SetAttr { inode, set: set.clone(), grant: None })));
                    let reached = system.rig.attr(inode).size_bytes as usize;
                    // In pieces, each of which leaves a file that is whole up to its end.
                    assert!(reached >= size && (reached == size || reached < file.len()));
                    file.resize(reached, 0);
                    if reached == size {
                        break;
                    }
                    let bytes = system.read(inode);
                    assert_eq!(bytes, *file);
                }
            }
        }
        Step::Fallocate(path, offset, len, zero, keep_size) => {
            if let Some(file) = model.file(path) {
                let (offset, len) = (usize::from(*offset) % FILE_MAX, usize::from(*len));
                let inode = system.inode(path).unwrap();
                let (mut at, end) = (offset, offset + len);
                while at < end {
                    let (from, left) = (at as u64, (end - at) as u64);
                    let (zero, keep_size) = (*zero, *keep_size);
                    at += system.ranged(inode, |grant| Op::Fallocate {
                        inode,
                        grant,
                        offset: from,
                        len: left,
                        zero,
                        keep_size,
                    });
                }
                if !*keep_size {
                    file.resize(file.len().max(end), 0);
                }
                if *zero {
                    let size = file.len();
                    file[offset.min(size)..end.min(size)].fill(0);
                }
            }
        }
        Step::Clone((from, from_offset), (to, to_offset), len) => {
            let source = model.file(from).map(|file| file.clone());
            if let Some((source, file)) = source.zip(model.file(to)) {
                let (from_offset, to_offset) = (usize::from(*from_offset) % FILE_MAX, usize::from(*to_offset) % 50);
                let (source_inode, inode) = (system.inode(from).unwrap(), system.inode(to).unwrap());
                let source_grant = system.rig.grant(source_inode);
                let len = usize::from(*len).min(source.len().saturating_sub(from_offset));
                let overlaps = source_inode == inode && from_offset < to_offset + len && to_offset < from_offset + len;
                let mut done = 0;
                while !overlaps && done < len {
                    let part = system.ranged(inode, |grant| Op::CloneRange {
                        source: source_inode,
                        source_grant: source_grant.clone(),
                        source_offset: (from_offset + done) as u64,
                        inode,
                        grant,
                        offset: (to_offset + done) as u64,
                        len: (len - done) as u64,
                    });
                    assert!(part > 0, "everything here is sealed or open for the session");
                    done += part;
                }
                if !overlaps && len > 0 {
                    file.resize(file.len().max(to_offset + len), 0);
                    file[to_offset..to_offset + len].copy_from_slice(&source[from_offset..from_offset + len]);
                }
            }
        }
        Step::Copies(path, copies) => {
            if model.file(path).is_some() {
                let set = SetAttr { replication: Some(*copies), ..SetAttr::default() };
                let inode = system.inode(path).unwrap();
                assert!(system.op(Some(Op::SetAttr { inode, set, grant: None })));
            }
        }
        Step::SetXattr(path, name, byte, mode) => {
            if let Some(xattrs) = model.file_xattrs(path) {
                let fits = match mode {
                    XattrMode::Set => true,
                    XattrMode::Create => !xattrs.contains_key(name),
                    XattrMode::Replace => xattrs.contains_key(name),
                };
                let value = XattrValue::new([*byte]).unwrap();
                let inode = system.inode(path).unwrap();
                let op = Op::SetXattr { inode, name: xattr_name(name), value, mode: *mode };
                assert_eq!(system.op(Some(op)), fits);
                if fits {
                    xattrs.insert(name, *byte);
                }
            }
        }
        Step::RemoveXattr(path, name) => {
            if let Some(xattrs) = model.file_xattrs(path) {
                let op = Op::RemoveXattr { inode: system.inode(path).unwrap(), name: xattr_name(name) };
                assert_eq!(system.op(Some(op)), xattrs.remove(name).is_some());
            }
        }
        // What the lists and modes must be to each other is recounted by `fsck`.
        Step::SetAcl(path, access, list) => {
            let op = system.inode(path).map(|inode| Op::SetXattr {
                inode,
                name: xattr_name(if *access { "system.posix_acl_access" } else { "system.posix_acl_default" }),
                value: XattrValue::new(acl(ACLS[list % ACLS.len()])).unwrap(),
                mode: XattrMode::Set,
            });
            let fits = if *access { model.nodes.contains_key(path) } else { model.is_directory(path) };
            assert_eq!(system.op(op), fits);
        }
        Step::Chmod(path, mode) => {
            let set = SetAttr { mode: Some(*mode), ..SetAttr::default() };
            let op = system.inode(path).map(|inode| Op::SetAttr { inode, set, grant: None });
            assert_eq!(system.op(op), model.nodes.contains_key(path));
        }
        Step::Seal(replicas) => system.seal(*replicas),
        Step::EndSession(in_order) => system.end_session(*in_order),
        Step::ReleaseAll => {
            let inodes = rows::orphans(&system.rig.state, system.rig.session, 99).unwrap();
            assert!(system.op(Some(Op::Release { inodes })));
        }
        Step::Reclaim(extents_max) => {
            let inodes = rows::orphans(&system.rig.state, RECLAIM_QUEUE, 99).unwrap();
            system.rig.apply(Body::Reclaim { inodes, extents_max: *extents_max }).unwrap();
        }
        Step::DropReplica(chunk, node) => {
            if let Some((chunk, row)) = system.sealed(*chunk).filter(|(_, row)| row.replicas.len() > 1) {
                let node = row.replicas[node % row.replicas.len()];
                system.rig.apply(Body::DropReplica { chunk, epoch: row.epoch, node }).unwrap();
            }
        }
        // The map of the files stays what it was; which bytes can be read is another matter.
        Step::Cut(chunk, part) => {
            if let Some((chunk, row)) = system.sealed(*chunk).filter(|(_, row)| row.len > 0) {
                let len = (u64::from(row.len) * u64::from(*part) / 256) as u32;
                let cut = Body::CutChunk { chunk, epoch: row.epoch, len, replicas: row.replicas };
                system.rig.apply(cut).unwrap();
            }
        }
        Step::Gather(pick, count) => system.gather(*pick, *count),
        Step::Relocate(pick, limit) => system.relocate(*pick, *limit),
        Step::EndCompaction(pick) => {
            if let Some((chunk, _)) = system.compaction(*pick) {
                system.rig.apply(Body::EndCompaction { chunk }).unwrap();
            }
        }
        Step::AddReplica(chunk, node) => {
            if let Some((chunk, row)) = system.sealed(*chunk) {
                let node: NodeId = NODES[node % NODES.len()];
                system.rig.apply(Body::AddReplica { chunk, epoch: row.epoch, len: row.len, node }).unwrap();
            }
        }
    }
}

/// A tree to begin with, so that random steps find something from the start.
fn seed_steps() -> Vec<Step> {
    let directories = [&["a"][..], &["a", "a"], &["b"], &["b", "a"]];
    let files = [&["a", "b"][..], &["b", "b"], &["a", "a", "b"]];
    let directories = directories.map(|path| Step::Mkdir(path.to_vec()));
    let files = files.map(|path| Step::Create(path.to_vec()));
    directories.into_iter().chain(files).collect()
}

fn any_path() -> impl Strategy<Value = Path> {
    prop::collection::vec(prop_oneof![Just("a"), Just("b")], 1..4)
}

fn any_mode() -> impl Strategy<Value = RenameMode> {
    prop_oneof![3 => Just(RenameMode::Replace), 1 => Just(RenameMode::NoReplace), 1 => Just(RenameMode::Exchange)]
}

fn any_xattr() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("user.a"), Just("user.b"), Just("user.ab")]
}

fn any_xattr_mode() -> impl Strategy<Value = XattrMode> {
    prop_oneof![Just(XattrMode::Set), Just(XattrMode::Create), Just(XattrMode::Replace)]
}

fn any_step() -> impl Strategy<Value = Step> {
    let p = any_path;
    prop_oneof![
        4 => p().prop_map(Step::Mkdir),
        4 => p().prop_map(Step::Create),
        1 => (p(), any::<bool>()).prop_map(|(path, held)| Step::Unlink(path, held)),
        1 => p().prop_map(Step::Rmdir),
        2 => (p(), p()).prop_map(|(from, to)| Step::Link(from, to)),
        10 => (p(), p(), any_mode()).prop_map(|(from, to, mode)| Step::Rename(from, to, mode)),
        6 => (p(), any::<u16>(), 1u8..25).prop_map(|(path, offset, len)| Step::Write(path, offset, len)),
        3 => (p(), 1u8..25).prop_map(|(path, len)| Step::Append(path, len)),
        2 => (p(), any::<u16>()).prop_map(|(path, size)| Step::Truncate(path, size)),
        3 => (p(), any::<u16>(), 1u8..60, any::<bool>(), any::<bool>())
            .prop_map(|(path, offset, len, zero, keep_size)| Step::Fallocate(path, offset, len, zero, keep_size)),
        4 => ((p(), any::<u16>()), (p(), any::<u16>()), 1u8..60).prop_map(|(from, to, len)| Step::Clone(from, to, len)),
        1 => (p(), 1u8..5).prop_map(|(path, copies)| Step::Copies(path, copies)),
        4 => (p(), any_xattr(), any::<u8>(), any_xattr_mode())
            .prop_map(|(path, name, byte, mode)| Step::SetXattr(path, name, byte, mode)),
        2 => (p(), any_xattr()).prop_map(|(path, name)| Step::RemoveXattr(path, name)),
        3 => (p(), any::<(bool, usize)>()).prop_map(|(path, (access, list))| Step::SetAcl(path, access, list)),
        2 => (p(), 0u16..0o10000).prop_map(|(path, mode)| Step::Chmod(path, mode)),
        2 => (2usize..4).prop_map(Step::Seal),
        1 => any::<bool>().prop_map(Step::EndSession),
        1 => Just(Step::ReleaseAll),
        1 => (0u32..5).prop_map(Step::Reclaim),
        1 => any::<(usize, usize)>().prop_map(|(chunk, node)| Step::DropReplica(chunk, node)),
        1 => any::<(usize, usize)>().prop_map(|(chunk, node)| Step::AddReplica(chunk, node)),
        1 => any::<(usize, u8)>().prop_map(|(chunk, part)| Step::Cut(chunk, part)),
        3 => (any::<usize>(), 1usize..4).prop_map(|(pick, count)| Step::Gather(pick, count)),
        6 => (any::<usize>(), 1usize..6).prop_map(|(pick, limit)| Step::Relocate(pick, limit)),
        1 => any::<usize>().prop_map(Step::EndCompaction),
    ]
}

/// Applies a log in batches of the given lengths, over and over.
fn replay(log: &[Command], lengths: &[usize]) -> (MemoryView, Vec<Outcome>) {
    let (mut state, mut outcomes, mut rest) = (MemoryView::new(), Vec::new(), log);
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (batch, behind) = rest.split_at((*length).min(rest.len()));
        let applied = crate::apply(&state, batch).unwrap();
        assert!(applied == crate::apply(&state, batch).unwrap(), "two runs differ");
        state.write(applied.changes);
        outcomes.extend(applied.outcomes);
        rest = behind;
    }
    (state, outcomes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_tree_is_what_a_map_of_paths_to_bytes_says(
        steps in prop::collection::vec(any_step(), 1..80),
        lengths in prop::collection::vec(1usize..12, 1..5),
    ) {
        let mut system = System {
            rig: Rig::new(),
            open: None,
            versions: BTreeMap::new(),
            gathered: BTreeMap::new(),
        };
        let mut model = Model::default();
        for step in seed_steps().iter().chain(&steps) {
            take(&mut system, &mut model, step);
            system.compare(&model);
        }

        // The same commands in batches end in the same rows and the same answers.
        let (one_by_one, answers) = replay(&system.rig.log, &[1]);
        prop_assert!(one_by_one == system.rig.state);
        let (batched, batched_answers) = replay(&system.rig.log, &lengths);
        prop_assert!(batched == one_by_one);
        prop_assert_eq!(answers, batched_answers);
    }
}

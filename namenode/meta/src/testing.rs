//! A cluster's state in a box, for tests: commands in, rows out, and after each one a recount of
//! everything by `fsck`.

use dfs_proto::limits::CHUNK_MAX;
use dfs_proto::msg::admin::{Liveness, ProblemKind};
use dfs_proto::msg::meta::{Answer, ChunkCommit, FileCommit, NewNode, Op, OpReply, Query};
use dfs_proto::{
    Attr, Caller, CapabilityKey, ChunkId, ClusterId, Epoch, ErrorKind, Extent, Grant, InodeId, Name, NodeId, RequestId,
    SessionId, SetAttr, Timestamp, WireError, XattrMode, XattrName, XattrValue,
};

use crate::command::{Body, Command, Event, Outcome, Reply};
use crate::query::{self, Asker};
use crate::rows::{self, Content, Totals};
use crate::view::MemoryView;
use crate::{apply, fsck};

/// The datanodes of every rig. New chunks go to the first three.
pub(crate) const NODES: [NodeId; 4] = [NodeId(11), NodeId(12), NodeId(13), NodeId(14)];

/// Number of the certificate of the rig's client.
pub(crate) const HOLDER: NodeId = NodeId(500);

pub(crate) struct Rig {
    pub state: MemoryView,
    pub session: SessionId,
    pub caller: Caller,
    /// Of the last batch.
    pub events: Vec<Event>,
    /// Every command so far.
    pub log: Vec<Command>,
    /// Moves on by a second with each command.
    clock_secs: i64,
    /// Counts up over all sessions: a session may leave out numbers.
    number: u64,
}

impl Rig {
    /// Nothing yet, not even genesis.
    pub fn empty() -> Rig {
        Rig {
            state: MemoryView::new(),
            session: SessionId(0),
            caller: Caller::ROOT,
            events: Vec::new(),
            log: Vec::new(),
            clock_secs: 1000,
            number: 0,
        }
    }

    /// A cluster of `NODES` that wants three copies, with one session, acting for root.
    pub fn new() -> Rig {
        let mut rig = Rig::empty();
        let key = CapabilityKey { number: 1, secret: [7; 32] };
        let cluster = ClusterId([1; 16]);
        let genesis = Body::Genesis { cluster, default_replication: 3, min_copies: 2, lease_ms: 10_000, key };
        rig.apply(genesis).unwrap();
        for node in NODES {
            let addr = format!("127.0.0.1:{}", 7000 + node.0).parse().unwrap();
            rig.apply(Body::PutDatanode { node, addr }).unwrap();
        }
        rig.open_session();
        rig
    }

    pub fn apply(&mut self, body: Body) -> Outcome {
        self.apply_batch(vec![body]).remove(0)
    }

    pub fn apply_batch(&mut self, bodies: Vec<Body>) -> Vec<Outcome> {
        let commands: Vec<_> = bodies.into_iter().map(|body| self.command(body)).collect();
        let applied = apply(&self.state, &commands).unwrap();
        self.state.write(applied.changes);
        self.events = applied.events;
        self.log.extend(commands);
        self.recount();
        applied.outcomes
    }

    pub fn command(&mut self, body: Body) -> Command {
        self.clock_secs += 1;
        Command { now: self.now(), body }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp { secs: self.clock_secs, nanos: 0 }
    }

    /// Switches to a new session.
    pub fn open_session(&mut self) {
        let opened = self.apply(Body::OpenSession { description: "test".into(), holder: HOLDER });
        let Ok(Reply::Session(grant)) = opened else { panic!("{opened:?}") };
        self.session = grant.session;
    }

    pub fn become_user(&mut self, uid: u32, gid: u32) {
        self.caller = Caller { uid, gid, groups: Vec::new() };
    }

    pub fn become_root(&mut self) {
        self.caller = Caller::ROOT;
    }

    pub fn op(&mut self, op: Op) -> Result<OpReply, WireError> {
        self.op_placed(op, Vec::new())
    }

    pub fn op_placed(&mut self, op: Op, placement: Vec<Vec<NodeId>>) -> Result<OpReply, WireError> {
        let body = self.client(op, placement);
        match self.apply(body)? {
            Reply::Op(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    /// The next request of the session.
    pub fn client(&mut self, op: Op, placement: Vec<Vec<NodeId>>) -> Body {
        self.number += 1;
        let id = RequestId { session: self.session, number: self.number };
        Body::Client { id, acked_below: 1, caller: self.caller.clone(), op, placement }
    }

    pub fn query(&self, query: Query) -> Result<Answer, WireError> {
        let asker = Asker { caller: &self.caller, session: self.session, holder: HOLDER, now: self.now() };
        query::answer(&self.state, &asker, &query, &|_| Liveness::Live).unwrap()
    }

    pub fn mkdir(&mut self, parent: InodeId, text: &str) -> Attr {
        made(self.op(mkdir(parent, text)))
    }

    /// An empty file.
    pub fn create(&mut self, parent: InodeId, text: &str) -> Attr {
        let node = NewNode::File;
        made(self.op(Op::Make {
            parent,
            name: name(text),
            node,
            mode: 0o644,
            exclusive: true,
            open: None,
            replication: None,
        }))
    }

    pub fn unlink(&mut self, parent: InodeId, text: &str, hold: Option<InodeId>) -> Result<OpReply, WireError> {
        self.op(Op::Unlink { parent, name: name(text), hold })
    }

    pub fn rmdir(&mut self, parent: InodeId, text: &str) -> Result<OpReply, WireError> {
        self.op(Op::Rmdir { parent, name: name(text) })
    }

    pub fn release(&mut self, inode: InodeId) {
        self.op(Op::Release { inodes: vec![inode] }).unwrap();
    }

    pub fn chmod(&mut self, inode: InodeId, mode: u16) -> Result<Attr, WireError> {
        self.set_attr(inode, SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    pub fn set_attr(&mut self, inode: InodeId, set: SetAttr) -> Result<Attr, WireError> {
        attr(self.op(Op::SetAttr { inode, set, grant: None })?)
    }

    pub fn set_attr_granted(&mut self, inode: InodeId, set: SetAttr) -> Result<Attr, WireError> {
        let grant = Some(self.grant(inode));
        attr(self.op(Op::SetAttr { inode, set, grant })?)
    }

    pub fn set_xattr(&mut self, inode: InodeId, name: &str, value: &[u8]) -> Result<Attr, WireError> {
        self.set_xattr_if(inode, name, value, XattrMode::Set)
    }

    pub fn set_xattr_if(
        &mut self,
        inode: InodeId,
        name: &str,
        value: &[u8],
        mode: XattrMode,
    ) -> Result<Attr, WireError> {
        let value = XattrValue::new(value).unwrap();
        attr(self.op(Op::SetXattr { inode, name: xattr_name(name), value, mode })?)
    }

    pub fn remove_xattr(&mut self, inode: InodeId, name: &str) -> Result<Attr, WireError> {
        attr(self.op(Op::RemoveXattr { inode, name: xattr_name(name) })?)
    }

    pub fn xattr(&self, inode: InodeId, name: &str) -> Result<Vec<u8>, WireError> {
        match self.query(Query::GetXattr { inode, name: xattr_name(name) })? {
            Answer::Xattr(value) => Ok(value.as_bytes().to_vec()),
            other => panic!("{other:?}"),
        }
    }

    pub fn xattr_names(&self, inode: InodeId) -> Vec<String> {
        match self.query(Query::ListXattrs { inode }) {
            Ok(Answer::XattrNames(names)) => names.iter().map(|name| name.to_string()).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// New chunks on the first three nodes.
    pub fn allocate(&mut self, count: u8) -> Vec<ChunkId> {
        let op = Op::AllocateChunks { count, replication: 3, avoid: Vec::new() };
        let placement = vec![NODES[..3].to_vec(); usize::from(count)];
        match self.op_placed(op, placement) {
            Ok(OpReply::Chunks(chunks)) => chunks.into_iter().map(|location| location.chunk).collect(),
            other => panic!("{other:?}"),
        }
    }

    /// Commits the chunk's bytes `[at, at + len)` as the same range of the file, on every replica.
    pub fn commit_at(
        &mut self,
        inode: InodeId,
        chunk: ChunkId,
        at: u32,
        len: u32,
        seal: bool,
    ) -> Result<OpReply, WireError> {
        let extent = Extent { file_offset: u64::from(at), chunk, chunk_offset: at, len };
        self.commit(inode, vec![extent], chunk, at + len, seal)
    }

    /// Commits extents in one chunk that ends at `len`, on every replica.
    pub fn commit(
        &mut self,
        inode: InodeId,
        extents: Vec<Extent>,
        chunk: ChunkId,
        len: u32,
        seal: bool,
    ) -> Result<OpReply, WireError> {
        let files = vec![self.file_commit(inode, extents)];
        let chunks = vec![ChunkCommit { chunk, epoch: Epoch::FIRST, len, replicas: NODES[..3].to_vec(), seal }];
        self.op(Op::Commit { chunks, files })
    }

    pub fn file_commit(&self, inode: InodeId, extents: Vec<Extent>) -> FileCommit {
        FileCommit { inode, grant: self.grant(inode), extents, mtime: None, append: false }
    }

    /// A file of `len` bytes in a sealed chunk of its own.
    pub fn write_new(&mut self, parent: InodeId, text: &str, len: u32) -> InodeId {
        let inode = self.create(parent, text).inode;
        let chunk = self.allocate(1)[0];
        self.commit_at(inode, chunk, 0, len, true).unwrap();
        inode
    }

    /// A file of `count` extents of 10 bytes, in order in the file and backwards in their chunk.
    pub fn write_scattered(&mut self, parent: InodeId, text: &str, count: u32) -> InodeId {
        assert!(count * 10 <= CHUNK_MAX);
        let inode = self.create(parent, text).inode;
        let chunk = self.allocate(1)[0];
        let extent =
            |i: u32| Extent { file_offset: u64::from(i) * 10, chunk, chunk_offset: (count - 1 - i) * 10, len: 10 };
        self.commit(inode, (0..count).map(extent).collect(), chunk, count * 10, true).unwrap();
        inode
    }

    pub fn grant(&self, inode: InodeId) -> Grant {
        Grant::sign(self.keys().last().unwrap(), inode, self.session, true, true)
    }

    pub fn keys(&self) -> Vec<CapabilityKey> {
        rows::capability_keys(&self.state).unwrap().0
    }

    pub fn totals(&self) -> Totals {
        rows::totals(&self.state).unwrap()
    }

    pub fn lookup(&self, parent: InodeId, text: &str) -> Result<Attr, WireError> {
        match self.query(Query::Lookup { parent, name: name(text) })? {
            Answer::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn try_attr(&self, inode: InodeId) -> Result<Attr, WireError> {
        // Asks the rows and not the query, which needs a session.
        match crate::tree::live_inode(&self.state, inode) {
            Ok(row) => Ok(row.attr(inode)),
            Err(crate::tx::Failure::Refused(error)) => Err(error),
            Err(crate::tx::Failure::Fault(fault)) => panic!("{fault}"),
        }
    }

    pub fn attr(&self, inode: InodeId) -> Attr {
        self.try_attr(inode).unwrap()
    }

    pub fn parent_of(&self, directory: InodeId) -> InodeId {
        match rows::inode(&self.state, directory).unwrap().unwrap().content {
            Content::Directory { parent, .. } => parent,
            other => panic!("{other:?}"),
        }
    }

    pub fn extents(&self, inode: InodeId) -> Vec<Extent> {
        // Behind the end as well, where none may be.
        let file = rows::FileSpan { inode, size_bytes: u64::MAX - 1 };
        rows::extents_touching(&self.state, file, 0, u64::MAX).unwrap()
    }

    /// Nothing in the state may contradict anything else, whatever was done.
    pub fn recount(&self) {
        let report = fsck::check(&self.state, InodeId::ROOT, crate::repair::Known::ALL_WELL).unwrap();
        let broken: Vec<_> =
            report.problems.iter().filter(|problem| problem.kind == ProblemKind::Inconsistent).collect();
        assert!(broken.is_empty(), "{broken:#?}");
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(crate) fn xattr_name(text: &str) -> XattrName {
    XattrName::new(text).unwrap()
}

pub(crate) fn mkdir(parent: InodeId, text: &str) -> Op {
    let node = NewNode::Directory;
    Op::Make { parent, name: name(text), node, mode: 0o755, exclusive: true, open: None, replication: None }
}

/// The kind of error, or `None` if it went well.
pub(crate) fn kind_of<T>(result: Result<T, WireError>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind)
}

fn made(reply: Result<OpReply, WireError>) -> Attr {
    match reply {
        Ok(OpReply::Made { attr, .. }) => attr,
        other => panic!("{other:?}"),
    }
}

fn attr(reply: OpReply) -> Result<Attr, WireError> {
    match reply {
        OpReply::Attr(attr) => Ok(attr),
        other => panic!("{other:?}"),
    }
}

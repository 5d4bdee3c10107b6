//! Clients to namenodes: sessions, mutations, queries.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::attr::{Attr, Caller, FileKind, SetAttr, Timestamp};
use crate::capability::{Capability, Grant};
use crate::chunk::Extent;
use crate::ids::{ChunkId, Epoch, InodeId, NodeId, RequestId, SessionId};
use crate::msg::{admin, node};
use crate::name::Name;
use crate::xattr::{XattrMode, XattrName, XattrValue};

/// Everything that may arrive on the meta plane. Which roles may send which is decided per request.
#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum MetaRequest {
    /// Answered with `MetaReply::Session`. Only the leader answers, as with all that follow.
    OpenSession {
        /// For people: host, process, mount point. At most 255 bytes.
        description: String,
    },
    /// Keeps the session's lease; sent every third of it.
    Renew {
        session: SessionId,
    },
    /// A change of the namespace or of a file's map, done exactly once.
    Mutate {
        id: RequestId,
        /// All requests of this session with lower numbers have been answered: forget their replies.
        acked_below: u64,
        caller: Caller,
        op: Op,
    },
    /// A linearizable read.
    Query {
        session: SessionId,
        caller: Caller,
        query: Query,
    },
    /// A client found a replica missing or damaged.
    ReportBad {
        chunk: ChunkId,
        epoch: Epoch,
        node: NodeId,
        reason: String,
    },
    Node(node::NodeRequest),
    Admin(admin::AdminRequest),
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum MetaReply {
    Done,
    Session(SessionGrant),
    Mutated(OpReply),
    Answer(Answer),
    Node(node::NodeReply),
    Admin(Box<admin::AdminReply>),
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct SessionGrant {
    pub session: SessionId,
    /// The session ends when it has not been renewed for so long.
    pub lease_ms: u64,
    /// Copies that a write must have before it is acknowledged.
    pub min_copies: u8,
    /// Copies that new files get unless they say otherwise.
    pub default_replication: u8,
}

/// A mutation. Permissions are checked when it is applied, with the caller that came along.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Op {
    /// Makes a file, directory, symlink or special file. Reply: `Made`.
    Make {
        parent: InodeId,
        name: Name,
        node: NewNode,
        /// Permission bits, umask already taken away.
        mode: u16,
        /// `false`: an existing regular file is returned instead of `Exists` (O_CREAT without O_EXCL).
        exclusive: bool,
        /// Also open it: the reply carries a grant with these accesses (read, write).
        open: Option<(bool, bool)>,
        replication: Option<u8>,
    },
    /// Another name for a file. Reply: `Attr`.
    Link { inode: InodeId, parent: InodeId, name: Name },
    /// Removes a name that is no directory. Reply: `Removed`.
    Unlink {
        parent: InodeId,
        name: Name,
        /// The client has the inode open (if it is this one): keep it, without a name, until `Release`.
        hold: Option<InodeId>,
    },
    /// Removes an empty directory. Reply: `Done`.
    Rmdir { parent: InodeId, name: Name },
    /// Reply: `Removed`, telling what the new name pointed to before, if anything.
    Rename {
        from_parent: InodeId,
        from_name: Name,
        to_parent: InodeId,
        to_name: Name,
        mode: RenameMode,
        /// As in `Unlink`, for the inode that loses its name.
        hold: Option<InodeId>,
    },
    /// Reply: `Attr`. A change of size through an open handle brings its write grant.
    SetAttr { inode: InodeId, set: SetAttr, grant: Option<Grant> },
    /// The held, nameless inodes are no longer open here. Reply: `Done`.
    Release { inodes: Vec<InodeId> },
    /// New chunks for this session to append to. Reply: `Chunks`.
    AllocateChunks {
        count: u8,
        replication: u8,
        /// Nodes that the client has just failed to reach; used only if there are no others.
        avoid: Vec<NodeId>,
    },
    /// Makes appended bytes part of files, and seals chunks. All of it or nothing. Reply: `Committed`.
    Commit { chunks: Vec<ChunkCommit>, files: Vec<FileCommit> },
    /// Ends the session in order: its open chunks are sealed, what it held is released. Reply: `Done`.
    CloseSession,
    /// As `Make`, with the umask apart: a default ACL of the parent takes its place. Reply: `Made`.
    MakeMasked {
        parent: InodeId,
        name: Name,
        node: NewNode,
        mode: u16,
        /// Bits of `mode` that a new inode does not get unless its parent has a default ACL.
        umask: u16,
        exclusive: bool,
        open: Option<(bool, bool)>,
        replication: Option<u8>,
    },
    /// Reply: `Attr`.
    SetXattr { inode: InodeId, name: XattrName, value: XattrValue, mode: XattrMode },
    /// Reply: `Attr`.
    RemoveXattr { inode: InodeId, name: XattrName },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum NewNode {
    File,
    Directory,
    /// The target's bytes, 1 to `limits::PATH_MAX`.
    Symlink(Vec<u8>),
    /// A fifo, socket or device with its device number.
    Special(FileKind, u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum RenameMode {
    Replace,
    NoReplace,
    Exchange,
}

/// What has been appended to one chunk, and on which replicas.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ChunkCommit {
    pub chunk: ChunkId,
    /// The epoch the client writes under; a lower one than the namenode's is refused.
    pub epoch: Epoch,
    /// Bytes that every replica in `replicas` has acknowledged. Never less than committed before.
    pub len: u32,
    /// The replicas that count from here on: a subset of those allocated.
    pub replicas: Vec<NodeId>,
    /// Nothing more will be appended.
    pub seal: bool,
}

/// What becomes part of one file. The extents replace whatever they overlap.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FileCommit {
    pub inode: InodeId,
    /// A write grant of this session.
    pub grant: Grant,
    /// In any order, not overlapping; each within a committed length of a chunk of this session.
    pub extents: Vec<Extent>,
    /// When the last of the bytes was written, by the client's clock; `None` leaves mtime alone.
    pub mtime: Option<Timestamp>,
    /// O_APPEND: the extents' file offsets are relative to the end of the file as it is found when the
    /// commit is applied.
    pub append: bool,
}

/// What a mutation answers. Remembered in replicated state until the client acknowledges it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum OpReply {
    Done,
    Attr(Attr),
    Made {
        attr: Attr,
        created: bool,
        grant: Option<Grant>,
    },
    Removed {
        /// The inode that lost a name, if any, as it is after that.
        inode: Option<Attr>,
    },
    Chunks(Vec<ChunkLocation>),
    /// The files' attributes after the commit, in the order of the request.
    Committed {
        files: Vec<Attr>,
    },
}

/// A linearizable read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Query {
    /// Answer: `Attr`.
    Lookup { parent: InodeId, name: Name },
    /// Answer: `Attr`.
    GetAttr { inode: InodeId },
    /// Answer: `Target`.
    ReadLink { inode: InodeId },
    /// Answer: `Page`. `after` is the cookie of the last entry seen, 0 to start.
    ReadDir { inode: InodeId, after: u64, limit: u32, attrs: bool },
    /// Checks permission, answers `Opened`.
    Open { inode: InodeId, read: bool, write: bool },
    /// Answer: `Map`: the extents that overlap the range, with where their chunks are.
    Locate { inode: InodeId, grant: Grant, offset: u64, len: u64 },
    /// Fresh locations and capabilities of chunks whose capability expired or whose replicas moved, or
    /// whose append capability must be renewed. Answer: `Chunks`.
    LocateChunks { inode: InodeId, grant: Grant, chunks: Vec<ChunkId> },
    /// Answer: `StatFs`.
    StatFs,
    /// Whether the caller may access with these bits (4 read, 2 write, 1 execute). Answer: `Attr`.
    Access { inode: InodeId, mask: u8 },
    /// Answer: `Xattr`.
    GetXattr { inode: InodeId, name: XattrName },
    /// The names that the caller may know of. Answer: `XattrNames`.
    ListXattrs { inode: InodeId },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Answer {
    Attr(Attr),
    Target(Vec<u8>),
    Page(DirPage),
    Opened {
        attr: Attr,
        grant: Grant,
    },
    Map(FileMap),
    Chunks(Vec<ChunkLocation>),
    StatFs(StatFs),
    Xattr(XattrValue),
    /// In order.
    XattrNames(Vec<XattrName>),
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DirPage {
    /// The directory's own parent, for `..`.
    pub parent: InodeId,
    pub entries: Vec<DirEntry>,
    /// Nothing follows the last entry.
    pub end: bool,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct DirEntry {
    pub name: Name,
    pub inode: InodeId,
    pub kind: FileKind,
    /// Where to go on after this entry; stable while other entries come and go. Above 2.
    pub cookie: u64,
    /// With `ReadDir { attrs: true }`.
    pub attr: Option<Attr>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FileMap {
    /// Version and size of the file that this map belongs to.
    pub version: u64,
    pub size_bytes: u64,
    /// By file offset; what no extent covers below the size is a hole.
    pub extents: Vec<Extent>,
    /// Every chunk that the extents name, by id.
    pub chunks: Vec<ChunkLocation>,
    /// The map is whole up to this file offset (`limits::LOCATE_EXTENTS_MAX` cuts it).
    pub complete_to: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ChunkLocation {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    /// Committed bytes.
    pub len: u32,
    /// Live replicas first, then those whose node is silent.
    pub replicas: Vec<ReplicaAt>,
    /// `None` in replicated replies: the leader signs it while answering.
    pub capability: Option<Capability>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct ReplicaAt {
    pub node: NodeId,
    pub addr: SocketAddr,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct StatFs {
    /// Of the live datanodes' disks, divided by the default replication.
    pub total_bytes: u64,
    pub free_bytes: u64,
    pub files: u64,
}

//! Clients to namenodes: sessions, mutations, queries.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::attr::{Attr, Caller, FileKind, SetAttr, Timestamp};
use crate::capability::{Capability, Grant};
use crate::chunk::Extent;
use crate::error::WireError;
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
    /// As `Query`, and tell the session on the stream `life` when the answer is no longer true. Answered
    /// with `MetaReply::Watched`.
    WatchedQuery {
        session: SessionId,
        caller: Caller,
        query: Query,
        life: u64,
    },
    /// Opens the stream on which the session is told what has changed: answered with `MetaReply::Watching`,
    /// then with one `Revocation` after the other, each of which the client answers with a
    /// `RevocationDone` once it has forgotten what is named. A session has one such stream; a new one
    /// ends the old.
    Watch {
        session: SessionId,
    },
    /// Waits until `Op::Lock` with the same claim has a chance, at most `wait_ms` (and
    /// `limits::LOCK_WAIT_MAX_MS`). Changes no state. `Done`: ask for the lock now; `WouldBlock`: not yet,
    /// and the place in the queue is kept for a moment; `Deadlock`. With 0 the place is given up.
    AwaitLock {
        session: SessionId,
        inode: InodeId,
        claim: LockClaim,
        /// The owner waits for nothing else meanwhile: a circle of such owners is refused.
        detect_deadlock: bool,
        wait_ms: u64,
    },
    /// The session has no handle on these inodes any more. Sent late and in batches, at most
    /// `limits::OPENS_PAGE_MAX`. Answered with `Done`.
    Closed {
        session: SessionId,
        inodes: Vec<InodeId>,
    },
    /// What the session has open, asked for with `MetaReply::Announce`, in pages of at most
    /// `limits::OPENS_PAGE_MAX`. Answered with `Done`.
    Announce {
        session: SessionId,
        inodes: Vec<InodeId>,
        last: bool,
    },
    /// As `Mutate`, of a session that is told on the stream `life` what changes. May be answered with `MutatedTold`.
    WatchedMutate {
        id: RequestId,
        acked_below: u64,
        caller: Caller,
        op: Op,
        life: u64,
    },
}

#[derive(Clone, Serialize, Deserialize, Debug)]
pub enum MetaReply {
    Done,
    Session(SessionGrant),
    Mutated(OpReply),
    Answer(Answer),
    Node(node::NodeReply),
    Admin(Box<admin::AdminReply>),
    Watched {
        /// A refusal with `NotFound` may be remembered like any other answer.
        answer: Result<Answer, WireError>,
        /// For how long from the sending of the request on everything may be believed that was learned in
        /// this life of the stream and not revoked. 0: this answer must not be remembered.
        valid_ms: u32,
    },
    /// As `Mutated`, of a session that watches inodes which this has changed: it hears of them only here.
    MutatedWatched {
        reply: OpReply,
        changed: Vec<InodeId>,
    },
    Watching {
        /// Number of this stream among all that there ever were in this reign of this leader.
        life: u64,
    },
    /// The lease is renewed, and the session must say what it has open: this leader is new.
    Announce,
    /// As `MutatedWatched`, and what the names in the operation lead to and their directories are by now. Believed as
    /// an answer to `WatchedQuery` with this `valid_ms` is.
    MutatedTold {
        reply: OpReply,
        changed: Vec<InodeId>,
        told: Vec<Told>,
        valid_ms: u32,
    },
}

/// A name after a mutation.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Told {
    pub directory: Attr,
    pub name: Name,
    /// `None`: there is nothing of that name.
    pub leads_to: Option<Attr>,
    /// It leads to a directory in which there is nothing.
    pub empty: bool,
}

/// Leader to client on a watch stream: forget the attributes of these inodes, and the names in those that
/// are directories.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Revocation {
    /// From 1 on, one after the other.
    pub number: u64,
    /// At most `limits::REVOKED_MAX`.
    pub inodes: Vec<InodeId>,
    /// Directories that are private to this session and that somebody else wants to see: to be shared, with everything
    /// that was done in them. Said again until it is so. At most `limits::REVOKED_MAX`.
    pub recalled: Vec<InodeId>,
}

/// Client to leader: everything up to this revocation is forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct RevocationDone {
    pub number: u64,
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
        /// Keep the inode for this session (if it is this one), without a name, until `Release`. Not needed for
        /// what the leader knows to be open.
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
    /// Reply: `Attr`. A change of size through an open handle brings its write grant. If the size in the
    /// reply is above the one asked for, only a part is cut so far and nothing else changed: ask again.
    SetAttr { inode: InodeId, set: SetAttr, grant: Option<Grant> },
    /// The held, nameless inodes are no longer open here. Reply: `Done`.
    Release { inodes: Vec<InodeId> },
    /// New chunks for this session to append to. Reply: `Chunks`.
    AllocateChunks {
        count: u8,
        replication: u8,
        /// Nodes that have just failed this client, the last one first; used only if there are no others, and then in
        /// the opposite order.
        avoid: Vec<NodeId>,
    },
    /// Makes appended bytes part of files, and seals chunks. All of it or nothing. Reply: `Committed`.
    Commit { chunks: Vec<ChunkCommit>, files: Vec<FileCommit> },
    /// Ends the session in order: its open chunks are sealed, what it held is released. Reply: `Done`.
    CloseSession,
    /// Makes the range part of the file, as fallocate(2). Reply: `Ranged`.
    Fallocate {
        inode: InodeId,
        /// A write grant of this session.
        grant: Grant,
        offset: u64,
        len: u64,
        /// The range's bytes go: it reads as zeros.
        zero: bool,
        /// The file does not grow to the end of the range.
        keep_size: bool,
    },
    /// Lets `[offset, offset + len)` of a file have the bytes of another range, of this or another file,
    /// without moving them. Ends at the end of the source, and before bytes that may not be shared.
    /// Reply: `Ranged`.
    CloneRange {
        source: InodeId,
        /// A read grant of this session for the source.
        source_grant: Grant,
        source_offset: u64,
        inode: InodeId,
        /// A write grant of this session.
        grant: Grant,
        offset: u64,
        len: u64,
    },
    /// Files were read: their atime moves on. Files that are gone or have changed since are passed over.
    /// Reply: `Done`.
    NoteReads { reads: Vec<FileRead> },
    /// Locks a range of a file for an owner of this session, in place of what that owner has locked there.
    /// `WouldBlock` if another owner's lock is in the way. Reply: `Done`.
    Lock { inode: InodeId, claim: LockClaim },
    /// Takes an owner's locks away from a range. Nothing to unlock is no error. Reply: `Done`.
    Unlock { inode: InodeId, owner: LockOwner, range: LockRange },
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
        /// A new directory is private to this session: from now on the session changes it without asking, and says so
        /// in a `Sequence`, until it shares it.
        private: bool,
    },
    /// Reply: `Attr`.
    SetXattr { inode: InodeId, name: XattrName, value: XattrValue, mode: XattrMode },
    /// Reply: `Attr`.
    RemoveXattr { inode: InodeId, name: XattrName },
    /// Numbers for inodes that this session will make in a `Sequence`, at most `limits::RESERVE_MAX`. Reply: `Reserved`.
    Reserve { count: u32 },
    /// What the session has done in its private directories, in order, at most `limits::SEQUENCE_MAX` steps. All of it
    /// or nothing. Reply: `Sequence`.
    Sequence { steps: Vec<Step> },
    /// Proves that a file was opened when this was done. Reply: `Opened`.
    Open { inode: InodeId, read: bool, write: bool },
    /// These directories are no longer private. Those that are not this session's are passed over. At most
    /// `limits::SEQUENCE_MAX`. Reply: `Done`.
    Share { inodes: Vec<InodeId> },
}

/// A change that a session has made in a directory of its own, and has answered to its programs already.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Step {
    /// When: the cluster's time as the session knows it.
    pub at: Timestamp,
    pub caller: Caller,
    /// The number of what it makes, one of those that the session has reserved.
    pub inode: Option<InodeId>,
    /// `MakeMasked`, `Open`, `Link`, `Unlink`, `Rmdir`, `Rename`, `SetAttr` without a size, `SetXattr` or `RemoveXattr`.
    pub op: Op,
}

/// That a file was read.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct FileRead {
    pub inode: InodeId,
    /// A read grant of this session.
    pub grant: Grant,
    /// The file's ctime as the reader knew it.
    pub seen_ctime: Timestamp,
    /// When, by the client's clock.
    pub at: Timestamp,
}

/// Who holds a lock, within a session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub struct LockOwner {
    pub space: LockSpace,
    /// The client's own number: one for each process, or for each open file description.
    pub number: u64,
}

/// Locks of different spaces do not see each other, as on a local Linux file system.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Debug)]
pub enum LockSpace {
    /// `fcntl`: of ranges.
    Range,
    /// `flock`: of whole files.
    Whole,
}

/// Bytes `first` to `last`, both of them inside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct LockRange {
    pub first: u64,
    pub last: u64,
}

impl LockRange {
    pub const ALL: LockRange = LockRange { first: 0, last: u64::MAX };

    pub fn overlaps(&self, other: &LockRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub enum LockMode {
    /// Any number of owners.
    Shared,
    /// One owner.
    Exclusive,
}

/// A lock as it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, Debug)]
pub struct LockClaim {
    pub owner: LockOwner,
    pub range: LockRange,
    pub mode: LockMode,
    /// The process, for people and for `F_GETLK`. No meaning outside of its machine.
    pub process: u32,
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
    /// The replicas that count from here on: a subset of those that counted before.
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
    /// The first `done_bytes` of the range are done; the rest is to be asked for again.
    Ranged {
        attr: Attr,
        done_bytes: u64,
    },
    /// The first of the reserved numbers, which follow each other.
    Reserved {
        first: InodeId,
    },
    Opened {
        grant: Grant,
    },
    /// Of each file that was opened, in order.
    Sequence {
        grants: Vec<Grant>,
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
    /// What stands in the way of a lock, if anything. Answer: `Lock`.
    TestLock { inode: InodeId, claim: LockClaim },
    /// Answer: `Xattr`.
    GetXattr { inode: InodeId, name: XattrName },
    /// The names that the caller may know of. Answer: `XattrNames`.
    ListXattrs { inode: InodeId },
    /// As `Open` for reading, and of `others`, at most `limits::OPEN_AHEAD_MAX`, those that are regular files which this
    /// caller may read. All of `others` count as open until `Closed` says otherwise. Answer: `OpenedAhead`.
    OpenAhead { inode: InodeId, others: Vec<InodeId> },
}

impl Query {
    /// The inode that the query names: of a look-up the directory.
    pub fn inode(&self) -> Option<InodeId> {
        match self {
            Query::Lookup { parent, .. } => Some(*parent),
            Query::GetAttr { inode }
            | Query::ReadLink { inode }
            | Query::ReadDir { inode, .. }
            | Query::Open { inode, .. }
            | Query::OpenAhead { inode, .. }
            | Query::Locate { inode, .. }
            | Query::LocateChunks { inode, .. }
            | Query::Access { inode, .. }
            | Query::TestLock { inode, .. }
            | Query::GetXattr { inode, .. }
            | Query::ListXattrs { inode } => Some(*inode),
            Query::StatFs => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum Answer {
    Attr(Attr),
    Target(Vec<u8>),
    Page(DirPage),
    Opened(OpenedFile),
    Map(FileMap),
    Chunks(Vec<ChunkLocation>),
    StatFs(StatFs),
    /// The first lock in the way, by its range, and whose it is.
    Lock(Option<(SessionId, LockClaim)>),
    Xattr(XattrValue),
    /// In order.
    XattrNames(Vec<XattrName>),
    OpenedAhead {
        opened: OpenedFile,
        others: Vec<OpenedFile>,
    },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct OpenedFile {
    pub attr: Attr,
    pub grant: Grant,
    /// Of a regular file that was opened to be read: the map from its start on, of at most
    /// `limits::OPENED_EXTENTS_MAX` extents.
    pub front: Option<Box<FileMap>>,
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
    /// The map is whole up to this file offset (a limit of extents cuts it).
    pub complete_to: u64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct ChunkLocation {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    /// Committed bytes that there are. In an answer of the leader, what extents name behind it is lost: the chunk's end
    /// was cut off, because no disk had it.
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

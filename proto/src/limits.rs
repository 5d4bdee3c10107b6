//! Every limit on what may come off the wire or into the state, with its reason.

/// A control frame: one encoded request or reply. Checked before memory is taken.
pub const CONTROL_FRAME_MAX: usize = 1 << 20;

/// A Raft message: one payload of log entries (1 MiB of them) plus its envelope.
pub const RAFT_FRAME_MAX: usize = 8 << 20;

/// A chunk's bytes. A power of two, so that a full chunk is a whole BLAKE3 subtree of its file.
pub const CHUNK_MAX: u32 = 64 << 20;

/// A frame's bytes: the unit of verification. One 64 KiB hash costs about 14 us, one read of it 7 us.
pub const FRAME_MAX: u32 = 64 << 10;

/// Frames in one chunk: what the index region of a chunk file holds (see `datanode/FORMAT.md`).
/// With 4 KiB appends a chunk is full of bytes and of frames at the same time.
pub const CHUNK_FRAMES_MAX: u32 = 16_384;

/// A name in a directory, in bytes (POSIX NAME_MAX).
pub const NAME_MAX: usize = 255;

/// A symlink's target and a path, in bytes (POSIX PATH_MAX).
pub const PATH_MAX: usize = 4096;

/// Hard links to one inode (ext4 has 65,000).
pub const LINK_MAX: u32 = 65_000;

/// A file's size: what a signed offset can name.
pub const FILE_MAX: u64 = i64::MAX as u64;

/// Extents in one commit; with their envelope they stay well below `CONTROL_FRAME_MAX`.
pub const COMMIT_EXTENTS_MAX: usize = 4096;

/// Files in one commit: a pack of tiny files is committed together.
pub const COMMIT_FILES_MAX: usize = 1024;

/// Chunks in one commit.
pub const COMMIT_CHUNKS_MAX: usize = 256;

/// Entries in one directory page; with attributes about 400 bytes each at most.
pub const READDIR_PAGE_MAX: u32 = 1024;

/// Extents in one answer to `Locate`.
pub const LOCATE_EXTENTS_MAX: u32 = 2048;

/// Extents that come with the answer to an open for reading: all of a small file, so that it is read without a further
/// question, and little enough to be sent to those who do not read it.
pub const OPENED_EXTENTS_MAX: u32 = 8;

/// Files that are opened on the way with one that is wanted; their answers together stay well below `CONTROL_FRAME_MAX`.
pub const OPEN_AHEAD_MAX: usize = 64;

/// Extents of one file that one command takes away or shares; what is left is done by the next. All other
/// commands wait while one is applied.
pub const RANGE_EXTENTS_MAX: usize = 2048;

/// Files in one `NoteReads`: about 100 bytes each.
pub const READS_MAX: usize = 1024;

/// Points of a hundred by which one datanode may be fuller than another: with more, nothing would ever be moved.
pub const BALANCE_POINTS_MAX: u8 = 50;

/// Copies of a chunk.
pub const REPLICATION_MAX: u8 = 8;

/// Groups of a caller (Linux allows 65,536; the FUSE protocol gives us few).
pub const GROUPS_MAX: usize = 256;

/// Parts of the chunk-id space that a datanode digests apart: shard = chunk id mod this.
pub const DIGEST_SHARDS: usize = 256;

/// Replicas in one page of a shard report: 40 bytes each, well below `CONTROL_FRAME_MAX`.
pub const SHARD_PAGE_MAX: usize = 8192;

/// Orders in one heartbeat reply.
pub const ORDERS_MAX: usize = 512;

/// Chunks allocated by one request: a writer asks for the next one ahead of need.
pub const ALLOCATE_MAX: u8 = 8;

/// Inodes that one revocation names.
pub const REVOKED_MAX: usize = 4096;

/// Locked ranges of one file: every request for a lock looks at all of them.
pub const LOCKS_PER_INODE_MAX: usize = 4096;

/// Locked ranges of one session: the command that ends it takes them all away.
pub const LOCKS_PER_SESSION_MAX: u64 = 65_536;

/// Files that one session may have open: the leader remembers each, about 100 bytes.
pub const OPENS_PER_SESSION_MAX: usize = 262_144;

/// Inodes in one message about open files: 8 bytes each, well below `CONTROL_FRAME_MAX`.
pub const OPENS_PAGE_MAX: usize = 16_384;

/// How long one request may wait for a lock; below `dfs_client`'s patience with one answer.
pub const LOCK_WAIT_MAX_MS: u64 = 2000;

/// Name of an extended attribute with its namespace, in bytes (Linux's XATTR_NAME_MAX).
pub const XATTR_NAME_MAX: usize = 255;

/// Value of an extended attribute, in bytes (Linux's XATTR_SIZE_MAX).
pub const XATTR_VALUE_MAX: usize = 65_536;

/// All names of an inode's extended attributes, each with a byte behind it (Linux's XATTR_LIST_MAX: what no program
/// could list must not be there).
pub const XATTR_LIST_MAX: usize = 65_536;

/// All extended attributes of an inode: names, values, and `XATTR_OVERHEAD` for each. An inode's attributes are added
/// up when one is set, so this also bounds that work.
pub const XATTRS_MAX: usize = 256 << 10;

/// What an extended attribute counts beside its name and value: about what it costs in the state.
pub const XATTR_OVERHEAD: usize = 64;

/// An access control list, in bytes: what the kernel takes (a page), which is 511 entries.
pub const ACL_MAX: usize = 4096;

/// Seconds for which a ticket to a datanode's local socket is good.
pub const LOCAL_TICKET_S: u64 = 10;

/// Namenodes in one group: more only makes every write slower.
pub const NAMENODES_MAX: usize = 9;

/// A node's name, in bytes: it is shown in tables and becomes part of file names.
pub const NODE_NAME_MAX: usize = 64;

/// Numbers of inodes that a session may reserve at a time, and have in reserve altogether.
pub const RESERVE_MAX: u32 = 8192;

/// Changes in one `Op::Sequence`, and directories in one `Op::Share`.
pub const SEQUENCE_MAX: usize = 1024;

/// Pieces that one chunk is gathered from. As many half-dead frames as the worst chunk has.
pub const GATHER_PIECES_MAX: usize = 8192;

/// Chunks that one chunk is gathered from.
pub const GATHER_SOURCES_MAX: usize = 64;

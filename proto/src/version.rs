//! Versions of what is sent and stored, each with its reason.
//!
//! A plane's version is part of its ALPN name (`identity::Plane`), so two programs that share none
//! fail at the handshake with a clear error instead of misreading each other.

/// Version of the rows in the namenode's state, stored beside them; a reader refuses a higher one.
///
/// 1: first layout.
/// 2: the table of extended attributes, and their kinds above the bits of the mode. Rows of 1 are rows of 2.
/// 3: the table of datanodes' duties, and the numbers of namenodes. Rows of 2 are rows of 3; a program of before cannot
/// apply the commands.
/// 4: the table of chunks whose end was cut off. Rows of 3 are rows of 4; a program of before cannot apply the command.
/// 5: directories that are private to a session, and the table of numbers that sessions have reserved. Rows of 4 are rows
/// of 5.
/// 6: chunks that are gathered out of others, and the table of what from. Rows of 5 are rows of 6.
/// 7: the row that says how uneven datanodes may be. Rows of 6 are rows of 7; a program of before cannot apply the command.
pub const STATE_VERSION: u32 = 7;

/// Version of a chunk file, in its header; drawn in `datanode/FORMAT.md`.
///
/// 1: two header slots, frame index region, data region.
pub const CHUNK_FILE_VERSION: u16 = 1;

/// Version of the `IDENTITY` file that every data folder holds.
///
/// 1: cluster, role, node, disk.
pub const IDENTITY_VERSION: u32 = 1;

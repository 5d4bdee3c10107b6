//! What may cross a process boundary: identifiers, messages, limits, checksums and the one codec.
//!
//! This crate does no IO, reads no clock and draws no random number. The messages and the reasons
//! behind them are told in `proto/PROTOCOL.md`.

pub mod attr;
pub mod capability;
pub mod chunk;
pub mod codec;
pub mod error;
pub mod identity;
pub mod ids;
pub mod limits;
pub mod msg;
pub mod name;
pub mod version;
pub mod xattr;

pub use attr::{Attr, Caller, FileKind, SetAttr, SetTime, Timestamp};
pub use capability::{Access, Capability, CapabilityKey, Grant, Refusal};
pub use chunk::{Extent, FrameHeader, frame_digest};
pub use error::{ErrorKind, WireError};
pub use identity::{PeerIdentity, Plane, Role};
pub use ids::{ChunkId, ClusterId, Epoch, InodeId, NodeId, RequestId, SessionId};
pub use name::Name;
pub use xattr::{XattrKinds, XattrMode, XattrName, XattrValue};

//! Extended attributes: what they may be called, how long they may be, and which kinds an inode has.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::{XATTR_NAME_MAX, XATTR_VALUE_MAX};

/// The access ACL, in the kernel's binary form.
pub const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// The ACL that a directory hands down to what is made in it.
pub const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// What a program may do without being root. Writing to the file takes it away.
pub const CAPABILITY: &[u8] = b"security.capability";

/// 1 to 255 bytes without NUL, the namespace in front. Whether there is such a namespace is for the namenode to say.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct XattrName(Vec<u8>);

/// At most 64 KiB of any bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct XattrValue(Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadXattr {
    #[error("an attribute's name has 1 to {XATTR_NAME_MAX} bytes, and no NUL")]
    Name,
    #[error("an attribute's value has at most {XATTR_VALUE_MAX} bytes")]
    Value,
}

/// Whether the attribute may, must or must not be there before it is set.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub enum XattrMode {
    Set,
    /// XATTR_CREATE.
    Create,
    /// XATTR_REPLACE.
    Replace,
}

/// Which kinds of extended attributes an inode has. It goes with the attributes wherever they go, so that nobody has
/// to ask about what is not there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct XattrKinds(u8);

impl XattrName {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<XattrName, BadXattr> {
        let bytes = bytes.into();
        match bytes.is_empty() || bytes.len() > XATTR_NAME_MAX || bytes.contains(&0) {
            true => Err(BadXattr::Name),
            false => Ok(XattrName(bytes)),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Where an attribute of this name shows in the `XattrKinds` of its inode.
    pub fn kind(&self) -> XattrKinds {
        match self.as_bytes() {
            ACCESS_ACL => XattrKinds::ACCESS_ACL,
            DEFAULT_ACL => XattrKinds::DEFAULT_ACL,
            CAPABILITY => XattrKinds::CAPABILITY,
            _ => XattrKinds::OTHER,
        }
    }
}

impl XattrValue {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<XattrValue, BadXattr> {
        let bytes = bytes.into();
        if bytes.len() > XATTR_VALUE_MAX { Err(BadXattr::Value) } else { Ok(XattrValue(bytes)) }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl XattrKinds {
    pub const NONE: XattrKinds = XattrKinds(0);
    pub const ACCESS_ACL: XattrKinds = XattrKinds(1);
    pub const DEFAULT_ACL: XattrKinds = XattrKinds(2);
    pub const CAPABILITY: XattrKinds = XattrKinds(4);
    /// Any other attribute, one or many.
    pub const OTHER: XattrKinds = XattrKinds(8);

    pub fn is_empty(self) -> bool {
        self == XattrKinds::NONE
    }

    pub fn contains(self, kind: XattrKinds) -> bool {
        self.0 & kind.0 == kind.0
    }

    #[must_use]
    pub fn with(self, kind: XattrKinds) -> XattrKinds {
        XattrKinds(self.0 | kind.0)
    }

    #[must_use]
    pub fn without(self, kind: XattrKinds) -> XattrKinds {
        XattrKinds(self.0 & !kind.0)
    }
}

/// Mode and kinds as the one number in which they are sent and stored: a mode has twelve bits, the kinds are the four
/// above. So inodes that were stored before there were extended attributes are read as inodes that have none.
pub fn pack_mode(mode: u16, xattrs: XattrKinds) -> u16 {
    mode & 0o7777 | u16::from(xattrs.0) << 12
}

/// The mode and the kinds in `packed`.
pub fn unpack_mode(packed: u16) -> (u16, XattrKinds) {
    (packed & 0o7777, XattrKinds((packed >> 12) as u8))
}

impl TryFrom<Vec<u8>> for XattrName {
    type Error = BadXattr;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        XattrName::new(bytes)
    }
}

impl From<XattrName> for Vec<u8> {
    fn from(name: XattrName) -> Vec<u8> {
        name.0
    }
}

impl TryFrom<Vec<u8>> for XattrValue {
    type Error = BadXattr;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        XattrValue::new(bytes)
    }
}

impl From<XattrValue> for Vec<u8> {
    fn from(value: XattrValue) -> Vec<u8> {
        value.0
    }
}

/// Escaped where it is not plain ASCII: safe for logs and terminals.
impl fmt::Display for XattrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.escape_ascii().fmt(f)
    }
}

impl fmt::Debug for XattrName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Values may be long, and secret.
impl fmt::Debug for XattrValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "XattrValue({} bytes)", self.0.len())
    }
}

impl fmt::Debug for XattrKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (XattrKinds::ACCESS_ACL, "access ACL"),
            (XattrKinds::DEFAULT_ACL, "default ACL"),
            (XattrKinds::CAPABILITY, "capability"),
            (XattrKinds::OTHER, "other"),
        ];
        f.debug_set().entries(names.iter().filter(|(kind, _)| self.contains(*kind)).map(|(_, name)| name)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn names_and_values_beyond_their_limits_are_refused_also_off_the_wire() {
        for bad in [&b""[..], b"user.a\0b", &[b'x'; 256]] {
            assert_eq!(XattrName::new(bad), Err(BadXattr::Name));
            assert!(codec::decode::<XattrName>(&codec::encode(&bad.to_vec()).unwrap()).is_err());
        }
        assert!(XattrName::new([b'x'; 255]).is_ok());
        let long = vec![7; XATTR_VALUE_MAX + 1];
        assert_eq!(XattrValue::new(long.clone()), Err(BadXattr::Value));
        assert!(codec::decode::<XattrValue>(&codec::encode(&long).unwrap()).is_err());
        assert!(XattrValue::new(&long[1..]).is_ok());
    }

    #[test]
    fn mode_and_kinds_come_back_out_of_their_number() {
        let kinds = XattrKinds::ACCESS_ACL.with(XattrKinds::OTHER);
        assert_eq!(unpack_mode(pack_mode(0o6755, kinds)), (0o6755, kinds));
        assert_eq!(unpack_mode(0o1777), (0o1777, XattrKinds::NONE));
        assert!(kinds.contains(XattrKinds::OTHER) && !kinds.contains(XattrKinds::CAPABILITY));
        assert_eq!(kinds.without(XattrKinds::OTHER), XattrKinds::ACCESS_ACL);
    }
}

//! A directory entry's name, valid by construction.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::NAME_MAX;

/// 1 to 255 bytes of any kind but `/` and NUL; never `.` or `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Name(Vec<u8>);

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadName {
    #[error("name is longer than {NAME_MAX} bytes")]
    TooLong,
    #[error("name is empty, `.`, `..`, or holds `/` or NUL")]
    NotAllowed,
}

impl Name {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Name, BadName> {
        let bytes = bytes.into();
        if bytes.len() > NAME_MAX {
            return Err(BadName::TooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(BadName::NotAllowed);
        }
        Ok(Name(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for Name {
    type Error = BadName;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        Name::new(bytes)
    }
}

impl From<Name> for Vec<u8> {
    fn from(name: Name) -> Vec<u8> {
        name.0
    }
}

/// Lossy where the name is not UTF-8, and control characters are escaped: safe for logs and terminals.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in String::from_utf8_lossy(&self.0).chars() {
            if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
        }
        Ok(())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(BadName::NotAllowed), "{bad:?}");
        }
        assert_eq!(Name::new(vec![b'x'; 256]), Err(BadName::TooLong));
        assert!(Name::new(vec![0xff; 255]).is_ok());
        assert_eq!(Name::new("a\nb").unwrap().to_string(), "a\\nb");
    }
}

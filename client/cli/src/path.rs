//! A path in the cluster: absolute and normalised by construction, bytes of any kind in its names.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

use dfs_proto::{Name, limits};

use crate::error::{Failure, Result};

/// `/`, or names each led by a `/`. `.` and empty names are dropped and `..` is resolved by the text
/// alone, as Hadoop does it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DfsPath {
    names: Vec<Name>,
    /// Typed with a trailing `/`: must be a directory.
    trailing_slash: bool,
}

impl DfsPath {
    /// Reads `/a/b`, `dfs:///a/b` or `dfs://anything/a/b`.
    pub fn parse(text: &OsStr) -> Result<DfsPath> {
        let shown = text.to_string_lossy();
        let mut bytes = text.as_bytes();
        if let Some(rest) = bytes.strip_prefix(b"dfs://") {
            bytes = rest.iter().position(|b| *b == b'/').map_or(&b"/"[..], |at| &rest[at..]);
        }
        if bytes.first() != Some(&b'/') {
            return Err(Failure::usage(format!("`{shown}` is not a path in the cluster"))
                .hint("paths in the cluster start with `/`: /a/b or dfs://CLUSTER/a/b"));
        }
        if bytes.len() > limits::PATH_MAX {
            let message = format!("path is longer than {} bytes", limits::PATH_MAX);
            return Err(Failure::of(dfs_proto::ErrorKind::NameTooLong, message));
        }
        let mut names = Vec::new();
        for part in bytes.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    names.pop();
                }
                name => names.push(parse_name(name).map_err(|failure| failure.at(&shown))?),
            }
        }
        Ok(DfsPath { names, trailing_slash: bytes.len() > 1 && bytes.ends_with(b"/") })
    }

    pub fn root() -> DfsPath {
        DfsPath { names: Vec::new(), trailing_slash: false }
    }

    pub fn is_root(&self) -> bool {
        self.names.is_empty()
    }

    pub fn names(&self) -> &[Name] {
        &self.names
    }

    pub fn wants_directory(&self) -> bool {
        self.trailing_slash
    }

    /// The directory and the name in it; `None` for the root.
    pub fn split(&self) -> Option<(DfsPath, &Name)> {
        let (name, above) = self.names.split_last()?;
        Some((DfsPath { names: above.to_vec(), trailing_slash: false }, name))
    }

    pub fn join(&self, name: &Name) -> DfsPath {
        let mut names = self.names.clone();
        names.push(name.clone());
        DfsPath { names, trailing_slash: false }
    }

    /// Whether `other` is this path or lies below it.
    pub fn holds(&self, other: &DfsPath) -> bool {
        other.names.starts_with(&self.names)
    }

    /// The bytes as typed, normalised.
    pub fn to_bytes(&self) -> Vec<u8> {
        if self.names.is_empty() {
            return b"/".to_vec();
        }
        let mut bytes = Vec::new();
        for name in &self.names {
            bytes.push(b'/');
            bytes.extend_from_slice(name.as_bytes());
        }
        bytes
    }
}

/// A single name; `Failure` says what is wrong with it.
pub fn parse_name(bytes: &[u8]) -> Result<Name> {
    Name::new(bytes).map_err(|error| {
        let kind = match error {
            dfs_proto::name::BadName::TooLong => dfs_proto::ErrorKind::NameTooLong,
            dfs_proto::name::BadName::NotAllowed => dfs_proto::ErrorKind::InvalidArgument,
        };
        Failure::of(kind, error.to_string())
    })
}

/// For messages: control characters escaped, what is not UTF-8 replaced.
impl fmt::Display for DfsPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.names.is_empty() {
            return f.write_str("/");
        }
        self.names.iter().try_for_each(|name| write!(f, "/{name}"))
    }
}

impl FromStr for DfsPath {
    type Err = Failure;

    fn from_str(text: &str) -> Result<DfsPath> {
        DfsPath::parse(OsStr::new(text))
    }
}

/// Clap's parser for operands, which may be any bytes.
#[derive(Clone)]
pub struct PathParser;

impl clap::builder::TypedValueParser for PathParser {
    type Value = DfsPath;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> std::result::Result<DfsPath, clap::Error> {
        DfsPath::parse(value).map_err(|failure| {
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{}\n", failure.message()))
                .with_cmd(command)
        })
    }
}

impl clap::builder::ValueParserFactory for DfsPath {
    type Parser = PathParser;

    fn value_parser() -> PathParser {
        PathParser
    }
}

/// The last name of a local path, as the name of its copy; `None` for `/`, `.` and `..`.
pub fn local_name(path: &std::path::Path) -> Option<OsString> {
    match path.file_name() {
        Some(name) => Some(name.to_owned()),
        None => path.canonicalize().ok()?.file_name().map(OsStr::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<DfsPath> {
        DfsPath::parse(OsStr::from_bytes(text))
    }

    #[test]
    fn paths_are_normalised() {
        for (typed, normal) in [
            ("/", "/"),
            ("//", "/"),
            ("/a//b/", "/a/b"),
            ("/a/./b/../c", "/a/c"),
            ("/../..", "/"),
            ("dfs://nn:8020/a/b", "/a/b"),
            ("dfs:///a", "/a"),
            ("dfs://prod", "/"),
        ] {
            assert_eq!(parse(typed.as_bytes()).unwrap().to_bytes(), normal.as_bytes(), "{typed}");
        }
        assert!(parse(b"/a/").unwrap().wants_directory());
        assert!(!parse(b"/").unwrap().wants_directory());
    }

    #[test]
    fn names_may_be_any_bytes_but_paths_start_with_a_slash() {
        assert_eq!(parse(b"/\xff\n").unwrap().to_bytes(), b"/\xff\n");
        assert_eq!(parse(b"/a\n").unwrap().to_string(), "/a\\n");
        for bad in [&b""[..], b"a/b", b"hdfs://x/a"] {
            assert_eq!(parse(bad).unwrap_err().exit, crate::error::Exit::Usage);
        }
        assert!(parse(&[b"/".as_slice(), &[b'x'; 256]].concat()).is_err());
        assert!(parse(&b"/x".repeat(3000)).is_err());
    }

    #[test]
    fn a_directory_holds_itself_and_what_lies_below() {
        let a = parse(b"/a").unwrap();
        assert!(a.holds(&parse(b"/a/b").unwrap()));
        assert!(a.holds(&a));
        assert!(!a.holds(&parse(b"/ab").unwrap()));
        assert_eq!(parse(b"/a/b").unwrap().split().unwrap().0, a);
    }
}

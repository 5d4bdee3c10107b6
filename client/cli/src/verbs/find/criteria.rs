//! What `find` compares: names with patterns, sizes with bounds.

use std::cmp::Ordering;
use std::str::FromStr;

use crate::units::parse_size;

/// `+1M`, `-4k`, `100`. Bytes are compared exactly, not rounded up to the unit first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SizeTest {
    ordering: Ordering,
    bytes: u64,
}

impl SizeTest {
    pub fn holds(self, bytes: u64) -> bool {
        bytes.cmp(&self.bytes) == self.ordering
    }
}

impl FromStr for SizeTest {
    type Err = String;

    fn from_str(text: &str) -> Result<SizeTest, String> {
        let (ordering, size) = match text.as_bytes().first() {
            Some(b'+') => (Ordering::Greater, &text[1..]),
            Some(b'-') => (Ordering::Less, &text[1..]),
            _ => (Ordering::Equal, text),
        };
        Ok(SizeTest { ordering, bytes: parse_size(size)? })
    }
}

/// A shell pattern over the bytes of one name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Glob {
    parts: Vec<Part>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Byte(u8),
    AnyByte,
    AnyRun,
    Class { negated: bool, ranges: Vec<(u8, u8)> },
}

impl Glob {
    /// An unclosed `[` stands for itself, as in the shell.
    pub fn new(pattern: &[u8]) -> Glob {
        let mut parts = Vec::new();
        let mut rest = pattern;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            parts.push(match first {
                b'*' => Part::AnyRun,
                b'?' => Part::AnyByte,
                b'\\' if !rest.is_empty() => {
                    let escaped = rest[0];
                    rest = &rest[1..];
                    Part::Byte(escaped)
                }
                b'[' => match class(rest) {
                    Some((part, after)) => {
                        rest = after;
                        part
                    }
                    None => Part::Byte(b'['),
                },
                byte => Part::Byte(*byte),
            });
        }
        Glob { parts }
    }

    /// In time proportional to pattern times name: only the last `*` is ever tried again, since an
    /// earlier one can be left at its shortest match.
    pub fn matches(&self, name: &[u8]) -> bool {
        let (mut part, mut at) = (0, 0);
        let mut retry = None;
        while at < name.len() {
            match self.parts.get(part) {
                Some(Part::AnyRun) => {
                    retry = Some((part + 1, at));
                    part += 1;
                }
                Some(one) if one.takes(name[at]) => {
                    part += 1;
                    at += 1;
                }
                _ => match retry {
                    Some((after_star, start)) => {
                        retry = Some((after_star, start + 1));
                        part = after_star;
                        at = start + 1;
                    }
                    None => return false,
                },
            }
        }
        self.parts[part..].iter().all(|part| *part == Part::AnyRun)
    }
}

impl Part {
    fn takes(&self, byte: u8) -> bool {
        match self {
            Part::Byte(own) => *own == byte,
            Part::AnyByte => true,
            Part::AnyRun => false,
            Part::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != *negated
            }
        }
    }
}

/// Reads a class behind its `[`; `None` if it is not closed. A `]` right at its start belongs to it.
fn class(text: &[u8]) -> Option<(Part, &[u8])> {
    let negated = matches!(text.first(), Some(b'!' | b'^'));
    let mut at = usize::from(negated);
    let start = at;
    let mut ranges = Vec::new();
    loop {
        let low = *text.get(at)?;
        if low == b']' && at > start {
            return Some((Part::Class { negated, ranges }, &text[at + 1..]));
        }
        match (text.get(at + 1), text.get(at + 2)) {
            (Some(b'-'), Some(high)) if *high != b']' => {
                ranges.push((low, *high));
                at += 3;
            }
            _ => {
                ranges.push((low, low));
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_compared_exactly() {
        let test = |text: &str| text.parse::<SizeTest>().unwrap();
        assert!(test("+1M").holds((1 << 20) + 1));
        assert!(!test("+1M").holds(1 << 20));
        assert!(test("-1k").holds(1023));
        assert!(test("100").holds(100));
        assert!(!test("100c").holds(101));
        assert!("+".parse::<SizeTest>().is_err());
        assert!("big".parse::<SizeTest>().is_err());
    }

    #[test]
    fn patterns_match_as_in_the_shell() {
        for (pattern, name, expected) in [
            ("*.rs", "main.rs", true),
            ("*.rs", "main.rss", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("?", "x", true),
            ("?", "", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]", "]", true),
            ("[a-]", "-", true),
            ("[x", "[x", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("**a**", "bab", true),
        ] {
            assert_eq!(Glob::new(pattern.as_bytes()).matches(name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_ends_soon() {
        let pattern = b"*a".repeat(200);
        assert!(!Glob::new(&[&pattern[..], b"b"].concat()).matches(&[b'a'; 255]));
    }
}

//! POSIX access control lists: their binary form, what they permit, and how they and the mode follow each other.
//!
//! The rules are Linux's to the letter, because the kernel of a mount decides by the same lists: where the two
//! differed, one of them would refuse what the other promised.

use dfs_proto::limits::ACL_MAX;
use dfs_proto::xattr::{ACCESS_ACL, DEFAULT_ACL};
use dfs_proto::{Caller, ErrorKind, InodeId, WireError, XattrName, XattrValue};

use crate::rows::{self, InodeRow};
use crate::view::{Fault, View};

/// In front of the entries, little-endian as everything in the binary form.
const VERSION: u32 = 2;
const HEADER_LEN: usize = 4;
const ENTRY_LEN: usize = 8;
/// The id of entries that name nobody.
const NO_ID: u32 = u32::MAX;

/// A list that is valid: in order, and with a mask if it names anybody.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Acl {
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    who: Who,
    /// Read 4, write 2, execute 1.
    rights: u8,
}

/// Whom an entry is about. Lists are ordered like this, named users and groups in any order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    /// The most that named users and all groups get.
    Mask,
    Others,
}

/// Which of the two lists of an inode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Which {
    Access,
    /// What is made in the directory gets it.
    Default,
}

impl Which {
    pub fn name(self) -> Result<XattrName, Fault> {
        let name = match self {
            Which::Access => ACCESS_ACL,
            Which::Default => DEFAULT_ACL,
        };
        XattrName::new(name).map_err(|bad| Fault(bad.to_string()))
    }
}

impl Acl {
    /// Reads the binary form; `None` if it has no entries, which asks for the list to be removed.
    pub fn parse(bytes: &[u8]) -> Result<Option<Acl>, WireError> {
        if bytes.len() > ACL_MAX {
            return Err(WireError::new(ErrorKind::TooBig, format!("an ACL has at most {ACL_MAX} bytes")));
        }
        let invalid = || WireError::new(ErrorKind::InvalidArgument, "not a valid ACL");
        let Some((version, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return if bytes.is_empty() { Ok(None) } else { Err(invalid()) };
        };
        if u32::from_le_bytes(*version) != VERSION {
            return Err(WireError::new(ErrorKind::NotSupported, "an ACL of another version"));
        }
        let (entries, left_over) = rest.as_chunks::<ENTRY_LEN>();
        if !left_over.is_empty() {
            return Err(invalid());
        }
        let entries = entries.iter().map(parse_entry).collect::<Option<Vec<_>>>().ok_or_else(invalid)?;
        match (entries.is_empty(), is_ordered(&entries)) {
            (true, _) => Ok(None),
            (false, true) => Ok(Some(Acl { entries })),
            (false, false) => Err(invalid()),
        }
    }

    pub fn encode(&self) -> Result<XattrValue, Fault> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.entries {
            let (tag, id) = match entry.who {
                Who::Owner => (0x01u16, NO_ID),
                Who::User(id) => (0x02, id),
                Who::OwningGroup => (0x04, NO_ID),
                Who::Group(id) => (0x08, id),
                Who::Mask => (0x10, NO_ID),
                Who::Others => (0x20, NO_ID),
            };
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&u16::from(entry.rights).to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        XattrValue::new(bytes).map_err(|bad| Fault(bad.to_string()))
    }

    /// It says no more than a mode can.
    pub fn is_minimal(&self) -> bool {
        self.entries.iter().all(|entry| matches!(entry.who, Who::Owner | Who::OwningGroup | Who::Others))
    }

    /// The nine bits that stand for it in the mode. The bits of the group are those of the mask, if there is one.
    pub fn mode(&self) -> u16 {
        [self.of(Who::Owner), self.group_class(), self.of(Who::Others)]
            .iter()
            .fold(0, |mode, rights| mode << 3 | u16::from(*rights))
    }

    /// After a chmod.
    #[must_use]
    pub fn with_mode(&self, mode: u16) -> Acl {
        let group = if self.has_mask() { Who::Mask } else { Who::OwningGroup };
        let rights = |who, old| match who {
            who if who == group => bits(mode >> 3),
            Who::Owner => bits(mode >> 6),
            Who::Others => bits(mode),
            _ => old,
        };
        let entries = self.entries.iter().map(|entry| Entry { rights: rights(entry.who, entry.rights), ..*entry });
        Acl { entries: entries.collect() }
    }

    /// What something new gets that is made with `mode` under this default list: the mode, and the list if the mode
    /// does not say it all. What the maker left out of the mode is taken away; the umask is not looked at.
    pub fn inherited(&self, mode: u16) -> (u16, Option<Acl>) {
        let acl = self.with_mode(mode & self.mode());
        let mode = mode & !0o777 | acl.mode();
        (mode, (!acl.is_minimal()).then_some(acl))
    }

    /// Whether a caller who is not the owner gets all of `wanted`.
    pub fn permits(&self, gid: u32, caller: &Caller, wanted: u8) -> bool {
        let grants = |rights: u8| rights & wanted == wanted;
        let masked = |rights: u8| if self.has_mask() { grants(rights & self.of(Who::Mask)) } else { grants(rights) };
        if let Some(named) = self.entries.iter().find(|entry| entry.who == Who::User(caller.uid)) {
            return masked(named.rights);
        }
        // Whoever is in one of the groups gets what one of these gives, and never what others get.
        let mut is_member = false;
        for entry in &self.entries {
            let member = match entry.who {
                Who::OwningGroup => caller.in_group(gid),
                Who::Group(id) => caller.in_group(id),
                _ => false,
            };
            is_member |= member;
            if member && grants(entry.rights) {
                return masked(entry.rights);
            }
        }
        !is_member && grants(self.of(Who::Others))
    }

    fn has_mask(&self) -> bool {
        self.entries.iter().any(|entry| entry.who == Who::Mask)
    }

    fn group_class(&self) -> u8 {
        self.of(if self.has_mask() { Who::Mask } else { Who::OwningGroup })
    }

    /// The rights of the first such entry.
    fn of(&self, who: Who) -> u8 {
        self.entries.iter().find(|entry| entry.who == who).map_or(0, |entry| entry.rights)
    }
}

/// One of an inode's lists, whose kinds say that it is there. That it is missing or not valid is damage.
pub(crate) fn stored(view: &dyn View, inode: InodeId, which: Which) -> Result<Acl, Fault> {
    let row = rows::xattr(view, inode, &which.name()?)?;
    let acl = row.as_ref().and_then(|row| Acl::parse(row.value.as_bytes()).ok().flatten());
    acl.ok_or_else(|| Fault(format!("inode {inode} should have an ACL ({which:?}), and has none that is valid")))
}

/// What `fsck` finds wrong with a list that an inode has.
pub(crate) fn problem(row: &InodeRow, which: Which, value: &XattrValue) -> Option<String> {
    let Ok(Some(acl)) = Acl::parse(value.as_bytes()) else { return Some(format!("{which:?} ACL is not valid")) };
    match which {
        Which::Access if acl.is_minimal() => Some("the access ACL says no more than the mode".into()),
        Which::Access if acl.mode() != row.mode & 0o777 => {
            Some(format!("the access ACL says {:o} and the mode {:o}", acl.mode(), row.mode))
        }
        Which::Default if !row.is_directory() => Some("what is no directory has a default ACL".into()),
        _ => None,
    }
}

fn bits(mode: u16) -> u8 {
    (mode & 7) as u8
}

fn parse_entry(bytes: &[u8; ENTRY_LEN]) -> Option<Entry> {
    let [tag_low, tag_high, rights, rights_high, id @ ..] = *bytes;
    let id = u32::from_le_bytes(id);
    let who = match u16::from_le_bytes([tag_low, tag_high]) {
        0x01 => Who::Owner,
        0x02 if id != NO_ID => Who::User(id),
        0x04 => Who::OwningGroup,
        0x08 if id != NO_ID => Who::Group(id),
        0x10 => Who::Mask,
        0x20 => Who::Others,
        _ => return None,
    };
    (rights <= 7 && rights_high == 0).then_some(Entry { who, rights })
}

/// Owner, users, owning group, groups, mask, others: each part where it belongs, and those that must be there are.
fn is_ordered(entries: &[Entry]) -> bool {
    let rank = |entry: &Entry| match entry.who {
        Who::Owner => 0,
        Who::User(_) => 1,
        Who::OwningGroup => 2,
        Who::Group(_) => 3,
        Who::Mask => 4,
        Who::Others => 5,
    };
    let count = |wanted: u8| entries.iter().filter(|entry| rank(entry) == wanted).count();
    let names_anybody = count(1) + count(3) > 0;
    entries.is_sorted_by_key(rank)
        && [0, 2, 5].iter().all(|single| count(*single) == 1)
        && (count(4) == 1 || count(4) == 0 && !names_anybody)
}

#[cfg(test)]
pub(crate) mod tests;

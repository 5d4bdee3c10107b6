//! Extended attributes, and what is known of them without asking.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use dfs_proto::{Attr, Caller, ErrorKind, InodeId, XattrKinds, XattrMode, XattrName, XattrValue};
use parking_lot::Mutex;

use super::Fs;
use super::admission::Payload;
use super::caller::Requester;
use super::errno::Errno;

/// How long it is believed which kinds of attributes an inode has. The kernel asks for ACLs right after it has looked a
/// name up, which has brought the answer along: a moment is enough. Who asks through a descriptor, without a look-up,
/// may be told what was true this long ago.
const BELIEVED: Duration = Duration::from_secs(1);

/// Inodes of which something is known, about 40 bytes each. Beyond that, what is no longer believed goes, or the news.
const KNOWN_MAX: usize = 65_536;

/// Which kinds of extended attributes inodes have, from the answers that went through this mount.
#[derive(Default)]
pub struct KnownKinds {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    inodes: HashMap<InodeId, Known>,
    /// When what is no longer believed was thrown out last.
    swept: Option<Instant>,
}

#[derive(Clone, Copy)]
struct Known {
    kinds: XattrKinds,
    /// It was so at this moment or later.
    at: Instant,
}

impl KnownKinds {
    /// Notes an answer to a question that was asked at `at`. What is known of a later moment stays.
    pub fn learn(&self, attr: &Attr, at: Instant) {
        let news = Known { kinds: attr.xattrs, at };
        let mut table = self.table.lock();
        if let Some(known) = table.inodes.get_mut(&attr.inode) {
            if known.at <= at {
                *known = news;
            }
        } else if table.has_room(at) {
            table.inodes.insert(attr.inode, news);
        }
    }

    /// What is known of an inode and still believed.
    pub fn of(&self, inode: InodeId, now: Instant) -> Option<XattrKinds> {
        let known = *self.table.lock().inodes.get(&inode)?;
        known.is_believed(now).then_some(known.kinds)
    }
}

impl Table {
    /// Sweeps a full table, but no sooner than that can help.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.inodes.len() < KNOWN_MAX {
            return true;
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= BELIEVED) {
            self.swept = Some(now);
            self.inodes.retain(|_, known| known.is_believed(now));
        }
        self.inodes.len() < KNOWN_MAX
    }
}

impl Known {
    fn is_believed(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < BELIEVED
    }
}

impl Fs {
    /// Notes what attributes tell on their way to the kernel.
    pub(super) fn told(&self, attr: Attr, asked: Instant) -> Attr {
        self.known_kinds.learn(&attr, asked);
        attr
    }

    /// The kernel asks for ACLs at each permission check, and for the capability before it writes: nearly always for
    /// what is not there. That is answered from what is known, and attributes are asked for if nothing is.
    pub async fn get_xattr(&self, who: Requester, inode: InodeId, name: &OsStr) -> Result<XattrValue, Errno> {
        let name = XattrName::new(name.as_bytes())?;
        let asked_by_kernel = name.kind() != XattrKinds::OTHER;
        if asked_by_kernel && !self.kinds(inode).await?.contains(name.kind()) {
            return Err(Errno::NO_ATTRIBUTE);
        }
        Ok(self.dfs.get_xattr(&who.caller(), inode, &name).await?)
    }

    /// The names as listxattr(2) wants them: a NUL behind each.
    pub async fn list_xattrs(&self, who: Requester, inode: InodeId) -> Result<Vec<u8>, Errno> {
        if self.kinds(inode).await?.is_empty() {
            return Ok(Vec::new());
        }
        let names = self.dfs.list_xattrs(&who.caller(), inode).await?;
        Ok(names.iter().flat_map(|name| name.as_bytes().iter().copied().chain([0])).collect())
    }

    /// `flags` are those of setxattr(2).
    pub async fn set_xattr(
        &self,
        who: Requester,
        inode: InodeId,
        name: &OsStr,
        value: Payload,
        flags: i32,
    ) -> Result<(), Errno> {
        let name = XattrName::new(name.as_bytes())?;
        let mode = xattr_mode(flags)?;
        let (value, _room) = value.into_parts();
        let attr = self.dfs.set_xattr(&who.caller(), inode, &name, XattrValue::new(value)?, mode).await?;
        // Of now: what was asked while this was under way may have been answered before it was done.
        self.told(attr, Instant::now());
        Ok(())
    }

    pub async fn remove_xattr(&self, who: Requester, inode: InodeId, name: &OsStr) -> Result<(), Errno> {
        let name = XattrName::new(name.as_bytes())?;
        let removed = match self.dfs.remove_xattr(&who.caller(), inode, &name).await {
            // Somebody writes to the file: the kernel takes the capability away in that writer's name. `removexattr` by
            // the same user does not get here, because the kernel refuses it; nothing could be gained by it either.
            Err(error) if error.kind == ErrorKind::NotPermitted && name.kind() == XattrKinds::CAPABILITY => {
                self.dfs.remove_xattr(&Caller::ROOT, inode, &name).await
            }
            other => other,
        };
        self.told(removed?, Instant::now());
        Ok(())
    }

    async fn kinds(&self, inode: InodeId) -> Result<XattrKinds, Errno> {
        let now = Instant::now();
        match self.known_kinds.of(inode, now) {
            Some(kinds) => Ok(kinds),
            None => Ok(self.told(self.dfs.getattr(&Caller::ROOT, inode).await?, now).xattrs),
        }
    }
}

fn xattr_mode(flags: i32) -> Result<XattrMode, Errno> {
    match flags {
        0 => Ok(XattrMode::Set),
        libc::XATTR_CREATE => Ok(XattrMode::Create),
        libc::XATTR_REPLACE => Ok(XattrMode::Replace),
        _ => Err(Errno::INVALID),
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::{FileKind, Timestamp};

    use super::*;

    fn attr(inode: u64, xattrs: XattrKinds) -> Attr {
        let epoch = Timestamp::default();
        Attr {
            inode: InodeId(inode),
            kind: FileKind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size_bytes: 0,
            mapped_bytes: 0,
            atime: epoch,
            mtime: epoch,
            ctime: epoch,
            crtime: epoch,
            version: 1,
            replication: 3,
            xattrs,
        }
    }

    #[test]
    fn what_is_known_is_believed_for_a_moment_only() {
        let (known, start) = (KnownKinds::default(), Instant::now());
        assert_eq!(known.of(InodeId(1), start), None);
        known.learn(&attr(1, XattrKinds::NONE), start);
        assert_eq!(known.of(InodeId(1), start + BELIEVED / 2), Some(XattrKinds::NONE));
        assert_eq!(known.of(InodeId(1), start + BELIEVED), None);
    }

    #[test]
    fn an_answer_that_comes_late_does_not_hide_a_newer_one() {
        let (known, start) = (KnownKinds::default(), Instant::now());
        let later = start + Duration::from_millis(5);
        known.learn(&attr(1, XattrKinds::ACCESS_ACL), later);
        known.learn(&attr(1, XattrKinds::NONE), start);
        assert_eq!(known.of(InodeId(1), later), Some(XattrKinds::ACCESS_ACL));
        known.learn(&attr(1, XattrKinds::NONE), later);
        assert_eq!(known.of(InodeId(1), later), Some(XattrKinds::NONE));
    }

    #[test]
    fn what_is_known_has_a_bound() {
        let (known, start) = (KnownKinds::default(), Instant::now());
        let count = || known.table.lock().inodes.len();
        for inode in 0..2 * KNOWN_MAX as u64 {
            known.learn(&attr(inode, XattrKinds::NONE), start);
        }
        assert_eq!(count(), KNOWN_MAX);
        // What was known may still be corrected.
        known.learn(&attr(7, XattrKinds::OTHER), start);
        assert_eq!(known.of(InodeId(7), start), Some(XattrKinds::OTHER));
        let (later, another) = (start + BELIEVED, 3 * KNOWN_MAX as u64);
        known.learn(&attr(another, XattrKinds::OTHER), later);
        assert_eq!(count(), 1);
        assert_eq!(known.of(InodeId(another), later), Some(XattrKinds::OTHER));
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        assert_eq!(xattr_mode(0), Ok(XattrMode::Set));
        assert_eq!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE), Err(Errno::INVALID));
        assert_eq!(xattr_mode(4), Err(Errno::INVALID));
    }
}

//! Who may do what: the one place where mode bits and ACLs are looked at. The rules are Linux's.

use dfs_proto::{Caller, ErrorKind, FileKind, InodeId, WireError, XattrKinds};

use crate::acl::{self, Which};
use crate::rows::InodeRow;
use crate::tx::{Failure, refuse};
use crate::view::{Fault, View};
use crate::xattrs::Namespace;

pub(crate) const READ: u8 = 4;
pub(crate) const WRITE: u8 = 2;
/// On a directory: to look names up in it.
pub(crate) const EXECUTE: u8 = 1;

pub(crate) const SET_UID: u16 = 0o4000;
pub(crate) const SET_GID: u16 = 0o2000;
pub(crate) const STICKY: u16 = 0o1000;
const GROUP_EXECUTE: u16 = 0o010;
const GROUP_ALL: u16 = 0o070;
pub(crate) const MODE_MASK: u16 = 0o7777;

/// Whether `caller` has every access in `mask` (READ, WRITE, EXECUTE added up). Exactly one class of
/// bits counts: the owner's for the owner, else the group's for members, else the others'. An ACL decides
/// for all but the owner, unless the mode says that it gives nothing (Linux does not look at it then). Root
/// may do all, but execute only what somebody may execute.
pub(crate) fn allows(
    view: &dyn View,
    inode: InodeId,
    row: &InodeRow,
    caller: &Caller,
    mask: u8,
) -> Result<bool, Fault> {
    if caller.uid == 0 {
        return Ok(mask & EXECUTE == 0 || row.is_directory() || row.mode & 0o111 != 0);
    }
    let class = if row.uid == caller.uid {
        row.mode >> 6
    } else if row.xattrs.contains(XattrKinds::ACCESS_ACL) && row.mode & GROUP_ALL != 0 {
        return Ok(acl::stored(view, inode, Which::Access)?.permits(row.gid, caller, mask & 7));
    } else if caller.in_group(row.gid) {
        row.mode >> 3
    } else {
        row.mode
    };
    let mask = u16::from(mask & 7);
    Ok(class & mask == mask)
}

/// `allows`, or `AccessDenied`.
pub(crate) fn require(
    view: &dyn View,
    inode: InodeId,
    row: &InodeRow,
    caller: &Caller,
    mask: u8,
) -> Result<(), Failure> {
    match allows(view, inode, row, caller, mask)? {
        true => Ok(()),
        false => Err(refuse(ErrorKind::AccessDenied, "permission denied")),
    }
}

/// Whether `caller` is root or owns it.
pub(crate) fn owns(row: &InodeRow, caller: &Caller) -> bool {
    caller.uid == 0 || caller.uid == row.uid
}

/// `owns`, or `NotPermitted`.
pub(crate) fn require_owner(row: &InodeRow, caller: &Caller) -> Result<(), WireError> {
    match owns(row, caller) {
        true => Ok(()),
        false => Err(WireError::new(ErrorKind::NotPermitted, "only the owner or root may do this")),
    }
}

/// To put a new name into a directory.
pub(crate) fn require_add(
    view: &dyn View,
    inode: InodeId,
    directory: &InodeRow,
    caller: &Caller,
) -> Result<(), Failure> {
    require(view, inode, directory, caller, WRITE | EXECUTE)
}

/// To take the name of `victim` out of a directory. In a sticky one only the owner of either may.
pub(crate) fn require_remove(
    view: &dyn View,
    inode: InodeId,
    directory: &InodeRow,
    victim: &InodeRow,
    caller: &Caller,
) -> Result<(), Failure> {
    require(view, inode, directory, caller, WRITE | EXECUTE)?;
    if directory.mode & STICKY != 0 && !owns(directory, caller) && !owns(victim, caller) {
        return Err(refuse(ErrorKind::NotPermitted, "the directory is sticky and the file is another user's"));
    }
    Ok(())
}

/// To read (READ) or change (WRITE) an extended attribute. Who may change an ACL is for `require_owner`.
pub(crate) fn require_xattr(
    view: &dyn View,
    inode: InodeId,
    row: &InodeRow,
    caller: &Caller,
    space: Namespace,
    access: u8,
) -> Result<(), Failure> {
    // What may not be seen is not there.
    let refused = |why| match access & WRITE {
        0 => Err(refuse(ErrorKind::NoAttribute, "there is no such attribute for this caller")),
        _ => Err(refuse(ErrorKind::NotPermitted, why)),
    };
    match space {
        Namespace::Trusted if caller.uid != 0 => refused("only root has attributes in `trusted`"),
        Namespace::Security if caller.uid != 0 && access & WRITE != 0 => {
            refused("only root changes attributes in `security`")
        }
        Namespace::User if !matches!(row.kind(), FileKind::File | FileKind::Directory) => {
            refused("only files and directories have attributes in `user`")
        }
        // Everybody may write to it: that must not mean that everybody marks it.
        Namespace::User
            if row.is_directory() && row.mode & STICKY != 0 && access & WRITE != 0 && !owns(row, caller) =>
        {
            refused("the directory is sticky and another user's")
        }
        Namespace::User => require(view, inode, row, caller, access),
        Namespace::Trusted | Namespace::Security | Namespace::Acl(_) => Ok(()),
    }
}

/// Group and mode of something new in `directory`. A setgid directory hands its group down, and the
/// bit itself to directories; a file does not become setgid for a group its maker is not in.
pub(crate) fn of_new(directory: &InodeRow, caller: &Caller, mode: u16, is_directory: bool) -> (u32, u16) {
    let mut mode = mode & MODE_MASK;
    if directory.mode & SET_GID == 0 {
        return (caller.gid, mode);
    }
    if is_directory {
        mode |= SET_GID;
    } else if mode & GROUP_EXECUTE != 0 && caller.uid != 0 && !caller.in_group(directory.gid) {
        mode &= !SET_GID;
    }
    (directory.gid, mode)
}

/// A mode after the file was written, truncated or given away: it no longer runs as its owner or, if
/// its group may run it, as its group.
pub(crate) fn without_set_id(mode: u16) -> u16 {
    let mode = mode & !SET_UID;
    if mode & GROUP_EXECUTE != 0 { mode & !SET_GID } else { mode }
}

#[cfg(test)]
mod tests {
    use dfs_proto::Timestamp;

    use super::*;
    use crate::rows::Content;
    use crate::view::MemoryView;

    const INODE: InodeId = InodeId(7);

    fn row(mode: u16, uid: u32, gid: u32, directory: bool) -> InodeRow {
        let content = match directory {
            true => Content::Directory { parent: InodeId::ROOT, next_cookie: 3, private: None },
            false => Content::File { size_bytes: 0, mapped_bytes: 0, replication: 3 },
        };
        let at = Timestamp::default();
        InodeRow {
            mode,
            nlink: 1,
            uid,
            gid,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            version: 1,
            content,
            orphan: None,
            xattrs: XattrKinds::NONE,
        }
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Caller {
        Caller { uid, gid, groups: groups.to_vec() }
    }

    #[test]
    fn exactly_one_class_of_bits_counts() {
        // mode, caller, mask, allowed; the file is 10:20's
        let (owner, member, also, other) =
            (user(10, 99, &[]), user(11, 20, &[]), user(12, 99, &[5, 20]), user(13, 99, &[]));
        for (mode, caller, mask, allowed) in [
            (0o400, &owner, READ, true),
            (0o400, &owner, WRITE, false),
            (0o077, &owner, READ, false),
            (0o040, &member, READ, true),
            (0o707, &member, READ, false),
            (0o020, &also, WRITE, true),
            (0o004, &also, READ, false),
            (0o004, &other, READ, true),
            (0o770, &other, READ, false),
            (0o006, &other, READ | WRITE, true),
            (0o004, &other, READ | WRITE, false),
            (0o000, &other, 0, true),
        ] {
            let decided = allows(&MemoryView::new(), INODE, &row(mode, 10, 20, false), caller, mask);
            assert_eq!(decided, Ok(allowed), "{mode:o} {caller:?} {mask}");
        }
    }

    #[test]
    fn root_may_do_all_but_execute_what_nobody_may() {
        let allows = |row: InodeRow, mask| allows(&MemoryView::new(), INODE, &row, &Caller::ROOT, mask).unwrap();
        assert!(allows(row(0, 10, 20, false), READ | WRITE));
        assert!(!allows(row(0o666, 10, 20, false), EXECUTE));
        assert!(allows(row(0o010, 10, 20, false), EXECUTE));
        assert!(allows(row(0, 10, 20, true), EXECUTE));
    }

    #[test]
    fn a_sticky_directory_protects_names_of_others() {
        let require_remove = |directory: &InodeRow, victim: &InodeRow, caller: &Caller| match require_remove(
            &MemoryView::new(),
            INODE,
            directory,
            victim,
            caller,
        ) {
            Err(Failure::Refused(error)) => Some(error.kind),
            other => {
                other.unwrap();
                None
            }
        };
        let tmp = row(0o1777, 1, 1, true);
        let theirs = row(0o666, 10, 10, false);
        assert_eq!(require_remove(&tmp, &theirs, &user(11, 11, &[])), Some(ErrorKind::NotPermitted));
        assert_eq!(require_remove(&tmp, &theirs, &user(10, 10, &[])), None);
        assert_eq!(require_remove(&tmp, &theirs, &user(1, 1, &[])), None);
        assert_eq!(require_remove(&tmp, &theirs, &Caller::ROOT), None);
        let plain = row(0o777, 1, 1, true);
        assert_eq!(require_remove(&plain, &theirs, &user(11, 11, &[])), None);
        let closed = row(0o755, 1, 1, true);
        assert_eq!(require_remove(&closed, &theirs, &user(10, 10, &[])), Some(ErrorKind::AccessDenied));
    }

    #[test]
    fn a_setgid_directory_hands_its_group_down() {
        let (plain, shared) = (row(0o777, 1, 50, true), row(0o2777, 1, 50, true));
        let maker = user(10, 10, &[]);
        assert_eq!(of_new(&plain, &maker, 0o755, true), (10, 0o755));
        assert_eq!(of_new(&shared, &maker, 0o755, true), (50, 0o2755));
        assert_eq!(of_new(&shared, &maker, 0o644, false), (50, 0o644));
        assert_eq!(of_new(&shared, &maker, 0o2755, false), (50, 0o755));
        assert_eq!(of_new(&shared, &user(10, 10, &[50]), 0o2755, false), (50, 0o2755));
        assert_eq!(of_new(&plain, &maker, 0o17777, false), (10, 0o7777));
    }

    #[test]
    fn written_files_lose_set_id_bits() {
        assert_eq!(without_set_id(0o6755), 0o755);
        assert_eq!(without_set_id(0o2745), 0o2745);
        assert_eq!(without_set_id(0o1755), 0o1755);
    }
}

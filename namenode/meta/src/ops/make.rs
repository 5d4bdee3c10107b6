//! Make: a new file, directory, symlink or special file under a new name; or, for O_CREAT without
//! O_EXCL, the regular file that has the name already.

use dfs_proto::limits::{PATH_MAX, REPLICATION_MAX};
use dfs_proto::msg::meta::{NewNode, OpReply};
use dfs_proto::{ErrorKind, FileKind, Grant, InodeId, Name, XattrKinds};

use crate::acl::{self, Which};
use crate::apply::Client;
use crate::ops::reserve;
use crate::permission::{self, EXECUTE, READ, WRITE};
use crate::rows::{self, Content, DentryRow, FIRST_COOKIE, InodeRow};
use crate::tx::{Failure, Tx, refuse};
use crate::view::Fault;
use crate::{tree, xattrs};

pub(crate) struct Make<'a> {
    pub parent: InodeId,
    pub name: &'a Name,
    pub node: &'a NewNode,
    pub mode: u16,
    /// Taken away from `mode`, unless the parent has a default ACL.
    pub umask: u16,
    pub exclusive: bool,
    /// Open it, too: for reading, for writing.
    pub open: Option<(bool, bool)>,
    pub replication: Option<u8>,
    /// A new directory is seen by this session alone until it shares it.
    pub private: bool,
}

impl Make<'_> {
    pub fn apply(self, tx: &mut Tx<'_>, client: &Client<'_>) -> Result<OpReply, Failure> {
        let directory = tree::directory(tx.view(), self.parent)?;
        permission::require(tx.view(), self.parent, &directory, client.caller, EXECUTE)?;
        match rows::dentry(tx.view(), self.parent, self.name)? {
            Some(entry) => self.existing(tx, client, &entry),
            None => self.new_inode(tx, client, &directory),
        }
    }

    fn existing(&self, tx: &Tx<'_>, client: &Client<'_>, entry: &DentryRow) -> Result<OpReply, Failure> {
        let wants_file = !self.exclusive && *self.node == NewNode::File;
        match entry.kind {
            FileKind::File if wants_file => {}
            FileKind::Directory if wants_file => {
                return Err(refuse(ErrorKind::IsADirectory, format!("`{}` is a directory", self.name)));
            }
            _ => return Err(refuse(ErrorKind::Exists, format!("`{}` exists", self.name))),
        }
        let row = tree::named_inode(tx.view(), entry)?;
        if let Some((read, write)) = self.open {
            let mask = READ * u8::from(read) + WRITE * u8::from(write);
            permission::require(tx.view(), entry.inode, &row, client.caller, mask)?;
        }
        let grant = self.grant(tx, client, entry.inode)?;
        Ok(OpReply::Made { attr: row.attr(entry.inode), created: false, grant })
    }

    fn new_inode(&self, tx: &mut Tx<'_>, client: &Client<'_>, directory: &InodeRow) -> Result<OpReply, Failure> {
        permission::require_add(tx.view(), self.parent, directory, client.caller)?;
        let content = self.content(tx, client)?;
        let kind = content.kind();
        let is_directory = kind == FileKind::Directory;
        let (gid, mode) = match kind {
            // A symlink's own bits are never looked at.
            FileKind::Symlink => (permission::of_new(directory, client.caller, 0, false).0, 0o777),
            _ => permission::of_new(directory, client.caller, self.mode, is_directory),
        };
        let mut row = InodeRow {
            mode,
            nlink: if is_directory { 2 } else { 1 },
            uid: client.caller.uid,
            gid,
            atime: client.now,
            mtime: client.now,
            ctime: client.now,
            crtime: client.now,
            version: 1,
            content,
            orphan: None,
            xattrs: XattrKinds::NONE,
        };

        let inode = match client.chosen {
            Some(chosen) => reserve::take(tx, client.session, chosen)?,
            None => {
                let next = tx.totals.next_inode;
                tx.totals.next_inode = InodeId(next.0 + 1);
                next
            }
        };
        let counts = &mut tx.totals.counts;
        match kind {
            FileKind::File => counts.files += 1,
            FileKind::Directory => counts.directories += 1,
            _ => counts.symlinks_and_specials += 1,
        }
        self.settle_rights(tx, directory, inode, &mut row)?;
        tx.put(InodeRow::key(inode), &row)?;
        tree::insert(tx, self.parent, self.name, inode, kind, client.now)?;

        let grant = self.grant(tx, client, inode)?;
        Ok(OpReply::Made { attr: row.attr(inode), created: true, grant })
    }

    /// A default ACL of the parent, which a new directory also hands on, or else the umask.
    fn settle_rights(
        &self,
        tx: &mut Tx<'_>,
        directory: &InodeRow,
        inode: InodeId,
        row: &mut InodeRow,
    ) -> Result<(), Fault> {
        if row.kind() == FileKind::Symlink {
            return Ok(());
        }
        if !directory.xattrs.contains(XattrKinds::DEFAULT_ACL) {
            row.mode &= !(self.umask & 0o777);
            return Ok(());
        }
        let default = acl::stored(tx.view(), self.parent, Which::Default)?;
        let (mode, access) = default.inherited(row.mode);
        row.mode = mode;
        if access.is_some() {
            xattrs::put_acl(tx, inode, row, Which::Access, access.as_ref())?;
        }
        if row.is_directory() {
            xattrs::put_acl(tx, inode, row, Which::Default, Some(&default))?;
        }
        Ok(())
    }

    fn content(&self, tx: &Tx<'_>, client: &Client<'_>) -> Result<Content, Failure> {
        Ok(match self.node {
            NewNode::File => {
                let replication = self.replication.unwrap_or(tx.config()?.default_replication);
                if replication == 0 || replication > REPLICATION_MAX {
                    let message = format!("a file has 1 to {REPLICATION_MAX} copies, not {replication}");
                    return Err(refuse(ErrorKind::InvalidArgument, message));
                }
                Content::File { size_bytes: 0, mapped_bytes: 0, replication }
            }
            NewNode::Directory => Content::Directory {
                parent: self.parent,
                next_cookie: FIRST_COOKIE,
                private: self.private.then_some(client.session),
            },
            NewNode::Symlink(target) if target.is_empty() => {
                return Err(refuse(ErrorKind::NotFound, "a symlink must lead somewhere"));
            }
            NewNode::Symlink(target) if target.len() > PATH_MAX => {
                return Err(refuse(ErrorKind::NameTooLong, "the symlink's target is too long"));
            }
            NewNode::Symlink(target) => Content::Symlink { target: target.clone() },
            NewNode::Special(kind, rdev) => match kind {
                FileKind::Fifo | FileKind::Socket => Content::Special { kind: *kind, rdev: 0 },
                FileKind::CharDevice | FileKind::BlockDevice if client.caller.uid == 0 => {
                    Content::Special { kind: *kind, rdev: *rdev }
                }
                FileKind::CharDevice | FileKind::BlockDevice => {
                    return Err(refuse(ErrorKind::NotPermitted, "only root may make a device"));
                }
                FileKind::File | FileKind::Directory | FileKind::Symlink => {
                    return Err(refuse(ErrorKind::InvalidArgument, "that is no special file"));
                }
            },
        })
    }

    fn grant(&self, tx: &Tx<'_>, client: &Client<'_>, inode: InodeId) -> Result<Option<Grant>, Failure> {
        let Some((read, write)) = self.open else { return Ok(None) };
        let keys = rows::capability_keys(tx.view())?;
        Ok(Some(Grant::sign(keys.newest()?, inode, client.session, read, write)))
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::ErrorKind;
    use dfs_proto::msg::meta::Op;

    use super::*;
    use crate::testing::{Rig, kind_of, mkdir, name};

    fn make(parent: InodeId, text: &str, node: NewNode, mode: u16) -> Op {
        Op::Make { parent, name: name(text), node, mode, exclusive: true, open: None, replication: None }
    }

    fn open_or_create(text: &str, access: (bool, bool)) -> Op {
        let (node, open) = (NewNode::File, Some(access));
        Op::Make {
            parent: InodeId::ROOT,
            name: name(text),
            node,
            mode: 0o600,
            exclusive: false,
            open,
            replication: None,
        }
    }

    #[test]
    fn each_kind_is_made_with_its_links_and_counted() {
        let mut rig = Rig::new();
        let dir = rig.mkdir(InodeId::ROOT, "dir");
        assert_eq!((dir.nlink, dir.kind, dir.mode), (2, FileKind::Directory, 0o755));
        assert_eq!(rig.attr(InodeId::ROOT).nlink, 3);
        let file = rig.create(dir.inode, "file");
        assert_eq!((file.nlink, file.replication, file.version), (1, 3, 1));
        let link = rig.op(make(dir.inode, "link", NewNode::Symlink(b"file".to_vec()), 0)).unwrap();
        assert!(matches!(link, OpReply::Made { attr, .. } if attr.mode == 0o777 && attr.size_bytes == 4));
        rig.op(make(dir.inode, "dev", NewNode::Special(FileKind::CharDevice, 259), 0o600)).unwrap();
        let counts = rig.totals().counts;
        assert_eq!((counts.files, counts.directories, counts.symlinks_and_specials), (1, 2, 2));
    }

    #[test]
    fn a_name_is_made_once() {
        let mut rig = Rig::new();
        rig.create(InodeId::ROOT, "a");
        assert_eq!(kind_of(rig.op(make(InodeId::ROOT, "a", NewNode::File, 0o644))), Some(ErrorKind::Exists));
        assert_eq!(kind_of(rig.op(mkdir(InodeId::ROOT, "a"))), Some(ErrorKind::Exists));
    }

    #[test]
    fn creating_without_exclusion_returns_the_file_that_is_there_with_a_grant() {
        let mut rig = Rig::new();
        let made = rig.op(open_or_create("a", (true, true))).unwrap();
        let OpReply::Made { attr: first, created: true, grant: Some(_) } = made else { panic!("{made:?}") };
        let found = rig.op(open_or_create("a", (true, true))).unwrap();
        let OpReply::Made { attr: second, created: false, grant: Some(grant) } = found else { panic!("{found:?}") };
        assert_eq!(first, second);
        assert_eq!(grant.check(&rig.keys(), first.inode, rig.session, true), Ok(()));

        // The file is root's alone; the directory is open to all.
        rig.chmod(InodeId::ROOT, 0o777).unwrap();
        rig.become_user(7, 7);
        assert_eq!(kind_of(rig.op(open_or_create("a", (true, false)))), Some(ErrorKind::AccessDenied));
        rig.become_root();
        rig.mkdir(InodeId::ROOT, "d");
        assert_eq!(kind_of(rig.op(open_or_create("d", (true, false)))), Some(ErrorKind::IsADirectory));
    }

    #[test]
    fn a_new_file_may_be_written_by_its_maker_whatever_its_mode() {
        let mut rig = Rig::new();
        let op = Op::Make {
            parent: InodeId::ROOT,
            name: name("readonly"),
            node: NewNode::File,
            mode: 0o400,
            exclusive: true,
            open: Some((false, true)),
            replication: None,
        };
        let made = rig.op(op).unwrap();
        assert!(matches!(made, OpReply::Made { grant: Some(grant), .. } if grant.write && !grant.read));
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let mut rig = Rig::new();
        let file = rig.create(InodeId::ROOT, "file").inode;
        let refused = |rig: &mut Rig, op| kind_of(rig.op(op));
        assert_eq!(refused(&mut rig, mkdir(file, "x")), Some(ErrorKind::NotADirectory));
        assert_eq!(refused(&mut rig, mkdir(InodeId(999), "x")), Some(ErrorKind::Stale));
        let long = NewNode::Symlink(vec![b'x'; PATH_MAX + 1]);
        assert_eq!(refused(&mut rig, make(InodeId::ROOT, "x", long, 0)), Some(ErrorKind::NameTooLong));
        let odd = NewNode::Special(FileKind::Directory, 0);
        assert_eq!(refused(&mut rig, make(InodeId::ROOT, "x", odd, 0)), Some(ErrorKind::InvalidArgument));
        rig.become_user(7, 7);
        assert_eq!(refused(&mut rig, mkdir(InodeId::ROOT, "x")), Some(ErrorKind::AccessDenied));
        rig.become_root();
        rig.chmod(InodeId::ROOT, 0o777).unwrap();
        rig.become_user(7, 7);
        let device = NewNode::Special(FileKind::BlockDevice, 1);
        assert_eq!(refused(&mut rig, make(InodeId::ROOT, "x", device, 0)), Some(ErrorKind::NotPermitted));
        let fifo = NewNode::Special(FileKind::Fifo, 1);
        assert_eq!(refused(&mut rig, make(InodeId::ROOT, "x", fifo, 0)), None);
    }

    #[test]
    fn replication_out_of_range_is_refused() {
        let mut rig = Rig::new();
        for (replication, allowed) in [(0, false), (1, true), (8, true), (9, false)] {
            let op = Op::Make {
                parent: InodeId::ROOT,
                name: name(&format!("r{replication}")),
                node: NewNode::File,
                mode: 0o644,
                exclusive: true,
                open: None,
                replication: Some(replication),
            };
            assert_eq!(rig.op(op).is_ok(), allowed, "{replication}");
        }
    }
}

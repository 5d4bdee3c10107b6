//! Rename, as rename(2) and renameat2(2) of Linux have it: replacing, refusing to replace, exchanging.

use dfs_proto::msg::meta::{OpReply, RenameMode};
use dfs_proto::{ErrorKind, FileKind, InodeId, Name};

use crate::apply::Client;
use crate::ops::rmdir;
use crate::permission::{self, EXECUTE, WRITE};
use crate::rows::{self, Content, DentryRow, InodeRow};
use crate::tree;
use crate::tx::{Failure, Tx, refuse};
use crate::view::Fault;

pub(crate) struct Rename<'a> {
    pub from_parent: InodeId,
    pub from_name: &'a Name,
    pub to_parent: InodeId,
    pub to_name: &'a Name,
    pub mode: RenameMode,
    pub hold: Option<InodeId>,
}

impl Rename<'_> {
    pub fn apply(self, tx: &mut Tx<'_>, client: &Client<'_>) -> Result<OpReply, Failure> {
        let from_directory = tree::directory(tx.view(), self.from_parent)?;
        let to_directory = tree::directory(tx.view(), self.to_parent)?;
        permission::require(tx.view(), self.from_parent, &from_directory, client.caller, EXECUTE)?;
        permission::require(tx.view(), self.to_parent, &to_directory, client.caller, EXECUTE)?;
        let from = tree::entry(tx.view(), self.from_parent, self.from_name)?;
        let to = rows::dentry(tx.view(), self.to_parent, self.to_name)?;
        self.require_no_cycle(tx, &from, to.as_ref())?;

        let moved = tree::named_inode(tx.view(), &from)?;
        self.require_may_leave(tx, client, &from_directory, from.inode, &moved)?;
        let Some(to) = to else {
            if self.mode == RenameMode::Exchange {
                return Err(refuse(ErrorKind::NotFound, format!("there is no `{}` to exchange with", self.to_name)));
            }
            permission::require_add(tx.view(), self.to_parent, &to_directory, client.caller)?;
            self.shift(tx, client, &from)?;
            return Ok(OpReply::Removed { inode: None });
        };

        let other = tree::named_inode(tx.view(), &to)?;
        match self.mode {
            RenameMode::NoReplace => Err(refuse(ErrorKind::Exists, format!("`{}` exists", self.to_name))),
            // Two names of one file: nothing to do, says POSIX, and both names stay.
            _ if from.inode == to.inode => Ok(OpReply::Removed { inode: None }),
            RenameMode::Exchange => {
                permission::require_remove(tx.view(), self.to_parent, &to_directory, &other, client.caller)?;
                self.require_may_reparent(tx, client, to.inode, &other)?;
                self.exchange(tx, client, &from, &to)
            }
            RenameMode::Replace => {
                permission::require_remove(tx.view(), self.to_parent, &to_directory, &other, client.caller)?;
                self.replace(tx, client, &from, &to)
            }
        }
    }

    /// No directory may come to lie below itself.
    fn require_no_cycle(&self, tx: &Tx<'_>, from: &DentryRow, to: Option<&DentryRow>) -> Result<(), Failure> {
        let below_itself = || refuse(ErrorKind::InvalidArgument, "a directory cannot be moved below itself");
        if from.kind == FileKind::Directory && lies_below(tx, self.to_parent, from.inode)? {
            return Err(below_itself());
        }
        let exchanged = to.filter(|to| self.mode == RenameMode::Exchange && to.kind == FileKind::Directory);
        if let Some(to) = exchanged
            && lies_below(tx, self.from_parent, to.inode)?
        {
            return Err(below_itself());
        }
        Ok(())
    }

    fn require_may_leave(
        &self,
        tx: &Tx<'_>,
        client: &Client<'_>,
        from_directory: &InodeRow,
        inode: InodeId,
        moved: &InodeRow,
    ) -> Result<(), Failure> {
        permission::require_remove(tx.view(), self.from_parent, from_directory, moved, client.caller)?;
        self.require_may_reparent(tx, client, inode, moved)
    }

    /// A directory that gets another parent has its `..` changed, which is writing to it.
    fn require_may_reparent(
        &self,
        tx: &Tx<'_>,
        client: &Client<'_>,
        inode: InodeId,
        moved: &InodeRow,
    ) -> Result<(), Failure> {
        if moved.is_directory() && self.from_parent != self.to_parent {
            permission::require(tx.view(), inode, moved, client.caller, WRITE)?;
        }
        Ok(())
    }

    /// The new name is free at this point.
    fn shift(&self, tx: &mut Tx<'_>, client: &Client<'_>, from: &DentryRow) -> Result<(), Failure> {
        if self.from_parent == self.to_parent {
            tree::rename_within(tx, self.from_parent, self.from_name, self.to_name, from, client.now)?;
        } else {
            tree::remove(tx, self.from_parent, self.from_name, from, client.now)?;
            tree::insert(tx, self.to_parent, self.to_name, from.inode, from.kind, client.now)?;
        }
        Ok(moved_to(tx, client, from.inode, self.to_parent)?)
    }

    fn replace(
        &self,
        tx: &mut Tx<'_>,
        client: &Client<'_>,
        from: &DentryRow,
        to: &DentryRow,
    ) -> Result<OpReply, Failure> {
        match (from.kind == FileKind::Directory, to.kind == FileKind::Directory) {
            (true, false) => Err(refuse(ErrorKind::NotADirectory, format!("`{}` is not a directory", self.to_name))),
            (false, true) => Err(refuse(ErrorKind::IsADirectory, format!("`{}` is a directory", self.to_name))),
            (true, true) => {
                rmdir::require_empty(tx, to.inode, self.to_name)?;
                tree::remove(tx, self.to_parent, self.to_name, to, client.now)?;
                let mut gone = tree::existing(tx.view(), to.inode)?;
                gone.nlink = 0;
                rmdir::forget_directory(tx, to.inode, &gone)?;
                self.shift(tx, client, from)?;
                Ok(OpReply::Removed { inode: Some(gone.attr(to.inode)) })
            }
            (false, false) => {
                tree::remove(tx, self.to_parent, self.to_name, to, client.now)?;
                let gone = tree::drop_link(tx, to.inode, client, self.hold)?;
                self.shift(tx, client, from)?;
                Ok(OpReply::Removed { inode: Some(gone) })
            }
        }
    }

    fn exchange(
        &self,
        tx: &mut Tx<'_>,
        client: &Client<'_>,
        from: &DentryRow,
        to: &DentryRow,
    ) -> Result<OpReply, Failure> {
        tree::redirect(tx, self.from_parent, self.from_name, from, to, client.now)?;
        tree::redirect(tx, self.to_parent, self.to_name, to, from, client.now)?;
        moved_to(tx, client, from.inode, self.to_parent)?;
        moved_to(tx, client, to.inode, self.from_parent)?;
        Ok(OpReply::Removed { inode: None })
    }
}

/// Whether `directory` is `ancestor` or lies below it. Walks up to the root; a walk longer than any
/// tree of this many directories is a cycle, which is damage.
fn lies_below(tx: &Tx<'_>, mut directory: InodeId, ancestor: InodeId) -> Result<bool, Fault> {
    let steps_max = tx.totals.counts.directories;
    for _ in 0..=steps_max.saturating_add(1) {
        if directory == ancestor {
            return Ok(true);
        }
        if directory == InodeId::ROOT {
            return Ok(false);
        }
        let Content::Directory { parent, .. } = tree::existing(tx.view(), directory)?.content else {
            return Err(Fault(format!("inode {directory} is a parent and not a directory")));
        };
        directory = parent;
    }
    Err(Fault(format!("the parents of inode {directory} go round in a circle")))
}

/// The inode has a new name: its ctime, and `..` of a directory.
fn moved_to(tx: &mut Tx<'_>, client: &Client<'_>, inode: InodeId, to_parent: InodeId) -> Result<(), Fault> {
    let mut row = tree::existing(tx.view(), inode)?;
    row.ctime = client.now;
    if let Content::Directory { parent, .. } = &mut row.content {
        *parent = to_parent;
    }
    tx.put(InodeRow::key(inode), &row)
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::Op;

    use super::*;
    use crate::testing::{Rig, kind_of, name};

    const ROOT: InodeId = InodeId::ROOT;

    fn rename(from: (InodeId, &str), to: (InodeId, &str), mode: RenameMode) -> Op {
        Op::Rename {
            from_parent: from.0,
            from_name: name(from.1),
            to_parent: to.0,
            to_name: name(to.1),
            mode,
            hold: None,
        }
    }

    fn replace(from: (InodeId, &str), to: (InodeId, &str)) -> Op {
        rename(from, to, RenameMode::Replace)
    }

    #[test]
    fn a_file_moves_between_directories_and_replaces_what_was_there() {
        let mut rig = Rig::new();
        let dir = rig.mkdir(ROOT, "d").inode;
        let moved = rig.write_new(ROOT, "a", 10);
        let replaced = rig.write_new(dir, "b", 20);
        let reply = rig.op(replace((ROOT, "a"), (dir, "b"))).unwrap();
        assert!(matches!(reply, OpReply::Removed { inode: Some(attr) } if attr.inode == replaced && attr.nlink == 0));
        assert_eq!(kind_of(rig.lookup(ROOT, "a")), Some(ErrorKind::NotFound));
        assert_eq!(rig.lookup(dir, "b").unwrap().inode, moved);
        assert_eq!(rig.totals().counts.mapped_bytes, 10);
    }

    #[test]
    fn a_replaced_file_that_is_held_stays() {
        let mut rig = Rig::new();
        rig.create(ROOT, "a");
        let held = rig.write_new(ROOT, "b", 20);
        let mut op = replace((ROOT, "a"), (ROOT, "b"));
        if let Op::Rename { hold, .. } = &mut op {
            *hold = Some(held);
        }
        rig.op(op).unwrap();
        assert_eq!(rig.attr(held).nlink, 0);
        rig.release(held);
        assert_eq!(kind_of(rig.try_attr(held)), Some(ErrorKind::Stale));
    }

    #[test]
    fn a_moved_directory_has_its_new_parent_and_links_follow() {
        let mut rig = Rig::new();
        let (a, b) = (rig.mkdir(ROOT, "a").inode, rig.mkdir(ROOT, "b").inode);
        let sub = rig.mkdir(a, "sub").inode;
        rig.op(replace((a, "sub"), (b, "sub"))).unwrap();
        assert_eq!((rig.attr(a).nlink, rig.attr(b).nlink), (2, 3));
        assert_eq!(rig.parent_of(sub), b);
    }

    #[test]
    fn a_directory_replaces_an_empty_directory_only() {
        let mut rig = Rig::new();
        let (a, b) = (rig.mkdir(ROOT, "a").inode, rig.mkdir(ROOT, "b").inode);
        rig.create(b, "f");
        assert_eq!(kind_of(rig.op(replace((ROOT, "a"), (ROOT, "b")))), Some(ErrorKind::NotEmpty));
        rig.unlink(b, "f", None).unwrap();
        rig.op(replace((ROOT, "a"), (ROOT, "b"))).unwrap();
        assert_eq!(rig.lookup(ROOT, "b").unwrap().inode, a);
        assert_eq!(kind_of(rig.try_attr(b)), Some(ErrorKind::Stale));
        assert_eq!(rig.attr(ROOT).nlink, 3);
    }

    #[test]
    fn a_directory_never_comes_to_lie_below_itself() {
        let mut rig = Rig::new();
        let a = rig.mkdir(ROOT, "a").inode;
        let b = rig.mkdir(a, "b").inode;
        let c = rig.mkdir(b, "c").inode;
        for parent in [a, b, c] {
            assert_eq!(kind_of(rig.op(replace((ROOT, "a"), (parent, "x")))), Some(ErrorKind::InvalidArgument));
        }
        let exchange = rename((b, "c"), (ROOT, "a"), RenameMode::Exchange);
        assert_eq!(kind_of(rig.op(exchange)), Some(ErrorKind::InvalidArgument));
        // Onto an own ancestor: that one is not empty.
        assert_eq!(kind_of(rig.op(replace((b, "c"), (ROOT, "a")))), Some(ErrorKind::NotEmpty));
        // Beside itself is no cycle.
        rig.op(replace((ROOT, "a"), (ROOT, "z"))).unwrap();
    }

    #[test]
    fn names_exchange_files_and_directories() {
        let mut rig = Rig::new();
        let (a, b) = (rig.mkdir(ROOT, "a").inode, rig.mkdir(ROOT, "b").inode);
        let dir = rig.mkdir(a, "x").inode;
        let file = rig.create(b, "y").inode;
        rig.op(rename((a, "x"), (b, "y"), RenameMode::Exchange)).unwrap();
        assert_eq!(rig.lookup(a, "x").unwrap().inode, file);
        assert_eq!(rig.lookup(b, "y").unwrap().inode, dir);
        assert_eq!(rig.parent_of(dir), b);
        assert_eq!((rig.attr(a).nlink, rig.attr(b).nlink), (2, 3));
        let missing = rename((a, "x"), (b, "none"), RenameMode::Exchange);
        assert_eq!(kind_of(rig.op(missing)), Some(ErrorKind::NotFound));
    }

    #[test]
    fn two_names_of_one_file_both_stay() {
        let mut rig = Rig::new();
        let file = rig.create(ROOT, "a").inode;
        rig.op(Op::Link { inode: file, parent: ROOT, name: name("b") }).unwrap();
        let reply = rig.op(replace((ROOT, "a"), (ROOT, "b"))).unwrap();
        assert_eq!(reply, OpReply::Removed { inode: None });
        assert_eq!(rig.lookup(ROOT, "a").unwrap().nlink, 2);
        rig.op(replace((ROOT, "a"), (ROOT, "a"))).unwrap();
        assert_eq!(rig.lookup(ROOT, "a").unwrap().nlink, 2);
    }

    #[test]
    fn a_listing_under_way_sees_a_renamed_file_exactly_once() {
        let mut rig = Rig::new();
        for text in ["a", "b", "c", "d"] {
            rig.create(ROOT, text);
        }
        let first = rows::list_dir(&rig.state, ROOT, 0, 2).unwrap();
        rig.op(replace((ROOT, "a"), (ROOT, "z"))).unwrap();
        rig.op(replace((ROOT, "d"), (ROOT, "y"))).unwrap();
        let rest = rows::list_dir(&rig.state, ROOT, first[1].0, 9).unwrap();
        let names: Vec<_> = rest.iter().map(|(_, row)| row.name.to_string()).collect();
        assert_eq!(names, ["c", "y"]);
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let mut rig = Rig::new();
        let dir = rig.mkdir(ROOT, "d").inode;
        let file = rig.create(ROOT, "f").inode;
        rig.create(dir, "g");
        let refused = |rig: &mut Rig, op| kind_of(rig.op(op));
        assert_eq!(refused(&mut rig, replace((ROOT, "x"), (ROOT, "y"))), Some(ErrorKind::NotFound));
        assert_eq!(refused(&mut rig, replace((ROOT, "f"), (ROOT, "d"))), Some(ErrorKind::IsADirectory));
        assert_eq!(refused(&mut rig, replace((ROOT, "d"), (ROOT, "f"))), Some(ErrorKind::NotADirectory));
        assert_eq!(refused(&mut rig, replace((ROOT, "d"), (file, "x"))), Some(ErrorKind::NotADirectory));
        let keep = rename((ROOT, "f"), (dir, "g"), RenameMode::NoReplace);
        assert_eq!(refused(&mut rig, keep), Some(ErrorKind::Exists));
        rig.become_user(5, 5);
        assert_eq!(refused(&mut rig, replace((ROOT, "f"), (ROOT, "h"))), Some(ErrorKind::AccessDenied));
    }

    #[test]
    fn sticky_directories_guard_both_ends() {
        let mut rig = Rig::new();
        rig.chmod(ROOT, 0o1777).unwrap();
        rig.create(ROOT, "roots");
        rig.become_user(5, 5);
        rig.create(ROOT, "mine");
        let refused = |rig: &mut Rig, op| kind_of(rig.op(op));
        assert_eq!(refused(&mut rig, replace((ROOT, "roots"), (ROOT, "x"))), Some(ErrorKind::NotPermitted));
        assert_eq!(refused(&mut rig, replace((ROOT, "mine"), (ROOT, "roots"))), Some(ErrorKind::NotPermitted));
        assert_eq!(refused(&mut rig, replace((ROOT, "mine"), (ROOT, "x"))), None);
    }

    #[test]
    fn another_parent_for_a_directory_needs_write_permission_on_it() {
        let mut rig = Rig::new();
        rig.chmod(ROOT, 0o777).unwrap();
        let dir = rig.mkdir(ROOT, "d").inode;
        rig.chmod(dir, 0o777).unwrap();
        let roots = rig.mkdir(ROOT, "roots").inode;
        rig.become_user(5, 5);
        assert_eq!(kind_of(rig.op(replace((ROOT, "roots"), (dir, "x")))), Some(ErrorKind::AccessDenied));
        rig.op(replace((ROOT, "roots"), (ROOT, "same-parent"))).unwrap();
        assert_eq!(rig.parent_of(roots), ROOT);
    }
}

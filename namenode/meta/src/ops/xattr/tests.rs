use dfs_proto::limits::{XATTR_LIST_MAX, XATTR_VALUE_MAX, XATTRS_MAX};
use dfs_proto::msg::meta::{NewNode, Op};
use dfs_proto::xattr::{ACCESS_ACL, DEFAULT_ACL};
use dfs_proto::{Attr, Caller, SetAttr, XattrKinds};

use super::*;
use crate::acl::tests::acl;
use crate::testing::{Rig, kind_of, name};

const ROOT: InodeId = InodeId::ROOT;
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// A capability as `setcap` stores it.
fn capability() -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[3] = 2;
    bytes
}

fn make(rig: &mut Rig, parent: InodeId, text: &str, node: NewNode, mode: u16, umask: u16) -> Attr {
    let (name, exclusive, open, replication) = (name(text), true, None, None);
    match rig.op(Op::MakeMasked { parent, name, node, mode, umask, exclusive, open, replication, private: false }) {
        Ok(OpReply::Made { attr, .. }) => attr,
        other => panic!("{other:?}"),
    }
}

fn may(rig: &Rig, inode: InodeId, mask: u8) -> bool {
    rig.query(dfs_proto::msg::meta::Query::Access { inode, mask }).is_ok()
}

#[test]
fn an_attribute_is_what_it_was_set_to_until_it_is_removed() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    assert_eq!(kind_of(rig.xattr(file, "user.a")), Some(ErrorKind::NoAttribute));
    let set = rig.set_xattr(file, "user.a", b"1").unwrap();
    assert_eq!((set.ctime, set.xattrs), (rig.now(), XattrKinds::OTHER));
    assert_eq!(set.version, 1, "the content is the same");
    rig.set_xattr(file, "user.b", b"").unwrap();
    rig.set_xattr(file, "user.a", b"2").unwrap();
    assert_eq!((rig.xattr(file, "user.a").unwrap(), rig.xattr(file, "user.b").unwrap()), (b"2".to_vec(), vec![]));
    assert_eq!(rig.xattr_names(file), ["user.a", "user.b"]);
    assert_eq!(rig.remove_xattr(file, "user.a").unwrap().xattrs, XattrKinds::OTHER);
    let removed = rig.remove_xattr(file, "user.b").unwrap();
    assert_eq!((removed.ctime, removed.xattrs), (rig.now(), XattrKinds::NONE));
    assert_eq!(kind_of(rig.remove_xattr(file, "user.b")), Some(ErrorKind::NoAttribute));
    assert!(rig.xattr_names(file).is_empty());
}

#[test]
fn create_and_replace_say_whether_it_may_be_there() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    let mut set = |mode, value: &[u8]| kind_of(rig.set_xattr_if(file, "user.a", value, mode));
    assert_eq!(set(XattrMode::Replace, b"1"), Some(ErrorKind::NoAttribute));
    assert_eq!(set(XattrMode::Create, b"2"), None);
    assert_eq!(set(XattrMode::Create, b"3"), Some(ErrorKind::Exists));
    assert_eq!(set(XattrMode::Replace, b"4"), None);
    assert_eq!(rig.xattr(file, "user.a").unwrap(), b"4");
}

#[test]
fn unknown_namespaces_are_not_supported_and_bare_ones_invalid() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    for (name, refusal) in [
        ("a", ErrorKind::NotSupported),
        ("system.a", ErrorKind::NotSupported),
        ("user", ErrorKind::NotSupported),
        ("users.a", ErrorKind::NotSupported),
        ("user.", ErrorKind::InvalidArgument),
        ("trusted.", ErrorKind::InvalidArgument),
    ] {
        assert_eq!(kind_of(rig.set_xattr(file, name, b"")), Some(refusal), "{name}");
        assert_eq!(kind_of(rig.xattr(file, name)), Some(refusal), "{name}");
        assert_eq!(kind_of(rig.remove_xattr(file, name)), Some(refusal), "{name}");
    }
}

#[test]
fn user_attributes_obey_the_permission_bits() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    rig.set_xattr(file, "user.a", b"1").unwrap();
    rig.become_user(5, 5);
    assert_eq!(rig.xattr(file, "user.a").unwrap(), b"1");
    assert_eq!(kind_of(rig.set_xattr(file, "user.a", b"2")), Some(ErrorKind::AccessDenied));
    assert_eq!(kind_of(rig.remove_xattr(file, "user.a")), Some(ErrorKind::AccessDenied));
    rig.become_root();
    rig.chmod(file, 0o622).unwrap();
    rig.become_user(5, 5);
    assert_eq!(kind_of(rig.xattr(file, "user.a")), Some(ErrorKind::AccessDenied));
    assert!(rig.set_xattr(file, "user.a", b"2").is_ok());
    // Names are no secret.
    assert_eq!(rig.xattr_names(file), ["user.a"]);
}

#[test]
fn user_attributes_are_for_files_and_directories_only() {
    let mut rig = Rig::new();
    let link = make(&mut rig, ROOT, "l", NewNode::Symlink(b"x".to_vec()), 0, 0).inode;
    let fifo = make(&mut rig, ROOT, "p", NewNode::Special(FileKind::Fifo, 0), 0o666, 0).inode;
    for inode in [link, fifo] {
        assert_eq!(kind_of(rig.set_xattr(inode, "user.a", b"1")), Some(ErrorKind::NotPermitted));
        assert_eq!(kind_of(rig.xattr(inode, "user.a")), Some(ErrorKind::NoAttribute));
        rig.set_xattr(inode, "trusted.a", b"1").unwrap();
        assert_eq!(rig.xattr(inode, "trusted.a").unwrap(), b"1");
    }
    let tmp = rig.mkdir(ROOT, "tmp").inode;
    rig.chmod(tmp, 0o1777).unwrap();
    rig.become_user(5, 5);
    assert_eq!(kind_of(rig.set_xattr(tmp, "user.a", b"1")), Some(ErrorKind::NotPermitted));
    rig.become_root();
    rig.chmod(tmp, 0o777).unwrap();
    rig.become_user(5, 5);
    assert!(rig.set_xattr(tmp, "user.a", b"1").is_ok());
}

#[test]
fn trusted_attributes_are_roots_and_nobody_else_sees_them() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    rig.chmod(file, 0o777).unwrap();
    for name in ["trusted.a", "security.a", "user.a"] {
        rig.set_xattr(file, name, b"1").unwrap();
    }
    assert_eq!(rig.xattr_names(file), ["security.a", "trusted.a", "user.a"]);
    rig.become_user(5, 5);
    assert_eq!(rig.xattr_names(file), ["security.a", "user.a"]);
    assert_eq!(kind_of(rig.xattr(file, "trusted.a")), Some(ErrorKind::NoAttribute));
    for name in ["trusted.a", "security.a", "security.capability"] {
        assert_eq!(kind_of(rig.set_xattr(file, name, &capability())), Some(ErrorKind::NotPermitted), "{name}");
        assert_eq!(kind_of(rig.remove_xattr(file, name)), Some(ErrorKind::NotPermitted), "{name}");
    }
    assert_eq!(rig.xattr(file, "security.a").unwrap(), b"1");
}

#[test]
fn an_inode_has_room_for_so_much_and_no_more() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    let value = vec![7; XATTR_VALUE_MAX];
    let fitting = XATTRS_MAX / (XATTR_VALUE_MAX + 100);
    for number in 0..fitting {
        rig.set_xattr(file, &format!("user.{number}"), &value).unwrap();
    }
    assert_eq!(kind_of(rig.set_xattr(file, "user.more", &value)), Some(ErrorKind::NoSpace));
    // What is replaced makes room for what replaces it.
    rig.set_xattr(file, "user.0", &value).unwrap();
    rig.remove_xattr(file, "user.0").unwrap();
    rig.set_xattr(file, "user.more", &value).unwrap();

    let many = rig.create(ROOT, "many").inode;
    let long = |number: usize| format!("user.{number:0250}");
    let fitting = XATTR_LIST_MAX / 256;
    for number in 0..fitting {
        rig.set_xattr(many, &long(number), b"").unwrap();
    }
    assert_eq!(kind_of(rig.set_xattr(many, &long(fitting), b"")), Some(ErrorKind::NoSpace));
}

#[test]
fn a_capability_goes_with_the_first_change_of_the_file_whoever_makes_it() {
    let mut rig = Rig::new();
    let file = rig.write_new(ROOT, "f", 100);
    assert_eq!(kind_of(rig.set_xattr(file, "security.capability", b"x")), Some(ErrorKind::InvalidArgument));
    let set = |rig: &mut Rig| {
        rig.set_xattr(file, "user.stays", b"1").unwrap();
        assert!(
            rig.set_xattr(file, "security.capability", &capability()).unwrap().xattrs.contains(XattrKinds::CAPABILITY)
        );
    };
    let gone = |rig: &Rig| {
        assert_eq!(rig.attr(file).xattrs, XattrKinds::OTHER);
        assert_eq!(rig.xattr_names(file), ["user.stays"]);
    };
    set(&mut rig);
    rig.chmod(file, 0o755).unwrap();
    assert_eq!(rig.xattr(file, "security.capability").unwrap(), capability());
    let chunk = rig.allocate(1)[0];
    rig.commit_at(file, chunk, 0, 10, true).unwrap();
    gone(&rig);
    set(&mut rig);
    rig.set_attr(file, SetAttr { size_bytes: Some(5), ..SetAttr::default() }).unwrap();
    gone(&rig);
    set(&mut rig);
    rig.set_attr(file, SetAttr { uid: Some(5), ..SetAttr::default() }).unwrap();
    gone(&rig);
}

#[test]
fn an_access_acl_and_the_mode_follow_each_other() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    let set = rig.set_xattr(file, ACCESS, &acl("u::rwx,u:5:rw,g::r,m::rw,o::x")).unwrap();
    assert_eq!((set.mode, set.xattrs), (0o761, XattrKinds::ACCESS_ACL));
    rig.chmod(file, 0o640).unwrap();
    assert_eq!(rig.xattr(file, ACCESS).unwrap(), acl("u::rw,u:5:rw,g::r,m::r,o::"));
    // A list that says no more than a mode is one.
    let minimal = rig.set_xattr(file, ACCESS, &acl("u::rwx,g::rx,o::")).unwrap();
    assert_eq!((minimal.mode, minimal.xattrs), (0o750, XattrKinds::NONE));
    assert_eq!(kind_of(rig.xattr(file, ACCESS)), Some(ErrorKind::NoAttribute));

    rig.set_xattr(file, ACCESS, &acl("u::rwx,u:5:rw,g::r,m::rw,o::x")).unwrap();
    let removed = rig.remove_xattr(file, ACCESS).unwrap();
    assert_eq!((removed.mode, removed.xattrs), (0o761, XattrKinds::NONE));
    // As in Linux: there was none, and there is none.
    assert!(rig.remove_xattr(file, ACCESS).is_ok());
}

#[test]
fn only_the_owner_sets_an_acl_and_loses_set_group_id_by_it() {
    let mut rig = Rig::new();
    let file = rig.create(ROOT, "f").inode;
    let list = acl("u::rwx,u:5:rw,g::r,m::rw,o::rwx");
    rig.chmod(file, 0o777).unwrap();
    rig.become_user(5, 5);
    assert_eq!(kind_of(rig.set_xattr(file, ACCESS, &list)), Some(ErrorKind::NotPermitted));
    rig.become_root();
    rig.set_attr(file, SetAttr { uid: Some(5), gid: Some(9), ..SetAttr::default() }).unwrap();
    rig.chmod(file, 0o2777).unwrap();
    rig.caller = Caller { uid: 5, gid: 5, groups: vec![9] };
    assert_eq!(rig.set_xattr(file, ACCESS, &list).unwrap().mode, 0o2767);
    rig.become_user(5, 5);
    assert_eq!(rig.set_xattr(file, ACCESS, &list).unwrap().mode, 0o767);
    assert_eq!(kind_of(rig.set_xattr(file, DEFAULT, &list)), Some(ErrorKind::AccessDenied));
    assert_eq!(kind_of(rig.set_xattr(file, ACCESS, b"nonsense")), Some(ErrorKind::NotSupported));
    rig.become_root();
    let link = make(&mut rig, ROOT, "l", NewNode::Symlink(b"f".to_vec()), 0, 0).inode;
    assert_eq!(kind_of(rig.set_xattr(link, ACCESS, &list)), Some(ErrorKind::NotSupported));
}

#[test]
fn an_acl_decides_at_every_door() {
    let mut rig = Rig::new();
    let dir = rig.mkdir(ROOT, "d").inode;
    let file = rig.create(dir, "f").inode;
    rig.chmod(dir, 0o700).unwrap();
    rig.become_user(5, 5);
    assert_eq!(kind_of(rig.lookup(dir, "f")), Some(ErrorKind::AccessDenied));
    rig.become_root();
    rig.set_xattr(dir, ACCESS, &acl("u::rwx,u:5:rwx,g::,m::rwx,o::")).unwrap();
    rig.set_xattr(file, ACCESS, &acl("u::rw,u:5:r,g::,g:70:rw,m::rw,o::")).unwrap();
    rig.become_user(5, 5);
    assert_eq!(rig.lookup(dir, "f").unwrap().inode, file);
    assert!(may(&rig, file, 4) && !may(&rig, file, 2));
    let open = |read, write| dfs_proto::msg::meta::Query::Open { inode: file, read, write };
    assert!(rig.query(open(true, false)).is_ok());
    assert_eq!(kind_of(rig.query(open(false, true))), Some(ErrorKind::AccessDenied));
    rig.create(dir, "mine");
    rig.op(Op::Link { inode: file, parent: dir, name: name("second") }).unwrap();
    rig.unlink(dir, "second", None).unwrap();
    rig.mkdir(dir, "sub");
    rig.rmdir(dir, "sub").unwrap();
    let cut = SetAttr { size_bytes: Some(0), ..SetAttr::default() };
    assert_eq!(kind_of(rig.set_attr(file, cut.clone())), Some(ErrorKind::AccessDenied));
    // Of the group that is named, by a supplementary group.
    rig.caller = Caller { uid: 6, gid: 6, groups: vec![1, 70] };
    assert!(may(&rig, file, 6));
    rig.set_attr(file, cut).unwrap();
    assert_eq!(kind_of(rig.lookup(dir, "f")), Some(ErrorKind::AccessDenied));
    // The mask, which chmod sets, takes it away from all of them at once.
    rig.become_root();
    rig.chmod(file, 0o600).unwrap();
    rig.caller = Caller { uid: 6, gid: 6, groups: vec![1, 70] };
    assert!(!may(&rig, file, 4));
}

#[test]
fn what_is_made_in_a_directory_with_a_default_acl_gets_it_instead_of_the_umask() {
    let mut rig = Rig::new();
    let dir = rig.mkdir(ROOT, "d").inode;
    let default = "u::rwx,u:5:rw,g::rx,m::rwx,o::";
    assert_eq!(rig.set_xattr(dir, DEFAULT, &acl(default)).unwrap().mode, 0o755);

    let file = make(&mut rig, dir, "f", NewNode::File, 0o666, 0o077);
    assert_eq!((file.mode, file.xattrs), (0o660, XattrKinds::ACCESS_ACL));
    assert_eq!(rig.xattr(file.inode, ACCESS).unwrap(), acl("u::rw,u:5:rw,g::rx,m::rw,o::"));
    rig.become_user(5, 5);
    assert!(may(&rig, file.inode, 6));
    rig.become_root();

    let sub = make(&mut rig, dir, "sub", NewNode::Directory, 0o777, 0o077);
    assert_eq!((sub.mode, sub.xattrs), (0o770, XattrKinds::ACCESS_ACL.with(XattrKinds::DEFAULT_ACL)));
    assert_eq!(rig.xattr(sub.inode, DEFAULT).unwrap(), acl(default));
    let link = make(&mut rig, dir, "l", NewNode::Symlink(b"f".to_vec()), 0o777, 0o077);
    assert_eq!((link.mode, link.xattrs), (0o777, XattrKinds::NONE));

    // Without a default ACL the umask holds; a minimal one leaves nothing but the mode behind.
    assert_eq!(make(&mut rig, ROOT, "g", NewNode::File, 0o666, 0o027).mode, 0o640);
    rig.set_xattr(dir, DEFAULT, &acl("u::rwx,g::rx,o::r")).unwrap();
    let plain = make(&mut rig, dir, "g", NewNode::File, 0o666, 0o077);
    assert_eq!((plain.mode, plain.xattrs), (0o644, XattrKinds::NONE));
    rig.remove_xattr(dir, DEFAULT).unwrap();
    assert_eq!(make(&mut rig, dir, "h", NewNode::File, 0o666, 0o077).mode, 0o600);
}

#[test]
fn a_directory_takes_its_attributes_along() {
    let mut rig = Rig::new();
    for removed in [true, false] {
        let dir = rig.mkdir(ROOT, "d").inode;
        rig.set_xattr(dir, "user.a", b"1").unwrap();
        rig.set_xattr(dir, DEFAULT, &acl("u::rwx,g::rx,o::r")).unwrap();
        if removed {
            rig.rmdir(ROOT, "d").unwrap();
        } else {
            rig.mkdir(ROOT, "other");
            let mode = dfs_proto::msg::meta::RenameMode::Replace;
            let (from_name, to_name) = (name("other"), name("d"));
            rig.op(Op::Rename { from_parent: ROOT, from_name, to_parent: ROOT, to_name, mode, hold: None }).unwrap();
        }
        let mut left = 0;
        rows::scan_all::<rows::XattrRow>(&rig.state, &mut |_, _| left += 1).unwrap();
        assert_eq!(left, 0);
    }
}

#[test]
fn the_names_of_acls_are_those_of_the_kernel() {
    assert_eq!((ACCESS.as_bytes(), DEFAULT.as_bytes()), (ACCESS_ACL, DEFAULT_ACL));
}

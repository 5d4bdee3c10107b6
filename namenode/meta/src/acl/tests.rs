use proptest::prelude::*;

use super::*;

/// From the short text form: `u::rwx,u:5:r,g::r,g:7:w,m::rw,o::`.
pub(crate) fn acl(text: &str) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for entry in text.split(',').filter(|entry| !entry.is_empty()) {
        let parts: Vec<_> = entry.split(':').collect();
        let [tag, id, rights] = parts[..] else { panic!("{entry}") };
        let tag: u16 = match (tag, id.is_empty()) {
            ("u", true) => 0x01,
            ("u", false) => 0x02,
            ("g", true) => 0x04,
            ("g", false) => 0x08,
            ("m", _) => 0x10,
            ("o", _) => 0x20,
            _ => panic!("{entry}"),
        };
        let value = |c| match c {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            _ => panic!("{entry}"),
        };
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&rights.chars().map(value).sum::<u16>().to_le_bytes());
        bytes.extend_from_slice(&id.parse().unwrap_or(NO_ID).to_le_bytes());
    }
    bytes
}

fn parsed(text: &str) -> Acl {
    Acl::parse(&acl(text)).unwrap().unwrap()
}

fn refused(bytes: &[u8]) -> Option<ErrorKind> {
    Acl::parse(bytes).err().map(|error| error.kind)
}

#[test]
fn lists_that_linux_would_refuse_are_refused() {
    for bad in [
        "u::rwx,g::r",
        "g::r,u::rwx,o::r",
        "u::rwx,u::r,g::r,o::r",
        "u::rwx,u:5:r,g::r,o::r",
        "u::rwx,g::r,g:5:r,o::r",
        "u::rwx,g::r,u:5:r,m::r,o::r",
        "u::rwx,g::r,m::r,g:5:r,o::r",
        "u::rwx,g::r,m::r,m::r,o::r",
        "u::rwx,g::r,o::r,o::r",
        "u::rwx,u:4294967295:r,g::r,m::r,o::r",
    ] {
        assert_eq!(refused(&acl(bad)), Some(ErrorKind::InvalidArgument), "{bad}");
    }
    let good = acl("u::rwx,g::r,o::r");
    assert_eq!(refused(&good[..good.len() - 1]), Some(ErrorKind::InvalidArgument));
    assert_eq!(refused(&[2, 0, 0]), Some(ErrorKind::InvalidArgument));
    assert_eq!(refused(&[1, 0, 0, 0]), Some(ErrorKind::NotSupported));
    assert_eq!(refused(&[0; ACL_MAX + 1]), Some(ErrorKind::TooBig));
    let mut too_many_rights = good.clone();
    too_many_rights[6] = 8;
    assert_eq!(refused(&too_many_rights), Some(ErrorKind::InvalidArgument));
    let mut unknown_tag = good;
    unknown_tag[4] = 0x40;
    assert_eq!(refused(&unknown_tag), Some(ErrorKind::InvalidArgument));
}

#[test]
fn an_empty_list_asks_for_none() {
    assert_eq!(Acl::parse(&[]), Ok(None));
    assert_eq!(Acl::parse(&acl("")), Ok(None));
}

#[test]
fn a_valid_list_comes_back_as_it_was() {
    for text in ["u::rwx,g::r,o::", "u::rw,u:9:r,u:5:w,g::r,g:7:,m::rwx,o::x", "u::,g::rx,m::r,o::"] {
        assert_eq!(parsed(text).encode().unwrap().as_bytes(), acl(text), "{text}");
    }
}

#[test]
fn the_mode_shows_the_mask_for_the_group() {
    assert_eq!(parsed("u::rwx,g::r,o::x").mode(), 0o741);
    assert_eq!(parsed("u::rw,u:5:rwx,g::rwx,m::r,o::").mode(), 0o640);
    assert!(parsed("u::rwx,g::r,o::x").is_minimal());
    assert!(!parsed("u::rwx,g::r,m::r,o::x").is_minimal());
}

#[test]
fn a_chmod_changes_the_mask_and_leaves_the_named() {
    let changed = parsed("u::rwx,u:5:rwx,g::rx,m::rwx,o::r").with_mode(0o640);
    assert_eq!(changed, parsed("u::rw,u:5:rwx,g::rx,m::r,o::"));
    assert_eq!(parsed("u::rwx,g::rx,o::r").with_mode(0o600), parsed("u::rw,g::,o::"));
}

#[test]
fn something_new_gets_what_both_list_and_mode_give() {
    let (mode, acl) = parsed("u::rwx,u:5:rwx,g::rx,m::rwx,o::r").inherited(0o2666);
    assert_eq!((mode, acl), (0o2664, Some(parsed("u::rw,u:5:rwx,g::rx,m::rw,o::r"))));
    assert_eq!(parsed("u::rwx,g::rx,o::").inherited(0o666), (0o640, None));
}

#[test]
fn the_one_entry_that_fits_best_decides() {
    let list = parsed("u::rwx,u:5:rw,u:6:,g::r,g:70:w,g:71:rw,m::rw,o::x");
    let user = |uid, gid, groups: &[u32]| Caller { uid, gid, groups: groups.to_vec() };
    // caller, wanted, permitted; the file's group is 20
    for (caller, wanted, permitted) in [
        (user(5, 20, &[]), 6, true),
        (user(5, 71, &[]), 1, false),
        (user(6, 20, &[71]), 4, false),
        (user(7, 20, &[]), 4, true),
        (user(7, 20, &[]), 2, false),
        (user(7, 20, &[70]), 2, true),
        // No single group gives both.
        (user(7, 20, &[70]), 6, false),
        (user(7, 71, &[]), 6, true),
        (user(7, 70, &[]), 1, false),
        (user(7, 7, &[]), 1, true),
        (user(7, 7, &[]), 4, false),
    ] {
        assert_eq!(list.permits(20, &caller, wanted), permitted, "{caller:?} {wanted}");
    }
    let masked = list.with_mode(0o741);
    assert!(masked.permits(20, &user(5, 5, &[]), 4) && !masked.permits(20, &user(5, 5, &[]), 2));
}

proptest! {
    #[test]
    fn no_bytes_stop_the_parser_and_what_it_takes_it_gives_back(
        version in 1u32..4,
        entries in prop::collection::vec((0u16..0x41, 0u16..10, 0u32..3), 0..7),
        cut in 0usize..3,
    ) {
        let mut bytes = version.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&rights.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes.truncate(bytes.len() - cut);
        if let Ok(Some(acl)) = Acl::parse(&bytes) {
            let again = Acl::parse(acl.encode().unwrap().as_bytes());
            prop_assert_eq!(again, Ok(Some(acl.clone())));
            prop_assert_eq!(acl.with_mode(acl.mode()), acl);
        }
    }

    #[test]
    fn a_minimal_list_permits_what_its_mode_does(mode in 0u16..0o1000, gid in 20u32..22, also in 20u32..22, wanted in 0u8..8) {
        let list = parsed("u::,g::,o::").with_mode(mode);
        prop_assert_eq!(list.mode(), mode);
        let caller = Caller { uid: 7, gid, groups: vec![also] };
        let class = if caller.in_group(20) { mode >> 3 } else { mode };
        prop_assert_eq!(list.permits(20, &caller, wanted), bits(class) & wanted == wanted);
    }
}

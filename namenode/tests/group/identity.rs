//! CONSISTENCY.md, sections 11.3 and 11.4: a namenode that is not what it was takes part in nothing.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use dfs_proto::msg::group::{GroupReply, GroupRequest};
use dfs_proto::{ErrorKind, NodeId, Role, SessionId};

use crate::request;
use crate::support::{Group, kind, mkdir, until};

/// A formed group with something in it; and a follower's place in it.
fn formed() -> (Group, SessionId, usize) {
    let group = Group::formed(3, |_| {});
    let session = group.client(Role::Client, 100).open_session().session;
    make(&group, session, 1..=20);
    until("everybody is remembered", || {
        let members = group.admin().members(group.admin().leader())?;
        members.members.iter().all(|member| member.matched_index > Some(20)).then_some(())
    });
    let follower = (group.admin().leader() + 1) % 3;
    (group, session, follower)
}

fn make(group: &Group, session: SessionId, numbers: std::ops::RangeInclusive<u64>) {
    let client = group.client(Role::Client, 100);
    for number in numbers {
        client.mutate(request(session, number), mkdir(&format!("d{number}"))).unwrap();
    }
}

fn count(group: &Group) -> usize {
    let client = group.client(Role::Client, 100);
    let session = client.open_session();
    client.names(session).len()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn one_that_has_lost_its_disk_is_refused_and_replaced() {
    let (mut group, session, wiped) = formed();
    group.stop(wiped).unwrap();
    fs::remove_dir_all(group.data_dir(wiped)).unwrap();
    group.restart(wiped);
    let reason = group.ended(wiped);
    assert!(reason.contains("disk") && reason.contains("dfs namenode replace"), "{reason}");
    make(&group, session, 21..=30);
    let new = group.spare(|_| {});
    let old = NodeId(group.nodes[wiped].id);
    let replace = GroupRequest::Replace { old, new: group.addr(new) };
    assert_eq!(group.admin().group(replace), Ok(GroupReply::Changed));
    assert_eq!(count(&group), 30);
}

#[test]
fn an_older_copy_of_a_disk_is_refused_also_under_a_new_leader() {
    let (mut group, session, follower) = formed();
    let data = group.data_dir(follower);
    let copied = data.with_extension("copy");
    group.stop(follower).unwrap();
    copy(&data, &copied);
    group.restart(follower);
    make(&group, session, 21..=60);
    let id = group.nodes[follower].id;
    until("it has everything again", || {
        let members = group.admin().members(group.admin().leader())?.members;
        members.iter().any(|member| member.node.0 == id && member.matched_index > Some(60)).then_some(())
    });
    // It tells its floor before it goes; and the others are started anew, so that only what they keep of it is left.
    group.stop(follower).unwrap();
    for other in (0..3).filter(|other| *other != follower) {
        group.stop(other).unwrap();
        group.restart(other);
        group.admin().leader();
    }
    fs::remove_dir_all(&data).unwrap();
    copy(&copied, &data);
    group.restart(follower);
    let reason = group.ended(follower);
    assert!(reason.contains("older") && reason.contains("dfs namenode replace"), "{reason}");
    make(&group, session, 61..=70);
    assert_eq!(count(&group), 70);
}

#[test]
fn two_that_have_lost_their_disks_serve_nothing_and_begin_nothing() {
    let (mut group, _, first) = formed();
    let second = (first + 1) % 3;
    let third = (first + 2) % 3;
    (0..3).for_each(|index| group.stop(index).unwrap());
    for wiped in [first, second] {
        fs::remove_dir_all(group.data_dir(wiped)).unwrap();
        group.restart(wiped);
    }
    // While the third is away they do not know, and do not begin anew without it.
    let members =
        group.nodes.iter().map(|node| dfs_proto::msg::admin::Member { node: NodeId(node.id), addr: node.addr() });
    let initialize = dfs_proto::msg::admin::AdminRequest::Initialize {
        cluster: crate::support::CLUSTER,
        members: members.collect(),
        default_replication: 3,
        min_copies: 2,
    };
    let initialize = dfs_proto::msg::meta::MetaRequest::Admin(initialize);
    let refused = until("an answer", || match group.admin().ask(first, &initialize) {
        Err(dfs_rpc::RpcError::Refused(error)) => Some(error.kind),
        _ => None,
    });
    assert_eq!(refused, ErrorKind::Unavailable);
    group.restart(third);
    for wiped in [first, second] {
        let reason = group.ended(wiped);
        assert!(reason.contains("disk"), "{reason}");
    }
    // It has heard nobody lead, whatever its log says.
    assert_eq!(group.admin().status(third).unwrap().leader, None);
}

#[test]
fn one_that_was_removed_ends_by_itself_when_it_comes_back() {
    let (mut group, session, removed) = formed();
    group.stop(removed).unwrap();
    let remove = GroupRequest::Remove { node: NodeId(group.nodes[removed].id) };
    assert_eq!(group.admin().group(remove), Ok(GroupReply::Changed));
    group.restart(removed);
    let reason = group.ended(removed);
    assert!(reason.contains("removed"), "{reason}");
    make(&group, session, 21..=25);
}

/// Every file below `dir`, largest first.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            if entry.path().is_dir() { dirs.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).unwrap().len()));
    found
}

/// Turns round one byte in the middle.
fn damage(path: &Path) {
    let len = fs::metadata(path).unwrap().len();
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(len / 2)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(len / 2)).unwrap();
    file.write_all(&[!byte[0]]).unwrap();
}

#[test]
fn a_damaged_file_of_the_log_or_the_state_never_makes_a_leader_with_a_hole() {
    let (mut group, session, follower) = formed();
    let data = group.data_dir(follower);
    let copied = data.with_extension("copy");
    // Killed rather than stopped: what matters is in the logs of writes.
    group.kill(follower);
    copy(&data, &copied);
    let kinds = [("log", ".log"), ("log", "MANIFEST"), ("log", "CURRENT"), ("state", ".log"), ("state", "MANIFEST")];
    let mut made = 20;
    for (folder, sign) in kinds {
        fs::remove_dir_all(&data).unwrap();
        copy(&copied, &data);
        let named = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().contains(sign);
        let victim = files(&data.join(folder)).into_iter().find(named).unwrap();
        damage(&victim);
        group.restart(follower);
        let reason = group.ended(follower);
        assert!(reason.contains("dfs namenode replace"), "{folder} {sign}: {reason}");
        made += 1;
        make(&group, session, made..=made);
    }
    assert_eq!(count(&group) as u64, made);
}

#[test]
fn all_states_have_one_hash_and_the_odd_one_out_stops() {
    let (mut group, session, follower) = formed();
    assert_eq!(group.admin().group(GroupRequest::CheckState), Ok(GroupReply::Changed));
    let hashes = |group: &Group| {
        let admin = group.admin();
        let checks: Vec<_> = (0..3).filter_map(|index| admin.members(index)).map(|members| members.checks).collect();
        let last = checks.iter().map(|checks| checks.last().map(|check| check.index)).min()??;
        let at =
            |checks: &Vec<dfs_proto::msg::group::StateCheck>| checks.iter().find(|check| check.index == last).copied();
        let hashes: Vec<_> = checks.iter().map(at).collect::<Option<_>>()?;
        (hashes.len() == 3).then_some(hashes)
    };
    let equal = until("everybody has checked", || hashes(&group));
    assert!(equal.windows(2).all(|pair| pair[0] == pair[1]), "{equal:?}");
    // A follower's state is given the hash of another one.
    group.stop(follower).unwrap();
    {
        let path = group.data_dir(follower).join("state/1");
        let options = rocksdb::Options::default();
        let tables = rocksdb::DB::list_cf(&options, &path).unwrap();
        let db = rocksdb::DB::open_cf(&options, &path, tables).unwrap();
        let meta = db.cf_handle("meta").unwrap();
        let mut hash = db.get_cf(meta, "hash").unwrap().unwrap();
        hash[0] ^= 1;
        db.put_cf(meta, "hash", hash).unwrap();
    }
    group.restart(follower);
    make(&group, session, 21..=22);
    assert_eq!(group.admin().group(GroupRequest::CheckState), Ok(GroupReply::Changed));
    let reason = group.ended(follower);
    assert!(reason.contains("differs") && reason.contains("dfs namenode replace"), "{reason}");
    // And stays away.
    group.restart(follower);
    assert!(group.ended(follower).contains("differs"));
    make(&group, session, 23..=24);
    let again = group.client(Role::Client, 100).mutate(request(session, 25), mkdir("d1"));
    assert_eq!(kind(again), Some(ErrorKind::Exists));
}

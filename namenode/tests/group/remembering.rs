//! Clients that answer look-ups from memory, over a group whose leaders die.

use std::collections::BTreeMap;

use dfs_client::{Dfs, MakeOptions, Options};
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{Caller, ErrorKind, InodeId, Name, SetAttr};

use crate::support::Group;

const STEPS: u64 = 600;
const NAMES: u64 = 6;

fn client(group: &Group, id: u64) -> Dfs {
    group.dfs(id, Options { remember: true, ..Options::default() })
}

/// A number that looks random, and is the same each time.
fn draw(step: u64, what: u64, below: u64) -> u64 {
    let mut bits = (step * 31 + what).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    bits ^= bits >> 29;
    (bits.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33) % below
}

#[test]
fn what_one_client_changes_no_other_sees_as_it_was_whoever_leads() {
    let mut group = Group::formed(3, |_| {});
    let clients = [client(&group, 501), client(&group, 502), client(&group, 503)];
    let names: Vec<Name> = (0..NAMES).map(|n| Name::new(format!("n{n}")).unwrap()).collect();
    // Mode bits by name.
    let mut model: BTreeMap<u64, u16> = BTreeMap::new();
    let mut killed = None;
    for step in 0..STEPS {
        if step % 200 == 100 {
            let leader = group.admin().leader();
            group.kill(leader);
            killed = Some(leader);
        }
        if step % 200 == 150
            && let Some(index) = killed.take()
        {
            group.restart(index);
        }
        let (author, which) = (&clients[draw(step, 1, 3) as usize], draw(step, 2, NAMES));
        let (name, mode) = (&names[which as usize], 0o700 | draw(step, 3, 8) as u16);
        group.runtime.block_on(async {
            match model.get(&which) {
                None => {
                    let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
                    let made = author.make(&Caller::ROOT, InodeId::ROOT, name, NewNode::Directory, mode, options).await;
                    assert!(made.unwrap().created);
                    model.insert(which, mode);
                }
                Some(_) if draw(step, 4, 2) == 0 => {
                    author.rmdir(&Caller::ROOT, InodeId::ROOT, name).await.unwrap();
                    model.remove(&which);
                }
                Some(_) => {
                    let attr = author.lookup(&Caller::ROOT, InodeId::ROOT, name).await.unwrap();
                    let set = SetAttr { mode: Some(mode), ..SetAttr::default() };
                    author.setattr(&Caller::ROOT, attr.inode, set, None).await.unwrap();
                    model.insert(which, mode);
                }
            }
            // Everybody looks at everything, so that all of it is remembered everywhere.
            for (reader, dfs) in clients.iter().enumerate() {
                for (which, name) in names.iter().enumerate() {
                    let found = dfs.lookup(&Caller::ROOT, InodeId::ROOT, name).await;
                    let expected = model.get(&(which as u64));
                    match (found, expected) {
                        (Ok(attr), Some(mode)) => {
                            assert_eq!(attr.mode, *mode, "step {step}, client {reader}, {name}");
                            let again = dfs.getattr(&Caller::ROOT, attr.inode).await.unwrap();
                            assert_eq!(again.mode, *mode, "step {step}, client {reader}, {name} by inode");
                        }
                        (Err(error), None) if error.kind == ErrorKind::NotFound => {}
                        (found, expected) => {
                            panic!("step {step}, client {reader}, {name}: {found:?} and not {expected:?}")
                        }
                    }
                }
            }
        });
    }
    group.runtime.block_on(async {
        for dfs in clients {
            dfs.shutdown().await.unwrap();
        }
    });
}

#[test]
fn a_directory_that_its_maker_knows_whole_has_what_others_put_into_it() {
    let mut group = Group::formed(3, |_| {});
    let clients = [client(&group, 501), client(&group, 502)];
    let names: Vec<Name> = (0..NAMES).map(|n| Name::new(format!("n{n}")).unwrap()).collect();
    let mut directory = InodeId::ROOT;
    let mut model = [false; NAMES as usize];
    for step in 0..STEPS {
        if step == STEPS / 2 {
            let leader = group.admin().leader();
            group.kill(leader);
        }
        group.runtime.block_on(async {
            if step % 20 == 0 {
                let (author, name) = (&clients[draw(step, 5, 2) as usize], Name::new(format!("d{step}")).unwrap());
                let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
                let made = author.make(&Caller::ROOT, InodeId::ROOT, &name, NewNode::Directory, 0o755, options).await;
                directory = made.unwrap().attr.inode;
                model = [false; NAMES as usize];
            }
            let (author, which) = (&clients[draw(step, 1, 2) as usize], draw(step, 2, NAMES) as usize);
            match model[which] {
                true => author.rmdir(&Caller::ROOT, directory, &names[which]).await.unwrap(),
                false => {
                    let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
                    let name = &names[which];
                    let made = author.make(&Caller::ROOT, directory, name, NewNode::Directory, 0o755, options).await;
                    assert!(made.unwrap().created);
                }
            }
            model[which] = !model[which];
            for (reader, dfs) in clients.iter().enumerate() {
                for (name, there) in names.iter().zip(model) {
                    let found = dfs.lookup(&Caller::ROOT, directory, name).await;
                    assert_eq!(found.is_ok(), there, "step {step}, client {reader}, {name}: {found:?}");
                }
            }
        });
    }
    group.runtime.block_on(async {
        for dfs in clients {
            dfs.shutdown().await.unwrap();
        }
    });
}

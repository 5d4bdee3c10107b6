//! The leader's side of compaction, with datanodes that only talk.

use dfs_proto::msg::meta::Op;
use dfs_proto::msg::node::Order;
use dfs_proto::{ChunkId, Epoch, RequestId, Role, SessionId, SetAttr};

use crate::datanodes::{Datanode, File, info, write_file_of};
use crate::support::{Client, Group, until};

/// Bytes of the chunk that is mostly dead, and of what lives in it.
const LEN: u32 = 8 << 20;
const ALIVE: u32 = 1000;

fn group(count: usize) -> Group {
    Group::formed(count, |config| config.timers.compaction_after_ms = 100)
}

fn datanodes(group: &Group) -> Vec<Datanode<'_>> {
    (11..=13).map(|id| Datanode::new(group, id)).collect()
}

/// A file of which the front is all that is left.
fn mostly_dead(client: &Client<'_>, session: SessionId, datanodes: &mut [Datanode<'_>]) -> File {
    let file = write_file_of(client, session, datanodes, LEN);
    let set = SetAttr { size_bytes: Some(u64::from(ALIVE)), ..SetAttr::default() };
    let cut = Op::SetAttr { inode: file.inode, set, grant: None };
    client.mutate(RequestId { session, number: 100 }, cut).unwrap();
    file
}

/// The chunk that a node was told to gather last.
fn ordered(node: &Datanode<'_>) -> Option<ChunkId> {
    node.orders.iter().rev().find_map(|order| match order {
        Order::Gather { chunk, .. } => Some(*chunk),
        _ => None,
    })
}

fn beat(client: &Client<'_>, datanodes: &mut [Datanode<'_>]) {
    let leader = client.leader();
    datanodes.iter_mut().for_each(|node| node.beat(leader));
}

#[test]
fn what_lives_in_a_mostly_dead_chunk_is_gathered_and_the_old_one_goes() {
    let group = group(1);
    let client = group.client(Role::Client, 100);
    let mut datanodes = datanodes(&group);
    let file = mostly_dead(&client, client.open_session().session, &mut datanodes);
    let old = file.chunk.chunk;
    // One of them takes its time: as long as it does nothing is named elsewhere.
    datanodes[2].gathers = None;
    until("all are told to gather the chunk", || {
        beat(&client, &mut datanodes);
        datanodes.iter().all(|node| ordered(node).is_some()).then_some(())
    });
    let new = ordered(&datanodes[0]).unwrap();
    assert_eq!(info(&client, file.inode).chunks[0].chunk, old);
    assert_eq!(client.status(0).unwrap().compaction.under_way, 1);

    datanodes[2].gathers = Some(Ok(7));
    until("the file is in the new chunk and the old one is gone", || {
        beat(&client, &mut datanodes);
        let moved = info(&client, file.inode).chunks[0].chunk == new;
        (moved && datanodes.iter().all(|node| !node.sealed.contains_key(&old))).then_some(())
    });
    let chunk = &info(&client, file.inode).chunks[0];
    assert_eq!((chunk.len, chunk.live_bytes, chunk.epoch, chunk.sealed), (ALIVE, u64::from(ALIVE), Epoch(1), true));
    until("everything agrees", || {
        beat(&client, &mut datanodes);
        let status = client.status(0)?;
        let agree = status.datanodes.iter().all(|node| node.digest_agrees);
        (agree && status.chunks.total == 1 && status.chunks.healthy == 1).then_some(())
    });
    assert!(datanodes.iter().all(|node| node.sealed.get(&new) == Some(&(Epoch(1), ALIVE))));
    let compaction = client.status(0).unwrap().compaction;
    assert_eq!((compaction.under_way, compaction.done), (0, 1));
    assert_eq!(compaction.freed_bytes, u64::from(LEN - ALIVE));
}

#[test]
fn a_gathering_that_fails_or_differs_is_given_up_and_nothing_is_lost() {
    for answer in [Err("the disk is full".to_string()), Ok(8)] {
        let group = group(1);
        let client = group.client(Role::Client, 100);
        let mut datanodes = datanodes(&group);
        let file = mostly_dead(&client, client.open_session().session, &mut datanodes);
        datanodes[1].gathers = Some(answer.clone());
        until("the chunk that was to be gathered is deleted again", || {
            beat(&client, &mut datanodes);
            let new = ordered(&datanodes[0])?;
            let deleted = |order: &Order| matches!(order, Order::Delete { chunk, .. } if *chunk == new);
            let told = |node: &Datanode<'_>| node.orders.iter().any(deleted) && !node.sealed.contains_key(&new);
            datanodes.iter().all(told).then_some(())
        });
        let chunk = &info(&client, file.inode).chunks[0];
        assert_eq!((chunk.chunk, chunk.len), (file.chunk.chunk, LEN), "{answer:?}");
        assert!(datanodes.iter().all(|node| node.sealed.contains_key(&file.chunk.chunk)));
        assert_eq!(client.status(0).unwrap().compaction.done, 0);
    }
}

#[test]
fn the_next_leader_goes_on_with_a_compaction() {
    let mut group = group(3);
    let (leader, old, inode, new);
    {
        let client = group.client(Role::Client, 100);
        let mut datanodes = datanodes(&group);
        let file = mostly_dead(&client, client.open_session().session, &mut datanodes);
        (old, inode) = (file.chunk.chunk, file.inode);
        datanodes.iter_mut().for_each(|node| node.gathers = None);
        new = until("all are told to gather the chunk", || {
            beat(&client, &mut datanodes);
            datanodes.iter().map(ordered).min().flatten()
        });
        leader = client.leader();
    }
    group.kill(leader);
    let client = group.client(Role::Client, 100);
    let mut datanodes = datanodes(&group);
    for node in &mut datanodes {
        node.sealed.insert(old, (Epoch(2), LEN));
    }
    until("the file is in the chunk that the leader before had begun", || {
        beat(&client, &mut datanodes);
        (info(&client, inode).chunks[0].chunk == new).then_some(())
    });
    assert!(datanodes.iter().all(|node| ordered(node) == Some(new)));
}

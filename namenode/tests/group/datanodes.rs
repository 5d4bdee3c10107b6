//! The namenode's side of placement, seals, digests and repair, with datanodes that only talk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dfs_proto::chunk::{digest_shard, replica_digest};
use dfs_proto::limits::DIGEST_SHARDS;
use dfs_proto::msg::admin::{AdminReply, AdminRequest, DatanodeStatus, Duty, DutyChange, DutyPlan, FileInfo, Liveness};
use dfs_proto::msg::meta::{ChunkCommit, ChunkLocation, FileCommit, MetaReply, MetaRequest, NewNode, Op, OpReply};
use dfs_proto::msg::node::{Heartbeat, NodeRequest, Order, Outcome, Pace, ReplicaReport, ScrubStatus, VolumeStatus};
use dfs_proto::{
    Access, ChunkId, Epoch, ErrorKind, Extent, InodeId, NodeId, RequestId, Role, SessionId, Timestamp, WireError,
};

use dfs_rpc::RpcError;

use crate::support::{Client, Group, make, until};

const LEN: u32 = 4096;

/// A datanode without a disk: remembers replicas and does what it is told.
pub struct Datanode<'g> {
    pub id: u64,
    client: Client<'g>,
    pub sealed: BTreeMap<ChunkId, (Epoch, u32)>,
    outcomes: Vec<Outcome>,
    /// What its disk has kept of each chunk that it has not sealed.
    kept: u32,
    /// What it answers when it is to gather a chunk; nothing if that is `None`.
    pub gathers: Option<Result<u64, String>>,
    /// Every order that came.
    pub orders: Vec<Order>,
    pace: Pace,
    /// Of the hundred that its disk has.
    pub free_gib: u64,
}

impl<'g> Datanode<'g> {
    pub fn new(group: &'g Group, id: u64) -> Datanode<'g> {
        let client = group.client(Role::Datanode, id);
        Datanode {
            id,
            client,
            sealed: BTreeMap::new(),
            outcomes: Vec::new(),
            kept: u32::MAX,
            gathers: Some(Ok(7)),
            orders: Vec::new(),
            pace: Pace::default(),
            free_gib: 90,
        }
    }

    fn digests(&self) -> Vec<u64> {
        let mut digests = vec![0; DIGEST_SHARDS];
        for (chunk, (epoch, len)) in &self.sealed {
            digests[digest_shard(*chunk)] ^= replica_digest(*chunk, *epoch, *len);
        }
        digests
    }

    fn compose(&self) -> Heartbeat {
        let volume = VolumeStatus {
            path: "/disk".into(),
            total_bytes: 100 << 30,
            free_bytes: self.free_gib << 30,
            chunks: self.sealed.len() as u64,
            failed: None,
            draining: false,
        };
        Heartbeat {
            boot: 1,
            addr: SocketAddr::from(([127, 0, 0, 1], 20_000 + self.id as u16)),
            volumes: vec![volume],
            digests: self.digests(),
            open: Vec::new(),
            outcomes: self.outcomes.clone(),
            copying: Vec::new(),
            scanned: true,
            leaving: false,
            now: Timestamp::default(),
            skew: None,
            scrub: ScrubStatus::default(),
            pace: self.pace,
        }
    }

    /// One heartbeat to one namenode; carries out what comes back.
    pub fn beat(&mut self, index: usize) {
        let Some(reply) = self.client.heartbeat(index, self.compose()) else { return };
        if !reply.leading {
            assert!(reply.orders.is_empty());
            return;
        }
        self.outcomes.clear();
        for order in &reply.orders {
            match order {
                Order::Seal { chunk, epoch, len } if self.kept < *len && !self.sealed.contains_key(chunk) => {
                    self.outcomes.push(Outcome::Short { chunk: *chunk, epoch: *epoch, len: self.kept });
                }
                Order::Seal { chunk, epoch, len } => {
                    self.sealed.insert(*chunk, (*epoch, *len));
                }
                Order::Delete { chunk, epoch } => {
                    self.sealed.remove(chunk);
                    self.outcomes.push(Outcome::Deleted { chunk: *chunk, epoch: *epoch });
                }
                Order::Copy { chunk, epoch, len, sources, .. } if self.kept < LEN && *len == LEN => {
                    let bad_sources = sources.iter().map(|source| source.node).collect();
                    let (chunk, epoch, reason) = (*chunk, *epoch, "it ends early".into());
                    self.outcomes.push(Outcome::CopyFailed { chunk, epoch, reason, bad_sources });
                }
                Order::Copy { chunk, epoch, len, capability, .. } => {
                    let good = capability.check(&reply.keys, *chunk, Access::Read, Timestamp::default());
                    assert_eq!((good, capability.holder), (Ok(()), NodeId(self.id)));
                    self.sealed.insert(*chunk, (*epoch, *len));
                    self.outcomes.push(Outcome::Copied { chunk: *chunk, epoch: *epoch, len: *len });
                }
                Order::Verify { chunk, epoch, len } => self.outcomes.push(match self.sealed.contains_key(chunk) {
                    true => Outcome::Verified { chunk: *chunk, epoch: *epoch, len: *len },
                    false if self.kept < *len => Outcome::Short { chunk: *chunk, epoch: *epoch, len: self.kept },
                    false => Outcome::Bad { chunk: *chunk, epoch: *epoch, reason: "missing".into() },
                }),
                Order::Gather { chunk, epoch, pieces, sources } => {
                    for source in sources {
                        let good =
                            source.capability.check(&reply.keys, source.chunk, Access::Read, Timestamp::default());
                        assert_eq!((good, source.capability.holder), (Ok(()), NodeId(self.id)));
                        assert_eq!(source.replicas.len(), 3);
                    }
                    let (chunk, epoch) = (*chunk, *epoch);
                    match self.gathers.clone() {
                        Some(Ok(hash)) => {
                            self.sealed.insert(chunk, (epoch, pieces.iter().map(|piece| piece.len).sum()));
                            self.outcomes.push(Outcome::Gathered { chunk, epoch, hash });
                        }
                        Some(Err(reason)) => self.outcomes.push(Outcome::GatherFailed { chunk, epoch, reason }),
                        None => {}
                    }
                }
                Order::EndAppends { .. } | Order::Scrub { .. } => {}
            }
        }
        self.orders.extend(reply.orders);
        for shard in reply.want_shards {
            self.report(index, shard);
        }
    }

    /// Whether a heartbeat is refused.
    fn refused(&mut self, index: usize) -> bool {
        let heartbeat = self.compose();
        let request = MetaRequest::Node(NodeRequest::Heartbeat(Box::new(heartbeat)));
        matches!(self.client.ask(index, &request), Err(RpcError::Refused(error)) if error.kind == ErrorKind::Forbidden)
    }

    fn report(&self, index: usize, shard: u16) {
        let mine = self.sealed.iter().filter(|(chunk, _)| digest_shard(**chunk) == usize::from(shard));
        let replicas: Vec<_> = mine
            .map(|(chunk, (epoch, len))| ReplicaReport { chunk: *chunk, epoch: *epoch, len: *len, sealed: true })
            .collect();
        let digest = self.digests()[usize::from(shard)];
        let report = NodeRequest::ShardReport { shard, digest, page: 0, last: true, replicas };
        self.client.ask(index, &MetaRequest::Node(report)).unwrap();
    }
}

/// A file of one sealed chunk.
pub struct File {
    pub inode: InodeId,
    pub chunk: ChunkLocation,
}

pub fn write_file(client: &Client<'_>, datanodes: &mut [Datanode<'_>]) -> File {
    write_file_of(client, client.open_session().session, datanodes, LEN)
}

/// In one chunk of so many bytes.
pub fn write_file_of(client: &Client<'_>, session: SessionId, datanodes: &mut [Datanode<'_>], len: u32) -> File {
    let leader = client.leader();
    let mut number = 0;
    let mut next_id = || {
        number += 1;
        RequestId { session, number }
    };
    let Ok(OpReply::Made { attr, grant: Some(grant), .. }) = client.mutate(next_id(), make("f", NewNode::File)) else {
        panic!("no file");
    };
    let chunk = until("three datanodes are known", || {
        datanodes.iter_mut().for_each(|node| node.beat(leader));
        let allocate = Op::AllocateChunks { count: 1, replication: 3, avoid: Vec::new() };
        // Each try is a request of its own: a refusal would be remembered.
        match client.mutate(next_id(), allocate) {
            Ok(OpReply::Chunks(mut chunks)) => chunks.pop().filter(|chunk| chunk.replicas.len() == 3),
            _ => None,
        }
    });
    assert!(chunk.capability.as_ref().is_some_and(|capability| capability.access == Access::Append));
    let replicas = chunk.replicas.iter().map(|at| at.node).collect();
    let seal = ChunkCommit { chunk: chunk.chunk, epoch: chunk.epoch, len, replicas, seal: true };
    let extent = Extent { file_offset: 0, chunk: chunk.chunk, chunk_offset: 0, len };
    let file = FileCommit { inode: attr.inode, grant, extents: vec![extent], mtime: None, append: false };
    client.mutate(next_id(), Op::Commit { chunks: vec![seal], files: vec![file] }).unwrap();
    File { inode: attr.inode, chunk }
}

pub fn info(client: &Client<'_>, inode: InodeId) -> FileInfo {
    match client.ask_leader(&MetaRequest::Admin(AdminRequest::FileInfo { inode })).unwrap() {
        MetaReply::Admin(reply) => match *reply {
            AdminReply::FileInfo(info) => info,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

pub fn live_replicas(client: &Client<'_>, inode: InodeId) -> Vec<NodeId> {
    let replicas = info(client, inode).chunks.remove(0).replicas;
    replicas.into_iter().filter(|(_, liveness)| *liveness == Liveness::Live).map(|(node, _)| node).collect()
}

pub fn group() -> Group {
    Group::formed(1, |config| {
        config.timers.datanode_suspect_ms = 500;
        config.timers.datanode_dead_ms = 2000;
    })
}

#[test]
fn a_dead_datanodes_replicas_are_copied_and_the_returned_one_loses_what_is_superfluous() {
    let group = group();
    let client = group.client(Role::Client, 100);
    let mut datanodes: Vec<_> = (11..=14).map(|id| Datanode::new(&group, id)).collect();
    let file = write_file(&client, &mut datanodes);
    until("the seal has reached every replica", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        (datanodes.iter().filter(|node| node.sealed.contains_key(&file.chunk.chunk)).count() == 3).then_some(())
    });
    until("all digests agree", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let status = client.status(0)?;
        let healthy = status.chunks.healthy == 1 && status.datanodes.iter().all(|node| node.digest_agrees);
        healthy.then_some(())
    });

    let lost = datanodes.iter().position(|node| node.sealed.contains_key(&file.chunk.chunk)).unwrap();
    let mut silent = datanodes.remove(lost);
    until("three live replicas without the silent node", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let live = live_replicas(&client, file.inode);
        (live.len() == 3 && !live.contains(&NodeId(silent.id))).then_some(())
    });
    assert!(datanodes.iter().any(|node| node.orders.iter().any(|order| matches!(order, Order::Copy { .. }))));

    until("the superfluous replica is gone", || {
        silent.beat(0);
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let holders = datanodes.iter().chain([&silent]).filter(|node| node.sealed.contains_key(&file.chunk.chunk));
        (holders.count() == 3 && live_replicas(&client, file.inode).len() == 3).then_some(())
    });
}

#[test]
fn a_replica_that_vanished_is_found_by_its_digest_and_made_again() {
    let group = group();
    let client = group.client(Role::Client, 100);
    let mut datanodes: Vec<_> = (11..=14).map(|id| Datanode::new(&group, id)).collect();
    let file = write_file(&client, &mut datanodes);
    until("the seal has reached every replica", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        (datanodes.iter().filter(|node| node.sealed.contains_key(&file.chunk.chunk)).count() == 3).then_some(())
    });
    let robbed = datanodes.iter_mut().find(|node| node.sealed.contains_key(&file.chunk.chunk)).unwrap();
    robbed.sealed.clear();
    until("three replicas that exist", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let counted = live_replicas(&client, file.inode);
        let holds =
            |node: &NodeId| datanodes.iter().any(|own| own.id == node.0 && own.sealed.contains_key(&file.chunk.chunk));
        (counted.len() == 3 && counted.iter().all(holds)).then_some(())
    });
}

#[test]
fn a_chunk_whose_end_no_disk_has_is_cut_once_all_have_said_so_and_gets_its_copies() {
    let group = group();
    let client = group.client(Role::Client, 100);
    let mut datanodes: Vec<_> = (11..=14).map(|id| Datanode::new(&group, id)).collect();
    // The power goes between the commit and the seal: one has kept more than the others.
    datanodes.iter_mut().for_each(|node| node.kept = 100 * node.id as u32);
    let file = write_file(&client, &mut datanodes);
    let holders: Vec<u64> = file.chunk.replicas.iter().map(|at| at.node.0).collect();
    let longest = *holders.iter().max().unwrap();
    let at = datanodes.iter().position(|node| node.id == longest).unwrap();
    let mut last = datanodes.remove(at);
    until("all but one have said that they are short", || {
        last.beat(0);
        last.outcomes.retain(|outcome| !matches!(outcome, Outcome::Short { .. }));
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let damaged = info(&client, file.inode).chunks[0].damaged.len();
        (damaged == 2).then_some(())
    });
    let chunk = &info(&client, file.inode).chunks[0];
    assert_eq!((chunk.len, chunk.lost, chunk.epoch), (LEN, 0, Epoch(2)), "nothing is cut before the last has spoken");

    datanodes.push(last);
    let end = 100 * longest as u32;
    until("three copies of what is left", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let chunk = &info(&client, file.inode).chunks[0];
        let status = client.status(0)?;
        let agree = status.datanodes.iter().all(|node| node.digest_agrees);
        (chunk.lost > 0 && chunk.damaged.is_empty() && status.chunks.healthy == 1 && agree).then_some(())
    });
    let chunk = &info(&client, file.inode).chunks[0];
    assert_eq!((chunk.len, chunk.lost, chunk.epoch, chunk.replicas.len()), (end, LEN - end, Epoch(3), 3));
    let whole = datanodes.iter().filter(|node| node.sealed.get(&file.chunk.chunk) == Some(&(Epoch(3), end)));
    assert_eq!(whole.count(), 3);
    let status = client.status(0).unwrap();
    assert_eq!((status.chunks.lost_ends, status.chunks.missing, status.repair.damaged), (1, 0, 0));
    assert_eq!(status.repair.unattended, 0);
}

#[test]
fn an_unknown_replica_of_a_deleted_chunk_is_deleted_and_one_never_heard_of_is_not() {
    let group = group();
    let client = group.client(Role::Client, 100);
    let mut datanodes: Vec<_> = (11..=14).map(|id| Datanode::new(&group, id)).collect();
    let file = write_file(&client, &mut datanodes);
    let session = client.open_session().session;
    let name = dfs_proto::Name::new("f").unwrap();
    let unlink = Op::Unlink { parent: InodeId::ROOT, name, hold: None };
    client.mutate(RequestId { session, number: 1 }, unlink).unwrap();
    // A copy that turns up after its chunk was deleted, and one of a chunk from nowhere.
    let nowhere = ChunkId(1 << 40);
    datanodes[0].sealed.insert(file.chunk.chunk, (Epoch(1), LEN));
    datanodes[0].sealed.insert(nowhere, (Epoch(1), LEN));
    until("the deleted chunk's replica is gone", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let none = datanodes.iter().all(|node| !node.sealed.contains_key(&file.chunk.chunk));
        let asked = datanodes[0].orders.iter().any(|order| matches!(order, Order::Delete { .. }));
        (none && asked).then_some(())
    });
    assert!(datanodes[0].sealed.contains_key(&nowhere));
}

#[test]
fn writers_leave_a_slow_datanode_and_new_chunks_go_elsewhere() {
    let group = group();
    let client = group.client(Role::Client, 100);
    let mut datanodes: Vec<_> = (11..=14).map(|id| Datanode::new(&group, id)).collect();
    let session = client.open_session().session;
    let mut number = 0;
    let mut allocate = |count| {
        number += 1;
        let op = Op::AllocateChunks { count, replication: 3, avoid: Vec::new() };
        match client.mutate(RequestId { session, number }, op) {
            Ok(OpReply::Chunks(chunks)) => Some(chunks),
            _ => None,
        }
    };
    let on = |chunk: &ChunkLocation, node: u64| chunk.replicas.iter().any(|at| at.node.0 == node);
    until("all four are known", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        (client.status(0)?.datanodes.iter().filter(|node| node.liveness == Liveness::Live).count() == 4).then_some(())
    });
    let chunks = until("an open chunk is on the one that will be slow", || {
        allocate(4).filter(|chunks| chunks.iter().any(|chunk| on(chunk, 11)))
    });

    let ended = |node: &Datanode<'_>| -> BTreeSet<ChunkId> {
        let chunk = |order: &Order| match order {
            Order::EndAppends { chunk, .. } => Some(*chunk),
            _ => None,
        };
        node.orders.iter().filter_map(chunk).collect()
    };
    for node in &mut datanodes {
        node.pace = Pace { syncs: 20, sync_ms: if node.id == 11 { 300 } else { 4 } };
    }
    let affected: BTreeSet<ChunkId> = chunks.iter().filter(|chunk| on(chunk, 11)).map(|chunk| chunk.chunk).collect();
    until("its writers are asked to go on elsewhere", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        ended(&datanodes[0]).is_superset(&affected).then_some(())
    });
    assert!(datanodes[1..].iter().all(|node| ended(node).is_empty()));
    let slow: Vec<_> =
        client.status(0).unwrap().datanodes.iter().filter(|node| node.slow).map(|node| node.node).collect();
    assert_eq!(slow, [NodeId(11)]);
    let elsewhere = allocate(4).unwrap();
    assert!(elsewhere.iter().all(|chunk| chunk.replicas.len() == 3 && !on(chunk, 11)), "{elsewhere:?}");

    // Without a fourth a slow copy is better than none, and nobody is sent away for nothing.
    let dead = datanodes.pop().unwrap();
    until("one has died", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let status = client.status(0)?;
        let gone = |node: &DatanodeStatus| node.node.0 == dead.id && node.liveness == Liveness::Dead;
        status.datanodes.iter().any(gone).then_some(())
    });
    let again = allocate(1).unwrap();
    assert!(on(&again[0], 11), "{again:?}");
}

fn change_duty(admin: &Client<'_>, node: u64, change: DutyChange, dry_run: bool) -> Result<DutyPlan, WireError> {
    let request = AdminRequest::ChangeDuty { node: NodeId(node), change, dry_run };
    match admin.ask_leader(&MetaRequest::Admin(request))? {
        MetaReply::Admin(reply) => match *reply {
            AdminReply::DutyPlan(plan) => Ok(*plan),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn duty(client: &Client<'_>, node: u64) -> Option<Duty> {
    let status = client.status(client.leader())?;
    status.datanodes.iter().find(|status| status.node == NodeId(node)).map(|status| status.duty)
}

#[test]
fn a_decommissioned_node_is_emptied_before_its_replicas_stop_counting_and_cannot_come_back_once_removed() {
    let group = group();
    let (client, admin) = (group.client(Role::Client, 100), group.admin());
    let mut datanodes: Vec<_> = (11..=14).map(|id| Datanode::new(&group, id)).collect();
    let file = write_file(&client, &mut datanodes);
    until("the seal has reached every replica", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        (datanodes.iter().filter(|node| node.sealed.contains_key(&file.chunk.chunk)).count() == 3).then_some(())
    });
    let leaver = datanodes.iter().find(|node| node.sealed.contains_key(&file.chunk.chunk)).unwrap().id;
    // In service and alive: not to be removed.
    assert_eq!(change_duty(&admin, leaver, DutyChange::Remove, false).unwrap_err().kind, ErrorKind::InvalidArgument);
    let plan = change_duty(&admin, leaver, DutyChange::Decommission, true).unwrap();
    assert_eq!((plan.chunks, plan.bytes, plan.stuck, plan.lost), (1, u64::from(LEN), 0, 0));
    assert_eq!(duty(&client, leaver), Some(Duty::Serving));
    // A client may not.
    assert_eq!(change_duty(&client, leaver, DutyChange::Decommission, false).unwrap_err().kind, ErrorKind::Forbidden);

    change_duty(&admin, leaver, DutyChange::Decommission, false).unwrap();
    until("the node is decommissioned", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        // At no moment are there fewer than three good replicas that count.
        let counted = live_replicas(&client, file.inode);
        assert!(counted.len() >= 3, "{counted:?}");
        matches!(duty(&client, leaver), Some(Duty::Decommissioned { .. })).then_some(())
    });
    assert!(!live_replicas(&client, file.inode).contains(&NodeId(leaver)));

    change_duty(&admin, leaver, DutyChange::Remove, false).unwrap();
    let status = client.status(client.leader()).unwrap();
    assert_eq!((status.removed, status.datanodes.len()), (vec![NodeId(leaver)], 3));
    let gone = datanodes.iter_mut().find(|node| node.id == leaver).unwrap();
    assert!(gone.refused(0), "a removed node is heard");
}

#[test]
fn a_decommission_goes_on_under_the_next_leader_and_can_be_cancelled() {
    let mut group = Group::formed(3, |config| {
        config.timers.datanode_suspect_ms = 2000;
        config.timers.datanode_dead_ms = 20_000;
    });
    {
        let (client, admin) = (group.client(Role::Client, 100), group.admin());
        // As many nodes as copies: nothing can move, so the node stays on its way.
        let mut datanodes: Vec<_> = (11..=13).map(|id| Datanode::new(&group, id)).collect();
        let beat_all = |datanodes: &mut Vec<Datanode<'_>>| {
            datanodes.iter_mut().for_each(|node| (0..3).for_each(|index| node.beat(index)));
        };
        until("the datanodes are registered", || {
            beat_all(&mut datanodes);
            (client.status(client.leader())?.datanodes.len() == 3).then_some(())
        });
        let session = client.open_session().session;
        let made = client.mutate(RequestId { session, number: 1 }, make("f", NewNode::File)).unwrap();
        let OpReply::Made { attr, grant: Some(grant), .. } = made else { panic!("{made:?}") };
        let allocate = Op::AllocateChunks { count: 1, replication: 3, avoid: Vec::new() };
        let Ok(OpReply::Chunks(chunks)) = client.mutate(RequestId { session, number: 2 }, allocate) else {
            panic!("no chunk");
        };
        let replicas = chunks[0].replicas.iter().map(|at| at.node).collect();
        let (chunk, epoch) = (chunks[0].chunk, chunks[0].epoch);
        let seal = ChunkCommit { chunk, epoch, len: LEN, replicas, seal: true };
        let extent = Extent { file_offset: 0, chunk, chunk_offset: 0, len: LEN };
        let file = FileCommit { inode: attr.inode, grant, extents: vec![extent], mtime: None, append: false };
        let commit = Op::Commit { chunks: vec![seal], files: vec![file] };
        client.mutate(RequestId { session, number: 3 }, commit).unwrap();
        let plan = change_duty(&admin, 12, DutyChange::Decommission, false).unwrap();
        assert_eq!((plan.chunks, plan.stuck), (1, 1));
    }
    let leader = group.admin().leader();
    group.kill(leader);
    let (client, admin) = (group.client(Role::Client, 100), group.admin());
    // A namenode that has just been elected may still have to apply what was committed before it.
    let node = until("the next leader has the duty from the log", || {
        let status = client.status(client.leader())?;
        let decommissioning = |duty| matches!(duty, Duty::Decommissioning { chunks: 1, .. });
        status.datanodes.into_iter().find(|node| node.node == NodeId(12) && decommissioning(node.duty))
    });
    assert_eq!(node.drain.map(|drain| (drain.chunks, drain.bytes)), Some((1, u64::from(LEN))));
    change_duty(&admin, 12, DutyChange::Recommission, false).unwrap();
    assert_eq!(duty(&client, 12), Some(Duty::Serving));
}

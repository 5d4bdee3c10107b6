//! Replicas of sealed chunks: a repaired one counts from here on, a lost or superfluous one no longer; and where the
//! chunk ends if none of them has its end.

use std::collections::BTreeSet;

use dfs_proto::{ChunkId, Epoch, ErrorKind, NodeId};

use crate::chunks;
use crate::command::Reply;
use crate::duty;
use crate::rows::{self, ChunkRow};
use crate::tx::{Failure, Tx, refuse};

/// A copy on `node` was verified against `epoch` and `len`. It counts only if the chunk is still that.
pub(crate) fn add(tx: &mut Tx<'_>, chunk: ChunkId, epoch: Epoch, len: u32, node: NodeId) -> Result<Reply, Failure> {
    let Some(row) = rows::chunk(tx.view(), chunk)? else {
        return Err(refuse(ErrorKind::Stale, format!("chunk {chunk} no longer exists")));
    };
    require_sealed_at(&row, chunk, epoch)?;
    if row.len != len {
        let message = format!("the copy of chunk {chunk} has {len} bytes, and {} are committed", row.len);
        return Err(refuse(ErrorKind::StaleEpoch, message));
    }
    if rows::datanode(tx.view(), node)?.is_none() {
        return Err(refuse(ErrorKind::InvalidArgument, format!("node {node} is not registered")));
    }
    // A copy that was ordered before the node was told to leave: it would have to be copied again.
    if duty::leaves(&rows::duty(tx.view(), node)?) && !row.replicas.contains(&node) {
        return Err(refuse(ErrorKind::NotPermitted, format!("node {node} is to leave and takes no replicas")));
    }
    if !row.replicas.contains(&node) {
        chunks::add_replica(tx, chunk, row, node)?;
    }
    Ok(Reply::Done)
}

/// The last replica always stays in the row, however bad: it tells where to look for what is left.
pub(crate) fn drop(tx: &mut Tx<'_>, chunk: ChunkId, epoch: Epoch, node: NodeId) -> Result<Reply, Failure> {
    let Some(row) = rows::chunk(tx.view(), chunk)?.filter(|row| row.replicas.contains(&node)) else {
        return Ok(Reply::Done);
    };
    require_sealed_at(&row, chunk, epoch)?;
    if row.replicas.len() == 1 {
        let message = format!("node {node} has the only replica of chunk {chunk}");
        return Err(refuse(ErrorKind::NotPermitted, message));
    }
    chunks::drop_replica(tx, chunk, row, node)?;
    Ok(Reply::Done)
}

/// What no disk has is lost: the chunk ends before it. The replicas must be those that the proposer has judged: one that
/// has come to count since may have the end.
pub(crate) fn cut(
    tx: &mut Tx<'_>,
    chunk: ChunkId,
    epoch: Epoch,
    len: u32,
    replicas: &[NodeId],
) -> Result<Reply, Failure> {
    let Some(row) = rows::chunk(tx.view(), chunk)? else {
        return Err(refuse(ErrorKind::Stale, format!("chunk {chunk} no longer exists")));
    };
    require_sealed_at(&row, chunk, epoch)?;
    if len >= row.len {
        let message = format!("chunk {chunk} has {} bytes: to end it at {len} cuts nothing off", row.len);
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
    if set(replicas) != set(&row.replicas) {
        let message = format!("chunk {chunk} has other replicas than those that were judged");
        return Err(refuse(ErrorKind::StaleEpoch, message));
    }
    chunks::cut(tx, chunk, &row, len)?;
    Ok(Reply::Done)
}

fn require_sealed_at(row: &ChunkRow, chunk: ChunkId, epoch: Epoch) -> Result<(), Failure> {
    if !row.is_sealed() || row.epoch != epoch {
        let message = format!("chunk {chunk} is not sealed at epoch {epoch}");
        return Err(refuse(ErrorKind::StaleEpoch, message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dfs_proto::InodeId;
    use dfs_proto::chunk::{digest_shard, replica_digest};

    use super::*;
    use crate::command::{Body, Event};
    use crate::testing::{Rig, kind_of};

    fn sealed(rig: &mut Rig) -> (ChunkId, ChunkRow) {
        let file = rig.create(InodeId::ROOT, "a").inode;
        let chunk = rig.allocate(1)[0];
        rig.commit_at(file, chunk, 0, 100, true).unwrap();
        (chunk, rows::chunk(&rig.state, chunk).unwrap().unwrap())
    }

    #[test]
    fn a_lost_replica_brings_attention_and_a_repaired_one_takes_it_away() {
        let mut rig = Rig::new();
        let (chunk, row) = sealed(&mut rig);
        assert!(rows::attention(&rig.state, 9).unwrap().is_empty());
        let lost = row.replicas[0];
        rig.apply(Body::DropReplica { chunk, epoch: row.epoch, node: lost }).unwrap();
        assert_eq!(rows::attention(&rig.state, 9).unwrap(), [chunk]);
        assert!(rig.events.contains(&Event::ReplicaDropped { chunk, epoch: row.epoch, node: lost }));
        assert!(rows::node_chunks(&rig.state, lost, 9).unwrap().is_empty());
        assert_eq!(rows::node_digests(&rig.state, lost).unwrap().iter().sum::<u64>(), 0);

        let spare = NodeId(14);
        rig.apply(Body::AddReplica { chunk, epoch: row.epoch, len: row.len, node: spare }).unwrap();
        assert!(rows::attention(&rig.state, 9).unwrap().is_empty());
        assert_eq!(rows::node_chunks(&rig.state, spare, 9).unwrap(), [chunk]);
        let digests = rows::node_digests(&rig.state, spare).unwrap();
        assert_eq!(digests[digest_shard(chunk)], replica_digest(chunk, row.epoch, row.len));
    }

    #[test]
    fn doing_it_twice_is_doing_it_once() {
        let mut rig = Rig::new();
        let (chunk, row) = sealed(&mut rig);
        let add = Body::AddReplica { chunk, epoch: row.epoch, len: row.len, node: NodeId(14) };
        rig.apply(add.clone()).unwrap();
        let before = rig.state.clone();
        rig.apply(add).unwrap();
        assert_eq!(rig.state, before);
        let drop = Body::DropReplica { chunk, epoch: row.epoch, node: NodeId(14) };
        rig.apply(drop.clone()).unwrap();
        let before = rig.state.clone();
        rig.apply(drop).unwrap();
        assert_eq!(rig.state, before);
    }

    #[test]
    fn a_copy_of_something_else_does_not_count() {
        let mut rig = Rig::new();
        let (chunk, row) = sealed(&mut rig);
        let add = |chunk, epoch, len, node| Body::AddReplica { chunk, epoch, len, node };
        for (body, kind) in [
            (add(chunk, Epoch::FIRST, row.len, NodeId(14)), ErrorKind::StaleEpoch),
            (add(chunk, row.epoch, row.len - 1, NodeId(14)), ErrorKind::StaleEpoch),
            (add(ChunkId(99), row.epoch, row.len, NodeId(14)), ErrorKind::Stale),
            (add(chunk, row.epoch, row.len, NodeId(99)), ErrorKind::InvalidArgument),
        ] {
            assert_eq!(kind_of(rig.apply(body)), Some(kind));
        }
        let open = rig.allocate(1)[0];
        assert_eq!(kind_of(rig.apply(add(open, Epoch::FIRST, 0, NodeId(14)))), Some(ErrorKind::StaleEpoch));
    }

    #[test]
    fn a_chunk_whose_end_no_disk_has_ends_where_the_longest_replica_does() {
        let mut rig = Rig::new();
        let (chunk, row) = sealed(&mut rig);
        let cut = |epoch, len, replicas: &[NodeId]| Body::CutChunk { chunk, epoch, len, replicas: replicas.to_vec() };
        rig.apply(cut(row.epoch, 60, &row.replicas)).unwrap();
        let after = rows::chunk(&rig.state, chunk).unwrap().unwrap();
        assert_eq!(after, ChunkRow { epoch: row.epoch.next(), len: 60, ..row.clone() });
        assert_eq!(rows::lost_end(&rig.state, chunk).unwrap(), 40);
        let sealed = Event::Sealed { chunk, epoch: after.epoch, len: 60, replicas: row.replicas.clone() };
        assert!(rig.events.contains(&sealed), "the replicas are told");
        let digests = rows::node_digests(&rig.state, row.replicas[0]).unwrap();
        assert_eq!(digests[digest_shard(chunk)], replica_digest(chunk, after.epoch, 60));

        // The longest one was lost as well, before anybody had copied it: nothing is left.
        rig.apply(cut(after.epoch, 0, &after.replicas)).unwrap();
        assert_eq!(rows::lost_end(&rig.state, chunk).unwrap(), 100);
        assert_eq!(rows::lost_ends(&rig.state).unwrap().len(), 1);
        // It goes with the last file that needs it.
        rig.unlink(InodeId::ROOT, "a", None).unwrap();
        assert_eq!(rows::chunk(&rig.state, chunk).unwrap(), None);
        assert!(rows::lost_ends(&rig.state).unwrap().is_empty());
    }

    #[test]
    fn a_cut_that_was_planned_for_something_else_is_refused() {
        let mut rig = Rig::new();
        let (chunk, row) = sealed(&mut rig);
        let cut =
            |chunk, epoch, len, replicas: &[NodeId]| Body::CutChunk { chunk, epoch, len, replicas: replicas.into() };
        let all = &row.replicas[..];
        let before = rig.state.clone();
        for (body, kind) in [
            (cut(ChunkId(99), row.epoch, 60, all), ErrorKind::Stale),
            (cut(chunk, Epoch::FIRST, 60, all), ErrorKind::StaleEpoch),
            (cut(chunk, row.epoch, 100, all), ErrorKind::InvalidArgument),
            (cut(chunk, row.epoch, 60, &all[1..]), ErrorKind::StaleEpoch),
            (cut(chunk, row.epoch, 60, &[all, &[NodeId(14)]].concat()), ErrorKind::StaleEpoch),
        ] {
            assert_eq!(kind_of(rig.apply(body)), Some(kind));
        }
        assert_eq!(rig.state, before);
        rig.apply(Body::AddReplica { chunk, epoch: row.epoch, len: row.len, node: NodeId(14) }).unwrap();
        assert_eq!(kind_of(rig.apply(cut(chunk, row.epoch, 60, all))), Some(ErrorKind::StaleEpoch));
        let open = rig.allocate(1)[0];
        let replicas = rows::chunk(&rig.state, open).unwrap().unwrap().replicas;
        assert_eq!(kind_of(rig.apply(cut(open, Epoch::FIRST, 0, &replicas))), Some(ErrorKind::StaleEpoch));
    }

    #[test]
    fn the_last_replica_is_never_dropped() {
        let mut rig = Rig::new();
        let (chunk, row) = sealed(&mut rig);
        for node in &row.replicas[1..] {
            rig.apply(Body::DropReplica { chunk, epoch: row.epoch, node: *node }).unwrap();
        }
        let last = Body::DropReplica { chunk, epoch: row.epoch, node: row.replicas[0] };
        assert_eq!(kind_of(rig.apply(last)), Some(ErrorKind::NotPermitted));
        let stale = Body::DropReplica { chunk, epoch: Epoch::FIRST, node: row.replicas[0] };
        assert_eq!(kind_of(rig.apply(stale)), Some(ErrorKind::StaleEpoch));
    }
}

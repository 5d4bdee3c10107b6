//! Allocate: new chunks for a session to append to.

use dfs_proto::limits::{ALLOCATE_MAX, REPLICATION_MAX};
use dfs_proto::msg::meta::{ChunkLocation, OpReply, ReplicaAt};
use dfs_proto::{ChunkId, Epoch, ErrorKind, NodeId};

use crate::apply::Client;
use crate::rows::{self, ChunkRow, ChunkState, NodeChunkRow, SessionChunkRow};
use crate::tx::{Failure, Tx, refuse};

/// `placement` has the leader's choice of nodes for each chunk. Fewer nodes than `replication` are
/// allowed: repair brings the chunk to strength after it is sealed.
pub(crate) fn apply(
    tx: &mut Tx<'_>,
    client: &Client<'_>,
    count: u8,
    replication: u8,
    placement: &[Vec<NodeId>],
) -> Result<OpReply, Failure> {
    if count == 0 || count > ALLOCATE_MAX {
        let message = format!("1 to {ALLOCATE_MAX} chunks at a time, not {count}");
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    if replication == 0 || replication > REPLICATION_MAX {
        let message = format!("a chunk has 1 to {REPLICATION_MAX} copies, not {replication}");
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    if placement.len() != usize::from(count) || placement.iter().any(Vec::is_empty) {
        return Err(refuse(ErrorKind::NoSpace, "no datanode has room for a chunk"));
    }
    let locations = placement.iter().map(|nodes| allocate(tx, client, replication, nodes)).collect::<Result<_, _>>()?;
    Ok(OpReply::Chunks(locations))
}

fn allocate(tx: &mut Tx<'_>, client: &Client<'_>, replication: u8, nodes: &[NodeId]) -> Result<ChunkLocation, Failure> {
    // The leader chose among nodes in service; a change of duty may have come in between. One copy fewer is
    // repaired after the seal; a chunk without any node cannot be.
    let mut nodes = nodes.to_vec();
    let duties = rows::duties(tx.view())?;
    if nodes.iter().all(|node| duties.contains_key(node)) {
        return Err(refuse(
            ErrorKind::Unavailable,
            "the nodes chosen for the chunk have just been taken out of service",
        ));
    }
    nodes.retain(|node| !duties.contains_key(node));
    let nodes = &nodes[..];
    let replicas = nodes
        .iter()
        .map(|node| match rows::datanode(tx.view(), *node)? {
            Some(row) => Ok(ReplicaAt { node: *node, addr: row.addr }),
            None => Err(refuse(ErrorKind::Unavailable, format!("node {node} is not registered"))),
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    if nodes.len() > usize::from(replication) || (1..nodes.len()).any(|i| nodes[..i].contains(&nodes[i])) {
        return Err(refuse(ErrorKind::Unavailable, "the placement has too many nodes, or one twice"));
    }

    let chunk = tx.totals.next_chunk;
    tx.totals.next_chunk = ChunkId(chunk.0 + 1);
    tx.totals.counts.chunks += 1;
    let row = ChunkRow {
        state: ChunkState::Open { session: client.session },
        epoch: Epoch::FIRST,
        len: 0,
        live_bytes: 0,
        target: replication,
        replicas: nodes.to_vec(),
    };
    tx.put(ChunkRow::key(chunk), &row)?;
    tx.put(SessionChunkRow::key(client.session, chunk), &SessionChunkRow)?;
    for node in nodes {
        tx.put(NodeChunkRow::key(*node, chunk), &NodeChunkRow)?;
    }
    Ok(ChunkLocation { chunk, epoch: row.epoch, len: 0, replicas, capability: None })
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::Op;

    use super::*;
    use crate::testing::{Rig, kind_of};

    fn allocate(count: u8, replication: u8) -> Op {
        Op::AllocateChunks { count, replication, avoid: Vec::new() }
    }

    #[test]
    fn each_chunk_is_new_open_and_this_sessions() {
        let mut rig = Rig::new();
        let placement = vec![vec![NodeId(11), NodeId(12)], vec![NodeId(13)]];
        let OpReply::Chunks(made) = rig.op_placed(allocate(2, 3), placement).unwrap() else { panic!("no chunks") };
        assert_ne!(made[0].chunk, made[1].chunk);
        assert_eq!(made[0].replicas.iter().map(|at| at.node).collect::<Vec<_>>(), [NodeId(11), NodeId(12)]);
        assert!(made.iter().all(|chunk| chunk.capability.is_none() && chunk.epoch == Epoch::FIRST));
        let chunks: Vec<_> = made.iter().map(|chunk| chunk.chunk).collect();
        assert_eq!(rows::session_chunks(&rig.state, rig.session).unwrap(), chunks);
        assert_eq!(rows::chunk(&rig.state, chunks[1]).unwrap().unwrap().target, 3);
        // An open chunk is not repaired.
        assert!(rows::attention(&rig.state, 9).unwrap().is_empty());
    }

    #[test]
    fn impossible_requests_and_placements_are_refused() {
        let mut rig = Rig::new();
        let (one, two) = (NodeId(11), NodeId(12));
        for (op, placement, kind) in [
            (allocate(0, 3), vec![], ErrorKind::InvalidArgument),
            (allocate(9, 3), vec![vec![one]; 9], ErrorKind::InvalidArgument),
            (allocate(1, 0), vec![vec![one]], ErrorKind::InvalidArgument),
            (allocate(1, 3), vec![], ErrorKind::NoSpace),
            (allocate(1, 3), vec![vec![]], ErrorKind::NoSpace),
            (allocate(1, 3), vec![vec![one, one]], ErrorKind::Unavailable),
            (allocate(1, 1), vec![vec![one, two]], ErrorKind::Unavailable),
            (allocate(1, 3), vec![vec![NodeId(99)]], ErrorKind::Unavailable),
        ] {
            let before = rig.totals();
            assert_eq!(kind_of(rig.op_placed(op, placement)), Some(kind));
            assert_eq!(rig.totals(), before);
        }
    }
}

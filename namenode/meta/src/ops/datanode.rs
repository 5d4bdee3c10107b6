//! Datanodes: registered once, where they are reached, and what they are meant to do.

use std::net::SocketAddr;

use dfs_proto::limits::BALANCE_POINTS_MAX;
use dfs_proto::msg::admin::{Balance, Duty};
use dfs_proto::{ErrorKind, NodeId};

use crate::command::Reply;
use crate::duty;
use crate::rows::{self, BalanceRow, DatanodeRow, DutyRow};
use crate::tx::{Failure, Tx, refuse};

pub(crate) fn put(tx: &mut Tx<'_>, node: NodeId, addr: SocketAddr) -> Result<Reply, Failure> {
    tx.config()?;
    if let Duty::Removed { .. } = rows::duty(tx.view(), node)? {
        return Err(refuse(ErrorKind::Forbidden, duty::removed(node)));
    }
    let row = DatanodeRow { addr };
    if rows::datanode(tx.view(), node)? != Some(row) {
        tx.put(DatanodeRow::key(node), &row)?;
    }
    Ok(Reply::Done)
}

/// `before` is what the proposer saw: of two who change a duty at the same time, the second is refused.
pub(crate) fn set_duty(tx: &mut Tx<'_>, node: NodeId, before: Duty, after: Duty) -> Result<Reply, Failure> {
    if rows::datanode(tx.view(), node)?.is_none() {
        return Err(refuse(ErrorKind::NotFound, format!("there is no datanode {node}")));
    }
    if rows::duty(tx.view(), node)? != before {
        return Err(refuse(
            ErrorKind::Unavailable,
            format!("the duty of node {node} was just changed by somebody else"),
        ));
    }
    duty::check_step(node, before, after)?;
    let leaves_nothing = matches!(after, Duty::Decommissioned { .. } | Duty::Removed { .. });
    if leaves_nothing && !rows::node_chunks(tx.view(), node, 1)?.is_empty() {
        return Err(refuse(ErrorKind::NotEmpty, format!("node {node} still has chunks that count")));
    }
    match after {
        Duty::Serving => tx.delete(DutyRow::key(node)),
        duty => tx.put(DutyRow::key(node), &DutyRow { duty })?,
    }
    if let Duty::Removed { .. } = after {
        tx.delete(DatanodeRow::key(node));
    }
    Ok(Reply::Done)
}

pub(crate) fn set_balance(tx: &mut Tx<'_>, balance: Balance) -> Result<Reply, Failure> {
    tx.config()?;
    if !(1..=BALANCE_POINTS_MAX).contains(&balance.points) {
        let message = format!("datanodes may differ by 1 to {BALANCE_POINTS_MAX} points, not by {}", balance.points);
        return Err(refuse(ErrorKind::InvalidArgument, message));
    }
    tx.put(BalanceRow::key(), &BalanceRow(balance))?;
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use dfs_proto::{InodeId, Timestamp};

    use super::*;
    use crate::command::Body;
    use crate::testing::{NODES, Rig, kind_of};

    const T: Timestamp = Timestamp { secs: 1000, nanos: 0 };
    const LEAVING: Duty = Duty::Decommissioning { since: T, chunks: 1, bytes: 100 };
    const GONE: Duty = Duty::Decommissioned { since: T };
    const REMOVED: Duty = Duty::Removed { since: T };

    fn set(before: Duty, after: Duty) -> Body {
        Body::SetDuty { node: NODES[0], before, after }
    }

    #[test]
    fn a_node_is_done_when_nothing_counts_on_it_and_its_number_is_never_used_again() {
        let mut rig = Rig::new();
        let file = rig.write_new(InodeId::ROOT, "a", 100);
        rig.apply(set(Duty::Serving, LEAVING)).unwrap();
        assert_eq!(kind_of(rig.apply(set(LEAVING, GONE))), Some(ErrorKind::NotEmpty));
        let chunk = rig.extents(file)[0].chunk;
        let row = rows::chunk(&rig.state, chunk).unwrap().unwrap();
        let back = Body::AddReplica { chunk, epoch: row.epoch, len: row.len, node: NODES[0] };
        rig.apply(Body::AddReplica { chunk, epoch: row.epoch, len: row.len, node: NODES[3] }).unwrap();
        rig.apply(Body::DropReplica { chunk, epoch: row.epoch, node: NODES[0] }).unwrap();
        assert_eq!(kind_of(rig.apply(back)), Some(ErrorKind::NotPermitted));
        rig.apply(set(LEAVING, GONE)).unwrap();
        rig.apply(set(GONE, REMOVED)).unwrap();
        let addr: SocketAddr = "10.0.0.9:7".parse().unwrap();
        assert_eq!(kind_of(rig.apply(Body::PutDatanode { node: NODES[0], addr })), Some(ErrorKind::Forbidden));
        assert_eq!(kind_of(rig.apply(set(REMOVED, Duty::Serving))), Some(ErrorKind::NotFound));
        assert_eq!(rows::datanode(&rig.state, NODES[0]).unwrap(), None);
    }

    #[test]
    fn a_duty_changes_only_from_what_the_proposer_saw() {
        let mut rig = Rig::new();
        rig.apply(set(Duty::Serving, LEAVING)).unwrap();
        assert_eq!(
            kind_of(rig.apply(set(Duty::Serving, Duty::Maintenance { until: T }))),
            Some(ErrorKind::Unavailable)
        );
        rig.apply(set(LEAVING, Duty::Serving)).unwrap();
        assert!(rows::duties(&rig.state).unwrap().is_empty());
        assert_eq!(kind_of(rig.apply(set(LEAVING, GONE))), Some(ErrorKind::Unavailable));
    }

    #[test]
    fn a_chunk_is_not_placed_on_a_node_whose_duty_changed_meanwhile() {
        let mut rig = Rig::new();
        rig.apply(set(Duty::Serving, LEAVING)).unwrap();
        let chunk = rig.allocate(1)[0];
        assert_eq!(rows::chunk(&rig.state, chunk).unwrap().unwrap().replicas, NODES[1..3]);
    }

    #[test]
    fn a_datanode_may_move_and_is_listed_once() {
        let mut rig = Rig::new();
        let before = rows::datanodes(&rig.state).unwrap().len();
        let addr: SocketAddr = "10.0.0.9:7".parse().unwrap();
        rig.apply(Body::PutDatanode { node: NodeId(11), addr }).unwrap();
        assert_eq!(rows::datanode(&rig.state, NodeId(11)).unwrap(), Some(DatanodeRow { addr }));
        assert_eq!(rows::datanodes(&rig.state).unwrap().len(), before);
    }
}

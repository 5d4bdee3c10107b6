//! Datanodes: registered once, and where they are reached.

use std::net::SocketAddr;

use dfs_proto::NodeId;

use crate::command::Reply;
use crate::rows::{self, DatanodeRow};
use crate::tx::{Failure, Tx};

pub(crate) fn put(tx: &mut Tx<'_>, node: NodeId, addr: SocketAddr) -> Result<Reply, Failure> {
    tx.config()?;
    let row = DatanodeRow { addr };
    if rows::datanode(tx.view(), node)? != Some(row) {
        tx.put(DatanodeRow::key(node), &row)?;
    }
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Body;
    use crate::testing::Rig;

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

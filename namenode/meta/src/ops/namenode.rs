//! The numbers of namenodes: each is given once, to one disk.

use dfs_proto::{ErrorKind, NodeId};

use crate::command::Reply;
use crate::rows::{self, NamenodeIdRow, NamenodeIds};
use crate::tx::{Failure, Tx, refuse};

/// `node` is a namenode whose data lies on `disk`. Asked again for the same disk it is done already.
pub(crate) fn admit(tx: &mut Tx<'_>, node: NodeId, disk: u64) -> Result<Reply, Failure> {
    tx.config()?;
    let NamenodeIds(mut ids) = rows::namenode_ids(tx.view())?;
    match ids.iter().find(|row| row.node == node) {
        Some(NamenodeIdRow { retired: true, .. }) => {
            let text = format!("namenode {node} was removed from the group, and its number is not given again");
            return Err(refuse(ErrorKind::InvalidArgument, text));
        }
        Some(row) if row.disk != disk => {
            let text = format!("namenode {node} is known with another disk, and its number is not given again");
            return Err(refuse(ErrorKind::InvalidArgument, text));
        }
        Some(_) => return Ok(Reply::Done),
        None => ids.push(NamenodeIdRow { node, disk, retired: false }),
    }
    ids.sort_unstable_by_key(|row| row.node);
    tx.put(NamenodeIds::key(), &NamenodeIds(ids))?;
    Ok(Reply::Done)
}

/// `node` is a member no more and will not be one again, whether it was ever admitted or not.
pub(crate) fn retire(tx: &mut Tx<'_>, node: NodeId) -> Result<Reply, Failure> {
    tx.config()?;
    let NamenodeIds(mut ids) = rows::namenode_ids(tx.view())?;
    match ids.iter_mut().find(|row| row.node == node) {
        Some(row) => row.retired = true,
        None => ids.push(NamenodeIdRow { node, disk: 0, retired: true }),
    }
    ids.sort_unstable_by_key(|row| row.node);
    tx.put(NamenodeIds::key(), &NamenodeIds(ids))?;
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Body;
    use crate::testing::{Rig, kind_of};

    fn admit(node: u64, disk: u64) -> Body {
        Body::AdmitNamenode { node: NodeId(node), disk }
    }

    #[test]
    fn a_number_belongs_to_one_disk_and_is_not_given_again() {
        let mut rig = Rig::new();
        rig.apply(admit(4, 7)).unwrap();
        rig.apply(admit(4, 7)).unwrap();
        assert_eq!(kind_of(rig.apply(admit(4, 8))), Some(ErrorKind::InvalidArgument));
        rig.apply(Body::RetireNamenode { node: NodeId(4) }).unwrap();
        assert_eq!(kind_of(rig.apply(admit(4, 7))), Some(ErrorKind::InvalidArgument));
        // One that was removed before its disk was ever noted.
        rig.apply(Body::RetireNamenode { node: NodeId(2) }).unwrap();
        assert_eq!(kind_of(rig.apply(admit(2, 0))), Some(ErrorKind::InvalidArgument));
        let NamenodeIds(ids) = rows::namenode_ids(&rig.state).unwrap();
        assert_eq!(ids.iter().map(|row| (row.node.0, row.retired)).collect::<Vec<_>>(), [(2, true), (4, true)]);
    }
}

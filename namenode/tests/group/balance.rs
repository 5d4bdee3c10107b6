//! Chunks move from full datanodes to empty ones.

use dfs_proto::msg::admin::{AdminRequest, Balance, BalanceStatus};
use dfs_proto::msg::meta::MetaRequest;
use dfs_proto::msg::node::Order;
use dfs_proto::{ErrorKind, NodeId, Role, WireError};

use crate::datanodes::{Datanode, group, live_replicas, write_file};
use crate::support::{Client, until};

fn set_balance(client: &Client<'_>, wanted: Balance) -> Result<(), WireError> {
    client.ask_leader(&MetaRequest::Admin(AdminRequest::SetBalance(wanted))).map(drop)
}

fn balance(client: &Client<'_>) -> BalanceStatus {
    client.status(client.leader()).unwrap().balance
}

fn copies_ordered(datanodes: &[Datanode<'_>]) -> usize {
    let copies = |node: &Datanode<'_>| node.orders.iter().filter(|order| matches!(order, Order::Copy { .. })).count();
    datanodes.iter().map(copies).sum()
}

#[test]
fn a_chunk_moves_to_the_emptier_node_and_leaves_the_fullest_one() {
    let group = group();
    let (client, admin) = (group.client(Role::Client, 100), group.admin());
    let off = Balance { on: false, points: 20 };
    set_balance(&admin, off).unwrap();
    assert_eq!(set_balance(&client, off).unwrap_err().kind, ErrorKind::Forbidden);
    let impossible = Balance { points: 99, ..off };
    assert_eq!(set_balance(&admin, impossible).unwrap_err().kind, ErrorKind::InvalidArgument);
    let mut datanodes: Vec<_> = (11..=14).map(|id| Datanode::new(&group, id)).collect();
    let file = write_file(&client, &mut datanodes);
    let chunk = file.chunk.chunk;
    until("the seal has reached every replica", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        (datanodes.iter().filter(|node| node.sealed.contains_key(&chunk)).count() == 3).then_some(())
    });

    // 10 % of each disk is in use. Now those that have the chunk fill, one more than the others.
    let mut holders = Vec::new();
    for node in datanodes.iter_mut().filter(|node| node.sealed.contains_key(&chunk)) {
        node.free_gib = 75 - 5 * holders.len() as u64;
        holders.push(node.id);
    }
    until("how uneven they are is seen", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        (balance(&client).left_bytes > 0).then_some(())
    });
    for _ in 0..5 {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        std::thread::park_timeout(std::time::Duration::from_millis(200));
    }
    assert_eq!((copies_ordered(&datanodes), balance(&client).wanted), (0, off));

    // Within 30 points of each other, which is as uneven as they may be.
    set_balance(&admin, Balance { on: true, points: 30 }).unwrap();
    until("that is known", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let balance = balance(&client);
        (balance.wanted.on && balance.left_bytes == 0).then_some(())
    });
    assert_eq!(copies_ordered(&datanodes), 0);

    set_balance(&admin, Balance { on: true, points: 20 }).unwrap();
    let fullest = NodeId(holders[2]);
    until("the chunk has moved", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        // At no moment are there fewer than three good replicas that count.
        let counted = live_replicas(&client, file.inode);
        assert!(counted.len() >= 3, "{counted:?}");
        (counted.len() == 3 && !counted.contains(&fullest)).then_some(())
    });
    until("its old replica is deleted", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        let gone = datanodes.iter().all(|node| NodeId(node.id) != fullest || !node.sealed.contains_key(&chunk));
        gone.then_some(())
    });
    assert_eq!(copies_ordered(&datanodes), 1);
    // These nodes' disks do not get emptier or fuller by it, so they stay apart. What is left has a copy on the emptiest.
    until("it is seen that nothing more can be moved", || {
        datanodes.iter_mut().for_each(|node| node.beat(0));
        balance(&client).stuck.then_some(())
    });
    let balance = balance(&client);
    assert_eq!((balance.moved_chunks, balance.moved_bytes, balance.moving.len()), (1, 4096, 0));
    let repair = client.status(client.leader()).unwrap().repair;
    assert_eq!((repair.copied_chunks, repair.queued), (0, 0), "no repair: {repair:?}");
}

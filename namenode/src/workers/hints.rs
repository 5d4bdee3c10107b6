//! Turns what was just applied into orders at once. Hints may be lost; the digests find what they were
//! for.

use std::sync::Arc;

use dfs_meta::Event;
use dfs_proto::msg::node::Order;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::namenode::Namenode;

pub async fn run(namenode: Arc<Namenode>, mut events: mpsc::Receiver<Event>, shutdown: CancellationToken) {
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => match event {
                Some(event) => event,
                None => return,
            },
        };
        // Followers apply the same commands; the orders are the leader's.
        if namenode.leading().is_ok() {
            act(&namenode, event);
        }
    }
}

fn act(namenode: &Namenode, event: Event) {
    let now = Instant::now();
    match event {
        Event::Sealed { chunk, epoch, len, replicas } => {
            for node in replicas {
                namenode.orders.push(node, Order::Seal { chunk, epoch, len });
            }
        }
        Event::ChunkDeleted { chunk, epoch, replicas } => {
            for node in replicas {
                namenode.board.dropped(chunk, node);
                namenode.orders.push(node, Order::Delete { chunk, epoch });
            }
        }
        Event::ReplicaDropped { chunk, epoch, node } => {
            namenode.board.dropped(chunk, node);
            namenode.board.deletion_ordered(chunk, node, now);
            namenode.orders.push(node, Order::Delete { chunk, epoch });
        }
        Event::Attention(_) => namenode.repair_wanted.notify_one(),
        Event::Orphaned(_) => namenode.reclaim_wanted.notify_one(),
        // Every tick looks whether it can be decided.
        Event::Undecided(_) => {}
        Event::LocksReleased(inode) => namenode.lock_waits.released(inode),
    }
}

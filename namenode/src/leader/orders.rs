//! Orders that wait for their datanode's next heartbeat.
//!
//! They are given once. A reply that is lost takes its orders with it; what they were for then still
//! shows in the digests, or as a copy that never ends, and is ordered again.

use std::collections::{BTreeMap, HashMap};

use dfs_proto::msg::node::Order;
use dfs_proto::{ChunkId, Epoch, NodeId};
use parking_lot::Mutex;

/// Orders that wait for one node: some minutes' worth at the rate they are fetched. What does not fit
/// is found again by comparing digests.
const QUEUE: usize = 16_384;

#[derive(Default)]
pub struct Orders(Mutex<HashMap<NodeId, Queue>>);

#[derive(Default)]
struct Queue {
    /// By arrival.
    waiting: BTreeMap<u64, Order>,
    /// Where in `waiting` the order of one kind for one chunk is.
    places: HashMap<(Kind, ChunkId), u64>,
    next: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Seal,
    Delete,
    Copy,
    Verify,
    EndAppends,
    Scrub,
    Gather,
}

impl Orders {
    /// Queues an order; one of the same kind for the same chunk is replaced unless it has a higher
    /// epoch. Returns whether there was room.
    pub fn push(&self, node: NodeId, order: Order) -> bool {
        let mut queues = self.0.lock();
        let queue = queues.entry(node).or_default();
        let (kind, chunk, epoch) = key(&order);
        if let Some(place) = queue.places.get(&(kind, chunk)) {
            if let Some(waiting) = queue.waiting.get_mut(place)
                && key(waiting).2 <= epoch
            {
                *waiting = order;
            }
            return true;
        }
        if queue.waiting.len() >= QUEUE {
            return false;
        }
        queue.places.insert((kind, chunk), queue.next);
        queue.waiting.insert(queue.next, order);
        queue.next += 1;
        true
    }

    /// Takes the oldest orders of a node.
    pub fn take(&self, node: NodeId, max: usize) -> Vec<Order> {
        let mut queues = self.0.lock();
        let Some(queue) = queues.get_mut(&node) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        while taken.len() < max
            && let Some((_, order)) = queue.waiting.pop_first()
        {
            let (kind, chunk, _) = key(&order);
            queue.places.remove(&(kind, chunk));
            taken.push(order);
        }
        taken
    }

    /// Forgets everything: another namenode gives the orders now.
    pub fn clear(&self) {
        self.0.lock().clear();
    }
}

fn key(order: &Order) -> (Kind, ChunkId, Epoch) {
    match order {
        Order::Seal { chunk, epoch, .. } => (Kind::Seal, *chunk, *epoch),
        Order::Delete { chunk, epoch } => (Kind::Delete, *chunk, *epoch),
        Order::Copy { chunk, epoch, .. } => (Kind::Copy, *chunk, *epoch),
        Order::Verify { chunk, epoch, .. } => (Kind::Verify, *chunk, *epoch),
        Order::EndAppends { chunk, epoch } => (Kind::EndAppends, *chunk, *epoch),
        Order::Gather { chunk, epoch, .. } => (Kind::Gather, *chunk, *epoch),
        // Of the whole node, and the latest wish counts.
        Order::Scrub { wish } => (Kind::Scrub, ChunkId(0), Epoch(*wish)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(chunk: u64, epoch: u64) -> Order {
        Order::Seal { chunk: ChunkId(chunk), epoch: Epoch(epoch), len: 9 }
    }

    #[test]
    fn orders_come_out_in_order_and_once() {
        let orders = Orders::default();
        let delete = Order::Delete { chunk: ChunkId(1), epoch: Epoch(1) };
        for order in [seal(1, 2), seal(2, 2), delete.clone(), seal(1, 1), seal(2, 3)] {
            assert!(orders.push(NodeId(1), order));
        }
        assert_eq!(orders.take(NodeId(1), 2), [seal(1, 2), seal(2, 3)]);
        assert_eq!(orders.take(NodeId(1), 2), [delete]);
        assert!(orders.take(NodeId(1), 2).is_empty() && orders.take(NodeId(2), 2).is_empty());
    }

    #[test]
    fn a_full_queue_refuses_and_still_replaces() {
        let orders = Orders::default();
        assert!((0..QUEUE as u64).all(|chunk| orders.push(NodeId(1), seal(chunk, 1))));
        assert!(!orders.push(NodeId(1), seal(u64::MAX, 1)));
        assert!(orders.push(NodeId(1), seal(5, 2)));
    }
}

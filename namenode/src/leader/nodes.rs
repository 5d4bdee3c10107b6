//! The datanodes as their heartbeats show them. Kept on every namenode, so that whoever leads next
//! knows at once who is alive.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use dfs_meta::{placement, repair};
use dfs_proto::msg::admin::{Duty, Liveness};
use dfs_proto::msg::node::{Heartbeat, Pace, ScrubStatus, VolumeStatus};
use dfs_proto::{ChunkId, NodeId, Timestamp};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::pace::Laggards;

/// What the last heartbeat of a datanode said.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Drawn at the datanode's start.
    pub boot: u64,
    pub volumes: Vec<VolumeStatus>,
    /// Per shard.
    pub digests: Vec<u64>,
    pub scanned: bool,
    pub leaving: bool,
    pub copying: Vec<ChunkId>,
    pub open_chunks: u32,
    /// Its clock minus ours, as it estimates it from our answers; before the first few of them, what its heartbeat
    /// showed, which is early by the time that took to get here.
    pub skew_ms: i64,
    pub scrub: ScrubStatus,
    pub pace: Pace,
    heard: Instant,
    /// Since when it says that it leaves, or no longer says so.
    leaving_since: Instant,
    /// Chunks placed there since that heartbeat: it does not know of them yet, and the next placement must.
    placed: u32,
}

impl Seen {
    fn free_bytes(&self) -> u64 {
        self.healthy().map(|volume| volume.free_bytes).sum()
    }

    fn total_bytes(&self) -> u64 {
        self.healthy().map(|volume| volume.total_bytes).sum()
    }

    fn healthy(&self) -> impl Iterator<Item = &VolumeStatus> {
        self.volumes.iter().filter(|volume| volume.failed.is_none() && !volume.draining)
    }
}

pub struct Nodes {
    suspect_after: Duration,
    dead_after: Duration,
    table: Mutex<Table>,
}

struct Table {
    /// As many as there are datanode certificates in use.
    seen: HashMap<NodeId, Seen>,
    /// A datanode that was never heard from counts as silent since then.
    listening_since: Instant,
    laggards: Laggards,
}

impl Nodes {
    pub fn new(suspect_after: Duration, dead_after: Duration, now: Instant) -> Nodes {
        let table = Table { seen: HashMap::new(), listening_since: now, laggards: Laggards::default() };
        Nodes { suspect_after, dead_after, table: Mutex::new(table) }
    }

    /// Takes in a heartbeat. `clock` is our time, for the skew. Returns whether the node has started
    /// anew since the one before.
    pub fn heard(&self, node: NodeId, heartbeat: &Heartbeat, now: Instant, clock: Timestamp) -> bool {
        let mut table = self.table.lock();
        let before = table.seen.get(&node);
        let restarted = before.is_some_and(|before| before.boot != heartbeat.boot);
        let leaving_since = match before {
            Some(before) if before.leaving == heartbeat.leaving => before.leaving_since,
            _ => now,
        };
        let seen = Seen {
            boot: heartbeat.boot,
            volumes: heartbeat.volumes.clone(),
            digests: heartbeat.digests.clone(),
            scanned: heartbeat.scanned,
            leaving: heartbeat.leaving,
            copying: heartbeat.copying.clone(),
            open_chunks: heartbeat.open.len() as u32,
            skew_ms: match heartbeat.skew {
                Some(skew) => skew.offset_ms,
                None => heartbeat.now.as_millis().saturating_sub(clock.as_millis()),
            },
            scrub: heartbeat.scrub,
            pace: heartbeat.pace,
            heard: now,
            leaving_since,
            placed: 0,
        };
        table.seen.insert(node, seen);
        let Table { seen, laggards, .. } = &mut *table;
        let fresh = |other: &&Seen| now.saturating_duration_since(other.heard) < self.suspect_after;
        let others = seen.iter().filter(|(id, _)| **id != node).map(|(_, other)| other).filter(fresh);
        if laggards.take_in(node, heartbeat.pace, others.map(|other| other.pace), now) {
            let Pace { syncs, sync_ms } = heartbeat.pace;
            warn!(%node, syncs, sync_ms, "datanode is slow beside the others: it gets no new chunks for a while");
        }
        restarted
    }

    pub fn seen(&self, node: NodeId) -> Option<Seen> {
        self.table.lock().seen.get(&node).cloned()
    }

    pub fn liveness(&self, node: NodeId, now: Instant) -> Liveness {
        self.judge(&self.table.lock(), node, now).0
    }

    /// Of `nodes`, those that are slow beside the others.
    pub fn slow(&self, nodes: &[NodeId], now: Instant) -> Vec<NodeId> {
        let table = self.table.lock();
        nodes.iter().copied().filter(|node| table.laggards.is_slow(*node, now)).collect()
    }

    /// How long nothing was heard from a node.
    pub fn silent(&self, node: NodeId, now: Instant) -> Duration {
        let table = self.table.lock();
        now.saturating_duration_since(table.seen.get(&node).map_or(table.listening_since, |seen| seen.heard))
    }

    /// How alive a node is, and for how long it has been so.
    fn judge(&self, table: &Table, node: NodeId, now: Instant) -> (Liveness, Duration) {
        let seen = table.seen.get(&node);
        let silent = now.saturating_duration_since(seen.map_or(table.listening_since, |seen| seen.heard));
        match seen {
            // It said so, and being silent afterwards is what it said.
            Some(seen) if seen.leaving => (Liveness::Leaving, now.saturating_duration_since(seen.leaving_since)),
            _ if silent >= self.dead_after => (Liveness::Dead, silent - self.dead_after),
            Some(_) if silent < self.suspect_after => (Liveness::Live, silent),
            // Also a node that was never heard from: it may be about to come.
            _ => (Liveness::Suspect, silent.saturating_sub(self.suspect_after)),
        }
    }

    /// The nodes as placement sees them.
    pub fn for_placement(
        &self,
        nodes: &[NodeId],
        duties: &BTreeMap<NodeId, Duty>,
        now: Instant,
    ) -> Vec<placement::NodeView> {
        let table = self.table.lock();
        let view = |node: &NodeId| {
            let seen = table.seen.get(node);
            placement::NodeView {
                node: *node,
                liveness: self.judge(&table, *node, now).0,
                free_bytes: seen.map_or(0, Seen::free_bytes),
                total_bytes: seen.map_or(0, Seen::total_bytes),
                writable: !duties.contains_key(node) && seen.is_some_and(|seen| seen.healthy().next().is_some()),
                load: seen.map_or(0, |seen| seen.open_chunks + seen.placed + seen.copying.len() as u32),
            }
        };
        nodes.iter().map(view).collect()
    }

    /// The nodes as the repair planner sees them.
    pub fn for_repair(&self, nodes: &[NodeId], duties: &BTreeMap<NodeId, Duty>, now: Instant) -> Vec<repair::NodeView> {
        let table = self.table.lock();
        let view = |node: &NodeId| {
            let seen = table.seen.get(node);
            let (liveness, since) = self.judge(&table, *node, now);
            repair::NodeView {
                node: *node,
                liveness,
                since_ms: since.as_millis() as u64,
                free_bytes: seen.map_or(0, Seen::free_bytes),
                total_bytes: seen.map_or(0, Seen::total_bytes),
                writable: !duties.contains_key(node) && seen.is_some_and(|seen| seen.healthy().next().is_some()),
                excused: matches!(duties.get(node), Some(Duty::Maintenance { .. })),
                scanned: seen.is_some_and(|seen| seen.scanned),
            }
        };
        nodes.iter().map(view).collect()
    }

    /// Whether each of these nodes has had the time to say that it is there. Before that nothing can be
    /// concluded from silence: after a start of the whole cluster the first datanode to be heard would
    /// seem to be the last one alive.
    pub fn have_had_their_say(&self, nodes: &[NodeId], now: Instant) -> bool {
        let table = self.table.lock();
        now.saturating_duration_since(table.listening_since) >= self.suspect_after
            || nodes.iter().all(|node| table.seen.contains_key(node))
    }

    /// Whether it is known of each of these nodes if it is there: it was heard, or has been silent until it counts as dead.
    /// A datanode whose connection has broken may take longer to come back to this namenode than until it is suspected.
    pub fn are_known(&self, nodes: &[NodeId], now: Instant) -> bool {
        let table = self.table.lock();
        now.saturating_duration_since(table.listening_since) >= self.dead_after
            || nodes.iter().all(|node| table.seen.contains_key(node))
    }

    /// Forgets a node that was removed.
    pub fn forget(&self, node: NodeId) {
        let mut table = self.table.lock();
        table.seen.remove(&node);
        table.laggards.forget(node);
    }

    /// Counts a chunk that was just placed on a node.
    pub fn placed(&self, node: NodeId) {
        if let Some(seen) = self.table.lock().seen.get_mut(&node) {
            seen.placed += 1;
        }
    }

    /// Adds the time in which this process stood still and could not hear anybody.
    pub fn forgive(&self, pause: Duration) {
        let mut table = self.table.lock();
        table.listening_since += pause;
        for seen in table.seen.values_mut() {
            seen.heard += pause;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::limits::DIGEST_SHARDS;

    const SUSPECT: Duration = Duration::from_secs(3);
    const DEAD: Duration = Duration::from_secs(10);

    fn heartbeat(boot: u64, leaving: bool) -> Heartbeat {
        Heartbeat {
            boot,
            addr: std::net::SocketAddr::from(([127, 0, 0, 1], 7000)),
            volumes: Vec::new(),
            digests: vec![0; DIGEST_SHARDS],
            open: Vec::new(),
            outcomes: Vec::new(),
            copying: Vec::new(),
            scanned: true,
            leaving,
            now: Timestamp { secs: 100, nanos: 0 },
            skew: None,
            scrub: ScrubStatus::default(),
            pace: Pace::default(),
        }
    }

    #[test]
    fn silence_makes_a_node_suspect_and_then_dead_and_a_heartbeat_live_again() {
        let start = Instant::now();
        let nodes = Nodes::new(SUSPECT, DEAD, start);
        let clock = Timestamp { secs: 98, nanos: 500_000_000 };
        nodes.heard(NodeId(1), &heartbeat(1, false), start, clock);
        let at = |after: Duration| nodes.liveness(NodeId(1), start + after);
        assert_eq!(at(Duration::from_secs(1)), Liveness::Live);
        assert_eq!(at(SUSPECT), Liveness::Suspect);
        assert_eq!(at(DEAD), Liveness::Dead);
        assert!(!nodes.heard(NodeId(1), &heartbeat(1, false), start + DEAD, clock));
        assert_eq!(at(DEAD), Liveness::Live);
        assert!(nodes.heard(NodeId(1), &heartbeat(2, false), start + DEAD, clock));
        assert_eq!(nodes.seen(NodeId(1)).unwrap().skew_ms, 1500);
        let skew = Some(dfs_proto::msg::node::Skew { offset_ms: -7, round_trip_ms: 3 });
        nodes.heard(NodeId(1), &Heartbeat { skew, ..heartbeat(2, false) }, start + DEAD, clock);
        assert_eq!(nodes.seen(NodeId(1)).unwrap().skew_ms, -7);
    }

    #[test]
    fn nothing_is_concluded_before_every_node_had_the_time_to_be_heard() {
        let start = Instant::now();
        let nodes = Nodes::new(SUSPECT, DEAD, start);
        let all = [NodeId(1), NodeId(2)];
        let clock = Timestamp { secs: 100, nanos: 0 };
        nodes.heard(NodeId(1), &heartbeat(1, false), start, clock);
        assert!(!nodes.have_had_their_say(&all, start));
        assert!(nodes.have_had_their_say(&all, start + SUSPECT));
        assert!(!nodes.are_known(&all, start + SUSPECT) && nodes.are_known(&all, start + DEAD));
        nodes.heard(NodeId(2), &heartbeat(1, false), start, clock);
        assert!(nodes.have_had_their_say(&all, start));
    }

    #[test]
    fn a_node_never_heard_from_is_not_dead_before_it_had_time_to_come() {
        let start = Instant::now();
        let nodes = Nodes::new(SUSPECT, DEAD, start);
        assert_eq!(nodes.liveness(NodeId(1), start), Liveness::Suspect);
        nodes.forgive(DEAD);
        assert_eq!(nodes.liveness(NodeId(1), start + DEAD), Liveness::Suspect);
        assert_eq!(nodes.liveness(NodeId(1), start + DEAD + DEAD), Liveness::Dead);
    }

    #[test]
    fn a_node_that_left_in_order_is_leaving_until_it_comes_back() {
        let start = Instant::now();
        let nodes = Nodes::new(SUSPECT, DEAD, start);
        nodes.heard(NodeId(1), &heartbeat(1, true), start, Timestamp::default());
        assert_eq!(nodes.for_repair(&[NodeId(1)], &BTreeMap::new(), start + 2 * DEAD)[0].since_ms, 20_000);
        assert_eq!(nodes.liveness(NodeId(1), start + 2 * DEAD), Liveness::Leaving);
        nodes.heard(NodeId(1), &heartbeat(2, false), start + 2 * DEAD, Timestamp::default());
        assert_eq!(nodes.liveness(NodeId(1), start + 2 * DEAD), Liveness::Live);
    }
}

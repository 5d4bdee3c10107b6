//! What the repair worker remembers between two passes: copies on their way, replicas reported bad,
//! deletions ordered, and the result of the last pass for `Status`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dfs_meta::repair::balance::{Cursor, Found};
use dfs_meta::repair::{ChunkView, Flight};
use dfs_proto::msg::admin::{Balance, BalanceStatus, ChunkHealth, CopyStatus, RepairStatus};
use dfs_proto::{ChunkId, Epoch, NodeId};
use parking_lot::Mutex;
use tokio::time::Instant;

/// A copy that its target does not list as under way after so long was lost on the way there.
const COPY_UNCONFIRMED: Duration = Duration::from_secs(8);
/// A copy that takes longer than this is given up: 64 MiB at less than a megabyte per second.
const COPY_DEADLINE: Duration = Duration::from_secs(120);
/// After so long a deletion has been done or lost; either way its node may be a target again.
const DELETION_DEADLINE: Duration = Duration::from_secs(30);
/// A node that was asked to read a replica is asked again after so long: the order may have been lost.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// A node repeats which replicas it wants to be rid of; one it has not named for so long it wants to keep after all.
const UNWANTED_REPEATED: Duration = Duration::from_secs(180);
/// A chunk that could not be put together from damaged replicas is tried again after so long: a disk's reads may go
/// better later, and a replica may come back that was away.
const HOPELESS: Duration = Duration::from_secs(600);
/// Chunks that cannot be moved for so long will not be by waiting. For less, a node that has just come back takes none:
/// what it was copying is not given up yet, or what it has is not confirmed.
const STUCK: Duration = Duration::from_secs(15);
/// Replicas remembered as bad. More than that is a node that has lost everything, and the digests say so too.
const BAD_MAX: usize = 65_536;

#[derive(Default)]
pub struct Board(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    flights: BTreeMap<(ChunkId, NodeId), CopyInFlight>,
    bad: BTreeMap<(ChunkId, NodeId), Bad>,
    /// Replicas of chunks with a bad one that were read well since that came out.
    proven: BTreeSet<(ChunkId, NodeId)>,
    /// Those that were asked to be read, and when.
    asked: BTreeMap<(ChunkId, NodeId), Instant>,
    /// Good replicas that their nodes want to be rid of, and when they last said so.
    unwanted: BTreeMap<(ChunkId, NodeId), Instant>,
    /// When a copy last failed of a chunk of which only damaged replicas are left.
    hopeless: BTreeMap<ChunkId, Instant>,
    deletions: BTreeMap<(ChunkId, NodeId), Instant>,
    health: ChunkHealth,
    health_at: Option<Instant>,
    waits: Vec<(String, u64)>,
    queued: u64,
    copied_chunks: u64,
    copied_bytes: u64,
    damaged_found: u64,
    healed: u64,
    moves: Moves,
}

/// Moves of chunks from full nodes to empty ones.
#[derive(Default)]
struct Moves {
    /// Where the search for chunks of a full node goes on.
    cursors: BTreeMap<NodeId, Cursor>,
    /// Full nodes of which all chunks were looked at since a move was last ordered.
    searched: BTreeSet<NodeId>,
    /// Since when, as of the last pass, all chunks of all full nodes were looked at and none could be moved.
    stuck_since: Option<Instant>,
    wanted: Balance,
    left_bytes: u64,
    chunks: u64,
    bytes: u64,
}

/// What is wrong with a replica.
#[derive(Clone, Copy)]
struct Bad {
    /// As of this epoch of the chunk: when it is cut, its replicas may be good ones of what is left.
    epoch: Epoch,
    /// Nothing but that it has only so many bytes.
    short: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
pub struct CopyInFlight {
    /// `None`: ordered by the leader before.
    pub source: Option<NodeId>,
    pub len: u32,
    pub since: Instant,
    /// Nobody needs it: it is to take the place of a replica on a fuller node.
    pub moves: bool,
}

impl Inner {
    /// The copies under way that `moves` a replica, or those that are needed.
    fn copies(&self, moves: bool, now: Instant) -> Vec<CopyStatus> {
        let wanted = self.flights.iter().filter(|(_, copy)| copy.moves == moves);
        let status = |((chunk, target), copy): (&(ChunkId, NodeId), &CopyInFlight)| CopyStatus {
            chunk: *chunk,
            target: *target,
            len: copy.len,
            since_ms: now.saturating_duration_since(copy.since).as_millis() as u64,
        };
        wanted.map(status).collect()
    }

    fn has_bad(&self, chunk: ChunkId) -> bool {
        self.bad.range((chunk, NodeId(0))..=(chunk, NodeId(u64::MAX))).next().is_some()
    }
}

impl Board {
    /// Forgets everything: a new reign begins.
    pub fn clear(&self) {
        *self.0.lock() = Inner::default();
    }

    pub fn copy_ordered(&self, chunk: ChunkId, target: NodeId, copy: CopyInFlight) {
        self.0.lock().flights.insert((chunk, target), copy);
    }

    /// A copy has ended, well or not.
    pub fn copy_ended(&self, chunk: ChunkId, target: NodeId) {
        self.0.lock().flights.remove(&(chunk, target));
    }

    /// A copy failed because its sources were bad.
    pub fn copy_hopeless(&self, chunk: ChunkId, now: Instant) {
        self.0.lock().hopeless.insert(chunk, now);
    }

    /// Counts a copy that is in the rows now.
    pub fn copied(&self, chunk: ChunkId, target: NodeId, len: u32) {
        let mut inner = self.0.lock();
        let moves = inner.flights.get(&(chunk, target)).is_some_and(|copy| copy.moves);
        let Inner {
            moves: Moves { chunks: moved_chunks, bytes: moved_bytes, .. }, copied_chunks, copied_bytes, ..
        } = &mut *inner;
        let (chunks, bytes) = if moves { (moved_chunks, moved_bytes) } else { (copied_chunks, copied_bytes) };
        *chunks += 1;
        *bytes += u64::from(len);
    }

    /// Chunks of which a copy is under way.
    pub fn chunks_in_flight(&self) -> BTreeSet<ChunkId> {
        self.0.lock().flights.keys().map(|(chunk, _)| *chunk).collect()
    }

    /// Where the search for chunks of a full node goes on.
    pub fn search_from(&self, node: NodeId) -> Cursor {
        self.0.lock().moves.cursors.get(&node).copied().unwrap_or_default()
    }

    /// Keeps how far the search came, of all nodes that are too full, and whether the plan moves anything that was found.
    pub fn searched(&self, full: usize, found: &[Found], moves: bool, now: Instant) {
        let mut inner = self.0.lock();
        let under_way = moves || inner.flights.values().any(|copy| copy.moves);
        let known = &mut inner.moves;
        known.cursors = found.iter().map(|found| (found.node, found.next)).collect();
        if under_way {
            known.searched.clear();
        }
        known.searched.extend(found.iter().filter(|found| found.ended && !under_way).map(|found| found.node));
        known.searched.retain(|node| known.cursors.contains_key(node));
        let nothing_moves = full > 0 && known.searched.len() == found.len();
        known.stuck_since = nothing_moves.then(|| known.stuck_since.unwrap_or(now));
    }

    /// Keeps what an administrator wants, and how far that is.
    pub fn balance(&self, wanted: Balance, left_bytes: u64) {
        let mut inner = self.0.lock();
        (inner.moves.wanted, inner.moves.left_bytes) = (wanted, left_bytes);
    }

    pub fn balance_status(&self, now: Instant) -> BalanceStatus {
        let inner = self.0.lock();
        let Moves { wanted, stuck_since, left_bytes, chunks, bytes, .. } = inner.moves;
        let stuck = stuck_since.is_some_and(|since| now.saturating_duration_since(since) >= STUCK);
        BalanceStatus {
            wanted,
            moving: inner.copies(true, now),
            moved_chunks: chunks,
            moved_bytes: bytes,
            left_bytes,
            stuck: stuck && wanted.on,
        }
    }

    /// Takes over what a node says it is copying, and gives up copies that never reached it.
    pub fn copying(&self, target: NodeId, chunks: &[ChunkId], now: Instant) {
        let mut inner = self.0.lock();
        for chunk in chunks {
            let copy = CopyInFlight { source: None, len: 0, since: now, moves: false };
            inner.flights.entry((*chunk, target)).or_insert(copy);
        }
        inner.flights.retain(|(chunk, node), copy| {
            let age = now.saturating_duration_since(copy.since);
            *node != target || chunks.contains(chunk) || age < COPY_UNCONFIRMED
        });
    }

    pub fn copy_under_way(&self, chunk: ChunkId, target: NodeId) -> bool {
        self.0.lock().flights.contains_key(&(chunk, target))
    }

    /// A node's replica was found missing or damaged, or short: whole, but with only so many bytes.
    pub fn found_bad(&self, chunk: ChunkId, node: NodeId, epoch: Epoch, short: Option<u32>) {
        let mut inner = self.0.lock();
        inner.proven.remove(&(chunk, node));
        let known = inner.bad.contains_key(&(chunk, node));
        if known || inner.bad.len() < BAD_MAX {
            inner.bad.insert((chunk, node), Bad { epoch, short });
            inner.damaged_found += u64::from(!known);
        }
    }

    /// The chunk ends elsewhere from now on, and what was said of its replicas is said of something else.
    pub fn cut(&self, chunk: ChunkId) {
        let mut inner = self.0.lock();
        inner.bad.retain(|(of, _), _| *of != chunk);
        inner.proven.retain(|(of, _)| *of != chunk);
        inner.hopeless.remove(&chunk);
    }

    /// A node has to empty a volume and has no room for the replica on another.
    pub fn unwanted(&self, chunk: ChunkId, node: NodeId, now: Instant) {
        let mut inner = self.0.lock();
        if inner.unwanted.len() < BAD_MAX || inner.unwanted.contains_key(&(chunk, node)) {
            inner.unwanted.insert((chunk, node), now);
        }
    }

    /// A node's replica was read and is whole, or another took its place.
    pub fn found_good(&self, chunk: ChunkId, node: NodeId) {
        let mut inner = self.0.lock();
        if inner.bad.remove(&(chunk, node)).is_some() {
            inner.healed += 1;
        }
        match inner.has_bad(chunk) {
            true => drop(inner.proven.insert((chunk, node))),
            false => inner.proven.retain(|(proven, _)| *proven != chunk),
        }
    }

    /// Whether to ask a node to read its replica now. Not as long as it may be at it.
    pub fn may_ask(&self, chunk: ChunkId, node: NodeId, now: Instant) -> bool {
        let asked = &mut self.0.lock().asked;
        let waits = asked.get(&(chunk, node)).is_some_and(|at| now.saturating_duration_since(*at) < ASK_AGAIN);
        if !waits {
            asked.insert((chunk, node), now);
        }
        !waits
    }

    /// A node's replica no longer counts.
    pub fn dropped(&self, chunk: ChunkId, node: NodeId) {
        self.found_good(chunk, node);
        let mut inner = self.0.lock();
        inner.proven.remove(&(chunk, node));
        inner.unwanted.remove(&(chunk, node));
    }

    pub fn is_bad(&self, chunk: ChunkId, node: NodeId) -> bool {
        self.0.lock().bad.contains_key(&(chunk, node))
    }

    /// Chunks with a bad replica, or one that is to be elsewhere.
    pub fn troubled_chunks(&self) -> BTreeSet<ChunkId> {
        let inner = self.0.lock();
        inner.bad.keys().chain(inner.unwanted.keys()).map(|(chunk, _)| *chunk).collect()
    }

    pub fn deletion_ordered(&self, chunk: ChunkId, node: NodeId, now: Instant) {
        self.0.lock().deletions.insert((chunk, node), now);
    }

    pub fn deleted(&self, chunk: ChunkId, node: NodeId) {
        self.0.lock().deletions.remove(&(chunk, node));
    }

    /// Gives up what takes too long, and copies to nodes that `gone` says are dead.
    pub fn sweep(&self, gone: &dyn Fn(NodeId) -> bool, now: Instant) {
        let mut inner = self.0.lock();
        inner
            .flights
            .retain(|(_, target), copy| now.saturating_duration_since(copy.since) < COPY_DEADLINE && !gone(*target));
        inner.hopeless.retain(|_, since| now.saturating_duration_since(*since) < HOPELESS);
        inner.unwanted.retain(|_, said| now.saturating_duration_since(*said) < UNWANTED_REPEATED);
        inner.deletions.retain(|_, since| now.saturating_duration_since(*since) < DELETION_DEADLINE);
        inner.asked.retain(|_, at| now.saturating_duration_since(*at) < ASK_AGAIN);
    }

    /// Fills in what the rows do not say of a chunk.
    pub fn annotate(&self, view: &mut ChunkView) {
        let mut inner = self.0.lock();
        let of_chunk = (view.chunk, NodeId(0))..=(view.chunk, NodeId(u64::MAX));
        // A cut that was applied although its proposer was not told so.
        let stale = inner.bad.range(of_chunk.clone()).filter(|(_, bad)| bad.epoch < view.epoch);
        let stale: Vec<_> = stale.map(|(key, _)| *key).collect();
        for key in stale {
            inner.bad.remove(&key);
        }
        let bad = || inner.bad.range(of_chunk.clone()).filter(|((_, node), _)| view.replicas.contains(node));
        let short = bad().filter_map(|((_, node), bad)| Some((*node, bad.short?))).collect();
        (view.bad, view.short) = (bad().map(|((_, node), _)| *node).collect(), short);
        view.leaving = inner.unwanted.range(of_chunk.clone()).map(|((_, node), _)| *node).collect();
        view.leaving.retain(|node| view.replicas.contains(node) && !view.bad.contains(node));
        view.unproven.clear();
        if !view.bad.is_empty() {
            let known = |node: &&NodeId| view.bad.contains(node) || inner.proven.contains(&(view.chunk, **node));
            view.unproven = view.replicas.iter().filter(|node| !known(node)).copied().collect();
        }
        view.hopeless = inner.hopeless.contains_key(&view.chunk);
        let flights = inner.flights.range(of_chunk.clone());
        view.in_flight = flights.map(|((_, target), copy)| Flight { target: *target, source: copy.source }).collect();
        view.busy = inner.deletions.range(of_chunk).map(|((_, node), _)| *node).collect();
    }

    /// Keeps what a pass found. `health` is `None` if this pass did not count.
    pub fn pass_done(&self, health: Option<ChunkHealth>, waits: Vec<(String, u64)>, queued: u64, now: Instant) {
        let mut inner = self.0.lock();
        if let Some(health) = health {
            inner.health = health;
            inner.health_at = Some(now);
        }
        inner.waits = waits;
        inner.queued = queued;
    }

    pub fn health(&self, now: Instant) -> ChunkHealth {
        let inner = self.0.lock();
        // Nothing was counted yet: that must not look fresh.
        let age = inner.health_at.map_or(u64::MAX, |at| now.saturating_duration_since(at).as_millis() as u64);
        ChunkHealth { age_ms: age, ..inner.health }
    }

    pub fn status(&self, now: Instant) -> RepairStatus {
        let inner = self.0.lock();
        RepairStatus {
            queued: inner.queued,
            copying: inner.copies(false, now),
            copied_chunks: inner.copied_chunks,
            copied_bytes: inner.copied_bytes,
            waits: inner.waits.clone(),
            // Not known here.
            unattended: 0,
            damaged: inner.bad.len() as u64,
            damaged_found: inner.damaged_found,
            healed: inner.healed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flights(board: &Board) -> Vec<(ChunkId, NodeId)> {
        board.0.lock().flights.keys().copied().collect()
    }

    #[test]
    fn balance_is_stuck_when_nothing_can_be_moved_for_a_while() {
        let (board, start) = (Board::default(), Instant::now());
        board.balance(Balance { on: true, points: 5 }, 1 << 20);
        let found = [Found { node: NodeId(1), chunks: vec![ChunkId(7)], next: Cursor::default(), ended: true }];
        let stuck = |after: Duration| board.balance_status(start + after).stuck;
        let pass = |after: Duration, moves: bool| board.searched(1, &found, moves, start + after);
        pass(Duration::ZERO, false);
        assert!(!stuck(STUCK - Duration::from_millis(1)), "a node may just be coming back");
        pass(STUCK / 2, false);
        assert!(stuck(STUCK));
        pass(STUCK, true);
        assert!(!stuck(2 * STUCK));
        pass(STUCK, false);
        pass(2 * STUCK, false);
        assert!(stuck(2 * STUCK));
        board.searched(0, &[], false, start + 2 * STUCK);
        assert!(!stuck(3 * STUCK), "no node is too full");
    }

    #[test]
    fn a_copy_order_that_got_lost_is_given_up_and_one_under_way_is_not() {
        let (board, start) = (Board::default(), Instant::now());
        for chunk in [1, 2] {
            let copy = CopyInFlight { source: Some(NodeId(5)), len: 10, since: start, moves: false };
            board.copy_ordered(ChunkId(chunk), NodeId(9), copy);
        }
        board.copying(NodeId(9), &[ChunkId(2)], start + Duration::from_secs(1));
        assert_eq!(flights(&board).len(), 2);
        board.copying(NodeId(9), &[ChunkId(2), ChunkId(3)], start + COPY_UNCONFIRMED);
        assert_eq!(flights(&board), [(ChunkId(2), NodeId(9)), (ChunkId(3), NodeId(9))]);
        board.sweep(&|node| node == NodeId(9), start + COPY_UNCONFIRMED);
        assert!(flights(&board).is_empty());
    }

    fn view() -> ChunkView {
        ChunkView {
            chunk: ChunkId(1),
            epoch: Epoch(1),
            len: 10,
            target: 2,
            replicas: Vec::new(),
            bad: Vec::new(),
            short: BTreeMap::new(),
            gone: Vec::new(),
            leaving: Vec::new(),
            unproven: Vec::new(),
            hopeless: false,
            in_flight: Vec::new(),
            busy: Vec::new(),
        }
    }

    #[test]
    fn only_replicas_that_still_count_are_shown_as_bad() {
        let board = Board::default();
        board.found_bad(ChunkId(1), NodeId(2), Epoch(1), None);
        board.found_bad(ChunkId(1), NodeId(3), Epoch(1), None);
        let mut view = ChunkView { target: 3, replicas: vec![NodeId(2), NodeId(4)], ..view() };
        board.annotate(&mut view);
        assert_eq!((&view.bad[..], &view.unproven[..]), (&[NodeId(2)][..], &[NodeId(4)][..]));
        board.found_good(ChunkId(1), NodeId(4));
        board.annotate(&mut view);
        assert!(view.unproven.is_empty(), "it was read since");
        board.found_good(ChunkId(1), NodeId(2));
        board.annotate(&mut view);
        assert!(view.bad.is_empty() && view.unproven.is_empty());
        let counts = board.status(Instant::now());
        assert_eq!((counts.damaged_found, counts.healed, counts.damaged), (2, 1, 1));
    }

    #[test]
    fn what_was_said_of_a_chunk_before_it_was_cut_is_not_said_of_what_is_left() {
        let board = Board::default();
        let mut view = ChunkView { replicas: vec![NodeId(2), NodeId(4)], ..view() };
        board.found_bad(ChunkId(1), NodeId(2), Epoch(1), Some(7));
        board.found_bad(ChunkId(1), NodeId(4), Epoch(1), Some(9));
        board.found_bad(ChunkId(1), NodeId(4), Epoch(1), None);
        board.annotate(&mut view);
        assert_eq!((view.bad.len(), &view.short), (2, &BTreeMap::from([(NodeId(2), 7)])), "the latest word counts");
        view.epoch = Epoch(2);
        board.annotate(&mut view);
        assert!(view.bad.is_empty() && view.short.is_empty() && !board.is_bad(ChunkId(1), NodeId(2)));
        board.found_bad(ChunkId(1), NodeId(2), Epoch(2), Some(5));
        board.copy_hopeless(ChunkId(1), Instant::now());
        board.cut(ChunkId(1));
        board.annotate(&mut view);
        assert!(view.bad.is_empty() && !view.hopeless);
    }

    #[test]
    fn what_a_node_wants_to_be_rid_of_and_what_cannot_be_put_together_is_forgotten_in_time() {
        let (board, start) = (Board::default(), Instant::now());
        let mut view = ChunkView { target: 2, replicas: vec![NodeId(2), NodeId(4)], ..view() };
        board.unwanted(ChunkId(1), NodeId(2), start);
        board.unwanted(ChunkId(1), NodeId(9), start);
        board.copy_hopeless(ChunkId(1), start);
        board.annotate(&mut view);
        assert_eq!((view.leaving.clone(), view.hopeless), (vec![NodeId(2)], true));
        assert!(board.troubled_chunks().contains(&ChunkId(1)));
        board.sweep(&|_| false, start + UNWANTED_REPEATED);
        board.annotate(&mut view);
        assert_eq!((view.leaving.clone(), view.hopeless), (vec![], true));
        board.sweep(&|_| false, start + HOPELESS);
        board.annotate(&mut view);
        assert!(!view.hopeless);
    }
}

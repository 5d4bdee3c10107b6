//! One open chunk: what has been appended, who has acknowledged how much, and what a failure means.
//! Decides and does no IO.
//!
//! A chunk has one append stream per lane and each lane stands for one or more replicas: a chain is one
//! lane for all of them, fan-out is a lane for each. The first failure of any lane closes the chunk, and
//! what follows is written elsewhere (seal and switch). With fan-out, the other lanes finish what they were
//! given: nothing has to be sent again as long as enough of them are left. A chain breaks as a whole, and
//! what it had not acknowledged is sent again.

use std::collections::VecDeque;

use dfs_proto::NodeId;
use dfs_proto::limits::{CHUNK_FRAMES_MAX, CHUNK_MAX, FRAME_MAX};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct PieceId(pub u64);

#[derive(Debug)]
pub(crate) struct AppendState {
    lanes: Vec<LaneState>,
    /// Replicas that a byte must have to count as written.
    required: usize,
    /// The replicas that have all that was acknowledged. Never fewer than required: those whose failure leaves too few
    /// stay, for what they had acknowledged before.
    counted: Vec<NodeId>,
    /// Where the next piece goes.
    next: u32,
    frames: u32,
    /// Placed and not acknowledged, with where they end, in order.
    pieces: VecDeque<(PieceId, u32)>,
    last_piece: u64,
    /// Where the last acknowledged piece ends.
    acked: u32,
    /// Up to here lanes have been asked to sync.
    sync_wanted: u32,
    closing: bool,
    end: Option<End>,
}

#[derive(Debug)]
struct LaneState {
    nodes: Vec<NodeId>,
    written: u32,
    synced: u32,
    failed: bool,
}

/// How the chunk ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct End {
    /// Too few replicas are left for what is not committed yet.
    pub lost: bool,
}

/// What an acknowledgement or a failure settles.
#[derive(Default, PartialEq, Eq, Debug)]
pub(crate) struct Settled {
    pub acked: Vec<PieceId>,
    pub failed: Vec<PieceId>,
    /// A lane failed, and the others are to finish and sync what they were given.
    pub closed: bool,
    /// The chunk ended just now.
    pub ended: bool,
}

impl AppendState {
    pub fn new(lanes: Vec<Vec<NodeId>>, required: usize) -> AppendState {
        let counted = lanes.concat();
        let new = |nodes| LaneState { nodes, written: 0, synced: 0, failed: false };
        AppendState {
            lanes: lanes.into_iter().map(new).collect(),
            required,
            counted,
            next: 0,
            frames: 0,
            pieces: VecDeque::new(),
            last_piece: 0,
            acked: 0,
            sync_wanted: 0,
            closing: false,
            end: None,
        }
    }

    /// Reserves the next `len` bytes; `None` if they do not fit or the chunk takes no more.
    pub fn place(&mut self, len: u32) -> Option<(PieceId, u32)> {
        let at = self.next;
        let frames = frames_of(at, len);
        let fits = len <= CHUNK_MAX - at && self.frames + frames <= CHUNK_FRAMES_MAX;
        if self.closing || self.end.is_some() || !fits {
            return None;
        }
        self.next += len;
        self.frames += frames;
        self.last_piece += 1;
        let id = PieceId(self.last_piece);
        self.pieces.push_back((id, self.next));
        Some((id, at))
    }

    /// A lane says how far it is. What it cannot have is cut to what it can.
    pub fn handle_ack(&mut self, lane: usize, written: u32, synced: u32) -> Settled {
        let next = self.next;
        let lane = &mut self.lanes[lane];
        lane.written = lane.written.max(written.min(next));
        lane.synced = lane.synced.max(synced.min(lane.written));
        let mut settled = Settled::default();
        if self.end.is_none() {
            self.progress(&mut settled);
        }
        settled
    }

    /// A lane failed, by the fault of `node`.
    pub fn handle_failure(&mut self, lane: usize, node: NodeId) -> Settled {
        let mut settled = Settled::default();
        if self.end.is_some() || self.lanes[lane].failed {
            return settled;
        }
        self.lanes[lane].failed = true;
        // A lane of one node fails with it. In a chain all but the failed node keep what they acknowledged.
        let failed = match self.lanes[lane].nodes[..] {
            [only] => only,
            _ => node,
        };
        let survivors: Vec<NodeId> = self.counted.iter().copied().filter(|&replica| replica != failed).collect();
        let lost = survivors.len() < self.required;
        if !lost {
            self.counted = survivors;
        }
        if lost || self.lanes.iter().all(|lane| lane.failed) {
            self.end = Some(End { lost });
            settled.ended = true;
            settled.failed = self.pieces.drain(..).map(|(id, _)| id).collect();
        } else {
            settled.closed = self.close();
            self.progress(&mut settled);
        }
        settled
    }

    /// Ends the chunk although no lane failed: nobody may append any more. Nothing of it counts but what
    /// is committed.
    pub fn abandon(&mut self) -> Settled {
        if let Some(end) = &mut self.end {
            // Already settled; but what it holds can no longer be committed.
            let ended = !end.lost;
            end.lost = true;
            return Settled { ended, ..Settled::default() };
        }
        self.end = Some(End { lost: true });
        Settled { failed: self.pieces.drain(..).map(|(id, _)| id).collect(), ended: true, ..Settled::default() }
    }

    /// No more pieces. What is placed is finished and synced, then the chunk ends by itself. `false` if
    /// it was closing already.
    pub fn close(&mut self) -> bool {
        if self.closing || self.end.is_some() {
            return false;
        }
        self.closing = true;
        self.sync_wanted = self.next;
        true
    }

    /// Whether a sync has to be asked for so that all up to `end` gets synced; notes that it is asked.
    pub fn want_sync(&mut self, end: u32) -> bool {
        if self.sync_wanted >= end || self.end.is_some() {
            return false;
        }
        self.sync_wanted = self.next;
        true
    }

    /// Whether enough replicas have synced everything up to `end`.
    pub fn is_synced(&self, end: u32) -> bool {
        let replicas = self.lanes.iter().filter(|lane| !lane.failed && lane.synced >= end).map(|lane| lane.nodes.len());
        replicas.sum::<usize>() >= self.required
    }

    /// Whether a lane owes an acknowledgement of bytes, and whether it owes one of a sync.
    pub fn owes(&self, lane: usize) -> (bool, bool) {
        let lane = &self.lanes[lane];
        (lane.written < self.next, lane.synced < self.sync_wanted)
    }

    /// Bytes that every replica in `counted` has acknowledged.
    pub fn acked(&self) -> u32 {
        self.acked
    }

    pub fn is_closing(&self) -> bool {
        self.closing
    }

    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    pub fn is_idle(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The replicas that count.
    pub fn counted(&self) -> &[NodeId] {
        &self.counted
    }

    /// Takes out the pieces that every lane has, and ends the chunk once it is closed and all of it is synced.
    fn progress(&mut self, settled: &mut Settled) {
        let live = || self.lanes.iter().filter(|lane| !lane.failed);
        let written = live().map(|lane| lane.written).min().unwrap_or(0);
        let synced = live().map(|lane| lane.synced).min().unwrap_or(0);
        while let Some(&(id, end)) = self.pieces.front().filter(|(_, end)| *end <= written) {
            self.pieces.pop_front();
            self.acked = end;
            settled.acked.push(id);
        }
        if self.closing && self.pieces.is_empty() && synced == self.next {
            self.end = Some(End { lost: false });
            settled.ended = true;
        }
    }
}

/// Frames of a piece at `at`: they end at multiples of `FRAME_MAX` in the chunk, so that a long run has
/// full frames however its pieces are cut.
fn frames_of(at: u32, len: u32) -> u32 {
    (at % FRAME_MAX + len).div_ceil(FRAME_MAX)
}

/// Where the frames of a piece at `at` start and end, relative to the piece.
pub(crate) fn frame_bounds(at: u32, len: u32) -> impl Iterator<Item = (u32, u32)> {
    let first = (FRAME_MAX - at % FRAME_MAX).min(len);
    let mut start = 0;
    let mut end = first;
    std::iter::from_fn(move || {
        if start == end {
            return None;
        }
        let frame = (start, end);
        start = end;
        end = (end + FRAME_MAX).min(len);
        Some(frame)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);

    fn fan() -> AppendState {
        AppendState::new(vec![vec![A], vec![B], vec![C]], 2)
    }

    fn chain() -> AppendState {
        AppendState::new(vec![vec![A, B, C]], 2)
    }

    #[test]
    fn a_piece_counts_when_every_lane_has_it() {
        let mut state = fan();
        let (piece, at) = state.place(100).unwrap();
        assert_eq!(at, 0);
        assert!(state.handle_ack(0, 100, 0).acked.is_empty());
        assert!(state.handle_ack(1, 100, 0).acked.is_empty());
        assert_eq!(state.handle_ack(2, 100, 0).acked, [piece]);
        assert_eq!(state.acked(), 100);
    }

    #[test]
    fn the_others_finish_what_they_were_given_when_a_node_fails() {
        let mut state = fan();
        let (first, _) = state.place(100).unwrap();
        let (second, _) = state.place(100).unwrap();
        let (third, _) = state.place(100).unwrap();
        state.handle_ack(0, 200, 200);
        state.handle_ack(1, 200, 0);
        assert_eq!(state.handle_ack(2, 100, 100).acked, [first]);
        let settled = state.handle_failure(2, C);
        assert_eq!(settled, Settled { acked: vec![second], closed: true, ..Settled::default() });
        assert_eq!((state.acked(), state.counted()), (200, &[A, B][..]));
        assert!(state.place(1).is_none() && !state.close());
        assert_eq!(state.handle_failure(2, C), Settled::default(), "a lane fails once");
        assert!(!state.is_synced(100), "what the failed one has synced does not count");
        assert_eq!(state.handle_ack(0, 300, 300), Settled::default());
        assert_eq!(state.handle_ack(1, 300, 0).acked, [third]);
        assert!(state.handle_ack(1, 300, 300).ended && state.is_synced(300));
        assert_eq!((state.end(), state.counted()), (Some(&End { lost: false }), &[A, B][..]));
    }

    #[test]
    fn a_failure_when_all_is_done_ends_the_chunk() {
        let mut state = fan();
        state.place(100).unwrap();
        (0..2).for_each(|lane| drop(state.handle_ack(lane, 100, 100)));
        let settled = state.handle_failure(2, C);
        assert_eq!((settled.acked.len(), settled.closed, settled.ended), (1, true, true));
    }

    #[test]
    fn too_few_survivors_leave_nothing_but_what_was_acknowledged() {
        let mut state = fan();
        let (first, _) = state.place(100).unwrap();
        state.handle_failure(2, C);
        state.handle_ack(0, 100, 0);
        assert_eq!(state.handle_ack(1, 100, 0).acked, [first]);
        let settled = state.handle_failure(1, B);
        assert_eq!(settled, Settled { ended: true, ..Settled::default() });
        assert!(state.end().unwrap().lost);
        assert_eq!((state.acked(), state.counted()), (100, &[A, B][..]));

        let mut state = AppendState::new(vec![vec![A], vec![B]], 2);
        let (piece, _) = state.place(100).unwrap();
        state.handle_ack(0, 100, 0);
        assert_eq!(state.handle_failure(1, B).failed, [piece]);
        assert_eq!((state.acked(), state.counted()), (0, &[A, B][..]));
    }

    #[test]
    fn in_a_chain_all_but_the_failed_node_keep_what_was_acknowledged() {
        let mut state = chain();
        let (first, _) = state.place(100).unwrap();
        let (second, _) = state.place(100).unwrap();
        assert_eq!(state.handle_ack(0, 100, 0).acked, [first]);
        assert_eq!(state.handle_failure(0, B).failed, [second]);
        assert_eq!((state.end(), state.counted()), (Some(&End { lost: false }), &[A, C][..]));
    }

    #[test]
    fn a_closed_chunk_ends_once_all_of_it_is_synced() {
        let mut state = fan();
        state.place(100).unwrap();
        assert!(state.close() && !state.close());
        assert!(state.place(1).is_none());
        for lane in 0..3 {
            assert_eq!(state.owes(lane), (true, true));
            assert!(!state.handle_ack(lane, 100, 0).ended);
        }
        assert!(!state.handle_ack(0, 100, 100).ended);
        assert!(!state.is_synced(100));
        assert!(!state.handle_ack(1, 100, 100).ended);
        assert!(state.is_synced(100), "two of three are enough");
        assert!(state.handle_ack(2, 100, 100).ended);
        assert_eq!((state.end(), state.counted()), (Some(&End { lost: false }), &[A, B, C][..]));
    }

    #[test]
    fn an_acknowledgement_of_bytes_never_sent_counts_as_what_was_sent() {
        let mut state = chain();
        state.place(10).unwrap();
        state.handle_ack(0, 5000, 4000);
        let (piece, _) = state.place(10).unwrap();
        assert_eq!(state.acked(), 10);
        assert_eq!(state.handle_ack(0, 20, 0).acked, [piece]);
    }

    #[test]
    fn a_chunk_is_full_of_bytes_or_of_frames() {
        let mut state = chain();
        let mut pieces = 0;
        while state.place(1 << 20).is_some() {
            pieces += 1;
        }
        assert_eq!(pieces, 64);
        let mut state = chain();
        let mut pieces = 0;
        while state.place(10).is_some() {
            pieces += 1;
        }
        assert!((CHUNK_FRAMES_MAX / 2..=CHUNK_FRAMES_MAX).contains(&pieces), "{pieces}");
    }

    proptest! {
        #[test]
        fn frames_cover_a_piece_and_end_at_their_multiples(at in 0u32..(1 << 21), len in 1u32..(1 << 21)) {
            let frames: Vec<_> = frame_bounds(at, len).collect();
            prop_assert_eq!(frames.len() as u32, frames_of(at, len));
            prop_assert_eq!((frames[0].0, frames.last().unwrap().1), (0, len));
            prop_assert!(frames.windows(2).all(|pair| pair[0].1 == pair[1].0 && (at + pair[0].1) % FRAME_MAX == 0));
            prop_assert!(frames.iter().all(|(start, end)| start < end && end - start <= FRAME_MAX));
        }
    }
}

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp { secs: 1, nanos: 0 };

fn filled(byte: u8, len: usize) -> Bytes {
    Bytes::from(vec![byte; len])
}

impl Upload {
    fn len(&self) -> u32 {
        self.pieces.iter().map(|piece| piece.len() as u32).sum()
    }
}

#[test]
fn a_short_file_goes_to_the_pack_at_its_flush_and_not_before() {
    let mut state = WriteState::default();
    state.write(0, filled(1, 4096), NOW);
    assert!(state.next_upload().is_none());
    let mark = state.force();
    let upload = state.next_upload().unwrap();
    assert_eq!((upload.lane, upload.len()), (Lane::Pack, 4096));
    state.handle_ack(upload.id, ChunkId(7), 100);
    assert!(state.is_uploaded(mark) && !state.is_done(mark));
    let extents = state.take_commit(10);
    assert_eq!(extents, [Extent { file_offset: 0, chunk: ChunkId(7), chunk_offset: 100, len: 4096 }]);
    assert_eq!(state.handle_committed().0, 4096);
    assert!(state.is_done(mark) && state.is_empty());
}

#[test]
fn a_stream_is_uploaded_as_it_is_written_and_its_tail_joins_it() {
    let mut state = WriteState::default();
    for i in 0..10 {
        state.write(i * (128 << 10), filled(i as u8, 128 << 10), NOW);
    }
    let upload = state.next_upload().unwrap();
    assert_eq!((upload.lane, u64::from(upload.len())), (Lane::Stream, UPLOAD_MAX));
    let mut lanes = Vec::new();
    state.write(10 * (128 << 10), filled(9, 1000), NOW);
    state.force();
    while let Some(upload) = state.next_upload() {
        lanes.push(upload.lane);
    }
    assert_eq!(lanes, [Lane::Stream]);
}

#[test]
fn adjacent_uploads_are_committed_as_one_extent() {
    let mut state = WriteState::default();
    state.write(0, filled(1, 3 << 20), NOW);
    let mut at = 0;
    while let Some(upload) = state.next_upload() {
        state.handle_ack(upload.id, ChunkId(1), at);
        at += upload.len();
    }
    assert_eq!(state.take_commit(1), [Extent { file_offset: 0, chunk: ChunkId(1), chunk_offset: 0, len: 3 << 20 }]);
}

#[test]
fn bytes_overwritten_while_under_way_are_not_committed() {
    let mut state = WriteState::default();
    state.write(0, filled(1, 3000), NOW);
    state.force();
    let old = state.next_upload().unwrap();
    assert_eq!(state.write(1000, filled(2, 1000), NOW), 1000);
    state.handle_ack(old.id, ChunkId(1), 50);
    assert_eq!(
        state.take_commit(10),
        [
            Extent { file_offset: 0, chunk: ChunkId(1), chunk_offset: 50, len: 1000 },
            Extent { file_offset: 2000, chunk: ChunkId(1), chunk_offset: 2050, len: 1000 },
        ]
    );
    let (freed, _) = state.handle_committed();
    assert_eq!(freed, 2000);
    assert_eq!(state.overlay(0, 3000), [(1000, filled(2, 1000))]);
}

#[test]
fn a_lost_chunk_makes_its_uncommitted_bytes_due_again() {
    let mut state = WriteState::default();
    state.write(0, filled(1, 1000), NOW);
    let mark = state.force();
    let first = state.next_upload().unwrap();
    state.handle_ack(first.id, ChunkId(1), 0);
    state.handle_lost(ChunkId(1));
    assert!(!state.is_uploaded(mark) && state.take_commit(10).is_empty());
    let again = state.next_upload().unwrap();
    assert_eq!(again.pieces, [filled(1, 1000)]);
    state.handle_ack(first.id, ChunkId(1), 0);
    assert!(state.take_commit(10).is_empty(), "a late acknowledgement counts for nothing");
}

#[test]
fn a_cut_waits_for_the_commit_under_way() {
    let mut state = WriteState::default();
    state.write(0, filled(1, 1000), NOW);
    state.force();
    let upload = state.next_upload().unwrap();
    state.handle_ack(upload.id, ChunkId(1), 0);
    state.take_commit(10);
    assert_eq!(state.truncate(0), 1000);
    let mark = state.force();
    assert!(!state.is_done(mark));
    assert_eq!(state.handle_committed().0, 0);
    assert!(state.is_done(mark));
}

#[test]
fn many_tiny_writes_are_gathered() {
    let mut state = WriteState::default();
    for i in 0..100_000u64 {
        state.write(i, filled(i as u8, 1), NOW);
    }
    assert!(state.segments.len() <= 2, "{} segments", state.segments.len());
    assert_eq!(state.overlay(99_999, 200_000), [(99_999, filled(99_999u32 as u8, 1))]);
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u64,
        len: usize,
        byte: u8,
    },
    Truncate(u64),
    Force,
    Upload,
    /// Of the n-th upload under way.
    Ack(usize),
    Fail(usize),
    Lose(usize),
    TakeCommit(usize),
    Committed,
    Refused,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0u64..900, 1usize..200, any::<u8>()).prop_map(|(offset, len, byte)| Step::Write { offset, len, byte }),
        1 => (0u64..1000).prop_map(Step::Truncate),
        2 => Just(Step::Force),
        4 => Just(Step::Upload),
        4 => (0usize..8).prop_map(Step::Ack),
        1 => (0usize..8).prop_map(Step::Fail),
        1 => (0usize..8).prop_map(Step::Lose),
        2 => (1usize..4).prop_map(Step::TakeCommit),
        2 => Just(Step::Committed),
        1 => Just(Step::Refused),
    ]
}

/// A file, its chunks and its namenode, as simple as can be.
#[derive(Default)]
struct World {
    state: WriteState,
    chunks: BTreeMap<ChunkId, Vec<u8>>,
    uploads: Vec<Upload>,
    committed: Vec<u8>,
    sent: Vec<Extent>,
    /// What an application must read.
    model: Vec<u8>,
    /// Bytes the writer's budget holds.
    held: u64,
}

impl World {
    fn run(&mut self, step: &Step) {
        match *step {
            Step::Write { offset, len, byte } => {
                put(&mut self.model, offset, &vec![byte; len]);
                self.held += len as u64;
                self.held -= self.state.write(offset, filled(byte, len), NOW);
            }
            // As the driver does it: cut, wait until nothing is under way, then cut at the namenode.
            Step::Truncate(size) => {
                self.model.resize(size as usize, 0);
                self.held -= self.state.truncate(size);
                self.drain();
                self.committed.resize(size as usize, 0);
            }
            Step::Force => {
                self.state.force();
            }
            Step::Upload => self.uploads.extend(self.state.next_upload()),
            Step::Ack(n) => {
                if let Some(upload) = self.take_upload(n) {
                    self.ack(upload);
                }
            }
            Step::Fail(n) => {
                if let Some(upload) = self.take_upload(n) {
                    self.state.handle_failure(upload.id);
                }
            }
            Step::Lose(n) => {
                if let Some(&chunk) = self.chunks.keys().nth(n) {
                    self.state.handle_lost(chunk);
                }
            }
            Step::TakeCommit(max) => {
                if self.state.commit.is_none() {
                    self.sent = self.state.take_commit(max);
                }
            }
            Step::Committed => self.committed(),
            Step::Refused => {
                self.state.handle_refused();
                self.sent.clear();
            }
        }
    }

    fn take_upload(&mut self, n: usize) -> Option<Upload> {
        (n < self.uploads.len()).then(|| self.uploads.remove(n))
    }

    fn ack(&mut self, upload: Upload) {
        let chunk = ChunkId(upload.id.0 % 3);
        let bytes = self.chunks.entry(chunk).or_default();
        let at = bytes.len() as u32;
        upload.pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        self.state.handle_ack(upload.id, chunk, at);
    }

    fn committed(&mut self) {
        let (freed, extents) = self.state.handle_committed();
        assert_eq!(extents, std::mem::take(&mut self.sent));
        self.held -= freed;
        for extent in extents {
            let chunk = &self.chunks[&extent.chunk];
            put(
                &mut self.committed,
                extent.file_offset,
                &chunk[extent.chunk_offset as usize..extent.chunk_end() as usize],
            );
        }
    }

    /// A flush with nothing going wrong.
    fn drain(&mut self) {
        let mark = self.state.force();
        while !self.state.is_done(mark) {
            self.committed();
            self.uploads.extend(self.state.next_upload());
            if !self.uploads.is_empty() {
                let upload = self.uploads.remove(0);
                self.ack(upload);
            }
            self.sent = self.state.take_commit(2);
        }
        self.committed();
    }

    /// What a read returns: the committed bytes with the uncommitted ones laid over them.
    fn read(&self) -> Vec<u8> {
        let mut bytes = self.committed.clone();
        for (offset, piece) in self.state.overlay(0, u64::MAX) {
            put(&mut bytes, offset, &piece);
        }
        bytes
    }
}

fn put(target: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + bytes.len());
    if target.len() < end {
        target.resize(end, 0);
    }
    target[start..end].copy_from_slice(bytes);
}

/// Equal but for zeros at the end, which an extension by truncate adds without any bytes.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    let len = a.len().max(b.len());
    (0..len).all(|at| a.get(at).unwrap_or(&0) == b.get(at).unwrap_or(&0))
}

proptest! {
    #[test]
    fn reads_always_see_every_write_and_a_flush_commits_all_of_them(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::default();
        for step in &steps {
            world.run(step);
            let state = &world.state;
            prop_assert!(same_bytes(&world.read(), &world.model), "after {:?}", step);
            prop_assert_eq!(world.held, state.bytes);
            prop_assert_eq!(state.bytes, state.segments.values().map(Segment::len).sum::<u64>());
            let acked: u64 = state.segments.values()
                .filter(|s| matches!(s.place, Place::Acked { committing: false, .. })).map(Segment::len).sum();
            prop_assert_eq!(state.acked_bytes, acked);
            for (start, end) in state.due.iter() {
                prop_assert!(state.dirty.covers(start, end));
            }
        }
        world.drain();
        prop_assert!(world.state.is_empty());
        prop_assert_eq!(world.held, 0);
        prop_assert!(same_bytes(&world.committed, &world.model));
    }
}

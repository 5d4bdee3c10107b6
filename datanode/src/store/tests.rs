//! The store's promises, on real files: what survives a crash, what is noticed, what is refused.

mod crashes;
mod volumes;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use bytes::Bytes;
use dfs_proto::chunk::replica_digest;
use dfs_proto::limits::{CHUNK_FRAMES_MAX, FRAME_MAX};
use dfs_proto::{Epoch, FrameHeader, NodeId, PeerIdentity, Role};
use dfs_rpc::TlsFiles;
use proptest::prelude::*;
use rustix::io::Errno;
use tempfile::TempDir;

use super::format::{data_offset, entry_offset};
use super::seal::Sealed;
use super::*;
use crate::clock;

const CHUNK: ChunkId = ChunkId(0x1234);
const FIRST: Epoch = Epoch(1);
const SECOND: Epoch = Epoch(2);

/// A datanode's folders, which can be opened again and again as after a crash.
struct Rig {
    _dir: TempDir,
    config: Config,
}

impl Rig {
    fn with_volumes(count: usize) -> Rig {
        let dir = crate::scratch::folder();
        let me = PeerIdentity { cluster: ClusterId([7; 16]), role: Role::Datanode, id: NodeId(11) };
        let tls = TlsFiles { ca: PathBuf::new(), cert: PathBuf::new(), key: PathBuf::new() };
        let data_dir = dir.path().join("data");
        let mut config = Config::new(me, "dn".into(), data_dir, "127.0.0.1:0".parse().unwrap(), Vec::new(), tls);
        config.volumes = (0..count).map(|number| dir.path().join(format!("volume{number}"))).collect();
        Rig { _dir: dir, config }
    }

    fn open(&self) -> Store {
        let store = Store::open(&self.config).unwrap();
        store.scan();
        store
    }

    fn file(&self, chunk: ChunkId) -> PathBuf {
        let name = format!("chunks/{:02x}/{:016x}.chunk", chunk.0 % 256, chunk.0);
        let mut paths = self.config.volumes.iter().map(|volume| volume.join(&name));
        paths.find(|path| path.exists()).expect("the chunk has a file")
    }

    fn overwrite(&self, chunk: ChunkId, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.file(chunk)).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn flip(&self, chunk: ChunkId, offset: u64) {
        let file = OpenOptions::new().read(true).write(true).open(self.file(chunk)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
    }
}

/// Frames of these lengths from byte 0 on, each with other bytes.
fn frames(chunk: ChunkId, lens: &[u32]) -> Vec<(FrameHeader, Bytes)> {
    let mut offset = 0;
    let mut frames = Vec::new();
    for (number, len) in lens.iter().enumerate() {
        let bytes: Vec<u8> = (0..*len).map(|i| (number as u32 * 31 + i * 7 + 1) as u8).collect();
        frames.push((FrameHeader::new(chunk, offset, &bytes), bytes.into()));
        offset += len;
    }
    frames
}

fn end(frames: &[(FrameHeader, Bytes)]) -> u32 {
    frames.last().map_or(0, |(frame, _)| frame.end())
}

/// Everything that is served of a chunk, each frame checked as a reader would.
fn read_all(store: &Store, chunk: ChunkId) -> Result<Vec<(FrameHeader, Bytes)>, StoreError> {
    let len = store.get(chunk).unwrap().len;
    let mut reader = store.reader(chunk, FIRST, 0, len)?;
    let mut read = Vec::new();
    while let Some(batch) = reader.next_batch()? {
        read.extend(batch.iter().map(|(frame, bytes)| (*frame, bytes)));
    }
    Ok(read)
}

fn verify(store: &Store, chunk: ChunkId) -> Result<Verdict, StoreError> {
    let mut verification = store.begin_verification(chunk)?;
    while store.step_verification(&mut verification) {}
    Ok(store.end_verification(verification))
}

fn sealed(store: &Store, frames: &[(FrameHeader, Bytes)]) {
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, frames).unwrap();
    assert_eq!(store.seal(CHUNK, SECOND, end(frames)).unwrap(), Sealed::Now);
}

#[test]
fn what_was_appended_is_read_back_in_any_range() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let frames = frames(CHUNK, &[FRAME_MAX, 5, FRAME_MAX, 4096, 1, FRAME_MAX]);
    let open = store.create(CHUNK, FIRST).unwrap();
    for pair in frames.chunks(2) {
        store.append(&open, pair).unwrap();
    }
    assert_eq!(read_all(&store, CHUNK).unwrap(), frames);
    for (frame, bytes) in &frames {
        for (offset, len) in [(frame.offset, frame.len), (frame.end() - 1, 1), (frame.offset, 1)] {
            let batch = store.reader(CHUNK, FIRST, offset, len).unwrap().next_batch().unwrap().unwrap();
            assert_eq!(batch.iter().map(|(f, b)| (*f, b)).collect::<Vec<_>>(), [(*frame, bytes.clone())]);
        }
    }
}

#[test]
fn frames_that_are_wrong_or_do_not_follow_are_refused_and_leave_nothing() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let frames = frames(CHUNK, &[100, 200]);
    let open = store.create(CHUNK, FIRST).unwrap();
    assert!(matches!(store.append(&open, &frames[1..]), Err(StoreError::NotContiguous { .. })));
    let wrong = [(frames[0].0, Bytes::from(vec![9; 100]))];
    assert!(matches!(store.append(&open, &wrong), Err(StoreError::WrongDigest { offset: 0, .. })));
    store.append(&open, &frames).unwrap();
    assert!(matches!(store.append(&open, &frames), Err(StoreError::NotContiguous { .. })));
    assert_eq!(store.get(CHUNK).unwrap().len, 300);
}

#[test]
fn a_chunk_takes_no_more_frames_than_its_index_has_entries() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let frames = frames(CHUNK, &vec![1; CHUNK_FRAMES_MAX as usize + 1]);
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &frames[..CHUNK_FRAMES_MAX as usize]).unwrap();
    assert!(matches!(store.append(&open, &frames[CHUNK_FRAMES_MAX as usize..]), Err(StoreError::Full(_))));
    assert_eq!(verify(&store, CHUNK).unwrap(), Verdict::Whole { epoch: FIRST, len: CHUNK_FRAMES_MAX });
}

#[test]
fn a_chunk_has_one_append_stream_in_its_life() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    assert!(matches!(store.create(CHUNK, SECOND), Err(StoreError::AlreadyHere(_))));
    open.end_of_stream();
    assert!(matches!(store.append(&open, &frames(CHUNK, &[10])), Err(StoreError::NotOpen(_))));
    drop((open, store));
    assert!(matches!(rig.open().create(CHUNK, SECOND), Err(StoreError::AlreadyHere(_))));
}

#[test]
fn nothing_is_created_before_the_volumes_are_read() {
    let rig = Rig::with_volumes(1);
    let store = Store::open(&rig.config).unwrap();
    assert!(matches!(store.create(CHUNK, FIRST), Err(StoreError::NotScanned)));
    assert!(matches!(store.reader(CHUNK, FIRST, 0, 1), Err(StoreError::NotScanned)));
}

#[test]
fn a_seal_cuts_the_tail_takes_the_epoch_and_survives() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let frames = frames(CHUNK, &[FRAME_MAX, 500, 700]);
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &frames).unwrap();
    let len = end(&frames[..2]);
    assert_eq!(store.seal(CHUNK, SECOND, len).unwrap(), Sealed::Now);
    assert_eq!(store.seal(CHUNK, SECOND, len).unwrap(), Sealed::Before);
    assert!(matches!(store.append(&open, &frames[..1]), Err(StoreError::NotOpen(_))));
    drop((open, store));
    let store = rig.open();
    assert_eq!(fs::metadata(rig.file(CHUNK)).unwrap().len(), data_offset(len));
    assert_eq!(store.digests()[0x34], replica_digest(CHUNK, SECOND, len));
    assert_eq!(read_all(&store, CHUNK).unwrap(), frames[..2]);
    assert_eq!(verify(&store, CHUNK).unwrap(), Verdict::Whole { epoch: SECOND, len });
}

#[test]
fn a_seal_that_was_interrupted_before_the_cut_is_finished_at_the_next_start() {
    let rig = Rig::with_volumes(1);
    let frames = frames(CHUNK, &[500, 700]);
    sealed(&rig.open(), &frames);
    rig.overwrite(CHUNK, data_offset(end(&frames)), b"tail");
    let store = rig.open();
    assert_eq!(fs::metadata(rig.file(CHUNK)).unwrap().len(), data_offset(1200));
    assert_eq!(store.get(CHUNK).unwrap().state, State::Sealed);
}

#[test]
fn orders_of_an_older_epoch_change_nothing() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    sealed(&store, &frames(CHUNK, &[500, 700]));
    let before = store.get(CHUNK).unwrap();
    assert_eq!(store.seal(CHUNK, FIRST, 500).unwrap(), Sealed::Outdated);
    assert_eq!(store.delete(CHUNK, FIRST).unwrap(), Deleted::Outdated);
    assert_eq!(store.get(CHUNK).unwrap(), before);
    assert!(matches!(store.reader(CHUNK, Epoch(3), 0, 1), Err(StoreError::StaleEpoch { .. })));
}

#[test]
fn an_outdated_seal_does_not_stop_a_writer() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let open = store.create(CHUNK, SECOND).unwrap();
    assert_eq!(store.seal(CHUNK, FIRST, 0).unwrap(), Sealed::Outdated);
    store.append(&open, &frames(CHUNK, &[10])).unwrap();
}

#[test]
fn an_open_replica_serves_committed_bytes_before_its_seal_order_arrives() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &frames(CHUNK, &[100])).unwrap();
    assert!(store.reader(CHUNK, SECOND, 0, 100).is_ok());
    let front = store.reader(CHUNK, SECOND, 0, 101).unwrap().next_batch().unwrap().unwrap();
    assert_eq!(front.frames.last().unwrap().end(), 100);
    assert!(matches!(store.reader(CHUNK, SECOND, 100, 1), Err(StoreError::Short { here: 100, asked: 101, .. })));
}

#[test]
fn a_seal_within_a_frame_is_refused() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &frames(CHUNK, &[100, 100])).unwrap();
    assert!(matches!(store.seal(CHUNK, SECOND, 150), Err(StoreError::Damaged { .. })));
}

#[test]
fn damage_in_a_sealed_chunk_is_found_marked_and_does_not_hide_the_good_frames() {
    let rig = Rig::with_volumes(1);
    let frames = frames(CHUNK, &[FRAME_MAX, FRAME_MAX, FRAME_MAX]);
    let store = rig.open();
    sealed(&store, &frames);
    rig.flip(CHUNK, data_offset(FRAME_MAX + 7));
    assert!(matches!(verify(&store, CHUNK).unwrap(), Verdict::Damaged { epoch: SECOND, .. }));
    drop(store);
    let store = rig.open();
    let replica = store.get(CHUNK).unwrap();
    assert_eq!((replica.state, replica.whole), (State::Damaged, FRAME_MAX));
    assert_eq!(store.digests()[0x34], 0);
    assert!(matches!(store.local_file(CHUNK), Err(StoreError::NotSealed(_))), "readers here ask for single frames");
    let read = read_all(&store, CHUNK).unwrap();
    let good: Vec<_> = read.iter().map(|(frame, bytes)| frame.matches(CHUNK, bytes)).collect();
    assert_eq!(good, [true, false, true]);
    drop(store);
    let report = verify_file(&rig.file(CHUNK)).unwrap();
    assert_eq!((report.whole, report.problems.len()), (FRAME_MAX, 2), "{report}");
}

#[test]
fn a_file_that_is_no_chunk_file_is_reported_as_bad_and_goes_by_order_only() {
    let rig = Rig::with_volumes(1);
    sealed(&rig.open(), &frames(CHUNK, &[100]));
    rig.overwrite(CHUNK, 0, &[9; 1024]);
    let store = rig.open();
    let report = store.unsealed(10)[0];
    assert_eq!((report.chunk, report.len, report.epoch, report.sealed), (CHUNK, 0, Epoch(0), false));
    assert!(rig.file(CHUNK).exists());
    assert_eq!(store.delete(CHUNK, SECOND).unwrap(), Deleted::Gone);
    assert!(store.get(CHUNK).is_none());
}

#[test]
fn a_deleted_chunk_lies_in_the_trash_until_its_time_has_come() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    sealed(&store, &frames(CHUNK, &[FRAME_MAX; 8]));
    assert_eq!(store.delete(CHUNK, SECOND).unwrap(), Deleted::Gone);
    assert_eq!(store.delete(CHUNK, SECOND).unwrap(), Deleted::Gone);
    let trash = || fs::read_dir(rig.config.volumes[0].join("trash")).unwrap().count();
    store.maintain(clock::now_s() - 100);
    let trashed = fs::read_dir(rig.config.volumes[0].join("trash")).unwrap().next().unwrap().unwrap().path();
    let held = File::open(trashed).unwrap();
    assert_eq!(trash(), 1);
    store.maintain(clock::now_s() + 100);
    assert_eq!(trash(), 0);
    let left = held.metadata().unwrap();
    assert_eq!((left.nlink(), left.blocks()), (0, 0), "a client that has it open does not keep its room");
}

#[test]
fn a_failed_sync_latches_the_volume_for_good() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    let frames = frames(CHUNK, &[100, 100]);
    store.append(&open, &frames[..1]).unwrap();
    store.faults.plan(Access::Sync, Errno::IO);
    assert!(matches!(store.sync_open(&open), Err(StoreError::VolumeFailed { .. })));
    assert_eq!(open.synced(), 0);
    assert!(matches!(store.sync_open(&open), Err(StoreError::VolumeFailed { .. })));
    assert!(matches!(store.append(&open, &frames[1..]), Err(StoreError::VolumeFailed { .. })));
    assert!(store.unsealed(10).is_empty());
    assert!(store.volume_status()[0].failed.as_ref().is_some_and(|reason| reason.contains("sync")));
    assert_eq!(read_all(&store, CHUNK).unwrap(), frames[..1]);
    assert!(matches!(verify(&store, CHUNK), Err(StoreError::VolumeFailed { .. })));
    drop((open, store));
    assert!(Store::open(&rig.config).is_err_and(|error| error.to_string().contains("sync")));
}

#[test]
fn a_failed_write_latches_the_volume_and_the_others_go_on() {
    let rig = Rig::with_volumes(2);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    store.faults.plan(Access::Write, Errno::IO);
    assert!(matches!(store.append(&open, &frames(CHUNK, &[100])), Err(StoreError::VolumeFailed { .. })));
    assert_eq!(store.usable_volumes().len(), 1);
    let open = store.create(ChunkId(2), FIRST).unwrap();
    store.append(&open, &frames(ChunkId(2), &[100])).unwrap();
    assert_eq!(store.sync_open(&open).unwrap(), 100);
}

#[test]
fn a_full_disk_fails_the_append_and_not_the_volume() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let open = store.create(CHUNK, FIRST).unwrap();
    let frames = frames(CHUNK, &[100, 100]);
    store.append(&open, &frames[..1]).unwrap();
    store.faults.plan(Access::Write, Errno::NOSPC);
    assert!(matches!(store.append(&open, &frames[1..]), Err(StoreError::NoSpace)));
    assert_eq!(store.usable_volumes(), [0]);
    assert_eq!(store.seal(CHUNK, SECOND, 100).unwrap(), Sealed::Now);
}

#[test]
fn every_disk_error_during_a_seal_leaves_a_replica_that_can_still_be_sealed() {
    // The seal writes twice (header, cut) and syncs twice (frames, header); each may fail.
    for (access, passed) in [(Access::Sync, 0), (Access::Write, 0), (Access::Sync, 1), (Access::Write, 1)] {
        let rig = Rig::with_volumes(1);
        let store = rig.open();
        let frames = frames(CHUNK, &[100, 200]);
        let open = store.create(CHUNK, FIRST).unwrap();
        store.append(&open, &frames).unwrap();
        store.faults.plan_after(access, passed, Errno::IO);
        assert!(matches!(store.seal(CHUNK, SECOND, 100), Err(StoreError::VolumeFailed { .. })), "{access:?} {passed}");
        drop((open, store));
        fs::remove_file(rig.config.data_dir.join("VOLUMES")).unwrap();
        let store = rig.open();
        assert!(matches!(store.seal(CHUNK, SECOND, 100).unwrap(), Sealed::Now | Sealed::Before));
        assert_eq!(read_all(&store, CHUNK).unwrap(), frames[..1]);
    }
}

/// A file whose folder is not synced may be gone after a power cut, whatever was synced in it.
#[test]
fn nothing_is_ready_before_its_folder_is_synced() {
    for folder in [false, true] {
        let rig = Rig::with_volumes(1);
        let store = rig.open();
        // The file is synced first, and then its folder.
        store.faults.plan_after(Access::Sync, usize::from(folder), Errno::IO);
        assert!(matches!(store.create(CHUNK, FIRST), Err(StoreError::VolumeFailed { .. })), "{folder}");
        assert!(store.unsealed(10).is_empty());

        let rig = Rig::with_volumes(1);
        let store = rig.open();
        let mut incoming = store.begin_copy(CHUNK, SECOND, 100).unwrap();
        store.copy_frames(&mut incoming, &frames(CHUNK, &[100])).unwrap();
        store.faults.plan_after(Access::Sync, usize::from(folder), Errno::IO);
        assert!(matches!(store.publish(incoming), Err(StoreError::VolumeFailed { .. })), "{folder}");
        assert!(store.get(CHUNK).is_none());
    }
}

#[test]
fn a_volume_that_is_missing_or_empty_is_never_taken_for_one_without_chunks() {
    let rig = Rig::with_volumes(2);
    let store = rig.open();
    drop(store);
    fs::remove_dir_all(&rig.config.volumes[0]).unwrap();
    let store = rig.open();
    assert!(store.volume_status()[0].failed.is_some());
    assert_eq!(store.usable_volumes(), [1]);
    drop(store);
    fs::create_dir_all(&rig.config.volumes[0]).unwrap();
    fs::remove_dir_all(&rig.config.volumes[1]).unwrap();
    assert!(Store::open(&rig.config).is_err());
}

#[test]
fn a_volume_that_left_the_configuration_is_still_reported() {
    let mut rig = Rig::with_volumes(2);
    drop(rig.open());
    rig.config.volumes.pop();
    let status = rig.open().volume_status();
    assert_eq!(status.len(), 2);
    assert!(status[1].failed.is_some());
}

#[test]
fn folders_that_must_exist_are_not_made() {
    let mut rig = Rig::with_volumes(1);
    rig.config.must_exist = true;
    assert!(Store::open(&rig.config).is_err());
    crate::prepare(&rig.config).unwrap();
    drop(rig.open());
    for gone in [rig.config.volumes[0].clone(), rig.config.data_dir.clone()] {
        fs::remove_dir_all(gone).unwrap();
        assert!(Store::open(&rig.config).is_err());
    }
}

#[test]
fn a_second_process_and_a_foreign_folder_are_refused() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    assert!(Store::open(&rig.config).is_err());
    drop(store);
    let mut other = rig.config.clone();
    other.node = NodeId(12);
    assert!(Store::open(&other).is_err());
}

#[test]
fn a_copy_is_a_replica_only_when_it_is_whole() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let frames = frames(CHUNK, &[FRAME_MAX, 500, 700]);
    let mut wrong = frames.clone();
    wrong[1].1 = Bytes::from(vec![0; 500]);
    let mut incoming = store.begin_copy(CHUNK, SECOND, end(&frames)).unwrap();
    assert!(
        matches!(store.copy_frames(&mut incoming, &wrong), Err(StoreError::WrongDigest { offset, .. }) if offset == FRAME_MAX)
    );
    assert_eq!(incoming.have(), FRAME_MAX);
    assert!(store.publish(incoming).is_err());
    assert!(store.get(CHUNK).is_none());
    assert_eq!(fs::read_dir(rig.config.volumes[0].join("incoming")).unwrap().count(), 0);

    let mut incoming = store.begin_copy(CHUNK, SECOND, end(&frames)).unwrap();
    store.copy_frames(&mut incoming, &frames[..1]).unwrap();
    store.copy_frames(&mut incoming, &frames[1..]).unwrap();
    store.publish(incoming).unwrap();
    drop(store);
    let store = rig.open();
    assert_eq!(read_all(&store, CHUNK).unwrap(), frames);
    assert_eq!(store.digests()[0x34], replica_digest(CHUNK, SECOND, end(&frames)));
}

#[test]
fn a_second_copy_of_a_chunk_is_refused_until_the_first_is_over() {
    let rig = Rig::with_volumes(1);
    let store = rig.open();
    let frames = frames(CHUNK, &[500, 700]);
    let mut first = store.begin_copy(CHUNK, FIRST, 1200).unwrap();
    store.copy_frames(&mut first, &frames[..1]).unwrap();
    assert!(matches!(store.begin_copy(CHUNK, SECOND, 1200), Err(StoreError::Copying(CHUNK))));
    // Being refused leaves the one that is under way alone.
    assert!(matches!(store.begin_copy(CHUNK, SECOND, 1200), Err(StoreError::Copying(CHUNK))));
    store.copy_frames(&mut first, &frames[1..]).unwrap();
    store.publish(first).unwrap();
    let mut second = store.begin_copy(CHUNK, SECOND, 1200).unwrap();
    store.copy_frames(&mut second, &frames).unwrap();
    store.publish(second).unwrap();
    assert_eq!(read_all(&store, CHUNK).unwrap(), frames);
    drop(store.begin_copy(CHUNK, SECOND, 1200).unwrap());
    assert!(store.begin_copy(CHUNK, SECOND, 1200).is_ok());
}

#[test]
fn a_copy_replaces_an_older_replica_and_never_a_newer_one() {
    let rig = Rig::with_volumes(2);
    let store = rig.open();
    let frames = frames(CHUNK, &[500, 700]);
    let open = store.create(CHUNK, FIRST).unwrap();
    store.append(&open, &frames[..1]).unwrap();
    let copy = |epoch| {
        let mut incoming = store.begin_copy(CHUNK, epoch, 1200).unwrap();
        store.copy_frames(&mut incoming, &frames).unwrap();
        store.publish(incoming)
    };
    copy(SECOND).unwrap();
    assert_eq!(read_all(&store, CHUNK).unwrap(), frames);
    assert!(matches!(store.append(&open, &frames[1..]), Err(StoreError::NotOpen(_))));
    assert!(matches!(copy(FIRST), Err(StoreError::StaleEpoch { .. })));
    assert_eq!(store.get(CHUNK).unwrap().epoch, SECOND);
}

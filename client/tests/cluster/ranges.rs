//! Ranges of files: holes, and bytes that files share.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use dfs_client::{Fallocate, File, OpenMode};
use dfs_proto::limits::{FILE_MAX, RANGE_EXTENTS_MAX};
use dfs_proto::{ErrorKind, SessionId};

use crate::fake::Cluster;
use crate::{ROOT, create, pattern, read_elsewhere};

const PUNCH: Fallocate = Fallocate { zero: true, keep_size: true };
const ZERO: Fallocate = Fallocate { zero: true, keep_size: false };
const EXTEND: Fallocate = Fallocate { zero: false, keep_size: false };

/// A file as bytes, and which of them are data rather than hole.
#[derive(Clone, Default)]
struct Model {
    bytes: Vec<u8>,
    data: Vec<bool>,
}

impl Model {
    fn grow(&mut self, size: usize) {
        let size = self.bytes.len().max(size);
        self.bytes.resize(size, 0);
        self.data.resize(size, false);
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.grow(offset + bytes.len());
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.data[offset..offset + bytes.len()].fill(true);
    }

    fn punch(&mut self, start: usize, end: usize) {
        let (start, end) = (start.min(self.bytes.len()), end.min(self.bytes.len()));
        self.bytes[start..end].fill(0);
        self.data[start..end].fill(false);
    }

    fn copy(&mut self, source: &Model, from: usize, to: usize, len: usize) {
        self.grow(to + len);
        self.bytes[to..to + len].copy_from_slice(&source.bytes[from..from + len]);
        // A short range is copied, and then zeros are data.
        match len < 4096 {
            true => self.data[to..to + len].fill(true),
            false => self.data[to..to + len].copy_from_slice(&source.data[from..from + len]),
        }
    }

    fn next(&self, offset: usize, data: bool) -> Option<u64> {
        let found = (offset..self.data.len()).find(|at| self.data[*at] == data).map(|at| at as u64);
        if data { found } else { found.or((offset < self.data.len()).then_some(self.data.len() as u64)) }
    }
}

async fn copy_all(file: &File, source: &File, from: u64, to: u64, len: u64) -> u64 {
    let mut done = 0;
    while done < len {
        match file.copy_from(&ROOT, source, from + done, to + done, len - done).await.unwrap() {
            0 => break,
            more => done += more,
        }
    }
    done
}

#[tokio::test]
async fn two_files_agree_with_a_model_of_bytes_and_holes() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let files = [create(&dfs, "a").await, create(&dfs, "b").await];
    let mut models = [Model::default(), Model::default()];
    let mut state = 11u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for round in 0..400u64 {
        let (one, other) = (random(2), random(2));
        let (offset, len) = (random(200_000), 1 + random(30_000));
        let end = offset + len;
        let (file, range) = (&files[one], (offset as u64, len as u64));
        match random(11) {
            0..=3 => {
                let bytes = pattern(round, len);
                models[one].write(offset, &bytes);
                file.write(offset as u64, bytes).await.unwrap();
            }
            4 => {
                models[one].punch(offset, end);
                file.fallocate(&ROOT, range.0, range.1, PUNCH).await.unwrap();
            }
            5 => {
                models[one].punch(offset, end);
                models[one].grow(end);
                file.fallocate(&ROOT, range.0, range.1, ZERO).await.unwrap();
            }
            6 => {
                models[one].grow(end);
                file.fallocate(&ROOT, range.0, range.1, EXTEND).await.unwrap();
            }
            7 => {
                models[one].punch(offset, usize::MAX);
                models[one].grow(offset);
                models[one].bytes.truncate(offset);
                models[one].data.truncate(offset);
                file.set_size(offset as u64).await.unwrap();
            }
            8 => file.flush().await.unwrap(),
            _ => {
                let from = random(200_000);
                let len = len.min(models[other].bytes.len().saturating_sub(from));
                if one == other && from < offset + len && offset < from + len {
                    let refused = file.copy_from(&ROOT, &files[other], from as u64, range.0, len as u64).await;
                    assert_eq!(refused.unwrap_err().kind, ErrorKind::InvalidArgument);
                    continue;
                }
                // More than there is, but of the file itself, which the copy may lengthen.
                let asked = if one == other { len as u64 } else { range.1 };
                let done = copy_all(file, &files[other], from as u64, range.0, asked).await;
                assert_eq!(done, len as u64, "round {round}");
                if len > 0 {
                    let source = models[other].clone();
                    models[one].copy(&source, from, offset, len);
                }
            }
        }
        let model = &models[one];
        assert_eq!(file.attr().size_bytes, model.bytes.len() as u64, "round {round}");
        let at = random(210_000);
        let read = file.read(at as u64, 40_000).await.unwrap();
        let expected = &model.bytes[at.min(model.bytes.len())..model.bytes.len().min(at + 40_000)];
        assert!(read == expected, "round {round}");
        assert_eq!(file.seek_data(at as u64).await.unwrap(), model.next(at, true), "round {round}");
        assert_eq!(file.seek_hole(at as u64).await.unwrap(), model.next(at, false), "round {round}");
    }
    for (file, model) in files.iter().zip(&models) {
        file.flush().await.unwrap();
        assert!(file.read(0, 300_000).await.unwrap() == model.bytes);
    }
    assert!(read_elsewhere(&cluster, "/a").await == models[0].bytes);
    assert!(read_elsewhere(&cluster, "/b").await == models[1].bytes);
}

#[tokio::test]
async fn what_was_written_before_a_punch_does_not_come_back_and_what_is_written_after_stays() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "file").await;
    // Not stored yet, on its way, and committed: all of it goes.
    file.write(0, pattern(1, 3 << 20)).await.unwrap();
    file.flush().await.unwrap();
    file.write(100_000, pattern(2, 2 << 20)).await.unwrap();
    file.write(50_000, pattern(3, 1000)).await.unwrap();
    file.fallocate(&ROOT, 0, 3 << 20, PUNCH).await.unwrap();
    file.write(200_000, pattern(4, 1000)).await.unwrap();
    file.close().await.unwrap();
    let mut expected = vec![0; 3 << 20];
    expected[200_000..201_000].copy_from_slice(&pattern(4, 1000));
    assert!(read_elsewhere(&cluster, "/file").await == expected);
}

#[tokio::test]
async fn a_punch_over_the_end_of_unstored_bytes_leaves_the_size() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "file").await;
    file.write(1000, pattern(1, 1000)).await.unwrap();
    file.fallocate(&ROOT, 1500, 5000, PUNCH).await.unwrap();
    assert_eq!(file.attr().size_bytes, 2000);
    file.close().await.unwrap();
    let bytes = read_elsewhere(&cluster, "/file").await;
    assert!(bytes.len() == 2000 && bytes[1000..1500] == pattern(1, 1000)[..500]);
}

#[tokio::test]
async fn a_commit_under_way_does_not_bring_back_what_is_punched() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "file").await;
    let held = cluster.namenode.commits.write().await;
    file.write(0, pattern(1, 50_000)).await.unwrap();
    let flush = tokio::spawn({
        let file = file.clone();
        async move { file.flush().await }
    });
    while cluster.namenode.commits_waiting.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let punch = tokio::spawn({
        let file = file.clone();
        async move { file.fallocate(&ROOT, 0, 50_000, PUNCH).await }
    });
    // Were it not to wait for the commit, it would be done soon.
    let _ = tokio::time::timeout(Duration::from_millis(300), async {
        while !cluster.namenode.done.lock().contains_key("fallocate") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(held);
    flush.await.unwrap().unwrap();
    punch.await.unwrap().unwrap();
    assert_eq!(cluster.namenode.extents(file.inode()), []);
}

#[tokio::test]
async fn a_copy_shares_chunks_and_a_sync_of_it_waits_for_the_sources_bytes() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let (source, copy) = (create(&dfs, "source").await, create(&dfs, "copy").await);
    let bytes = pattern(1, 5 << 20);
    source.write(0, bytes.clone()).await.unwrap();
    assert_eq!(copy.copy_from(&ROOT, &source, 0, 0, 5 << 20).await.unwrap(), 5 << 20);
    assert_eq!(cluster.namenode.extents(source.inode()), cluster.namenode.extents(copy.inode()));
    copy.sync().await.unwrap();
    assert!(cluster.namenode.extents(copy.inode()).iter().all(|extent| cluster.is_synced(extent)));
    // Neither sees what is written to the other.
    source.write(1000, pattern(2, 1000)).await.unwrap();
    copy.write(3000, pattern(3, 1000)).await.unwrap();
    source.close().await.unwrap();
    copy.close().await.unwrap();
    let (mut a, mut b) = (bytes.to_vec(), bytes.to_vec());
    a[1000..2000].copy_from_slice(&pattern(2, 1000));
    b[3000..4000].copy_from_slice(&pattern(3, 1000));
    assert!(read_elsewhere(&cluster, "/source").await == a);
    assert!(read_elsewhere(&cluster, "/copy").await == b);
}

#[tokio::test]
async fn bytes_in_a_chunk_that_another_client_writes_to_are_copied() {
    let cluster = Cluster::start(3).await;
    let (writer, dfs) = (cluster.client().await, cluster.client().await);
    let open = create(&writer, "open").await;
    open.write(0, pattern(1, 100_000)).await.unwrap();
    open.flush().await.unwrap();
    let source = dfs.open(&ROOT, open.inode(), OpenMode::READ).await.unwrap();
    let copy = create(&dfs, "copy").await;
    assert_eq!(copy_all(&copy, &source, 0, 0, 1 << 20).await, 100_000);
    copy.flush().await.unwrap();
    assert_ne!(cluster.namenode.extents(open.inode())[0].chunk, cluster.namenode.extents(copy.inode())[0].chunk);
    // When the writer's session is over its chunks are sealed.
    cluster.namenode.expire(SessionId(1));
    let second = create(&dfs, "second").await;
    assert_eq!(copy_all(&second, &source, 0, 0, 1 << 20).await, 100_000);
    assert_eq!(cluster.namenode.extents(open.inode()), cluster.namenode.extents(second.inode()));
    assert!(read_elsewhere(&cluster, "/copy").await == pattern(1, 100_000));
}

/// Writes `count` pieces of one byte, every hundredth byte of the file.
async fn scattered(file: &File, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; 100 * (count - 1) + 1];
    for at in (0..bytes.len()).step_by(100) {
        bytes[at] = (at / 100) as u8 | 1;
        file.write(at as u64, Bytes::copy_from_slice(&bytes[at..=at])).await.unwrap();
    }
    file.flush().await.unwrap();
    bytes
}

#[tokio::test]
async fn more_extents_than_one_command_takes_are_copied_punched_and_cut_in_several() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let count = 2 * RANGE_EXTENTS_MAX + 100;
    let (source, copy) = (create(&dfs, "source").await, create(&dfs, "copy").await);
    let bytes = scattered(&source, count).await;
    assert_eq!(cluster.namenode.extents(source.inode()).len(), count);
    assert_eq!(copy_all(&copy, &source, 0, 0, bytes.len() as u64).await, bytes.len() as u64);
    assert!(read_elsewhere(&cluster, "/copy").await == bytes);

    copy.fallocate(&ROOT, 2, bytes.len() as u64, PUNCH).await.unwrap();
    assert_eq!(copy.seek_data(1).await.unwrap(), None);
    assert_eq!(copy.attr().mapped_bytes, 1);
    assert_eq!(source.set_size(5).await.unwrap().size_bytes, 5);
    assert!(read_elsewhere(&cluster, "/source").await == bytes[..5]);
    let done = cluster.namenode.done.lock().clone();
    assert_eq!((done["clone"], done["fallocate"], done["set attributes"]), (3, 3, 3));
}

#[tokio::test]
async fn sparse_files_reach_to_the_largest_offset_and_no_further() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "huge").await;
    file.write(FILE_MAX - 4096, pattern(1, 4096)).await.unwrap();
    for result in [
        file.write(FILE_MAX - 1, pattern(1, 2)).await,
        file.fallocate(&ROOT, FILE_MAX, 1, EXTEND).await,
        file.fallocate(&ROOT, u64::MAX, 9, PUNCH).await,
        file.set_size(FILE_MAX + 1).await.map(|_| ()),
        file.copy_from(&ROOT, &file, 0, FILE_MAX, 1).await.map(|_| ()),
    ] {
        assert_eq!(result.unwrap_err().kind, ErrorKind::FileTooLarge);
    }
    file.flush().await.unwrap();
    assert_eq!(file.seek_data(0).await.unwrap(), Some(FILE_MAX - 4096));
    assert_eq!(file.seek_hole(FILE_MAX - 5).await.unwrap(), Some(FILE_MAX));
    assert_eq!(file.read(FILE_MAX - 10, 99).await.unwrap(), pattern(1, 4096)[4086..]);
    assert!(file.read(1 << 62, 5000).await.unwrap().iter().all(|byte| *byte == 0));
    file.fallocate(&ROOT, 1 << 40, FILE_MAX - (1 << 40), PUNCH).await.unwrap();
    assert_eq!(file.seek_data(0).await.unwrap(), None);
    assert_eq!(file.attr().size_bytes, FILE_MAX);
}

#[tokio::test]
async fn holes_are_known_to_whoever_may_only_write() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let made = create(&dfs, "file").await;
    made.write(10, pattern(1, 10)).await.unwrap();
    made.close().await.unwrap();
    let other = cluster.client().await;
    let attr = other.resolve(&ROOT, "/file").await.unwrap();
    let file = other.open(&ROOT, attr.inode, OpenMode::WRITE).await.unwrap();
    assert_eq!(file.seek_data(0).await.unwrap(), Some(10));
    assert_eq!(file.seek_hole(0).await.unwrap(), Some(0));
    assert_eq!(file.seek_hole(12).await.unwrap(), Some(20));
    assert_eq!(file.seek_data(20).await.unwrap(), None);
    assert_eq!(file.read(0, 5).await.unwrap_err().kind, ErrorKind::InvalidArgument);
}

//! The client against a cluster in memory that follows the real rules and fails when told to.

#[path = "cluster/fake.rs"]
mod fake;
#[path = "cluster/ranges.rs"]
mod ranges;

use bytes::Bytes;
use dfs_client::{Dfs, File, MakeOptions, OpenMode, Options};
use dfs_proto::msg::meta::{NewNode, RenameMode};
use dfs_proto::{Caller, Epoch, ErrorKind, InodeId, Name, SessionId, SetAttr, SetTime, Timestamp};

use fake::{Cluster, Faults};

const ROOT: Caller = Caller::ROOT;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Bytes that differ from place to place.
fn pattern(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    Bytes::from(bytes)
}

async fn create(dfs: &Dfs, text: &str) -> File {
    create_as(dfs, text, OpenMode::READ_WRITE).await
}

async fn create_as(dfs: &Dfs, text: &str, mode: OpenMode) -> File {
    let options = MakeOptions { open: Some(mode), ..MakeOptions::default() };
    dfs.make(&ROOT, InodeId::ROOT, &name(text), NewNode::File, 0o644, options).await.unwrap().file.unwrap()
}

/// What another client reads.
async fn read_elsewhere(cluster: &Cluster, path: &str) -> Bytes {
    let other = cluster.client().await;
    let bytes = other.read_file(&ROOT, path).await.unwrap();
    other.shutdown().await.unwrap();
    bytes
}

#[tokio::test]
async fn a_flushed_write_is_seen_by_another_client() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "small").await;
    let bytes = pattern(1, 5000);
    file.write(0, bytes.clone()).await.unwrap();
    assert_eq!(file.read(0, 9999).await.unwrap(), bytes, "own writes are seen before they are stored");
    assert_eq!(dfs.lookup(&ROOT, InodeId::ROOT, &name("small")).await.unwrap().size_bytes, 5000);
    file.flush().await.unwrap();
    assert!(read_elsewhere(&cluster, "/small").await == bytes);
    file.close().await.unwrap();
    dfs.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_large_file_survives_in_chunks_and_comes_back_whole() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "large").await;
    let bytes = pattern(2, (70 << 20) + 12345);
    for start in (0..bytes.len()).step_by(128 << 10) {
        file.write(start as u64, bytes.slice(start..bytes.len().min(start + (128 << 10)))).await.unwrap();
    }
    file.sync().await.unwrap();
    let mut back = Vec::new();
    while let Some(part) = Some(file.read(back.len() as u64, 300_000).await.unwrap()).filter(|part| !part.is_empty()) {
        back.extend_from_slice(&part);
    }
    assert!(back == bytes);
    assert!(read_elsewhere(&cluster, "/large").await == bytes);
    let chunks = cluster.datanodes[0].holds().len();
    assert!(chunks >= 2, "{chunks} chunks");
    dfs.shutdown().await.unwrap();
}

#[tokio::test]
async fn overwrites_holes_and_truncation_read_like_a_local_file() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "patched").await;
    let mut model = vec![0u8; 0];
    let mut state = 7u64;
    for round in 0..120u64 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let offset = (state >> 33) % 300_000;
        let len = 1 + (state >> 20) as usize % 40_000;
        let bytes = pattern(round, len);
        let end = offset as usize + len;
        model.resize(model.len().max(end), 0);
        model[offset as usize..end].copy_from_slice(&bytes);
        file.write(offset, bytes).await.unwrap();
        match round % 20 {
            5 => file.flush().await.unwrap(),
            11 => {
                let size = model.len() * 2 / 3;
                model.truncate(size);
                assert_eq!(file.set_size(size as u64).await.unwrap().size_bytes, size as u64);
            }
            17 => {
                model.resize(model.len() + 5000, 0);
                file.set_size(model.len() as u64).await.unwrap();
            }
            _ => {}
        }
        let at = (state >> 40) as usize % model.len();
        let read = file.read(at as u64, 60_000).await.unwrap();
        assert!(read == model[at..model.len().min(at + 60_000)], "round {round}");
    }
    file.close().await.unwrap();
    assert!(read_elsewhere(&cluster, "/patched").await == model);
}

#[tokio::test]
async fn a_datanode_that_fails_in_the_middle_of_a_stream_is_replaced_unseen() {
    let cluster = Cluster::start(4).await;
    let dfs = cluster.client().await;
    cluster.datanodes[0].faults.lock().fail_append_at = Some(3 << 20);
    let file = create(&dfs, "stream").await;
    let bytes = pattern(3, 20 << 20);
    file.write(0, bytes.clone()).await.unwrap();
    file.close().await.unwrap();
    assert!(read_elsewhere(&cluster, "/stream").await == bytes);
    assert!(!cluster.datanodes[3].holds().is_empty(), "the fourth node has stepped in");
    dfs.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_sync_covers_what_was_committed_into_a_chunk_that_failed_before_it_was_synced() {
    let cluster = Cluster::start(4).await;
    let dfs = cluster.client().await;
    let file = create_as(&dfs, "synced", OpenMode::WRITE).await;
    let bytes = pattern(5, 8 << 20);
    file.write(0, bytes.slice(..4 << 20)).await.unwrap();
    file.flush().await.unwrap();
    cluster.datanodes[0].faults.lock().fail_append_at = Some(5 << 20);
    file.write(4 << 20, bytes.slice(4 << 20..)).await.unwrap();
    file.sync().await.unwrap();
    assert!(cluster.namenode.extents(file.inode()).iter().all(|extent| cluster.is_synced(extent)));
    assert!(read_elsewhere(&cluster, "/synced").await == bytes);
}

#[tokio::test]
async fn small_files_outlive_a_failing_fan_out() {
    let cluster = Cluster::start(4).await;
    let dfs = cluster.client().await;
    let mut files = Vec::new();
    for i in 0..200u64 {
        if i == 50 {
            *cluster.datanodes[1].faults.lock() = Faults { refuse_appends: true, ..Faults::default() };
        }
        let text = format!("f{i}");
        let file = create(&dfs, &text).await;
        file.write(0, pattern(i, 100 + i as usize * 7)).await.unwrap();
        files.push((text, file));
    }
    // One commit is under way while the other files are stored, some of them twice only.
    let held = cluster.namenode.commits.write().await;
    let release = async {
        let all: usize = (0..200).map(|i| 100 + i * 7).sum();
        while cluster.stored_bytes() < 2 * all {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        drop(held);
    };
    let flushing = futures::future::join_all(files.iter().map(|(_, file)| file.flush()));
    for flushed in futures::future::join(flushing, release).await.0 {
        flushed.unwrap();
    }
    let other = cluster.client().await;
    for (i, (text, _)) in files.iter().enumerate() {
        let bytes = other.read_file(&ROOT, format!("/{text}")).await.unwrap();
        assert!(bytes == pattern(i as u64, 100 + i * 7), "{text}");
    }
    let commits = cluster.namenode.done.lock()["commit"];
    assert!(commits < 100, "{commits} commits for 200 files: they are not grouped");
}

#[tokio::test]
async fn the_rest_of_a_fan_out_finishes_what_it_was_given_and_the_chunk_is_sealed_on_it() {
    let cluster = Cluster::start(4).await;
    let dfs = cluster.client().await;
    let first = create(&dfs, "first").await;
    first.write(0, pattern(1, 1000)).await.unwrap();
    first.flush().await.unwrap();
    let chunk = cluster.namenode.extents(first.inode())[0].chunk;
    let failing = cluster.datanodes.iter().find(|node| node.holds().contains(&chunk)).unwrap();
    failing.faults.lock().fail_append_at = Some(1001);
    let second = create(&dfs, "second").await;
    second.write(0, pattern(2, 100_000)).await.unwrap();
    second.sync().await.unwrap();
    let extents = cluster.namenode.extents(second.inode());
    assert!(extents.iter().all(|extent| extent.chunk == chunk), "something was sent again: {extents:?}");
    assert!(extents.iter().all(|extent| cluster.is_synced(extent)));
    let sealed = async {
        loop {
            let (epoch, replicas) = cluster.namenode.chunk(second.inode(), chunk);
            if epoch > Epoch::FIRST {
                return replicas;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let replicas = tokio::time::timeout(std::time::Duration::from_secs(20), sealed).await.expect("it is sealed");
    assert!(replicas.len() == 2 && !replicas.contains(&failing.id), "{replicas:?}");
    assert!(read_elsewhere(&cluster, "/second").await == pattern(2, 100_000));
}

#[tokio::test]
async fn with_two_of_three_datanodes_gone_a_flush_waits_and_then_fails() {
    let cluster = Cluster::start(3).await;
    let options = Options { op_deadline: std::time::Duration::from_millis(1500), ..Options::default() };
    let dfs = Dfs::connect(&cluster.config, options).await.unwrap();
    for node in &cluster.datanodes[1..] {
        node.faults.lock().refuse_appends = true;
    }
    let file = create(&dfs, "doomed").await;
    file.write(0, pattern(1, 1000)).await.unwrap();
    assert_eq!(file.flush().await.unwrap_err().kind, ErrorKind::Timeout);
    // The bytes are still there for a second try.
    for node in &cluster.datanodes {
        *node.faults.lock() = Faults::default();
    }
    file.flush().await.unwrap();
    assert!(read_elsewhere(&cluster, "/doomed").await == pattern(1, 1000));
}

#[tokio::test]
async fn a_flush_may_take_longer_than_the_deadline_as_long_as_bytes_move() {
    let cluster = Cluster::start(3).await;
    let deadline = std::time::Duration::from_millis(1000);
    let dfs = Dfs::connect(&cluster.config, Options { op_deadline: deadline, ..Options::default() }).await.unwrap();
    // Half of the deadline for what is sent, and acknowledged, as one piece.
    let takes = deadline / 32;
    cluster.datanodes.iter().for_each(|node| node.faults.lock().append_takes = takes);
    let bytes = pattern(9, 96 * (64 << 10));
    for sync in [false, true] {
        let name = if sync { "synced" } else { "flushed" };
        let file = create(&dfs, name).await;
        file.write(0, bytes.clone()).await.unwrap();
        let begun = std::time::Instant::now();
        if sync {
            file.sync().await.unwrap()
        } else {
            file.flush().await.unwrap()
        }
        assert!(begun.elapsed() > 2 * deadline, "{:?}", begun.elapsed());
        assert!(read_elsewhere(&cluster, &format!("/{name}")).await == bytes);
    }
}

/// Otherwise each fsync takes a round trip more than it need.
#[tokio::test]
async fn a_sync_is_asked_for_before_its_bytes_are_acknowledged() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    cluster.datanodes.iter().for_each(|node| node.faults.lock().acks_wait_for_sync = true);
    for (name, len) in [("small", 4096), ("large", 3 << 20)] {
        let file = create(&dfs, name).await;
        for round in 0..3 {
            file.write(round * len as u64, pattern(round, len)).await.unwrap();
            tokio::time::timeout(std::time::Duration::from_secs(20), file.sync()).await.expect("it waits").unwrap();
        }
        assert!(cluster.namenode.extents(file.inode()).iter().all(|extent| cluster.is_synced(extent)));
    }
}

#[tokio::test]
async fn a_flush_commits_all_that_it_waits_for_at_once() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    // So that the pieces are acknowledged one after the other, long enough apart for a commit of each.
    let takes = std::time::Duration::from_millis(5);
    cluster.datanodes.iter().for_each(|node| node.faults.lock().append_takes = takes);
    let commits = || cluster.namenode.done.lock().get("commit").copied().unwrap_or(0);
    let file = create(&dfs, "file").await;
    file.write(0, pattern(1, 8 << 20)).await.unwrap();
    file.flush().await.unwrap();
    assert_eq!(commits(), 1, "of eight pieces");
    assert!(read_elsewhere(&cluster, "/file").await == pattern(1, 8 << 20));
}

#[tokio::test]
async fn a_damaged_replica_is_passed_over_and_reported() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let bytes = pattern(4, 3 << 20);
    dfs.write_file(&ROOT, "/file", bytes.clone()).await.unwrap();
    for node in &cluster.datanodes[..2] {
        node.faults.lock().corrupt_reads = true;
    }
    let other = cluster.client().await;
    for _ in 0..3 {
        assert!(other.read_file(&ROOT, "/file").await.unwrap() == bytes);
    }
    other.shutdown().await.unwrap();
    let reports = cluster.namenode.reports.lock().clone();
    assert!(!reports.is_empty() && reports.iter().all(|(_, node)| *node != cluster.datanodes[2].id), "{reports:?}");
}

#[tokio::test]
async fn lost_bytes_are_an_error_and_never_zeros() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    dfs.write_file(&ROOT, "/file", pattern(4, 5000)).await.unwrap();
    for node in &cluster.datanodes {
        node.faults.lock().corrupt_reads = true;
    }
    let options = Options { op_deadline: std::time::Duration::from_millis(500), ..Options::default() };
    let other = Dfs::connect(&cluster.config, options).await.unwrap();
    assert_eq!(other.read_file(&ROOT, "/file").await.unwrap_err().kind, ErrorKind::Corrupt);
}

/// Reads that all datanodes together were asked for.
fn reads(cluster: &Cluster) -> u32 {
    cluster.datanodes.iter().map(|node| node.reads.load(std::sync::atomic::Ordering::Relaxed)).sum()
}

#[tokio::test]
async fn bytes_that_every_replica_has_damaged_are_given_up_after_few_rounds() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    dfs.write_file(&ROOT, "/file", pattern(4, 5000)).await.unwrap();
    for node in &cluster.datanodes {
        node.faults.lock().corrupt_reads = true;
    }
    // With half a minute of time, in which there would be some forty rounds.
    let other = cluster.client().await;
    assert_eq!(other.read_file(&ROOT, "/file").await.unwrap_err().kind, ErrorKind::Corrupt);
    assert!((6..=9).contains(&reads(&cluster)), "{} reads", reads(&cluster));
    assert!(!cluster.namenode.reports.lock().is_empty());
}

#[tokio::test]
async fn what_lies_in_front_of_damage_and_behind_it_can_be_read() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let bytes = pattern(4, 400_000);
    let inode = dfs.write_file(&ROOT, "/file", bytes.clone()).await.unwrap().inode;
    let frame = 65_536;
    // Each in another frame: together they have everything.
    for (number, node) in cluster.datanodes.iter().enumerate() {
        node.faults.lock().corrupt_at = vec![frame * number as u32, frame * (number as u32 + 1)];
    }
    let other = cluster.client().await;
    assert!(other.read_file(&ROOT, "/file").await.unwrap() == bytes);
    for node in &cluster.datanodes {
        node.faults.lock().corrupt_at = vec![2 * frame];
    }
    let file = other.open(&ROOT, inode, OpenMode::READ).await.unwrap();
    assert_eq!(file.read(1000, 390_000).await.unwrap_err().kind, ErrorKind::Corrupt);
    assert!(file.read_front(1000, 390_000).await.unwrap() == bytes[1000..131_072]);
    assert_eq!(file.read_front(131_072, 10).await.unwrap_err().kind, ErrorKind::Corrupt);
    assert!(file.read(196_608, 200_000).await.unwrap() == bytes[196_608..396_608]);
    // A sequence of reads, as of a program that copies the file: blocks are read ahead.
    let mut good = 0;
    for at in (0..400_000).step_by(10_000) {
        match file.read_front(at, 10_000).await {
            Ok(part) => {
                assert!(part == bytes[at as usize..at as usize + part.len()]);
                good += part.len();
            }
            Err(error) => assert_eq!(error.kind, ErrorKind::Corrupt),
        }
    }
    assert!(good > 400_000 - 90_000, "{good}");
}

#[tokio::test]
async fn behind_a_chunks_lost_end_is_an_error_without_asking_and_nobodys_replica_is_blamed() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let bytes = pattern(4, 200_000);
    let inode = dfs.write_file(&ROOT, "/file", bytes.clone()).await.unwrap().inode;
    dfs.shutdown().await.unwrap();
    let knows = cluster.client().await;
    assert!(knows.read_file(&ROOT, "/file").await.unwrap() == bytes);
    let extents = cluster.namenode.extents(inode);
    assert_eq!((extents.len(), extents[0].chunk_offset), (1, 0));
    cluster.lose_end(inode, extents[0].chunk, 65_536);

    let new = cluster.client().await;
    for client in [&knows, &new] {
        let file = client.open(&ROOT, inode, OpenMode::READ).await.unwrap();
        assert!(file.read_front(100, 199_000).await.unwrap() == bytes[100..65_536]);
        let asked = reads(&cluster);
        for (at, len) in [(65_536, 1), (100_000, 50_000), (199_999, 1)] {
            // A handle of its own: one that goes on reading reads ahead, which begins in front of the end.
            let file = client.open(&ROOT, inode, OpenMode::READ).await.unwrap();
            let error = file.read_front(at, len).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt);
            assert!(error.message.contains(&format!("bytes {at} to {} of the file are lost", at + len as u64)));
        }
        assert_eq!(reads(&cluster), asked);
        assert_eq!(file.read(0, 100_000).await.unwrap_err().kind, ErrorKind::Corrupt);
        assert!(file.read(0, 65_536).await.unwrap() == bytes[..65_536]);
    }
    assert!(cluster.namenode.reports.lock().is_empty());
    // What is overwritten can be read again.
    let file = new.open(&ROOT, inode, OpenMode::READ_WRITE).await.unwrap();
    file.write(65_536, pattern(5, 134_464)).await.unwrap();
    file.close().await.unwrap();
    let whole = [&bytes[..65_536], &pattern(5, 134_464)[..]].concat();
    assert!(read_elsewhere(&cluster, "/file").await == whole);
}

#[tokio::test]
async fn a_silent_replica_is_hedged() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let bytes = pattern(4, 50_000);
    dfs.write_file(&ROOT, "/file", bytes.clone()).await.unwrap();
    for node in &cluster.datanodes[..2] {
        node.faults.lock().silent_reads = true;
    }
    let other = cluster.client().await;
    assert!(other.read_file(&ROOT, "/file").await.unwrap() == bytes);
}

#[tokio::test]
async fn a_lost_answer_does_not_do_a_mutation_twice() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    dfs.ready().await.unwrap();
    for i in 0..5 {
        *cluster.namenode.swallow.lock() = 2;
        let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
        let made = dfs.make(&ROOT, InodeId::ROOT, &name(&format!("d{i}")), NewNode::Directory, 0o755, options).await;
        assert!(made.unwrap().created);
    }
    let file = create_as(&dfs, "log", OpenMode::APPEND).await;
    for i in 0..10u64 {
        *cluster.namenode.swallow.lock() = 1;
        assert_eq!(file.append(pattern(i, 100)).await.unwrap(), i * 100);
    }
    let all: Vec<u8> = (0..10).flat_map(|i| pattern(i, 100)).collect();
    assert!(read_elsewhere(&cluster, "/log").await == all);
}

#[tokio::test]
async fn a_leader_that_dies_without_a_word_is_left_before_the_attempt_at_it_ends() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    // A session is open, and the leader is known.
    create(&dfs, "before").await;
    {
        let mut group = cluster.namenode.group.lock();
        group.silent = Some(1);
        // The follower believes in the dead leader when it is first asked.
        group.elect_when_asked = Some(2);
    }
    let options = MakeOptions { exclusive: true, ..MakeOptions::default() };
    let made = dfs.make(&ROOT, InodeId::ROOT, &name("dir"), NewNode::Directory, 0o755, options).await;
    assert!(made.unwrap().created);
    assert!(*cluster.namenode.held_while_serving.lock() > 0, "the dead leader's silence was waited out");
}

#[tokio::test]
async fn appends_of_two_clients_never_overwrite_each_other() {
    let cluster = Cluster::start(3).await;
    let (a, b) = (cluster.client().await, cluster.client().await);
    let inode = create(&a, "log").await.inode();
    let append = |dfs: Dfs, byte: u8| async move {
        let file = dfs.open(&ROOT, inode, OpenMode::APPEND).await.unwrap();
        for _ in 0..25 {
            file.write(0, Bytes::from(vec![byte; 50])).await.unwrap();
        }
    };
    tokio::join!(append(a.clone(), 1), append(b.clone(), 2));
    let bytes = read_elsewhere(&cluster, "/log").await;
    assert_eq!(bytes.len(), 2500);
    for record in bytes.chunks(50) {
        assert!(record.iter().all(|byte| *byte == record[0]));
    }
    assert_eq!(bytes.iter().filter(|byte| **byte == 1).count(), 1250);
}

#[tokio::test]
async fn an_open_file_without_a_name_lives_until_it_is_closed() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "old").await;
    file.write(0, pattern(1, 3000)).await.unwrap();
    file.flush().await.unwrap();
    let new = create(&dfs, "new").await;
    dfs.rename(&ROOT, InodeId::ROOT, &name("new"), InodeId::ROOT, &name("old"), RenameMode::Replace).await.unwrap();
    assert!(file.read(0, 3000).await.unwrap() == pattern(1, 3000));
    file.write(3000, pattern(2, 3000)).await.unwrap();
    file.flush().await.unwrap();
    assert!(file.read(3000, 3000).await.unwrap() == pattern(2, 3000));
    let inode = file.inode();
    file.close().await.unwrap();
    drop(new);
    dfs.shutdown().await.unwrap();
    let other = cluster.client().await;
    assert!(other.getattr(&ROOT, inode).await.is_err());
}

#[tokio::test]
async fn an_expired_session_costs_unsaved_bytes_once_and_clean_files_nothing() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let clean = create(&dfs, "clean").await;
    clean.write(0, pattern(1, 1000)).await.unwrap();
    clean.flush().await.unwrap();
    let dirty = create(&dfs, "dirty").await;
    dirty.write(0, pattern(2, 1000)).await.unwrap();
    cluster.namenode.expire(SessionId(1));
    assert_eq!(dirty.flush().await.unwrap_err().kind, ErrorKind::SessionExpired);
    dirty.write(0, pattern(3, 1000)).await.unwrap();
    dirty.flush().await.unwrap();
    assert!(clean.read(0, 1000).await.unwrap() == pattern(1, 1000));
    clean.write(1000, pattern(4, 10)).await.unwrap();
    clean.flush().await.unwrap();
    assert!(read_elsewhere(&cluster, "/dirty").await == pattern(3, 1000));
    assert_eq!(read_elsewhere(&cluster, "/clean").await.len(), 1010);
}

#[tokio::test]
async fn a_time_that_was_set_is_not_undone_by_bytes_written_before() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "file").await;
    file.write(0, pattern(1, 1000)).await.unwrap();
    let then = Timestamp { secs: 1000, nanos: 5 };
    let set = SetAttr { mtime: Some(SetTime::At(then)), ..SetAttr::default() };
    assert_eq!(dfs.setattr(&ROOT, file.inode(), set, Some(&file)).await.unwrap().mtime, then);
    file.close().await.unwrap();
    assert_eq!(dfs.resolve(&ROOT, "/file").await.unwrap().mtime, then);
}

#[tokio::test]
async fn a_read_sets_an_old_atime_at_once_here_and_soon_elsewhere() {
    let cluster = Cluster::start(3).await;
    let reader = Dfs::connect(&cluster.config, Options { atime: true, ..Options::default() }).await.unwrap();
    let other = cluster.client().await;
    other.write_file(&ROOT, "/file", pattern(1, 1000)).await.unwrap();
    let old = Timestamp { secs: 1000, nanos: 5 };
    let set = SetAttr { atime: Some(SetTime::At(old)), ..SetAttr::default() };
    let inode = other.resolve(&ROOT, "/file").await.unwrap().inode;
    other.setattr(&ROOT, inode, set.clone(), None).await.unwrap();

    let quiet = OpenMode { no_atime: true, ..OpenMode::READ };
    reader.open(&ROOT, inode, quiet).await.unwrap().read(0, 10).await.unwrap();
    assert_eq!(reader.getattr(&ROOT, inode).await.unwrap().atime, old);
    let file = reader.open(&ROOT, inode, OpenMode::READ).await.unwrap();
    file.read(0, 10).await.unwrap();
    let seen = reader.getattr(&ROOT, inode).await.unwrap();
    assert!(seen.atime > seen.mtime);
    file.read(0, 10).await.unwrap();
    assert_eq!(reader.getattr(&ROOT, inode).await.unwrap().atime, seen.atime, "once a day is enough");
    let told = async {
        while other.getattr(&ROOT, inode).await.unwrap().atime != seen.atime {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), told).await.unwrap();

    // What is set after the read stays, also if the read is told later.
    file.read(0, 10).await.unwrap();
    reader.setattr(&ROOT, inode, set, None).await.unwrap();
    assert_eq!(reader.getattr(&ROOT, inode).await.unwrap().atime, old);
    reader.shutdown().await.unwrap();
    assert_eq!(other.getattr(&ROOT, inode).await.unwrap().atime, old);
}

#[tokio::test]
async fn uncommitted_bytes_count_as_used_space() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    let file = create(&dfs, "file").await;
    file.write(1000, pattern(1, 500)).await.unwrap();
    assert_eq!(file.attr().mapped_bytes, 500);
    file.flush().await.unwrap();
    assert_eq!(file.attr().mapped_bytes, 500);
    file.write(0, pattern(2, 1500)).await.unwrap();
    assert_eq!(dfs.getattr(&ROOT, file.inode()).await.unwrap().mapped_bytes, 1500);
}

#[tokio::test]
async fn writers_wait_for_room_and_go_on() {
    let cluster = Cluster::start(3).await;
    let options = Options { dirty_max_bytes: 4 << 20, ..Options::default() };
    let dfs = Dfs::connect(&cluster.config, options).await.unwrap();
    let bytes = pattern(9, 24 << 20);
    dfs.write_file(&ROOT, "/big", bytes.clone()).await.unwrap();
    let scattered = create(&dfs, "scattered").await;
    for i in 0..400u64 {
        scattered.write(i * 100_000, pattern(i, 20_000)).await.unwrap();
    }
    scattered.close().await.unwrap();
    assert!(read_elsewhere(&cluster, "/big").await == bytes);
    dfs.shutdown().await.unwrap();
}

#[tokio::test]
async fn paths_follow_symlinks_and_loops_end() {
    let cluster = Cluster::start(3).await;
    let dfs = cluster.client().await;
    dfs.mkdir_all(&ROOT, "/a/b/c", 0o755).await.unwrap();
    dfs.write_file(&ROOT, "/a/b/c/file", pattern(1, 10)).await.unwrap();
    let link = async |path: &str, target: &str| {
        let (parent, name) = dfs.parent_and_name(&ROOT, path).await.unwrap();
        let node = NewNode::Symlink(target.into());
        dfs.make(&ROOT, parent, &name, node, 0o777, MakeOptions::default()).await.unwrap();
    };
    link("/a/short", "b/c").await;
    link("/absolute", "/a/short/../c/file").await;
    link("/loop", "loop").await;
    assert_eq!(dfs.read_file(&ROOT, "/absolute").await.unwrap(), pattern(1, 10));
    assert_eq!(dfs.resolve(&ROOT, "/loop").await.unwrap_err().kind, ErrorKind::TooManySymlinks);
    assert!(dfs.resolve_nofollow(&ROOT, "/loop").await.is_ok());
    assert_eq!(dfs.resolve(&ROOT, "/absolute/").await.unwrap_err().kind, ErrorKind::NotADirectory);
    assert_eq!(dfs.resolve(&ROOT, "/a/none").await.unwrap_err().kind, ErrorKind::NotFound);
    let mut walk = dfs.walk(&ROOT, &dfs.resolve(&ROOT, "/a").await.unwrap());
    let mut seen = Vec::new();
    while let Some(entry) = walk.next().await.unwrap() {
        seen.push(String::from_utf8(entry.path).unwrap());
    }
    seen.sort();
    assert_eq!(seen, ["", "b", "b/c", "b/c/file", "short"]);
}

/// The mount runs every operation as a task of its own.
#[test]
fn operations_can_be_spawned() {
    fn spawnable<T: Send>(_: T) {}
    let _ = |dfs: Dfs, file: File| {
        spawnable(file.read(0, 0));
        spawnable(file.write(0, Bytes::new()));
        spawnable(file.sync());
        spawnable(file.append(Bytes::new()));
        spawnable(dfs.clone().shutdown());
    };
}

//! What each byte and each message costs: `cargo bench -p dfs-proto`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use dfs_proto::limits::FRAME_MAX;
use dfs_proto::msg::meta::{ChunkCommit, FileCommit, Op};
use dfs_proto::{CapabilityKey, ChunkId, Epoch, Extent, Grant, InodeId, SessionId, codec, frame_digest};

fn bench_digest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame digest");
    for len in [4096, FRAME_MAX as usize] {
        let bytes = vec![0x5a; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("{len} bytes"), |bencher| bencher.iter(|| frame_digest(ChunkId(7), 0, &bytes)));
    }
}

fn bench_codec(criterion: &mut Criterion) {
    let key = CapabilityKey { number: 1, secret: [7; 32] };
    let files = (0..100).map(|number: u32| {
        let inode = InodeId(number.into());
        let extent = Extent { file_offset: 0, len: 4096, chunk: ChunkId(9), chunk_offset: number * 4096 };
        let grant = Grant::sign(&key, inode, SessionId(3), true, true);
        FileCommit { inode, grant, extents: vec![extent], mtime: None, append: false }
    });
    let chunks =
        vec![ChunkCommit { chunk: ChunkId(9), epoch: Epoch(1), len: 409_600, replicas: Vec::new(), seal: false }];
    let op = Op::Commit { chunks, files: files.collect() };
    let encoded = codec::encode(&op).unwrap();
    let mut group = criterion.benchmark_group("codec, commit of 100 files");
    group.throughput(Throughput::Bytes(encoded.len() as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| codec::encode(&op).unwrap()));
    group.bench_function("decode", |bencher| bencher.iter(|| codec::decode::<Op>(&encoded).unwrap()));
}

criterion_group!(benches, bench_digest, bench_codec);
criterion_main!(benches);

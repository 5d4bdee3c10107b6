use std::collections::BTreeMap;
use std::time::Duration;

use dfs_client::Dfs;
use dfs_proto::limits::SHARD_PAGE_MAX;
use dfs_proto::msg::admin::{ChunkInfo, FileInfo, Liveness, Status};
use dfs_proto::msg::data::{Manage, ManageReply, ReplicaState};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::{ChunkId, ErrorKind, FileKind, NodeId, Timestamp};
use serde_json::{Value, json};

use crate::context::Context;
use crate::error::{Failure, Result, Tally};
use crate::output::{Tone, put_bytes};
use crate::path::DfsPath;
use crate::remote::Remote;
use crate::units;
use crate::verbs::status::NodeNames;

/// Where the bytes of files are: extents, chunks, replicas
#[derive(clap::Args, Debug)]
#[command(before_help = "Examples:\n  dfs info /data/a.bin\n  dfs --json info /data/a.bin | jq '.chunks[].replicas'")]
pub struct Args {
    #[arg(required = true)]
    paths: Vec<DfsPath>,
}

pub async fn run(context: &Context, args: Args) -> Result {
    let names = NodeNames::new(&context.config()?);
    context
        .with_remote(async |remote| {
            let mut tally = Tally::default();
            for path in &args.paths {
                let done = print_file(context, remote, &names, path).await;
                context.out.keep_going(&mut tally, done.map_err(|failure| failure.at(path)))?;
            }
            tally.end()
        })
        .await
}

async fn print_file(context: &Context, remote: &Remote, names: &NodeNames, path: &DfsPath) -> Result {
    let attr = remote.find(path).await?;
    let attr = attr.ok_or_else(|| Failure::of(ErrorKind::NotFound, "no such file or directory"))?;
    if attr.kind != FileKind::File {
        return Err(Failure::of(ErrorKind::InvalidArgument, "not a regular file"));
    }
    let info = remote.dfs.file_info(attr.inode).await?;
    let status = super::status::ask(&remote.dfs).await?;
    let verified = Verified::ask(&remote.dfs, &status, &info).await;
    if context.out.json {
        let mut object = object(&info, &verified, names);
        put_bytes(&mut object, "path", &path.to_bytes());
        object["inode"] = attr.inode.0.into();
        object["size_bytes"] = attr.size_bytes.into();
        object["replication"] = attr.replication.into();
        return context.out.object(object);
    }
    let out = &context.out;
    out.line(format!(
        "{path}: inode {}, {} bytes, {} copies wanted, {} extents in {} chunks",
        attr.inode,
        units::count(attr.size_bytes),
        attr.replication,
        info.extents.len(),
        info.chunks.len()
    ))?;
    for extent in &info.extents {
        out.line(format!(
            "  bytes {:>14}..{:<14} chunk {} at {}..{}",
            extent.file_offset,
            extent.file_end(),
            extent.chunk,
            extent.chunk_offset,
            extent.chunk_end()
        ))?;
    }
    info.chunks.iter().try_for_each(|chunk| out.line(chunk_line(context, chunk, names)))?;
    verified.line(names).map_or(Ok(()), |line| out.line(line))
}

/// For a datanode to say when it verified its replicas: they are only shown, and not waited for.
const VERIFIED_DEADLINE: Duration = Duration::from_secs(3);

/// When each sealed replica of a file was last verified, in seconds since 1970, as its node says. What is on nodes
/// that do not answer is left out.
pub struct Verified(BTreeMap<(ChunkId, NodeId), u64>);

impl Verified {
    pub async fn ask(dfs: &Dfs, status: &Status, info: &FileInfo) -> Verified {
        let live = status.datanodes.iter().filter(|node| node.liveness == Liveness::Live);
        let asked = live.map(|node| async move {
            let held = |chunk: &&ChunkInfo| chunk.sealed && chunk.replicas.iter().any(|(at, _)| *at == node.node);
            let chunks: Vec<ChunkId> = info.chunks.iter().filter(held).map(|chunk| chunk.chunk).collect();
            let mut found = Vec::new();
            for page in chunks.chunks(SHARD_PAGE_MAX) {
                let request = Manage::Replicas { chunks: page.to_vec() };
                let answer = dfs.manage(ReplicaAt { node: node.node, addr: node.addr }, request);
                match tokio::time::timeout(VERIFIED_DEADLINE, answer).await {
                    Ok(Ok(ManageReply::Replicas(replicas))) => {
                        let sealed = replicas.iter().filter(|replica| replica.state == ReplicaState::Sealed);
                        found.extend(sealed.map(|replica| ((replica.chunk, node.node), replica.verified_s)));
                    }
                    _ => return found,
                }
            }
            found
        });
        Verified(futures::future::join_all(asked).await.into_iter().flatten().collect())
    }

    fn at(&self, chunk: ChunkId, node: NodeId) -> Option<String> {
        let secs = *self.0.get(&(chunk, node))?;
        Some(units::utc_time(Timestamp { secs: secs as i64, nanos: 0 }))
    }

    fn oldest(&self) -> Option<(ChunkId, NodeId, u64)> {
        self.0.iter().min_by_key(|(_, secs)| **secs).map(|((chunk, node), secs)| (*chunk, *node, *secs))
    }

    /// Which of the replicas has waited longest.
    pub fn line(&self, names: &NodeNames) -> Option<String> {
        let (chunk, node, secs) = self.oldest()?;
        let age = units::duration(Duration::from_secs(super::status::ago_s(secs)));
        Some(format!("  oldest verification: chunk {chunk} on {}, {age} ago", names.of(node)))
    }
}

/// One chunk in one line: state, length, replicas; one that is damaged or on a node that is not live says so.
pub fn chunk_line(context: &Context, chunk: &ChunkInfo, names: &NodeNames) -> String {
    let state = if chunk.sealed { "sealed" } else { "open" };
    let damaged = |node: &NodeId| chunk.damaged.contains(node);
    let replicas: Vec<_> =
        chunk.replicas.iter().map(|(node, liveness)| replica(*node, *liveness, damaged(node), names)).collect();
    let live = chunk.replicas.iter().filter(|(node, liveness)| *liveness == Liveness::Live && !damaged(node)).count();
    let count = format!("{live}/{} good", chunk.target);
    let tone = match live {
        0 => Tone::Bad,
        live if live < usize::from(chunk.target) => Tone::Warn,
        _ => Tone::Good,
    };
    format!(
        "  chunk {:>8}  {state:6}  {:>9}  epoch {}  {}  {}",
        chunk.chunk,
        units::human(chunk.len.into()),
        chunk.epoch,
        context.out.paint(tone, &count),
        replicas.join(" ")
    )
}

fn replica(node: NodeId, liveness: Liveness, damaged: bool, names: &NodeNames) -> String {
    match liveness {
        _ if damaged => format!("{}(damaged)", names.of(node)),
        Liveness::Live => names.of(node),
        other => format!("{}({})", names.of(node), super::status::liveness_name(other)),
    }
}

pub fn object(info: &FileInfo, verified: &Verified, names: &NodeNames) -> Value {
    let extents: Vec<_> = info
        .extents
        .iter()
        .map(|extent| {
            json!({
                "file_offset": extent.file_offset,
                "len_bytes": extent.len,
                "chunk": extent.chunk,
                "chunk_offset": extent.chunk_offset,
            })
        })
        .collect();
    let chunks: Vec<_> = info
        .chunks
        .iter()
        .map(|chunk| {
            let replicas: Vec<_> = chunk
                .replicas
                .iter()
                .map(|(node, liveness)| {
                    json!({
                        "node": node, "name": names.of(*node), "state": super::status::liveness_name(*liveness),
                        "damaged": chunk.damaged.contains(node), "last_verified": verified.at(chunk.chunk, *node),
                    })
                })
                .collect();
            json!({
                "chunk": chunk.chunk,
                "epoch": chunk.epoch,
                "len_bytes": chunk.len,
                "lost_bytes": chunk.lost,
                "live_bytes": chunk.live_bytes,
                "sealed": chunk.sealed,
                "target": chunk.target,
                "replicas": replicas,
            })
        })
        .collect();
    let oldest = verified.oldest().and_then(|(chunk, node, _)| verified.at(chunk, node));
    json!({"extents": extents, "chunks": chunks, "oldest_verified": oldest})
}

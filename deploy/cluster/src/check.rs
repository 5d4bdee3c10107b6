//! What must hold once every node runs again and nobody works: asked of the cluster, and counted on its disks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::audit::{DiskReplica, files_of, named, replicas_of, verified};
use crate::local::Cluster;
use crate::verdict::{Invariant, Verdict};

/// How long it took to come to rest.
#[derive(Clone, Copy, Default, Debug)]
pub struct AtRest {
    /// Until a leader answered and every namenode had caught up.
    pub serving: Duration,
    /// Until every chunk had its replicas.
    pub healthy: Duration,
    /// Chunks whose replicas were read from the disks.
    pub chunks: usize,
}

/// Waits until the cluster is healthy and then compares what it says with what is there. What does not hold is in
/// the verdict.
///
/// # Errors
/// When it did not become healthy, which is in the verdict as well: nothing further can be said of it then.
pub fn check_at_rest(cluster: &Cluster, deadline: Duration, verdict: &mut Verdict) -> Result<AtRest> {
    let begun = Instant::now();
    verdict.hold(Invariant::NamenodesAgree, cluster.wait_caught_up(deadline))?;
    let serving = begun.elapsed();
    verdict.hold(Invariant::ReplicasAgree, cluster.wait_healthy(deadline))?;
    let healthy = begun.elapsed();
    check_fsck_at_rest(cluster, deadline, verdict)?;
    let chunks = check_disks_at_rest(cluster, deadline, verdict)?;
    Ok(AtRest { serving, healthy, chunks })
}

/// As `check_fsck`, with patience for copies: a chunk that its client has open is not waited for, and when the client
/// seals it, it may turn out to have one copy less than it should. Nothing else is looked at twice.
fn check_fsck_at_rest(cluster: &Cluster, deadline: Duration, verdict: &mut Verdict) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let report = fsck(cluster)?;
        let problems = problems(&report)?;
        let copies_lack = !problems.is_empty() && problems.iter().all(|problem| problem["kind"] == "under_replicated");
        if !copies_lack || Instant::now() >= end {
            return judge_fsck(&report, verdict);
        }
        verdict.hold(Invariant::ReplicasAgree, cluster.wait_healthy(deadline))?;
    }
}

/// `dfs fsck /`: namespace, counts and chunks add up.
pub fn check_fsck(cluster: &Cluster, verdict: &mut Verdict) -> Result<()> {
    judge_fsck(&fsck(cluster)?, verdict)
}

fn problems(report: &[Value]) -> Result<Vec<Value>> {
    Ok(report.last().context("fsck says something")?["problems"].as_array().cloned().unwrap_or_default())
}

fn judge_fsck(report: &[Value], verdict: &mut Verdict) -> Result<()> {
    let last = report.last().context("fsck says something")?;
    let problems = problems(report)?;
    verdict.fine(Invariant::UsageCounted, 1);
    verdict.fine(Invariant::NothingOrphaned, 1);
    // What was never synced may be lost in a power cut. Whether more was is told by whoever wrote it.
    let only_lost = !problems.is_empty() && problems.iter().all(|problem| problem["kind"] == "lost");
    if last["verdict"] != "healthy" && !only_lost {
        let inconsistent = problems.iter().any(|problem| problem["kind"] == "inconsistent");
        let invariant = if inconsistent { Invariant::UsageCounted } else { Invariant::NothingOrphaned };
        verdict.broken(invariant, format!("fsck finds it {}: {problems:?}", last["verdict"]));
    }
    Ok(())
}

/// `dfs fsck / --files --locations --json`: a line for each file, then the verdict.
pub fn fsck(cluster: &Cluster) -> Result<Vec<Value>> {
    let output = cluster.output(["fsck", "/", "--files", "--locations", "--json"])?;
    let text = String::from_utf8(output.stdout)?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(!lines.is_empty(), "fsck: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(lines)
}

/// As `check_disks`, with patience: a chunk that was open is sealed while we look, first by the namenodes and a moment
/// later on each disk. What is wrong stays wrong.
fn check_disks_at_rest(cluster: &Cluster, deadline: Duration, verdict: &mut Verdict) -> Result<usize> {
    let end = Instant::now() + deadline;
    loop {
        let mut found = Verdict::default();
        let chunks = check_disks(cluster, &mut found)?;
        if found.is_clean() || Instant::now() >= end {
            verdict.add(found);
            return Ok(chunks);
        }
        verdict.hold(Invariant::ReplicasAgree, cluster.wait_healthy(deadline))?;
    }
}

/// Every replica that the namenodes count lies on its disk, whole, with the same epoch and length; how many chunks
/// that were.
pub fn check_disks(cluster: &Cluster, verdict: &mut Verdict) -> Result<usize> {
    let counted = counted_replicas(&fsck(cluster)?)?;
    let mut on_disk: BTreeMap<(u64, String), DiskReplica> = BTreeMap::new();
    for node in cluster.datanodes() {
        for replica in replicas_of(cluster, &node)? {
            on_disk.insert((replica.chunk, node.clone()), replica);
        }
    }
    let nodes = cluster.datanodes().len() as u64;
    for chunk in counted.values() {
        let whole = chunk.nodes.iter().filter(|node| match on_disk.get(&(chunk.number, (*node).clone())) {
            None => {
                verdict.broken(Invariant::FsckAgrees, format!("chunk {} is not on {node}", chunk.number));
                false
            }
            Some(replica) if !replica.problems.is_empty() => {
                verdict.broken(Invariant::ReplicasAgree, format!("{replica:?}"));
                false
            }
            Some(replica) => {
                let alike = (replica.epoch, replica.len_bytes, replica.sealed) == (chunk.epoch, chunk.len_bytes, true);
                if !alike {
                    verdict.broken(Invariant::ReplicasAgree, format!("{chunk:?} and {replica:?}"));
                }
                alike
            }
        });
        let (whole, wanted) = (whole.count() as u64, chunk.target.min(nodes));
        verdict.fine(Invariant::ReplicasAgree, whole);
        verdict.fine(Invariant::FsckAgrees, 1);
        if whole < wanted {
            verdict.broken(Invariant::ReplicasAgree, format!("{chunk:?} has {whole} whole replicas of {wanted}"));
        }
    }
    Ok(counted.len())
}

/// No disk keeps a sealed chunk that is not counted there, or that no file has; what is to be deleted is waited for.
pub fn check_nothing_left_over(cluster: &Cluster, deadline: Duration, verdict: &mut Verdict) -> Result<()> {
    let end = Instant::now() + deadline;
    loop {
        let (checked, left_over) = left_over(cluster)?;
        if left_over.is_empty() || Instant::now() >= end {
            verdict.fine(Invariant::NothingOrphaned, checked);
            for replica in left_over {
                verdict.broken(Invariant::NothingOrphaned, format!("nobody counts on {replica:?}"));
            }
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// How many files there were, and those that should not be there.
fn left_over(cluster: &Cluster) -> Result<(u64, Vec<DiskReplica>)> {
    let report = fsck(cluster)?;
    let counted = counted_replicas(&report)?;
    let open: BTreeSet<u64> = chunks(&report).filter_map(|chunk| chunk["chunk"].as_u64()).collect();
    let (mut checked, mut left_over) = (0, Vec::new());
    for node in cluster.datanodes() {
        let mut files = files_of(cluster, &node)?;
        checked += files.len() as u64;
        files.retain(|path| match counted.get(&named(path)) {
            Some(chunk) => !chunk.nodes.contains(&node),
            None => !open.contains(&named(path)),
        });
        // A client may have chunks in which nothing is yet.
        left_over.extend(verified(cluster, &node, files)?.into_iter().filter(|replica| replica.sealed));
    }
    Ok((checked, left_over))
}

/// A sealed chunk as the namenodes have it.
#[derive(Debug)]
struct CountedChunk {
    number: u64,
    epoch: u64,
    len_bytes: u64,
    target: u64,
    nodes: Vec<String>,
}

/// As the lines of files have them.
fn chunks(fsck: &[Value]) -> impl Iterator<Item = &Value> {
    fsck.iter().filter_map(|line| line["extents"].as_array().and(line["chunks"].as_array())).flatten()
}

fn counted_replicas(fsck: &[Value]) -> Result<BTreeMap<u64, CountedChunk>> {
    let mut counted = BTreeMap::new();
    for chunk in chunks(fsck).filter(|chunk| chunk["sealed"] == true) {
        let number = |key: &str| chunk[key].as_u64().with_context(|| format!("{key} in {chunk}"));
        let replicas = chunk["replicas"].as_array().context("a chunk lists its replicas")?;
        let nodes = replicas.iter().filter_map(|replica| replica["name"].as_str().map(str::to_owned));
        let chunk = CountedChunk {
            number: number("chunk")?,
            epoch: number("epoch")?,
            len_bytes: number("len_bytes")?,
            target: number("target")?,
            nodes: nodes.collect(),
        };
        counted.insert(chunk.number, chunk);
    }
    Ok(counted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sealed_chunks_are_taken_from_the_lines_of_files_and_not_from_the_verdict() {
        let chunk = |number: u64, sealed: bool| {
            json!({"chunk": number, "epoch": 2, "len_bytes": 10, "target": 3, "sealed": sealed,
                   "replicas": [{"name": "dn1", "state": "live"}, {"name": "dn2", "state": "live"}]})
        };
        let lines = [
            json!({"path": "/a", "extents": [], "chunks": [chunk(1, true), chunk(2, false)]}),
            json!({"path": "/b", "extents": [], "chunks": [chunk(1, true)]}),
            json!({"verdict": "healthy", "chunks": {"total": 2}}),
        ];
        let counted = counted_replicas(&lines).unwrap();
        assert_eq!(counted.keys().collect::<Vec<_>>(), [&1]);
        assert_eq!(counted[&1].nodes, ["dn1", "dn2"]);
    }
}

//! What must hold when everything is whole again and nobody works any more.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use dfs_client::Dfs;
use dfs_cluster::{Invariant, Verdict};
use dfs_proto::InodeId;
use dfs_proto::msg::admin::{Liveness, ProblemKind, Status};
use dfs_proto::msg::group::GroupRequest;
use tokio::time::{Instant, sleep};

use crate::bed::Bed;
use crate::work::Report;

/// For copies to be made again, and for chunks of clients that lost their session to be sealed.
const HEALTHY: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_secs(1);
/// For the namenodes to note their hashes.
const AGREE: Duration = Duration::from_secs(30);

/// How long it took until every chunk had its replicas.
pub async fn at_rest(bed: &Bed, report: &Report, verdict: &mut Verdict) -> Duration {
    let begun = Instant::now();
    // Whoever has never seen the cluster before has nothing in memory.
    match bed.client(99, false, false).await {
        Ok(fresh) => report.check_files(&fresh, verdict).await,
        Err(error) => verdict.broken(Invariant::CallsEnd, format!("a new client: {error:#}")),
    }
    verdict.hold(Invariant::ReplicasAgree, healthy(&bed.observer).await).ok();
    let took = begun.elapsed();
    verdict.hold(Invariant::NothingOrphaned, fsck(&bed.observer).await).ok();
    verdict.hold(Invariant::NamenodesAgree, same_state(&bed.observer, bed).await).ok();
    took
}

async fn healthy(observer: &Dfs) -> Result<()> {
    let end = Instant::now() + HEALTHY;
    loop {
        let left = match observer.status_any().await {
            Ok(status) => left_to_do(&status),
            Err(error) => Some(format!("an answer: {error}")),
        };
        match left {
            None => return Ok(()),
            Some(left) if Instant::now() >= end => bail!("after {HEALTHY:?} still waiting for {left}"),
            Some(_) => sleep(POLL).await,
        }
    }
}

/// As `dfs wait-healthy` asks.
fn left_to_do(status: &Status) -> Option<String> {
    if status.leader != Some(status.from) {
        return Some("a leader".into());
    }
    if let Some(away) = status.namenodes.iter().find(|node| !node.reachable) {
        return Some(format!("namenode {}", away.node));
    }
    if let Some(away) = status.datanodes.iter().find(|node| node.liveness != Liveness::Live || !node.digest_agrees) {
        return Some(format!("datanode {}, {:?}, digest agrees: {}", away.node, away.liveness, away.digest_agrees));
    }
    if status.compaction.under_way > 0 {
        return Some(format!("{:?}", status.compaction));
    }
    let (chunks, repair) = (&status.chunks, &status.repair);
    let busy = chunks.missing + chunks.under_replicated + chunks.lost_ends + repair.unattended + repair.queued;
    (busy > 0 || !repair.copying.is_empty() || chunks.age_ms > 5_000).then(|| format!("{chunks:?} {repair:?}"))
}

async fn fsck(observer: &Dfs) -> Result<()> {
    let end = Instant::now() + HEALTHY;
    loop {
        let report = observer.fsck(InodeId::ROOT).await?;
        // A chunk that is sealed meanwhile may turn out to have one copy less than it should.
        let copies_lack = report.problems.iter().all(|problem| problem.kind == ProblemKind::UnderReplicated);
        if report.problems.is_empty() {
            return Ok(());
        }
        ensure!(copies_lack && Instant::now() < end, "{:?}", report.problems);
        sleep(POLL).await;
    }
}

/// Every namenode had the same state at one entry of the log.
async fn same_state(observer: &Dfs, bed: &Bed) -> Result<()> {
    observer.change_group(GroupRequest::CheckState).await?;
    let namenodes = bed.nodes.iter().filter(|node| node.is_namenode()).count();
    let end = Instant::now() + AGREE;
    loop {
        let answers = observer.each_namenode().await;
        let last = answers.iter().filter_map(|answer| answer.checks.last()).map(|check| check.index).max();
        let hashes: Vec<[u8; 32]> = answers
            .iter()
            .filter_map(|answer| answer.checks.iter().find(|check| Some(check.index) == last))
            .map(|check| check.hash)
            .collect();
        if hashes.len() == namenodes {
            ensure!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "they differ at entry {last:?}: {answers:?}");
            return Ok(());
        }
        ensure!(Instant::now() < end, "{} of {namenodes} have noted the hash at entry {last:?}", hashes.len());
        sleep(POLL).await;
    }
}

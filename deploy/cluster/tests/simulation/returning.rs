//! A leader is cut off with proposals under way. The others go on without it for so long that it gets a snapshot instead
//! of the entries it has missed, and nobody tells it what became of its proposals. Then it leads again.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use dfs_client::{Dfs, MakeOptions};
use dfs_proto::msg::group::{GroupReply, GroupRequest};
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{Caller, InodeId, Name, NodeId};
use tokio::time::{Instant, sleep, timeout};

use crate::bed::{Bed, KEPT_ENTRIES, SNAPSHOT_ENTRIES};
use crate::faults::part;

const ROOT: Caller = Caller::ROOT;

/// More entries than a namenode takes before its next snapshot, and keeps behind it.
const ENTRIES: u64 = 2 * SNAPSHOT_ENTRIES + KEPT_ENTRIES;

/// For everything that needs no more than an election.
const SOON: Duration = Duration::from_secs(30);

pub async fn by_a_snapshot() -> Result<()> {
    let mut bed = Bed::start(1).await?;
    let old = bed.leader().await;
    let (with_it, other) = (bed.clients[1].dfs.clone(), bed.clients[2].dfs.clone());
    make(&with_it, "before").await?;

    part(&bed, &[bed.nodes[old].ip, bed.clients[1].ip], &bed.machines(), true, true);
    // It is proposed, and never committed.
    let under_way = tokio::spawn(async move { make(&with_it, "under way").await });
    for number in 0..ENTRIES {
        make(&other, &format!("meanwhile{number}")).await?;
    }
    bed.make_whole();
    let new = bed.leader().await;
    ensure!(new != old, "nn{} still leads", old + 1);
    // Its session may have ended meanwhile.
    let _ = timeout(2 * SOON, under_way).await.context("the call of the client that was cut off does not end")??;

    let to = NodeId(old as u64 + 1);
    let end = Instant::now() + SOON;
    // It is told of everything before it may lead.
    while !matches!(bed.observer.change_group(GroupRequest::HandOver { to }).await, Ok(GroupReply::Leads(now)) if now == to)
    {
        ensure!(Instant::now() < end, "the lead cannot be handed to nn{}", to.0);
        // Of virtual time, as all of this.
        sleep(Duration::from_secs(1)).await;
    }
    timeout(SOON, make(&other, "after")).await.context("nothing is done by the leader that came back")??;
    bed.stop().await
}

async fn make(dfs: &Dfs, name: &str) -> Result<()> {
    let folder = Name::new(name).map_err(|error| anyhow!("{name}: {error:?}"))?;
    let made = dfs.make(&ROOT, InodeId::ROOT, &folder, NewNode::Directory, 0o755, MakeOptions::default()).await;
    made.map(drop).map_err(|error| anyhow!("make {name}: {error}"))
}

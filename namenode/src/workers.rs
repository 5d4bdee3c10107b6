//! What a leader does by itself, and what each namenode does for its disk. Each worker is a loop with a clock around one step; the steps do
//! nothing on a namenode that does not lead, and nothing is lost when the lead moves between two steps.

mod compaction;
mod duty;
mod group;
mod hints;
mod reclaim;
mod reign;
mod repair;
mod room;
mod sessions;

use std::sync::Arc;

use dfs_meta::Event;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::namenode::Namenode;

/// Starts all workers; they end at `shutdown`.
pub fn start(namenode: &Arc<Namenode>, events: mpsc::Receiver<Event>, shutdown: &CancellationToken) -> JoinSet<()> {
    let mut workers = JoinSet::new();
    workers.spawn(reign::run(namenode.clone(), shutdown.clone()));
    workers.spawn(hints::run(namenode.clone(), events, shutdown.clone()));
    workers.spawn(sessions::run(namenode.clone(), shutdown.clone()));
    workers.spawn(repair::run(namenode.clone(), shutdown.clone()));
    workers.spawn(compaction::run(namenode.clone(), shutdown.clone()));
    workers.spawn(duty::run(namenode.clone(), shutdown.clone()));
    workers.spawn(reclaim::run(namenode.clone(), shutdown.clone()));
    workers.spawn(group::run(namenode.clone(), shutdown.clone()));
    workers.spawn(room::run(namenode.clone(), shutdown.clone()));
    workers
}

//! Empties volumes that are to go out of use: replica by replica to another volume of this node, or, where none has
//! room, by asking the leader to have them elsewhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::ChunkId;
use dfs_proto::msg::node::Outcome;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::node::Node;
use crate::orders::rest;
use crate::store::{Moved, State};

/// How often draining volumes are looked for.
const LOOK: Duration = Duration::from_secs(1);

/// The leader is told again, as often as it forgets.
const REPEAT: Duration = Duration::from_secs(60);

/// Replicas that the leader is asked to have elsewhere at a time: well below what may wait to be told
/// (`heartbeat::Outcomes`). The next ones follow as these go.
const UNWANTED_MAX: usize = 1024;

/// How fast replicas are moved: as fast as two disks go beside their service.
const BYTES_PER_S: u64 = 128 << 20;

/// Empties what is to be emptied until `stop`.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut told = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        // Before the scan is over an empty table says nothing about a volume.
        if node.store.is_scanned() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = step(&node, &mut told) => {}
            }
        }
    }
}

async fn step(node: &Arc<Node>, told: &mut HashMap<ChunkId, Instant>) {
    told.retain(|_, at| at.elapsed() < REPEAT);
    for (volume, chunks) in node.store.draining() {
        if chunks.is_empty() {
            match node.store.blocking(move |store| store.retire_volume(volume)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => warn!(volume, %error, "an empty volume cannot be taken out of use"),
                Err(error) => warn!(volume, %error, "an empty volume cannot be taken out of use"),
            }
        }
        let mut no_room = false;
        for chunk in chunks {
            if let Some(replica) = node.store.get(chunk).filter(|replica| replica.state != State::Sealed) {
                // A damaged one goes by the leader's order. A writer goes on in another chunk, on another volume.
                node.store.end_appends(chunk, replica.epoch);
                continue;
            }
            if no_room {
                unwanted(node, chunk, told);
                continue;
            }
            let begun = Instant::now();
            match node.store.blocking(move |store| store.move_replica(chunk)).await.and_then(|moved| moved) {
                Ok(Moved::Yes) => {
                    let bytes = node.store.get(chunk).map_or(0, |replica| u64::from(replica.len));
                    tokio::time::sleep(rest(bytes, BYTES_PER_S).saturating_sub(begun.elapsed())).await;
                }
                Ok(Moved::NoRoom) => {
                    no_room = true;
                    unwanted(node, chunk, told);
                }
                Ok(Moved::Damaged(reason)) => {
                    if let Some(replica) = node.store.get(chunk) {
                        node.outcomes.push(Outcome::Bad { chunk, epoch: replica.epoch, reason });
                    }
                }
                Ok(Moved::NotNow) => {}
                Err(error) => info!(%chunk, %error, "a replica cannot be moved yet"),
            }
        }
    }
}

/// Asks the leader to have a replica elsewhere, unless it was asked lately.
fn unwanted(node: &Node, chunk: ChunkId, told: &mut HashMap<ChunkId, Instant>) {
    if told.contains_key(&chunk) || told.len() >= UNWANTED_MAX {
        return;
    }
    if let Some(replica) = node.store.get(chunk) {
        told.insert(chunk, Instant::now());
        node.outcomes.push(Outcome::Unwanted { chunk, epoch: replica.epoch });
    }
}

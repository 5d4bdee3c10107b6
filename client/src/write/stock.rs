//! Chunks allocated ahead of need, so that a stream does not pause at the end of each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::msg::meta::{ChunkCommit, ChunkLocation, Op, OpReply};
use dfs_proto::{Caller, ErrorKind, NodeId};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::debug;

use crate::client::{Client, now};
use crate::deadline::Deadline;
use crate::error::{Error, Result, unexpected_answer};
use crate::write::upload::ON_BEHALF_OF_GRANTS;

/// Chunks kept ahead for each number of copies.
const AHEAD: usize = 1;

/// A chunk that nobody has begun with for so long is given back: a datanode that is to leave has to wait for it.
const UNUSED: Duration = Duration::from_secs(10);

/// A chunk whose capability ends sooner is not begun with.
const CAPABILITY_MARGIN_S: i64 = 60;

/// How long "no room" is taken for a passing state, such as nodes that are just restarting.
const NO_SPACE_PATIENCE: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Stock {
    /// Each with the moment at which it was allocated.
    chunks: Mutex<HashMap<u8, Vec<(ChunkLocation, Instant)>>>,
    no_space: Mutex<NoSpace>,
}

/// For how long there has been no room, whoever asked. Writers wait for a chunk one after the other: if each of them were
/// patient by himself, the fourth would come to his deadline, and not hear that the disks are full.
#[derive(Default)]
struct NoSpace {
    since_and_last: Option<(Instant, Instant)>,
}

impl NoSpace {
    /// There was no room just now. Whether that may still pass by itself.
    fn may_pass(&mut self, now: Instant) -> bool {
        // What nobody has asked for lately may have changed.
        let recent = |(_, last): &(Instant, Instant)| now.saturating_duration_since(*last) < NO_SPACE_PATIENCE;
        let since = self.since_and_last.filter(recent).map_or(now, |(since, _)| since);
        self.since_and_last = Some((since, now));
        now.saturating_duration_since(since) < NO_SPACE_PATIENCE
    }

    fn is_over(&mut self) {
        self.since_and_last = None;
    }
}

impl Stock {
    pub fn clear(&self) {
        self.chunks.lock().clear();
    }

    /// A usable chunk that lies on none of the suspects, and those that are not usable.
    fn take(&self, replication: u8, suspects: &[NodeId]) -> (Option<ChunkLocation>, Vec<ChunkLocation>) {
        let soon = now().secs + CAPABILITY_MARGIN_S;
        let mut unfit = Vec::new();
        let mut chunks = self.chunks.lock();
        while let Some((chunk, _)) = chunks.get_mut(&replication).and_then(Vec::pop) {
            let fresh = chunk.capability.as_ref().is_some_and(|capability| capability.expires.secs > soon);
            if fresh && !chunk.replicas.iter().any(|replica| suspects.contains(&replica.node)) {
                return (Some(chunk), unfit);
            }
            unfit.push(chunk);
        }
        (None, unfit)
    }

    /// Chunks that nobody has begun with for long.
    fn take_unused(&self, now: Instant) -> Vec<ChunkLocation> {
        let mut chunks = self.chunks.lock();
        let unused = |since: Instant| now.saturating_duration_since(since) >= UNUSED;
        let taken = chunks.values_mut().flat_map(|chunks| chunks.extract_if(.., |(_, since)| unused(*since)));
        taken.map(|(chunk, _)| chunk).collect()
    }
}

impl Client {
    /// A new chunk for `replication` copies on at least as many nodes as an acknowledgement needs. Goes on
    /// trying while there are too few.
    pub async fn new_chunk(self: &Arc<Self>, replication: u8, ahead: bool) -> Result<ChunkLocation> {
        let suspects = self.nodes.suspects();
        let (chunk, unfit) = self.writes.stock.take(replication, &suspects);
        self.give_back(unfit);
        let chunk = match chunk {
            Some(chunk) => chunk,
            None => self.allocate_patiently(replication).await?,
        };
        if ahead {
            self.fill_stock(replication);
        }
        Ok(chunk)
    }

    async fn allocate_patiently(self: &Arc<Self>, replication: u8) -> Result<ChunkLocation> {
        let deadline = self.deadline();
        loop {
            let error = match self.allocate(replication).await {
                Ok(chunk) => {
                    self.writes.stock.no_space.lock().is_over();
                    return Ok(chunk);
                }
                Err(error) => error,
            };
            let passing = match error.kind {
                ErrorKind::NoSpace => self.writes.stock.no_space.lock().may_pass(Instant::now()),
                kind => kind.retryable(),
            };
            if !passing || deadline.passed() {
                return Err(error);
            }
            debug!(%error, "no chunk yet");
            tokio::time::sleep(deadline.cap(PAUSE)).await;
        }
    }

    async fn allocate(self: &Arc<Self>, replication: u8) -> Result<ChunkLocation> {
        let avoid = self.nodes.suspects();
        let op = Op::AllocateChunks { count: 1, replication, avoid };
        let OpReply::Chunks(mut chunks) = self.mutate(&Caller::ROOT, op).await? else {
            return Err(unexpected_answer("AllocateChunks"));
        };
        let chunk = chunks.pop().ok_or_else(|| unexpected_answer("AllocateChunks"))?;
        let required = self.required_copies(replication).await?;
        if chunk.replicas.len() < required {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("{} datanodes can take writes, and {required} copies are required", chunk.replicas.len()),
            ));
        }
        Ok(chunk)
    }

    /// Copies that must have a byte before it counts as written.
    pub async fn required_copies(self: &Arc<Self>, replication: u8) -> Result<usize> {
        let session = self.session(Deadline::of(&self.options)).await?;
        Ok(usize::from(session.grant.min_copies.min(replication)).max(1))
    }

    fn fill_stock(self: &Arc<Self>, replication: u8) {
        let have = self.writes.stock.chunks.lock().get(&replication).map_or(0, Vec::len);
        if have >= AHEAD {
            return;
        }
        let client = self.clone();
        tokio::spawn(async move {
            // Without luck here the writer asks again itself when it needs a chunk.
            if let Ok(chunk) = client.allocate(replication).await {
                client.writes.stock.chunks.lock().entry(replication).or_default().push((chunk, Instant::now()));
            }
        });
    }

    /// To be called again and again.
    pub(super) fn give_unused_chunks_back(self: &Arc<Self>) {
        self.give_back(self.writes.stock.take_unused(Instant::now()));
    }

    /// Seals chunks that nobody has begun with, by which they are deleted. What fails here is done at the end of the session.
    fn give_back(self: &Arc<Self>, chunks: Vec<ChunkLocation>) {
        if chunks.is_empty() {
            return;
        }
        let client = self.clone();
        let seal = |chunk: ChunkLocation| ChunkCommit {
            chunk: chunk.chunk,
            epoch: chunk.epoch,
            len: 0,
            replicas: chunk.replicas.iter().map(|replica| replica.node).collect(),
            seal: true,
        };
        let op = Op::Commit { chunks: chunks.into_iter().map(seal).collect(), files: Vec::new() };
        tokio::spawn(async move {
            let deadline = client.deadline();
            let given = async {
                let session = client.session(deadline).await?;
                client.mutate_in(&session, &ON_BEHALF_OF_GRANTS, op, deadline).await.map_err(|failed| failed.error)
            };
            if let Err(error) = given.await {
                debug!(%error, "unused chunks not given back");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use dfs_proto::msg::meta::ReplicaAt;
    use dfs_proto::{Access, Capability, CapabilityKey, ChunkId, Epoch, Timestamp};

    use super::*;

    #[test]
    fn everybody_waits_once_for_room_and_nobody_after_that_until_there_is_some() {
        let start = Instant::now();
        let mut no_space = NoSpace::default();
        let mut may_pass = |after_s| no_space.may_pass(start + Duration::from_secs(after_s));
        // One waits; another one comes in the middle of it; a third when the patience is over.
        assert!(may_pass(0) && may_pass(5) && may_pass(9));
        assert!(!may_pass(10) && !may_pass(11) && !may_pass(20));
        // Nobody has asked for a while.
        assert!(may_pass(30) && may_pass(39) && !may_pass(40));
    }

    #[test]
    fn a_chunk_is_begun_with_or_given_back() {
        let chunk = |number: u64, secs: i64| {
            let key = CapabilityKey { number: 1, secret: [0; 32] };
            let expires = Timestamp { secs: now().secs + secs, nanos: 0 };
            let chunk = ChunkId(number);
            let capability = Some(Capability::sign(&key, chunk, Access::Append, NodeId(500), expires));
            let at = ReplicaAt { node: NodeId(number), addr: "127.0.0.1:1".parse().unwrap() };
            ChunkLocation { chunk, epoch: Epoch::FIRST, len: 0, replicas: vec![at], capability }
        };
        let (stock, start) = (Stock::default(), Instant::now());
        let put = |chunk: ChunkLocation, after: Duration| {
            stock.chunks.lock().entry(3).or_default().push((chunk, start + after));
        };
        put(chunk(1, 600), Duration::ZERO);
        put(chunk(2, 600), Duration::from_secs(1));
        put(chunk(3, 10), Duration::from_secs(1));
        put(chunk(4, 600), Duration::from_secs(1));
        let ids = |chunks: Vec<ChunkLocation>| chunks.iter().map(|chunk| chunk.chunk.0).collect::<Vec<_>>();
        assert!(stock.take_unused(start + UNUSED - Duration::from_millis(1)).is_empty());
        assert_eq!(ids(stock.take_unused(start + UNUSED)), [1]);
        let (taken, unfit) = stock.take(3, &[NodeId(4)]);
        assert_eq!((taken.unwrap().chunk, ids(unfit)), (ChunkId(2), vec![4, 3]), "one on a suspect, one too old");
        assert_eq!(stock.take(3, &[]).0, None);
        assert!(stock.take_unused(start + 2 * UNUSED).is_empty());
    }

    #[test]
    fn room_begins_the_patience_anew() {
        let start = Instant::now();
        let mut no_space = NoSpace::default();
        assert!(no_space.may_pass(start));
        assert!(no_space.may_pass(start + NO_SPACE_PATIENCE - Duration::from_millis(1)));
        no_space.is_over();
        assert!(no_space.may_pass(start + NO_SPACE_PATIENCE));
    }
}

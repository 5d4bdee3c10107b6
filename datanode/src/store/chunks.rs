//! The table of all replicas on this node, in memory. Pure: knows nothing of files.
//!
//! It is cut into the same shards as the digests (`dfs_proto::chunk::digest_shard`), each with a lock
//! of its own, and keeps each shard's digest up to date with every change.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::chunk::{digest_shard, replica_digest};
use dfs_proto::limits::DIGEST_SHARDS;
use dfs_proto::msg::node::{ReplicaReport, ScrubStatus};
use dfs_proto::{ChunkId, Epoch};
use parking_lot::Mutex;

use super::format::State;

/// What is known of one replica without touching its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Replica {
    /// Which of the node's volumes holds it.
    pub volume: usize,
    pub epoch: Epoch,
    pub state: State,
    /// Frames from the start of the chunk.
    pub frames: u32,
    /// Bytes in them.
    pub len: u32,
    /// Bytes from the start known to be whole: less than `len` only in a damaged replica.
    pub whole: u32,
    /// When every frame last matched, in seconds since 1970.
    pub verified_s: u64,
    /// Its volume has failed: served while it can be read, but reported and counted no longer.
    pub lost: bool,
    /// Open, and found at its seal to end in front of the committed length, with nothing behind its end that could be
    /// read. Not kept on disk: what an open replica is worth is found out anew after each start.
    pub short: bool,
}

pub struct Chunks {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Default)]
struct Shard {
    replicas: BTreeMap<ChunkId, Replica>,
    /// Those that are open or damaged: reported with every heartbeat.
    unsealed: BTreeSet<ChunkId>,
    /// XOR of `replica_digest` over what is sealed and not lost.
    digest: u64,
    /// How many replicas each volume has here.
    counts: BTreeMap<usize, u64>,
}

/// One shard as it was at one moment.
pub struct ShardView {
    pub digest: u64,
    pub replicas: Vec<ReplicaReport>,
}

impl Replica {
    /// Whether it was condemned for nothing but its length, which programs of before did with short ones; their header
    /// stays. One without any epoch is no replica.
    pub fn was_found_short(&self) -> bool {
        self.state == State::Damaged && self.whole == self.len && self.epoch >= Epoch::FIRST
    }

    fn share(&self, chunk: ChunkId) -> u64 {
        let counts = self.state == State::Sealed && !self.lost;
        if counts { replica_digest(chunk, self.epoch, self.len) } else { 0 }
    }

    fn report(&self, chunk: ChunkId) -> ReplicaReport {
        ReplicaReport { chunk, epoch: self.epoch, len: self.whole, sealed: self.state == State::Sealed }
    }
}

impl Shard {
    fn set(&mut self, chunk: ChunkId, new: Option<Replica>) -> Option<Replica> {
        let old = match new {
            Some(replica) => self.replicas.insert(chunk, replica),
            None => self.replicas.remove(&chunk),
        };
        let share = |replica: Option<Replica>| replica.map_or(0, |replica| replica.share(chunk));
        self.digest ^= share(old) ^ share(new);
        if let Some(count) = old.and_then(|old| self.counts.get_mut(&old.volume)) {
            *count -= 1;
        }
        if let Some(new) = new {
            *self.counts.entry(new.volume).or_default() += 1;
        }
        if new.is_some_and(|replica| replica.state != State::Sealed && !replica.lost) {
            self.unsealed.insert(chunk);
        } else {
            self.unsealed.remove(&chunk);
        }
        old
    }
}

impl Default for Chunks {
    fn default() -> Self {
        Chunks { shards: (0..DIGEST_SHARDS).map(|_| Mutex::default()).collect() }
    }
}

impl Chunks {
    pub fn get(&self, chunk: ChunkId) -> Option<Replica> {
        self.shard(chunk).lock().replicas.get(&chunk).copied()
    }

    /// Puts a replica in, whatever was there before, which is returned.
    pub fn put(&self, chunk: ChunkId, replica: Replica) -> Option<Replica> {
        self.shard(chunk).lock().set(chunk, Some(replica))
    }

    /// Changes a replica in place; what it then is, or `None` if there is none.
    pub fn update(&self, chunk: ChunkId, change: impl FnOnce(&mut Replica)) -> Option<Replica> {
        let mut shard = self.shard(chunk).lock();
        let mut replica = shard.replicas.get(&chunk).copied()?;
        change(&mut replica);
        shard.set(chunk, Some(replica));
        Some(replica)
    }

    pub fn remove(&self, chunk: ChunkId) -> Option<Replica> {
        self.shard(chunk).lock().set(chunk, None)
    }

    /// Counts the replicas of a failed volume no longer.
    pub fn lose_volume(&self, volume: usize) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let there: Vec<_> =
                shard.replicas.iter().filter(|(_, r)| r.volume == volume).map(|(c, r)| (*c, *r)).collect();
            for (chunk, replica) in there {
                shard.set(chunk, Some(Replica { lost: true, ..replica }));
            }
        }
    }

    /// Forgets the replicas of a volume that was replaced.
    pub fn forget_volume(&self, volume: usize) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let there: Vec<_> =
                shard.replicas.iter().filter(|(_, r)| r.volume == volume).map(|(chunk, _)| *chunk).collect();
            for chunk in there {
                shard.set(chunk, None);
            }
        }
    }

    /// Takes the replicas of a volume for never verified.
    pub fn distrust_volume(&self, volume: usize) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.replicas.values_mut().filter(|r| r.volume == volume).for_each(|r| r.verified_s = 0);
        }
    }

    /// Every replica of a volume, in whatever state.
    pub fn on_volume(&self, volume: usize) -> Vec<(ChunkId, Replica)> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            found.extend(shard.replicas.iter().filter(|(_, r)| r.volume == volume).map(|(c, r)| (*c, *r)));
        }
        found
    }

    /// How many replicas each of `volumes` volumes has.
    pub fn counts(&self, volumes: usize) -> Vec<u64> {
        let mut counts = vec![0; volumes];
        for shard in &self.shards {
            for (volume, count) in &shard.lock().counts {
                if let Some(sum) = counts.get_mut(*volume) {
                    *sum += count;
                }
            }
        }
        counts
    }

    /// Every shard's digest.
    pub fn digests(&self) -> Vec<u64> {
        self.shards.iter().map(|shard| shard.lock().digest).collect()
    }

    /// Replicas that are open or damaged, at most `max`.
    pub fn unsealed(&self, max: usize) -> Vec<ReplicaReport> {
        let mut reports = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let there = shard.unsealed.iter().filter_map(|chunk| Some(shard.replicas.get(chunk)?.report(*chunk)));
            reports.extend(there.take(max - reports.len()));
        }
        reports
    }

    /// All replicas of one shard, by id, with the digest of its sealed ones; `None` if there is no such shard.
    pub fn view(&self, shard: usize) -> Option<ShardView> {
        let shard = self.shards.get(shard)?.lock();
        let counted = shard.replicas.iter().filter(|(_, replica)| !replica.lost);
        Some(ShardView { digest: shard.digest, replicas: counted.map(|(chunk, r)| r.report(*chunk)).collect() })
    }

    /// The sealed replicas of a volume that count, with the time at which each last matched.
    pub fn sealed_on(&self, volume: usize) -> Vec<(u64, ChunkId)> {
        let mut sealed = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let there =
                shard.replicas.iter().filter(|(_, r)| r.volume == volume && r.state == State::Sealed && !r.lost);
            sealed.extend(there.map(|(chunk, replica)| (replica.verified_s, *chunk)));
        }
        sealed
    }

    /// How far the sealed replicas that count have been verified since `asked_s`.
    pub fn scrubbed(&self, period_s: u64, asked_s: u64) -> ScrubStatus {
        let mut status = ScrubStatus { period_s, asked_s, oldest_s: u64::MAX, ..ScrubStatus::default() };
        for shard in &self.shards {
            let shard = shard.lock();
            for replica in shard.replicas.values().filter(|r| r.state == State::Sealed && !r.lost) {
                status.chunks += 1;
                status.bytes += u64::from(replica.len);
                status.oldest_s = status.oldest_s.min(replica.verified_s);
                if replica.verified_s < asked_s {
                    status.left_chunks += 1;
                    status.left_bytes += u64::from(replica.len);
                }
            }
        }
        if status.chunks == 0 {
            status.oldest_s = 0;
        }
        status
    }

    fn shard(&self, chunk: ChunkId) -> &Mutex<Shard> {
        &self.shards[digest_shard(chunk)]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replica(volume: usize, epoch: u64, sealed: bool, len: u32) -> Replica {
        let state = if sealed { State::Sealed } else { State::Open };
        Replica {
            volume,
            epoch: Epoch(epoch),
            state,
            frames: 1,
            len,
            whole: len,
            verified_s: 0,
            lost: false,
            short: false,
        }
    }

    fn recomputed(chunks: &Chunks) -> Vec<u64> {
        (0..DIGEST_SHARDS)
            .map(|shard| {
                let view = chunks.view(shard).unwrap();
                let sealed = view.replicas.iter().filter(|report| report.sealed);
                sealed.fold(0, |digest, r| digest ^ replica_digest(r.chunk, r.epoch, r.len))
            })
            .collect()
    }

    #[derive(Debug, Clone)]
    enum Change {
        Put(u64, usize, u64, bool, u32),
        Seal(u64, u32),
        Remove(u64),
        Lose(usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        let chunk = 0u64..600;
        prop_oneof![
            (chunk.clone(), 0usize..3, 1u64..4, any::<bool>(), 0u32..9)
                .prop_map(|(c, v, e, s, l)| Change::Put(c, v, e, s, l)),
            (chunk.clone(), 0u32..9).prop_map(|(c, l)| Change::Seal(c, l)),
            chunk.prop_map(Change::Remove),
            (1usize..3).prop_map(Change::Lose),
        ]
    }

    proptest! {
        #[test]
        fn digests_kept_change_by_change_equal_those_recomputed(changes in prop::collection::vec(change(), 0..200)) {
            let chunks = Chunks::default();
            for change in changes {
                match change {
                    Change::Put(c, v, e, s, l) => { chunks.put(ChunkId(c), replica(v, e, s, l)); }
                    Change::Seal(c, l) => {
                        chunks.update(ChunkId(c), |r| *r = Replica { state: State::Sealed, len: l, whole: l, ..*r });
                    }
                    Change::Remove(c) => { chunks.remove(ChunkId(c)); }
                    Change::Lose(v) => chunks.lose_volume(v),
                }
            }
            prop_assert_eq!(chunks.digests(), recomputed(&chunks));
            let mut unsealed: Vec<_> = (0..DIGEST_SHARDS)
                .flat_map(|shard| chunks.view(shard).unwrap().replicas)
                .filter(|report| !report.sealed)
                .map(|report| report.chunk)
                .collect();
            let mut listed: Vec<_> = chunks.unsealed(usize::MAX).iter().map(|report| report.chunk).collect();
            unsealed.sort();
            listed.sort();
            prop_assert_eq!(listed, unsealed);
        }
    }

    #[test]
    fn a_failed_volume_leaves_the_reports_but_not_the_table() {
        let chunks = Chunks::default();
        chunks.put(ChunkId(1), replica(0, 1, true, 5));
        chunks.put(ChunkId(257), replica(1, 1, true, 5));
        chunks.lose_volume(0);
        assert_eq!(chunks.view(1).unwrap().replicas.len(), 1);
        assert!(chunks.get(ChunkId(1)).unwrap().lost);
        assert_eq!(chunks.digests()[1], replica_digest(ChunkId(257), Epoch(1), 5));
    }

    #[test]
    fn what_was_not_verified_since_the_wish_is_left() {
        let chunks = Chunks::default();
        let verified = |at| Replica { verified_s: at, ..replica(0, 1, true, 10) };
        chunks.put(ChunkId(1), verified(50));
        chunks.put(ChunkId(2), verified(99));
        chunks.put(ChunkId(3), verified(100));
        chunks.put(ChunkId(4), replica(0, 1, false, 10));
        let status = chunks.scrubbed(60, 100);
        assert_eq!((status.chunks, status.bytes, status.oldest_s), (3, 30, 50));
        assert_eq!((status.left_chunks, status.left_bytes), (2, 20));
        assert_eq!(Chunks::default().scrubbed(60, 100).oldest_s, 0);
    }

    #[test]
    fn the_list_of_unsealed_replicas_is_bounded() {
        let chunks = Chunks::default();
        for id in 0..1000 {
            chunks.put(ChunkId(id), replica(0, 1, false, 5));
        }
        assert_eq!(chunks.counts(2), [1000, 0]);
        assert_eq!(chunks.unsealed(300).len(), 300);
    }
}

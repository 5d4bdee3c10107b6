//! Compaction: which chunks are mostly dead, what of them is gathered into a new one, and where it lies there.
//!
//! The argument is in CONSISTENCY.md, section 9.2. What is planned here names everything; whether it still holds is found
//! out by `apply`.

use std::collections::{BTreeMap, BTreeSet};

use dfs_proto::limits::{CHUNK_MAX, GATHER_PIECES_MAX, GATHER_SOURCES_MAX};
use dfs_proto::msg::admin::Liveness;
use dfs_proto::msg::node::Piece;
use dfs_proto::{ChunkId, Epoch, Extent, InodeId};

use crate::extents;
use crate::placement;
use crate::repair::Known;
use crate::rows::{self, ChunkRow, CompactionRow};
use crate::view::{Fault, View};

/// A compaction frees at least so many bytes for each replica: less is not worth a chunk and two log entries.
const GAIN_BYTES_MIN: u64 = 1 << 20;

/// What a chunk's file takes besides its bytes, at most.
const INDEX_BYTES: u64 = 2 << 20;

/// Extents that a plan holds in memory: the most of one chunk, and some.
const EXTENTS_MAX: usize = if cfg!(test) { 40 } else { 128 << 10 };

/// Pieces that a plan makes. Few in tests, so that they are too few.
const PIECES_MAX: usize = if cfg!(test) { 12 } else { GATHER_PIECES_MAX };

/// A sealed chunk of which less than half lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub chunk: ChunkId,
    pub epoch: Epoch,
    pub len: u32,
    /// At most `len`.
    pub live_bytes: u32,
    pub target: u8,
    /// How many replicas count.
    pub replicas: u8,
}

impl Candidate {
    fn dead_bytes(&self) -> u64 {
        u64::from(self.len - self.live_bytes)
    }
}

/// What a new chunk is to be gathered from, for `Body::BeginCompaction`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatherPlan {
    pub sources: Vec<(ChunkId, Epoch)>,
    pub pieces: Vec<Piece>,
    /// Copies that the chunk is to have.
    pub target: u8,
    /// Copies that it needs, so that nothing has fewer than before.
    pub needed: u8,
}

/// Chunks that a compaction may take from, at most `limit`: mostly dead, whole, as often there as they are to be (or as
/// there are nodes that answer), and in no compaction yet.
pub fn candidates(view: &dyn View, known: Known<'_>, live_nodes: usize, limit: usize) -> Result<Vec<Candidate>, Fault> {
    let under_way = rows::compactions(view)?;
    let busy: BTreeSet<ChunkId> = under_way
        .iter()
        .flat_map(|(chunk, row)| row.sources.iter().map(|(source, _)| *source).chain([*chunk]))
        .collect();
    let lost_ends = rows::lost_ends(view)?;
    let mut found = Vec::new();
    rows::chunks(view, &mut |chunk, row| {
        let mostly_dead = row.is_sealed() && row.live_bytes * 2 < u64::from(row.len);
        if !mostly_dead || found.len() == limit || busy.contains(&chunk) || lost_ends.contains_key(&chunk) {
            return;
        }
        let wanted = usize::from(row.target).min(live_nodes).max(1);
        if known.good(chunk, &row) >= wanted && row.replicas.len() == known.good(chunk, &row) {
            found.push(Candidate {
                chunk,
                epoch: row.epoch,
                len: row.len,
                live_bytes: row.live_bytes as u32,
                target: row.target,
                replicas: row.replicas.len() as u8,
            });
        }
    })?;
    Ok(found)
}

/// Bytes that so many nodes have room for, each; of all nodes if there are fewer. At most a chunk. Where disks are nearly
/// full a small chunk has to do: it makes room for the next one.
pub fn room(nodes: &[placement::NodeView], copies: u8) -> u32 {
    let takes = |node: &&placement::NodeView| node.liveness == Liveness::Live && node.writable;
    let mut free: Vec<u64> = nodes.iter().filter(takes).map(|node| node.free_bytes).collect();
    free.sort_unstable_by(|a, b| b.cmp(a));
    let least = free.get(usize::from(copies).saturating_sub(1)).or(free.last()).copied().unwrap_or(0);
    least.saturating_sub(INDEX_BYTES).min(u64::from(CHUNK_MAX)) as u32
}

/// The candidates that go together into one new chunk: of those that are to have equally many copies, the ones with
/// least alive first, as many as there is `room` for with so many copies. None if too little would be gained.
pub fn choose(mut candidates: Vec<Candidate>, room: &dyn Fn(u8) -> u32) -> Vec<Candidate> {
    // Alive in thousandths, so that the order is by share and not by size.
    let share = |candidate: &Candidate| u64::from(candidate.live_bytes) * 1000 / u64::from(candidate.len.max(1));
    candidates.sort_by_key(|candidate| (candidate.target, share(candidate), candidate.chunk));
    let groups = candidates.chunk_by(|a, b| a.target == b.target).map(|group| {
        let mut room = group.first().map_or(0, |candidate| room(candidate.target));
        let fits = |candidate: &&Candidate| match room.checked_sub(candidate.live_bytes) {
            Some(left) => {
                room = left;
                true
            }
            None => false,
        };
        group.iter().take(GATHER_SOURCES_MAX).take_while(fits).copied().collect::<Vec<_>>()
    });
    let gain = |group: &Vec<Candidate>| group.iter().map(Candidate::dead_bytes).sum::<u64>();
    groups.max_by_key(gain).filter(|group| gain(group) >= GAIN_BYTES_MIN).unwrap_or_default()
}

/// What lives in the chosen chunks, in the order of files and offsets. Where that is too many pieces for one chunk the last
/// of the sources are left out; of a single one the last pieces, whose turn comes with the next compaction. `None` if
/// nothing lives by now.
pub fn plan(view: &dyn View, chosen: &[Candidate]) -> Result<Option<GatherPlan>, Fault> {
    let mut chosen = chosen.to_vec();
    let (users, all) = loop {
        let ids: BTreeSet<ChunkId> = chosen.iter().map(|candidate| candidate.chunk).collect();
        let (users, all) = users_of(view, &ids, EXTENTS_MAX, &|_| true)?;
        if all || chosen.len() <= 1 {
            break (users, all);
        }
        chosen.truncate(chosen.len() / 2);
    };
    // As many sources as have their extents in pieces, if each extent is one.
    let mut left = PIECES_MAX;
    let count = |chunk: ChunkId| users.iter().filter(|(_, extent)| extent.chunk == chunk).count();
    let fitting = chosen.iter().take_while(|candidate| match left.checked_sub(count(candidate.chunk)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    });
    let fitting = fitting.count().max(1);
    chosen.truncate(fitting);
    debug_assert!(all || chosen.len() <= 1);

    let mut pieces = Pieces::default();
    for (_, extent) in &users {
        let Some(source) = chosen.iter().position(|candidate| candidate.chunk == extent.chunk) else { continue };
        if extent.chunk_end() <= chosen[source].len && !pieces.add(source as u16, extent) {
            break;
        }
    }
    if pieces.list.is_empty() {
        return Ok(None);
    }
    Ok(Some(GatherPlan {
        sources: chosen.iter().map(|candidate| (candidate.chunk, candidate.epoch)).collect(),
        pieces: pieces.list,
        target: chosen.iter().map(|candidate| candidate.target).max().unwrap_or(1),
        needed: chosen.iter().map(|candidate| candidate.replicas.min(candidate.target)).max().unwrap_or(1),
    }))
}

/// Extents that a compaction is to relocate, told as `Body::Relocate` wants them; at most `limit`.
pub fn left(view: &dyn View, chunk: ChunkId, row: &CompactionRow, limit: usize) -> Result<Vec<(InodeId, u64)>, Fault> {
    let moves = Moves::of(chunk, row);
    let sources = row.sources.iter().map(|(source, _)| *source).collect();
    let (users, _) = users_of(view, &sources, limit, &|extent| moves.moved(extent).is_some())?;
    Ok(users.iter().map(|(inode, extent)| (*inode, extent.file_end())).collect())
}

/// The extents that name one of the chunks and are `wanted`, at most `limit`, by inode and offset; and whether these are
/// all.
fn users_of(
    view: &dyn View,
    chunks: &BTreeSet<ChunkId>,
    limit: usize,
    wanted: &dyn Fn(&Extent) -> bool,
) -> Result<(Vec<(InodeId, Extent)>, bool), Fault> {
    let mut inodes = BTreeSet::new();
    for chunk in chunks {
        rows::chunk_files(view, *chunk, &mut |inode, _| {
            inodes.insert(inode);
            true
        })?;
    }
    let mut found = Vec::new();
    for inode in inodes {
        let Some(row) = rows::inode(view, inode)? else { continue };
        let mut all = true;
        rows::extents_past(view, row.span(inode), 0, &mut |extent| {
            if chunks.contains(&extent.chunk) && wanted(&extent) {
                all = found.len() < limit;
                if all {
                    found.push((inode, extent));
                }
            }
            all
        })?;
        if !all {
            return Ok((found, false));
        }
    }
    Ok((found, true))
}

/// Pieces as they are collected: no byte of a source twice, although files may share it.
#[derive(Default)]
struct Pieces {
    list: Vec<Piece>,
    bytes: u32,
    /// By source and offset: where what is in `list` ends.
    covered: BTreeMap<(u16, u32), u32>,
}

impl Pieces {
    /// Adds what of the extent is not there yet. `false` if there is no room.
    fn add(&mut self, source: u16, extent: &Extent) -> bool {
        let mut at = extent.chunk_offset;
        while at < extent.chunk_end() {
            let before =
                self.covered.range(..=(source, at)).next_back().filter(|((of, _), end)| *of == source && **end > at);
            if let Some((_, end)) = before {
                at = *end;
                continue;
            }
            let next = self.covered.range((source, at)..=(source, u32::MAX)).next();
            let end = next.map_or(extent.chunk_end(), |((_, next), _)| extent.chunk_end().min(*next));
            if !self.push(Piece { source, offset: at, len: end - at }) {
                return false;
            }
            at = end;
        }
        true
    }

    fn push(&mut self, piece: Piece) -> bool {
        let Some(bytes) = self.bytes.checked_add(piece.len).filter(|bytes| *bytes <= CHUNK_MAX) else { return false };
        let full = self.list.len() == PIECES_MAX;
        match self.list.last_mut() {
            Some(last) if last.source == piece.source && last.offset + last.len == piece.offset => {
                last.len += piece.len;
            }
            _ if full => return false,
            _ => self.list.push(piece),
        }
        self.bytes = bytes;
        self.covered.insert((piece.source, piece.offset), piece.offset + piece.len);
        true
    }
}

/// Where bytes of the sources lie in the new chunk.
pub(crate) struct Moves {
    to: ChunkId,
    /// By source and offset there: length, and offset in the new chunk.
    places: BTreeMap<(ChunkId, u32), (u32, u32)>,
}

impl Moves {
    pub fn of(to: ChunkId, row: &CompactionRow) -> Moves {
        let mut places = BTreeMap::new();
        let mut at = 0;
        for piece in &row.pieces {
            if let Some((source, _)) = row.sources.get(usize::from(piece.source)) {
                places.insert((*source, piece.offset), (piece.len, at));
            }
            at += piece.len;
        }
        Moves { to, places }
    }

    /// The same bytes of the same file in the new chunk; `None` if not all of them are there.
    pub fn moved(&self, extent: &Extent) -> Option<Vec<Extent>> {
        let mut found = Vec::new();
        let mut at = extent.chunk_offset;
        while at < extent.chunk_end() {
            let ((source, start), (len, new)) = self.places.range(..=(extent.chunk, at)).next_back()?;
            let end = extent.chunk_end().min(start + len);
            if *source != extent.chunk || end <= at {
                return None;
            }
            found.push(Extent {
                file_offset: extent.file_offset + u64::from(at - extent.chunk_offset),
                chunk: self.to,
                chunk_offset: new + (at - start),
                len: end - at,
            });
            at = end;
        }
        Some(extents::coalesce(found))
    }
}

/// What is wrong with a plan, whose sources have these rows.
pub(crate) fn check(pieces: &[Piece], sources: &[&ChunkRow]) -> Result<u32, String> {
    if sources.is_empty() || sources.len() > GATHER_SOURCES_MAX || pieces.is_empty() || pieces.len() > GATHER_PIECES_MAX
    {
        return Err(format!("{} sources and {} pieces are too few or too many", sources.len(), pieces.len()));
    }
    let mut len = 0_u32;
    for piece in pieces {
        let inside = |row: &&&ChunkRow| piece.offset.checked_add(piece.len).is_some_and(|end| end <= row.len);
        if piece.len == 0 || sources.get(usize::from(piece.source)).filter(inside).is_none() {
            return Err(format!("{piece:?} is not within its source"));
        }
        len = len.checked_add(piece.len).filter(|len| *len <= CHUNK_MAX).ok_or("the pieces do not fit into a chunk")?;
    }
    Ok(len)
}

#[cfg(test)]
mod tests;

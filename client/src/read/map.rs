//! What is known of a file's extents: for some ranges of it, all of them.

use std::collections::BTreeMap;

use dfs_proto::Extent;
use dfs_proto::msg::meta::FileMap;

use crate::ranges::RangeSet;

/// Extents remembered of one file; a map that grows larger starts anew. About 3 MiB.
const EXTENTS_MAX: usize = 64 << 10;

#[derive(Default, Debug)]
pub(crate) struct ExtentMap {
    /// Which content of the file this is the map of. Without meaning while nothing is known.
    version: u64,
    /// By file offset; never overlapping.
    extents: BTreeMap<u64, Extent>,
    /// Where every extent is in `extents`; what lies between them there is a hole.
    known: RangeSet,
}

impl ExtentMap {
    pub fn clear(&mut self) {
        self.extents.clear();
        self.known.clear();
    }

    /// The extents in `[start, end)`, cut to it, if all are known.
    pub fn get(&self, start: u64, end: u64) -> Option<Vec<Extent>> {
        if !self.known.covers(start, end) {
            return None;
        }
        let first = self.extents.range(..=start).next_back().map_or(start, |(&first, _)| first);
        Some(self.extents.range(first..end.max(first)).filter_map(|(_, extent)| extent.clip(start, end)).collect())
    }

    /// The first extents from `start` on, at most `limit`, cut to `[start, end)`; and up to where these are all
    /// and known: `start` itself if nothing is.
    pub fn front(&self, start: u64, end: u64, limit: usize) -> (Vec<Extent>, u64) {
        let end = self.known_to(start).min(end);
        let first = self.extents.range(..=start).next_back().map_or(start, |(&first, _)| first);
        let mut found = self.extents.range(first..end.max(first)).filter_map(|(_, extent)| extent.clip(start, end));
        let front: Vec<Extent> = found.by_ref().take(limit).collect();
        let complete_to = found.next().map_or(end, |next| next.file_offset);
        (front, complete_to.max(start))
    }

    /// How far everything is known from `start` on; `start` itself if nothing is.
    pub fn known_to(&self, start: u64) -> u64 {
        self.known.containing(start).map_or(start, |(_, end)| end)
    }

    /// Takes an answer about `[start, end)`.
    pub fn learn(&mut self, start: u64, end: u64, map: &FileMap) {
        if map.version != self.version || self.extents.len() + map.extents.len() > EXTENTS_MAX {
            self.clear();
            self.version = map.version;
        }
        let end = end.min(map.complete_to);
        for extent in &map.extents {
            if let Some(extent) = extent.clip(start, end) {
                self.put(extent);
            }
        }
        self.known.insert(start, end);
    }

    /// A commit of our own took the file from one version to the next.
    pub fn overwrite(&mut self, from: u64, to: u64, extents: &[Extent]) {
        if self.known.is_empty() || self.version != from {
            self.clear();
            self.version = to;
        }
        self.version = to;
        if self.extents.len() + extents.len() > EXTENTS_MAX {
            self.clear();
        }
        for extent in extents {
            self.put(*extent);
            self.known.insert(extent.file_offset, extent.file_end());
        }
    }

    fn put(&mut self, mut new: Extent) {
        let (start, end) = (new.file_offset, new.file_end());
        // From the last that starts below the new one's end backwards, as long as they reach into it.
        while let Some((&offset, &old)) = self.extents.range(..end).next_back() {
            if old.file_end() <= start {
                break;
            }
            self.extents.remove(&offset);
            if let Some(after) = old.clip(end, u64::MAX) {
                self.extents.insert(after.file_offset, after);
            }
            if let Some(before) = old.clip(0, start) {
                self.extents.insert(before.file_offset, before);
                break;
            }
        }
        // Streams arrive in many short extents that are one.
        if let Some((&offset, before)) = self.extents.range(..start).next_back()
            && before.continues_with(&new)
            && before.len.checked_add(new.len).is_some()
        {
            new = Extent { len: before.len + new.len, ..*before };
            self.extents.remove(&offset);
        }
        self.extents.insert(new.file_offset, new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::ChunkId;
    use proptest::prelude::*;

    fn extent(file_offset: u64, chunk: u64, chunk_offset: u32, len: u32) -> Extent {
        Extent { file_offset, chunk: ChunkId(chunk), chunk_offset, len }
    }

    #[test]
    fn what_is_not_known_is_not_taken_for_a_hole() {
        let mut map = ExtentMap::default();
        assert_eq!(map.get(0, 10), None);
        let answer = FileMap {
            version: 3,
            size_bytes: 100,
            extents: vec![extent(10, 1, 0, 20)],
            chunks: Vec::new(),
            complete_to: 40,
        };
        map.learn(0, 100, &answer);
        assert_eq!(map.get(0, 40), Some(vec![extent(10, 1, 0, 20)]));
        assert_eq!(map.get(0, 41), None);
        map.learn(50, 60, &FileMap { version: 4, complete_to: 60, extents: Vec::new(), ..answer });
        assert_eq!(map.get(0, 10), None, "the map of older content is gone");
    }

    #[test]
    fn the_front_of_a_map_says_how_far_it_goes() {
        let mut map = ExtentMap::default();
        assert_eq!(map.front(5, 90, 9), (vec![], 5));
        let extents = vec![extent(10, 1, 0, 20), extent(40, 1, 50, 10), extent(60, 2, 0, 10)];
        map.learn(0, 80, &FileMap { version: 3, size_bytes: 100, extents, chunks: Vec::new(), complete_to: 80 });
        assert_eq!(map.front(15, 99, 1), (vec![extent(15, 1, 5, 15)], 40));
        assert_eq!(map.front(15, 99, 2), (vec![extent(15, 1, 5, 15), extent(40, 1, 50, 10)], 60));
        assert_eq!(map.front(30, 45, 9), (vec![extent(40, 1, 50, 5)], 45));
        assert_eq!(map.front(70, 99, 9), (vec![], 80));
        assert_eq!(map.front(85, 99, 9), (vec![], 85));
    }

    #[test]
    fn a_commit_on_top_of_another_version_forgets_the_rest() {
        let mut map = ExtentMap::default();
        map.overwrite(1, 2, &[extent(0, 1, 0, 10)]);
        map.overwrite(2, 3, &[extent(10, 1, 10, 10)]);
        assert_eq!(map.get(0, 20), Some(vec![extent(0, 1, 0, 20)]));
        map.overwrite(7, 8, &[extent(5, 2, 0, 1)]);
        assert_eq!(map.get(0, 5), None);
        assert_eq!(map.get(5, 6), Some(vec![extent(5, 2, 0, 1)]));
    }

    proptest! {
        #[test]
        fn the_latest_extent_wins_for_every_byte(writes in prop::collection::vec((0u64..200, 1u32..50), 1..40)) {
            let mut map = ExtentMap::default();
            let mut model = vec![None; 256];
            for (number, (offset, len)) in writes.into_iter().enumerate() {
                let chunk = number as u64;
                map.overwrite(number as u64, number as u64 + 1, &[extent(offset, chunk, 7, len)]);
                for i in 0..u64::from(len) {
                    model[(offset + i) as usize] = Some((chunk, 7 + i as u32));
                }
                let mut found = vec![None; 256];
                for (start, end) in map.known.iter() {
                    for extent in map.get(start, end).unwrap() {
                        for i in 0..u64::from(extent.len) {
                            let byte = &mut found[(extent.file_offset + i) as usize];
                            prop_assert!(byte.is_none());
                            *byte = Some((extent.chunk.0, extent.chunk_offset + i as u32));
                        }
                    }
                }
                prop_assert_eq!(&found, &model);
            }
        }
    }
}

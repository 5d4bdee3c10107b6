//! A set of byte ranges that merges what touches.

use std::collections::BTreeMap;

#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct RangeSet {
    /// Start to end (exclusive); neither empty, overlapping nor touching.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    pub fn insert(&mut self, mut start: u64, mut end: u64) {
        if start >= end {
            return;
        }
        // What overlaps or touches is swallowed; going backwards from the last that starts at or before `end`.
        while let Some((&s, &e)) = self.ranges.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.ranges.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.ranges.insert(start, end);
    }

    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        while let Some((&s, &e)) = self.ranges.range(..end).next_back() {
            if e <= start {
                break;
            }
            self.ranges.remove(&s);
            if s < start {
                self.ranges.insert(s, start);
            }
            if e > end {
                self.ranges.insert(end, e);
            }
        }
    }

    /// The range with the lowest start.
    pub fn first(&self) -> Option<(u64, u64)> {
        self.ranges.first_key_value().map(|(&start, &end)| (start, end))
    }

    /// The range that holds the byte at `at`.
    pub fn containing(&self, at: u64) -> Option<(u64, u64)> {
        self.ranges.range(..=at).next_back().map(|(&start, &end)| (start, end)).filter(|&(_, end)| end > at)
    }

    /// Whether every byte of `[start, end)` is in the set.
    pub fn covers(&self, start: u64, end: u64) -> bool {
        start >= end || self.containing(start).is_some_and(|(_, e)| e >= end)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&start, &end)| (start, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_range_set_equals_a_set_of_bytes(steps in prop::collection::vec((any::<bool>(), 0u64..60, 0u64..20), 1..60)) {
            let mut set = RangeSet::default();
            let mut model = [false; 100];
            for (insert, start, len) in steps {
                if insert { set.insert(start, start + len) } else { set.remove(start, start + len) }
                model[start as usize..(start + len) as usize].fill(insert);
                for at in 0..100u64 {
                    prop_assert_eq!(set.containing(at).is_some(), model[at as usize]);
                }
                let ranges: Vec<_> = set.iter().collect();
                prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "touching: {:?}", ranges);
                prop_assert!(ranges.iter().all(|(start, end)| start < end));
            }
        }
    }
}

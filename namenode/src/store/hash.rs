//! One number for the whole state, kept with every write.
//!
//! Each row has a keyed BLAKE3 digest over table, key and value, and the state's hash is their sum in four lanes of 64
//! bits. A sum can be changed by what a write changes, whatever the number of rows, and does not depend on their order.
//! It is there to find rows that differ by mistake, not to resist somebody who chooses them.

use std::fmt;

use dfs_meta::{Fault, Table, View};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StateHash([u64; 4]);

impl StateHash {
    /// Recounts it from all rows.
    pub fn of(view: &dyn View) -> Result<StateHash, Fault> {
        let mut hash = StateHash::default();
        for table in Table::ALL.into_iter().filter(|table| *table != Table::Meta) {
            // No key begins with so many of the highest byte: all are numbers that count up, or names behind one.
            view.scan(table, &[], &[u8::MAX; 300], &mut |key, value| {
                hash.change(table, key, None, Some(value));
                true
            })?;
        }
        Ok(hash)
    }

    /// A row has changed from one value to another; `None` is no row.
    pub fn change(&mut self, table: Table, key: &[u8], before: Option<&[u8]>, after: Option<&[u8]>) {
        if let Some(value) = before {
            let row = lanes(table, key, value);
            self.0.iter_mut().zip(row).for_each(|(lane, part)| *lane = lane.wrapping_sub(part));
        }
        if let Some(value) = after {
            let row = lanes(table, key, value);
            self.0.iter_mut().zip(row).for_each(|(lane, part)| *lane = lane.wrapping_add(part));
        }
    }

    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes.chunks_exact_mut(8).zip(self.0).for_each(|(bytes, lane)| bytes.copy_from_slice(&lane.to_be_bytes()));
        bytes
    }
}

fn lanes(table: Table, key: &[u8], value: &[u8]) -> [u64; 4] {
    let mut hasher = blake3::Hasher::new_derive_key("dfs 2026 state row");
    hasher.update(table.name().as_bytes()).update(&[0]);
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
    let digest = hasher.finalize();
    let mut lanes = [0; 4];
    for (lane, bytes) in lanes.iter_mut().zip(digest.as_bytes().chunks_exact(8)) {
        *lane = bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    lanes
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|lane| write!(f, "{lane:016x}"))
    }
}

/// At which entry a namenode that is not of the majority's opinion differs from it. `mine` and `others` are the hashes
/// at the entries where the log asked for them, of this node and of each other voter; `voters` is how many there are.
pub fn odd_one_out(mine: &[(u64, StateHash)], others: &[Vec<(u64, StateHash)>], voters: usize) -> Option<u64> {
    mine.iter().rev().find_map(|(index, hash)| {
        let theirs = others.iter().filter_map(|checks| checks.iter().find(|(at, _)| at == index).map(|(_, hash)| hash));
        let theirs: Vec<_> = theirs.filter(|their| *their != hash).collect();
        let agree = |one: &StateHash| theirs.iter().filter(|their| **their == one).count();
        theirs.iter().any(|one| agree(one) * 2 > voters).then_some(*index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_meta::{Change, MemoryView};

    fn put(table: Table, key: &[u8], value: &[u8]) -> Change {
        Change { table, key: key.to_vec(), value: Some(value.to_vec()) }
    }

    #[test]
    fn a_hash_kept_by_changes_is_the_one_that_is_recounted() {
        let mut rows = MemoryView::new();
        let mut kept = StateHash::default();
        let changes = [
            put(Table::Inodes, b"a", b"1"),
            put(Table::Inodes, b"b", b"1"),
            put(Table::Dentries, b"a", b"1"),
            put(Table::Inodes, b"a", b"2"),
            Change { value: None, ..put(Table::Inodes, b"b", b"") },
        ];
        for change in changes {
            let before = rows.get(change.table, &change.key).unwrap();
            kept.change(change.table, &change.key, before.as_deref(), change.value.as_deref());
            rows.write(vec![change]);
            assert_eq!(kept, StateHash::of(&rows).unwrap());
        }
        // Key and value, and rows of different tables, do not run into each other.
        let of = |table, key: &[u8], value: &[u8]| {
            let mut hash = StateHash::default();
            hash.change(table, key, None, Some(value));
            hash
        };
        assert_ne!(of(Table::Inodes, b"ab", b"c"), of(Table::Inodes, b"a", b"bc"));
        assert_ne!(of(Table::Inodes, b"a", b"b"), of(Table::Dentries, b"a", b"b"));
    }

    fn hash(n: u64) -> StateHash {
        StateHash([n; 4])
    }

    #[test]
    fn only_who_contradicts_a_majority_is_the_odd_one_out() {
        let says = |n| vec![(10, hash(n))];
        assert_eq!(odd_one_out(&says(1), &[says(2), says(2)], 3), Some(10));
        assert_eq!(odd_one_out(&says(1), &[says(1), says(2)], 3), None);
        // One against one: nobody knows who is right.
        assert_eq!(odd_one_out(&says(1), &[says(2)], 3), None);
        assert_eq!(odd_one_out(&says(1), &[says(2), says(3)], 3), None);
        // Of different moments nothing can be said.
        assert_eq!(odd_one_out(&says(1), &[vec![(11, hash(2))], vec![(11, hash(2))]], 3), None);
        assert_eq!(odd_one_out(&[(10, hash(1)), (20, hash(1))], &[says(2), says(2)], 3), Some(10));
    }
}

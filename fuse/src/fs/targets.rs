//! Where symlinks lead, remembered by their numbers. A symlink's target never changes and its number is never used
//! again, so what is remembered is right for ever; it is bounded, the oldest goes first.

use std::collections::{HashMap, VecDeque};

use dfs_proto::InodeId;
use parking_lot::Mutex;

/// Bytes of all targets, with what it takes to remember one.
const BYTES_MAX: usize = 4 << 20;
const OVERHEAD: usize = 100;

#[derive(Default)]
pub struct Targets(Mutex<Table>);

#[derive(Default)]
struct Table {
    targets: HashMap<InodeId, Vec<u8>>,
    by_age: VecDeque<InodeId>,
    bytes: usize,
}

impl Targets {
    pub fn get(&self, inode: InodeId) -> Option<Vec<u8>> {
        self.0.lock().targets.get(&inode).cloned()
    }

    pub fn knows(&self, inode: InodeId) -> bool {
        self.0.lock().targets.contains_key(&inode)
    }

    pub fn remember(&self, inode: InodeId, target: &[u8]) {
        let mut table = self.0.lock();
        if table.targets.insert(inode, target.to_vec()).is_some() {
            return;
        }
        table.by_age.push_back(inode);
        table.bytes += target.len() + OVERHEAD;
        while table.bytes > BYTES_MAX
            && let Some(oldest) = table.by_age.pop_front()
        {
            let gone = table.targets.remove(&oldest).map_or(0, |target| target.len());
            table.bytes -= gone + OVERHEAD;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_remembered_until_there_are_too_many() {
        let targets = Targets::default();
        let fit = BYTES_MAX / (4000 + OVERHEAD);
        for number in 0..fit as u64 {
            targets.remember(InodeId(number), &[b'x'; 4000]);
            targets.remember(InodeId(number), &[b'x'; 4000]);
        }
        assert!(targets.knows(InodeId(0)));
        targets.remember(InodeId(1000000), b"new");
        targets.remember(InodeId(1000001), &[b'y'; 4000]);
        assert!(!targets.knows(InodeId(0)) && targets.knows(InodeId(2)));
        assert_eq!(targets.get(InodeId(1000000)).as_deref(), Some(&b"new"[..]));
        let table = targets.0.lock();
        assert!(table.bytes <= BYTES_MAX);
        assert_eq!(table.targets.len(), table.by_age.len());
        assert_eq!(table.bytes, table.targets.values().map(|target| target.len() + OVERHEAD).sum());
    }
}

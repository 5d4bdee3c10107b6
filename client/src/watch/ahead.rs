//! Directories in which one name after the other is looked up are listed ahead, a page at a time.

use std::collections::HashMap;

use dfs_proto::InodeId;

/// Names of a directory that were asked for and found, before a page is fetched. A page costs the namenode as much
/// as some ten look-ups.
const MISSES: u32 = 4;

/// Pages of one directory. Whoever draws names from a huge directory at random would pay for pages without use.
const PAGES_MAX: u32 = 16;

/// Directories that are counted at one time; beyond that all counts begin anew.
const DIRECTORIES_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct Ahead(HashMap<InodeId, Progress>);

#[derive(Default)]
struct Progress {
    misses: u32,
    pages: u32,
    /// The cookie behind which the next page begins.
    after: u64,
    ended: bool,
}

impl Ahead {
    /// A name in the directory was not in memory, and led somewhere.
    pub fn missed(&mut self, directory: InodeId) {
        if self.0.len() >= DIRECTORIES_MAX && !self.0.contains_key(&directory) {
            self.0.clear();
        }
        self.0.entry(directory).or_default().misses += 1;
    }

    /// The cookie behind which to list the directory now, if that is worth it.
    pub fn next(&mut self, directory: InodeId) -> Option<u64> {
        let progress = self.0.get_mut(&directory)?;
        if progress.misses < MISSES || progress.ended || progress.pages >= PAGES_MAX {
            return None;
        }
        progress.misses = 0;
        progress.pages += 1;
        Some(progress.after)
    }

    /// A page was fetched; `after` is the cookie of its last entry, `None` if nothing follows, or none can be had.
    pub fn listed(&mut self, directory: InodeId, after: Option<u64>) {
        if let Some(progress) = self.0.get_mut(&directory) {
            progress.after = after.unwrap_or(progress.after);
            progress.ended = after.is_none();
        }
    }

    pub fn forget(&mut self, directory: InodeId) {
        self.0.remove(&directory);
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: InodeId = InodeId(1);

    #[test]
    fn a_directory_is_listed_once_names_of_it_are_asked_for_one_by_one() {
        let mut ahead = Ahead::default();
        (1..MISSES).for_each(|_| ahead.missed(DIR));
        assert_eq!(ahead.next(DIR), None);
        ahead.missed(DIR);
        assert_eq!(ahead.next(DIR), Some(0));
        assert_eq!(ahead.next(DIR), None, "a page is being fetched for somebody else");
        ahead.listed(DIR, Some(70));
        (0..MISSES).for_each(|_| ahead.missed(DIR));
        assert_eq!(ahead.next(DIR), Some(70));
        ahead.listed(DIR, None);
        (0..MISSES).for_each(|_| ahead.missed(DIR));
        assert_eq!(ahead.next(DIR), None, "all of it was listed");
        ahead.forget(DIR);
        (0..MISSES).for_each(|_| ahead.missed(DIR));
        assert_eq!(ahead.next(DIR), Some(0));
    }

    #[test]
    fn a_huge_directory_is_not_listed_whole() {
        let mut ahead = Ahead::default();
        for page in 0..PAGES_MAX {
            (0..MISSES).for_each(|_| ahead.missed(DIR));
            assert!(ahead.next(DIR).is_some(), "page {page}");
            ahead.listed(DIR, Some(u64::from(page) + 1));
        }
        (0..MISSES).for_each(|_| ahead.missed(DIR));
        assert_eq!(ahead.next(DIR), None);
    }

    #[test]
    fn counts_are_bounded() {
        let mut ahead = Ahead::default();
        (0..10 * DIRECTORIES_MAX as u64).for_each(|directory| ahead.missed(InodeId(directory)));
        assert!(ahead.0.len() <= DIRECTORIES_MAX);
    }
}

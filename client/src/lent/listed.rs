//! Names in directories that a program lists to look at each of them.
//!
//! Any change in such a directory may have to wait until the names are over. So they are lent only to programs that look:
//! not while names are removed from this mount, as by one that lists a tree to remove it, and not for a while after
//! somebody had to wait.

use std::collections::HashMap;
use std::time::Duration;

use dfs_proto::InodeId;
use dfs_rpc::Moment;

use super::note;

/// Look-ups by which a program shows that it looks. Until then each name of a listing is looked up by itself.
const LOOKS: u32 = 16;

/// Without a look-up or another listing for so long nobody looks any more.
const PAUSE: Duration = Duration::from_secs(1);

/// After a name was removed from this mount, or somebody had to wait.
const REST: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Listed {
    /// Directories, and until when names in them are believed.
    lent: HashMap<InodeId, Moment>,
    looks: u32,
    looked_at: Option<Moment>,
    rests_until: Option<Moment>,
}

impl Listed {
    /// Some name was looked up, and leads somewhere.
    pub fn looked_up(&mut self, now: Moment) {
        if !self.looking(now) {
            self.looks = 0;
        }
        self.looks = self.looks.saturating_add(1);
        self.looked_at = Some(now);
    }

    /// Names in the directory are listed. Whether they are lent until `end`.
    pub fn listed(&mut self, directory: InodeId, now: Moment, end: Moment) -> bool {
        let lends = self.looks >= LOOKS
            && self.looking(now)
            && self.rests_until.is_none_or(|until| until <= now)
            && note(&mut self.lent, directory, now, end);
        if lends {
            self.looked_at = Some(now);
        }
        lends
    }

    /// Names in these directories are about to be removed from this mount: until when any of them is believed.
    pub fn take_for_removal(&mut self, directories: impl Iterator<Item = InodeId>, now: Moment) -> Option<Moment> {
        self.rests_until = Some(now + REST);
        self.lent_until(directories, now)
    }

    /// As `take_for_removal`, for somebody else's changes of whatever kind.
    pub fn take_for_others(&mut self, directories: &[InodeId], now: Moment) -> Option<Moment> {
        let last = self.lent_until(directories.iter().copied(), now)?;
        self.rests_until = Some(now + REST);
        Some(last)
    }

    /// Until when any name is believed.
    pub fn last(&self) -> Option<Moment> {
        self.lent.values().copied().max()
    }

    fn looking(&self, now: Moment) -> bool {
        self.looked_at.is_some_and(|at| now.since(at) < PAUSE)
    }

    fn lent_until(&self, directories: impl Iterator<Item = InodeId>, now: Moment) -> Option<Moment> {
        directories.filter_map(|directory| self.lent.get(&directory).copied()).filter(|until| *until > now).max()
    }
}

#[cfg(test)]
mod tests {
    use super::super::LENT_MAX;
    use super::*;

    const DIR: InodeId = InodeId(2);
    const OTHER: InodeId = InodeId(3);
    const TERM: Duration = Duration::from_millis(300);

    fn list(listed: &mut Listed, directory: InodeId, now: Moment) -> bool {
        listed.listed(directory, now, now + TERM)
    }

    fn look(listed: &mut Listed, now: Moment) {
        (0..LOOKS).for_each(|_| listed.looked_up(now));
    }

    #[test]
    fn names_are_lent_to_who_looks_at_them_and_as_long_as_he_does() {
        let (mut listed, start) = (Listed::default(), Moment::now());
        assert!(!list(&mut listed, DIR, start));
        (1..LOOKS).for_each(|_| listed.looked_up(start));
        assert!(!list(&mut listed, DIR, start));
        listed.looked_up(start);
        let mut times = (0..10).map(|nth| start + nth * TERM);
        assert!(times.all(|now| list(&mut listed, DIR, now)));
        assert_eq!(listed.last(), Some(start + 10 * TERM));
        let later = start + 9 * TERM + PAUSE;
        assert!(!list(&mut listed, DIR, later));
        listed.looked_up(later);
        assert!(!list(&mut listed, DIR, later), "one look is not many");
    }

    #[test]
    fn nothing_is_lent_while_names_are_removed() {
        let (mut listed, start) = (Listed::default(), Moment::now());
        look(&mut listed, start);
        assert!(list(&mut listed, DIR, start));
        assert_eq!(listed.take_for_removal([OTHER].into_iter(), start), None);
        let mut times = (0..50).map(|nth| start + nth * REST / 50);
        assert!(times.all(|now| {
            look(&mut listed, now);
            !list(&mut listed, OTHER, now)
        }));
        assert_eq!(listed.take_for_removal([OTHER, DIR].into_iter(), start), Some(start + TERM));
        assert_eq!(listed.take_for_removal([DIR].into_iter(), start + TERM), None, "it is over");
    }

    #[test]
    fn changes_of_others_wait_and_then_nothing_is_lent_for_a_while() {
        let (mut listed, start) = (Listed::default(), Moment::now());
        look(&mut listed, start);
        assert!(list(&mut listed, DIR, start));
        assert_eq!(listed.take_for_others(&[OTHER], start), None);
        assert!(list(&mut listed, OTHER, start), "nobody had to wait");
        assert_eq!(listed.take_for_others(&[OTHER, DIR], start), Some(start + TERM));
        assert!(!list(&mut listed, DIR, start));
        look(&mut listed, start + REST);
        assert!(list(&mut listed, DIR, start + REST));
    }

    #[test]
    fn no_more_directories_are_lent_than_there_is_room_for() {
        let (mut listed, start) = (Listed::default(), Moment::now());
        look(&mut listed, start);
        let lent = (0..LENT_MAX as u64 + 10).filter(|inode| list(&mut listed, InodeId(*inode), start)).count();
        assert_eq!((lent, listed.lent.len()), (LENT_MAX, LENT_MAX));
    }
}

//! Directories through which programs walk all the time: each path below one of them begins with its name.
//!
//! Names come and go with files, but those that paths are made of stay. So the name of such a directory is lent, and who
//! renames or removes it, which is rare, waits until it is over. Where that has happened, nothing of this kind is lent for
//! a while: whoever removes a whole tree waits once and not for each directory.

use std::collections::HashMap;
use std::time::Duration;

use dfs_proto::{InodeId, Name};
use dfs_rpc::Moment;

/// Look-ups within a second after which a name is lent. A program that makes, lists and removes a directory needs fewer.
const OFTEN: u32 = 16;

/// Without a look-up for so long nobody walks there any more.
const PAUSE: Duration = Duration::from_secs(1);

/// After somebody had to wait.
const REST: Duration = Duration::from_secs(5);

/// Directories that are counted at one time.
const WALKED_MAX: usize = 256;

#[derive(Default)]
pub(super) struct Walked {
    directories: HashMap<InodeId, Walk>,
    rests_until: Option<Moment>,
}

/// A directory, and the name that leads to it.
struct Walk {
    parent: InodeId,
    name: Name,
    looked_up: u32,
    /// When the counting began or, once it is lent, when it was looked up last.
    since: Moment,
    lent_until: Moment,
}

impl Walk {
    fn new(parent: InodeId, name: &Name, now: Moment) -> Walk {
        Walk { parent, name: name.clone(), looked_up: 0, since: now, lent_until: now }
    }
}

impl Walked {
    /// The name was looked up and leads to this directory. Whether it is lent until `end`.
    pub fn looked_up(&mut self, parent: InodeId, name: &Name, directory: InodeId, now: Moment, end: Moment) -> bool {
        if self.directories.len() >= WALKED_MAX && !self.directories.contains_key(&directory) {
            self.directories.retain(|_, walk| walk.lent_until > now || now.since(walk.since) < PAUSE);
            if self.directories.len() >= WALKED_MAX {
                return false;
            }
        }
        let walk = self.directories.entry(directory).or_insert_with(|| Walk::new(parent, name, now));
        if (walk.parent, &walk.name) != (parent, name) {
            // By its old name it may be believed still.
            if walk.lent_until > now {
                return false;
            }
            *walk = Walk::new(parent, name, now);
        }
        if now.since(walk.since) >= PAUSE {
            walk.looked_up = 0;
        }
        if walk.looked_up == 0 || walk.looked_up >= OFTEN {
            walk.since = now;
        }
        walk.looked_up = walk.looked_up.saturating_add(1);
        let lends = walk.looked_up > OFTEN && self.rests_until.is_none_or(|until| until <= now);
        if lends {
            walk.lent_until = walk.lent_until.max(end);
        }
        lends
    }

    /// Names are about to change: until when one of them is believed.
    pub fn take(&mut self, names: &[(InodeId, Name)], now: Moment) -> Option<Moment> {
        self.rest(now, |walk| names.iter().any(|(parent, name)| *parent == walk.parent && *name == walk.name))
    }

    /// As `take`, any names in these directories.
    pub fn take_in(&mut self, parents: &[InodeId], now: Moment) -> Option<Moment> {
        self.rest(now, |walk| parents.contains(&walk.parent))
    }

    /// Until when any name is believed.
    pub fn last(&self) -> Option<Moment> {
        self.directories.values().map(|walk| walk.lent_until).max()
    }

    fn rest(&mut self, now: Moment, concerned: impl Fn(&Walk) -> bool) -> Option<Moment> {
        let lent = self.directories.values().filter(|walk| walk.lent_until > now && concerned(walk));
        let last = lent.map(|walk| walk.lent_until).max()?;
        self.rests_until = Some(now + REST);
        Some(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: InodeId = InodeId(1);
    const DIR: InodeId = InodeId(2);
    const TERM: Duration = Duration::from_millis(300);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn look_up(walked: &mut Walked, called: &str, directory: InodeId, now: Moment) -> bool {
        walked.looked_up(TOP, &name(called), directory, now, now + TERM)
    }

    fn lent(walked: &mut Walked, called: &str, directory: InodeId, now: Moment) {
        let lent = (0..=OFTEN).map(|_| look_up(walked, called, directory, now)).filter(|lent| *lent).count();
        assert_eq!(lent, 1, "the last one");
    }

    #[test]
    fn only_what_is_looked_up_often_is_lent_and_as_long_as_it_is() {
        let (mut walked, start) = (Walked::default(), Moment::now());
        for nth in 0..4 * OFTEN {
            assert!(!look_up(&mut walked, "rare", InodeId(3), start + nth * PAUSE / OFTEN), "{nth}");
        }
        lent(&mut walked, "dir", DIR, start);
        // The kernel asks again only when it is over.
        let times = (1..20).map(|nth| start + nth * TERM);
        assert!(times.into_iter().all(|now| look_up(&mut walked, "dir", DIR, now)));
        assert!(!look_up(&mut walked, "dir", DIR, start + 20 * TERM + PAUSE), "nobody walks there any more");
    }

    #[test]
    fn a_change_waits_for_the_name_that_it_changes_and_then_none_is_lent_for_a_while() {
        let (mut walked, start) = (Walked::default(), Moment::now());
        lent(&mut walked, "dir", DIR, start);
        assert_eq!(walked.take(&[(TOP, name("other")), (DIR, name("dir"))], start), None);
        assert_eq!(walked.take_in(&[DIR], start), None);
        assert!(look_up(&mut walked, "dir", DIR, start), "nobody had to wait");
        assert_eq!(walked.take(&[(TOP, name("dir"))], start), Some(start + TERM));
        assert_eq!(walked.take_in(&[DIR, TOP], start), Some(start + TERM));
        assert!(!look_up(&mut walked, "dir", DIR, start));
        assert!((0..2 * OFTEN).all(|_| !look_up(&mut walked, "another", InodeId(3), start)));
        assert_eq!(walked.take(&[(TOP, name("dir"))], start + TERM), None, "it is over");
        lent(&mut walked, "dir", DIR, start + REST);
        assert_eq!(walked.last(), Some(start + REST + TERM));
    }

    #[test]
    fn under_a_new_name_it_is_lent_when_the_old_one_is_over() {
        let (mut walked, start) = (Walked::default(), Moment::now());
        lent(&mut walked, "dir", DIR, start);
        assert!((0..2 * OFTEN).all(|_| !look_up(&mut walked, "moved", DIR, start)));
        assert_eq!(walked.take(&[(TOP, name("dir"))], start), Some(start + TERM));
        lent(&mut walked, "moved", DIR, start + REST);
        assert_eq!(walked.take(&[(TOP, name("dir"))], start + REST), None);
    }

    #[test]
    fn no_more_directories_are_counted_than_there_is_room_for() {
        let (mut walked, start) = (Walked::default(), Moment::now());
        let fill = |walked: &mut Walked, now| {
            let inodes = 0..2 * WALKED_MAX as u64;
            assert!(inodes.into_iter().all(|inode| !look_up(walked, &inode.to_string(), InodeId(inode), now)));
        };
        fill(&mut walked, start);
        assert_eq!(walked.directories.len(), WALKED_MAX);
        assert!((0..2 * OFTEN).all(|_| !look_up(&mut walked, "late", InodeId(u64::MAX), start)));
        fill(&mut walked, start + PAUSE);
        assert_eq!(walked.directories.len(), WALKED_MAX);
        lent(&mut walked, "late", InodeId(u64::MAX), start + PAUSE + PAUSE);
    }
}

//! Files that are open before anybody asks for them: whoever opens one file of a directory after the other gets the next
//! ones with the answer. The leader counts them as open here like any other; those that nobody wants in time are closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::limits::OPEN_AHEAD_MAX;
use dfs_proto::msg::meta::{Answer, OpenedFile, Query};
use dfs_proto::{Attr, Caller, FileKind, Grant, InodeId, SessionId};
use dfs_rpc::Moment;
use parking_lot::Mutex;

use crate::client::Client;
use crate::error::{Result, unexpected_answer};
use crate::file::OpenMode;
use crate::open::{FileState, Handle};

/// A file that was opened ahead is closed after so long. If it loses its name meanwhile it is kept for so much longer.
const KEPT: Duration = Duration::from_secs(1);

/// Files kept at one time: about a kilobyte each.
const KEPT_MAX: usize = 2048;

/// The first time that files of a directory are opened ahead; then twice as many each time, as long as they are wanted.
const FIRST: usize = 4;

/// How often a directory whose files were not wanted is left alone before it is tried again.
const REST: u32 = 64;

/// In a larger directory nothing is guessed: that takes a look at all of it.
const DIRECTORY_MAX: usize = 4096;

/// Directories in which files were opened; beyond that all begin anew.
const RUNS_MAX: usize = 256;

/// Files of which the directory is known; beyond that all are forgotten. About 2 MiB.
const PARENTS_MAX: usize = 64 << 10;

#[derive(Default)]
pub(crate) struct OpenedAhead(Mutex<State>);

#[derive(Default)]
struct State {
    kept: HashMap<InodeId, Kept>,
    /// Where a file has been found. Only a guess of what is wanted next comes of it.
    parents: HashMap<InodeId, InodeId>,
    /// By directory.
    runs: HashMap<InodeId, Run>,
}

struct Kept {
    file: OpenedFile,
    caller: Caller,
    directory: InodeId,
    until: Moment,
    wanted: bool,
}

/// One file after the other is opened in a directory.
#[derive(Default)]
struct Run {
    /// Opened ahead with the last question, and how many of any have been wanted since.
    opened: usize,
    wanted: usize,
    rest: u32,
}

impl Run {
    /// How many to open with the next file that was not.
    fn next(&mut self) -> usize {
        if self.rest > 0 {
            self.rest -= 1;
            return 0;
        }
        let next = match self.opened {
            0 => FIRST,
            opened if self.wanted * 2 >= opened => (opened * 2).min(OPEN_AHEAD_MAX),
            opened => opened / 2,
        };
        *self = Run { opened: next, wanted: 0, rest: if next == 0 { REST } else { 0 } };
        next
    }
}

impl OpenedAhead {
    /// A file was seen in a directory.
    fn found(&self, directory: InodeId, inode: InodeId) {
        let parents = &mut self.0.lock().parents;
        if parents.len() >= PARENTS_MAX && !parents.contains_key(&inode) {
            parents.clear();
        }
        parents.insert(inode, directory);
    }

    /// A file is about to be opened that was not opened ahead: where it is, and how many more to open there. Nothing of
    /// the first file of a directory, and of one whose files were not wanted.
    fn missed(&self, inode: InodeId) -> Option<(InodeId, usize)> {
        let State { kept, parents, runs } = &mut *self.0.lock();
        let directory = *parents.get(&inode)?;
        if runs.len() >= RUNS_MAX && !runs.contains_key(&directory) {
            runs.clear();
        }
        let room = KEPT_MAX.saturating_sub(kept.len());
        match runs.get_mut(&directory) {
            Some(run) => Some((directory, run.next().min(room))).filter(|(_, count)| *count > 0),
            None => {
                runs.insert(directory, Run::default());
                None
            }
        }
    }

    fn keep(&self, directory: InodeId, caller: &Caller, files: Vec<OpenedFile>, until: Moment) {
        let kept = &mut self.0.lock().kept;
        for file in files {
            let inode = file.attr.inode;
            kept.insert(inode, Kept { file, caller: caller.clone(), directory, until, wanted: false });
        }
    }

    /// What was opened ahead for this caller. It stays: it may be wanted again, and who takes it is not counted as having
    /// it open yet.
    fn get(&self, inode: InodeId, caller: &Caller, session: SessionId, now: Moment) -> Option<OpenedFile> {
        let State { kept, runs, .. } = &mut *self.0.lock();
        let found = kept.get_mut(&inode)?;
        if found.caller != *caller || found.file.grant.session != session || found.until <= now {
            return None;
        }
        if !std::mem::replace(&mut found.wanted, true)
            && let Some(run) = runs.get_mut(&found.directory)
        {
            run.wanted += 1;
        }
        Some(found.file.clone())
    }

    pub fn holds(&self, inode: InodeId) -> bool {
        self.0.lock().kept.contains_key(&inode)
    }

    pub fn inodes(&self) -> Vec<InodeId> {
        self.0.lock().kept.keys().copied().collect()
    }

    /// Forgets those whose time is over.
    fn end(&self, inodes: &[InodeId], now: Moment) -> Vec<InodeId> {
        let kept = &mut self.0.lock().kept;
        let over = |inode: &&InodeId| kept.get(inode).is_some_and(|kept| kept.until <= now);
        let over: Vec<InodeId> = inodes.iter().filter(over).copied().collect();
        over.iter().for_each(|inode| drop(kept.remove(inode)));
        over
    }
}

impl Client {
    /// What a name in a directory leads to has been told.
    pub(crate) fn found(&self, directory: InodeId, attr: &Attr) {
        if attr.kind == FileKind::File {
            self.ahead.found(directory, attr.inode);
        }
    }

    /// A handle on a file that was opened ahead, if the leader would answer now what it answered then.
    pub(crate) fn open_from_ahead(self: &Arc<Self>, caller: &Caller, inode: InodeId, mode: OpenMode) -> Option<Handle> {
        // The leader is not told that it is closed while this lives.
        let _opening = self.try_opening(inode)?;
        let session = self.sessions.current()?;
        let now = Moment::now();
        let OpenedFile { attr, grant, front } = self.ahead.get(inode, caller, session.id(), now)?;
        if self.files.get(inode).is_some_and(|file| !file.inner.lock().writes.is_empty()) {
            return None;
        }
        self.watch.while_believed(&attr, now, |_| ())?;
        let handle = self.opened(caller, &attr, &grant, mode);
        self.learn_front(&handle.file, front);
        Some(handle)
    }

    /// The grant of a file that is open here without one, if it was opened ahead.
    pub(crate) fn grant_from_ahead(
        self: &Arc<Self>,
        file: &FileState,
        caller: &Caller,
        session: SessionId,
    ) -> Option<Grant> {
        let OpenedFile { grant, front, .. } = self.ahead.get(file.inode, caller, session, Moment::now())?;
        file.inner.lock().prove(grant.clone());
        self.learn_front(file, front);
        Some(grant)
    }

    /// Opens a file for reading, and those with it that are probably wanted next.
    pub(crate) async fn open_with_next(self: &Arc<Self>, caller: &Caller, inode: InodeId) -> Result<OpenedFile> {
        let Some((directory, count)) = self.ahead.missed(inode) else {
            return self.open_alone(caller, inode).await;
        };
        let next = self.next_files(directory, inode, count);
        let opening: Vec<_> = next.into_iter().filter_map(|inode| self.try_opening(inode)).collect();
        if opening.is_empty() {
            return self.open_alone(caller, inode).await;
        }
        let others = opening.iter().map(|opening| opening.inode).collect();
        let Answer::OpenedAhead { opened, others } = self.query(caller, Query::OpenAhead { inode, others }).await?
        else {
            return Err(unexpected_answer("OpenAhead"));
        };
        let inodes: Vec<InodeId> = others.iter().map(|file| file.attr.inode).collect();
        self.ahead.keep(directory, caller, others, Moment::now() + KEPT);
        // What the leader has noted and did not give is closed again by this.
        drop(opening);
        let client = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT).await;
            if let Some(client) = client.upgrade() {
                let over = client.ahead.end(&inodes, Moment::now());
                over.into_iter().for_each(|inode| client.holding.closed(inode));
            }
        });
        Ok(opened)
    }

    async fn open_alone(self: &Arc<Self>, caller: &Caller, inode: InodeId) -> Result<OpenedFile> {
        match self.query(caller, Query::Open { inode, read: true, write: false }).await? {
            Answer::Opened(opened) => Ok(opened),
            _ => Err(unexpected_answer("Open")),
        }
    }

    /// Files of the directory that are not open here, those first that were made next after this one: most programs go
    /// through a directory in the order in which it was filled.
    fn next_files(&self, directory: InodeId, inode: InodeId, count: usize) -> Vec<InodeId> {
        let mut next = match self.private.holds(directory) {
            true => self.private.files_in(directory, DIRECTORY_MAX),
            false => self.watch.known_files(directory, DIRECTORY_MAX),
        };
        next.retain(|other| *other > inode);
        next.sort_unstable();
        let idle = |other: &InodeId| {
            !self.ahead.holds(*other)
                && self.files.get(*other).is_none_or(|file| {
                    let inner = file.inner.lock();
                    inner.handles == 0 && inner.writes.is_empty()
                })
        };
        next.into_iter().filter(idle).take(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIR: InodeId = InodeId(1);
    const SESSION: SessionId = SessionId(5);

    fn file(inode: u64) -> OpenedFile {
        let inode = InodeId(inode);
        let grant = Grant { inode, session: SESSION, read: true, write: false, key: 1, mac: [0; 32] };
        OpenedFile { attr: crate::watch::test_attr(inode), grant, front: None }
    }

    fn at(ms: u64) -> Moment {
        Moment::from_boot(Duration::from_millis(ms))
    }

    #[test]
    fn more_are_opened_ahead_as_long_as_they_are_wanted() {
        let ahead = OpenedAhead::default();
        (1..999).for_each(|inode| ahead.found(DIR, InodeId(inode)));
        assert_eq!(ahead.missed(InodeId(5000)), None, "nobody knows where it is");
        assert_eq!(ahead.missed(InodeId(1)), None, "the first of its directory");
        let mut next = 2;
        let mut counts = Vec::new();
        for wanted in [true, true, true, true, true, true, false, false] {
            let (directory, count) = ahead.missed(InodeId(next)).unwrap();
            assert_eq!(directory, DIR);
            ahead.keep(DIR, &Caller::ROOT, (next + 1..=next + count as u64).map(file).collect(), at(1000));
            for inode in next + 1..=next + count as u64 {
                // Again and again counts once.
                (0..3).for_each(|_| {
                    assert!(!wanted || ahead.get(InodeId(inode), &Caller::ROOT, SESSION, at(1)).is_some())
                });
            }
            next += count as u64 + 1;
            counts.push(count);
        }
        assert_eq!(counts, [4, 8, 16, 32, OPEN_AHEAD_MAX, OPEN_AHEAD_MAX, OPEN_AHEAD_MAX, OPEN_AHEAD_MAX / 2]);
    }

    #[test]
    fn a_directory_whose_files_are_not_wanted_is_left_alone_for_a_while() {
        let ahead = OpenedAhead::default();
        ahead.found(DIR, InodeId(1));
        let counts: Vec<usize> =
            (0..5 + REST as usize).map(|_| ahead.missed(InodeId(1)).map_or(0, |(_, count)| count)).collect();
        let tried = [0, FIRST, FIRST / 2, FIRST / 4];
        assert_eq!(counts[..4], tried);
        assert!(counts[4..].iter().all(|count| *count == 0));
        assert_eq!(ahead.missed(InodeId(1)), Some((DIR, FIRST)));
    }

    #[test]
    fn what_is_kept_is_for_its_caller_and_session_and_for_a_while() {
        let ahead = OpenedAhead::default();
        let (mine, other) = (Caller::ROOT, Caller { uid: 7, ..Caller::ROOT });
        ahead.keep(DIR, &mine, vec![file(2), file(3)], at(1000));
        let is_open = |inode, caller, session, ms| ahead.get(InodeId(inode), caller, session, at(ms)).is_some();
        assert!(is_open(2, &mine, SESSION, 999));
        assert!(
            !is_open(2, &other, SESSION, 1) && !is_open(2, &mine, SessionId(6), 1) && !is_open(2, &mine, SESSION, 1000)
        );
        assert!(!is_open(4, &mine, SESSION, 1));
        ahead.keep(DIR, &mine, vec![file(3)], at(1500));
        assert_eq!(ahead.end(&[InodeId(2), InodeId(3)], at(1000)), [InodeId(2)], "the other was opened anew since");
        assert!(!ahead.holds(InodeId(2)) && ahead.inodes() == [InodeId(3)]);
    }

    #[test]
    fn everything_is_bounded() {
        let ahead = OpenedAhead::default();
        for inode in 0..2 * PARENTS_MAX as u64 {
            ahead.found(InodeId(inode), InodeId(inode));
            ahead.missed(InodeId(inode));
        }
        assert!({
            let state = ahead.0.lock();
            state.parents.len() <= PARENTS_MAX && state.runs.len() <= RUNS_MAX
        });
        let last = InodeId(2 * PARENTS_MAX as u64 - 1);
        ahead.keep(DIR, &Caller::ROOT, (0..KEPT_MAX as u64 - 3).map(file).collect(), at(1));
        assert_eq!(ahead.missed(last).map(|(_, count)| count), Some(3), "as many as there is room for");
    }
}

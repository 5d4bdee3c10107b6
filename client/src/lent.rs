//! Attributes and names that the kernel of a mount may believe for a moment without asking.
//!
//! They are lent only while this client believes them itself, and what the namenode takes back from the client the
//! client takes back from the kernel before it says that it has forgotten. Attributes the kernel can be made to forget;
//! until names are over one has to wait, so they are lent only where that is rare: in private directories, of directories
//! through which programs walk all the time, and to programs that list directories to look at what is in them.

mod listed;
mod walked;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_proto::{Attr, FileKind, InodeId, Name};
use dfs_rpc::Moment;
use parking_lot::Mutex;

use crate::client::Client;
use crate::dfs::Dfs;
use crate::watch::Asked;
use listed::Listed;
use walked::Walked;

/// The kernel counts from when the program that has asked gets to see the answer, which may have to wait for a processor.
const LATE: Duration = Duration::from_millis(200);

/// So much earlier than this client the kernel stops to believe names: they cannot be taken back, and the leader waits for
/// nobody longer than he may believe. If the program that has asked gets a processor later than that, the kernel believes
/// a name that others see changed.
const NAME_MARGIN: Duration = Duration::from_millis(120);

/// Inodes lent at one time; more are not lent.
const LENT_MAX: usize = 64 << 10;

/// So much earlier than this client the kernel stops to believe: it rounds times up.
const MARGIN: Duration = Duration::from_millis(20);

/// Has the kernel forget the attributes of an inode. `false` if it does not know the inode: it has dropped it, or the
/// answer that brings it is still on its way.
pub type TakeBack = Box<dyn Fn(InodeId) -> bool + Send + Sync>;

/// Attributes that were taken back are not lent again for so long: to take them back is a matter of two threads.
const PAUSE: Duration = Duration::from_secs(1);

/// A moment between what this client was told; see [`Dfs::mark`].
#[derive(Clone, Copy, Debug)]
pub struct Mark(Asked);

#[derive(Default)]
pub(crate) struct Lent {
    take_back: OnceLock<TakeBack>,
    attributes: Mutex<Attributes>,
    /// Private directories, and until when names in them are believed.
    names: Mutex<HashMap<InodeId, Moment>>,
    /// Names in other directories.
    walked: Mutex<Walked>,
    listed: Mutex<Listed>,
}

#[derive(Default)]
struct Attributes {
    /// Until when they are believed.
    until: HashMap<InodeId, Moment>,
    /// Those that have just been taken back: what changes all the time is not worth it.
    resting: HashMap<InodeId, Moment>,
}

impl Attributes {
    /// It stays until it is over: whoever else takes it back meanwhile waits as well.
    fn take(&mut self, inode: InodeId, now: Moment) -> Option<(InodeId, Moment)> {
        let until = self.until.get(&inode).copied().filter(|until| *until > now)?;
        if self.resting.len() >= LENT_MAX {
            self.resting.retain(|_, until| *until > now);
        }
        self.resting.insert(inode, now + PAUSE);
        Some((inode, until))
    }
}

/// Notes until when something is believed; `false` if there is no room.
fn note(lent: &mut HashMap<InodeId, Moment>, inode: InodeId, now: Moment, end: Moment) -> bool {
    if lent.len() >= LENT_MAX {
        lent.retain(|_, until| *until > now);
    }
    if lent.len() >= LENT_MAX && !lent.contains_key(&inode) {
        return false;
    }
    let until = lent.entry(inode).or_insert(now);
    *until = (*until).max(end);
    true
}

impl Lent {
    /// Lends what is believed until `believed`, `at_most` so long: for how long from `now` on. To be called while nobody
    /// can take back the inode from this client.
    pub fn lend(&self, inode: InodeId, now: Moment, believed: Moment, at_most: Duration) -> Duration {
        let Some((time, end)) = self.term(now, believed, at_most, MARGIN) else { return Duration::ZERO };
        let Attributes { until: lent, resting } = &mut *self.attributes.lock();
        if resting.get(&inode).is_some_and(|until| *until > now) {
            return Duration::ZERO;
        }
        if note(lent, inode, now, end) { time } else { Duration::ZERO }
    }

    /// As `lend`, of a name in a directory that is private to this session: nobody else changes it, and before it is
    /// shared there is a wait.
    pub fn lend_private_name(&self, parent: InodeId, now: Moment, believed: Moment, at_most: Duration) -> Duration {
        let Some((time, end)) = self.term(now, believed, at_most, MARGIN) else { return Duration::ZERO };
        if note(&mut self.names.lock(), parent, now, end) { time } else { Duration::ZERO }
    }

    /// As `lend`, of a name that leads to a directory, if it is looked up all the time.
    fn lend_walked(
        &self,
        (parent, name): (InodeId, &Name),
        directory: InodeId,
        now: Moment,
        believed: Moment,
        at_most: Duration,
    ) -> Duration {
        let Some((time, end)) = self.term(now, believed, at_most, NAME_MARGIN) else { return Duration::ZERO };
        let lends = self.walked.lock().looked_up(parent, name, directory, now, end);
        if lends { time } else { Duration::ZERO }
    }

    /// How long something is lent that is believed until `margin` behind that, and when it is over for certain.
    fn term(&self, now: Moment, believed: Moment, at_most: Duration, margin: Duration) -> Option<(Duration, Moment)> {
        let time = believed.since(now + margin).min(at_most);
        (!time.is_zero() && self.take_back.get().is_some()).then_some((time, now + time + LATE))
    }

    /// As `lend`, of a name that was listed.
    fn lend_listed(&self, directory: InodeId, now: Moment, believed: Moment, at_most: Duration) -> Duration {
        let Some((time, end)) = self.term(now, believed, at_most, NAME_MARGIN) else { return Duration::ZERO };
        if self.listed.lock().listed(directory, now, end) { time } else { Duration::ZERO }
    }

    /// Returns when the attributes of none of these are believed any more. They may not be lent meanwhile.
    pub async fn take_back(self: &Arc<Self>, inodes: &[InodeId]) {
        let now = Moment::now();
        let lent: Vec<(InodeId, Moment)> = {
            let mut attributes = self.attributes.lock();
            inodes.iter().filter_map(|inode| attributes.take(*inode, now)).collect()
        };
        self.end(lent).await;
    }

    /// As `take_back`, for a change of this session's own, also of the names that it removes.
    pub async fn take_back_for_change(self: &Arc<Self>, inodes: &[InodeId], removed: &[(InodeId, Name)]) {
        // Read off before anything is waited for, and waited for together.
        let last = if removed.is_empty() { None } else { self.take_names(removed, Moment::now()) };
        self.take_back(inodes).await;
        wait_until(last).await;
    }

    fn take_names(&self, removed: &[(InodeId, Name)], now: Moment) -> Option<Moment> {
        let walked = self.walked.lock().take(removed, now);
        let directories = removed.iter().map(|(directory, _)| *directory);
        walked.max(self.listed.lock().take_for_removal(directories, now))
    }

    /// As `take_back`, for a change of somebody else's, also of names in those that are directories.
    pub async fn take_back_for_others(self: &Arc<Self>, inodes: &[InodeId]) {
        let now = Moment::now();
        let walked = self.walked.lock().take_in(inodes, now);
        let last = walked.max(self.listed.lock().take_for_others(inodes, now));
        self.take_back(inodes).await;
        wait_until(last).await;
    }

    /// As `take_back`, also of names in those that are private directories.
    pub async fn take_back_with_names(self: &Arc<Self>, inodes: &[InodeId]) {
        self.take_back(inodes).await;
        let last = {
            let names = self.names.lock();
            inodes.iter().filter_map(|inode| names.get(inode).copied()).max()
        };
        wait_until(last).await;
    }

    /// As `take_back`, of everything.
    pub async fn take_all_back(self: &Arc<Self>) {
        let now = Moment::now();
        let lent: Vec<(InodeId, Moment)> = {
            let attributes = self.attributes.lock();
            attributes.until.iter().map(|(inode, until)| (*inode, *until)).filter(|(_, until)| *until > now).collect()
        };
        let names = self.names.lock().values().copied().max();
        let others = self.walked.lock().last().max(self.listed.lock().last());
        self.end(lent).await;
        wait_until(names.max(others)).await;
    }

    async fn end(self: &Arc<Self>, lent: Vec<(InodeId, Moment)>) {
        let Some(last) = lent.iter().map(|(_, until)| *until).max() else { return };
        let (this, inodes) = (self.clone(), lent.clone());
        // A thread of its own: the kernel may take its time.
        let asked = tokio::task::spawn_blocking(move || {
            let Some(take_back) = this.take_back.get() else { return false };
            // All of them, whatever is said of the first.
            inodes.iter().filter(|(inode, _)| !take_back(*inode)).count() == 0
        });
        if !matches!(asked.await, Ok(true)) {
            wait_until(Some(last)).await;
        }
        let mut attributes = self.attributes.lock();
        for (inode, until) in lent {
            // Not if it was lent anew.
            if attributes.until.get(&inode) == Some(&until) {
                attributes.until.remove(&inode);
            }
        }
    }
}

/// The kernel asks again from then on.
async fn wait_until(over: Option<Moment>) {
    let left = over.map_or(Duration::ZERO, |over| over.since(Moment::now()));
    if !left.is_zero() {
        tokio::time::sleep(left).await;
    }
}

impl Client {
    fn lend(&self, attr: &Attr, at_most: Duration) -> Duration {
        let now = Moment::now();
        let lend = |believed| self.watch.lent.lend(attr.inode, now, believed, at_most);
        if self.private.holds(attr.inode) {
            return self.private.while_held(attr, || lend(self.lease_ends(now))).unwrap_or_default();
        }
        self.watch.while_believed(attr, now, lend).unwrap_or_default()
    }

    fn lend_private_name(&self, parent: InodeId, name: &Name, attr: &Attr, at_most: Duration) -> Option<Duration> {
        let now = Moment::now();
        let lend = || self.watch.lent.lend_private_name(parent, now, self.lease_ends(now), at_most);
        self.private.while_named(parent, name, attr.inode, lend)
    }

    fn is_latest(&self, attr: &Attr, since: Mark) -> bool {
        match self.private.holds(attr.inode) {
            true => self.private.while_held(attr, || ()).is_some(),
            false => self.watch.may_learn(since.0, attr.inode),
        }
    }

    fn lend_name(&self, parent: InodeId, name: &Name, attr: &Attr, at_most: Duration) -> Duration {
        if let Some(lent) = self.lend_private_name(parent, name, attr, at_most) {
            return lent;
        }
        let (now, lent) = (Moment::now(), &self.watch.lent);
        lent.listed.lock().looked_up(now);
        if attr.kind != FileKind::Directory {
            return Duration::ZERO;
        }
        let lend = |believed| lent.lend_walked((parent, name), attr.inode, now, believed, at_most);
        self.watch.while_named((parent, name), attr.inode, now, lend).unwrap_or_default()
    }

    fn lend_listed_name(&self, parent: InodeId, name: &Name, attr: &Attr, at_most: Duration) -> Duration {
        if let Some(lent) = self.lend_private_name(parent, name, attr, at_most) {
            return lent;
        }
        let now = Moment::now();
        let lend = |believed| self.watch.lent.lend_listed(parent, now, believed, at_most);
        self.watch.while_named((parent, name), attr.inode, now, lend).unwrap_or_default()
    }
}

impl Dfs {
    /// Whom to ask to forget what was lent. Nothing is lent before; can be set once.
    pub fn set_take_back(&self, take_back: TakeBack) {
        // The first one stays.
        let _ = self.client.watch.lent.take_back.set(take_back);
    }

    /// Returns when attributes that were lent of the inode are believed no more: something has changed them without a
    /// request of the one to whom they were lent.
    pub async fn take_back(&self, inode: InodeId) {
        self.client.watch.lent.take_back(&[inode]).await;
    }

    /// Before a question: to tell later what has changed since.
    pub fn mark(&self) -> Mark {
        Mark(self.client.watch.asked())
    }

    /// Whether attributes in the answer to a question that was asked after `since` are the latest, as far as this client
    /// was told.
    pub fn is_latest(&self, attr: &Attr, since: Mark) -> bool {
        self.client.is_latest(attr, since)
    }

    /// For how long from now on, `at_most`, attributes that this client has just answered may be believed: zero if they
    /// are not the latest any more, or nobody tells this client of changes.
    pub fn lend(&self, attr: &Attr, at_most: Duration) -> Duration {
        self.client.lend(attr, at_most)
    }

    /// As `lend`, that the name, which was just looked up, leads to this inode; only in private directories, and of
    /// directories that are looked up all the time.
    pub fn lend_name(&self, parent: InodeId, name: &Name, attr: &Attr, at_most: Duration) -> Duration {
        self.client.lend_name(parent, name, attr, at_most)
    }

    /// As `lend_name`, of a name that was listed; only in private directories, and to programs that look at what they list.
    pub fn lend_listed_name(&self, parent: InodeId, name: &Name, attr: &Attr, at_most: Duration) -> Duration {
        self.client.lend_listed_name(parent, name, attr, at_most)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;

    use super::*;

    const FILE: InodeId = InodeId(7);
    const LONG: Duration = Duration::from_secs(3600);

    fn lent(knows: bool) -> (Arc<Lent>, Arc<AtomicUsize>) {
        let (lent, asked) = (Arc::new(Lent::default()), Arc::new(AtomicUsize::new(0)));
        let count = asked.clone();
        let take_back = move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            knows
        };
        assert!(lent.take_back.set(Box::new(take_back)).is_ok());
        (lent, asked)
    }

    #[test]
    fn nothing_is_lent_for_longer_than_it_is_believed_or_to_nobody() {
        let now = Moment::now();
        let (lent, _) = lent(true);
        let second = Duration::from_secs(1);
        assert_eq!(lent.lend(FILE, now, now + LONG, second), second);
        assert_eq!(lent.lend(FILE, now, now + second, LONG), second - MARGIN);
        assert_eq!(lent.lend(FILE, now, now + MARGIN, LONG), Duration::ZERO);
        assert_eq!(Lent::default().lend(FILE, now, now + LONG, second), Duration::ZERO);
    }

    #[tokio::test]
    async fn what_is_lent_is_taken_back_once() {
        let (lent, asked) = lent(true);
        let now = Moment::now();
        lent.lend(FILE, now, now + LONG, LONG);
        lent.take_back(&[InodeId(8)]).await;
        assert_eq!(asked.load(Ordering::Relaxed), 0, "another one");
        lent.take_back(&[FILE, InodeId(8)]).await;
        lent.take_back(&[FILE]).await;
        lent.take_all_back().await;
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn whoever_takes_it_back_a_second_time_meanwhile_waits_as_well() {
        let (lent, _) = lent(false);
        let now = Moment::now();
        lent.lend(FILE, now, now + LONG, TTL);
        lent.lend_private_name(DIR, now, now + LONG, TTL);
        let both = [FILE, DIR];
        let first = lent.take_back_with_names(&both);
        let second = async {
            tokio::task::yield_now().await;
            lent.take_back(&[FILE]).await;
            assert!(Moment::now().since(now) >= TTL);
            lent.take_back_with_names(&both).await;
        };
        tokio::join!(first, second);
        assert!(Moment::now().since(now) >= TTL);
    }

    #[tokio::test]
    async fn what_was_taken_back_is_not_lent_again_for_a_while() {
        let (lent, _) = lent(true);
        let now = Moment::now();
        lent.take_back(&[FILE]).await;
        assert_eq!(lent.lend(FILE, now, now + LONG, TTL), TTL, "it was not lent");
        lent.take_back(&[FILE]).await;
        let again = Moment::now();
        assert_eq!(lent.lend(FILE, again, again + LONG, TTL), Duration::ZERO);
        assert_eq!(lent.lend(InodeId(8), again, again + LONG, TTL), TTL);
        let later = again + PAUSE;
        assert_eq!(lent.lend(FILE, later, later + LONG, TTL), TTL);
    }

    #[tokio::test]
    async fn where_the_kernel_may_not_have_got_it_yet_its_time_is_waited_for() {
        let (lent, asked) = lent(false);
        let now = Moment::now();
        let time = Duration::from_millis(50);
        lent.lend(FILE, now, now + LONG, time);
        lent.take_all_back().await;
        assert!(Moment::now().since(now) >= time, "until nobody believes it");
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        lent.lend(FILE, now, now + LONG, Duration::from_nanos(1));
        tokio::time::sleep(LATE + MARGIN).await;
        lent.take_all_back().await;
        assert_eq!(asked.load(Ordering::Relaxed), 1, "it is over anyway");
    }

    const DIR: InodeId = InodeId(3);
    const TTL: Duration = Duration::from_millis(100);

    #[tokio::test]
    async fn names_of_walked_directories_are_waited_for_when_they_change() {
        let (lent, now) = (lent(true).0, Moment::now());
        let (parent, name) = (InodeId(2), Name::new("dir").unwrap());
        let walk = |now| {
            let walks = (0..100).map(|_| lent.lend_walked((parent, &name), DIR, now, now + LONG, TTL));
            walks.max().unwrap_or_default()
        };
        assert_eq!(walk(now), TTL);
        let soon_over = now + NAME_MARGIN;
        assert_eq!(lent.lend_walked((parent, &name), DIR, now, soon_over, TTL), Duration::ZERO);
        assert_eq!(lent.lend_walked((parent, &name), DIR, now, soon_over + TTL / 2, TTL), TTL / 2);
        assert!(lent.take_back(&[parent, DIR]).now_or_never().is_some(), "attributes alone");
        let other = [(parent, Name::new("other").unwrap()), (DIR, name.clone())];
        assert!(lent.take_back_for_change(&[parent], &other).now_or_never().is_some(), "another name");
        assert!(lent.take_back_for_others(&[DIR]).now_or_never().is_some(), "what is in it may change");
        assert!(lent.take_all_back().now_or_never().is_none());
        assert!(lent.take_back_for_change(&[], &[(parent, name.clone())]).now_or_never().is_none());
        lent.take_back_for_others(&[parent]).await;
        assert!(Moment::now().since(now) >= TTL);
        assert!(lent.take_back_for_others(&[parent]).now_or_never().is_some(), "it is over");
        assert_eq!(walk(Moment::now()), Duration::ZERO, "and not lent again for a while");
    }

    #[tokio::test]
    async fn names_in_private_directories_are_waited_for_when_these_are_shared() {
        let (lent, now) = (lent(true).0, Moment::now());
        assert_eq!(lent.lend_private_name(DIR, now, now + LONG, TTL), TTL);
        assert_eq!(lent.lend_private_name(DIR, now, now + TTL, TTL), TTL - MARGIN, "no longer than the lease");
        assert!(lent.take_back(&[DIR]).now_or_never().is_some(), "changes of this session's own need not wait");
        lent.take_back_with_names(&[DIR]).await;
        assert!(Moment::now().since(now) >= TTL);
        assert!(lent.take_back_with_names(&[DIR]).now_or_never().is_some(), "it is over");
        lent.lend_private_name(DIR, Moment::now(), Moment::now() + LONG, TTL);
        assert!(lent.take_all_back().now_or_never().is_none());
    }
}

//! `flock` and `fcntl` locks.
//!
//! The cluster keeps the locks; here is noted which owners may have some, so that they are given back when
//! their descriptors close, and so that nobody goes on under a lock that was lost with its session. A file
//! that was never locked through this mount costs one look at a counter.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_client::Chance;
use dfs_proto::msg::meta::{LockClaim, LockMode, LockOwner, LockRange, LockSpace};
use dfs_proto::{Caller, ErrorKind, InodeId, SessionId};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use super::Fs;
use super::caller::{LockCall, Requester};
use super::errno::Errno;
use super::file::OpenFile;
use super::handles::HandleId;

/// Requests that wait for locks at one time. Each has a thread of a program that waits with it.
const WAITING_MAX: usize = 4096;

/// How often a waiting request looks whether its caller has been killed or interrupted, which FUSE does not
/// tell it.
const CALLER_LOOK: Duration = Duration::from_millis(100);

/// Gates that keep changes of one file's locks apart; files share them at no cost but some waiting.
const GATES: usize = 256;

/// A lock as the kernel asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LockRequest {
    /// The kernel's number of the owner.
    pub number: u64,
    pub range: LockRange,
    /// `None`: unlock.
    pub mode: Option<LockMode>,
    pub process: u32,
}

/// Makes the kernel drop the pages it has of a file.
pub type DropPages = Box<dyn Fn(InodeId) + Send + Sync>;

pub struct Locks {
    /// By inode; an owner is noted before it asks for its first lock.
    owners: Mutex<HashMap<InodeId, HashMap<LockOwner, Owner>>>,
    /// Inodes in `owners`.
    locked: AtomicUsize,
    /// One change of an inode's locks at a time, so that a note and its lock come and go together.
    gates: Vec<tokio::sync::Mutex<()>>,
    /// Inodes with handles that have ended and whose locks are still being given back.
    ending: Mutex<HashMap<InodeId, usize>>,
    ended: Notify,
    waiting: Semaphore,
    /// How long somebody waits whom we cannot see.
    deadline: Option<Duration>,
    drop_pages: OnceLock<Arc<DropPages>>,
}

/// Somebody who may have locks on an inode.
#[derive(Clone, Debug)]
struct Owner {
    session: SessionId,
    /// Those that its locks came through.
    handles: BTreeSet<u64>,
    /// Some lock was had, or perhaps had.
    holds: bool,
}

/// The end of a handle with locks: until it is dropped, requests for locks on the inode wait.
pub struct Ending {
    fs: Arc<Fs>,
    inode: InodeId,
}

impl Locks {
    pub fn new(deadline: Option<Duration>) -> Locks {
        Locks {
            owners: Mutex::default(),
            locked: AtomicUsize::new(0),
            gates: (0..GATES).map(|_| tokio::sync::Mutex::new(())).collect(),
            ending: Mutex::default(),
            ended: Notify::new(),
            waiting: Semaphore::new(WAITING_MAX),
            deadline,
            drop_pages: OnceLock::new(),
        }
    }

    fn none(&self) -> bool {
        self.locked.load(Ordering::Acquire) == 0
    }

    fn gate(&self, inode: InodeId) -> &tokio::sync::Mutex<()> {
        &self.gates[(inode.0 % GATES as u64) as usize]
    }

    fn owner(&self, inode: InodeId, owner: LockOwner) -> Option<Owner> {
        if self.none() {
            return None;
        }
        self.owners.lock().get(&inode)?.get(&owner).cloned()
    }

    fn note(&self, inode: InodeId, owner: LockOwner, handle: HandleId, session: SessionId) {
        let mut owners = self.owners.lock();
        let of_inode = owners.entry(inode).or_default();
        let noted = of_inode.entry(owner).or_insert(Owner { session, handles: BTreeSet::new(), holds: false });
        noted.handles.insert(handle.0);
        self.locked.store(owners.len(), Ordering::Release);
    }

    fn held(&self, inode: InodeId, owner: LockOwner) {
        if let Some(noted) = self.owners.lock().get_mut(&inode).and_then(|owners| owners.get_mut(&owner)) {
            noted.holds = true;
        }
    }

    fn forget(&self, inode: InodeId, owner: LockOwner) {
        let mut owners = self.owners.lock();
        if let Some(of_inode) = owners.get_mut(&inode) {
            of_inode.remove(&owner);
            if of_inode.is_empty() {
                owners.remove(&inode);
            }
        }
        self.locked.store(owners.len(), Ordering::Release);
    }

    /// Owners whose locks came through a handle, with their sessions.
    fn through(&self, inode: InodeId, handle: HandleId) -> Vec<(LockOwner, SessionId)> {
        if self.none() {
            return Vec::new();
        }
        let owners = self.owners.lock();
        let of_inode = owners.get(&inode).into_iter().flatten();
        of_inode
            .filter(|(_, noted)| noted.handles.contains(&handle.0))
            .map(|(owner, noted)| (*owner, noted.session))
            .collect()
    }

    /// Waits until no handle of the inode is about to give its locks back: a program that was told that its
    /// descriptor is closed may take the lock again at once.
    async fn wait_for_ends(&self, inode: InodeId) {
        loop {
            let ended = self.ended.notified();
            if !self.ending.lock().contains_key(&inode) {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut ending = self.fs.locks.ending.lock();
        if let Some(count) = ending.get_mut(&self.inode) {
            *count -= 1;
            if *count == 0 {
                ending.remove(&self.inode);
            }
        }
        drop(ending);
        self.fs.locks.ended.notify_waiters();
    }
}

impl Fs {
    /// Lets the kernel's pages be dropped from here; before that none are.
    pub fn set_drop_pages(&self, drop_pages: DropPages) {
        // Set once, when the session starts.
        let _ = self.locks.drop_pages.set(Arc::new(drop_pages));
    }

    /// What stands in the way of a lock. `fcntl` only: `flock` cannot ask. Locks of other mounts have no
    /// process here.
    pub async fn test_lock(&self, handle: HandleId, request: LockRequest) -> Result<Option<LockClaim>, Errno> {
        let inode = self.handles.file(handle)?.client_file().inode();
        let Some(mode) = request.mode else { return Err(Errno::INVALID) };
        let owner = LockOwner { space: LockSpace::Range, number: request.number };
        let claim = LockClaim { owner, range: request.range, mode, process: request.process };
        let found = self.dfs.test_lock(inode, claim).await?;
        Ok(found.map(|(claim, own)| LockClaim { process: if own { claim.process } else { 0 }, ..claim }))
    }

    /// Locks or unlocks, and does not wait.
    pub async fn set_lock(&self, who: Requester, handle: HandleId, request: LockRequest) -> Result<(), Errno> {
        let open = self.handles.file(handle)?;
        let inode = open.client_file().inode();
        let call = who.lock_call().await;
        self.locks.wait_for_ends(inode).await;
        let Some(mode) = request.mode else {
            // Others who get the lock next must find what was written under it.
            if !self.locks.none() {
                open.flush().await?;
            }
            return self.unlock(inode, call, request).await;
        };
        let (claim, session) = self.claim(inode, call, request, mode).await?;
        self.take(handle, &open, session, claim).await
    }

    /// Locks, and waits until it can: first come first served. Ends early if the caller is killed or
    /// interrupted; where that cannot be seen, at the deadline.
    pub async fn wait_for_lock(&self, who: Requester, handle: HandleId, request: LockRequest) -> Result<(), Errno> {
        let Some(mode) = request.mode else { return self.set_lock(who, handle, request).await };
        // The semaphore is never closed.
        let _place = self.locks.waiting.try_acquire().map_err(|_| Errno::NO_LOCKS)?;
        let open = self.handles.file(handle)?;
        let inode = open.client_file().inode();
        let call = who.lock_call().await;
        self.locks.wait_for_ends(inode).await;
        let (claim, session) = self.claim(inode, call, request, mode).await?;
        if claim.owner.space == LockSpace::Whole && self.locks.owner(inode, claim.owner).is_some() {
            // flock(2): a lock that is converted is given up first if the new one is not to be had at once.
            match self.take(handle, &open, session, claim).await {
                Err(Errno::WOULD_BLOCK) => self.unlock(inode, call, LockRequest { mode: None, ..request }).await?,
                done => return done,
            }
        }
        // Only `fcntl` knows deadlocks: its owners are processes.
        let detect_deadlock = call == LockCall::Process;
        let caller_left = self.caller_left(who);
        tokio::pin!(caller_left);
        loop {
            let chance = tokio::select! {
                chance = self.dfs.await_lock(session, inode, claim, detect_deadlock) => chance?,
                error = &mut caller_left => {
                    self.dfs.stop_waiting(session, inode, claim);
                    return Err(error);
                }
            };
            if chance == Chance::Now {
                match self.take(handle, &open, session, claim).await {
                    Err(Errno::WOULD_BLOCK) => {}
                    done => return done,
                }
            }
        }
    }

    /// The claim that a request stands for, and the session to make it in. Fails with ENOLCK if locks of
    /// this owner were lost: it believes to have them.
    async fn claim(
        &self,
        inode: InodeId,
        call: LockCall,
        request: LockRequest,
        mode: LockMode,
    ) -> Result<(LockClaim, SessionId), Errno> {
        let space = call.space();
        let range = if space == LockSpace::Whole { LockRange::ALL } else { request.range };
        let owner = LockOwner { space, number: request.number };
        let session = match self.locks.owner(inode, owner) {
            Some(noted) if self.dfs.holds_session(noted.session).await? => noted.session,
            Some(_) => return Err(Errno::NO_LOCKS),
            None => self.dfs.lock_session().await?,
        };
        Ok((LockClaim { owner, range, mode, process: request.process }, session))
    }

    async fn take(&self, handle: HandleId, open: &OpenFile, session: SessionId, claim: LockClaim) -> Result<(), Errno> {
        let inode = open.client_file().inode();
        let _alone = self.locks.gate(inode).lock().await;
        // Before the request goes out: it may be done although no answer comes.
        self.locks.note(inode, claim.owner, handle, session);
        if let Err(error) = self.dfs.lock(session, inode, claim).await {
            let refused = !matches!(error.kind, ErrorKind::Timeout | ErrorKind::Unavailable);
            if refused && self.locks.owner(inode, claim.owner).is_some_and(|noted| !noted.holds) {
                self.locks.forget(inode, claim.owner);
            } else if !refused {
                self.locks.held(inode, claim.owner);
            }
            return Err(error.into());
        }
        self.locks.held(inode, claim.owner);
        drop(_alone);
        self.see_what_others_wrote(open).await;
        Ok(())
    }

    /// Whoever gets a lock reads what was written under it before: caches hold nothing older from here on.
    async fn see_what_others_wrote(&self, open: &OpenFile) {
        let inode = open.client_file().inode();
        // The answer tells the client of a newer version. If it cannot be had, reading asks again.
        if let Err(error) = self.dfs.getattr(&Caller::ROOT, inode).await {
            tracing::debug!(%inode, %error, "version not read after locking");
        }
        if !open.saw_foreign_change() {
            return;
        }
        if let Some(drop_pages) = self.locks.drop_pages.get().cloned() {
            // On a thread that nobody waits for: the kernel may have to finish requests of this mount first.
            if let Err(error) = tokio::task::spawn_blocking(move || drop_pages(inode)).await {
                tracing::warn!(%inode, %error, "pages not dropped");
            }
        }
    }

    async fn unlock(&self, inode: InodeId, call: LockCall, request: LockRequest) -> Result<(), Errno> {
        let spaces: &[LockSpace] = match call {
            LockCall::File => &[LockSpace::Whole],
            LockCall::Process | LockCall::Description => &[LockSpace::Range],
            // It is one of the two; the other has nothing of this owner that should stay.
            LockCall::Unknown => &[LockSpace::Whole, LockSpace::Range],
        };
        let mut outcome = Ok(());
        for space in spaces {
            let owner = LockOwner { space: *space, number: request.number };
            let range = if *space == LockSpace::Whole { LockRange::ALL } else { request.range };
            outcome = outcome.and(self.give_back(inode, owner, range).await);
        }
        outcome
    }

    /// Takes an owner's locks away. Costs nothing if it never had any. Fails with ENOLCK, once, if they were
    /// lost before.
    async fn give_back(&self, inode: InodeId, owner: LockOwner, range: LockRange) -> Result<(), Errno> {
        let _alone = self.locks.gate(inode).lock().await;
        let Some(noted) = self.locks.owner(inode, owner) else { return Ok(()) };
        let outcome = self.dfs.unlock(noted.session, inode, owner, range).await;
        let lost = matches!(&outcome, Err(error) if error.kind == ErrorKind::NoLocks)
            && self.dfs.holds_session(noted.session).await != Ok(true);
        if lost || (outcome.is_ok() && range == LockRange::ALL) {
            self.locks.forget(inode, owner);
        }
        Ok(outcome?)
    }

    /// Fails with EIO if a lock that came through this handle has been lost: what is read or written now
    /// would not be what the lock was to protect.
    pub(super) async fn check_locks(&self, handle: HandleId, inode: InodeId) -> Result<(), Errno> {
        for (_, session) in self.locks.through(inode, handle) {
            if !self.dfs.holds_session(session).await? {
                tracing::warn!(%inode, "a lock was lost with its session");
                return Err(Errno::IO);
            }
        }
        Ok(())
    }

    /// A process closes a descriptor: POSIX takes all its `fcntl` locks of the file away.
    pub(super) async fn unlock_process(&self, inode: InodeId, number: u64) -> Result<(), Errno> {
        let owner = LockOwner { space: LockSpace::Range, number };
        if self.locks.owner(inode, owner).is_none() {
            return Ok(());
        }
        self.give_back(inode, owner, LockRange::ALL).await
    }

    /// Says that a handle ends; called at once, in the order in which the kernel sends its requests.
    pub fn end_locks(self: &Arc<Self>, handle: HandleId) -> Option<Ending> {
        if self.locks.none() {
            return None;
        }
        let inode = self.handles.file(handle).ok()?.client_file().inode();
        if self.locks.through(inode, handle).is_empty() {
            return None;
        }
        *self.locks.ending.lock().entry(inode).or_default() += 1;
        Some(Ending { fs: self.clone(), inode })
    }

    /// Gives back what was locked through a handle that has ended. Nobody hears of an error; the end of the
    /// session takes what is left.
    pub(super) async fn unlock_handle(&self, handle: HandleId, inode: InodeId) {
        for (owner, _) in self.locks.through(inode, handle) {
            let mut outcome = self.give_back(inode, owner, LockRange::ALL).await;
            // Others wait for it, perhaps on other mounts; it ends with the session at the latest.
            while outcome == Err(Errno::TIMED_OUT) {
                outcome = self.give_back(inode, owner, LockRange::ALL).await;
            }
            if let Err(error) = outcome {
                tracing::warn!(%inode, ?error, "locks of a closed file not given back");
                self.locks.forget(inode, owner);
            }
        }
    }

    /// Ends when the caller of a waiting request is gone or wants to be, with the errno for it.
    async fn caller_left(&self, who: Requester) -> Errno {
        let give_up = self.locks.deadline.map(|deadline| Instant::now() + deadline);
        loop {
            tokio::time::sleep(CALLER_LOOK).await;
            match who.is_interrupted() {
                Some(true) => return Errno::INTERRUPTED,
                Some(false) => {}
                None if give_up.is_some_and(|at| at <= Instant::now()) => return Errno::TIMED_OUT,
                None => {}
            }
        }
    }
}

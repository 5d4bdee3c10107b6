//! Directories that this session has made and nobody else has seen: they are changed here, by the namenode's own rules
//! on a copy of its rows, and the namenode is told a moment later, many changes at a time. `namenode/CONSISTENCY.md`,
//! section 6.2, says why nobody can tell the difference.

mod send;
mod state;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::private::Touched;
use dfs_proto::limits::RESERVE_MAX;
use dfs_proto::msg::meta::{Answer, NewNode, Op, OpReply, Query};
use dfs_proto::{Attr, Caller, Grant, InodeId, Name};
use dfs_rpc::Moment;
use futures::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::debug;

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Error, Result, unexpected_answer};
use crate::open::{FileState, Files};
use crate::session::Session;
use state::{Answered, Decided, Opens, State};

pub(crate) struct Private {
    /// Whether new directories are made private.
    wanted: bool,
    /// Lock order: this, then the table of open files.
    state: Mutex<State>,
    /// Held while numbers are being reserved, so that one of those who need them does it.
    reserving: tokio::sync::Mutex<()>,
    /// Directories that are being shared.
    sharing: Mutex<HashSet<InodeId>>,
    /// There is something to send that somebody waits for.
    work: Notify,
    /// Something was sent or lost, or an inode is free again.
    progress: Notify,
}

/// Between two looks at whether the session lasts.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Files stored side by side.
const STORED_AT_ONCE: usize = 64;

/// While it lives, the namenode may change the bytes of these files, and nothing else changes them here.
pub(crate) struct Busy {
    private: Arc<Private>,
    inodes: Vec<InodeId>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        if !self.inodes.is_empty() {
            self.private.state.lock().free(&self.inodes);
            self.private.progress.notify_waiters();
        }
    }
}

/// What became of a change.
pub(crate) enum Change {
    Done(OpReply),
    /// The namenode decides.
    Ask(Busy),
}

impl Private {
    pub fn new(wanted: bool) -> Arc<Private> {
        Arc::new(Private {
            wanted,
            state: Mutex::default(),
            reserving: tokio::sync::Mutex::default(),
            sharing: Mutex::default(),
            work: Notify::new(),
            progress: Notify::new(),
        })
    }

    /// Whether the inode is in a private directory.
    pub fn holds(&self, inode: InodeId) -> bool {
        self.state.lock().holds(inode)
    }

    /// The attributes of an inode in a private directory.
    pub fn attr(&self, inode: InodeId) -> Option<Attr> {
        self.state.lock().attr(inode)
    }

    /// Does `work` while an inode in a private directory has these attributes.
    pub fn while_held<T>(&self, attr: &Attr, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.state.lock();
        let held = state.attr(attr.inode)?;
        (Attr { atime: attr.atime, ..held } == *attr).then(work)
    }

    /// Does `work` while a name in a private directory leads to this inode.
    pub fn while_named<T>(&self, parent: InodeId, name: &Name, inode: InodeId, work: impl FnOnce() -> T) -> Option<T> {
        let state = self.state.lock();
        (state.entry(parent, name) == Some(inode)).then(work)
    }

    /// The regular files in a private directory; none of one with more than `max` names.
    pub fn files_in(&self, directory: InodeId, max: usize) -> Vec<InodeId> {
        self.state.lock().files_in(directory, max)
    }

    /// The attributes with what was changed here.
    pub fn current(&self, attr: Attr) -> Attr {
        self.state.lock().attr(attr.inode).unwrap_or(attr)
    }

    /// The namenode has changed a file's bytes. `learn` is told what the file is now, with what was changed here, before
    /// anybody is shown it; it must not come back here.
    pub fn observe<T>(&self, attr: Attr, learn: impl FnOnce(Attr) -> T) -> T {
        let mut state = self.state.lock();
        state.observe(&attr);
        learn(state.attr(attr.inode).unwrap_or(attr))
    }

    /// To be held while bytes of the file are committed. `None` if the namenode must be told something of it first,
    /// which is done soon, and after which commits are tried again.
    pub fn committing(self: &Arc<Self>, inode: InodeId) -> Option<Busy> {
        let occupied = self.state.lock().occupy(inode);
        match occupied {
            Some(inodes) => Some(Busy { private: self.clone(), inodes }),
            None => {
                self.work.notify_one();
                None
            }
        }
    }

    /// The session has ended. What the namenode was not told is lost.
    pub fn session_over(&self, error: &Error) {
        self.state.lock().lose(error);
        self.progress.notify_waiters();
    }
}

impl Opens for Files {
    fn is_open(&self, inode: InodeId) -> bool {
        Files::is_open(self, inode)
    }

    fn take_unproven(&self, inode: InodeId) -> Vec<(Caller, bool, bool)> {
        self.get(inode).map(|file| file.inner.lock().take_unproven()).unwrap_or_default()
    }
}

impl Client {
    /// Carries out a change if all that it touches is private, or waits until the namenode knows enough to do it.
    pub async fn change_privately(self: &Arc<Self>, caller: &Caller, op: &mut Op) -> Result<Change> {
        let deadline = self.deadline();
        self.require_lease(deadline).await?;
        loop {
            let progress = self.private.progress.notified();
            tokio::pin!(progress);
            // From here on nothing is missed.
            progress.as_mut().enable();
            let decided = self.private.state.lock().decide(caller, op, &self.files);
            match decided {
                Decided::Done(reply) => return Ok(Change::Done(reply)),
                Decided::Refused(error) => return Err(error.into()),
                Decided::Wait => {
                    self.private.work.notify_one();
                    deadline.bound("changes of names are being sent", progress).await?;
                }
                Decided::Numbers => self.reserve_numbers(deadline).await?,
                Decided::Ask { after, busy, left } => {
                    let busy = Busy { private: self.private.clone(), inodes: busy };
                    // Others are about to see and to change them, and this client has asked nobody to tell it.
                    self.watch.lent.take_back_with_names(&left).await;
                    self.sent(after, deadline).await?;
                    self.store_all_of(&left, deadline).await;
                    if let Op::MakeMasked { node: NewNode::Directory, private, .. } = op {
                        *private = self.private.wanted;
                    }
                    return Ok(Change::Ask(busy));
                }
            }
        }
    }

    /// The namenode has carried out a change.
    pub fn changed_there(&self, session: &Session, op: &Op, reply: &OpReply) {
        match (op, reply) {
            (Op::MakeMasked { parent, name, private: true, .. }, OpReply::Made { attr, created: true, .. }) => {
                self.private.state.lock().adopt(&session.grant, *parent, name, attr);
                // It was told that the directory is empty, which it soon is not.
                self.watch.forget(attr.inode);
            }
            (_, OpReply::Attr(attr) | OpReply::Ranged { attr, .. }) => self.private.observe(attr.clone(), drop),
            _ => {}
        }
    }

    /// The answer if all that the query touches is private. Otherwise waits until the namenode knows enough to answer.
    pub async fn answer_privately(self: &Arc<Self>, caller: &Caller, query: &Query) -> Result<Option<Answer>> {
        let mut answered = self.private.state.lock().answer(caller, query);
        if matches!(answered, Answered::Here(_)) && !self.lease_lasts() {
            self.require_lease(self.deadline()).await?;
            answered = self.private.state.lock().answer(caller, query);
        }
        match answered {
            Answered::Here(answer) => Ok(Some(answer?)),
            Answered::Ask { after: 0 } => Ok(None),
            Answered::Ask { after } => self.sent(after, self.deadline()).await.map(|()| None),
        }
    }

    /// Waits until the namenode knows what was changed of the inode.
    pub async fn told_of(self: &Arc<Self>, inode: InodeId) -> Result<()> {
        let touched = Touched { inodes: vec![inode], names: Vec::new() };
        let after = self.private.state.lock().last_of(&touched);
        self.sent(after, self.deadline()).await
    }

    /// Waits until the namenode knows everything that was done so far. Also reports, once, that something was lost.
    pub async fn told_of_all(self: &Arc<Self>) -> Result<()> {
        let last = self.private.state.lock().last();
        self.sent(last, self.deadline()).await?;
        self.private.state.lock().take_lost().map_or(Ok(()), Err)
    }

    /// When nothing private may be believed any more if the session is not heard of again.
    pub(crate) fn lease_ends(&self, now: Moment) -> Moment {
        now + self.sessions.current().map_or(Duration::ZERO, |session| session.lease_left())
    }

    fn lease_lasts(&self) -> bool {
        self.sessions.current().is_none_or(|session| session.lease_lasts())
    }

    /// A session that has not been heard of for its lease may have ended, and others may have changed what was private
    /// to it: nothing is decided here before that is known.
    async fn require_lease(&self, deadline: Deadline) -> Result<()> {
        while !self.lease_lasts() && self.private.state.lock().session().is_some() {
            deadline.bound("it is not known whether the session lasts", tokio::time::sleep(LOOK_AGAIN)).await?;
        }
        Ok(())
    }

    /// Commits what was written to these files.
    async fn store_all_of(self: &Arc<Self>, files: &[InodeId], deadline: Deadline) {
        let known = files.iter().filter_map(|inode| self.files.get(*inode));
        let dirty: Vec<_> = known.filter(|file| !file.inner.lock().writes.is_empty()).collect();
        self.store_files(dirty, deadline).await;
    }

    /// As `store_all_of`. Whoever writes a file is told if bytes of it are lost; what is not stored nobody else can see.
    async fn store_files(self: &Arc<Self>, dirty: Vec<Arc<FileState>>, deadline: Deadline) {
        let stored = stream::iter(dirty).map(|file| async move {
            if let Err(error) = self.flush(&file, deadline).await {
                debug!(inode = %file.inode, %error, "not stored before others see the file");
            }
        });
        stored.buffer_unordered(STORED_AT_ONCE).collect::<Vec<()>>().await;
    }

    /// A file's grant that came with the answer to what was sent.
    fn granted(&self, grant: Grant) {
        if let Some(file) = self.files.get(grant.inode) {
            file.inner.lock().prove(grant);
        }
    }

    async fn reserve_numbers(self: &Arc<Self>, deadline: Deadline) -> Result<()> {
        let _reserving = deadline.bound("numbers are being reserved", self.private.reserving.lock()).await?;
        if self.private.state.lock().has_numbers() {
            return Ok(());
        }
        // What is still to be sent uses up the last numbers.
        let last = self.private.state.lock().last();
        self.sent(last, deadline).await?;
        let session = self.session(deadline).await?;
        let count = RESERVE_MAX / 2;
        match self.mutate_in(&session, &Caller::ROOT, Op::Reserve { count }, deadline).await? {
            OpReply::Reserved { first } => {
                self.private.state.lock().give_numbers(session.id(), first, count);
                Ok(())
            }
            _ => Err(unexpected_answer("Reserve")),
        }
    }
}

//! Names and attributes from memory, kept true by the leader: it tells this session what to forget, on a
//! stream of its own, before anybody can see the change. Silence is safe as well, because what is
//! remembered is believed for a fraction of a second after the last answer.

mod ahead;
mod memory;

use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_proto::limits::READDIR_PAGE_MAX;
use dfs_proto::msg::meta::{Answer, MetaReply, MetaRequest, Op, Query, Revocation, RevocationDone, Told};
use dfs_proto::{Attr, Caller, ErrorKind, InodeId, Name, SessionId, WireError};
use dfs_rpc::{Moment, RecvStream, RpcError, SendStream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::Client;
use crate::error::{Error, Result, unexpected_answer};
use crate::leader::{ATTEMPT, Group};
use crate::lent::Lent;
pub(crate) use memory::Asked;
#[cfg(test)]
pub(crate) use memory::tests::attr as test_attr;
use memory::{Concerned, Memory};

/// Pause before the stream is opened again.
const PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Watch {
    memory: Mutex<Memory>,
    /// The stream on which the session hears of changes, if there is one.
    life: Mutex<Option<Life>>,
    /// Somebody would like to remember something.
    wanted: Notify,
    /// The session of the stream is over.
    broken: Notify,
    /// What the kernel believes of it.
    pub lent: Arc<Lent>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Life {
    session: SessionId,
    number: u64,
}

impl Watch {
    pub fn new() -> Watch {
        Watch {
            memory: Mutex::new(Memory::new()),
            life: Mutex::new(None),
            wanted: Notify::new(),
            broken: Notify::new(),
            lent: Arc::default(),
        }
    }

    /// The files of a directory that are remembered; none of one with more than `max` names.
    pub fn known_files(&self, directory: InodeId, max: usize) -> Vec<InodeId> {
        self.memory.lock().files_in(directory, max)
    }

    /// Does `work` while what this client believes of an inode are these attributes, with the moment until which it does.
    pub fn while_believed<T>(&self, attr: &Attr, now: Moment, work: impl FnOnce(Moment) -> T) -> Option<T> {
        let memory = self.memory.lock();
        memory.believed_until(attr, now).map(work)
    }

    /// As of now; see `may_learn`.
    pub fn asked(&self) -> Asked {
        self.memory.lock().ask(Moment::now())
    }

    /// Whether nothing about the inode was forgotten since then.
    pub fn may_learn(&self, asked: Asked, inode: InodeId) -> bool {
        self.memory.lock().may_learn(asked, &[inode])
    }

    /// As `while_believed`, that a name leads to this inode.
    pub fn while_named<T>(
        &self,
        (parent, name): (InodeId, &Name),
        inode: InodeId,
        now: Moment,
        work: impl FnOnce(Moment) -> T,
    ) -> Option<T> {
        let memory = self.memory.lock();
        let leads_there = memory.name(parent, name, now).flatten().is_some_and(|attr| attr.inode == inode);
        leads_there.then(|| work(memory.valid_until()))
    }

    /// An own change is about to be sent. What it names is not answered from memory until the result is dropped.
    pub fn changing(&self, op: &Op) -> Changing<'_> {
        let mut concerned = named_in(op);
        let mut memory = self.memory.lock();
        memory.change_begins(&mut concerned);
        // Before the life is looked at: see `Watch::over`.
        let asked = memory.ask(Moment::now());
        let removes = matches!(op, Op::Unlink { .. } | Op::Rmdir { .. } | Op::Rename { .. });
        Changing { watch: self, concerned, asked, removes }
    }

    /// An own change has been done, and has touched these inodes, in directories only the names that it names.
    pub fn changed(&self, inodes: &[InodeId], change: &Changing<'_>) {
        self.memory.lock().forget_own(inodes, &change.concerned.names);
    }

    /// As `changed`, and ends the change. The namenode said what the names lead to now; that may be believed for
    /// `valid` from the sending of the request on.
    pub fn told(&self, inodes: &[InodeId], mut change: Changing<'_>, told: &[Told], valid: Duration) {
        let concerned = std::mem::take(&mut change.concerned);
        self.memory.lock().change_told(&concerned, inodes, change.asked, told, change.asked.at() + valid);
    }

    /// An own change may have been done, or its answer may not have said everything.
    pub fn anything_may_have_changed(&self) {
        self.memory.lock().clear();
        self.take_all_back();
    }

    /// What a change names is not known any more once everything is forgotten: so nothing stays lent.
    fn take_all_back(&self) {
        let lent = self.lent.clone();
        tokio::spawn(async move { lent.take_all_back().await });
    }

    /// What the namenode says of the inode is not the latest any more.
    pub fn forget(&self, inode: InodeId) {
        self.memory.lock().forget(&[inode]);
    }

    /// The session has ended, and nobody tells it anything any more.
    pub fn session_over(&self) {
        self.over();
        self.broken.notify_one();
    }

    /// In this order: whoever has read the number of this life has sent its question before the clear,
    /// after which the answer is not learned.
    fn over(&self) {
        *self.life.lock() = None;
        self.memory.lock().clear();
        self.take_all_back();
    }

    /// The number under which the namenode knows the session's stream.
    pub fn life(&self, session: SessionId) -> Option<u64> {
        let number = self.life.lock().filter(|life| life.session == session).map(|life| life.number);
        if number.is_none() {
            self.wanted.notify_one();
        }
        number
    }
}

/// An own change that is under way.
pub(crate) struct Changing<'a> {
    watch: &'a Watch,
    concerned: Concerned,
    asked: Asked,
    removes: bool,
}

impl Changing<'_> {
    /// What it is about to touch, as far as that is known.
    pub fn inodes(&self) -> &[InodeId] {
        &self.concerned.inodes
    }

    /// Whether a name comes or goes.
    pub fn names_any(&self) -> bool {
        !self.concerned.names.is_empty()
    }

    /// The names that may lead elsewhere after it. What it makes was not there before.
    pub fn removed(&self) -> &[(InodeId, Name)] {
        if self.removes { &self.concerned.names } else { &[] }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.watch.memory.lock().change_ended(&self.concerned);
    }
}

/// Inodes that the operation names, and names in directories. Commits are not among them: of bytes that it has
/// written itself a client knows more than the namenode, and it says so in every attribute it shows.
fn named_in(op: &Op) -> Concerned {
    let (inodes, names) = match op {
        Op::Make { parent, name, .. }
        | Op::MakeMasked { parent, name, .. }
        | Op::Unlink { parent, name, .. }
        | Op::Rmdir { parent, name } => (Vec::new(), vec![(*parent, name.clone())]),
        Op::Link { inode, parent, name } => (vec![*inode], vec![(*parent, name.clone())]),
        Op::Rename { from_parent, from_name, to_parent, to_name, .. } => {
            (Vec::new(), vec![(*from_parent, from_name.clone()), (*to_parent, to_name.clone())])
        }
        Op::SetAttr { inode, .. }
        | Op::Fallocate { inode, .. }
        | Op::CloneRange { inode, .. }
        | Op::SetXattr { inode, .. }
        | Op::RemoveXattr { inode, .. } => (vec![*inode], Vec::new()),
        Op::Commit { .. }
        | Op::Release { .. }
        | Op::AllocateChunks { .. }
        | Op::CloseSession
        | Op::NoteReads { .. }
        // Nobody but this session knew what these change, and it has not learned it from answers.
        | Op::Open { .. }
        | Op::Reserve { .. }
        | Op::Sequence { .. }
        | Op::Share { .. }
        | Op::Lock { .. }
        | Op::Unlock { .. } => (Vec::new(), Vec::new()),
    };
    Concerned { inodes, names }
}

impl Client {
    /// What a name leads to.
    pub async fn lookup(self: &Arc<Self>, caller: &Caller, parent: InodeId, name: &Name) -> Result<Attr> {
        let attr = self.look_up(caller, parent, name).await?;
        self.found(parent, &attr);
        Ok(attr)
    }

    async fn look_up(self: &Arc<Self>, caller: &Caller, parent: InodeId, name: &Name) -> Result<Attr> {
        let query = Query::Lookup { parent, name: name.clone() };
        if let Some(answer) = self.answer_privately(caller, &query).await? {
            return attr_in(Ok(answer));
        }
        if let Some(known) = self.watch.memory.lock().name(parent, name, Moment::now()) {
            return known.cloned().ok_or_else(|| Error::new(ErrorKind::NotFound, "there is nothing of this name"));
        }
        if !self.options.remember {
            return attr_in(self.query(caller, query).await);
        }
        if self.list_ahead(caller, parent).await
            && let Some(Some(attr)) = self.watch.memory.lock().name(parent, name, Moment::now())
        {
            return Ok(attr.clone());
        }
        let attr = attr_in(self.watched(caller, query).await)?;
        self.watch.memory.lock().ahead.missed(parent);
        Ok(attr)
    }

    /// Fetches a page of a directory in which names are looked up one by one. `false` if there was no need.
    async fn list_ahead(self: &Arc<Self>, caller: &Caller, directory: InodeId) -> bool {
        let Some(after) = self.watch.memory.lock().ahead.next(directory) else { return false };
        let query = Query::ReadDir { inode: directory, after, limit: READDIR_PAGE_MAX, attrs: true };
        let next = match self.watched(caller, query).await {
            Ok(Answer::Page(page)) if !page.end => page.entries.last().map(|entry| entry.cookie),
            // Also if this caller may search it and not list it.
            _ => None,
        };
        self.watch.memory.lock().ahead.listed(directory, next);
        true
    }

    pub async fn getattr(self: &Arc<Self>, caller: &Caller, inode: InodeId) -> Result<Attr> {
        if let Some(answer) = self.answer_privately(caller, &Query::GetAttr { inode }).await? {
            return attr_in(Ok(answer));
        }
        if let Some(known) = self.watch.memory.lock().attr(inode, Moment::now()) {
            return Ok(known.clone());
        }
        attr_in(self.watched(caller, Query::GetAttr { inode }).await)
    }

    /// Asks, and remembers the answer where that is allowed.
    pub async fn watched(self: &Arc<Self>, caller: &Caller, query: Query) -> Result<Answer> {
        if !self.options.remember {
            return self.query(caller, query).await;
        }
        if let Some(answer) = self.answer_privately(caller, &query).await? {
            return Ok(answer);
        }
        let deadline = self.deadline();
        loop {
            let session = self.session(deadline).await?;
            // Before the life is looked at: see `Watch::over`.
            let asked = self.watch.memory.lock().ask(Moment::now());
            let Some(life) = self.watch.life(session.id()) else {
                return self.query(caller, query).await;
            };
            let request =
                MetaRequest::WatchedQuery { session: session.id(), caller: caller.clone(), query: query.clone(), life };
            let (answer, valid_ms) = match self.group.call(&request, ATTEMPT, deadline).await {
                Ok(MetaReply::Watched { answer, valid_ms }) => (answer, valid_ms),
                Ok(_) => return Err(unexpected_answer("WatchedQuery")),
                Err(failed) if failed.error.kind == ErrorKind::SessionExpired => {
                    self.session_expired(session.id());
                    continue;
                }
                Err(failed) => return Err(failed.error),
            };
            if valid_ms > 0 {
                let until = asked.at() + Duration::from_millis(valid_ms.into());
                let mut memory = self.watch.memory.lock();
                match (&query, &answer) {
                    (Query::Lookup { parent, name }, Ok(Answer::Attr(attr))) => {
                        memory.learn_name(asked, *parent, name, Some(attr), until);
                    }
                    (Query::Lookup { parent, name }, Err(error)) if error.kind == ErrorKind::NotFound => {
                        memory.learn_name(asked, *parent, name, None, until);
                    }
                    (Query::ReadDir { inode, .. }, Ok(Answer::Page(page))) => {
                        for entry in &page.entries {
                            if entry.attr.is_some() {
                                memory.learn_name(asked, *inode, &entry.name, entry.attr.as_ref(), until);
                            }
                        }
                    }
                    (_, Ok(Answer::Attr(attr))) => memory.learn_attr(asked, attr, until),
                    _ => {}
                }
            }
            return answer.map_err(Error::from);
        }
    }

    /// Keeps the stream open from when it is first wanted, until the client is shut down or dropped.
    pub fn start_watching(self: &Arc<Self>) {
        if self.options.remember {
            let (group, watch, stopped) = (self.group.clone(), self.watch.clone(), self.stopped.clone());
            tokio::spawn(keep_watching(Arc::downgrade(self), group, watch, stopped));
        }
    }
}

fn attr_in(answer: Result<Answer>) -> Result<Attr> {
    match answer? {
        Answer::Attr(attr) => Ok(attr),
        _ => Err(unexpected_answer("a question about attributes")),
    }
}

async fn keep_watching(client: Weak<Client>, group: Arc<Group>, watch: Arc<Watch>, stopped: CancellationToken) {
    loop {
        tokio::select! {
            () = stopped.cancelled() => return,
            () = watch.wanted.notified() => {}
        }
        // Not held while the stream lives: that would keep the client from being dropped.
        let session = match client.upgrade() {
            Some(client) => client.sessions.current(),
            None => return,
        };
        if let Some(session) = session {
            let ended = tokio::select! {
                () = stopped.cancelled() => return,
                ended = watch_once(&client, &group, &watch, session.id()) => ended,
            };
            debug!(session = %session.id(), ?ended, "not told of changes any more");
            watch.over();
            // The next stream begins with nothing that it would have to be told of.
            watch.lent.take_all_back().await;
        }
        tokio::select! {
            () = stopped.cancelled() => return,
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// Hears what to forget until the stream ends for whatever reason.
async fn watch_once(
    client: &Weak<Client>,
    group: &Group,
    watch: &Watch,
    session: SessionId,
) -> std::result::Result<(), RpcError> {
    let (leader, connection) = group.leader_connection().await?;
    let (mut send, mut recv) = connection.open().await?;
    send.send(&MetaRequest::Watch { session }).await?;
    let opened = tokio::time::timeout(ATTEMPT, recv.recv::<std::result::Result<MetaReply, WireError>>());
    let opened = opened.await.unwrap_or(Err(RpcError::Timeout(ATTEMPT.as_millis())))?;
    let MetaReply::Watching { life } = opened.map_err(RpcError::Refused)? else {
        return Err(RpcError::Malformed("the answer to Watch is of another kind".into()));
    };
    *watch.life.lock() = Some(Life { session, number: life });
    tokio::select! {
        ended = hear(client, watch, session, &mut send, &mut recv) => ended,
        // A dead leader's stream says nothing, not even that it has ended.
        next = group.other_leader(leader) => {
            debug!(next, "another namenode leads");
            Ok(())
        }
        () = watch.broken.notified() => Ok(()),
    }
}

async fn hear(
    client: &Weak<Client>,
    watch: &Watch,
    session: SessionId,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> std::result::Result<(), RpcError> {
    while let Some(Revocation { number, inodes, recalled }) = recv.recv_optional().await? {
        watch.memory.lock().forget(&inodes);
        watch.lent.take_back_for_others(&inodes).await;
        if let Some(client) = client.upgrade().filter(|_| !recalled.is_empty()) {
            client.share_directories(session, recalled);
        }
        send.send(&RevocationDone { number }).await?;
    }
    Ok(())
}

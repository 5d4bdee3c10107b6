//! Open files: one `FileState` per inode, shared by all handles of this client.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dfs_proto::msg::meta::{Answer, Op, OpenedFile, Query};
use dfs_proto::{Attr, Caller, ChunkId, ErrorKind, Extent, Grant, InodeId, SessionId};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::debug;

use crate::client::Client;
use crate::error::{Error, Result, unexpected_answer};
use crate::failures::{Failures, Heard};
use crate::file::OpenMode;
use crate::read::atime::ReadNote;
use crate::read::blocks::{Blocks, Sequential};
use crate::read::map::ExtentMap;
use crate::write::slot::Slot;
use crate::write::state::{Mark, WriteState};
use crate::write::writer::ChunkWriter;

/// Files that are closed and remembered for their extent maps; when there are more all are forgotten.
const CLOSED_MAX: usize = 1024;

/// What this client knows of one inode and has under way for it.
pub(crate) struct FileState {
    pub inode: InodeId,
    pub inner: Mutex<Inner>,
    /// Something was acknowledged, committed or failed.
    pub progress: Notify,
    /// Writes share it; a change of size has it alone.
    pub resize: tokio::sync::RwLock<()>,
    /// One append at a time.
    pub appending: tokio::sync::Mutex<()>,
    /// The file's own chunk.
    pub stream: Slot,
}

pub(crate) struct Inner {
    /// As the namenode showed it last.
    pub attr: Attr,
    pub map: ExtentMap,
    pub blocks: Blocks,
    pub writes: WriteState,
    /// Bytes that were lost.
    pub failures: Failures,
    pub handles: usize,
    /// How often a version was seen that this client has not made, or not alone.
    pub foreign_changes: u64,
    /// Without a name and held for us by the namenode: to be released at the last close.
    pub nameless: bool,
    read: Permit,
    write: Permit,
    /// An uploader task runs.
    pub uploading: bool,
    /// What was written up to these moments is to be committed as soon as it is acknowledged; oldest first.
    pub commit_marks: VecDeque<Mark>,
    /// Syncs that wait until bytes are acknowledged.
    pub syncing: usize,
    /// Had uncommitted bytes already at the last tick of the writeback clock.
    pub aged: bool,
    /// In the client's list of files with uncommitted bytes.
    pub listed: bool,
    pub read_note: Option<ReadNote>,
    /// Chunks that hold bytes of this file up to an offset which may not be synced yet.
    pub unsynced: HashMap<ChunkId, (Arc<ChunkWriter>, u32)>,
}

/// A permission from an open: in whose name, and the namenode's proof.
#[derive(Default)]
struct Permit {
    caller: Option<Caller>,
    grant: Option<Grant>,
    /// A proof of an open that the namenode has not heard of is on its way.
    asked: bool,
}

impl Inner {
    /// The attributes as this client's applications see them: with what they have written.
    pub fn merged_attr(&self) -> Attr {
        let mut attr = self.attr.clone();
        attr.size_bytes = attr.size_bytes.max(self.writes.end());
        // What replaces stored bytes is counted twice until then, but never beyond the size: programs take a file
        // that uses less for one with holes.
        attr.mapped_bytes = (attr.mapped_bytes + self.writes.bytes()).min(attr.size_bytes).max(attr.mapped_bytes);
        if let Some(read_at) = self.read_at() {
            attr.atime = attr.atime.max(read_at);
        }
        if let Some(mtime) = self.writes.mtime() {
            attr.mtime = attr.mtime.max(mtime);
            attr.ctime = attr.ctime.max(mtime);
        }
        attr
    }

    /// Takes newer attributes; what was cached of older content is dropped.
    pub fn observe(&mut self, attr: &Attr) {
        if attr.version < self.attr.version {
            return;
        }
        if attr.version > self.attr.version {
            self.foreign_changes += 1;
            self.map.clear();
            self.blocks.clear();
        }
        self.attr = attr.clone();
    }

    /// Takes the attributes after a commit of our own. The map is kept if nobody else changed the file.
    pub fn observe_own(&mut self, attr: &Attr, extents: &[Extent]) {
        // Read before it was committed is read before it changed; that this client has read it stays true.
        if let Some(note) = self.read_note.as_mut().filter(|note| note.seen_ctime == self.attr.ctime) {
            note.seen_ctime = attr.ctime;
        }
        if attr.version == self.attr.version + 1 {
            self.map.overwrite(self.attr.version, attr.version, extents);
            self.blocks.clear();
            self.attr = attr.clone();
        } else {
            self.observe(attr);
        }
    }

    fn permit(&mut self, write: bool) -> &mut Permit {
        if write { &mut self.write } else { &mut self.read }
    }

    pub fn grant(&self, write: bool, session: SessionId) -> Option<Grant> {
        let permit = if write { &self.write } else { &self.read };
        permit.grant.clone().filter(|grant| grant.session == session)
    }

    /// Lets this client itself read the file, for what it has to write again. Handles check their own mode.
    pub fn allow_own_reads(&mut self) {
        self.read.caller.get_or_insert(Caller::ROOT);
    }

    /// The namenode takes the grants no longer: their key has been retired.
    pub fn drop_grants(&mut self) {
        self.read.grant = None;
        self.write.grant = None;
    }

    /// Takes a grant that came later than the open which it proves.
    pub fn prove(&mut self, grant: Grant) {
        for (allowed, write) in [(grant.read, false), (grant.write, true)] {
            let permit = self.permit(write);
            if allowed && permit.caller.is_some() {
                permit.grant = Some(grant.clone());
            }
        }
    }

    /// In whose names it is open without a grant, which has not been asked for: for reading, for writing.
    pub fn take_unproven(&mut self) -> Vec<(Caller, bool, bool)> {
        let mut unproven = Vec::new();
        if self.handles > 0 {
            for (permit, read, write) in [(&mut self.read, true, false), (&mut self.write, false, true)] {
                if let Some(caller) = permit.caller.clone().filter(|_| permit.grant.is_none() && !permit.asked) {
                    permit.asked = true;
                    unproven.push((caller, read, write));
                }
            }
        }
        unproven
    }

    /// Whether a handle was opened for writing, proven or not.
    fn is_writable(&self) -> bool {
        self.write.caller.is_some()
    }

    fn take_grant(&mut self, caller: &Caller, grant: &Grant) {
        for (allowed, write) in [(grant.read, false), (grant.write, true)] {
            if allowed {
                *self.permit(write) = Permit { caller: Some(caller.clone()), grant: Some(grant.clone()), asked: false };
            }
        }
    }
}

#[derive(Default)]
pub(crate) struct Files {
    /// Lock order: this, then a file's `inner`.
    table: Mutex<HashMap<InodeId, Arc<FileState>>>,
    /// Handles that are open.
    open: AtomicUsize,
}

impl Files {
    pub fn get(&self, inode: InodeId) -> Option<Arc<FileState>> {
        self.table.lock().get(&inode).cloned()
    }

    pub fn any_open(&self) -> bool {
        self.open.load(Ordering::Relaxed) > 0
    }

    /// Every inode with a handle.
    pub fn open_inodes(&self) -> Vec<InodeId> {
        let table = self.table.lock();
        table.values().filter(|file| file.inner.lock().handles > 0).map(|file| file.inode).collect()
    }

    pub fn is_open(&self, inode: InodeId) -> bool {
        self.get(inode).is_some_and(|file| file.inner.lock().handles > 0)
    }

    /// The attributes with this client's uncommitted changes, which are noted if they are newer.
    pub fn merge(&self, attr: Attr) -> Attr {
        match self.get(attr.inode) {
            Some(file) => {
                let mut inner = file.inner.lock();
                inner.observe(&attr);
                // An older answer that arrives late must not show older bytes.
                if attr.version < inner.attr.version { inner.merged_attr() } else { with_writes(attr, &inner) }
            }
            None => attr,
        }
    }

    /// A handle on a file of which the namenode may not know yet: the grant comes when it does.
    fn attach_unproven(&self, attr: &Attr, caller: &Caller, mode: OpenMode) -> Arc<FileState> {
        self.attach_with(attr, |inner| {
            for (wanted, write) in [(mode.read, false), (mode.write, true)] {
                if wanted {
                    inner.permit(write).caller.get_or_insert_with(|| caller.clone());
                }
            }
        })
    }

    fn attach(&self, attr: &Attr, caller: &Caller, grant: &Grant) -> Arc<FileState> {
        self.attach_with(attr, |inner| inner.take_grant(caller, grant))
    }

    fn attach_with(&self, attr: &Attr, permit: impl FnOnce(&mut Inner)) -> Arc<FileState> {
        let mut table = self.table.lock();
        let file = table.entry(attr.inode).or_insert_with(|| Arc::new(FileState::new(attr.clone()))).clone();
        let mut inner = file.inner.lock();
        inner.observe(attr);
        permit(&mut inner);
        inner.handles += 1;
        drop(inner);
        self.open.fetch_add(1, Ordering::Relaxed);
        file
    }

    /// Gives a handle back. `true` if it was the file's last.
    fn detach(&self, file: &Arc<FileState>) -> bool {
        let mut table = self.table.lock();
        self.open.fetch_sub(1, Ordering::Relaxed);
        let mut inner = file.inner.lock();
        inner.handles -= 1;
        if inner.handles > 0 {
            return false;
        }
        inner.blocks.clear();
        if inner.nameless {
            table.remove(&file.inode);
        }
        true
    }

    /// Forgets the closed files if there are too many.
    pub fn sweep(&self) {
        let mut table = self.table.lock();
        if table.len() > self.open.load(Ordering::Relaxed) + CLOSED_MAX {
            table.retain(|_, file| {
                let inner = file.inner.lock();
                inner.handles > 0 || !inner.writes.is_empty()
            });
        }
    }
}

fn with_writes(attr: Attr, inner: &Inner) -> Attr {
    let merged = inner.merged_attr();
    let Attr { size_bytes, mapped_bytes, atime, mtime, ctime, .. } = merged;
    Attr { size_bytes, mapped_bytes, atime, mtime, ctime, ..attr }
}

impl FileState {
    fn new(attr: Attr) -> FileState {
        FileState {
            inode: attr.inode,
            inner: Mutex::new(Inner {
                map: ExtentMap::default(),
                blocks: Blocks::default(),
                attr,
                writes: WriteState::default(),
                failures: Failures::default(),
                handles: 0,
                foreign_changes: 0,
                nameless: false,
                read: Permit::default(),
                write: Permit::default(),
                uploading: false,
                commit_marks: VecDeque::new(),
                syncing: 0,
                aged: false,
                listed: false,
                read_note: None,
                unsynced: HashMap::new(),
            }),
            progress: Notify::new(),
            resize: tokio::sync::RwLock::new(()),
            appending: tokio::sync::Mutex::new(()),
            stream: Slot::default(),
        }
    }
}

/// One open of a file.
pub(crate) struct Handle {
    pub client: Arc<Client>,
    pub file: Arc<FileState>,
    pub mode: OpenMode,
    /// Where this handle has been reading.
    pub sequential: Mutex<Sequential>,
    /// Lock order: the file's `inner`, then this.
    heard: Mutex<Heard>,
}

impl Handle {
    /// That bytes of the file were lost, if this handle has not been told yet.
    pub fn tell(&self) -> Result<()> {
        let mut inner = self.file.inner.lock();
        inner.failures.tell(&mut self.heard.lock()).map_or(Ok(()), Err)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.client.files.detach(&self.file) {
            return;
        }
        self.client.holding.closed(self.file.inode);
        let (client, file) = (self.client.clone(), self.file.clone());
        // Outside a runtime (at the end of the process) the session's end does what is left.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.last_closed(&file).await });
        }
    }
}

impl Client {
    /// Opens a regular file.
    pub async fn open(self: &Arc<Self>, caller: &Caller, inode: InodeId, mode: OpenMode) -> Result<Handle> {
        if self.private.holds(inode) {
            let mask = 4 * u8::from(mode.read) + 2 * u8::from(mode.write);
            if let Answer::Attr(attr) = self.query(caller, Query::Access { inode, mask }).await?
                && let Some(handle) = self.opened_privately(caller, &attr, mode)
            {
                return Ok(handle);
            }
        }
        let only_read = mode.read && !mode.write;
        if only_read && let Some(handle) = self.open_from_ahead(caller, inode, mode) {
            return Ok(handle);
        }
        let _opening = self.opening(inode).await;
        let OpenedFile { attr, grant, front } = match only_read {
            true => self.open_with_next(caller, inode).await?,
            false => match self.query(caller, Query::Open { inode, read: mode.read, write: mode.write }).await? {
                Answer::Opened(opened) => opened,
                _ => return Err(unexpected_answer("Open")),
            },
        };
        let handle = self.opened(caller, &attr, &grant, mode);
        self.learn_front(&handle.file, front);
        Ok(handle)
    }

    /// A handle on a file that the namenode has just opened for us.
    pub fn opened(self: &Arc<Self>, caller: &Caller, attr: &Attr, grant: &Grant, mode: OpenMode) -> Handle {
        self.handle(self.files.attach(attr, caller, grant), mode)
    }

    /// A handle on a file in a private directory, which the caller may open. `None` if it is private no longer.
    pub fn opened_privately(self: &Arc<Self>, caller: &Caller, attr: &Attr, mode: OpenMode) -> Option<Handle> {
        let handle = self.handle(self.files.attach_unproven(attr, caller, mode), mode);
        // Whoever shares its directory from here on says that it is open.
        self.private.holds(attr.inode).then_some(handle)
    }

    fn handle(self: &Arc<Self>, file: Arc<FileState>, mode: OpenMode) -> Handle {
        let heard = Mutex::new(file.inner.lock().failures.heard());
        Handle { client: self.clone(), file, mode, sequential: Mutex::default(), heard }
    }

    /// Whether the file may be written: it is proven by a grant, if only when its bytes are committed.
    pub async fn require_writable(self: &Arc<Self>, file: &FileState) -> Result<()> {
        // One after the other: whoever decides about private directories looks at open files.
        let writable = file.inner.lock().is_writable();
        if writable && self.private.holds(file.inode) {
            return Ok(());
        }
        self.grant(file, true).await.map(|_| ())
    }

    /// A grant of the current session; after a session has expired the file is opened again for it.
    pub async fn grant(self: &Arc<Self>, file: &FileState, write: bool) -> Result<Grant> {
        if let Some(session) = self.sessions.current()
            && let Some(grant) = file.inner.lock().grant(write, session.id())
        {
            return Ok(grant);
        }
        // It may come with the answer to what is still to be sent.
        self.told_of(file.inode).await?;
        if let Some(session) = self.sessions.current()
            && let Some(grant) = file.inner.lock().grant(write, session.id())
        {
            return Ok(grant);
        }
        let caller = file.inner.lock().permit(write).caller.clone();
        let caller = caller.ok_or_else(|| {
            let access = if write { "writing" } else { "reading" };
            Error::new(ErrorKind::InvalidArgument, format!("the file is not open for {access}"))
        })?;
        if !write
            && let Some(session) = self.sessions.current()
            && let Some(grant) = self.grant_from_ahead(file, &caller, session.id())
        {
            return Ok(grant);
        }
        debug!(inode = %file.inode, write, "asking for the grant of an open file");
        let OpenedFile { attr, grant, front } = match write {
            false => self.open_with_next(&caller, file.inode).await?,
            true => match self.query(&caller, Query::Open { inode: file.inode, read: false, write }).await? {
                Answer::Opened(opened) => opened,
                _ => return Err(unexpected_answer("Open")),
            },
        };
        let mut inner = file.inner.lock();
        inner.observe(&attr);
        inner.take_grant(&caller, &grant);
        drop(inner);
        self.learn_front(file, front);
        Ok(grant)
    }

    /// The attributes as this client's applications see them: with what it has changed and the namenode does not know.
    pub fn merged(&self, attr: Attr) -> Attr {
        self.files.merge(self.private.current(attr))
    }

    /// The inode has lost its last name while open here.
    pub async fn lost_its_name(self: &Arc<Self>, inode: InodeId) {
        let Some(file) = self.files.get(inode) else { return };
        let still_open = {
            let mut inner = file.inner.lock();
            inner.nameless = true;
            inner.handles > 0
        };
        if !still_open {
            self.release(&file).await;
        }
    }

    async fn last_closed(self: &Arc<Self>, file: &Arc<FileState>) {
        if file.inner.lock().nameless {
            self.discard(file);
            file.stream.close().await;
            self.release(file).await;
        } else {
            file.inner.lock().writes.handle_stream_closed();
            if !self.private.holds(file.inode) {
                self.start_writeback(file);
            }
            file.stream.close_when_uploaded(file).await;
        }
    }

    async fn release(self: &Arc<Self>, file: &FileState) {
        if !std::mem::take(&mut file.inner.lock().nameless) {
            return;
        }
        if let Err(error) = self.mutate(&Caller::ROOT, Op::Release { inodes: vec![file.inode] }).await {
            // The end of the session releases it.
            debug!(inode = %file.inode, %error, "inode not released");
        }
    }
}

//! What was done and is not sent yet, and which of two places decides about a request. Does no IO.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use dfs_meta::private::Touched;
use dfs_meta::{Fault, LocalTree, Routed};
use dfs_proto::limits::SEQUENCE_MAX;
use dfs_proto::msg::meta::{Answer, NewNode, Op, OpReply, Query, RenameMode, SessionGrant, Step};
use dfs_proto::{Attr, Caller, ErrorKind, FileKind, InodeId, Name, SessionId, Timestamp, WireError, XattrKinds};
use tokio::time::Instant;

use crate::client::now;
use crate::error::Error;

/// Changes that wait to be sent; who makes more waits with them.
const QUEUE_MAX: usize = 8192;

/// Rows kept of private directories: some 65,000 files, about 50 MiB. A directory that would grow beyond that is
/// private no longer.
const ROWS_MAX: usize = 200_000;

/// Directories recalled before their making was answered. As many as are made at the same time at most.
const RECALLED_MAX: usize = 4096;

/// Between looking a name up and opening what it leads to less time passes than this, or the open fails.
const REPLACED_KEPT: Duration = Duration::from_secs(1);

/// About how many bytes of changes are sent at once.
const SEQUENCE_BYTES: usize = 384 << 10;

#[derive(Default)]
pub(super) struct State {
    tree: Option<LocalTree>,
    /// Numbered one after the other, up to `last`.
    queue: VecDeque<Step>,
    last: u64,
    /// Up to here the namenode has answered.
    sent: u64,
    /// The last change of an inode that is not sent.
    touched: HashMap<InodeId, u64>,
    /// Inodes that the namenode decides about again once it knows this much.
    leaving: HashMap<InodeId, u64>,
    /// Files whose bytes the namenode may be changing, and how many requests do.
    busy: HashMap<InodeId, usize>,
    /// Files that were replaced under their last name, and when: held for those who are about to open them.
    replaced: VecDeque<(InodeId, Instant)>,
    /// Recalled, and not known here.
    recalled: BTreeSet<InodeId>,
    /// What the next sync of names reports.
    lost: Option<Error>,
    /// How often everything was lost.
    losses: u64,
    clock: Clock,
}

/// What is open here.
pub(super) trait Opens {
    fn is_open(&self, inode: InodeId) -> bool;

    /// Who has opened it without a proof: for reading, for writing. Each is told once.
    fn take_unproven(&self, inode: InodeId) -> Vec<(Caller, bool, bool)>;
}

/// What has to be shared.
pub(super) struct Recalled {
    pub directories: Vec<InodeId>,
    /// The files in them; `None` if that is not known.
    pub files: Option<Vec<InodeId>>,
    /// Everything up to here has to be sent before.
    pub last: u64,
}

/// What is being sent: the front of the queue as it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    count: usize,
    losses: u64,
}

/// The cluster's time, as far as it is known here.
#[derive(Default)]
struct Clock {
    /// How far the leader's clock was ahead of ours.
    ahead_ns: i64,
    latest: Timestamp,
}

impl Clock {
    fn learn(&mut self, theirs: Timestamp) {
        self.ahead_ns = nanos(theirs) - nanos(now());
        self.latest = self.latest.max(theirs);
    }

    /// Never runs backwards.
    fn read(&mut self) -> Timestamp {
        let ns = nanos(now()) + self.ahead_ns;
        let read = Timestamp { secs: ns.div_euclid(1_000_000_000), nanos: ns.rem_euclid(1_000_000_000) as u32 };
        self.latest = self.latest.max(read);
        self.latest
    }
}

/// Good until the year 2262.
fn nanos(time: Timestamp) -> i64 {
    time.secs.saturating_mul(1_000_000_000).saturating_add(i64::from(time.nanos))
}

/// What is to be done about a change.
#[derive(Debug)]
pub(super) enum Decided {
    Done(OpReply),
    Refused(WireError),
    /// Look again after some progress.
    Wait,
    /// No number is left for a new inode.
    Numbers,
    /// The namenode decides.
    Ask {
        /// When everything up to here is sent.
        after: u64,
        /// Files that are busy meanwhile.
        busy: Vec<InodeId>,
        /// Directories and files that others may see from then on, the files with all that was written before.
        left: Vec<InodeId>,
    },
}

impl Decided {
    fn ask(after: u64) -> Decided {
        Decided::Ask { after, busy: Vec::new(), left: Vec::new() }
    }
}

/// Where an answer comes from.
#[derive(Debug)]
pub(super) enum Answered {
    Here(Result<Answer, WireError>),
    /// From the namenode, when everything up to here is sent.
    Ask {
        after: u64,
    },
}

impl State {
    pub fn holds(&self, inode: InodeId) -> bool {
        self.attr(inode).is_some()
    }

    pub fn attr(&self, inode: InodeId) -> Option<Attr> {
        self.tree.as_ref()?.attr(inode).ok().flatten()
    }

    /// What a name in a private directory leads to.
    pub fn entry(&self, parent: InodeId, name: &Name) -> Option<InodeId> {
        self.tree.as_ref().filter(|tree| tree.is_directory(parent))?.entry(parent, name).ok().flatten()
    }

    /// The regular files in a private directory; none of one with more than `max` names.
    pub fn files_in(&self, directory: InodeId, max: usize) -> Vec<InodeId> {
        let tree = self.tree.as_ref().filter(|tree| tree.is_directory(directory));
        tree.and_then(|tree| tree.files_in(directory, max).ok()).unwrap_or_default()
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    pub fn sent(&self) -> u64 {
        self.sent
    }

    pub fn take_lost(&mut self) -> Option<Error> {
        self.lost.take()
    }

    /// The session whose directories these are, if there are any.
    pub fn session(&self) -> Option<SessionId> {
        self.tree.as_ref().filter(|tree| !tree.is_empty()).map(LocalTree::session)
    }

    /// Whether something can be made without reserving numbers first.
    pub fn has_numbers(&self) -> bool {
        self.tree.as_ref().is_none_or(|tree| tree.numbers_left() > 0)
    }

    /// Up to where everything must be sent before the namenode can be asked about this.
    pub fn last_of(&self, touched: &Touched<'_>) -> u64 {
        let inodes = touched.inodes.iter().chain(touched.names.iter().map(|(parent, _)| parent));
        inodes
            .flat_map(|inode| [self.touched.get(inode), self.leaving.get(inode)])
            .flatten()
            .copied()
            .max()
            .unwrap_or(0)
    }

    /// Marks a file, if it is one of ours: what to give to `free`. `None` if something of it has not been sent.
    pub fn occupy(&mut self, inode: InodeId) -> Option<Vec<InodeId>> {
        if self.touched.contains_key(&inode) {
            return None;
        }
        if !self.holds(inode) {
            return Some(Vec::new());
        }
        *self.busy.entry(inode).or_default() += 1;
        Some(vec![inode])
    }

    pub fn free(&mut self, inodes: &[InodeId]) {
        for inode in inodes {
            if let Some(count) = self.busy.get_mut(inode) {
                *count -= 1;
                if *count == 0 {
                    self.busy.remove(inode);
                }
            }
        }
    }

    /// Carries the change out if it is ours to decide. May say in `op` that the inode is to be held.
    pub fn decide(&mut self, caller: &Caller, op: &mut Op, opens: &dyn Opens) -> Decided {
        self.try_decide(caller, op, opens).unwrap_or_else(|fault| {
            self.damaged(&fault);
            Decided::ask(0)
        })
    }

    fn try_decide(&mut self, caller: &Caller, op: &mut Op, opens: &dyn Opens) -> Result<Decided, Fault> {
        let Some(tree) = &mut self.tree else { return Ok(Decided::ask(0)) };
        let makes = matches!(op, Op::MakeMasked { .. });
        let grown = makes && tree.len() >= ROWS_MAX;
        match tree.route_op(op)? {
            Routed::Here if !grown => {}
            Routed::There => return self.ask_there(op, opens),
            Routed::Here | Routed::Both => return self.ask_both(op, opens),
        }
        if let Op::SetAttr { inode, .. } | Op::SetXattr { inode, .. } | Op::RemoveXattr { inode, .. } = op
            && self.busy.contains_key(inode)
        {
            return Ok(Decided::Wait);
        }
        if self.queue.len() >= QUEUE_MAX {
            return Ok(Decided::Wait);
        }
        if makes && tree.numbers_left() == 0 {
            return Ok(Decided::Numbers);
        }
        if let Some(found) = found_instead(tree, caller, op)? {
            return Ok(found.map_or_else(Decided::Refused, Decided::Done));
        }
        if let Op::SetAttr { inode, .. } | Op::SetXattr { inode, .. } | Op::RemoveXattr { inode, .. } = op {
            self.prove(*inode, opens);
        }
        let Some(tree) = &mut self.tree else { return Ok(Decided::ask(0)) };
        let named = tree.named(&Touched::by_op(op))?;
        match op {
            Op::MakeMasked { node: NewNode::Directory, private, .. } => *private = true,
            Op::Unlink { hold, .. } => *hold = named.iter().copied().find(|inode| opens.is_open(*inode)),
            // Somebody may have looked the name up, and opens what he has found when this is done.
            Op::Rename { to_parent, to_name, hold, mode: RenameMode::Replace, .. } => {
                *hold = tree.entry(*to_parent, to_name)?.filter(|inode| !tree.is_directory(*inode));
            }
            _ => {}
        }
        let at = self.clock.read();
        let reply = match tree.apply(caller, at, op)? {
            Ok(reply) => reply,
            Err(error) => return Ok(Decided::Refused(error)),
        };
        let made = match &reply {
            OpReply::Made { attr, created: true, .. } => Some(attr.inode),
            _ => None,
        };
        self.last += 1;
        for inode in named.into_iter().chain(made) {
            self.touched.insert(inode, self.last);
        }
        self.queue.push_back(Step { at, caller: caller.clone(), inode: made, op: op.clone() });
        if let (OpReply::Removed { inode: Some(attr) }, Op::Rename { .. }) = (&reply, &*op)
            && attr.kind != FileKind::Directory
            && attr.nlink == 0
        {
            self.replaced.push_back((attr.inode, Instant::now()));
        }
        Ok(Decided::Done(reply))
    }

    /// Nothing of it is ours, but perhaps what is behind a name, or something that was ours until a moment ago.
    fn ask_there(&mut self, op: &Op, opens: &dyn Opens) -> Result<Decided, Fault> {
        let touched = Touched::by_op(op);
        let after = self.last_of(&touched);
        if let (Some(tree), Op::Rmdir { .. } | Op::Rename { .. }) = (&self.tree, op) {
            let tops: Vec<_> =
                touched.names.iter().filter_map(|(parent, name)| tree.top_named(*parent, name)).collect();
            if !tops.is_empty() {
                let files = self.give_up(&tops, opens)?;
                let left = [tops, files].concat();
                return Ok(Decided::Ask { after: self.last, busy: Vec::new(), left });
            }
        }
        Ok(Decided::ask(after))
    }

    fn ask_both(&mut self, op: &Op, opens: &dyn Opens) -> Result<Decided, Fault> {
        let Some(tree) = &self.tree else { return Ok(Decided::ask(0)) };
        let touched = Touched::by_op(op);
        let after = self.last_of(&touched);
        let named = tree.named(&touched)?;
        // The bytes of files are the namenode's anyway, and the answer says what they are.
        if touched.names.is_empty() && named.iter().all(|inode| !tree.is_directory(*inode)) {
            for inode in &named {
                *self.busy.entry(*inode).or_default() += 1;
            }
            return Ok(Decided::Ask { after, busy: named, left: Vec::new() });
        }
        let tops = touched.names.iter().filter_map(|(parent, name)| tree.top_named(*parent, name));
        let named: Vec<_> = named.iter().copied().chain(tops).collect();
        let files = self.give_up(&named, opens)?;
        let left = [named, files].concat();
        Ok(Decided::Ask { after: self.last, busy: Vec::new(), left })
    }

    /// From here on the namenode decides about these, once it knows everything that was done. Which files are among
    /// them or were in them.
    fn give_up(&mut self, inodes: &[InodeId], opens: &dyn Opens) -> Result<Vec<InodeId>, Fault> {
        let mut files = Vec::new();
        for inode in inodes {
            let Some(tree) = &mut self.tree else { return Ok(files) };
            if tree.is_directory(*inode) {
                files.extend(tree.children(*inode)?.into_iter().filter(|child| !tree.is_directory(*child)));
            } else {
                files.push(*inode);
            }
            tree.forget(*inode)?;
        }
        for file in &files {
            self.prove(*file, opens);
        }
        if self.sent < self.last {
            self.leaving.extend(inodes.iter().chain(&files).map(|inode| (*inode, self.last)));
        }
        Ok(files)
    }

    /// Who has the file open by now keeps it open, whatever becomes of its mode.
    fn prove(&mut self, inode: InodeId, opens: &dyn Opens) {
        for (caller, read, write) in opens.take_unproven(inode) {
            self.last += 1;
            let at = self.clock.read();
            self.queue.push_back(Step { at, caller, inode: None, op: Op::Open { inode, read, write } });
        }
    }

    /// Somebody else wants to see these. Gives them up with all below.
    pub fn recall(&mut self, inodes: &[InodeId], opens: &dyn Opens) -> Result<Recalled, Fault> {
        let mut directories = Vec::new();
        let mut all_known = true;
        for inode in inodes {
            match &self.tree {
                Some(tree) if tree.is_directory(*inode) => directories.extend(tree.below(*inode)?),
                _ => {
                    // Given up already, or the answer to its making is on its way.
                    all_known = false;
                    self.recalled.insert(*inode);
                    while self.recalled.len() > RECALLED_MAX {
                        self.recalled.pop_first();
                    }
                    directories.push(*inode);
                }
            }
        }
        directories.sort_unstable();
        directories.dedup();
        let files = self.give_up(&directories, opens)?;
        Ok(Recalled { directories, files: all_known.then_some(files), last: self.last })
    }

    pub fn answer(&self, caller: &Caller, query: &Query) -> Answered {
        let answered = || -> Result<Answered, Fault> {
            let Some(tree) = &self.tree else { return Ok(Answered::Ask { after: 0 }) };
            Ok(match tree.route_query(query)? {
                Routed::Here => Answered::Here(tree.answer(caller, query)?),
                Routed::Both if matches!(query, Query::Lookup { .. }) => Answered::Ask { after: self.last },
                Routed::Both | Routed::There => Answered::Ask { after: self.last_of(&Touched::by_query(query)) },
            })
        };
        answered().unwrap_or(Answered::Ask { after: self.last })
    }

    /// Takes in a new private directory.
    pub fn adopt(&mut self, session: &SessionGrant, parent: InodeId, name: &Name, attr: &Attr) {
        if attr.kind != FileKind::Directory || attr.xattrs != XattrKinds::NONE || self.recalled.contains(&attr.inode) {
            return;
        }
        if self.tree.as_ref().is_some_and(|tree| tree.session() != session.session) {
            // Its end has not been noticed everywhere yet.
            return;
        }
        self.clock.learn(attr.ctime);
        let mut adopted = || -> Result<(), Fault> {
            let tree = match self.tree.take() {
                Some(tree) => tree,
                None => LocalTree::new(session.session, session.default_replication)?,
            };
            self.tree.insert(tree).adopt(parent, name, attr)?;
            Ok(())
        };
        if let Err(fault) = adopted() {
            self.damaged(&fault);
        }
    }

    pub fn give_numbers(&mut self, session: SessionId, first: InodeId, count: u32) {
        if let Some(tree) = self.tree.as_mut().filter(|tree| tree.session() == session) {
            tree.give_numbers(first, count);
        }
    }

    /// Files that were replaced so long ago that whoever has looked them up has opened them.
    pub fn take_replaced(&mut self) -> Vec<InodeId> {
        let mut taken = Vec::new();
        while taken.len() < SEQUENCE_MAX
            && let Some((inode, _)) = self.replaced.pop_front_if(|(_, since)| since.elapsed() >= REPLACED_KEPT)
        {
            taken.push(inode);
        }
        taken
    }

    pub fn observe(&mut self, attr: &Attr) {
        if let Some(Err(fault)) = self.tree.as_mut().map(|tree| tree.observe(attr)) {
            self.damaged(&fault);
        }
    }

    /// What to send next, and a mark for `done`; it stays in the queue until it is answered.
    pub fn next(&self) -> (Vec<Step>, Sending) {
        let mut bytes = 0;
        let fits = |step: &&Step| {
            bytes += weight(&step.op);
            bytes <= SEQUENCE_BYTES
        };
        let steps: Vec<Step> = self.queue.iter().take(SEQUENCE_MAX).take_while(fits).cloned().collect();
        let sending = Sending { count: steps.len(), losses: self.losses };
        (steps, sending)
    }

    /// The namenode has done this.
    pub fn done(&mut self, sending: Sending) {
        if sending.losses == self.losses {
            self.drain(sending.count);
        }
    }

    fn drain(&mut self, count: usize) {
        self.queue.drain(..count.min(self.queue.len()));
        self.sent = self.last - self.queue.len() as u64;
        let sent = self.sent;
        self.touched.retain(|_, position| *position > sent);
        self.leaving.retain(|_, position| *position > sent);
    }

    /// What was not sent will not be. From now on the namenode decides about everything.
    pub fn lose(&mut self, error: &Error) {
        if !self.queue.is_empty() {
            self.lost = Some(error.clone());
        }
        self.tree = None;
        self.recalled.clear();
        self.replaced.clear();
        self.losses += 1;
        self.drain(self.queue.len());
    }

    fn damaged(&mut self, fault: &Fault) {
        tracing::error!(%fault, "the copy of private directories is unusable");
        self.lose(&Error::new(ErrorKind::Internal, fault.to_string()));
    }
}

/// O_CREAT without O_EXCL of a file that is there: it is found, if the caller may open it so.
fn found_instead(tree: &LocalTree, caller: &Caller, op: &Op) -> Result<Option<Result<OpReply, WireError>>, Fault> {
    let Op::MakeMasked { parent, name, node: NewNode::File, exclusive: false, open: Some((read, write)), .. } = op
    else {
        return Ok(None);
    };
    let lookup = Query::Lookup { parent: *parent, name: name.clone() };
    let attr = match tree.answer(caller, &lookup)? {
        Ok(Answer::Attr(attr)) if attr.kind == FileKind::File => attr,
        // Whatever is wrong, making it says it.
        _ => return Ok(None),
    };
    let access = Query::Access { inode: attr.inode, mask: 4 * u8::from(*read) + 2 * u8::from(*write) };
    Ok(Some(tree.answer(caller, &access)?.map(|_| OpReply::Made { attr, created: false, grant: None })))
}

/// About how many bytes a step takes up on its way.
fn weight(op: &Op) -> usize {
    const FIXED: usize = 128;
    FIXED
        + match op {
            Op::MakeMasked { name, node: NewNode::Symlink(target), .. } => name.as_bytes().len() + target.len(),
            Op::MakeMasked { name, .. } => name.as_bytes().len(),
            Op::Rename { from_name, to_name, .. } => from_name.as_bytes().len() + to_name.as_bytes().len(),
            Op::SetXattr { name, value, .. } => name.as_bytes().len() + value.as_bytes().len(),
            _ => dfs_proto::limits::NAME_MAX,
        }
}

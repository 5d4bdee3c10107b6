//! Atime: reads are noted and told to the namenode together, in the background.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dfs_proto::attr::ATIME_SECS;
use dfs_proto::limits::READS_MAX;
use dfs_proto::msg::meta::{FileRead, Op};
use dfs_proto::{Caller, InodeId, Timestamp};
use tracing::debug;

use crate::client::{Client, now};
use crate::open::{FileState, Inner};

/// Files whose reads wait to be told. The atime of more is not worth their memory.
const NOTED_MAX: usize = 4 * READS_MAX;

/// That this client has read the file, and how it was then.
#[derive(Clone, Copy)]
pub(crate) struct ReadNote {
    /// A file with another ctime has changed since, or its times were set.
    pub seen_ctime: Timestamp,
    pub at: Timestamp,
}

impl Inner {
    /// When this client has read the file as it is.
    pub fn read_at(&self) -> Option<Timestamp> {
        self.read_note.filter(|note| note.seen_ctime == self.attr.ctime).map(|note| note.at)
    }
}

impl Client {
    pub(super) fn note_read(&self, file: &Arc<FileState>) {
        if !self.options.atime {
            return;
        }
        let at = now();
        let mut inner = file.inner.lock();
        let attr = inner.merged_attr();
        // The cluster's clock may be ahead of ours; a ctime from there does not call for a note at every read.
        let noted_since = inner.read_at().is_some_and(|read| read > attr.mtime && at.secs - read.secs < ATIME_SECS);
        if noted_since || !attr.wants_atime(at) {
            return;
        }
        let mut noted = self.reads.noted.lock();
        if noted.len() < NOTED_MAX || noted.contains_key(&file.inode) {
            inner.read_note = Some(ReadNote { seen_ctime: inner.attr.ctime, at });
            noted.insert(file.inode, file.clone());
        }
    }

    /// Tells what was noted, unless that is under way. Nothing is told twice: the next read is soon enough.
    pub async fn tell_reads(self: &Arc<Self>) {
        let noted: HashMap<InodeId, Arc<FileState>> = {
            let mut noted = self.reads.noted.lock();
            if noted.is_empty() || self.reads.telling.swap(true, Ordering::Relaxed) {
                return;
            }
            std::mem::take(&mut *noted)
        };
        let files: Vec<_> = noted.into_values().collect();
        for files in files.chunks(READS_MAX) {
            let Some(session) = self.sessions.current() else { break };
            let reads: Vec<FileRead> = files
                .iter()
                .filter_map(|file| {
                    let inner = file.inner.lock();
                    let (note, grant) = (inner.read_note?, inner.grant(false, session.id())?);
                    Some(FileRead { inode: file.inode, grant, seen_ctime: note.seen_ctime, at: note.at })
                })
                .collect();
            if let Err(error) = self.mutate(&Caller::ROOT, Op::NoteReads { reads }).await {
                debug!(%error, "reads not told");
            }
        }
        self.reads.telling.store(false, Ordering::Relaxed);
    }
}

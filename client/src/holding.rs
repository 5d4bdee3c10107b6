//! Tells the leader which inodes are open here and which no longer are. It notes by itself what it lets us
//! open; what we close is told late and in batches, and all that is open when a new leader asks.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_proto::InodeId;
use dfs_proto::limits::OPENS_PAGE_MAX;
use dfs_proto::msg::meta::MetaRequest;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::debug;

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::Result;
use crate::leader::ATTEMPT;
use crate::session::Session;

/// How long closed inodes collect. A file that loses its name meanwhile is kept for so much longer.
const COLLECT: Duration = Duration::from_millis(500);

#[derive(Default)]
pub(crate) struct Holding {
    inodes: Mutex<Inodes>,
    /// Something was closed.
    closed: Notify,
    /// A message about closed inodes is answered.
    told: Notify,
    /// One message at a time: an inode that is opened again must not be told as closed after that.
    telling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inodes {
    /// Opens under way.
    opening: HashMap<InodeId, usize>,
    /// No handle is left, and the leader has not been told.
    closed: BTreeSet<InodeId>,
    /// Being told.
    telling: BTreeSet<InodeId>,
}

/// While it lives, the inode counts as open.
pub(crate) struct Opening {
    client: Arc<Client>,
    pub inode: InodeId,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let holding = &self.client.holding;
        let mut inodes = holding.inodes.lock();
        if let Some(count) = inodes.opening.get_mut(&self.inode) {
            *count -= 1;
            if *count == 0 {
                inodes.opening.remove(&self.inode);
            }
        }
        drop(inodes);
        // If no handle came of it, the leader may have noted one.
        if !self.client.holds(self.inode) {
            holding.closed(self.inode);
        }
    }
}

impl Holding {
    /// The last handle is closed.
    pub fn closed(&self, inode: InodeId) {
        self.inodes.lock().closed.insert(inode);
        self.closed.notify_one();
    }
}

impl Client {
    /// To be held from before an open is sent until its handle is there. Waits while the leader is being
    /// told that the inode is closed.
    pub(crate) async fn opening(self: &Arc<Self>, inode: InodeId) -> Opening {
        loop {
            let told = self.holding.told.notified();
            if let Some(opening) = self.try_opening(inode) {
                return opening;
            }
            told.await;
        }
    }

    /// As `opening`, if there is nothing to wait for.
    pub(crate) fn try_opening(self: &Arc<Self>, inode: InodeId) -> Option<Opening> {
        let mut inodes = self.holding.inodes.lock();
        if inodes.telling.contains(&inode) {
            return None;
        }
        *inodes.opening.entry(inode).or_default() += 1;
        Some(Opening { client: self.clone(), inode })
    }

    /// Whether the inode is open here, or was opened for somebody who may come.
    fn holds(&self, inode: InodeId) -> bool {
        self.ahead.holds(inode) || self.files.is_open(inode)
    }

    /// Starts the task that tells what is closed. Must be called within a tokio runtime.
    pub(crate) fn start_telling(self: &Arc<Self>) {
        let (client, stopped) = (Arc::downgrade(self), self.stopped.clone());
        tokio::spawn(async move { stopped.run_until_cancelled(tell(client)).await });
    }

    async fn tell_closed(self: &Arc<Self>) {
        let Some(session) = self.sessions.current() else { return };
        let _alone = self.holding.telling.lock().await;
        loop {
            let page = self.take_closed();
            if page.is_empty() {
                return;
            }
            let request = MetaRequest::Closed { session: session.id(), inodes: page.clone() };
            let told = self.group.call(&request, ATTEMPT, Deadline::after(ATTEMPT)).await;
            self.holding.inodes.lock().telling.clear();
            self.holding.told.notify_waiters();
            if let Err(failed) = told {
                // Told again with the next that closes; a new leader asks for everything anyway.
                debug!(error = %failed.error, "closed files not told");
                self.holding.inodes.lock().closed.extend(page);
                return;
            }
            // One that was found by its name and opened meanwhile, which nothing could keep apart.
            let again: Vec<_> = page.into_iter().filter(|inode| self.holds(*inode)).collect();
            if !again.is_empty() {
                let request = MetaRequest::Announce { session: session.id(), inodes: again, last: false };
                if let Err(failed) = self.group.call(&request, ATTEMPT, Deadline::after(ATTEMPT)).await {
                    debug!(error = %failed.error, "files opened again not told");
                }
            }
        }
    }

    /// A page of closed inodes, which opens wait for from here on. What is open again is left out.
    fn take_closed(&self) -> Vec<InodeId> {
        let mut inodes = self.holding.inodes.lock();
        let mut page = Vec::new();
        while page.len() < OPENS_PAGE_MAX
            && let Some(inode) = inodes.closed.pop_first()
        {
            if !inodes.opening.contains_key(&inode) && !self.holds(inode) {
                page.push(inode);
            }
        }
        inodes.telling = page.iter().copied().collect();
        page
    }

    /// Tells a leader that is new what is open here.
    pub(crate) async fn announce(self: &Arc<Self>, session: &Session) -> Result<()> {
        let _alone = self.holding.telling.lock().await;
        // Before the handles that somebody may be making of them.
        let mut open = self.ahead.inodes();
        open.extend(self.files.open_inodes());
        open.extend(self.holding.inodes.lock().opening.keys());
        open.sort_unstable();
        open.dedup();
        let mut pages = open.chunks(OPENS_PAGE_MAX).peekable();
        loop {
            let inodes = pages.next().unwrap_or_default().to_vec();
            let last = pages.peek().is_none();
            let request = MetaRequest::Announce { session: session.id(), inodes, last };
            self.group.call(&request, ATTEMPT, Deadline::after(ATTEMPT)).await?;
            if last {
                return Ok(());
            }
        }
    }
}

async fn tell(client: Weak<Client>) {
    loop {
        let Some(holding) = client.upgrade().map(|client| client.holding.clone()) else { return };
        holding.closed.notified().await;
        tokio::time::sleep(COLLECT).await;
        let Some(client) = client.upgrade() else { return };
        client.tell_closed().await;
    }
}

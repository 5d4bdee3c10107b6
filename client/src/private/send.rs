//! Tells the namenode what was done in private directories, and shares them when somebody else wants to see them.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_proto::limits::{OPENS_PAGE_MAX, SEQUENCE_MAX};
use dfs_proto::msg::meta::{MetaRequest, Op, OpReply, Step};
use dfs_proto::{Caller, ErrorKind, InodeId, SessionId};
use tracing::{debug, error, warn};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::{Error, Result, unexpected_answer};
use crate::leader::ATTEMPT;

/// What nobody waits for is sent after so long.
const DELAY: Duration = Duration::from_secs(1);

/// Pause before what was refused or not answered is tried again.
const PAUSE: Duration = Duration::from_millis(300);

impl Client {
    /// Waits until the namenode has answered everything up to this position, or nothing more will be sent.
    pub(super) async fn sent(self: &Arc<Self>, position: u64, deadline: Deadline) -> Result<()> {
        loop {
            let progress = self.private.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            if self.private.state.lock().sent() >= position {
                return Ok(());
            }
            self.private.work.notify_one();
            deadline.bound("changes of names are being sent", progress).await?;
        }
    }

    /// Starts the task that sends. Must be called within a tokio runtime.
    pub(crate) fn start_sending_names(self: &Arc<Self>) {
        let (client, stopped) = (Arc::downgrade(self), self.stopped.clone());
        tokio::spawn(async move { stopped.run_until_cancelled(keep_sending(client)).await });
    }

    /// Sends all there is.
    async fn send_names(self: &Arc<Self>) {
        loop {
            let ((steps, sending), owner) = {
                let state = self.private.state.lock();
                (state.next(), state.session())
            };
            if let Some(owner) = owner {
                // Without the stream nobody can ask for a directory.
                self.watch.life(owner);
            }
            if steps.is_empty() {
                return;
            }
            let count = steps.len();
            match self.send_sequence(steps).await {
                Ok(()) => self.private.state.lock().done(sending),
                Err(failed) if failed.kind == ErrorKind::SessionExpired => {}
                // Refused as a whole by a namenode that may take it later: one without room, say.
                Err(failed) if failed.kind == ErrorKind::NoSpace || failed.kind.retryable() => {
                    debug!(error = %failed, "changes of names not sent");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(failed) => {
                    error!(error = %failed, count, "changes of names are lost: the namenodes do not take them");
                    self.private.state.lock().lose(&failed);
                }
            }
            self.private.progress.notify_waiters();
            // Bytes of files that the namenode knows only now.
            self.commit_soon();
        }
    }

    /// Lets go, in the background, of files that were replaced a while ago and that nobody has opened since.
    fn release_replaced(self: &Arc<Self>) {
        let replaced = self.private.state.lock().take_replaced();
        if replaced.is_empty() {
            return;
        }
        let client = self.clone();
        tokio::spawn(async move {
            let (open, inodes): (Vec<_>, Vec<_>) = replaced.into_iter().partition(|inode| client.files.is_open(*inode));
            for inode in open {
                client.lost_its_name(inode).await;
            }
            inodes.iter().filter_map(|inode| client.files.get(*inode)).for_each(|file| client.discard(&file));
            if !inodes.is_empty()
                && let Err(error) = client.mutate(&Caller::ROOT, Op::Release { inodes }).await
            {
                // The end of the session releases them.
                debug!(%error, "replaced files not released");
            }
        });
    }

    async fn send_sequence(self: &Arc<Self>, steps: Vec<Step>) -> Result<()> {
        let lost = || Error::new(ErrorKind::SessionExpired, "the session expired before its changes were sent");
        let Some(session) = self.sessions.current() else {
            self.private.session_over(&lost());
            return Err(lost());
        };
        let op = Op::Sequence { steps };
        match self.mutate_in(&session, &Caller::ROOT, op, Deadline::NEVER).await {
            Ok(OpReply::Sequence { grants }) => {
                grants.into_iter().for_each(|grant| self.granted(grant));
                Ok(())
            }
            Ok(_) => Err(unexpected_answer("Sequence")),
            Err(failed) => {
                if failed.error.kind == ErrorKind::SessionExpired {
                    self.session_expired(session.id());
                    self.private.session_over(&lost());
                }
                Err(failed.error)
            }
        }
    }

    /// Shares directories, with everything that was done in and below them. Does so in the background, and for each
    /// directory once at a time.
    pub(crate) fn share_directories(self: &Arc<Self>, session: SessionId, mut inodes: Vec<InodeId>) {
        {
            let mut sharing = self.private.sharing.lock();
            inodes.retain(|inode| sharing.insert(*inode));
        }
        if inodes.is_empty() {
            return;
        }
        let (client, stopped) = (self.clone(), self.stopped.clone());
        tokio::spawn(async move {
            let shared = stopped.run_until_cancelled(client.share_now(session, &inodes)).await;
            if let Some(Err(error)) = shared {
                warn!(%session, %error, "directories not shared");
            }
            let mut sharing = client.private.sharing.lock();
            sharing.retain(|inode| !inodes.contains(inode));
        });
    }

    async fn share_now(self: &Arc<Self>, session: SessionId, inodes: &[InodeId]) -> Result<()> {
        let recalled = self.private.state.lock().recall(inodes, &self.files);
        let recalled = recalled.map_err(|fault| Error::new(ErrorKind::Internal, fault.to_string()))?;
        debug!(%session, directories = recalled.directories.len(), "sharing directories");
        // Changes by others are not told of before this session has asked again.
        match &recalled.files {
            Some(files) => self.watch.lent.take_back_with_names(&[&recalled.directories[..], files].concat()).await,
            None => self.watch.lent.take_all_back().await,
        }
        // Until it is done, or the session is over: what was taken out of the copy is not found there again.
        loop {
            let Some(current) = self.sessions.current().filter(|current| current.id() == session) else {
                return Ok(());
            };
            let shared = async {
                self.sent(recalled.last, Deadline::NEVER).await?;
                self.make_known(session, recalled.files.as_deref()).await?;
                for directories in recalled.directories.chunks(SEQUENCE_MAX) {
                    let op = Op::Share { inodes: directories.to_vec() };
                    self.mutate_in(&current, &Caller::ROOT, op, Deadline::NEVER).await?;
                }
                Ok::<_, Error>(())
            };
            match shared.await {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == ErrorKind::SessionExpired => return Ok(()),
                Err(error) => debug!(%error, "directories not shared yet"),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What others will find in these files, or in any, and that they are open here.
    async fn make_known(self: &Arc<Self>, session: SessionId, files: Option<&[InodeId]>) -> Result<()> {
        let open: Vec<InodeId> = match files {
            Some(files) => files.iter().copied().filter(|inode| self.files.is_open(*inode)).collect(),
            None => self.files.open_inodes(),
        };
        for inodes in open.chunks(OPENS_PAGE_MAX) {
            let request = MetaRequest::Announce { session, inodes: inodes.to_vec(), last: false };
            self.group.call(&request, ATTEMPT, Deadline::after(ATTEMPT)).await?;
        }
        match files {
            Some(files) => self.store_all_of(files, self.deadline()).await,
            None => self.store_files(self.writes.dirty_files(), self.deadline()).await,
        }
        Ok(())
    }
}

async fn keep_sending(client: Weak<Client>) {
    loop {
        let Some(private) = client.upgrade().map(|client| client.private.clone()) else { return };
        // A delay counts from the last look, so what was done just after it waits twice as long at most.
        let _ = tokio::time::timeout(DELAY, private.work.notified()).await;
        let Some(client) = client.upgrade() else { return };
        client.release_replaced();
        client.send_names().await;
    }
}

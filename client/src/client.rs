//! What all clones of a `Dfs` share, and the calls everything else is made of.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dfs_proto::msg::meta::{Answer, MetaReply, MetaRequest, Op, OpReply, Query};
use dfs_proto::{Caller, ErrorKind, NodeId, SessionId, Timestamp};
use dfs_rpc::{Endpoint, Pool, Tls};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::config::{ClusterConfig, Options};
use crate::deadline::Deadline;
use crate::error::{Error, Result, unexpected_answer};
use crate::holding::Holding;
use crate::leader::{ATTEMPT, CallError, Group};
use crate::nodes::Nodes;
use crate::open::Files;
use crate::opened_ahead::OpenedAhead;
use crate::private::{Change, Private};
use crate::read::Reads;
use crate::session::{Renewed, Session, Sessions, session_lost};
use crate::watch::Watch;
use crate::write::Writes;

pub(crate) struct Client {
    pub config: ClusterConfig,
    pub options: Options,
    /// Connections to namenodes. They have a UDP socket of their own, so that a small request does not
    /// queue behind bulk bytes.
    meta: Pool,
    /// Connections to datanodes.
    pub data: Pool,
    pub group: Arc<Group>,
    pub sessions: Sessions,
    pub nodes: Nodes,
    pub files: Files,
    pub holding: Arc<Holding>,
    pub ahead: OpenedAhead,
    pub writes: Writes,
    pub reads: Reads,
    pub watch: Arc<Watch>,
    pub private: Arc<Private>,
    /// Cancelled by `shutdown`.
    pub stopped: CancellationToken,
}

impl Client {
    /// Must be called within a tokio runtime.
    pub fn new(config: &ClusterConfig, options: Options) -> Result<Arc<Client>> {
        let tls = Tls::load(&config.tls)?;
        if tls.identity().cluster != config.cluster {
            return Err(Error::new(
                ErrorKind::Forbidden,
                format!("the certificate is of cluster {}, not of {}", tls.identity().cluster, config.cluster),
            ));
        }
        let meta = Pool::new(Endpoint::client_on(&options.network, &tls)?);
        let data = Pool::new(Endpoint::client_on(&options.network, &tls)?);
        let namenodes = config.namenodes.iter().map(|node| (node.id, node.addr));
        let group = Arc::new(Group::new(meta.clone(), namenodes));
        let client = Arc::new(Client {
            sessions: Sessions::new(group.clone(), &options.description),
            nodes: Nodes::default(),
            files: Files::default(),
            holding: Arc::default(),
            ahead: OpenedAhead::default(),
            writes: Writes::new(&options),
            reads: Reads::new(&options),
            watch: Arc::new(Watch::new()),
            // Without the stream on which they are told nobody could ask for a directory.
            private: Private::new(options.write_behind && options.remember),
            config: config.clone(),
            options,
            meta,
            data,
            group,
            stopped: CancellationToken::new(),
        });
        client.start_committer();
        client.start_writeback_clock();
        client.start_watching();
        client.start_sending_names();
        client.start_telling();
        client.start_closing_local_files();
        Ok(client)
    }

    pub fn deadline(&self) -> Deadline {
        Deadline::of(&self.options)
    }

    /// The session, opened and kept alive from then on.
    pub async fn session(self: &Arc<Self>, deadline: Deadline) -> Result<Arc<Session>> {
        let (session, opened) = self.sessions.ensure(deadline).await?;
        if opened {
            tokio::spawn(keep_alive(Arc::downgrade(self), session.clone()));
            if self.files.any_open() {
                // From an earlier session, which has expired. Files that still have a name are kept from here on.
                let (client, session) = (self.clone(), session.clone());
                tokio::spawn(async move { client.announce(&session).await });
            }
        }
        Ok(session)
    }

    /// A change of the namespace, done exactly once. If the session has expired before anything was sent
    /// out it is done in a new one.
    pub async fn mutate(self: &Arc<Self>, caller: &Caller, mut op: Op) -> Result<OpReply> {
        let _busy = match self.change_privately(caller, &mut op).await? {
            Change::Done(reply) => return Ok(reply),
            Change::Ask(busy) => busy,
        };
        let deadline = self.deadline();
        loop {
            let session = self.session(deadline).await?;
            match self.mutate_in(&session, caller, op.clone(), deadline).await {
                Err(failed) if failed.error.kind == ErrorKind::SessionExpired && !failed.unknown => {
                    self.session_expired(session.id());
                }
                Err(failed) => {
                    if failed.error.kind == ErrorKind::SessionExpired {
                        self.session_expired(session.id());
                    }
                    return Err(failed.error);
                }
                Ok(reply) => {
                    self.changed_there(&session, &op, &reply);
                    return Ok(reply);
                }
            }
        }
    }

    /// One mutation of this very session, retried under its request number until the deadline.
    pub async fn mutate_in(
        &self,
        session: &Arc<Session>,
        caller: &Caller,
        op: Op,
        deadline: Deadline,
    ) -> std::result::Result<OpReply, CallError> {
        // Until its end, whatever that is.
        let changing = self.watch.changing(&op);
        self.watch.lent.take_back_for_change(changing.inodes(), changing.removed()).await;
        let ticket = session.begin();
        let (id, acked_below, caller) = (ticket.id(), ticket.acked_below(), caller.clone());
        let told = self.options.remember && changing.names_any();
        let request = match told.then(|| self.watch.life(session.id())).flatten() {
            Some(life) => MetaRequest::WatchedMutate { id, acked_below, caller, op, life },
            None => MetaRequest::Mutate { id, acked_below, caller, op },
        };
        let answered = self.group.call_noting(&request, ATTEMPT, deadline).await;
        let answered = answered.inspect_err(|failed| {
            if failed.unknown {
                self.watch.anything_may_have_changed();
            }
        })?;
        if answered.repeated {
            // What the first attempt changed is not told again.
            self.watch.anything_may_have_changed();
        }
        match answered.reply {
            MetaReply::Mutated(reply) => Ok(reply),
            MetaReply::MutatedWatched { reply, changed } => {
                self.watch.changed(&changed, &changing);
                Ok(reply)
            }
            MetaReply::MutatedTold { reply, changed, told, valid_ms } => {
                self.watch.told(&changed, changing, &told, Duration::from_millis(valid_ms.into()));
                Ok(reply)
            }
            _ => Err(CallError { error: unexpected_answer("Mutate"), unknown: true }),
        }
    }

    /// A linearizable read.
    pub async fn query(self: &Arc<Self>, caller: &Caller, query: Query) -> Result<Answer> {
        if let Some(answer) = self.answer_privately(caller, &query).await? {
            return Ok(answer);
        }
        let deadline = self.deadline();
        loop {
            let session = self.session(deadline).await?;
            match self.query_in(&session, caller, query.clone(), deadline).await {
                Err(error) if error.kind == ErrorKind::SessionExpired => self.session_expired(session.id()),
                other => return other,
            }
        }
    }

    /// A read that names a grant of this very session.
    pub async fn query_in(
        &self,
        session: &Session,
        caller: &Caller,
        query: Query,
        deadline: Deadline,
    ) -> Result<Answer> {
        let request = MetaRequest::Query { session: session.id(), caller: caller.clone(), query };
        match self.group.call(&request, ATTEMPT, deadline).await? {
            MetaReply::Answer(answer) => Ok(answer),
            _ => Err(unexpected_answer("Query")),
        }
    }

    /// Whatever hung on the session is gone: unsaved bytes are lost and their files say so once; clean
    /// files get new grants when they need them.
    pub fn session_expired(self: &Arc<Self>, session: SessionId) {
        if self.sessions.forget(session) {
            self.watch.session_over();
            self.private.session_over(&session_lost());
            self.abandon_writes(&session_lost());
        }
    }

    /// Tells the namenode of a bad replica, in the background.
    pub fn report_bad(
        self: &Arc<Self>,
        chunk: dfs_proto::ChunkId,
        epoch: dfs_proto::Epoch,
        node: NodeId,
        reason: String,
    ) {
        let client = self.clone();
        tokio::spawn(async move {
            let request = MetaRequest::ReportBad { chunk, epoch, node, reason };
            if let Err(failed) = client.group.call(&request, ATTEMPT, Deadline::after(REPORT)).await {
                debug!(%chunk, %node, error = %failed.error, "bad replica not reported");
            }
        });
    }

    pub async fn close_connections(&self) {
        self.data.endpoint().close().await;
        self.meta.endpoint().close().await;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stopped.cancel();
    }
}

/// A report that does not get through is no loss: the next reader reports again.
const REPORT: Duration = Duration::from_secs(10);

/// This client's clock.
pub(crate) fn now() -> Timestamp {
    let since = dfs_rpc::since_1970();
    Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

/// Renews the lease every third of it, until the session is over or nobody uses the client.
async fn keep_alive(client: Weak<Client>, session: Arc<Session>) {
    let period = Duration::from_millis(session.grant.lease_ms) / 3;
    loop {
        tokio::time::sleep(period).await;
        let Some(client) = client.upgrade() else { return };
        if client.sessions.current().is_none_or(|current| current.id() != session.id()) {
            return;
        }
        match client.sessions.renew(&session).await {
            Err(_) => {
                client.session_expired(session.id());
                return;
            }
            Ok(Renewed::Announce) => {
                if let Err(error) = client.announce(&session).await {
                    // It is asked for again with the next renewal.
                    debug!(%error, "open files not announced");
                }
            }
            Ok(Renewed::Done) => {}
        }
        // Members may have come and gone; the leader has just answered.
        client.group.learn_from_leader().await;
    }
}

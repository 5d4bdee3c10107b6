//! The parts of one namenode, shared by its server and its workers.

use std::sync::Arc;
use std::time::Duration;

use dfs_meta::{Body, Fault, Outcome, Reply, View, rows};
use dfs_proto::msg::admin::Liveness;
use dfs_proto::{ClusterId, ErrorKind, NodeId, WireError};
use dfs_rpc::Moment;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::Config;
use crate::fail_stop::FailStop;
use crate::group::Changes;
use crate::leader::{Board, Gatherings, LockWaits, Nodes, Opens, Orders, Recalls, Reign, Reports, Sessions, Watches};
use crate::raft::{Consensus, Kept};
use crate::store::reserve::Reserve;
use crate::store::state::StateStore;

/// A loop that ticks several times a second and did not tick for so long means that the process or the
/// machine stood still.
const PAUSE: Duration = Duration::from_secs(2);
/// A leader that hears nothing of a majority for so long does not call itself one: longer than an election takes.
const CONFIRM: Duration = Duration::from_secs(1);

pub struct Namenode {
    pub config: Config,
    pub cluster: ClusterId,
    pub consensus: Consensus,
    pub state: Arc<StateStore>,
    pub reserve: Reserve,
    pub fail: FailStop,
    pub reign: Reign,
    pub sessions: Sessions,
    pub watches: Arc<Watches>,
    pub nodes: Nodes,
    pub orders: Orders,
    pub reports: Reports,
    pub board: Board,
    pub gatherings: Gatherings,
    pub lock_waits: LockWaits,
    pub recalls: Recalls,
    pub opens: Arc<Opens>,
    pub changes: Changes,
    /// Something may need a copy or a drop: look now rather than at the next tick.
    pub repair_wanted: Notify,
    /// A nameless inode waits to be taken apart.
    pub reclaim_wanted: Notify,
    /// A compaction may have come a step further.
    pub compaction_wanted: Notify,
    last_tick: Mutex<Instant>,
}

impl Namenode {
    pub fn new(
        config: Config,
        cluster: ClusterId,
        consensus: Consensus,
        state: Arc<StateStore>,
        watches: Arc<Watches>,
        fail: FailStop,
    ) -> Self {
        let nodes = Nodes::new(config.timers.suspect_after(), config.timers.dead_after(), Instant::now());
        let reserve = Reserve::of(&config.data_dir);
        Namenode {
            config,
            cluster,
            consensus,
            state,
            reserve,
            fail,
            reign: Reign::default(),
            sessions: Sessions::default(),
            watches,
            nodes,
            orders: Orders::default(),
            reports: Reports::default(),
            board: Board::default(),
            gatherings: Gatherings::default(),
            lock_waits: LockWaits::default(),
            recalls: Recalls::default(),
            opens: Arc::default(),
            changes: Changes::default(),
            repair_wanted: Notify::new(),
            reclaim_wanted: Notify::new(),
            compaction_wanted: Notify::new(),
            last_tick: Mutex::new(Instant::now()),
        }
    }

    /// The term in which this node leads.
    ///
    /// # Errors
    /// `NotLeader` or, shortly after an election, `Unavailable`.
    pub fn leading(&self) -> Result<u64, WireError> {
        self.reign.require(self.config.node, self.consensus.leader())
    }

    /// Reads rows as they are now. A store that cannot be read latches and ends the process.
    pub fn read<T>(&self, read: impl FnOnce(&dyn View) -> Result<T, Fault>) -> Result<T, WireError> {
        self.state.read(read).map_err(|fault| self.faulted(&fault))
    }

    /// As `read`, on a thread where it may take a while.
    pub async fn read_long<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&dyn View) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, WireError> {
        let me = self.clone();
        tokio::task::spawn_blocking(move || me.read(read))
            .await
            .unwrap_or_else(|error| Err(WireError::new(ErrorKind::Internal, error.to_string())))
    }

    fn faulted(&self, fault: &Fault) -> WireError {
        self.fail.fail(fault.to_string());
        WireError::new(ErrorKind::Internal, fault.to_string())
    }

    /// Waits until the rows of this node, which leads, hold everything committed before the call.
    pub async fn read_barrier(&self) -> Result<(), WireError> {
        if !self.lease(Moment::now()).is_zero() {
            return Ok(());
        }
        Ok(self.consensus.read_barrier().await?)
    }

    /// Who leads, as far as this node can tell. One that has been deposed or cut off without having heard of it has itself
    /// for the leader for a while: unless it can confirm that with a majority, it names nobody.
    pub async fn known_leader(&self) -> Option<u64> {
        let leader = self.consensus.leader();
        let is_own = leader == Some(self.config.node);
        if is_own && !matches!(tokio::time::timeout(CONFIRM, self.read_barrier()).await, Ok(Ok(()))) {
            return None;
        }
        leader
    }

    /// For how long from `now` on this node certainly leads, with all that was acknowledged in its rows.
    pub fn lease(&self, now: Moment) -> Duration {
        self.reign.term().map_or(Duration::ZERO, |term| self.consensus.lease(term, now))
    }

    /// Replicates a command and returns what it answered; refusals by the state become errors too.
    pub async fn propose(&self, body: Body) -> Result<Reply, WireError> {
        self.propose_keeping(body, None).await
    }

    /// As `propose`. `kept` lasts until the command is applied or never will be in this reign, although nobody may be
    /// waiting for it any more.
    pub async fn propose_keeping(&self, body: Body, kept: Option<Kept>) -> Result<Reply, WireError> {
        let outcome: Outcome = self.consensus.propose(body, kept).await?;
        outcome
    }

    /// Called by the workers before they judge by silence. While this process stood still it heard
    /// nobody, and that is nobody's fault.
    pub fn notice_pause(&self) {
        let now = Instant::now();
        let pause = now.saturating_duration_since(std::mem::replace(&mut *self.last_tick.lock(), now));
        if pause >= PAUSE {
            tracing::warn!(pause_ms = pause.as_millis() as u64, "this process stood still");
            self.sessions.forgive(pause);
            self.nodes.forgive(pause);
        }
    }

    /// How alive a datanode is.
    pub fn liveness(&self, node: NodeId) -> Liveness {
        self.nodes.liveness(node, Instant::now())
    }

    /// Every registered datanode.
    pub fn datanodes(&self, view: &dyn View) -> Result<Vec<NodeId>, Fault> {
        Ok(rows::datanodes(view)?.into_iter().map(|(node, _)| node).collect())
    }
}

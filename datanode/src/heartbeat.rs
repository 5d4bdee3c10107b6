//! Heartbeats to every namenode, one task each, so that one that is dead delays none. Only the leader
//! answers with orders, keys, and the shards it wants to hear about in full.

pub mod group;
mod outcomes;
mod skew;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::limits::SHARD_PAGE_MAX;
use dfs_proto::msg::meta::{MetaReply, MetaRequest};
use dfs_proto::msg::node::{Heartbeat, HeartbeatReply, NodeReply, NodeRequest, Skew};
use dfs_proto::{Plane, Role};
use dfs_rpc::{Connection, RpcError, Target, call};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock;
use crate::config::NamenodeAddr;
use crate::node::Node;

pub use outcomes::Outcomes;
use skew::Samples;

/// For the answer to a heartbeat or a page of a report.
const CALL_DEADLINE: Duration = Duration::from_secs(3);

/// For saying goodbye: the namenodes notice a silent node without it.
const FAREWELL_DEADLINE: Duration = Duration::from_secs(1);

/// Unsealed replicas named in each heartbeat: 4096 of 21 bytes; shard reports have the rest.
const UNSEALED_MAX: usize = 4096;

/// Between heartbeats to the leader while copies are under way here: it orders the next one when it hears that one has
/// ended, and with a second for each way the disks would rest most of the time.
const BRISK: Duration = Duration::from_millis(250);
/// The leader needs a moment to plan, and the next order comes with the heartbeat after that.
const BRISK_FOR: Duration = Duration::from_secs(1);

/// Sends heartbeats to one namenode until `stop`, and then one more that says so.
pub async fn run(node: Arc<Node>, namenode: NamenodeAddr, stop: CancellationToken) {
    let mut link = Link::new(node.clone(), &namenode);
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            // Behind the last one: after a namenode was slow there is nothing to make up for.
            () = tokio::time::sleep(pause) => {}
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = link.beat() => {}
        }
        pause = link.pause();
    }
    if !matches!(tokio::time::timeout(FAREWELL_DEADLINE, link.send()).await, Ok(Ok(_))) {
        debug!(namenode = namenode.name, "no goodbye");
    }
}

/// One namenode, as seen from here.
struct Link {
    node: Arc<Node>,
    name: String,
    target: Target,
    /// Where the configuration says that it is, if that is elsewhere: what the group says of itself may be older.
    configured: Option<SocketAddr>,
    /// Whether the last heartbeat was answered; `None` before the first.
    reached: Option<bool>,
    clocks: Samples,
    /// The shard reports under way, at most one batch of them: a heartbeat does not wait for them.
    reporting: Option<JoinHandle<()>>,
    /// Heartbeats that a leader has answered here.
    obeyed: u32,
    /// Whether the last answer was a leader's, and when a copy was last under way, as far as it was told.
    leads: bool,
    copied: Option<Instant>,
}

impl Link {
    fn new(node: Arc<Node>, namenode: &NamenodeAddr) -> Link {
        let target = Target { plane: Plane::Meta, role: Role::Namenode, node: namenode.id, addr: namenode.addr };
        let (name, clocks) = (namenode.name.clone(), Samples::default());
        let configured = node.config.namenodes.iter().filter(|configured| configured.id == namenode.id);
        let configured = configured.map(|configured| configured.addr).find(|addr| *addr != namenode.addr);
        Link {
            node,
            name,
            target,
            configured,
            reached: None,
            clocks,
            reporting: None,
            obeyed: 0,
            leads: false,
            copied: None,
        }
    }

    /// Sends one heartbeat and does what the answer says.
    async fn beat(&mut self) {
        let result = self.send().await;
        if self.reached != Some(result.is_ok()) {
            self.reached = Some(result.is_ok());
            match &result {
                Ok(_) => info!(namenode = self.name, "namenode answers"),
                Err(error) => warn!(namenode = self.name, %error, "namenode does not answer"),
            }
        }
        self.leads = matches!(&result, Ok((_, reply, _)) if reply.leading);
        match result {
            Ok((connection, reply, carried)) if reply.leading => self.obey(connection, reply, carried),
            Ok((connection, ..)) => self.ask_a_follower(connection),
            Err(error) => {
                // The connection may be to a process that is gone: dial anew next time.
                if matches!(error, RpcError::Timeout(_)) {
                    self.node.pool.forget(&self.target);
                }
                self.clocks.clear();
                if let Some(other) = &mut self.configured {
                    std::mem::swap(other, &mut self.target.addr);
                }
            }
        }
    }

    /// Until the next heartbeat.
    fn pause(&mut self) -> Duration {
        let interval = Duration::from_millis(self.node.config.heartbeat_interval_ms);
        if !self.node.orders.copying().is_empty() {
            self.copied = Some(Instant::now());
        }
        let brisk = self.leads && self.copied.is_some_and(|at| at.elapsed() < BRISK_FOR);
        if brisk { interval.min(BRISK) } else { interval }
    }

    /// Does what the leader says. `carried` tells which outcomes it has taken in.
    fn obey(&mut self, connection: Connection, reply: HeartbeatReply, carried: u64) {
        let node = &self.node;
        if !node.follow(reply.term, reply.keys) {
            debug!(namenode = self.name, term = reply.term, "a leader of old speaks");
            return;
        }
        if self.obeyed.is_multiple_of(group::BEATS) {
            let (node, connection) = (node.clone(), connection.clone());
            tokio::spawn(async move { group::ask(&node, &connection).await });
        }
        self.obeyed = self.obeyed.wrapping_add(1);
        node.outcomes.acknowledged(carried);
        for order in reply.orders {
            node.orders.accept(order);
        }
        if !reply.want_shards.is_empty() && self.reporting.as_ref().is_none_or(|report| report.is_finished()) {
            let node = self.node.clone();
            self.reporting = Some(tokio::spawn(async move {
                if let Err(error) = report(&node, &connection, &reply.want_shards).await {
                    debug!(%error, "shard report broke off");
                }
            }));
        }
    }

    /// A namenode that came while nobody told this node of it may lead: then no leader answers here, and only those that
    /// follow it can say who it is.
    fn ask_a_follower(&self, connection: Connection) {
        let patience = Duration::from_millis(self.node.config.heartbeat_interval_ms) * group::BEATS;
        if self.node.is_unled_for(patience) {
            let node = self.node.clone();
            tokio::spawn(async move { group::ask(&node, &connection).await });
        }
    }

    /// Sends one heartbeat; the answer, and the number of the last outcome that went along.
    async fn send(&mut self) -> Result<(Connection, HeartbeatReply, u64), RpcError> {
        let connection = self.node.pool.get(&self.target).await?;
        let (heartbeat, carried) = compose(&self.node, self.clocks.best());
        let sent = heartbeat.now;
        let request = MetaRequest::Node(NodeRequest::Heartbeat(Box::new(heartbeat)));
        match call(&connection, &request, CALL_DEADLINE).await? {
            MetaReply::Node(NodeReply::Heartbeat(reply)) => {
                self.clocks.add(sent, reply.received, reply.sent, clock::now());
                Ok((connection, *reply, carried))
            }
            other => Err(RpcError::Malformed(format!("{other:?} answers no heartbeat"))),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(reporting) = self.reporting.take() {
            reporting.abort();
        }
    }
}

/// How the node stands, and the number of the last outcome in it.
fn compose(node: &Node, skew: Option<Skew>) -> (Heartbeat, u64) {
    // Asked first: digests that are complete now were complete for every line below.
    let scanned = node.store.is_scanned();
    let (outcomes, carried) = node.outcomes.pending();
    let heartbeat = Heartbeat {
        boot: node.boot,
        addr: node.addr,
        volumes: node.store.volume_status(),
        digests: node.store.digests(),
        open: node.store.unsealed(UNSEALED_MAX),
        outcomes,
        copying: node.orders.copying(),
        scanned,
        leaving: node.leaving.is_cancelled(),
        now: clock::now(),
        skew,
        scrub: node.scrub.status(),
        pace: node.store.pace(),
    };
    (heartbeat, carried)
}

/// Sends what the node has in each of the shards.
async fn report(node: &Node, connection: &Connection, shards: &[u16]) -> Result<(), RpcError> {
    for shard in shards {
        let Some(view) = node.store.shard(usize::from(*shard)) else { continue };
        // An empty shard is a page as well: it says that nothing is there.
        let pages = view.replicas.len().div_ceil(SHARD_PAGE_MAX).max(1);
        for page in 0..pages {
            let from = page * SHARD_PAGE_MAX;
            let to = view.replicas.len().min(from + SHARD_PAGE_MAX);
            let request = MetaRequest::Node(NodeRequest::ShardReport {
                shard: *shard,
                digest: view.digest,
                page: page as u32,
                last: page + 1 == pages,
                replicas: view.replicas[from..to].to_vec(),
            });
            call::<_, MetaReply>(connection, &request, CALL_DEADLINE).await?;
        }
    }
    Ok(())
}

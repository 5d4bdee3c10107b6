//! Standing connections to the other namenodes.
//!
//! Raft's calls have deadlines of a heartbeat; dialling takes longer than that, and a call that is given
//! up half way must not take the dial with it. So a task per peer keeps a connection ready, and a call
//! uses what is there or fails at once with "unreachable".

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dfs_proto::{NodeId, Plane, Role};
use dfs_rpc::{Connection, Endpoint, RpcError, Target};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

/// Pause after a failed dial, doubled up to the second value.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A dial to a peer that is down sends its packets ever more rarely; a fresh one finds it sooner once it
/// is back.
const DIAL_DEADLINE: Duration = Duration::from_secs(1);
/// How often a standing connection is looked at.
const CHECK: Duration = Duration::from_millis(100);
/// Calls in a row that went unanswered before the connection is replaced. A peer that was killed leaves
/// a connection that looks alive until it idles out; dialling anew finds the restarted peer at once.
const SILENCES_MAX: u32 = 4;

/// One peer's connection.
pub struct Link {
    node: u64,
    /// Where it may be, tried in turn; whoever answers there has to prove that it is this node.
    addrs: Mutex<Vec<SocketAddr>>,
    connection: Mutex<Option<Connection>>,
    /// Calls in a row without an answer.
    silences: AtomicU32,
    wake: Notify,
}

impl Link {
    /// The connection, if there is one that is not known to be dead.
    pub fn connection(&self) -> Option<Connection> {
        let connection = self.connection.lock().as_ref().filter(|connection| !connection.is_closed()).cloned();
        if connection.is_none() {
            self.wake.notify_one();
        }
        connection
    }

    /// Counts a call; it counts as unanswered unless `Attempt::answered` is called, also when the future
    /// that holds it is dropped at a deadline.
    pub fn attempt(self: &Arc<Self>) -> Attempt {
        Attempt { link: self.clone(), answered: false }
    }

    async fn keep_up(&self, endpoint: Endpoint, shutdown: CancellationToken) {
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            if let Some(target) = self.target(tries).filter(|_| self.needs_dialling()) {
                let dial = tokio::time::timeout(DIAL_DEADLINE, endpoint.connect(&target));
                let dialled = tokio::select! {
                    () = shutdown.cancelled() => return,
                    dialled = dial => dialled,
                };
                match dialled.unwrap_or(Err(RpcError::Timeout(DIAL_DEADLINE.as_millis()))) {
                    Ok(connection) => {
                        info!(peer = self.node, addr = %target.addr, "namenode reached");
                        self.silences.store(0, Ordering::Relaxed);
                        // The old one is not closed but dropped: a snapshot may still be moving on it.
                        *self.connection.lock() = Some(connection);
                        pause = PAUSE;
                    }
                    Err(error) => {
                        debug!(peer = self.node, %error, "namenode not reached");
                        tries += 1;
                        tokio::select! {
                            () = shutdown.cancelled() => return,
                            () = tokio::time::sleep(pause) => {}
                        }
                        pause = (pause * 2).min(PAUSE_MAX);
                        continue;
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(CHECK) => {}
            }
        }
    }

    fn target(&self, tries: usize) -> Option<Target> {
        let addrs = self.addrs.lock();
        let addr = *addrs.get(tries % addrs.len().max(1))?;
        Some(Target { plane: Plane::Raft, role: Role::Namenode, node: NodeId(self.node), addr })
    }

    fn needs_dialling(&self) -> bool {
        let silent = self.silences.load(Ordering::Relaxed) >= SILENCES_MAX;
        silent || self.connection.lock().as_ref().is_none_or(Connection::is_closed)
    }
}

/// A call under way.
pub struct Attempt {
    link: Arc<Link>,
    answered: bool,
}

impl Attempt {
    pub fn answered(mut self) {
        self.answered = true;
        self.link.silences.store(0, Ordering::Relaxed);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.answered && self.link.silences.fetch_add(1, Ordering::Relaxed) + 1 >= SILENCES_MAX {
            self.link.wake.notify_one();
        }
    }
}

/// The links to all other namenodes. Cheap to clone.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    /// No link leads to this node itself.
    me: u64,
    /// Where the configuration says others are: the first contact, and a second try for members.
    configured: BTreeMap<u64, SocketAddr>,
    shutdown: CancellationToken,
    links: Mutex<BTreeMap<u64, (Arc<Link>, CancellationToken)>>,
}

impl Links {
    /// Starts a task for each peer that the configuration names; all end at `shutdown`.
    pub fn start(
        endpoint: &Endpoint,
        me: u64,
        configured: BTreeMap<u64, SocketAddr>,
        shutdown: &CancellationToken,
    ) -> Links {
        let inner =
            Inner { endpoint: endpoint.clone(), me, configured, shutdown: shutdown.clone(), links: Mutex::default() };
        let links = Links(Arc::new(inner));
        let configured: Vec<u64> = links.0.configured.keys().copied().collect();
        for node in configured {
            links.reach(node, None);
        }
        links
    }

    /// The link to a node, made if there is none. `addr` is where the membership says it is.
    pub fn reach(&self, node: u64, addr: Option<SocketAddr>) -> Option<Arc<Link>> {
        let inner = &self.0;
        if node == inner.me {
            return None;
        }
        let mut addrs: Vec<SocketAddr> = addr.into_iter().chain(inner.configured.get(&node).copied()).collect();
        addrs.dedup();
        let mut links = inner.links.lock();
        if let Some((link, _)) = links.get(&node) {
            // Whoever does not know the address leaves what is known.
            if addr.is_some() {
                *link.addrs.lock() = addrs;
            }
            return Some(link.clone());
        }
        if addrs.is_empty() {
            return None;
        }
        let link = Arc::new(Link {
            node,
            addrs: Mutex::new(addrs),
            connection: Mutex::new(None),
            silences: AtomicU32::new(0),
            wake: Notify::new(),
        });
        let end = inner.shutdown.child_token();
        let (task, endpoint, ended) = (link.clone(), inner.endpoint.clone(), end.clone());
        tokio::spawn(async move { task.keep_up(endpoint, ended).await });
        links.insert(node, (link.clone(), end));
        Some(link)
    }

    /// Ends the links to nodes that are neither among `members` nor configured.
    pub fn forget_all_but(&self, members: &BTreeSet<u64>) {
        self.0.links.lock().retain(|node, (_, end)| {
            let stays = members.contains(node) || self.0.configured.contains_key(node);
            if !stays {
                end.cancel();
            }
            stays
        });
    }

    pub fn get(&self, node: u64) -> Option<Arc<Link>> {
        self.0.links.lock().get(&node).map(|(link, _)| link.clone())
    }

    /// Every node there is a link to.
    pub fn nodes(&self) -> Vec<u64> {
        self.0.links.lock().keys().copied().collect()
    }

    /// Whether the last calls to that node were answered.
    pub fn reachable(&self, node: u64) -> bool {
        self.get(node).is_some_and(|link| !link.needs_dialling())
    }
}

//! Standing connections to the other namenodes.
//!
//! Raft's calls have deadlines of a heartbeat; dialling takes longer than that, and a call that is given
//! up half way must not take the dial with it. So a task per peer keeps a connection ready, and a call
//! uses what is there or fails at once with "unreachable".

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

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
    target: Target,
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
        loop {
            if self.needs_dialling() {
                let dial = tokio::time::timeout(DIAL_DEADLINE, endpoint.connect(&self.target));
                let dialled = tokio::select! {
                    () = shutdown.cancelled() => return,
                    dialled = dial => dialled,
                };
                match dialled.unwrap_or(Err(RpcError::Timeout(DIAL_DEADLINE.as_millis()))) {
                    Ok(connection) => {
                        info!(peer = %self.target.node, addr = %self.target.addr, "namenode reached");
                        self.silences.store(0, Ordering::Relaxed);
                        // The old one is not closed but dropped: a snapshot may still be moving on it.
                        *self.connection.lock() = Some(connection);
                        pause = PAUSE;
                    }
                    Err(error) => {
                        debug!(peer = %self.target.node, %error, "namenode not reached");
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

/// The links to all other namenodes that the configuration names.
#[derive(Clone)]
pub struct Links(Arc<HashMap<u64, Arc<Link>>>);

impl Links {
    /// Starts a task per peer; they end at `shutdown`.
    pub fn start(
        endpoint: &Endpoint,
        targets: impl IntoIterator<Item = Target>,
        shutdown: &CancellationToken,
    ) -> Links {
        let mut links = HashMap::new();
        for target in targets {
            let link = Arc::new(Link {
                target,
                connection: Mutex::new(None),
                silences: AtomicU32::new(0),
                wake: Notify::new(),
            });
            let (task, endpoint, shutdown) = (link.clone(), endpoint.clone(), shutdown.clone());
            tokio::spawn(async move { task.keep_up(endpoint, shutdown).await });
            links.insert(target.node.0, link);
        }
        Links(Arc::new(links))
    }

    pub fn get(&self, node: u64) -> Option<Arc<Link>> {
        self.0.get(&node).cloned()
    }

    /// Whether the last calls to that node were answered.
    pub fn reachable(&self, node: u64) -> bool {
        self.get(node).is_some_and(|link| !link.needs_dialling())
    }
}

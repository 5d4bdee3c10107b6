use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;

use super::endpoint::Listener;
use crate::error::RpcError;
use crate::network::Network;

/// How long a packet takes one way, unless it was said otherwise. Timers go by the millisecond, so it takes one at least.
const DELAY: Range<Duration> = Duration::ZERO..Duration::from_millis(2);

/// When what was lost is sent again after a cut: the pauses between tries have grown with its length.
const AGAIN: Range<Duration> = Duration::from_millis(20)..Duration::from_millis(700);

/// Machines and the links between them. Clones share it.
#[derive(Clone)]
pub struct Fabric(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    /// Counts what was cut and mended.
    changes: watch::Sender<u64>,
}

struct State {
    dice: StdRng,
    listeners: HashMap<SocketAddr, Weak<Listener>>,
    /// From, to.
    cut: HashSet<(IpAddr, IpAddr)>,
    delays: HashMap<(IpAddr, IpAddr), Range<Duration>>,
    last_port: u16,
}

impl Fabric {
    /// A network whose delays follow from `seed`.
    pub fn new(seed: u64) -> Fabric {
        let state = State {
            dice: StdRng::seed_from_u64(seed),
            listeners: HashMap::new(),
            cut: HashSet::new(),
            delays: HashMap::new(),
            last_port: 40_000,
        };
        Fabric(Arc::new(Inner { state: Mutex::new(state), changes: watch::Sender::new(0) }))
    }

    /// The network as the machine with this address has it.
    pub fn host(&self, ip: IpAddr) -> Network {
        Network::Memory(Host { fabric: self.clone(), ip })
    }

    /// Nothing that `from` sends arrives at `to` any more. The other way is another link.
    pub fn cut(&self, from: IpAddr, to: IpAddr) {
        self.change(|state| {
            state.cut.insert((from, to));
        });
    }

    pub fn mend(&self, from: IpAddr, to: IpAddr) {
        self.change(|state| {
            state.cut.remove(&(from, to));
        });
    }

    pub fn mend_all(&self) {
        self.change(|state| state.cut.clear());
    }

    /// From here on packets take so long from `from` to `to`.
    pub fn delay(&self, from: IpAddr, to: IpAddr, time: Range<Duration>) {
        self.0.state.lock().delays.insert((from, to), time);
    }

    /// All links take what they took in the beginning.
    pub fn delay_as_usual(&self) {
        self.0.state.lock().delays.clear();
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock());
        self.0.changes.send_modify(|changes| *changes += 1);
    }

    pub(super) fn is_cut(&self, from: IpAddr, to: IpAddr) -> bool {
        self.0.state.lock().cut.contains(&(from, to))
    }

    /// How long the next packet takes.
    pub(super) fn draw_delay(&self, from: IpAddr, to: IpAddr) -> Duration {
        let mut state = self.0.state.lock();
        let range = state.delays.get(&(from, to)).cloned().unwrap_or(DELAY);
        state.draw(range)
    }

    /// Returns when what was sent from `from` to `to` arrives: at once, or some time after the link is mended.
    pub(super) async fn arrives(&self, from: IpAddr, to: IpAddr) {
        let mut changes = self.0.changes.subscribe();
        while self.is_cut(from, to) {
            if changes.changed().await.is_err() {
                return;
            }
            if !self.is_cut(from, to) {
                let pause = self.0.state.lock().draw(AGAIN);
                tokio::time::sleep(pause).await;
            }
        }
    }

    pub(super) fn listener(&self, addr: SocketAddr) -> Option<Arc<Listener>> {
        self.0.state.lock().listeners.get(&addr).and_then(Weak::upgrade)
    }

    pub(super) fn listen(&self, addr: SocketAddr, listener: &Arc<Listener>) -> Result<(), RpcError> {
        let mut state = self.0.state.lock();
        if state.listeners.get(&addr).is_some_and(|other| other.strong_count() > 0) {
            return Err(RpcError::Io { what: format!("cannot bind {addr}"), reason: "address in use".into() });
        }
        state.listeners.insert(addr, Arc::downgrade(listener));
        Ok(())
    }

    pub(super) fn unlisten(&self, addr: SocketAddr, listener: &Arc<Listener>) {
        let mut state = self.0.state.lock();
        if state.listeners.get(&addr).is_some_and(|known| known.as_ptr() == Arc::as_ptr(listener)) {
            state.listeners.remove(&addr);
        }
    }

    pub(super) fn free_port(&self) -> u16 {
        let mut state = self.0.state.lock();
        state.last_port = state.last_port.checked_add(1).unwrap_or(40_001);
        state.last_port
    }
}

impl State {
    fn draw(&mut self, range: Range<Duration>) -> Duration {
        if range.is_empty() { range.start } else { self.dice.random_range(range) }
    }
}

/// A machine of a network in memory.
#[derive(Clone)]
pub struct Host {
    pub(super) fabric: Fabric,
    pub(super) ip: IpAddr,
}

impl PartialEq for Host {
    fn eq(&self, other: &Host) -> bool {
        self.ip == other.ip && Arc::ptr_eq(&self.fabric.0, &other.fabric.0)
    }
}

impl Eq for Host {}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({})", self.ip)
    }
}

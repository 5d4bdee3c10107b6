//! Time that passes only when nothing is left to do, for simulations.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

/// A clock that follows tokio's, whose time may be paused. A simulation makes one within its runtime and has every
/// thread of that runtime go by it; without it every clock is the machine's.
#[derive(Clone)]
pub struct VirtualTime(Arc<Inner>);

struct Inner {
    start: Instant,
    since_1970: Duration,
    /// Pieces of work that threads of their own are doing.
    working: Mutex<usize>,
    rest: Condvar,
}

thread_local! {
    static CLOCK: RefCell<Option<VirtualTime>> = const { RefCell::new(None) };
}

impl VirtualTime {
    /// Starts at the time of the machine. Must be called within the runtime whose time it follows.
    pub fn start() -> VirtualTime {
        VirtualTime(Arc::new(Inner {
            start: Instant::now(),
            since_1970: machine_since_1970(),
            working: Mutex::new(0),
            rest: Condvar::new(),
        }))
    }

    /// From here on this thread goes by it.
    pub fn install(&self) {
        CLOCK.set(Some(self.clone()));
    }

    /// The time since it was started, as this thread sees it; `None` if the thread goes by the machine.
    pub(crate) fn elapsed() -> Option<Duration> {
        CLOCK.with_borrow(|clock| clock.as_ref().map(|clock| clock.0.start.elapsed()))
    }

    pub(crate) fn since_1970() -> Option<Duration> {
        CLOCK.with_borrow(|clock| clock.as_ref().map(|clock| clock.0.since_1970 + clock.0.start.elapsed()))
    }
}

pub(crate) fn machine_since_1970() -> Duration {
    // A clock before 1970 is shown as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Work that is handed to a thread which the runtime does not know of. tokio lets paused time pass when its own threads
/// rest; as long as this lives it does not. Costs nothing where time is not virtual.
pub struct OtherThread(Option<VirtualTime>);

impl OtherThread {
    /// Must be called on a thread of the runtime.
    pub fn begins() -> OtherThread {
        let clock = CLOCK.with_borrow(Clone::clone);
        if let Some(VirtualTime(inner)) = &clock {
            let mut working = inner.working.lock();
            *working += 1;
            if *working == 1 {
                let inner = inner.clone();
                // Time does not pass while a blocking task is under way.
                tokio::task::spawn_blocking(move || {
                    let mut working = inner.working.lock();
                    inner.rest.wait_while(&mut working, |working| *working > 0);
                });
            }
        }
        OtherThread(clock)
    }
}

impl Drop for OtherThread {
    fn drop(&mut self) {
        if let Some(VirtualTime(inner)) = &self.0 {
            *inner.working.lock() -= 1;
            inner.rest.notify_all();
        }
    }
}

//! The leader's clock: what it stamps never goes back, whoever leads.

use std::sync::Arc;

use dfs_proto::Timestamp;
use parking_lot::Mutex;

/// Hands out the time of the machine, but never a time before one that is already in the state. So
/// timestamps do not run backwards when leadership moves to a machine whose clock is behind.
#[derive(Clone, Default)]
pub struct Clock(Arc<Mutex<Timestamp>>);

impl Clock {
    /// The time now, at least the latest one observed or handed out.
    pub fn now(&self) -> Timestamp {
        let mut last = self.0.lock();
        *last = machine_time().max(*last);
        *last
    }

    /// Takes note of a time that has been applied.
    pub fn observe(&self, time: Timestamp) {
        let mut last = self.0.lock();
        *last = time.max(*last);
    }
}

/// The machine's clock as it is, for comparing it with others'.
pub fn machine_time() -> Timestamp {
    // A clock before 1970 is a broken one; what was observed then decides.
    let since = dfs_rpc::since_1970();
    Timestamp { secs: since.as_secs() as i64, nanos: since.subsec_nanos() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_backwards_behind_what_was_applied() {
        let clock = Clock::default();
        let future = Timestamp { secs: clock.now().secs + 1000, nanos: 5 };
        clock.observe(future);
        clock.observe(Timestamp { secs: 1, nanos: 0 });
        assert_eq!(clock.now(), future);
    }
}

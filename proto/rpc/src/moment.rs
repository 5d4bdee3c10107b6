//! Clocks: one for leases, and the one on the wall.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::virtual_time::{VirtualTime, machine_since_1970};

/// The time since 1970, for stamps and for what is valid until a date; in a simulation the virtual one.
pub fn since_1970() -> Duration {
    VirtualTime::since_1970().unwrap_or_else(machine_since_1970)
}

/// A moment of the clock that goes on while the machine is suspended. `Instant` stands still then, and a
/// node that woke up would believe in a lease that everybody else has long seen end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(Duration);

impl Moment {
    pub fn now() -> Moment {
        if let Some(elapsed) = VirtualTime::elapsed() {
            // What has not been heard of for ever is so in the first moment of a simulation too.
            return Moment(Duration::from_secs(24 * 3600) + elapsed);
        }
        let time = clock_gettime(ClockId::Boottime);
        Moment(Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)))
    }

    /// So long after the machine was started.
    pub fn from_boot(since: Duration) -> Moment {
        Moment(since)
    }

    /// Zero if `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward() {
        let (first, second) = (Moment::now(), Moment::now());
        assert!(second >= first && first > Moment::from_boot(Duration::ZERO));
        assert_eq!(first.since(second + Duration::from_secs(1)), Duration::ZERO);
    }
}

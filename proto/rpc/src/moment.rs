//! A clock for leases.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment of the clock that goes on while the machine is suspended. `Instant` stands still then, and a
/// node that woke up would believe in a lease that everybody else has long seen end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(Duration);

impl Moment {
    pub fn now() -> Moment {
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

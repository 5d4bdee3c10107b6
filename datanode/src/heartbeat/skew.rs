//! How far another clock is from ours, by the four time stamps of a request and its answer, as in NTP.

use std::collections::VecDeque;

use dfs_proto::Timestamp;
use dfs_proto::msg::node::Skew;

/// Of so many exchanges the one with the shortest round trip is believed: it had the least time to be lopsided.
const SAMPLES: usize = 8;

/// The last exchanges with one namenode.
#[derive(Default)]
pub struct Samples(VecDeque<Skew>);

impl Samples {
    /// Takes in an exchange: sent and answered by our clock, received and answered by theirs.
    pub fn add(&mut self, sent: Timestamp, received: Timestamp, answered: Timestamp, back: Timestamp) {
        let Some(sample) = measure(sent, received, answered, back) else { return };
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// Our clock minus theirs; `None` before the first exchange.
    pub fn best(&self) -> Option<Skew> {
        // Of equal ones the newest: clocks drift.
        self.0.iter().rev().min_by_key(|sample| sample.round_trip_ms).copied()
    }

    /// Forgets everything: a clock was set, or another process answers.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// `None` if the stamps contradict each other: a clock was set between them.
fn measure(sent: Timestamp, received: Timestamp, answered: Timestamp, back: Timestamp) -> Option<Skew> {
    let [sent, received, answered, back] = [sent, received, answered, back].map(Timestamp::as_millis);
    let round_trip = back.checked_sub(sent)?.checked_sub(answered.checked_sub(received)?)?;
    let offset = sent.checked_sub(received)?.checked_add(back.checked_sub(answered)?)? / 2;
    // A millisecond is lost in rounding each stamp.
    (round_trip >= -2).then(|| Skew { offset_ms: offset, round_trip_ms: round_trip.max(0) as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp { secs: ms.div_euclid(1000), nanos: ms.rem_euclid(1000) as u32 * 1_000_000 }
    }

    #[test]
    fn the_way_there_and_back_cancel_out() {
        // Our clock is 700 ms ahead; 20 ms each way, 5 ms in between.
        let skew = measure(at(10_700), at(10_020), at(10_025), at(10_745)).unwrap();
        assert_eq!(skew, Skew { offset_ms: 700, round_trip_ms: 40 });
        let behind = measure(at(10_000), at(13_020), at(13_025), at(10_045)).unwrap();
        assert_eq!(behind.offset_ms, -3000);
    }

    #[test]
    fn the_quickest_exchange_is_believed_and_old_ones_are_forgotten() {
        let mut samples = Samples::default();
        assert_eq!(samples.best(), None);
        // All 400 ms were on the way there: off by half of it.
        samples.add(at(0), at(400), at(400), at(400));
        assert_eq!(samples.best().unwrap().offset_ms, -200);
        samples.add(at(1000), at(1002), at(1002), at(1004));
        assert_eq!(samples.best(), Some(Skew { offset_ms: 0, round_trip_ms: 4 }));
        for second in 2..10 {
            samples.add(at(second * 1000), at(second * 1000 + 505), at(second * 1000 + 505), at(second * 1000 + 10));
        }
        assert_eq!(samples.best(), Some(Skew { offset_ms: -500, round_trip_ms: 10 }));
    }

    #[test]
    fn stamps_that_contradict_each_other_are_no_sample() {
        let mut samples = Samples::default();
        samples.add(at(5000), at(5000), at(5001), at(1000));
        samples.add(at(i64::MAX / 1_000_000), at(i64::MIN / 1_000_000), at(0), at(0));
        assert_eq!(samples.best(), None);
    }
}

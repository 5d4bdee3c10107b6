//! A window that losses do not close.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory, ControllerMetrics};
use quinn_proto::RttEstimator;

/// Datagrams that may always be under way. CUBIC takes every loss for a full queue and halves its way down to two: with
/// one packet of twenty lost at random a stream stands still most of the time, though nothing is crowded. So many are at
/// most 46 KiB on a network, which even a slow link's queue holds, and still fill a gigabit at 0.3 ms.
const FLOOR_DATAGRAMS: u64 = 32;

/// Controllers of another kind, with a floor under their window.
pub(crate) struct FlooredConfig<C>(pub Arc<C>);

impl<C: ControllerFactory + Send + Sync + 'static> ControllerFactory for FlooredConfig<C> {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Floored { inner: self.0.clone().build(now, current_mtu), mtu: current_mtu })
    }
}

struct Floored {
    inner: Box<dyn Controller>,
    mtu: u16,
}

impl Controller for Floored {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.inner.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent_congestion: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, is_persistent_congestion, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().max(FLOOR_DATAGRAMS * u64::from(self.mtu))
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = self.inner.metrics();
        metrics.congestion_window = self.window();
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Floored { inner: self.inner.clone_box(), mtu: self.mtu })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quinn::congestion::CubicConfig;

    #[test]
    fn losses_do_not_close_the_window_and_nothing_else_is_changed() {
        let (start, mtu) = (Instant::now(), 1400);
        let config = Arc::new(CubicConfig::default());
        let mut plain = config.clone().build(start, mtu);
        let mut floored = Arc::new(FlooredConfig(config)).build(start, mtu);
        assert_eq!(floored.initial_window(), plain.initial_window());
        let floor = FLOOR_DATAGRAMS * u64::from(mtu);
        let ms = std::time::Duration::from_millis;
        for round in 1..50u32 {
            for controller in [&mut plain, &mut floored] {
                controller.on_congestion_event(start + ms(10) * round, start + ms(10) * round - ms(1), true, 1400);
            }
            assert_eq!(floored.window(), plain.window().max(floor), "{round}");
        }
        assert!(plain.window() < floor);
        floored.on_mtu_update(6500);
        assert_eq!(floored.window(), FLOOR_DATAGRAMS * 6500);
    }
}

//! The latch that ends the process when a store cannot be trusted any more.

use std::sync::Arc;

use tokio::sync::watch;

/// Set once, by whoever meets a failed write, a failed sync or a damaged row. A node that goes on after
/// that could acknowledge what it has not stored: a second fsync may succeed without having written
/// what the first one lost. So the first failure is final and `run` ends with its reason.
#[derive(Clone, Debug)]
pub struct FailStop(Arc<watch::Sender<Option<String>>>);

impl Default for FailStop {
    fn default() -> Self {
        FailStop(Arc::new(watch::channel(None).0))
    }
}

impl FailStop {
    /// Latches the first reason; later ones are only logged.
    pub fn fail(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::error!(%reason, "this namenode stops");
        self.0.send_if_modified(|latched| {
            let first = latched.is_none();
            if first {
                *latched = Some(reason);
            }
            first
        });
    }

    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Returns when something failed, with the reason.
    pub async fn failed(&self) -> String {
        let mut receiver = self.0.subscribe();
        loop {
            if let Some(reason) = receiver.borrow_and_update().clone() {
                return reason;
            }
            if receiver.changed().await.is_err() {
                // The sender lives in `self`, so it cannot have been dropped.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_stays() {
        let stop = FailStop::default();
        assert_eq!(stop.reason(), None);
        stop.fail("disk");
        stop.fail("later");
        assert_eq!(stop.failed().await, "disk");
    }
}

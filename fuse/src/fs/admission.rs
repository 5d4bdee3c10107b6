//! How many operations run, how long they may take, and how much memory waits with them.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::errno::Errno;

/// Operations towards the cluster at one time. The rest waits its turn, at a few hundred bytes each; how many can
/// wait is bounded by the kernel: one for each thread that is in a system call, and 64 in the background.
const RUNNING_MAX: u32 = 1024;

/// Written bytes that wait in this process for the client to take them, in KiB. A write is copied out of the
/// session's buffer before it is known when the cluster takes it, so a stuck cluster must not collect more.
const PAYLOAD_MAX_KIB: u32 = 256 << 10;

pub struct Admission {
    running: Semaphore,
    payload: Arc<Semaphore>,
    /// `None`: wait for ever.
    deadline: Option<Duration>,
}

/// Bytes of a write, and the room they take.
pub struct Payload {
    bytes: Bytes,
    room: OwnedSemaphorePermit,
}

impl Admission {
    /// `deadline` should be above the client's own, which gives better errors; this one is the last resort.
    pub fn new(deadline: Option<Duration>) -> Admission {
        Admission {
            running: Semaphore::new(RUNNING_MAX as usize),
            payload: Arc::new(Semaphore::new(PAYLOAD_MAX_KIB as usize)),
            deadline,
        }
    }

    /// Runs an operation and answers it, at the latest at the deadline, then with ETIMEDOUT.
    ///
    /// An operation whose caller has been answered still runs to its end: cutting it off in the middle could
    /// leave half of a change behind. It keeps its place, so that what hangs stays bounded.
    pub async fn run<T>(
        &self,
        operation: impl Future<Output = Result<T, Errno>>,
        answer: impl FnOnce(Result<T, Errno>),
    ) {
        let mut operation = pin!(async {
            // The semaphore is never closed.
            let _place = self.running.acquire().await;
            operation.await
        });
        let Some(deadline) = self.deadline else { return answer(operation.await) };
        match timeout(deadline, &mut operation).await {
            Ok(result) => answer(result),
            Err(_) => {
                tracing::warn!(deadline_ms = deadline.as_millis() as u64, "operation deadline passed");
                answer(Err(Errno::TIMED_OUT));
                // A handle that opens too late is dropped with the result, which closes it.
                drop(operation.await);
            }
        }
    }

    /// Copies the bytes of a write. Fails with ENOMEM while too many wait.
    pub fn take(&self, data: &[u8]) -> Result<Payload, Errno> {
        let kib = data.len().div_ceil(1024).min(PAYLOAD_MAX_KIB as usize) as u32;
        let room = self.payload.clone().try_acquire_many_owned(kib).map_err(|_| {
            tracing::warn!("too many written bytes wait for the cluster");
            Errno::NO_MEMORY
        })?;
        Ok(Payload { bytes: Bytes::copy_from_slice(data), room })
    }

    /// Waits until nothing runs.
    pub async fn idle(&self) {
        // The semaphore is never closed.
        let _ = self.running.acquire_many(RUNNING_MAX).await;
    }
}

impl Payload {
    /// The bytes, and the room to give back when the client has taken them.
    pub fn into_parts(self) -> (Bytes, OwnedSemaphorePermit) {
        (self.bytes, self.room)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stuck_operation_is_answered_at_the_deadline_and_still_runs_to_its_end() {
        let admission = Admission::new(Some(Duration::from_secs(40)));
        let finished = AtomicBool::new(false);
        let mut answered = None;
        let started = tokio::time::Instant::now();
        admission
            .run(
                async {
                    tokio::time::sleep(Duration::from_secs(100)).await;
                    finished.store(true, Ordering::Relaxed);
                    Ok(())
                },
                |result| answered = Some((result, started.elapsed())),
            )
            .await;
        assert_eq!(answered, Some((Err(Errno::TIMED_OUT), Duration::from_secs(40))));
        assert!(finished.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hard_mount_waits_for_ever() {
        let admission = Admission::new(None);
        let mut answered = None;
        let day = Duration::from_secs(86_400);
        let operation = async {
            tokio::time::sleep(day).await;
            Ok(())
        };
        admission.run(operation, |result| answered = Some(result)).await;
        assert_eq!(answered, Some(Ok(())));
    }

    #[test]
    fn waiting_writes_have_a_bound_and_give_their_room_back() {
        let admission = Admission::new(None);
        let write = vec![1; 1 << 20];
        let waiting: Vec<Payload> = (0..256).map(|_| admission.take(&write).unwrap()).collect();
        assert_eq!(admission.take(b"x").err(), Some(Errno::NO_MEMORY));
        drop(waiting);
        assert_eq!(admission.take(b"x").unwrap().into_parts().0, &b"x"[..]);
    }
}

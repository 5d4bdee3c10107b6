//! The one thread that writes the log.
//!
//! Appends and votes go through it in the order they were sent. While one sync is running, what arrives
//! waits and then shares the next sync, so the disk is asked to flush once for all of them.

use std::sync::Arc;
use std::thread;

use dfs_rpc::OtherThread;
use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::log::{LogChange, LogDb};
use crate::fail_stop::FailStop;

/// Jobs that wait. Raft waits for its own appends, so there are never more than a few.
const QUEUE: usize = 64;
/// Bytes of entries that one sync covers at most.
const MERGE_BYTES_MAX: usize = 8 << 20;

/// Called when the changes are on the disk, or could not be brought there.
pub type Done = Box<dyn FnOnce(Result<(), String>) + Send>;

struct Job {
    changes: Vec<LogChange>,
    /// `None`: need not be on the disk soon; rides along with the next synced write.
    done: Option<(Done, OtherThread)>,
}

/// Sends work to the thread. Dropping the last handle waits until all that was sent is written and the
/// thread has let go of the database: a process must not end while a thread is still closing it, because
/// RocksDB's own globals are taken down at exit.
#[derive(Clone)]
pub struct LogWriter {
    jobs: mpsc::Sender<Job>,
    fail: FailStop,
    /// Dropped after `jobs`, whose last copy tells the thread to end.
    _thread: Arc<Thread>,
}

struct Thread(Option<thread::JoinHandle<()>>);

impl Drop for Thread {
    fn drop(&mut self) {
        // The thread itself drops a handle if a callback held the last one; it cannot wait for itself.
        if let Some(handle) = self.0.take().filter(|handle| handle.thread().id() != thread::current().id())
            && handle.join().is_err()
        {
            tracing::error!("the log writer's thread panicked");
        }
    }
}

impl LogWriter {
    pub fn start(log: Arc<LogDb>, fail: FailStop) -> Result<LogWriter, StoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let latch = fail.clone();
        let handle = thread::Builder::new()
            .name("log-writer".into())
            .spawn(move || write_all(&log, queue, &latch))
            .map_err(|source| StoreError::Io { path: "log-writer thread".into(), source })?;
        Ok(LogWriter { jobs, fail, _thread: Arc::new(Thread(Some(handle))) })
    }

    /// Queues changes and calls `done` when they are synced.
    pub async fn send(&self, changes: Vec<LogChange>, done: Done) {
        let done = Some((done, OtherThread::begins()));
        if let Err(mpsc::error::SendError(job)) = self.jobs.send(Job { changes, done }).await
            && let Some((done, _)) = job.done
        {
            done(Err(self.reason()));
        }
    }

    /// Queues changes and waits until they are synced.
    pub async fn write(&self, changes: Vec<LogChange>) -> Result<(), String> {
        let (sender, receiver) = oneshot::channel();
        self.send(
            changes,
            Box::new(move |result| {
                // Nobody waits any more: the caller was cancelled.
                let _ = sender.send(result);
            }),
        )
        .await;
        receiver.await.unwrap_or_else(|_| Err(self.reason()))
    }

    /// Queues changes that may be lost in a crash, unless the queue is full, and does not wait.
    pub fn try_write_lazily(&self, changes: Vec<LogChange>) {
        // Full or closed: what is dropped is written again with the next change.
        let _ = self.jobs.try_send(Job { changes, done: None });
    }

    /// Why nothing more is written.
    pub fn failure(&self) -> Option<String> {
        self.fail.reason()
    }

    fn reason(&self) -> String {
        self.failure().unwrap_or_else(|| "the log writer has stopped".into())
    }
}

fn write_all(log: &LogDb, mut queue: mpsc::Receiver<Job>, fail: &FailStop) {
    while let Some(first) = queue.blocking_recv() {
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(job) = next.take() {
            bytes += job.changes.iter().map(size).sum::<usize>();
            changes.extend(job.changes);
            waiting.extend(job.done);
            if bytes < MERGE_BYTES_MAX {
                next = queue.try_recv().ok();
            }
        }
        let result = log.write(&changes, !waiting.is_empty()).map_err(|error| error.to_string());
        for (done, _thread) in waiting {
            done(result.clone());
        }
        if let Err(reason) = result {
            // Latched, and the thread ends: nothing is acknowledged after a failed sync.
            fail.fail(format!("writing the log failed: {reason}"));
            queue.close();
            while let Some(job) = queue.blocking_recv() {
                if let Some((done, _)) = job.done {
                    done(Err(reason.clone()));
                }
            }
            return;
        }
    }
}

fn size(change: &LogChange) -> usize {
    match change {
        LogChange::Append { entry, .. } => entry.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn acknowledged_entries_survive_reopening_and_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        {
            let log = Arc::new(LogDb::open(dir.path()).unwrap());
            let writer = LogWriter::start(log, FailStop::default()).unwrap();
            for index in 1..=100 {
                let entry = vec![index as u8; 100];
                writer.write(vec![LogChange::Append { index, entry }]).await.unwrap();
            }
            writer.write(vec![LogChange::Truncate { from: 51 }]).await.unwrap();
        }
        // The last handle is gone, and with it the thread's hold on the database.
        let log = LogDb::open(dir.path()).unwrap();
        assert_eq!(log.last().unwrap().unwrap(), (50, vec![50; 100]));
    }
}

//! Linearizable reads: proof that this node still leads and has applied what was committed before.
//!
//! One proof costs a round to the followers. Reads that come while one is under way share the next one:
//! a proof that began before a read arrived says nothing about that read.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::node::{ProposeError, read_error};
use super::types::Raft;

/// Reads that wait for one proof. More is an overload.
const QUEUE: usize = 16_384;
/// Rounds tried before the reads are told that there is no quorum. A single one fails as soon as the
/// followers are busy for a heartbeat interval.
const ROUNDS: usize = 5;
/// How long the state may lag behind the proof.
const APPLY_DEADLINE: Duration = Duration::from_secs(5);

type Waiting = oneshot::Sender<Result<(), ProposeError>>;

#[derive(Clone)]
pub struct Barrier(mpsc::Sender<Waiting>);

impl Barrier {
    /// Starts the task; it ends when the last handle is dropped.
    pub fn start(raft: Raft) -> Barrier {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(run(raft, waiting));
        Barrier(queue)
    }

    /// Returns when everything that was committed before the call is in the state of this node, which leads.
    pub async fn pass(&self) -> Result<(), ProposeError> {
        let (reply, passed) = oneshot::channel();
        self.0.try_send(reply).map_err(|_| ProposeError::Unavailable("too many reads wait".into()))?;
        passed.await.unwrap_or_else(|_| Err(ProposeError::Unavailable("this namenode is stopping".into())))
    }
}

async fn run(raft: Raft, mut queue: mpsc::Receiver<Waiting>) {
    while let Some(first) = queue.recv().await {
        let mut all = vec![first];
        while let Ok(next) = queue.try_recv() {
            all.push(next);
        }
        let result = prove(&raft).await;
        for waiting in all {
            // Readers that have given up are not waiting.
            let _ = waiting.send(result.clone());
        }
    }
}

async fn prove(raft: &Raft) -> Result<(), ProposeError> {
    let mut last = ProposeError::Unavailable("no quorum".into());
    for _ in 0..ROUNDS {
        match tokio::time::timeout(APPLY_DEADLINE, raft.ensure_linearizable()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => {
                last = read_error(error);
                if matches!(last, ProposeError::NotLeader { .. }) {
                    return Err(last);
                }
            }
            Err(_) => return Err(ProposeError::Unavailable("the state lags behind the log".into())),
        }
    }
    Err(last)
}

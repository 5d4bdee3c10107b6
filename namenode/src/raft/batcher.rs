//! Group commit: proposals that come while one entry is on its way share the next one.
//!
//! openraft appends one entry at a time and waits for its flush, so throughput is commands per entry
//! times flushes per second. One task drains the queue into one entry, waits until that is applied, and
//! hands each proposer its own outcome. It never waits for more to come.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use dfs_meta::{Body, Command, Outcome};
use dfs_proto::codec;
use tokio::sync::{mpsc, oneshot};

use super::clock::Clock;
use super::node::{ProposeError, write_error};
use super::types::{Batch, Raft};

/// Proposals that wait. More means that the disk or the quorum does not keep up: newcomers are told to
/// come back rather than to wait for a deadline.
const QUEUE: usize = 8192;
/// Commands in one entry.
const COMMANDS_MAX: usize = 1000;
/// Encoded commands in one entry. A command that is larger by itself travels alone.
const BYTES_MAX: usize = 1 << 20;

struct Proposal {
    body: Body,
    reply: oneshot::Sender<Result<Outcome, ProposeError>>,
}

#[derive(Clone)]
pub struct Batcher {
    queue: mpsc::Sender<Proposal>,
    /// How many reasons there are to take no proposals.
    pauses: Arc<AtomicUsize>,
}

/// While it lives, proposals are refused.
pub struct Pause(Arc<AtomicUsize>);

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Batcher {
    /// Starts the task; it ends when the last handle is dropped.
    pub fn start(raft: Raft, clock: Clock) -> Batcher {
        let (queue, proposals) = mpsc::channel(QUEUE);
        tokio::spawn(run(raft, clock, proposals));
        Batcher { queue, pauses: Arc::default() }
    }

    /// Takes no proposals until the guard is dropped. Those that wait already are carried out.
    pub fn pause(&self) -> Pause {
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Pause(self.pauses.clone())
    }

    /// Stamps, proposes and returns what applying answered. Dropping the future before that leaves it
    /// open whether the command is done.
    pub async fn propose(&self, body: Body) -> Result<Outcome, ProposeError> {
        if self.pauses.load(Ordering::SeqCst) > 0 {
            return Err(ProposeError::Unavailable(
                "this namenode is not ready to lead, or is handing the lead over".into(),
            ));
        }
        let (reply, outcome) = oneshot::channel();
        self.queue.try_send(Proposal { body, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Unavailable("too many proposals wait".into()),
            mpsc::error::TrySendError::Closed(_) => ProposeError::Unavailable("this namenode is stopping".into()),
        })?;
        outcome.await.unwrap_or_else(|_| Err(ProposeError::Unavailable("this namenode is stopping".into())))
    }
}

async fn run(raft: Raft, clock: Clock, mut proposals: mpsc::Receiver<Proposal>) {
    // Encoded, but there was no room in the entry before.
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match proposals.recv().await {
                Some(first) => waiting.extend(stamp(first, &clock)),
                None => return,
            }
        }
        let (mut commands, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
        loop {
            match waiting.pop_front() {
                Some((command, reply)) if commands.is_empty() || bytes + command.len() <= BYTES_MAX => {
                    bytes += command.len();
                    commands.push(command);
                    replies.push(reply);
                }
                Some(too_much) => {
                    waiting.push_front(too_much);
                    break;
                }
                None => {}
            }
            if commands.len() >= COMMANDS_MAX {
                break;
            }
            if waiting.is_empty() {
                match proposals.try_recv() {
                    Ok(next) => waiting.extend(stamp(next, &clock)),
                    Err(_) => break,
                }
            }
        }
        if commands.is_empty() {
            continue;
        }
        deliver(raft.client_write(Batch::new(&commands)).await.map_err(write_error), replies);
    }
}

type Encoded = (Vec<u8>, oneshot::Sender<Result<Outcome, ProposeError>>);

/// Puts the time into a proposal and encodes it; `None` if nobody waits for it any more.
fn stamp(proposal: Proposal, clock: &Clock) -> Option<Encoded> {
    let Proposal { body, reply } = proposal;
    if reply.is_closed() {
        return None;
    }
    match codec::encode(&Command { now: clock.now(), body }) {
        Ok(command) => Some((command, reply)),
        Err(error) => {
            // The proposer may have gone meanwhile; then nobody needs to know.
            let _ = reply.send(Err(ProposeError::Unavailable(error.to_string())));
            None
        }
    }
}

fn deliver(
    written: Result<openraft::raft::ClientWriteResponse<super::types::TypeConfig>, ProposeError>,
    replies: Vec<oneshot::Sender<Result<Outcome, ProposeError>>>,
) {
    // A proposer that has given up is not waiting; there is nobody to tell.
    match written {
        Ok(response) => {
            for (outcome, reply) in response.data.each.into_iter().zip(replies) {
                let _ = reply.send(Ok(outcome));
            }
        }
        Err(error) => {
            for reply in replies {
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

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
use tokio::sync::{mpsc, oneshot, watch};

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

/// What is in force until it is known what became of a proposal. It is dropped then, on the batcher's task.
pub type Kept = Box<dyn Send>;

struct Proposal {
    body: Body,
    kept: Option<Kept>,
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
    /// Starts the task; it ends when the last handle is dropped. `applied_term` is that of the last entry applied here.
    ///
    /// openraft answers a proposal when its entry is applied here, or when it is cut off from the log for another leader's.
    /// A snapshot of that leader takes the place of both, and the answer never comes: whoever waited for it would wait for
    /// ever, and every proposal behind it, also when this node leads again. But once something of a later term has been
    /// applied, all that was of this one has been, or is gone.
    pub fn start(raft: Raft, clock: Clock, applied_term: watch::Receiver<u64>) -> Batcher {
        let write = move |batch| {
            let (raft, mut applied_term) = (raft.clone(), applied_term.clone());
            async move {
                let term = raft.metrics().borrow().current_term;
                tokio::select! {
                    // An answer that is there is right, whatever else has happened.
                    biased;
                    written = raft.client_write(batch) => Ok(written.map_err(write_error)?.data.each),
                    // It ends with Raft, which ends the write as well.
                    Ok(_) = applied_term.wait_for(|applied| *applied > term) => Err(ProposeError::Overtaken),
                }
            }
        };
        Batcher::start_with(write, clock)
    }

    /// `write` returns when its batch is applied, with an outcome for each command, or will not be applied while
    /// this node leads in this term.
    fn start_with<W, F>(write: W, clock: Clock) -> Batcher
    where
        W: Fn(Batch) -> F + Send + 'static,
        F: Future<Output = Result<Vec<Outcome>, ProposeError>> + Send + 'static,
    {
        let (queue, proposals) = mpsc::channel(QUEUE);
        tokio::spawn(run(write, clock, proposals));
        Batcher { queue, pauses: Arc::default() }
    }

    /// Takes no proposals until the guard is dropped. Those that wait already are carried out.
    pub fn pause(&self) -> Pause {
        self.pauses.fetch_add(1, Ordering::SeqCst);
        Pause(self.pauses.clone())
    }

    /// Stamps, proposes and returns what applying answered. Dropping the future before that leaves it
    /// open whether the command is done; `kept` lasts until that is decided.
    pub async fn propose(&self, body: Body, kept: Option<Kept>) -> Result<Outcome, ProposeError> {
        if self.pauses.load(Ordering::SeqCst) > 0 {
            return Err(ProposeError::Unavailable(
                "this namenode is not ready to lead, or is handing the lead over".into(),
            ));
        }
        let (reply, outcome) = oneshot::channel();
        self.queue.try_send(Proposal { body, kept, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Unavailable("too many proposals wait".into()),
            mpsc::error::TrySendError::Closed(_) => ProposeError::Unavailable("this namenode is stopping".into()),
        })?;
        outcome.await.unwrap_or_else(|_| Err(ProposeError::Unavailable("this namenode is stopping".into())))
    }
}

async fn run<W, F>(write: W, clock: Clock, mut proposals: mpsc::Receiver<Proposal>)
where
    W: Fn(Batch) -> F,
    F: Future<Output = Result<Vec<Outcome>, ProposeError>>,
{
    // Encoded, but there was no room in the entry before.
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            match proposals.recv().await {
                Some(first) => waiting.extend(stamp(first, &clock)),
                None => return,
            }
        }
        let (mut commands, mut answers, mut bytes) = (Vec::new(), Vec::new(), 0);
        loop {
            match waiting.pop_front() {
                Some((command, answer)) if commands.is_empty() || bytes + command.len() <= BYTES_MAX => {
                    bytes += command.len();
                    commands.push(command);
                    answers.push(answer);
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
        deliver(write(Batch::new(&commands)).await, answers);
    }
}

/// Who gets the outcome, and what lasts until then.
struct Answer {
    reply: oneshot::Sender<Result<Outcome, ProposeError>>,
    kept: Option<Kept>,
}

/// Puts the time into a proposal and encodes it; `None` if nobody waits for it any more.
fn stamp(proposal: Proposal, clock: &Clock) -> Option<(Vec<u8>, Answer)> {
    let Proposal { body, kept, reply } = proposal;
    if reply.is_closed() {
        return None;
    }
    match codec::encode(&Command { now: clock.now(), body }) {
        Ok(command) => Some((command, Answer { reply, kept })),
        Err(error) => {
            // The proposer may have gone meanwhile; then nobody needs to know.
            let _ = reply.send(Err(ProposeError::Unavailable(error.to_string())));
            None
        }
    }
}

fn deliver(written: Result<Vec<Outcome>, ProposeError>, answers: Vec<Answer>) {
    // A proposer that has given up is not waiting; there is nobody to tell.
    match written {
        Ok(outcomes) => {
            for (outcome, Answer { reply, kept }) in outcomes.into_iter().zip(answers) {
                drop(kept);
                let _ = reply.send(Ok(outcome));
            }
        }
        Err(error) => {
            for Answer { reply, kept } in answers {
                drop(kept);
                let _ = reply.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use dfs_meta::Reply;
    use tokio::sync::Semaphore;

    use super::*;

    /// Says when it is dropped.
    fn kept() -> (Option<Kept>, watch::Receiver<()>) {
        let (sender, receiver) = watch::channel(());
        (Some(Box::new(sender)), receiver)
    }

    /// Each batch is applied when it gets a permit, and `begun` says that one waits for it.
    fn batcher(permits: Arc<Semaphore>, begun: watch::Sender<usize>) -> Batcher {
        let write = move |batch: Batch| {
            let permits = permits.clone();
            begun.send_modify(|count| *count += 1);
            async move {
                permits.acquire().await.unwrap().forget();
                Ok(batch.decode().unwrap().iter().map(|_| Ok(Reply::Done)).collect())
            }
        };
        Batcher::start_with(write, Clock::default())
    }

    #[tokio::test]
    async fn what_is_kept_lasts_until_the_proposal_is_decided_however_soon_its_proposer_gives_up() {
        let permits = Arc::new(Semaphore::new(0));
        let (sender, mut begun) = watch::channel(0);
        let batcher = batcher(permits.clone(), sender);
        let (first, mut of_first) = kept();
        {
            let mut proposal = pin!(batcher.propose(Body::CheckState, first));
            let mut context = Context::from_waker(Waker::noop());
            assert!(proposal.as_mut().poll(&mut context).is_pending());
            begun.wait_for(|count| *count == 1).await.unwrap();
        }
        // Still in the queue when its proposer gives up: it is never proposed.
        let (second, mut of_second) = kept();
        {
            let mut proposal = pin!(batcher.propose(Body::CheckState, second));
            let mut context = Context::from_waker(Waker::noop());
            assert!(proposal.as_mut().poll(&mut context).is_pending());
        }
        assert!(of_first.has_changed().is_ok() && of_second.has_changed().is_ok());

        permits.add_permits(2);
        of_first.changed().await.unwrap_err();
        of_second.changed().await.unwrap_err();
        let (third, of_third) = kept();
        batcher.propose(Body::CheckState, third).await.unwrap().unwrap();
        assert!(of_third.has_changed().is_err(), "it is over before the proposer hears of it");
        assert_eq!(*begun.borrow(), 2);
    }
}

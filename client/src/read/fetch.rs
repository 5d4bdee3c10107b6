//! Verified bytes of one chunk from whichever replica has them.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::limits::FRAME_MAX;
use dfs_proto::msg::data::{DataRequest, FRAME_HEADER_LEN, ReadReply};
use dfs_proto::msg::meta::{ChunkLocation, ReplicaAt};
use dfs_proto::{Capability, ChunkId, Epoch, ErrorKind, Extent, FrameHeader, NodeId, Plane, Role, WireError};
use dfs_rpc::{RecvStream, RpcError, Target};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::open::FileState;
use crate::read::{Front, is_outdated};

/// A replica that delivers nothing for so long is given up.
const PROGRESS: Duration = Duration::from_secs(5);

/// Between two rounds in which every replica that counts was bad, by the namenode's latest word. It may have been
/// wrong to ask at that moment: a chunk is being deleted, or a replica has just been replaced.
const BAD_PAUSE: Duration = Duration::from_millis(500);

/// So many rounds of that kind, and what they do not give is lost.
const BAD_ROUNDS: u32 = 2;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// The file has nothing in this chunk any more.
pub(crate) struct Moved;

/// Why one replica did not deliver.
#[derive(Debug)]
enum Miss {
    /// It is missing there, short, or its bytes are wrong.
    Bad(String),
    /// The location or the capability is out of date.
    Outdated(String),
    /// The node did not answer, or not now.
    Away(String),
}

impl From<RpcError> for Miss {
    fn from(error: RpcError) -> Miss {
        match error {
            RpcError::Refused(WireError { kind: ErrorKind::BadReplica | ErrorKind::Corrupt, message, .. }) => {
                Miss::Bad(message)
            }
            RpcError::Refused(error) if is_outdated(error.kind) => Miss::Outdated(error.message),
            RpcError::Malformed(message) => Miss::Bad(message),
            other => Miss::Away(other.to_string()),
        }
    }
}

/// A round over all replicas in which none delivered everything.
struct Round {
    all_bad: bool,
    outdated: bool,
    /// The deadline came before all had answered.
    cut_short: bool,
    last: String,
    /// The most that one of them delivered, verified.
    front: Bytes,
    /// Who had what wrong with it.
    bad: Vec<(NodeId, String)>,
}

impl Client {
    /// The extent's bytes, as many of them as can be had. Goes on trying until the deadline: a node may come back. But
    /// where all that count have said that they are bad, nobody is waited for.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        extent: &Extent,
        deadline: Deadline,
    ) -> Result<Front, Moved> {
        let chunk = extent.chunk;
        let mut left = *extent;
        let mut parts: Vec<Bytes> = Vec::new();
        // With whether it is the namenode's latest word.
        let mut known = self.reads.location(chunk).map(|location| (location, false));
        let mut pause = PAUSE_MIN;
        let mut bad_rounds = 0;
        // Of the last round in which every replica had its say.
        let mut verdict = None;
        let rest = loop {
            let (location, fresh) = match known.take() {
                Some(known) => known,
                None => match self.relocate(file, chunk).await {
                    Ok(location) => (location.ok_or(Moved)?, true),
                    Err(error) => break Some(verdict.unwrap_or(error)),
                },
            };
            // What is asked about now was committed before.
            if fresh && left.chunk_end() > location.len {
                self.reads.ends_at(chunk, location.len);
            }
            let end = self.reads.end_of(chunk).map_or(left.len, |end| end.saturating_sub(left.chunk_offset));
            let Some(there) = left.clip(left.file_offset, left.file_offset + u64::from(end)) else {
                break Some(lost(&left));
            };
            let round = match self.fetch_from_any(&location, &there, deadline).await {
                Ok(bytes) => {
                    parts.push(bytes);
                    match left.clip(there.file_end(), u64::MAX) {
                        None => break None,
                        Some(behind) => break Some(lost(&behind)),
                    }
                }
                Err(round) => round,
            };
            debug!(%chunk, reason = round.last, "no replica delivered");
            // What was remembered may be older than the chunk's end, or than the replicas.
            if fresh {
                self.report(&location, &round);
            }
            if let Some(behind) = left.clip(left.file_offset + round.front.len() as u64, u64::MAX)
                && !round.front.is_empty()
            {
                // What one has damaged another may have: it is asked for what is missing now.
                left = behind;
                parts.push(round.front);
                (known, pause, bad_rounds, verdict) = (Some((location, fresh)), PAUSE_MIN, 0, None);
                continue;
            }
            if verdict.is_none() || !round.cut_short {
                verdict = Some(gave_up(&left, &round));
            }
            bad_rounds = if round.all_bad && fresh { bad_rounds + 1 } else { 0 };
            if deadline.passed() || bad_rounds == BAD_ROUNDS {
                break verdict;
            }
            if round.all_bad {
                let wait = if fresh { BAD_PAUSE } else { Duration::ZERO };
                tokio::time::sleep(deadline.cap(wait)).await;
                continue;
            }
            // The remembered location may just be old.
            if !round.outdated || pause > PAUSE_MIN {
                tokio::time::sleep(deadline.cap(pause)).await;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        };
        let bytes = if parts.len() == 1 { parts.swap_remove(0) } else { Bytes::from(parts.concat()) };
        Ok(Front { bytes, rest })
    }

    async fn fetch_from_any(
        self: &Arc<Self>,
        location: &ChunkLocation,
        extent: &Extent,
        deadline: Deadline,
    ) -> Result<Bytes, Round> {
        let chunk = location.chunk;
        if let Some(bytes) = self.read_cached(location, extent) {
            return Ok(bytes);
        }
        let mut round = Round {
            all_bad: true,
            outdated: false,
            cut_short: false,
            last: "it has no replica".into(),
            front: Bytes::new(),
            bad: Vec::new(),
        };
        let Some(capability) = &location.capability else {
            round.all_bad = false;
            round.outdated = true;
            round.last = "no capability for it is known".into();
            return Err(round);
        };
        let mut candidates = self.nodes.order(&location.replicas).into_iter();
        let mut asked = FuturesUnordered::new();
        // A replica that has not delivered everything by then gets company; the first to finish wins.
        let (patience, started) = (self.nodes.patience(), Instant::now());
        let ask = |replica| self.ask_replica(replica, chunk, extent, capability.clone());
        asked.extend(candidates.next().map(ask));
        loop {
            let wait = if candidates.len() > 0 { deadline.cap(patience) } else { deadline.cap(Duration::MAX / 4) };
            tokio::select! {
                answer = asked.next() => match answer {
                    Some((replica, Ok(bytes))) => {
                        self.nodes.trust(replica.node);
                        self.nodes.read_took(started.elapsed());
                        self.report(location, &round);
                        return Ok(bytes);
                    }
                    Some((replica, Err((front, miss)))) => {
                        self.note(&mut round, chunk, replica, miss);
                        if front.len() > round.front.len() {
                            round.front = front;
                        }
                        asked.extend(candidates.next().map(ask));
                    }
                    None => return Err(round),
                },
                () = tokio::time::sleep(wait) => {
                    if deadline.passed() {
                        round.all_bad = false;
                        round.cut_short = true;
                        round.last = "the deadline passed while it was read".into();
                        return Err(round);
                    }
                    asked.extend(candidates.next().map(ask));
                }
            }
        }
    }

    fn note(&self, round: &mut Round, chunk: ChunkId, replica: ReplicaAt, miss: Miss) {
        let node = replica.node;
        round.all_bad &= matches!(miss, Miss::Bad(_));
        round.outdated |= matches!(miss, Miss::Outdated(_));
        round.last = match miss {
            Miss::Bad(reason) => {
                warn!(%chunk, %node, reason, "bad replica");
                round.bad.push((node, reason.clone()));
                reason
            }
            Miss::Outdated(reason) => reason,
            Miss::Away(reason) => {
                self.nodes.suspect(node);
                reason
            }
        };
    }

    /// Tells the namenode of the bad replicas that a round has met.
    fn report(self: &Arc<Self>, location: &ChunkLocation, round: &Round) {
        for (node, reason) in &round.bad {
            self.report_bad(location.chunk, location.epoch, *node, reason.clone());
        }
    }

    async fn ask_replica(
        &self,
        replica: ReplicaAt,
        chunk: ChunkId,
        extent: &Extent,
        capability: Capability,
    ) -> (ReplicaAt, Result<Bytes, (Bytes, Miss)>) {
        let _reading = self.nodes.reading(replica.node);
        if let Some(file) = self.local_file(&replica, chunk, extent.chunk_end(), &capability).await {
            let (offset, len) = (extent.chunk_offset, extent.len);
            let read = tokio::task::spawn_blocking(move || {
                let failed = |(front, reason)| {
                    let miss = if file.is_removed() { Miss::Outdated(reason) } else { Miss::Bad(reason) };
                    (front, miss)
                };
                file.read(offset, len).map_err(failed)
            });
            let outcome = match read.await {
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(missed)) => {
                    self.close_local_file(chunk, replica.node);
                    Err(missed)
                }
                Err(error) => Err((Bytes::new(), Miss::Away(error.to_string()))),
            };
            return (replica, outcome);
        }
        let request = DataRequest::Read {
            chunk,
            // A byte of a chunk is written once: a replica that has it has the right one, at any epoch.
            // One that has not is short, which shows.
            epoch: Epoch::FIRST,
            offset: extent.chunk_offset,
            len: extent.len,
            capability,
        };
        let target = Target { plane: Plane::Data, role: Role::Datanode, node: replica.node, addr: replica.addr };
        let started = within_progress(async {
            let (mut send, mut recv) = self.data.get(&target).await?.open().await?;
            send.send(&request).await?;
            send.finish();
            recv.recv::<Result<ReadReply, WireError>>().await?.map_err(RpcError::Refused)?;
            Ok(recv)
        });
        let outcome = match started.await {
            Ok(recv) => receive(recv, chunk, extent.chunk_offset, extent.len).await,
            Err(error) => Err((Bytes::new(), error.into())),
        };
        (replica, outcome)
    }
}

/// Receives frames until the range is complete; what there is of it comes with the reason why it is not.
async fn receive(mut recv: RecvStream, chunk: ChunkId, offset: u32, len: u32) -> Result<Bytes, (Bytes, Miss)> {
    // The first and the last frame may reach beyond the range.
    let mut frames = BytesMut::with_capacity((len + 2 * FRAME_MAX) as usize);
    let mut reached = None;
    let complete = loop {
        if reached.is_some_and(|reached| reached >= offset + len) {
            break Ok(());
        }
        match receive_frame(&mut recv, chunk, offset, reached, &mut frames).await {
            Ok(Some(end)) => reached = Some(end),
            Ok(None) => break Err(Miss::Bad(format!("it ends before {}", offset + len))),
            Err(miss) => break Err(miss),
        }
    };
    // Every frame in it was verified, and they end where the last one does.
    let skip = reached.map_or(0, |reached| frames.len() - (reached - offset) as usize);
    let range = frames.freeze();
    let range = range.slice(skip..range.len().min(skip + len as usize));
    complete.map(|()| range.clone()).map_err(|miss| (range, miss))
}

/// Receives one frame behind `reached`, or the one with byte `offset`, and verifies it before the next is asked for;
/// where it ends, or `None` if there is none.
async fn receive_frame(
    recv: &mut RecvStream,
    chunk: ChunkId,
    offset: u32,
    reached: Option<u32>,
    frames: &mut BytesMut,
) -> Result<Option<u32>, Miss> {
    let mut head = [0; FRAME_HEADER_LEN];
    if !within_progress(recv.read_exact_or_end(&mut head)).await? {
        return Ok(None);
    }
    let header = FrameHeader::from_bytes(&head).ok_or_else(|| Miss::Bad("a frame header is not sound".into()))?;
    let follows = match reached {
        None => header.offset <= offset && offset < header.end(),
        Some(reached) => header.offset == reached,
    };
    if !follows {
        return Err(Miss::Bad(format!("the frame at {} does not follow", header.offset)));
    }
    let start = frames.len();
    frames.resize(start + header.len as usize, 0);
    let received = within_progress(recv.read_exact(&mut frames[start..])).await;
    if received.is_ok() && header.matches(chunk, &frames[start..]) {
        return Ok(Some(header.end()));
    }
    frames.truncate(start);
    received?;
    Err(Miss::Bad(format!("the frame at {} does not match its digest", header.offset)))
}

async fn within_progress<T>(work: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    tokio::time::timeout(PROGRESS, work).await.unwrap_or(Err(RpcError::Timeout(PROGRESS.as_millis())))
}

fn gave_up(left: &Extent, round: &Round) -> Error {
    let Extent { chunk, file_offset, .. } = left;
    if round.all_bad {
        let text = format!("no good replica of chunk {chunk}, byte {file_offset} of the file, is left: {}", round.last);
        Error::new(ErrorKind::Corrupt, text)
            .with_hint("`dfs fsck` shows the files concerned; a node that holds a copy may come back")
    } else {
        Error::new(ErrorKind::Timeout, format!("chunk {chunk} could not be read in time: {}", round.last))
            .with_hint("`dfs status` shows which datanodes are away")
    }
}

/// The end of a chunk was cut off.
fn lost(left: &Extent) -> Error {
    let text = format!(
        "bytes {} to {} of the file are lost: they were not synced when the power went, and no disk has them",
        left.file_offset,
        left.file_end()
    );
    Error::new(ErrorKind::Corrupt, text)
        .with_hint("`dfs fsck` names all such files; overwriting the range or deleting the file ends it")
}

//! Verified bytes of one chunk from whichever replica has them.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dfs_proto::limits::FRAME_MAX;
use dfs_proto::msg::data::{DataRequest, FRAME_HEADER_LEN, ReadReply};
use dfs_proto::msg::meta::{ChunkLocation, ReplicaAt};
use dfs_proto::{Capability, ChunkId, Epoch, ErrorKind, Extent, FrameHeader, Plane, Role, WireError};
use dfs_rpc::{RecvStream, RpcError, Target};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::client::Client;
use crate::deadline::Deadline;
use crate::error::Error;
use crate::open::FileState;
use crate::read::is_outdated;

/// A replica that delivers nothing for so long is given up.
const PROGRESS: Duration = Duration::from_secs(5);

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

pub(crate) enum FetchError {
    /// The file has nothing in this chunk any more.
    Moved,
    Failed(Error),
}

impl From<Error> for FetchError {
    fn from(error: Error) -> FetchError {
        FetchError::Failed(error)
    }
}

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

/// A round over all replicas in which none delivered.
struct Round {
    all_bad: bool,
    outdated: bool,
    /// The deadline came before all had answered.
    cut_short: bool,
    last: String,
}

impl Client {
    /// The extent's bytes. Goes on trying until the deadline: a node may come back.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        extent: &Extent,
        deadline: Deadline,
    ) -> Result<Bytes, FetchError> {
        let chunk = extent.chunk;
        let mut known = self.reads.location(chunk);
        let mut pause = PAUSE_MIN;
        // Of the last round in which every replica had its say.
        let mut verdict = None;
        loop {
            let location = match known.take() {
                Some(location) => location,
                None => match self.relocate(file, chunk).await {
                    Ok(location) => location.ok_or(FetchError::Moved)?,
                    Err(error) => return Err(FetchError::Failed(verdict.unwrap_or(error))),
                },
            };
            let round = match self.fetch_from_any(&location, extent, deadline).await {
                Ok(bytes) => return Ok(bytes),
                Err(round) => round,
            };
            debug!(%chunk, reason = round.last, "no replica delivered");
            if verdict.is_none() || !round.cut_short {
                verdict = Some(gave_up(chunk, &round));
            }
            if deadline.passed() {
                return Err(FetchError::Failed(verdict.unwrap_or_else(|| gave_up(chunk, &round))));
            }
            // The remembered location may just be old.
            if !round.outdated || pause > PAUSE_MIN {
                tokio::time::sleep(deadline.cap(pause)).await;
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn fetch_from_any(
        self: &Arc<Self>,
        location: &ChunkLocation,
        extent: &Extent,
        deadline: Deadline,
    ) -> Result<Bytes, Round> {
        let chunk = location.chunk;
        let mut round = Round { all_bad: true, outdated: false, cut_short: false, last: "it has no replica".into() };
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
                        return Ok(bytes);
                    }
                    Some((replica, Err(miss))) => {
                        self.note(&mut round, location, replica, miss);
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

    fn note(self: &Arc<Self>, round: &mut Round, location: &ChunkLocation, replica: ReplicaAt, miss: Miss) {
        let (chunk, node) = (location.chunk, replica.node);
        round.all_bad &= matches!(miss, Miss::Bad(_));
        round.outdated |= matches!(miss, Miss::Outdated(_));
        round.last = match miss {
            Miss::Bad(reason) => {
                warn!(%chunk, %node, reason, "bad replica");
                self.report_bad(chunk, location.epoch, node, reason.clone());
                reason
            }
            Miss::Outdated(reason) => reason,
            Miss::Away(reason) => {
                self.nodes.suspect(node);
                reason
            }
        };
    }

    async fn ask_replica(
        &self,
        replica: ReplicaAt,
        chunk: ChunkId,
        extent: &Extent,
        capability: Capability,
    ) -> (ReplicaAt, Result<Bytes, Miss>) {
        let _reading = self.nodes.reading(replica.node);
        if let Some(file) = self.local_file(&replica, chunk, &capability).await {
            let (offset, len) = (extent.chunk_offset, extent.len);
            let read = tokio::task::spawn_blocking(move || file.read(offset, len)).await;
            let outcome = match read {
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(reason)) => {
                    self.close_local_file(chunk, replica.node);
                    Err(Miss::Bad(reason))
                }
                Err(error) => Err(Miss::Away(error.to_string())),
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
            Err(error) => Err(error.into()),
        };
        (replica, outcome)
    }
}

/// Receives frames until the range is complete, each verified before the next is asked for.
async fn receive(mut recv: RecvStream, chunk: ChunkId, offset: u32, len: u32) -> Result<Bytes, Miss> {
    let end = offset + len;
    // The first and the last frame may reach beyond the range.
    let mut buffer = BytesMut::with_capacity((len + 2 * FRAME_MAX) as usize);
    let mut first = None;
    let mut reached = None;
    while reached.is_none_or(|reached| reached < end) {
        let mut head = [0; FRAME_HEADER_LEN];
        if !within_progress(recv.read_exact_or_end(&mut head)).await? {
            return Err(Miss::Bad(format!("it ends before {end}")));
        }
        let header = FrameHeader::from_bytes(&head).ok_or_else(|| Miss::Bad("a frame header is not sound".into()))?;
        let follows = match reached {
            None => header.offset <= offset && offset < header.end(),
            Some(reached) => header.offset == reached,
        };
        if !follows {
            return Err(Miss::Bad(format!("the frame at {} does not follow", header.offset)));
        }
        let start = buffer.len();
        buffer.resize(start + header.len as usize, 0);
        within_progress(recv.read_exact(&mut buffer[start..])).await?;
        if !header.matches(chunk, &buffer[start..]) {
            return Err(Miss::Bad(format!("the frame at {} does not match its digest", header.offset)));
        }
        first.get_or_insert(header.offset);
        reached = Some(header.end());
    }
    let skip = (offset - first.unwrap_or(offset)) as usize;
    Ok(buffer.freeze().slice(skip..skip + len as usize))
}

async fn within_progress<T>(work: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    tokio::time::timeout(PROGRESS, work).await.unwrap_or(Err(RpcError::Timeout(PROGRESS.as_millis())))
}

fn gave_up(chunk: ChunkId, round: &Round) -> Error {
    if round.all_bad {
        Error::new(ErrorKind::Corrupt, format!("no good replica of chunk {chunk} is left: {}", round.last))
            .with_hint("`dfs fsck` shows the files concerned; a node that holds a copy may come back")
    } else {
        Error::new(ErrorKind::Timeout, format!("chunk {chunk} could not be read in time: {}", round.last))
            .with_hint("`dfs status` shows which datanodes are away")
    }
}

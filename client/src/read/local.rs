//! Chunk files of datanodes on this machine, read without the network: sealed chunks only, verified frame by frame
//! like everything else. Whatever goes wrong on the way to a file is no failure: the bytes come over the network then.
//!
//! One task keeps the stream to each datanode. When it ends, because the datanode has ended for example, the files that
//! came through it are closed, so that the disk below them can be unmounted.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_proto::limits::CHUNK_FRAMES_MAX;
use dfs_proto::msg::data::{DataRequest, FRAME_HEADER_LEN, LocalChunk, LocalDoor, LocalHello, LocalOpen};
use dfs_proto::msg::meta::ReplicaAt;
use dfs_proto::{Capability, ChunkId, FrameHeader, NodeId, Plane, Role, WireError};
use dfs_rpc::{LocalStream, RpcError, Target};
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, pread};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::client::Client;

/// Files held open. Space of a chunk that was deleted is free when nobody holds its file any more.
const FILES_MAX: usize = 256;

/// Frame headers of all these files: 40 MiB.
const FRAMES_MAX: usize = 1 << 20;

/// A file that was not read for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// For asking a datanode of this machine for a file. Longer than that, and the network is quicker.
const OPEN_DEADLINE: Duration = Duration::from_millis(500);

/// A datanode that owes an answer for so long gets no more questions through this stream.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Questions that wait for one datanode.
const ASKS_MAX: usize = 16;

/// How long a datanode that is elsewhere, or whose door is shut, is not asked again.
const ELSEWHERE: Duration = Duration::from_secs(60);
const SHUT: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(crate) struct Local {
    doors: Mutex<HashMap<NodeId, Arc<Door>>>,
    /// Also in the hands of the tasks that keep the streams, which must not keep these alive.
    files: Arc<Mutex<Files>>,
}

/// The way to one datanode.
#[derive(Default)]
struct Door {
    /// To the task that keeps the stream.
    asks: tokio::sync::Mutex<Option<mpsc::Sender<Ask>>>,
    shut_until: Mutex<Option<Instant>>,
}

/// A question for a chunk's file.
struct Ask {
    chunk: ChunkId,
    capability: Capability,
    answer: oneshot::Sender<Option<Arc<ChunkFile>>>,
}

impl Door {
    fn is_shut(&self) -> bool {
        self.shut_until.lock().is_some_and(|until| Instant::now() < until)
    }

    fn shut(&self, time: Duration) {
        *self.shut_until.lock() = Some(Instant::now() + time);
    }
}

#[derive(Default)]
struct Files {
    open: HashMap<(ChunkId, NodeId), Held>,
    frames: usize,
}

struct Held {
    file: Arc<ChunkFile>,
    used: Instant,
}

impl Files {
    fn get(&mut self, key: (ChunkId, NodeId), now: Instant) -> Option<Arc<ChunkFile>> {
        let held = self.open.get_mut(&key)?;
        held.used = now;
        Some(held.file.clone())
    }

    fn insert(&mut self, key: (ChunkId, NodeId), file: Arc<ChunkFile>, now: Instant) {
        self.remove(key);
        self.frames += file.frames.len();
        self.open.insert(key, Held { file, used: now });
        while self.open.len() > FILES_MAX || self.frames > FRAMES_MAX {
            let Some((&oldest, _)) = self.open.iter().min_by_key(|(_, held)| held.used) else { return };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, key: (ChunkId, NodeId)) {
        if let Some(held) = self.open.remove(&key) {
            self.frames -= held.file.frames.len();
        }
    }

    fn close_idle(&mut self, now: Instant) {
        self.close(|_, held| now.duration_since(held.used) >= IDLE);
    }

    fn close_of(&mut self, node: NodeId) {
        self.close(|of, _| of == node);
    }

    fn close(&mut self, which: impl Fn(NodeId, &Held) -> bool) {
        let keys: Vec<_> =
            self.open.iter().filter(|((_, node), held)| which(*node, held)).map(|(key, _)| *key).collect();
        keys.into_iter().for_each(|key| self.remove(key));
    }
}

/// A sealed chunk's file.
pub(super) struct ChunkFile {
    chunk: ChunkId,
    file: File,
    data_start: u64,
    /// One behind the other from the start of the chunk to its end.
    frames: Vec<FrameHeader>,
}

impl ChunkFile {
    /// `None` if the frames leave gaps or do not end where the chunk does.
    fn new(chunk: ChunkId, found: &LocalChunk, file: File, frames: Vec<FrameHeader>) -> Option<ChunkFile> {
        let mut end = 0;
        for frame in &frames {
            if frame.offset != end {
                return None;
            }
            end = frame.end();
        }
        (end == found.len).then_some(ChunkFile { chunk, file, data_start: found.data_start, frames })
    }

    /// Exactly these bytes, verified. Blocks for the disk. The error says what is wrong with the replica, and has the
    /// bytes in front of that.
    pub fn read(&self, offset: u32, len: u32) -> Result<Bytes, (Bytes, String)> {
        let end = offset + len;
        let first = self.frames.partition_point(|frame| frame.end() <= offset);
        let behind = self.frames.partition_point(|frame| frame.offset < end);
        let wanted =
            self.frames.get(first..behind).filter(|wanted| wanted.last().is_some_and(|last| last.end() >= end));
        let Some(wanted) = wanted else {
            let here = self.frames.last().map_or(0, FrameHeader::end);
            let front = if here > offset { self.read(offset, here - offset) } else { Ok(Bytes::new()) };
            return Err((front.unwrap_or_else(|(front, _)| front), format!("it ends before {end}")));
        };
        let start = wanted[0].offset;
        let total = (wanted[wanted.len() - 1].end() - start) as usize;
        let bytes = read_at(&self.file, self.data_start + u64::from(start), total);
        let bytes = bytes.map_err(|e| (Bytes::new(), e.to_string()))?;
        let skip = (offset - start) as usize;
        for frame in wanted {
            let at = (frame.offset - start) as usize;
            if !frame.matches(self.chunk, &bytes[at..at + frame.len as usize]) {
                let front = if at > skip { Bytes::from(bytes).slice(skip..at) } else { Bytes::new() };
                return Err((front, format!("the frame at {} does not match its digest", frame.offset)));
            }
        }
        Ok(Bytes::from(bytes).slice(skip..skip + len as usize))
    }
}

/// Reads exactly `len` bytes into fresh memory, which is not zeroed first.
fn read_at(file: &File, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match pread(file, spare_capacity(&mut bytes), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // The allocator may have given room for more.
    bytes.truncate(len);
    Ok(bytes)
}

impl Client {
    /// The replica's file, if its datanode runs on this machine and the chunk is sealed.
    pub(super) async fn local_file(
        &self,
        replica: &ReplicaAt,
        chunk: ChunkId,
        capability: &Capability,
    ) -> Option<Arc<ChunkFile>> {
        let (local, key) = (&self.reads.local, (chunk, replica.node));
        if let Some(file) = local.files.lock().get(key, Instant::now()) {
            return Some(file);
        }
        let door = local.doors.lock().entry(replica.node).or_default().clone();
        if door.is_shut() {
            return None;
        }
        let work = async {
            let asks = {
                let mut kept = door.asks.lock().await;
                match kept.as_ref().filter(|asks| !asks.is_closed()) {
                    Some(asks) => asks.clone(),
                    None if door.is_shut() => return Ok(None),
                    None => {
                        let Some(stream) = self.enter(replica).await? else {
                            door.shut(ELSEWHERE);
                            return Ok(None);
                        };
                        let (asks, asked) = mpsc::channel(ASKS_MAX);
                        tokio::spawn(keep(local.files.clone(), replica.node, stream, asked));
                        kept.insert(asks).clone()
                    }
                }
            };
            let (answer, answered) = oneshot::channel();
            let ended = || RpcError::Closed("the local stream has ended".into());
            asks.send(Ask { chunk, capability: capability.clone(), answer }).await.map_err(|_| ended())?;
            answered.await.map_err(|_| ended())
        };
        match tokio::time::timeout(OPEN_DEADLINE, work)
            .await
            .unwrap_or(Err(RpcError::Timeout(OPEN_DEADLINE.as_millis())))
        {
            Ok(file) => file,
            Err(error) => {
                debug!(node = %replica.node, %error, "not read locally");
                door.shut(SHUT);
                None
            }
        }
    }

    /// Not to be read again: it was replaced, or it has decayed.
    pub(super) fn close_local_file(&self, chunk: ChunkId, node: NodeId) {
        self.reads.local.files.lock().remove((chunk, node));
    }

    /// A connection to a datanode of this machine; `None` if it is elsewhere.
    async fn enter(&self, replica: &ReplicaAt) -> Result<Option<LocalStream>, RpcError> {
        let target = Target { plane: Plane::Data, role: Role::Datanode, node: replica.node, addr: replica.addr };
        let connection = self.data.get(&target).await?;
        if !connection.is_local() {
            return Ok(None);
        }
        let (mut send, mut recv) = connection.open().await?;
        send.send(&DataRequest::Local).await?;
        send.finish();
        let door: LocalDoor = recv.recv::<Result<LocalDoor, WireError>>().await?.map_err(RpcError::Refused)?;
        let mut stream = LocalStream::connect(&door.name)?;
        stream.send(&LocalHello { ticket: door.ticket }).await?;
        Ok(Some(stream))
    }

    /// Closes files that are not read any more, for as long as the client is used.
    pub fn start_closing_local_files(self: &Arc<Self>) {
        let (client, stopped) = (Arc::downgrade(self), self.stopped.clone());
        tokio::spawn(async move {
            let work = close_idle_files(client);
            tokio::select! {
                () = stopped.cancelled() => {}
                () = work => {}
            }
        });
    }
}

async fn close_idle_files(client: Weak<Client>) {
    loop {
        tokio::time::sleep(IDLE / 2).await;
        let Some(client) = client.upgrade() else { return };
        client.reads.local.files.lock().close_idle(Instant::now());
    }
}

/// Asks a datanode for files, one after the other, until the stream ends or nobody is there to ask.
async fn keep(files: Arc<Mutex<Files>>, node: NodeId, mut stream: LocalStream, mut asked: mpsc::Receiver<Ask>) {
    loop {
        let ask = tokio::select! {
            () = stream.ended() => break,
            ask = asked.recv() => ask,
        };
        let Some(Ask { chunk, capability, answer }) = ask else { break };
        let key = (chunk, node);
        // It may have come with a question before this one.
        let mut file = files.lock().get(key, Instant::now());
        if file.is_none() {
            let opened = tokio::time::timeout(ANSWER_DEADLINE, open(&mut stream, chunk, &capability)).await;
            match opened.unwrap_or(Err(RpcError::Timeout(ANSWER_DEADLINE.as_millis()))) {
                Ok(opened) => file = opened.map(Arc::new),
                Err(error) => {
                    debug!(%node, %error, "the local stream cannot be used any more");
                    break;
                }
            }
            if let Some(file) = &file {
                files.lock().insert(key, file.clone(), Instant::now());
            }
        }
        // Who asked may not have waited.
        let _ = answer.send(file);
    }
    // Before `asked` is dropped: only then does another stream take the place of this one.
    files.lock().close_of(node);
}

/// Asks for a chunk's file; `None` if the node does not give it, and says so.
async fn open(
    stream: &mut LocalStream,
    chunk: ChunkId,
    capability: &Capability,
) -> Result<Option<ChunkFile>, RpcError> {
    stream.send(&LocalOpen { chunk, capability: capability.clone() }).await?;
    let found = match stream.recv::<Result<LocalChunk, WireError>>().await? {
        Ok(found) => found,
        Err(refusal) => {
            debug!(%chunk, error = refusal.message, "no local file");
            return Ok(None);
        }
    };
    if found.frames > CHUNK_FRAMES_MAX {
        return Err(RpcError::Malformed(format!("a chunk of {} frames", found.frames)));
    }
    let file = File::from(stream.recv_file().await?);
    let mut bytes = vec![0; found.frames as usize * FRAME_HEADER_LEN];
    stream.read_exact(&mut bytes).await?;
    let headers = bytes.as_chunks::<FRAME_HEADER_LEN>().0.iter().map(FrameHeader::from_bytes);
    let frames: Option<Vec<FrameHeader>> = headers.collect();
    let sound = frames.and_then(|frames| ChunkFile::new(chunk, &found, file, frames));
    sound.map(Some).ok_or_else(|| RpcError::Malformed("the frames do not make a chunk".into()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use dfs_proto::{Access, ErrorKind, Timestamp};
    use dfs_rpc::LocalListener;

    use super::*;

    const CHUNK: ChunkId = ChunkId(9);
    const DATA_START: u64 = 100;

    /// A file of frames of these lengths.
    fn chunk_file(lens: &[usize]) -> ChunkFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[0xEE; DATA_START as usize]).unwrap();
        let (mut frames, mut offset) = (Vec::new(), 0);
        for (number, &len) in lens.iter().enumerate() {
            let bytes = vec![number as u8; len];
            frames.push(FrameHeader {
                offset,
                len: len as u32,
                digest: dfs_proto::frame_digest(CHUNK, offset, &bytes),
            });
            file.write_all(&bytes).unwrap();
            offset += len as u32;
        }
        let found = LocalChunk { len: offset, data_start: DATA_START, frames: frames.len() as u32 };
        ChunkFile::new(CHUNK, &found, file, frames).unwrap()
    }

    #[test]
    fn any_range_is_read_through_whole_frames() {
        let file = chunk_file(&[10, 20, 5]);
        let all: Vec<u8> = [vec![0; 10], vec![1; 20], vec![2; 5]].concat();
        for start in 0..35 {
            for end in start + 1..=35 {
                let read = file.read(start, end - start).unwrap();
                assert_eq!(read, all[start as usize..end as usize], "{start}..{end}");
            }
        }
        let (front, reason) = file.read(30, 6).unwrap_err();
        assert!(reason.contains("ends before 36") && front == all[30..35]);
    }

    #[test]
    fn a_flipped_byte_is_no_answer_and_the_other_frames_are() {
        use std::os::unix::fs::FileExt;
        let file = chunk_file(&[10, 20, 5]);
        file.file.write_all_at(&[0xFF], DATA_START + 12).unwrap();
        let (front, reason) = file.read(3, 20).unwrap_err();
        assert!(reason.contains("frame at 10") && front == [0; 7][..]);
        assert!(file.read(11, 20).unwrap_err().0.is_empty());
        assert!(file.read(0, 10).is_ok() && file.read(30, 5).is_ok());
        file.file.set_len(DATA_START + 31).unwrap();
        assert!(file.read(30, 5).is_err());
    }

    #[test]
    fn frames_that_do_not_make_the_chunk_are_refused() {
        let sound = chunk_file(&[10, 20]);
        let found = LocalChunk { len: 30, data_start: DATA_START, frames: 2 };
        let with = |found: &LocalChunk, frames: Vec<FrameHeader>| {
            ChunkFile::new(CHUNK, found, tempfile::tempfile().unwrap(), frames).is_some()
        };
        assert!(with(&found, sound.frames.clone()));
        assert!(!with(&LocalChunk { len: 31, ..found }, sound.frames.clone()));
        assert!(!with(&found, vec![sound.frames[0]]));
        assert!(!with(&found, vec![sound.frames[1], sound.frames[0]]));
    }

    #[test]
    fn files_held_open_are_bounded_and_closed_when_idle() {
        let (mut files, start) = (Files::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let last = FILES_MAX as u64 + 9;
        for number in 0..=last {
            files.insert((ChunkId(number), NodeId(1)), Arc::new(chunk_file(&[1, 1])), at(number));
        }
        assert_eq!((files.open.len(), files.frames), (FILES_MAX, 2 * FILES_MAX));
        let oldest = (ChunkId(0), NodeId(1));
        assert!(files.get(oldest, at(last)).is_none(), "the one not read for longest went first");
        assert!(files.get((ChunkId(200), NodeId(1)), at(last + 1)).is_some());
        files.close_idle(at(last) + IDLE);
        assert_eq!((files.open.len(), files.frames), (1, 2));
    }

    #[tokio::test]
    async fn files_are_closed_when_their_datanode_ends() {
        let name = format!("dfs-test-datanode-{}", std::process::id());
        let listener = LocalListener::bind(&name).unwrap();
        let near = LocalStream::connect(&name).unwrap();
        let mut far = listener.accept().await.unwrap();

        let files = Arc::new(Mutex::new(Files::default()));
        let of = |node| (CHUNK, NodeId(node));
        for node in [1, 2] {
            files.lock().insert(of(node), Arc::new(chunk_file(&[1, 1])), Instant::now());
        }
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let keeper = tokio::spawn(keep(files.clone(), NodeId(1), near, asked));
        let (answer, answered) = oneshot::channel();
        let capability = Capability {
            chunk: ChunkId(10),
            access: Access::Read,
            holder: NodeId(500),
            expires: Timestamp::default(),
            key: 1,
            mac: [0; 32],
        };
        asks.send(Ask { chunk: ChunkId(10), capability, answer }).await.unwrap();
        assert_eq!(far.recv::<LocalOpen>().await.unwrap().chunk, ChunkId(10));
        far.send(&Err::<LocalChunk, _>(WireError::new(ErrorKind::Unavailable, "not sealed"))).await.unwrap();
        assert!(answered.await.unwrap().is_none());
        assert!(files.lock().open.contains_key(&of(1)), "it is there and only has not got this one");

        drop(far);
        keeper.await.unwrap();
        assert!(asks.is_closed());
        let left: Vec<_> = files.lock().open.keys().copied().collect();
        assert_eq!(left, [of(2)]);
    }
}

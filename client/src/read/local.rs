//! Chunk files of datanodes on this machine, read without the network and verified frame by frame like everything else.
//! Of a chunk that is still open the frames are known that it had when its file was given; what it got since, and
//! whatever else is not to be had this way, comes over the network.
//!
//! One task keeps the stream to each datanode. When it ends, because the datanode has ended for example, the files that
//! came through it are closed, so that the disk below them can be unmounted.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::limits::CHUNK_FRAMES_MAX;
use dfs_proto::msg::data::{FRAME_HEADER_LEN, LocalChunk, LocalOpen, LocalUse};
use dfs_proto::msg::meta::{ChunkLocation, ReplicaAt};
use dfs_proto::{Capability, ChunkId, Extent, FrameHeader, NodeId, Plane, Role, WireError};
use dfs_rpc::{LocalStream, RpcError, Target};
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::fs::fstat;
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::debug;

use crate::client::Client;

/// Files held open.
const FILES_MAX: usize = 256;

/// Frame headers of all these files: 40 MiB.
const FRAMES_MAX: usize = 1 << 20;

/// A file that was not read for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// A chunk whose file does not reach as far as it has been written since is not asked for again sooner: each answer has all
/// its frames in it.
const REFRESH: Duration = Duration::from_secs(1);

/// Longer reads are for a thread of their own, also if all is in memory: verifying them takes time.
const CACHED_READ_MAX: u32 = 128 << 10;

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
    /// So far the file has to reach.
    end: u32,
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
    given: Instant,
    used: Instant,
}

/// What is known of the file of a chunk.
enum Known {
    Here(Arc<ChunkFile>),
    /// It is here, too short, and too new to be asked for again.
    Short,
    No,
}

impl Files {
    /// A file that reaches `end`.
    fn get(&mut self, key: (ChunkId, NodeId), end: u32, now: Instant) -> Known {
        match self.open.get_mut(&key) {
            Some(held) if held.file.end() >= end => {
                held.used = now;
                Known::Here(held.file.clone())
            }
            Some(held) if now.duration_since(held.given) < REFRESH => Known::Short,
            _ => Known::No,
        }
    }

    fn insert(&mut self, key: (ChunkId, NodeId), file: Arc<ChunkFile>, now: Instant) {
        self.remove(key);
        self.frames += file.frames.len();
        self.open.insert(key, Held { file, given: now, used: now });
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

/// A chunk's file, as far as its frames are known.
pub(super) struct ChunkFile {
    chunk: ChunkId,
    file: File,
    data_start: u64,
    /// One behind the other from the start of the chunk on.
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

    fn end(&self) -> u32 {
        self.frames.last().map_or(0, FrameHeader::end)
    }

    /// The frames that overlap a range, if they reach its end.
    fn frames_in(&self, offset: u32, end: u32) -> Option<&[FrameHeader]> {
        let first = self.frames.partition_point(|frame| frame.end() <= offset);
        let behind = self.frames.partition_point(|frame| frame.offset < end);
        self.frames.get(first..behind).filter(|wanted| wanted.last().is_some_and(|last| last.end() >= end))
    }

    /// Exactly these bytes, verified. Blocks for the disk. The error says what is wrong with the replica, and has the
    /// bytes in front of that.
    pub fn read(&self, offset: u32, len: u32) -> Result<Bytes, (Bytes, String)> {
        let end = offset + len;
        let Some(wanted) = self.frames_in(offset, end) else {
            let here = self.end();
            let front = if here > offset { self.read(offset, here - offset) } else { Ok(Bytes::new()) };
            return Err((front.unwrap_or_else(|(front, _)| front), format!("it ends before {end}")));
        };
        let (place, total) = self.place_of(wanted);
        let bytes = read_at(&self.file, place, total).map_err(|e| (Bytes::new(), e.to_string()))?;
        self.verified(wanted, bytes, offset, len)
    }

    /// Whether the datanode has deleted it meanwhile, and cut it off.
    pub fn is_removed(&self) -> bool {
        fstat(&self.file).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// As `read`, if none of it has to come from the disk and all of it is right.
    pub fn read_cached(&self, offset: u32, len: u32) -> Option<Bytes> {
        let wanted = self.frames_in(offset, offset + len)?;
        let (place, total) = self.place_of(wanted);
        let mut bytes = vec![0; total];
        let read = preadv2(&self.file, &mut [IoSliceMut::new(&mut bytes)], place, ReadWriteFlags::NOWAIT);
        read.ok().filter(|read| *read == total)?;
        self.verified(wanted, bytes, offset, len).ok()
    }

    /// Where frames that follow each other lie in the file, and how many bytes they have.
    fn place_of(&self, frames: &[FrameHeader]) -> (u64, usize) {
        let (start, end) = (frames[0].offset, frames[frames.len() - 1].end());
        (self.data_start + u64::from(start), (end - start) as usize)
    }

    /// Verifies the bytes of these frames, and cuts the range out of them.
    fn verified(
        &self,
        frames: &[FrameHeader],
        bytes: Vec<u8>,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, (Bytes, String)> {
        let start = frames[0].offset;
        let skip = (offset - start) as usize;
        for frame in frames {
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
    /// The extent's bytes, if they are in this machine's memory and known to be right: nothing is waited for.
    pub(super) fn read_cached(&self, location: &ChunkLocation, extent: &Extent) -> Option<Bytes> {
        if extent.len > CACHED_READ_MAX {
            return None;
        }
        let now = Instant::now();
        let known = |node| match self.reads.local.files.lock().get((extent.chunk, node), extent.chunk_end(), now) {
            Known::Here(file) => Some(file),
            Known::Short | Known::No => None,
        };
        let file = location.replicas.iter().find_map(|replica| known(replica.node))?;
        file.read_cached(extent.chunk_offset, extent.len)
    }

    /// The replica's file, if its datanode runs on this machine and it reaches to `end`.
    pub(super) async fn local_file(
        &self,
        replica: &ReplicaAt,
        chunk: ChunkId,
        end: u32,
        capability: &Capability,
    ) -> Option<Arc<ChunkFile>> {
        let (local, key) = (&self.reads.local, (chunk, replica.node));
        match local.files.lock().get(key, end, Instant::now()) {
            Known::Here(file) => return Some(file),
            Known::Short => return None,
            Known::No => {}
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
            asks.send(Ask { chunk, end, capability: capability.clone(), answer }).await.map_err(|_| ended())?;
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
        connection.enter(LocalUse::Files).await.map(Some)
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
        let Some(Ask { chunk, end, capability, answer }) = ask else { break };
        let key = (chunk, node);
        // It may have come with a question before this one.
        let known = files.lock().get(key, end, Instant::now());
        let file = match known {
            Known::Here(file) => Some(file),
            Known::Short => None,
            Known::No => {
                let opened = tokio::time::timeout(ANSWER_DEADLINE, open(&mut stream, chunk, &capability)).await;
                match opened.unwrap_or(Err(RpcError::Timeout(ANSWER_DEADLINE.as_millis()))) {
                    Ok(opened) => {
                        let opened = opened.map(Arc::new);
                        if let Some(file) = &opened {
                            files.lock().insert(key, file.clone(), Instant::now());
                        }
                        opened.filter(|file| file.end() >= end)
                    }
                    Err(error) => {
                        debug!(%node, %error, "the local stream cannot be used any more");
                        break;
                    }
                }
            }
        };
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
    fn a_file_that_was_cut_off_is_damaged_unless_it_was_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("chunk");
        let sound = chunk_file(&[10, 20]);
        std::fs::write(&path, [0; DATA_START as usize + 30]).unwrap();
        let file = ChunkFile { file: File::options().read(true).write(true).open(&path).unwrap(), ..sound };
        file.file.set_len(0).unwrap();
        assert!(file.read(0, 10).is_err() && file.read_cached(0, 10).is_none());
        assert!(!file.is_removed());
        std::fs::remove_file(&path).unwrap();
        assert!(file.is_removed());
    }

    #[test]
    fn what_is_in_memory_is_read_at_once_and_only_if_it_is_right() {
        use std::os::unix::fs::FileExt;
        let file = chunk_file(&[10, 20, 5]);
        // What has just been written is; some file systems cannot tell, and then the answer is no.
        let read = file.read_cached(5, 20);
        assert!(read.is_none_or(|bytes| bytes[..] == [vec![0; 5], vec![1; 15]].concat()[..]));
        assert_eq!(file.read_cached(30, 6), None, "behind the end");
        file.file.write_all_at(&[0xFF], DATA_START + 12).unwrap();
        assert_eq!(file.read_cached(5, 20), None);
    }

    #[test]
    fn a_chunk_that_has_grown_is_asked_for_again_after_a_while() {
        let (mut files, start) = (Files::default(), Instant::now());
        let key = (CHUNK, NodeId(1));
        files.insert(key, Arc::new(chunk_file(&[10, 20])), start);
        assert!(matches!(files.get(key, 30, start), Known::Here(_)));
        assert!(matches!(files.get(key, 31, start + REFRESH / 2), Known::Short));
        assert!(matches!(files.get(key, 31, start + REFRESH), Known::No));
        files.insert(key, Arc::new(chunk_file(&[10, 20, 5])), start + REFRESH);
        assert!(matches!(files.get(key, 31, start + REFRESH), Known::Here(_)));
        assert_eq!((files.open.len(), files.frames), (1, 3));
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
        assert!(matches!(files.get(oldest, 2, at(last)), Known::No), "the one not read for longest went first");
        assert!(matches!(files.get((ChunkId(200), NodeId(1)), 2, at(last + 1)), Known::Here(_)));
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
        asks.send(Ask { chunk: ChunkId(10), end: 1, capability, answer }).await.unwrap();
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

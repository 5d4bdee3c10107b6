//! Copying trees: into the cluster, out of it, and within it. One engine; `local` and `cluster` are
//! what it copies between.
//!
//! A walker goes through the source, makes directories and symlinks on the other side, and queues
//! files; workers copy several of them at once. A file is written under a temporary name and gets its
//! own when it is whole and durable.

mod cluster;
mod local;
mod progress;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use dfs_client::File;
use dfs_proto::{ErrorKind, FileKind, Timestamp};
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use tokio::sync::{Mutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::cluster::{ClusterNode, ClusterTree};
pub use self::local::{LocalTree, StdinReader};
pub use self::progress::Progress;
use crate::context::Context;
use crate::error::{Failure, Result};

/// How much is read and passed on at once.
pub const READ_BYTES: u64 = 1 << 20;

/// How much is shared at once within the cluster, so that progress shows and Ctrl-C is heard.
const SHARE_BYTES: u64 = 1 << 30;

/// Reads under way at once for one file: covers the latency of a datanode's disk and network.
const READS_IN_FLIGHT: usize = 4;

/// Files from here on count for several: their time goes into bytes, of which each holds some in memory.
const LARGE_BYTES: u64 = 1 << 20;
const LARGE_WEIGHT: u16 = 4;

/// Files that the walker may be ahead of the workers; beyond that it waits. Names and attributes only.
const QUEUE_FILES: usize = 1024;

/// Bits that a directory has at least while it is filled.
const OWNER_MAY_FILL: u16 = 0o700;

/// What is written until a file is whole: `NAME._COPYING_`, as in Hadoop.
pub const TEMPORARY_SUFFIX: &[u8] = b"._COPYING_";

/// Attributes that are copied along.
#[derive(Clone, Debug)]
pub struct Meta {
    pub kind: FileKind,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
}

/// Where bytes come from.
pub trait Source: Clone + Send + Sync + 'static {
    type Node: Clone + Send + Sync + 'static;
    type Reader: Reader;

    /// The entries of a directory.
    fn list(&self, node: &Self::Node) -> BoxStream<'static, Result<Found<Self::Node>>>;
    fn read_link(&self, node: &Self::Node) -> impl Future<Output = Result<Vec<u8>>> + Send;
    fn open(&self, node: &Self::Node, meta: &Meta) -> impl Future<Output = Result<Self::Reader>> + Send;
    /// For messages.
    fn show(&self, node: &Self::Node) -> String;
}

/// One entry of a directory of the source.
pub struct Found<N> {
    pub name: Vec<u8>,
    pub node: N,
    pub meta: Meta,
}

pub trait Reader: Send + 'static {
    /// The bytes in order; `None` at the end.
    fn next(&mut self) -> impl Future<Output = Option<Result<Bytes>>> + Send;
    /// The file behind it, if it is one of the cluster.
    fn cluster_file(&self) -> Option<File> {
        None
    }
}

/// Where bytes go to.
pub trait Target: Clone + Send + Sync + 'static {
    type Dir: Clone + Send + Sync + 'static;
    type Writer: Writer;

    /// Makes a directory, or takes the one that is there.
    fn make_dir(&self, dir: &Self::Dir, name: &[u8], meta: &Meta) -> impl Future<Output = Result<Self::Dir>> + Send;
    fn make_link(
        &self,
        dir: &Self::Dir,
        name: &[u8],
        link: &[u8],
        options: CopyOptions,
    ) -> impl Future<Output = Result> + Send;
    /// Begins a file under its temporary name.
    fn begin(
        &self,
        dir: &Self::Dir,
        name: &[u8],
        meta: &Meta,
        options: CopyOptions,
    ) -> impl Future<Output = Result<Self::Writer>> + Send;
    /// Gives a directory its permission bits, and with `preserve` times and owner, once everything is in it.
    fn finish_dir(&self, dir: &Self::Dir, meta: &Meta, options: CopyOptions) -> impl Future<Output = Result> + Send;
}

pub trait Writer: Send + 'static {
    fn write(&mut self, offset: u64, bytes: Bytes) -> impl Future<Output = Result> + Send;
    /// Takes bytes of a file of the cluster without moving them, `[offset, offset + len)` in both: how many, 0
    /// at the end of the source. `None` if this is no place for that.
    fn share(&mut self, _: &File, _offset: u64, _len: u64) -> impl Future<Output = Result<Option<u64>>> + Send {
        async { Ok(None) }
    }
    /// Makes what was written durable and gives it its name.
    fn finish(self, meta: &Meta, options: CopyOptions) -> impl Future<Output = Result> + Send;
    /// Removes what was written.
    fn abandon(self) -> impl Future<Output = ()> + Send;
}

#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    /// Replace existing files.
    pub force: bool,
    /// Keep times, owner and all permission bits.
    pub preserve: bool,
    /// Small files copied at once: each waits for a few syncs, and they share them.
    pub parallel: u16,
}

/// What to copy, and the directory and name it gets.
pub struct Operand<S: Source, T: Target> {
    pub node: S::Node,
    pub meta: Meta,
    pub dir: T::Dir,
    pub name: Vec<u8>,
}

/// Copies the operands and all below them. Failures of single files are told as they happen; the rest is
/// still copied.
pub async fn copy<S: Source, T: Target>(
    context: &Context,
    verb: &'static str,
    source: S,
    target: T,
    operands: Vec<Operand<S, T>>,
    options: CopyOptions,
) -> Result {
    let progress = Progress::start(&context.out, verb);
    let (queue, jobs) = mpsc::channel(QUEUE_FILES);
    let jobs = Arc::new(Mutex::new(jobs));
    let weights = Arc::new(Semaphore::new(options.parallel.into()));
    let mut workers = JoinSet::new();
    for _ in 0..options.parallel {
        workers.spawn(work(
            source.clone(),
            target.clone(),
            Arc::clone(&jobs),
            Arc::clone(&weights),
            options,
            Arc::clone(&progress),
            context.interrupt.clone(),
        ));
    }
    let mut walk = Walk { source, target, options, queue, progress: Arc::clone(&progress), finish: Vec::new() };
    for operand in operands {
        if context.interrupt.is_cancelled() {
            break;
        }
        if let Err(failure) = walk.enter(operand).await {
            progress.failed(&failure);
        }
    }
    let Walk { target, queue, finish, .. } = walk;
    drop(queue);
    while let Some(ended) = workers.join_next().await {
        if let Err(error) = ended {
            progress.failed(&Failure::failed(format!("a copying task failed: {error}")));
        }
    }
    // Innermost first: setting a directory's times is the last change in it.
    for (dir, meta) in finish.into_iter().rev() {
        if let Err(failure) = target.finish_dir(&dir, &meta, options).await {
            progress.failed(&failure);
        }
    }
    if context.interrupt.is_cancelled() {
        progress.abort();
        return Err(Failure::interrupted());
    }
    progress.end(&context.out)
}

struct Walk<S: Source, T: Target> {
    source: S,
    target: T,
    options: CopyOptions,
    queue: mpsc::Sender<Operand<S, T>>,
    progress: Arc<Progress>,
    /// Directories made that get attributes at the end: with `preserve` all, else the few that their own
    /// bits would have kept us out of.
    finish: Vec<(T::Dir, Meta)>,
}

impl<S: Source, T: Target> Walk<S, T> {
    fn enter(&mut self, operand: Operand<S, T>) -> Pin<Box<dyn Future<Output = Result> + Send + '_>> {
        Box::pin(async move {
            let Operand { node, meta, dir, name } = &operand;
            match meta.kind {
                FileKind::File => {
                    self.progress.found(meta.size_bytes);
                    // The queue closes only when every worker has ended, which Ctrl-C brings about.
                    self.queue.send(operand).await.map_err(|_| Failure::interrupted())
                }
                FileKind::Directory => {
                    let made = self.target.make_dir(dir, name, meta).await?;
                    self.progress.directory();
                    if self.options.preserve || meta.mode & OWNER_MAY_FILL != OWNER_MAY_FILL {
                        self.finish.push((made.clone(), meta.clone()));
                    }
                    let mut entries = self.source.list(node);
                    while let Some(found) = entries.next().await {
                        let entered = match found {
                            Ok(Found { name, node, meta }) => {
                                self.enter(Operand { node, meta, dir: made.clone(), name }).await
                            }
                            Err(failure) => Err(failure),
                        };
                        match entered {
                            Err(failure) if failure.exit == crate::error::Exit::Interrupted => return Err(failure),
                            Err(failure) => self.progress.failed(&failure),
                            Ok(()) => {}
                        }
                    }
                    Ok(())
                }
                FileKind::Symlink => {
                    let link = self.source.read_link(node).await?;
                    self.target.make_link(dir, name, &link, self.options).await?;
                    self.progress.link();
                    Ok(())
                }
                FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                    self.progress.warn(&format!("{}: skipped, not a regular file", self.source.show(node)));
                    Ok(())
                }
            }
        })
    }
}

async fn work<S: Source, T: Target>(
    source: S,
    target: T,
    jobs: Arc<Mutex<mpsc::Receiver<Operand<S, T>>>>,
    weights: Arc<Semaphore>,
    options: CopyOptions,
    progress: Arc<Progress>,
    interrupt: CancellationToken,
) {
    loop {
        let operand = tokio::select! {
            operand = async { jobs.lock().await.recv().await } => operand,
            () = interrupt.cancelled() => return,
        };
        let Some(operand) = operand else { return };
        let weight = if operand.meta.size_bytes < LARGE_BYTES { 1 } else { LARGE_WEIGHT.min(options.parallel) };
        // Never closed.
        let Ok(_weight) = weights.acquire_many(weight.into()).await else { return };
        match copy_file(&source, &target, &operand, options, &progress, &interrupt).await {
            Ok(()) => progress.file(),
            Err(failure) => progress.failed(&failure),
        }
    }
}

async fn copy_file<S: Source, T: Target>(
    source: &S,
    target: &T,
    operand: &Operand<S, T>,
    options: CopyOptions,
    progress: &Progress,
    interrupt: &CancellationToken,
) -> Result {
    let Operand { node, meta, dir, name } = operand;
    let reader = source.open(node, meta).await?;
    let writer = target.begin(dir, name, meta, options).await?;
    pour(reader, writer, meta, options, progress, interrupt).await
}

/// Moves all bytes and finishes the file; whatever stops that, nothing of it is left under a name.
pub async fn pour(
    mut reader: impl Reader,
    mut writer: impl Writer,
    meta: &Meta,
    options: CopyOptions,
    progress: &Progress,
    interrupt: &CancellationToken,
) -> Result {
    let mut offset = 0;
    let poured = async {
        if let Some(file) = reader.cluster_file() {
            while let Some(len) = writer.share(&file, offset, SHARE_BYTES).await? {
                if len == 0 {
                    return Ok(());
                }
                offset += len;
                progress.bytes(len);
            }
        }
        while let Some(bytes) = reader.next().await {
            let bytes = bytes?;
            let len = bytes.len() as u64;
            writer.write(offset, bytes).await?;
            offset += len;
            progress.bytes(len);
        }
        Ok(())
    };
    let poured = tokio::select! {
        poured = poured => poured,
        () = interrupt.cancelled() => Err(Failure::interrupted()),
    };
    match poured {
        Ok(()) => writer.finish(meta, options).await,
        Err(failure) => {
            writer.abandon().await;
            Err(failure)
        }
    }
}

/// The bytes `[start, end)` of a file in order, several reads at once, `step` bytes each.
pub fn read_ahead(file: &File, start: u64, end: u64, step: u64) -> Pieces {
    let of = file.clone();
    let file = file.clone();
    let starts = stream::unfold(start, move |at| async move { (at < end).then(|| (at, (at + step).min(end))) });
    let reads = starts.map(move |at| {
        let file = file.clone();
        async move { stream::iter(read_piece(&file, at, (at + step).min(end)).await) }
    });
    Pieces { file: of, reads: reads.buffered(READS_IN_FLIGHT).flatten().boxed() }
}

/// The bytes `[start, end)`, and behind them the error if some of them cannot be read.
async fn read_piece(file: &File, start: u64, end: u64) -> Vec<Result<Bytes>> {
    let (mut parts, mut at) = (Vec::new(), start);
    while at < end {
        match file.read_front(at, (end - at) as usize).await {
            Ok(bytes) if bytes.is_empty() => break,
            Ok(bytes) => {
                at += bytes.len() as u64;
                parts.push(Ok(bytes));
            }
            Err(error) => {
                parts.push(Err(error.into()));
                break;
            }
        }
    }
    parts
}

/// See `read_ahead`.
pub struct Pieces {
    file: File,
    reads: BoxStream<'static, Result<Bytes>>,
}

impl Pieces {
    /// `None` at the end of the range or of the file.
    pub async fn next(&mut self) -> Option<Result<Bytes>> {
        match self.reads.next().await {
            Some(Ok(bytes)) if bytes.is_empty() => None,
            piece => piece,
        }
    }
}

impl Reader for Pieces {
    async fn next(&mut self) -> Option<Result<Bytes>> {
        Pieces::next(self).await
    }

    fn cluster_file(&self) -> Option<File> {
        Some(self.file.clone())
    }
}

/// The name a file has until it is whole. A name too long for the suffix is cut, and told from others
/// that are cut alike by a number.
pub fn temporary_name(name: &[u8]) -> Vec<u8> {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let room = dfs_proto::limits::NAME_MAX - TEMPORARY_SUFFIX.len();
    if name.len() <= room {
        return [name, TEMPORARY_SUFFIX].concat();
    }
    let number = format!(".{:x}.{:x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    [&name[..room - number.len()], number.as_bytes(), TEMPORARY_SUFFIX].concat()
}

/// The failure that a name is taken already and `-f` was not given.
pub fn exists(shown: &str) -> Failure {
    Failure::of(ErrorKind::Exists, "exists already").at(shown).hint("-f replaces it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_fit_and_differ() {
        assert_eq!(temporary_name(b"a"), b"a._COPYING_");
        let long = vec![b'x'; 255];
        let (first, second) = (temporary_name(&long), temporary_name(&long));
        assert_eq!(first.len(), 255);
        assert!(first.ends_with(TEMPORARY_SUFFIX));
        assert_ne!(first, second);
    }
}

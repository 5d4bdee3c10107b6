//! A file is open, and its reader knows where its bytes are. Then they are put into another chunk, and the one that the
//! reader knows goes.

use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use bytes::Bytes;
use dfs_client::{Dfs, Error, File, MakeOptions, OpenMode};
use dfs_proto::msg::meta::NewNode;
use dfs_proto::{Caller, ChunkId, InodeId, Name};
use tokio::time::{Instant, sleep};

use crate::bed::Bed;

const ROOT: Caller = Caller::ROOT;

const LEN: usize = 3 << 20;
const KEPT: usize = 300_000;

/// For the chunk to be found, gathered by its nodes and named; and until an order has reached every node.
const SOON: Duration = Duration::from_secs(120);
const ORDERED: Duration = Duration::from_secs(10);

pub async fn by_compaction() -> Result<()> {
    let bed = Bed::start(3).await?;
    let (writer, reader) = (&bed.clients[1].dfs, &bed.clients[2].dfs);
    let content: Vec<u8> = (0..LEN as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let content = Bytes::from(content);
    let written = make(writer, content.clone()).await.map_err(|error| anyhow!("write the file: {error}"))?;
    let inode = written.inode();
    let open = reader.open(&ROOT, inode, OpenMode::READ).await.map_err(|error| anyhow!("open it: {error}"))?;
    // Of a range in the middle, so that nothing is read ahead of need: what it learns is where all of the file is.
    expect(&open, &content, 60_000, 1000).await?;
    let before = chunk_of(&bed.observer, inode).await?;

    let end = Instant::now() + SOON;
    while chunk_of(&bed.observer, inode).await? == before {
        ensure!(Instant::now() < end, "the chunk that is mostly dead is not compacted");
        // Of virtual time, as all of this.
        sleep(Duration::from_secs(1)).await;
    }
    sleep(ORDERED).await;
    for at in [100_000, 0, KEPT - 1000] {
        expect(&open, &content, at, 1000).await?;
        expect(&written, &content, at, 1000).await?;
    }
    for file in [open, written] {
        file.close().await.map_err(|error| anyhow!("close it: {error}"))?;
    }
    bed.stop().await
}

/// A file of which the front is left.
async fn make(dfs: &Dfs, content: Bytes) -> Result<File, Error> {
    let name = Name::new("moved").map_err(|error| Error::new(dfs_proto::ErrorKind::Internal, format!("{error:?}")))?;
    let options = MakeOptions { exclusive: true, open: Some(OpenMode::READ_WRITE), ..MakeOptions::default() };
    let made = dfs.make(&ROOT, InodeId::ROOT, &name, NewNode::File, 0o644, options).await?;
    let file = made.file.ok_or_else(|| Error::new(dfs_proto::ErrorKind::Internal, "the new file was not opened"))?;
    file.write(0, content).await?;
    file.sync().await?;
    file.set_size(KEPT as u64).await?;
    file.sync().await?;
    Ok(file)
}

async fn expect(file: &File, content: &Bytes, at: usize, len: usize) -> Result<()> {
    let bytes = file.read(at as u64, len).await.map_err(|error| anyhow!("read at {at}: {error}"))?;
    ensure!(bytes == content[at..at + len], "other bytes at {at} than were synced");
    Ok(())
}

async fn chunk_of(observer: &Dfs, inode: InodeId) -> Result<ChunkId> {
    let info = observer.file_info(inode).await.map_err(|error| anyhow!("ask about the file: {error}"))?;
    let first = info.chunks.first().ok_or_else(|| anyhow!("the file has no chunk"))?;
    Ok(first.chunk)
}

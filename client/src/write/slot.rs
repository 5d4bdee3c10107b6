//! Where uploads of one kind go: a chunk that is replaced when it is full or has failed.

use std::sync::Arc;

use tokio::time::Instant;

use crate::client::Client;
use crate::error::Result;
use crate::open::FileState;
use crate::write::state::Lane;
use crate::write::writer::{ChunkWriter, Piece, Shape};

#[derive(Default)]
pub(crate) struct Slot {
    writer: tokio::sync::Mutex<Option<Arc<ChunkWriter>>>,
}

impl Slot {
    /// Appends a piece to the slot's chunk, or to a new one if that takes no more. On an error it is
    /// nowhere.
    pub async fn append(&self, client: &Arc<Client>, lane: Lane, replication: u8, mut piece: Piece) -> Result<()> {
        let mut slot = self.writer.lock().await;
        loop {
            let writer = match &*slot {
                Some(writer) => writer.clone(),
                None => match client.open_writer(lane, replication).await {
                    Ok(writer) => slot.insert(writer).clone(),
                    Err(error) => return Err(error),
                },
            };
            piece = match writer.append(piece).await {
                Ok(()) => return Ok(()),
                Err(rejected) => rejected,
            };
            writer.close().await;
            *slot = None;
        }
    }

    /// Closes the slot's chunk; it is finished and sealed in the background.
    pub async fn close(&self) {
        if let Some(writer) = self.writer.lock().await.take() {
            writer.close().await;
        }
    }

    /// `close`, once the file has nothing more to upload.
    pub async fn close_when_uploaded(&self, file: &FileState) {
        loop {
            let progress = file.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let inner = file.inner.lock();
                if inner.handles > 0 {
                    return;
                }
                if !inner.uploading && !inner.writes.has_due() {
                    break;
                }
            }
            progress.await;
        }
        self.close().await;
    }
}

impl Client {
    async fn open_writer(self: &Arc<Self>, lane: Lane, replication: u8) -> Result<Arc<ChunkWriter>> {
        let pause = self.writes.failing.lock().pause(Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let location = self.new_chunk(replication, lane == Lane::Stream).await?;
        let required = self.required_copies(replication).await?;
        let shape = match lane {
            Lane::Stream => Shape::Chain,
            Lane::Pack => Shape::FanOut,
        };
        self.reads.remember(location.clone());
        let writer = ChunkWriter::open(self, location, shape, required);
        self.writes.writers.lock().insert(writer.chunk(), writer.clone());
        Ok(writer)
    }
}

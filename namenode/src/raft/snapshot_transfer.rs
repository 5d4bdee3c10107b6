//! A snapshot's way from the leader to a follower that is behind the log: an offer that lists the
//! files, then their bytes, on one stream. The receiver verifies each file and syncs it before anything
//! is installed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dfs_proto::{ErrorKind, WireError};
use dfs_rpc::{Connection, RecvStream, RpcError, SendStream};
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::network::{RaftReply, RaftRequest};
use super::types::{Raft, Snapshot, SnapshotMeta, SnapshotResponse, Vote};
use crate::store::files::sync_dir;

/// Bytes read, hashed and sent in one piece.
const PIECE: usize = 256 << 10;
/// A transfer that does not move for so long is given up.
const STALL: Duration = Duration::from_secs(15);
/// How long the receiver may take to install what it has received.
const INSTALL_DEADLINE: Duration = Duration::from_secs(120);
/// Files of one snapshot; RocksDB's tables are at least some MiB each.
const FILES_MAX: usize = 16_384;

/// What is about to be sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SnapshotOffer {
    vote: Vote,
    meta: SnapshotMeta,
    files: Vec<OfferedFile>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct OfferedFile {
    name: String,
    len: u64,
    digest: [u8; 32],
}

/// Sends a snapshot and returns what the follower says once it is installed.
///
/// # Errors
/// `Timeout` when the transfer stands still, `Refused` with the follower's reason, or what the stream says.
pub async fn send(connection: &Connection, vote: Vote, snapshot: &Snapshot) -> Result<SnapshotResponse, RpcError> {
    let dir = snapshot.snapshot.db();
    let list_dir = dir.clone();
    let files = tokio::task::spawn_blocking(move || list(&list_dir))
        .await
        .map_err(|e| disk(&dir, e))?
        .map_err(|e| disk(&dir, e))?;
    let bytes: u64 = files.iter().map(|file| file.len).sum();
    tracing::info!(peer = %connection.peer().id, snapshot = %snapshot.meta, files = files.len(), bytes, "sending a snapshot");
    let (mut stream, mut recv) = connection.open().await?;
    let offer = SnapshotOffer { vote, meta: snapshot.meta.clone(), files: files.clone() };
    moving(stream.send(&RaftRequest::Snapshot(offer))).await?;
    for file in &files {
        send_file(&mut stream, &dir.join(&file.name), file.len).await?;
    }
    stream.finish();
    let reply = tokio::time::timeout(INSTALL_DEADLINE, recv.recv::<Result<RaftReply, WireError>>())
        .await
        .map_err(|_| RpcError::Timeout(INSTALL_DEADLINE.as_millis()))??;
    match reply.map_err(RpcError::Refused)? {
        RaftReply::Snapshot(response) => Ok(response),
        _ => Err(RpcError::Malformed("no reply to a snapshot".into())),
    }
}

/// Lists the files of a checkpoint with their lengths and digests.
fn list(dir: &Path) -> std::io::Result<Vec<OfferedFile>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().into_string().map_err(|_| std::io::Error::other("a file name is not UTF-8"))?;
        // The lock is RocksDB's own, made by whoever looked into the checkpoint.
        if name == "LOCK" {
            continue;
        }
        let mut hasher = blake3::Hasher::new();
        let len = std::io::copy(&mut std::fs::File::open(entry.path())?, &mut hasher)?;
        files.push(OfferedFile { name, len, digest: *hasher.finalize().as_bytes() });
    }
    Ok(files)
}

async fn send_file(stream: &mut SendStream, path: &Path, len: u64) -> Result<(), RpcError> {
    let mut file = File::open(path).await.map_err(|e| disk(path, e))?;
    let mut left = len;
    while left > 0 {
        let mut piece = vec![0; PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
        file.read_exact(&mut piece).await.map_err(|e| disk(path, e))?;
        left -= piece.len() as u64;
        moving(stream.send_raw(Bytes::from(piece))).await?;
    }
    Ok(())
}

/// Receives the files of an offer into a folder of their own, verifies and syncs them.
///
/// # Errors
/// `Malformed` for an offer or bytes that do not agree, `Timeout` when the transfer stands still,
/// `Internal` when the disk fails.
pub async fn receive(raft: &Raft, offer: SnapshotOffer, recv: &mut RecvStream) -> Result<(Vote, Snapshot), WireError> {
    if offer.files.len() > FILES_MAX || offer.files.iter().any(|file| !is_plain_name(&file.name)) {
        return Err(WireError::new(ErrorKind::Malformed, "the snapshot lists too many files or a name that is a path"));
    }
    let files = raft.begin_receiving_snapshot().await.map_err(|e| internal(e.to_string()))?;
    let dir = files.db();
    for file in &offer.files {
        receive_file(recv, dir.join(&file.name), file).await?;
    }
    sync_dir(&dir).map_err(|e| internal(e.to_string()))?;
    tracing::info!(snapshot = %offer.meta, files = offer.files.len(), "snapshot received");
    Ok((offer.vote, Snapshot { meta: offer.meta, snapshot: files }))
}

async fn receive_file(recv: &mut RecvStream, path: PathBuf, offered: &OfferedFile) -> Result<(), WireError> {
    let failed = |e: std::io::Error| internal(format!("{}: {e}", path.display()));
    let mut file = File::create(&path).await.map_err(failed)?;
    let mut hasher = blake3::Hasher::new();
    let mut left = offered.len;
    while left > 0 {
        let max = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        let piece = moving(recv.read_chunk(max)).await.map_err(|error| error.to_wire())?;
        let piece = piece.ok_or_else(|| WireError::new(ErrorKind::Malformed, "the snapshot ends too early"))?;
        hasher.update(&piece);
        file.write_all(&piece).await.map_err(failed)?;
        left -= piece.len() as u64;
    }
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    if hasher.finalize() != blake3::Hash::from_bytes(offered.digest) {
        return Err(WireError::new(ErrorKind::Malformed, format!("{} arrived damaged", offered.name)));
    }
    Ok(())
}

/// A name from a peer becomes a file of ours: it must not lead anywhere else.
fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 128 && name.bytes().all(plain) && !name.starts_with('.')
}

async fn moving<T>(step: impl Future<Output = Result<T, RpcError>>) -> Result<T, RpcError> {
    tokio::time::timeout(STALL, step).await.unwrap_or(Err(RpcError::Timeout(STALL.as_millis())))
}

fn disk(path: &Path, error: impl ToString) -> RpcError {
    RpcError::Io { what: path.display().to_string(), reason: error.to_string() }
}

fn internal(reason: String) -> WireError {
    WireError::new(ErrorKind::Internal, reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_cannot_leave_the_folder() {
        for bad in ["", ".", "..", "../CURRENT", "a/b", "a\0b", ".hidden"] {
            assert!(!is_plain_name(bad), "{bad:?}");
        }
        assert!(is_plain_name("000012.sst") && is_plain_name("MANIFEST-000005") && is_plain_name("OPTIONS-000007"));
    }
}

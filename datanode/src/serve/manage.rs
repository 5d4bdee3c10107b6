//! What administrators ask of this node alone.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dfs_proto::limits::{PATH_MAX, SHARD_PAGE_MAX};
use dfs_proto::msg::data::{Manage, ManageReply};
use dfs_proto::{ErrorKind, PeerIdentity, Role, WireError};
use dfs_rpc::{HomeError, SendStream};
use tracing::info;

use crate::node::Node;
use crate::store::VolumeError;

const SEND_DEADLINE: Duration = Duration::from_secs(5);

pub async fn serve(node: &Arc<Node>, peer: PeerIdentity, request: Manage, mut send: SendStream) {
    let reply = answer(node, peer, request).await;
    if let Err(error) = &reply {
        info!(kind = ?error.kind, error = error.message, "request refused");
    }
    let _ = tokio::time::timeout(SEND_DEADLINE, send.send(&reply)).await;
    send.finish();
}

async fn answer(node: &Arc<Node>, peer: PeerIdentity, request: Manage) -> Result<ManageReply, WireError> {
    let (allowed, path) = match &request {
        Manage::AddVolume { path } | Manage::DrainVolume { path } | Manage::ReplaceVolume { path } => {
            (peer.role == Role::Admin, path.as_str())
        }
        Manage::Replicas { .. } => (matches!(peer.role, Role::Admin | Role::Client), ""),
    };
    if !allowed {
        let role = peer.role.as_str();
        return Err(WireError::new(ErrorKind::Forbidden, format!("a {role} certificate does not allow this request")));
    }
    if path.len() > PATH_MAX {
        return Err(WireError::new(ErrorKind::NameTooLong, "the folder's path is too long"));
    }
    match request {
        Manage::Replicas { chunks } => {
            if chunks.len() > SHARD_PAGE_MAX {
                return Err(WireError::new(ErrorKind::InvalidArgument, "too many replicas are asked for at once"));
            }
            Ok(ManageReply::Replicas(node.store.describe(&chunks)))
        }
        Manage::AddVolume { path } => {
            info!(target: "audit", %peer, path, "volume to be added");
            added(node, PathBuf::from(path), false).await
        }
        Manage::ReplaceVolume { path } => {
            info!(target: "audit", %peer, path, "volume to be replaced");
            added(node, PathBuf::from(path), true).await
        }
        Manage::DrainVolume { path } => {
            info!(target: "audit", %peer, path, "volume to be emptied");
            let dir = PathBuf::from(path);
            let begun = node.store.blocking(move |store| store.drain_volume(&dir)).await;
            begun.map_err(|error| error.to_wire())?.map_err(|error| refusal(&error))?;
            Ok(ManageReply::Done)
        }
    }
}

async fn added(node: &Arc<Node>, dir: PathBuf, replaces: bool) -> Result<ManageReply, WireError> {
    let config = node.config.clone();
    let opened = node.store.blocking(move |store| match replaces {
        true => store.replace_volume(&config, &dir),
        false => store.add_volume(&config, &dir),
    });
    let number = opened.await.map_err(|error| error.to_wire())?.map_err(|error| refusal(&error))?;
    // What it holds shows in the digests as it is read.
    if let Some(number) = number {
        let store = node.store.clone();
        tokio::task::spawn_blocking(move || store.scan_added(number));
    }
    Ok(ManageReply::Done)
}

fn refusal(error: &VolumeError) -> WireError {
    let kind = match error {
        VolumeError::Relative(_) => ErrorKind::InvalidArgument,
        VolumeError::Unknown(_) => ErrorKind::NotFound,
        VolumeError::InUse(_) => ErrorKind::Exists,
        VolumeError::Working(_) | VolumeError::SameDisk(_) | VolumeError::OtherDisk(_) => ErrorKind::NotEmpty,
        VolumeError::Only(_) => ErrorKind::NotSupported,
        VolumeError::Home(HomeError::NotOurs(_) | HomeError::Foreign { .. } | HomeError::InUse(_)) => {
            ErrorKind::NotEmpty
        }
        VolumeError::Home(_) | VolumeError::Open(_) | VolumeError::Register(_) => ErrorKind::Internal,
    };
    WireError::new(kind, error.to_string())
}

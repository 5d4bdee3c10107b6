//! The data plane: reads and append streams.

mod append;
mod downstream;
pub mod local;
mod manage;
mod read;

use std::sync::Arc;
use std::time::Duration;

use dfs_proto::msg::data::DataRequest;
use dfs_proto::{PeerIdentity, Plane};
use dfs_rpc::{Handler, RecvStream, SendStream};
use tokio::time::Instant;
use tracing::{Instrument, debug, info_span};

use crate::node::Node;

/// From the opening of a stream to the whole of its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

pub struct DataService {
    node: Arc<Node>,
}

impl DataService {
    pub fn new(node: Arc<Node>) -> DataService {
        DataService { node }
    }
}

impl Handler for DataService {
    async fn handle(&self, peer: PeerIdentity, _plane: Plane, mut send: SendStream, mut recv: RecvStream) {
        let request = match tokio::time::timeout(REQUEST_DEADLINE, recv.recv::<DataRequest>()).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) => {
                debug!(%error, "no request could be read");
                return send.reset();
            }
            Err(_) => {
                debug!("no request arrived");
                return send.reset();
            }
        };
        let node = &self.node;
        match request {
            DataRequest::Read { chunk, epoch, offset, len, capability } => {
                let span = info_span!("read", %chunk, offset, len);
                read::serve(node, peer, read::Request { chunk, epoch, offset, len, capability }, send)
                    .instrument(span)
                    .await;
            }
            DataRequest::Append { chunk, epoch, capability, chain } => {
                let span = info_span!("append", %chunk, %epoch, behind = chain.len());
                append::serve(node, peer, append::Request { chunk, epoch, capability, chain }, send, recv)
                    .instrument(span)
                    .await;
            }
            DataRequest::Local => {
                // Who may read what is checked for each chunk.
                let answer = node.door.admit(peer, Instant::now());
                let _ = tokio::time::timeout(REQUEST_DEADLINE, send.send(&answer)).await;
                send.finish();
            }
            DataRequest::Manage(request) => {
                manage::serve(node, peer, request, send).instrument(info_span!("manage")).await;
            }
        }
    }
}

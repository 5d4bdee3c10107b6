use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use dfs_proto::Plane;
use dfs_rpc::{Endpoint, Pool, Tls, serve};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::node::Node;
use crate::orders::{self, Orders};
use crate::serve::{DataService, local};
use crate::store::Store;
use crate::{drain, heartbeat, scrub, upkeep};

/// What streams that run get to finish once the node stops.
const DRAIN: Duration = Duration::from_secs(3);

/// For syncing open chunks at the end. What it does not reach was never promised.
const LAST_SYNC_DEADLINE: Duration = Duration::from_secs(10);

/// Makes the node's folders, once, before its first start. With `Config::must_exist` the node then refuses
/// to start on folders that have gone, instead of starting as one without chunks.
pub fn prepare(config: &Config) -> anyhow::Result<()> {
    Store::open(&Config { must_exist: false, ..config.clone() }).map(drop)
}

/// Runs a datanode until `shutdown`, then stops it in order.
///
/// Fails if the configuration, the certificate or the folders do not fit together, if the port is taken,
/// or if a part of the node ends that should not.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    raise_file_limit();
    let tls = Tls::load(&config.tls)?;
    let me = config.identity();
    ensure!(tls.identity() == me, "the certificate is for {}, and this is {me}", tls.identity());
    let opening = config.clone();
    let store = tokio::task::spawn_blocking(move || Store::open(&opening)).await?.context("cannot open the store")?;
    let endpoint = Endpoint::server_on(&config.network, &tls, config.listen, &[Plane::Data])
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let (orders, queues) = Orders::new();
    let addr = config.advertise.unwrap_or(endpoint.local_addr()?);
    let pool = Pool::new(endpoint.clone());
    let node = Arc::new(Node::new(config, addr, Arc::new(store), pool, orders));
    info!(node = %me.id, name = node.config.name, %addr, "datanode runs");

    let mut tasks = JoinSet::new();
    // Tokens of their own: these parts end when `run` says so, and not before it knows.
    let (accepting, background) = (CancellationToken::new(), CancellationToken::new());
    let data = Arc::new(DataService::new(node.clone()));
    let service = serve(endpoint.clone(), data.clone(), accepting.clone(), DRAIN);
    let mut service = tokio::spawn(service);
    tasks.spawn(heartbeat::group::run(node.clone(), background.clone()));
    orders::start(&node, queues, &mut tasks, &background);
    tasks.spawn(local::run(data, accepting.clone(), DRAIN));
    tasks.spawn(upkeep::sync_lazily(node.clone(), background.clone()));
    tasks.spawn(upkeep::maintain_volumes(node.clone(), background.clone()));
    tasks.spawn(drain::run(node.clone(), background.clone()));
    tasks.spawn(scrub::run_all(node.clone(), background.clone()));
    let scan = node.clone();
    let scan = tokio::spawn(async move {
        match scan.store.blocking(|store| store.scan()).await {
            Ok(()) => {
                info!("volumes have been read");
                scan.scanned.send_replace(true);
            }
            Err(error) => error!(%error, "volumes cannot be read"),
        }
    });

    let ended = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        Some(ended) = tasks.join_next() => Err(anyhow::anyhow!("a part of the node has ended: {ended:?}")),
        ended = &mut service => Err(anyhow::anyhow!("the data plane has ended: {ended:?}")),
    };

    // The end, in order. New streams are refused, append streams end with the reason, every namenode hears
    // that the node leaves, so that writers turn elsewhere; reads that run get their time.
    info!("datanode stops");
    node.leaving.cancel();
    accepting.cancel();
    background.cancel();
    while let Some(task) = tasks.join_next().await {
        if let Err(error) = task {
            error!(%error, "a part of the node has failed");
        }
    }
    if !service.is_finished()
        && let Err(error) = service.await
    {
        error!(%error, "the data plane has failed");
    }
    scan.abort();
    let synced = node.store.blocking(|store| store.sync_all_open());
    if tokio::time::timeout(LAST_SYNC_DEADLINE, synced).await.is_err() {
        warn!("open chunks could not be synced in time");
    }
    endpoint.close().await;
    info!("datanode has stopped");
    ended
}

/// Lets the node hold as many files open as it is allowed to: each stream holds one, and the usual soft
/// limit of 1024 is for programs that use `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, "cannot raise the limit of open files");
    }
}

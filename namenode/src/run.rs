//! The life of a namenode process: start, serve, stop in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use dfs_meta::Event;
use dfs_proto::{NodeId, Plane, Role};
use dfs_rpc::{Endpoint, Home, Tls};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::Config;
use crate::fail_stop::FailStop;
use crate::leader::Watches;
use crate::namenode::Namenode;
use crate::raft::{Consensus, Links, Options, RaftServer};
use crate::server::Server;
use crate::store::state::StateStore;
use crate::workers;

/// What is being answered when the node is told to stop gets so long to finish.
const DRAIN: Duration = Duration::from_secs(3);
/// Hints between applying and the workers; see `Event`.
const EVENTS: usize = 16_384;

/// Runs a namenode until `shutdown`, then stops it in order.
///
/// # Errors
/// When it cannot start (configuration, certificate, data folder, port, damaged store), or when its
/// store fails while it runs: it must then not go on.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    config.check()?;
    let tls = Tls::load(&config.tls).context("cannot use the certificate")?;
    let me = tls.identity();
    ensure!(
        me.role == Role::Namenode && me.id == NodeId(config.node),
        "the certificate is for {me}, not for this node"
    );
    ensure!(me.cluster == config.cluster_id()?, "the certificate is of cluster {}", me.cluster);
    let home = Home::create_or_open(&config.data_dir, me).context("cannot use the data folder")?;
    let meta = Endpoint::server_on(&config.network, &tls, config.listen, &[Plane::Meta])?;
    let raft = Endpoint::server_on(&config.network, &tls, config.raft_listen, &[Plane::Raft])?;

    let fail = FailStop::default();
    let tasks = CancellationToken::new();
    let built = build(config.clone(), me.cluster, home.disk(), &raft, &fail, &tasks).await;
    let (namenode, raft_server, events) = built.with_context(|| {
        format!(
            "the store in {} is not whole, and {} does not serve with it: `dfs namenode replace {}` puts another \
             namenode in its place",
            config.data_dir.display(),
            config.name,
            config.name
        )
    })?;
    let mut servers = JoinSet::new();
    let server = Arc::new(Server::new(namenode.clone()));
    servers.spawn(dfs_rpc::serve(raft.clone(), Arc::new(raft_server), tasks.clone(), DRAIN));
    servers.spawn(dfs_rpc::serve(meta.clone(), server, tasks.clone(), DRAIN));
    let workers = workers::start(&namenode, events, &tasks);
    info!(node = namenode.config.node, name = namenode.config.name, listen = %namenode.config.listen, "namenode started");

    let failure = tokio::select! {
        () = shutdown.cancelled() => None,
        reason = fail.failed() => Some(reason),
    };
    if failure.is_none() && namenode.consensus.standing().leads() {
        // Sooner than the others would notice; if there is nobody to hand over to they have to.
        if let Err(error) = namenode.consensus.hand_over(None).await {
            info!(%error, "stopping as the leader");
        }
    }
    stop(&namenode, &tasks, servers, workers, [meta, raft]).await;
    // The folder stays locked until nothing uses it any more.
    drop((namenode, home));
    match failure.or_else(|| fail.reason()) {
        Some(reason) => bail!("{reason}"),
        None => Ok(()),
    }
}

/// Opens the stores and joins the group.
async fn build(
    config: Config,
    cluster: dfs_proto::ClusterId,
    disk: u64,
    endpoint: &Endpoint,
    fail: &FailStop,
    tasks: &CancellationToken,
) -> anyhow::Result<(Arc<Namenode>, RaftServer, mpsc::Receiver<Event>)> {
    let state_dir = config.data_dir.join("state");
    let state = tokio::task::spawn_blocking(move || StateStore::open(&state_dir)).await??;
    let state = Arc::new(state);
    let configured = config.peers.iter().map(|peer| (peer.id, peer.raft_addr)).collect();
    let links = Links::start(endpoint, config.node, configured, tasks);
    let (hints, events) = mpsc::channel(EVENTS);
    let watches = Arc::new(Watches::default());
    let options = options(&config, disk);
    let (consensus, raft_server) =
        Consensus::start(options, &config.data_dir, state.clone(), links, hints, watches.clone(), fail.clone()).await?;
    let namenode = Namenode::new(config, cluster, consensus, state, watches, fail.clone());
    Ok((Arc::new(namenode), raft_server, events))
}

fn options(config: &Config, disk: u64) -> Options {
    Options {
        node: config.node,
        cluster: config.cluster.clone(),
        heartbeat_interval_ms: config.timers.heartbeat_interval_ms,
        election_timeout_min_ms: config.timers.election_timeout_min_ms,
        election_timeout_max_ms: config.timers.election_timeout_max_ms,
        snapshot_log_entries: config.snapshot_log_entries,
        log_keep_entries: config.log_keep_entries,
        disk,
        member: config.member(),
    }
}

/// Orderly shutdown. Each step ends what the next one would otherwise pull away from under it.
async fn stop(
    namenode: &Namenode,
    tasks: &CancellationToken,
    mut servers: JoinSet<()>,
    mut workers: JoinSet<()>,
    endpoints: [Endpoint; 2],
) {
    info!("namenode stops");
    // 1. Nothing new comes in; workers end after their step, requests get the time to finish.
    tasks.cancel();
    namenode.watches.break_streams();
    while servers.join_next().await.is_some() {}
    // A worker may be waiting for a quorum that is gone; what it proposes can be proposed again.
    let _ = tokio::time::timeout(DRAIN, async { while workers.join_next().await.is_some() {} }).await;
    workers.shutdown().await;
    // 2. The group goes on without us; what is committed is in our log.
    namenode.consensus.stop().await;
    // 3. Peers are told that the connections end.
    for endpoint in endpoints {
        endpoint.close().await;
    }
    info!("namenode stopped");
}

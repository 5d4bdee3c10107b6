//! Genesis, checks and snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dfs_meta::repair::Known;
use dfs_meta::{Body, fsck, query};
use dfs_proto::limits::{NAMENODES_MAX, REPLICATION_MAX};
use dfs_proto::msg::admin::{AdminReply, AdminRequest, Liveness, Member, Problem, ProblemKind};
use dfs_proto::{CapabilityKey, ClusterId, ErrorKind, InodeId, WireError};
use tokio::time::Instant;
use tracing::info;

use super::{duties, group, status};
use crate::namenode::Namenode;
use crate::raft;
use crate::store::StoreError;
use crate::store::state::recount_hash;

/// How long the first election and the genesis command may take.
const GENESIS_DEADLINE: Duration = Duration::from_secs(20);

/// How often it is looked whether all datanodes were heard.
const SAY_PAUSE: Duration = Duration::from_millis(50);

/// As many as `FsckReport` promises at most.
const PROBLEMS_MAX: usize = 1000;

pub async fn answer(namenode: &Arc<Namenode>, request: AdminRequest) -> Result<AdminReply, WireError> {
    match request {
        AdminRequest::Initialize { cluster, members, default_replication, min_copies } => {
            initialize(namenode, cluster, members, default_replication, min_copies).await?;
            Ok(AdminReply::Done)
        }
        AdminRequest::Status => status::status(namenode).await.map(Box::new).map(AdminReply::Status),
        AdminRequest::Fsck { root } => {
            namenode.leading()?;
            namenode.read_barrier().await?;
            datanodes_are_known(namenode).await?;
            let me = namenode.clone();
            let check = move |view: &dyn dfs_meta::View| {
                let live = |node| me.liveness(node) == Liveness::Live;
                let known = Known { live: &live, bad: &|chunk, node| me.board.is_bad(chunk, node) };
                let mut report = fsck::check(view, root, known)?;
                if root == InodeId::ROOT
                    && let Some(text) = recount_hash(view)?
                {
                    report.problems_total += 1;
                    let problem =
                        Problem { kind: ProblemKind::Inconsistent, text, inode: None, chunk: None, path: None };
                    report.problems.insert(0, problem);
                    report.problems.truncate(PROBLEMS_MAX);
                }
                Ok(report)
            };
            namenode.read_long(check).await.map(AdminReply::Fsck)
        }
        AdminRequest::FileInfo { inode } => {
            namenode.leading()?;
            namenode.read_barrier().await?;
            let me = namenode.clone();
            let info = namenode.read_long(move |view| query::file_info(view, inode, &|node| me.liveness(node)));
            let mut info = info.await??;
            for chunk in &mut info.chunks {
                chunk.damaged.extend(chunk.replicas.iter().map(|(node, _)| *node));
                chunk.damaged.retain(|node| namenode.board.is_bad(chunk.chunk, *node));
            }
            Ok(AdminReply::FileInfo(info))
        }
        AdminRequest::ChangeDuty { node, change, dry_run } => duties::change(namenode, node, change, dry_run).await,
        AdminRequest::Scrub { nodes } => duties::scrub(namenode, nodes).await,
        AdminRequest::SetBalance(wanted) => duties::set_balance(namenode, wanted).await,
        AdminRequest::Snapshot => {
            let internal = |error: StoreError| WireError::new(ErrorKind::Internal, error.to_string());
            // It would wait for room; whoever asks wants to know that there is none.
            if !namenode.state.has_room_for_checkpoint().map_err(internal)? {
                return Err(WireError::new(ErrorKind::NoSpace, "no room for a snapshot on this namenode's disk"));
            }
            namenode.consensus.snapshot().await?;
            Ok(AdminReply::Done)
        }
        AdminRequest::Group(request) => group::answer(namenode, request).await.map(AdminReply::Group),
    }
}

/// Waits until this namenode has heard the datanodes, or takes them for dead: before that every replica would seem to be
/// away to one that has just started, and leads.
async fn datanodes_are_known(namenode: &Namenode) -> Result<(), WireError> {
    loop {
        let datanodes = namenode.read(|view| namenode.datanodes(view))?;
        if namenode.nodes.are_known(&datanodes, Instant::now()) {
            return Ok(());
        }
        tokio::time::sleep(SAY_PAUSE).await;
    }
}

/// Forms the group and writes the cluster into its log. If the process dies between the two, the same
/// request finishes what it began; a cluster that exists is never touched.
async fn initialize(
    namenode: &Arc<Namenode>,
    cluster: ClusterId,
    members: Vec<Member>,
    default_replication: u8,
    min_copies: u8,
) -> Result<(), WireError> {
    let invalid = |text: &str| Err(WireError::new(ErrorKind::InvalidArgument, text));
    if cluster != namenode.cluster {
        return invalid("that is not the cluster of this namenode's certificate");
    }
    if !(1..=REPLICATION_MAX).contains(&default_replication) || !(1..=default_replication).contains(&min_copies) {
        return invalid("replication must be 1 to 8, and min_copies at least 1 and not above it");
    }
    let ids: BTreeSet<u64> = members.iter().map(|member| member.node.0).collect();
    if ids.len() != members.len() || members.len() > NAMENODES_MAX || !ids.contains(&namenode.config.node) {
        return invalid("members must be at most 9, all different, and this namenode among them");
    }
    let known = |id: &u64| *id == namenode.config.node || namenode.config.peers.iter().any(|peer| peer.id == *id);
    if !ids.iter().all(known) {
        return invalid("a member is not among this namenode's configured peers");
    }
    let named = |member: Member| {
        let configured = if member.node.0 == namenode.config.node {
            namenode.config.member()
        } else {
            namenode.config.peer(member.node.0).unwrap_or_default()
        };
        (member.node.0, raft::Member { addr: member.addr, ..configured })
    };
    let members: BTreeMap<u64, raft::Member> = members.into_iter().map(named).collect();
    if namenode.consensus.is_initialized().await? && !has_no_cluster(namenode, &members)? {
        return Err(WireError::new(ErrorKind::Exists, "this namenode already belongs to a cluster"));
    }
    if !namenode.consensus.is_initialized().await? {
        all_are_empty(namenode, &ids)?;
        namenode.consensus.initialize(members).await?;
    }
    let command = Body::Genesis {
        cluster,
        default_replication,
        min_copies,
        lease_ms: namenode.config.timers.session_lease_ms,
        key: CapabilityKey { number: 1, secret: rand::random() },
    };
    if !namenode.consensus.wait_to_lead(GENESIS_DEADLINE).await {
        let text = "the group was formed, but this namenode was not elected in time; repeat the request";
        return Err(WireError::new(ErrorKind::Unavailable, text));
    }
    namenode.propose(command).await?;
    info!(target: "audit", %cluster, "cluster created");
    Ok(())
}

/// A group is formed of namenodes that are all there and all empty. Two that have lost their disks would otherwise
/// begin the cluster anew while the third one, with all that was ever acknowledged, is only away.
fn all_are_empty(namenode: &Namenode, ids: &BTreeSet<u64>) -> Result<(), WireError> {
    for id in ids {
        match namenode.consensus.presence(*id) {
            Some(said) if said.initialized => {
                let text = format!("namenode {id} belongs to a group already");
                return Err(WireError::new(ErrorKind::Exists, text));
            }
            Some(_) => {}
            None => {
                let text = format!("namenode {id} does not answer, and a group is formed when all of it is there");
                return Err(WireError::new(ErrorKind::Unavailable, text));
            }
        }
    }
    Ok(())
}

/// Whether the group is ours and its log holds no genesis: the request died half way before.
fn has_no_cluster(namenode: &Namenode, members: &BTreeMap<u64, raft::Member>) -> Result<bool, WireError> {
    let exists = namenode.read(dfs_meta::rows::config)?.is_some();
    Ok(!exists && namenode.consensus.standing().members == *members)
}

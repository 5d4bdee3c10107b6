//! Which namenodes get heartbeats: those of the configuration first, then all that the leader says there are. While no
//! leader is heard, also those that a follower names: the leader may be one of which this node does not know yet.
//!
//! What was learnt is kept in `namenodes.toml` beside the identity, so that a datanode finds its cluster again even
//! after every namenode that its configuration names has been replaced.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_proto::limits::NAMENODES_MAX;
use dfs_proto::msg::admin::{AdminReply, AdminRequest};
use dfs_proto::msg::group::{GroupReply, GroupRequest, GroupStatus};
use dfs_proto::msg::meta::{MetaReply, MetaRequest};
use dfs_rpc::{Connection, call};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Config, NamenodeAddr};
use crate::node::Node;

/// The leader is asked once in so many heartbeats.
pub const BEATS: u32 = 3;

const FILE: &str = "namenodes.toml";

#[derive(Serialize, Deserialize)]
struct Learnt {
    namenodes: Vec<NamenodeAddr>,
}

/// Where a starting node tries to find its namenodes.
pub fn first_contacts(config: &Config) -> Vec<NamenodeAddr> {
    let mut contacts = config.namenodes.clone();
    let learnt = std::fs::read_to_string(path(config)).ok().and_then(|text| toml::from_str::<Learnt>(&text).ok());
    for namenode in learnt.into_iter().flat_map(|learnt| learnt.namenodes) {
        match contacts.iter_mut().find(|known| known.id == namenode.id) {
            Some(known) => *known = namenode,
            None => contacts.push(namenode),
        }
    }
    contacts
}

fn path(config: &Config) -> PathBuf {
    config.data_dir.join(FILE)
}

/// Those who are known after an answer. A leader says who there is; what a follower says may be old, so it only adds.
/// `None` if nobody can be meant.
fn after(known: &[NamenodeAddr], status: &GroupStatus) -> Option<Vec<NamenodeAddr>> {
    if !(1..=NAMENODES_MAX).contains(&status.members.len()) {
        return None;
    }
    let addr = |member: &dfs_proto::msg::group::GroupMember| NamenodeAddr {
        id: member.node,
        name: if member.name.is_empty() { format!("namenode {}", member.node) } else { member.name.clone() },
        addr: member.addr,
    };
    let mut named: Vec<NamenodeAddr> = status.members.iter().map(addr).collect();
    if status.leader == Some(status.from) {
        return Some(named);
    }
    named.retain(|namenode| known.iter().all(|other| other.id != namenode.id));
    let all: Vec<NamenodeAddr> = known.iter().cloned().chain(named).collect();
    // Old members pile up only while nobody leads.
    (all.len() <= 2 * NAMENODES_MAX).then_some(all)
}

/// Asks a namenode who the namenodes are.
pub async fn ask(node: &Node, connection: &Connection) {
    let request = MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show));
    let Ok(MetaReply::Admin(reply)) = call(connection, &request, super::CALL_DEADLINE).await else { return };
    let AdminReply::Group(GroupReply::Members(status)) = *reply else { return };
    let mut members = Vec::new();
    let changed = node.namenodes.send_if_modified(|known| {
        members = after(known, &status).unwrap_or_else(|| known.clone());
        let changed = *known != members;
        known.clone_from(&members);
        changed
    });
    if changed {
        info!(namenodes = members.len(), "the group of namenodes has changed");
        let config = node.config.clone();
        // It is learnt again after the next start if it cannot be kept.
        let _ = tokio::task::spawn_blocking(move || {
            if let Err(error) = keep(&path(&config), members) {
                warn!(%error, "the namenodes cannot be written down");
            }
        })
        .await;
    }
}

fn keep(path: &Path, namenodes: Vec<NamenodeAddr>) -> anyhow::Result<()> {
    let text = toml::to_string(&Learnt { namenodes })?;
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text)?;
    Ok(std::fs::rename(&temporary, path)?)
}

/// Sends heartbeats to all namenodes until `stop`, and to each one more that says so.
pub async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut wanted = node.namenodes.subscribe();
    let mut links = JoinSet::new();
    let mut running: BTreeMap<_, (NamenodeAddr, CancellationToken)> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        running.retain(|_, (namenode, end)| {
            let stays = now.contains(namenode);
            if !stays {
                end.cancel();
            }
            stays
        });
        for namenode in now {
            running.entry(namenode.id).or_insert_with(|| {
                let end = stop.child_token();
                links.spawn(super::run(node.clone(), namenode.clone(), end.clone()));
                (namenode, end)
            });
        }
        tokio::select! {
            () = stop.cancelled() => break,
            // The sender lives in `node`.
            _ = wanted.changed() => {}
            Some(_) = links.join_next() => {}
        }
    }
    while links.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_proto::NodeId;
    use dfs_proto::msg::group::{GroupMember, MemberRole};

    fn status(leader: u64, ids: &[u64]) -> GroupStatus {
        let member = |id: &u64| GroupMember {
            node: NodeId(*id),
            name: format!("nn{id}"),
            addr: ([127, 0, 0, 1], *id as u16).into(),
            raft_addr: None,
            role: MemberRole::Voter,
            reachable: true,
            matched_index: None,
        };
        GroupStatus {
            from: NodeId(1),
            leader: Some(NodeId(leader)),
            term: 1,
            members: ids.iter().map(member).collect(),
            change: None,
            used: Vec::new(),
            checks: Vec::new(),
        }
    }

    #[test]
    fn a_leader_says_who_there_is_and_a_follower_only_who_else() {
        let ids = |known: Option<Vec<NamenodeAddr>>| -> Option<Vec<u64>> {
            Some(known?.iter().map(|namenode| namenode.id.0).collect())
        };
        let known = after(&[], &status(1, &[1, 2, 3])).unwrap();
        assert_eq!(ids(after(&known, &status(1, &[1, 4]))), Some(vec![1, 4]));
        assert_eq!(ids(after(&known, &status(4, &[1, 4]))), Some(vec![1, 2, 3, 4]));
        assert_eq!(ids(after(&known, &status(1, &[]))), None);
        let mut crowd = known;
        while let Some(more) = after(&crowd, &status(4, &[100 + crowd.len() as u64])) {
            crowd = more;
        }
        assert_eq!(crowd.len(), 2 * NAMENODES_MAX);
    }

    #[test]
    fn what_was_learnt_is_found_again_beside_what_is_configured() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        keep(&path, after(&[], &status(1, &[2, 4])).unwrap()).unwrap();
        let learnt: Learnt = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(learnt.namenodes.iter().map(|namenode| namenode.id.0).collect::<Vec<_>>(), [2, 4]);
    }
}

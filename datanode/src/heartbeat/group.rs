//! Which namenodes get heartbeats: those of the configuration first, then all that the leader says there are.
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

/// The members as a leader names them; `None` if it cannot be one that says so.
fn members(status: &GroupStatus) -> Option<Vec<NamenodeAddr>> {
    let sound = status.leader == Some(status.from) && (1..=NAMENODES_MAX).contains(&status.members.len());
    let addr = |member: &dfs_proto::msg::group::GroupMember| NamenodeAddr {
        id: member.node,
        name: if member.name.is_empty() { format!("namenode {}", member.node) } else { member.name.clone() },
        addr: member.addr,
    };
    sound.then(|| status.members.iter().map(addr).collect())
}

/// Asks the leader who the namenodes are.
pub async fn ask(node: &Node, connection: &Connection) {
    let request = MetaRequest::Admin(AdminRequest::Group(GroupRequest::Show));
    let Ok(MetaReply::Admin(reply)) = call(connection, &request, super::CALL_DEADLINE).await else { return };
    let AdminReply::Group(GroupReply::Members(status)) = *reply else { return };
    let Some(members) = members(&status) else { return };
    let changed = node.namenodes.send_if_modified(|known| {
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
    fn only_a_leader_that_names_somebody_is_believed() {
        assert_eq!(members(&status(1, &[1, 4])).unwrap().len(), 2);
        assert_eq!(members(&status(2, &[1, 4])), None);
        assert_eq!(members(&status(1, &[])), None);
    }

    #[test]
    fn what_was_learnt_is_found_again_beside_what_is_configured() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        keep(&path, members(&status(1, &[2, 4])).unwrap()).unwrap();
        let learnt: Learnt = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(learnt.namenodes.iter().map(|namenode| namenode.id.0).collect::<Vec<_>>(), [2, 4]);
    }
}

//! Requests about the group of namenodes itself.

use std::sync::Arc;

use dfs_meta::Body;
use dfs_proto::msg::group::{GroupMember, GroupReply, GroupRequest, GroupStatus, MemberRole, NamenodeAddr, StateCheck};
use dfs_proto::{NodeId, WireError};

use crate::group;
use crate::namenode::Namenode;
use crate::raft::{Change, Member, Standing};

pub async fn answer(namenode: &Arc<Namenode>, request: GroupRequest) -> Result<GroupReply, WireError> {
    let change = match request {
        GroupRequest::Show => return show(namenode).await.map(GroupReply::Members),
        GroupRequest::HandOver { to } => {
            namenode.leading()?;
            let leader = namenode.consensus.hand_over(Some(to.0)).await?;
            return Ok(GroupReply::Leads(NodeId(leader)));
        }
        GroupRequest::CheckState => {
            namenode.leading()?;
            namenode.propose(Body::CheckState).await?;
            return Ok(GroupReply::Changed);
        }
        GroupRequest::Add(new) => Change::Add { id: new.node.0, member: member(new) },
        GroupRequest::Remove { node } => Change::Remove { id: node.0 },
        GroupRequest::Replace { old, new } => Change::Replace { old: old.0, id: new.node.0, member: member(new) },
    };
    group::change(namenode, change).await?;
    Ok(GroupReply::Changed)
}

fn member(NamenodeAddr { node: _, name, addr, raft_addr }: NamenodeAddr) -> Member {
    Member { addr, name, raft_addr: Some(raft_addr) }
}

async fn show(namenode: &Arc<Namenode>) -> Result<GroupStatus, WireError> {
    let leader = namenode.known_leader().await;
    let standing = namenode.consensus.standing();
    let me = namenode.config.node;
    let one = |(id, member): (&u64, &Member)| {
        let own = *id == me;
        // A membership of before names: the configuration knows them.
        let configured = namenode.config.peer(*id).filter(|_| member.name.is_empty()).unwrap_or_default();
        GroupMember {
            node: NodeId(*id),
            name: if member.name.is_empty() { configured.name } else { member.name.clone() },
            addr: member.addr,
            raft_addr: member.raft_addr.or(configured.raft_addr),
            role: role(&standing, *id),
            reachable: own || namenode.consensus.reachable(*id),
            matched_index: if own { Some(standing.last_log_index) } else { standing.matched.get(id).copied() },
        }
    };
    Ok(GroupStatus {
        from: NodeId(me),
        leader: leader.map(NodeId),
        term: standing.term,
        members: standing.members.iter().map(one).collect(),
        change: change(namenode, &standing),
        used: group::used(namenode)?.into_keys().map(NodeId).collect(),
        checks: namenode
            .state
            .checks()
            .into_iter()
            .map(|(index, hash)| StateCheck { index, hash: hash.to_bytes() })
            .collect(),
    })
}

fn change(namenode: &Namenode, standing: &Standing) -> Option<String> {
    let half_done = || (standing.voters.len() > 1).then(|| "a change that is half done is being finished".to_owned());
    namenode.changes.words().or_else(half_done)
}

/// What a member is in a group whose voters are being changed, or are not.
fn role(standing: &Standing, id: u64) -> MemberRole {
    match &standing.voters[..] {
        [.., last] if last.contains(&id) => MemberRole::Voter,
        sets if sets.iter().any(|set| set.contains(&id)) => MemberRole::Leaving,
        _ => MemberRole::Learner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_role_is_that_after_the_change() {
        let standing = Standing { voters: vec![[1, 2, 3].into(), [1, 2, 4].into()], ..Standing::default() };
        let roles = [1, 3, 4, 5].map(|id| role(&standing, id));
        assert_eq!(roles, [MemberRole::Voter, MemberRole::Leaving, MemberRole::Voter, MemberRole::Learner]);
    }
}

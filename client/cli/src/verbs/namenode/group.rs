//! Who the namenodes are, and changing that while they serve.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use dfs_client::{Dfs, Options};
use dfs_proto::NodeId;
use dfs_proto::msg::group::{GroupMember, GroupReply, GroupRequest, GroupStatus, MemberRole, NamenodeAddr};
use serde_json::json;

use crate::context::{Context, load_config};
use crate::error::{Failure, Result};
use crate::local::layout::Layout;
use crate::local::namenodes;
use crate::units;

/// The namenode that is to come. Without addresses it is made and started on this machine, in the folder of `dfs up`.
#[derive(clap::Args, Debug)]
pub struct Newcomer {
    /// Where its meta plane and its Raft plane are reached, if it runs elsewhere already
    #[arg(num_args = 2, value_names = ["ADDR", "RAFT_ADDR"], requires = "id")]
    addrs: Vec<SocketAddr>,
    /// The number in its certificate
    #[arg(long, value_name = "N", requires = "addrs")]
    id: Option<u64>,
}

pub async fn list(context: &Context) -> Result {
    let dfs = Dfs::connect(&context.config()?, Options::default()).await?;
    print(context, &dfs.group_members().await?)
}

pub async fn add(context: &Context, name: Option<String>, newcomer: Newcomer) -> Result {
    let change = Change::begin(context).await?;
    let voter = |member: &&GroupMember| member.role == MemberRole::Voter && Some(&member.name) == name.as_ref();
    if newcomer.addrs.is_empty()
        && let Some(member) = change.group.members.iter().find(voter)
    {
        // An earlier attempt came so far, and was not told; or there was nothing to do.
        let (node, start) = (member.node, Instant::now());
        let said = format!("{} is a namenode of the group", change.name(node));
        return change.conclude(context, [node], Ok(()), said, start).await;
    }
    let new = change.newcomer(context, name, newcomer)?;
    let name = new.name.clone();
    change.finish(context, GroupRequest::Add(new), None, format!("{name} is a namenode of the group")).await
}

pub async fn remove(context: &Context, name: &str) -> Result {
    let change = Change::begin(context).await?;
    let node = change.find(name)?;
    change
        .finish(
            context,
            GroupRequest::Remove { node },
            Some(node),
            format!("{name} is no namenode of the group any more"),
        )
        .await
}

pub async fn replace(context: &Context, old: &str, new: Option<String>, newcomer: Newcomer) -> Result {
    let change = Change::begin(context).await?;
    let node = change.find(old)?;
    let new = change.newcomer(context, new, newcomer)?;
    let said = format!("{} has taken the place of {old}", new.name);
    change.finish(context, GroupRequest::Replace { old: node, new }, Some(node), said).await
}

pub async fn transfer_leader(context: &Context, to: Option<&str>) -> Result {
    let change = Change::begin(context).await?;
    let to = match to {
        Some(name) => change.find(name)?,
        None => best_follower(&change.group)?,
    };
    let start = Instant::now();
    let GroupReply::Leads(leader) = change.dfs.change_group(GroupRequest::HandOver { to }).await? else {
        return Err(Failure::failed("the namenodes answered with something else"));
    };
    let name = change.name(leader);
    if context.out.json {
        let elapsed_ms = start.elapsed().as_millis() as u64;
        return context.out.object(json!({"leader": leader, "leader_name": name, "elapsed_ms": elapsed_ms}));
    }
    context.out.line(format!("{name} leads, after {}", units::duration(start.elapsed())))
}

/// The voter that has most of the log; the first of these.
fn best_follower(group: &GroupStatus) -> Result<NodeId> {
    let followers = group.members.iter().filter(|member| Some(member.node) != group.leader);
    let able = followers.filter(|member| member.role == MemberRole::Voter && member.reachable);
    let best = able.max_by_key(|member| (member.matched_index, std::cmp::Reverse(member.node)));
    best.map(|member| member.node).ok_or_else(|| {
        Failure::failed("there is no other namenode that could lead").hint("dfs namenode list shows who is there")
    })
}

/// So long a leader is waited for after a change: an election, and another one.
const LEADER: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(200);

/// A change about to be made.
struct Change {
    dfs: Dfs,
    group: GroupStatus,
    /// The folder of `dfs up`, locked, if the cluster file is its.
    local: Option<(Layout, std::fs::File)>,
}

impl Change {
    async fn begin(context: &Context) -> Result<Change> {
        let config = context.config()?;
        let layout = Layout::of(None, &context.global.cluster)?;
        let local = match layout.up_toml().exists() && layout.exists() {
            true => Some((layout.lock_folder()?, layout)).map(|(lock, layout)| (layout, lock)),
            false => None,
        };
        let dfs = Dfs::connect(&config, Options::default()).await?;
        let group = dfs.group_members().await?;
        if group.leader.is_none() {
            return Err(Failure::temporary("the namenodes have no leader, and only a leader changes the group")
                .hint("a majority of them must be up; `dfs status` shows which are"));
        }
        Ok(Change { dfs, group, local })
    }

    fn name(&self, node: NodeId) -> String {
        let member = self.group.members.iter().find(|member| member.node == node);
        member.filter(|member| !member.name.is_empty()).map_or(format!("namenode {node}"), |member| member.name.clone())
    }

    /// As a leader sees them: what a follower knows may be from before the change.
    async fn members_by_now(&self) -> Result<GroupStatus> {
        let end = Instant::now() + LEADER;
        loop {
            let group = self.dfs.group_members().await;
            match group {
                Ok(group) if group.leader == Some(group.from) => return Ok(group),
                Err(error) if Instant::now() >= end => return Err(error.into()),
                Ok(_) if Instant::now() >= end => {
                    return Err(Failure::temporary("no leader says who the namenodes are by now")
                        .hint("once a majority of them is up the same command takes the change up again"));
                }
                Ok(_) | Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// By name or by number.
    fn find(&self, name: &str) -> Result<NodeId> {
        let number = name.parse().ok().map(NodeId);
        let is = |member: &&GroupMember| member.name == name || Some(member.node) == number;
        let found = self.group.members.iter().find(is).map(|member| member.node);
        // What an earlier attempt has removed half way is finished by its number.
        let used = number.filter(|node| self.group.used.contains(node));
        found.or(used).ok_or_else(|| {
            let names: Vec<_> = self.group.members.iter().map(|member| self.name(member.node)).collect();
            Failure::of(dfs_proto::ErrorKind::NotFound, format!("the group has no namenode {name}"))
                .hint(format!("its members are {}", names.join(", ")))
        })
    }

    fn newcomer(&self, context: &Context, name: Option<String>, newcomer: Newcomer) -> Result<NamenodeAddr> {
        if let (&[addr, raft_addr], Some(id)) = (&newcomer.addrs[..], newcomer.id) {
            let name = name.ok_or_else(|| Failure::usage("a namenode that runs elsewhere needs a name"))?;
            return Ok(NamenodeAddr { node: NodeId(id), name, addr, raft_addr });
        }
        let Some((layout, _)) = &self.local else {
            return Err(Failure::usage(
                "this cluster was not made by `dfs up`, so no namenode can be made for it here",
            )
            .hint("start one by hand and name it: dfs namenode add NAME ADDR RAFT_ADDR --id N"));
        };
        let config = load_config(&layout.cluster_toml())?;
        let expected = format!("nn{}", namenodes::next_id(&self.group));
        let is_half = |member: &GroupMember| member.role != MemberRole::Voter;
        let half_added =
            |name: &String| self.group.members.iter().any(|member| member.name == *name && is_half(member));
        if let Some(name) = name.filter(|name| *name != expected && !half_added(name)) {
            return Err(Failure::usage(format!("the next namenode here is {expected}, not {name}"))
                .cause("names go with numbers, and a number is never used again")
                .hint(format!("dfs namenode add {expected}")));
        }
        namenodes::start_new(layout, &config, &self.group, context.global.log.as_deref())
    }

    async fn finish(self, context: &Context, request: GroupRequest, gone: Option<NodeId>, said: String) -> Result {
        let start = Instant::now();
        let new = match &request {
            GroupRequest::Add(new) | GroupRequest::Replace { new, .. } => Some(new.node),
            _ => None,
        };
        let done = self.dfs.change_group(request).await.map_err(explained);
        self.conclude(context, gone.into_iter().chain(new), done.map(drop), said, start).await
    }

    /// Has the files of a local cluster say who the namenodes are by now, and tells how it went. Those of the `touched` that
    /// are no members (any more) are stopped.
    async fn conclude(
        self,
        context: &Context,
        touched: impl IntoIterator<Item = NodeId>,
        done: Result,
        said: String,
        start: Instant,
    ) -> Result {
        let group = self.members_by_now().await?;
        if let Some((layout, _lock)) = &self.local {
            let mut config = load_config(&layout.cluster_toml())?;
            namenodes::settle(layout, &mut config, &group, touched).await?;
        }
        done?;
        if self.local.is_none() {
            context.out.note("files that name the namenodes of this cluster are still as they were");
        }
        if context.out.json {
            return context.out.object(object(&group));
        }
        context.out.line(format!("{said}, after {}", units::duration(start.elapsed())))?;
        let voters = group.members.iter().filter(|member| member.role == MemberRole::Voter).count();
        if voters.is_multiple_of(2) {
            context
                .out
                .warning(format!("{voters} namenodes survive no more losses than {}: add or remove one", voters - 1));
        }
        Ok(())
    }
}

/// What to do about a refused change.
fn explained(error: dfs_client::Error) -> Failure {
    let hint = match error.kind {
        dfs_proto::ErrorKind::InvalidArgument => Some("dfs namenode list shows who is there and who answers"),
        dfs_proto::ErrorKind::Timeout | dfs_proto::ErrorKind::Unavailable => {
            Some("the same command takes the change up again")
        }
        _ => None,
    };
    let failure = Failure::from(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn print(context: &Context, group: &GroupStatus) -> Result {
    if context.out.json {
        return context.out.object(object(group));
    }
    for member in &group.members {
        let name = if member.name.is_empty() { format!("node {}", member.node) } else { member.name.clone() };
        let state = match (group.leader == Some(member.node), member.reachable) {
            (true, _) => "leads",
            (false, true) => "follows",
            (false, false) => "silent",
        };
        let matched = member.matched_index.map_or(String::new(), |index| format!("entry {index}"));
        let addr = member.addr.to_string();
        context.out.line(format!("{name:8} {:7} {state:8} {addr:22} {matched}", role(member.role)).trim_end())?;
    }
    match &group.change {
        Some(change) => context.out.line(format!("under way: {change}")),
        None => Ok(()),
    }
}

fn role(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
        MemberRole::Leaving => "leaving",
    }
}

/// As `list` and `status` show the group in JSON.
pub fn object(group: &GroupStatus) -> serde_json::Value {
    let members: Vec<_> = group
        .members
        .iter()
        .map(|member| {
            json!({
                "node": member.node, "name": member.name, "addr": member.addr, "raft_addr": member.raft_addr,
                "role": role(member.role), "reachable": member.reachable, "matched_index": member.matched_index,
                "leader": group.leader == Some(member.node),
            })
        })
        .collect();
    json!({
        "leader": group.leader, "term": group.term, "members": members, "change": group.change, "used": group.used,
        "state_check": group.checks.last().map(|check| json!({
            "index": check.index, "hash": check.hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>(),
        })),
    })
}

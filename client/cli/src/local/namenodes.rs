//! A namenode more or less in a local cluster: its folder, its process, and the files that name the namenodes.

use std::fs;
use std::path::Path;

use dfs_client::{ClusterConfig, NodeAddr};
use dfs_proto::NodeId;
use dfs_proto::msg::group::{GroupStatus, MemberRole, NamenodeAddr};
use dfs_rpc::pki::Authority;
use rustix::process::Signal;
use std::time::Duration;

use super::layout::{Kind, Layout, Member};
use super::process::{self, Process};
use super::settings::Settings;
use super::{images, ports, scaffold};
use crate::error::{Failure, Result};

/// Time for an orderly stop.
const GRACE: Duration = Duration::from_secs(20);

/// The number that the next namenode gets: behind every one that was ever used.
pub fn next_id(group: &GroupStatus) -> u64 {
    let members = group.members.iter().map(|member| member.node);
    group.used.iter().copied().chain(members).map(|node| node.0).max().unwrap_or(0) + 1
}

/// Makes a further namenode and starts it; empty and no member yet. One that an earlier attempt has left is taken up.
pub fn start_new(
    layout: &Layout,
    config: &ClusterConfig,
    group: &GroupStatus,
    log: Option<&str>,
) -> Result<NamenodeAddr> {
    let settings = Settings::load(layout)?;
    let left = |id: u64| layout.config(Member { kind: Kind::Namenode, index: id as usize }).exists();
    let learner = group.members.iter().find(|member| member.role == MemberRole::Learner);
    let id = learner.map(|member| member.node.0).filter(|id| left(*id)).unwrap_or_else(|| next_id(group));
    let member = Member { kind: Kind::Namenode, index: id as usize };
    let path = layout.config(member);
    if !path.exists() {
        make(layout, config, group, &settings, member)?;
    }
    let made = dfs_namenode::Config::load(&path).map_err(|error| Failure::failed(format!("{error:#}")))?;
    if settings.fs.is_some() {
        images::mount(layout, member)?;
    }
    if Process::find(layout, member).is_none() {
        scaffold::write_start_script(layout, &settings, config, member, log)?;
        process::start(layout, member)?;
    }
    Ok(NamenodeAddr { node: NodeId(id), name: made.name, addr: made.listen, raft_addr: made.raft_listen })
}

fn make(layout: &Layout, config: &ClusterConfig, group: &GroupStatus, settings: &Settings, member: Member) -> Result {
    let taken = group.members.iter().flat_map(|member| [Some(member.addr), member.raft_addr]).flatten().collect();
    let (addr, raft_addr) = ports::pick_for_namenode(config, &taken)?;
    match settings.fs {
        Some(fs) => images::make(layout, member, fs)?,
        None if !layout.folder(member).is_dir() => scaffold::make_private_dir(&layout.folder(member))?,
        None => {}
    }
    scaffold::give_certificate(layout, &Authority::load(&layout.pki())?, member)?;
    let own = NamenodeAddr { node: member.id(), name: member.name(), addr, raft_addr };
    let mut peers = known(group);
    peers.push(own.clone());
    let text = scaffold::namenode_toml(config, &own, &peers, member);
    let path = layout.config(member);
    let temporary = path.with_extension("toml.new");
    // Whole or not at all: its presence says that the rest is there.
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, &path))
        .map_err(|error| Failure::local(&path, &error))
}

/// The members whose Raft address is known.
fn known(group: &GroupStatus) -> Vec<NamenodeAddr> {
    let one = |member: &dfs_proto::msg::group::GroupMember| {
        Some(NamenodeAddr {
            node: member.node,
            name: member.name.clone(),
            addr: member.addr,
            raft_addr: member.raft_addr?,
        })
    };
    group.members.iter().filter_map(one).collect()
}

/// After a change that was asked for, done or not: the files name who belongs to the group now, learners too, and a
/// process that does not belong to it is stopped. Then `dfs down` finds all that runs.
pub async fn settle(
    layout: &Layout,
    config: &mut ClusterConfig,
    group: &GroupStatus,
    touched: impl IntoIterator<Item = NodeId>,
) -> Result {
    write_down(layout, config, group)?;
    for node in touched {
        if !group.members.iter().any(|member| member.node == node) {
            stop_old(layout, node).await?;
        }
    }
    Ok(())
}

/// Stops the process of a namenode that is no member any more. Its folder stays.
async fn stop_old(layout: &Layout, node: NodeId) -> Result {
    let member = Member { kind: Kind::Namenode, index: node.0 as usize };
    if let Some(process) = Process::find(layout, member) {
        process.signal(Signal::TERM)?;
        if !process.ended(GRACE).await {
            process.signal(Signal::KILL)?;
        }
    }
    // A file that stays would only name a number that is somebody else's one day.
    let _ = fs::remove_file(layout.pid(member));
    Ok(())
}

/// Has every file of the cluster name the namenodes that there are: as first contacts, from the next start on.
fn write_down(layout: &Layout, config: &mut ClusterConfig, group: &GroupStatus) -> Result {
    let members = known(group);
    let named = |node: &NamenodeAddr| NodeAddr { id: node.node, name: node.name.clone(), addr: node.addr };
    config.namenodes = members.iter().map(named).collect();
    config.save(&layout.cluster_toml())?;
    let mut settings = Settings::load(layout)?;
    settings.namenodes = config.namenodes.len();
    settings.save(layout)?;
    let (peers, namenodes) = (scaffold::peers_section(&members), scaffold::namenodes_section(&config.namenodes));
    for member in scaffold::nodes(config) {
        match member.kind {
            Kind::Namenode => replace_tables(&layout.config(member), "[[peers]]", &peers)?,
            _ => replace_tables(&layout.config(member), "[[namenodes]]", &namenodes)?,
        }
    }
    for index in 1..=config.mounts.len() {
        let path = layout.config(Member { kind: Kind::Mount, index });
        let mut own = ClusterConfig::load(&path)?;
        own.namenodes.clone_from(&config.namenodes);
        own.save(&path)?;
    }
    Ok(())
}

/// Puts `tables` in the place of those that the file ends with. A file in which other things follow is somebody's own
/// work and stays as it is.
fn replace_tables(path: &Path, header: &str, tables: &str) -> Result {
    let text = fs::read_to_string(path).map_err(|error| Failure::local(path, &error))?;
    let Some(new) = with_tables(&text, header, tables) else { return Ok(()) };
    let temporary = path.with_extension("toml.new");
    fs::write(&temporary, new).and_then(|()| fs::rename(&temporary, path)).map_err(|error| Failure::local(path, &error))
}

fn with_tables(text: &str, header: &str, tables: &str) -> Option<String> {
    let (head, tail) = text.split_once(header)?;
    let ours = |line: &str| {
        let keys = ["id =", "name =", "addr =", "raft_addr ="];
        line.is_empty() || line == header || keys.iter().any(|key| line.starts_with(key))
    };
    tail.lines().all(|line| ours(line.trim())).then(|| format!("{}\n{tables}", head.trim_end_matches('\n')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_at_the_end_are_replaced_and_nothing_else_is() {
        let text = "node = 1\n\n[tls]\nca = \"x\"\n\n[[peers]]\nid = 1\nname = \"nn1\"\n\n[[peers]]\nid = 2\n";
        let new = with_tables(text, "[[peers]]", "\n[[peers]]\nid = 7\n").unwrap();
        assert_eq!(new, "node = 1\n\n[tls]\nca = \"x\"\n\n[[peers]]\nid = 7\n");
        assert_eq!(with_tables(&format!("{text}\n[timers]\nx = 1\n"), "[[peers]]", ""), None);
        assert_eq!(with_tables("node = 1\n", "[[peers]]", ""), None);
    }

    #[test]
    fn a_number_that_was_used_is_passed_over() {
        let group = GroupStatus {
            from: NodeId(1),
            leader: Some(NodeId(1)),
            term: 1,
            members: Vec::new(),
            change: None,
            used: [1, 2, 3, 5].map(NodeId).to_vec(),
            checks: Vec::new(),
        };
        assert_eq!(next_id(&group), 6);
    }
}

//! Links that are cut, both ways or one way, and links that lose packets. For a cluster that was started with
//! `--netns`, in which every process has a network namespace and an address of its own.
//!
//! Packets are dropped where they arrive: the sender is told nothing, as on a real network.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Fault;
use crate::launcher::Launcher;
use crate::local::Cluster;

/// The network of a cluster, and a table of rules in each of its namespaces.
pub struct Network {
    /// Where each node and mount is.
    places: BTreeMap<String, Place>,
    launcher: Arc<Launcher>,
}

struct Place {
    namespace: String,
    addr: String,
}

/// A set of senders that are not heard, and a share of packets that are lost.
const TABLE: &str = "add table inet torture; \
     add set inet torture unheard { type ipv4_addr; }; \
     add chain inet torture arriving { type filter hook input priority 0; policy accept; }; \
     add rule inet torture arriving ip saddr @unheard drop; \
     add chain inet torture losing { type filter hook input priority 1; policy accept; }";

impl Network {
    /// Of a running cluster.
    pub fn of(cluster: &Cluster) -> Result<Network> {
        let settings = cluster.dir().join("up.toml");
        let text = std::fs::read_to_string(&settings).with_context(|| settings.display().to_string())?;
        let number = text.lines().find_map(|line| line.strip_prefix("network = "));
        let number: u16 = number.context("the cluster was not started with --netns")?.trim().parse()?;
        let mut names = cluster.nodes();
        names.extend((1..=cluster.mounts().len()).map(|number| format!("m{number}")));
        let mut network = Network { places: BTreeMap::new(), launcher: cluster.launcher() };
        for name in names {
            let namespace = format!("dfs{number:04x}-{name}");
            let place = Place { addr: address(&namespace)?, namespace };
            network.nft(&place, TABLE)?;
            network.places.insert(name, place);
        }
        Ok(network)
    }

    /// Everybody who has a place in it.
    pub fn names(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    /// What `from` sends no longer arrives at `to`, for each of these links. Undone, all of them work again.
    pub fn cut(&self, links: &[(String, String)]) -> Result<Fault<'_>> {
        let what: Vec<String> = links.iter().map(|(from, to)| format!("{from}>{to}")).collect();
        let healed = links.to_vec();
        let fault = Fault::new(format!("cut {}", what.join(" ")), move || {
            healed.iter().try_for_each(|(from, to)| self.change("delete", from, to))
        });
        links.iter().try_for_each(|(from, to)| self.change("add", from, to))?;
        Ok(fault)
    }

    fn change(&self, verb: &str, from: &str, to: &str) -> Result<()> {
        let addr = &self.place(from)?.addr;
        self.nft(self.place(to)?, &format!("{verb} element inet torture unheard {{ {addr} }}"))
    }

    /// So many of a hundred packets that arrive at any of them are lost.
    pub fn lose(&self, percent: u64) -> Result<Fault<'_>> {
        ensure!(percent <= 100, "{percent} of a hundred");
        let fault = Fault::new(format!("{percent} % of packets lost"), move || {
            self.places.values().try_for_each(|place| self.nft(place, "flush chain inet torture losing"))
        });
        let rule = format!("add rule inet torture losing meta l4proto udp numgen random mod 100 < {percent} drop");
        self.places.values().try_for_each(|place| self.nft(place, &rule))?;
        Ok(fault)
    }

    fn nft(&self, place: &Place, commands: &str) -> Result<()> {
        let namespace = format!("--net=/run/netns/{}", place.namespace);
        self.launcher.run(&["nsenter", &namespace, "nft", commands])
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.places.get(name).with_context(|| format!("there is no {name}"))
    }
}

/// The address of a namespace's only device.
fn address(namespace: &str) -> Result<String> {
    let mut command = Command::new("/usr/sbin/ip");
    command.args(["-n", namespace, "-json", "-4", "addr", "show", "dev", "eth0"]).stdin(Stdio::null());
    let output = command.output().context("ip, of the package iproute2")?;
    let shown: Value = serde_json::from_slice(&output.stdout).with_context(|| format!("{namespace}: {output:?}"))?;
    match shown[0]["addr_info"][0]["local"].as_str() {
        Some(addr) => Ok(addr.to_owned()),
        None => bail!("{namespace} has no address: {shown}"),
    }
}

/// The links between two groups, both ways.
pub fn between(some: &[String], others: &[String]) -> Vec<(String, String)> {
    let pairs = some.iter().flat_map(|one| others.iter().map(move |other| (one.clone(), other.clone())));
    pairs
        .filter(|(one, other)| one != other)
        .flat_map(|(one, other)| [(one.clone(), other.clone()), (other, one)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_between_groups_go_both_ways_and_never_to_oneself() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let links = between(&names(&["a"]), &names(&["a", "b", "c"]));
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(links, [pair("a", "b"), pair("b", "a"), pair("a", "c"), pair("c", "a")]);
    }
}

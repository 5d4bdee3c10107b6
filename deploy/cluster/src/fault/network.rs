//! Links that are cut, both ways or one way, and links that lose packets. For a cluster that was started with
//! `--netns`, in which every process has a network namespace and an address of its own.
//!
//! Packets are dropped where they arrive: the sender is told nothing, as on a real network.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Fault;
use crate::launcher::Launcher;
use crate::local::{Cluster, names_in};

/// The network of a cluster, and a table of rules in each of its namespaces.
pub struct Network {
    /// Where each node and mount is.
    places: BTreeMap<String, Place>,
    /// The number of the cluster's network.
    number: u16,
    /// The cluster file: who is in it has a place that `dfs down` takes away.
    config: PathBuf,
    launcher: Arc<Launcher>,
}

struct Place {
    namespace: String,
    addr: String,
}

/// The last byte of namenodes' addresses begins here, as `dfs up --netns` gives them out.
const NAMENODES: usize = 10;

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
        let mut network =
            Network { places: BTreeMap::new(), number, config: cluster.config(), launcher: cluster.launcher() };
        names.into_iter().try_for_each(|name| network.know(name))?;
        Ok(network)
    }

    /// From here on links of this one can be cut too.
    fn know(&mut self, name: String) -> Result<()> {
        let namespace = self.namespace(&name);
        let place = Place { addr: address(&namespace)?, namespace };
        self.nft(&place, TABLE)?;
        self.places.insert(name, place);
        Ok(())
    }

    fn namespace(&self, name: &str) -> String {
        format!("dfs{:04x}-{name}", self.number)
    }

    /// Wires a namenode that is about to be made, as `dfs up` has wired those of the beginning; returns its address. Nobody
    /// else does: `dfs namenode add` knows machines that are there, and this machine's own address.
    pub fn wire_namenode(&mut self, name: &str) -> Result<String> {
        let known = self.places.values().next().context("a network has places")?;
        let (subnet, _) = known.addr.rsplit_once('.').context("an address has dots")?;
        let number: usize = name.strip_prefix("nn").context("namenodes are numbered")?.parse()?;
        let addr = format!("{subnet}.{}", NAMENODES + number);
        let (namespace, bridge) = (self.namespace(name), format!("dfs{:04x}", self.number));
        let outer = format!("d{:04x}-{name}", self.number);
        self.ip(&format!("netns add {namespace}"))?;
        self.ip(&format!("link add {outer} type veth peer name eth0 netns {namespace}"))?;
        self.ip(&format!("link set {outer} master {bridge} up"))?;
        self.ip(&format!("-n {namespace} addr add {addr}/24 dev eth0"))?;
        self.ip(&format!("-n {namespace} link set eth0 up"))?;
        self.ip(&format!("-n {namespace} link set lo up"))?;
        self.know(name.to_owned())?;
        Ok(addr)
    }

    /// Takes away the wires of one that has ended for good: `dfs down` does not know that it ever was.
    pub fn unwire(&mut self, name: &str) -> Result<()> {
        let place = self.places.remove(name).with_context(|| format!("there is no {name}"))?;
        self.ip(&format!("netns delete {}", place.namespace))
    }

    fn ip(&self, arguments: &str) -> Result<()> {
        let words: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
        self.launcher.run(&words)
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

impl Drop for Network {
    fn drop(&mut self) {
        let Ok(text) = std::fs::read_to_string(&self.config) else { return };
        let named = names_in(&text, "namenodes");
        // A namenode that did not come to join, or one that has gone and was not unwired any more.
        let left: Vec<String> =
            self.places.keys().filter(|name| name.starts_with("nn") && !named.contains(name)).cloned().collect();
        for name in left {
            if let Err(error) = self.unwire(&name) {
                eprintln!("the network of {name}: {error:#}");
            }
        }
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

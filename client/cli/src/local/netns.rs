//! A network of its own for each process of a local cluster, so that links between them can be cut one by one.
//!
//! Every process runs in a network namespace with one address. A pair of virtual devices leads from it to a bridge, on
//! which this machine itself has an address too: commands that are run here reach everybody. Nothing leaves the
//! machine. With `N` the four hexadecimal digits of the cluster's network number:
//!
//! ```text
//! dfsN         the bridge; this machine is 10.x.y.1 there
//! dfsN-nn1     the namespace of nn1; its only device is eth0     (dn1, m1 alike)
//! dN-nn1       the other end of that device, at the bridge
//! ```

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::layout::{Kind, Member};
use super::ports::Ports;
use crate::error::{Failure, Result};

/// Everybody has an address of their own, so all have the same ports.
const META_PORT: u16 = 8020;
const RAFT_PORT: u16 = 8030;
const DATA_PORT: u16 = 9866;

/// Where `ip netns` keeps its names.
const NAMESPACES: &str = "/run/netns";

/// The last byte of addresses: this machine, then where each kind begins.
const HOST: u8 = 1;
const NAMENODES: usize = 10;
const DATANODES: usize = 100;
const MOUNTS: usize = 170;

/// The network of one cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    pub number: u16,
}

impl Network {
    /// One that no cluster on this machine has.
    pub fn pick() -> Result<Network> {
        check_allowed()?;
        // Those that are taken are few; so many in a row are not.
        let networks = (0..64).map(|_| Network { number: rand::random() });
        let mut free = networks.filter(|network| !device(&network.bridge()).exists());
        free.next().ok_or_else(|| Failure::failed("every network number that was tried is taken"))
    }

    pub fn ports(self, namenodes: usize, datanodes: usize) -> Ports {
        let addrs = |kind, count, port| {
            let members = Member::all(kind, count).into_iter();
            members.map(|member| SocketAddr::new(IpAddr::V4(self.addr(member)), port)).collect()
        };
        Ports {
            meta: addrs(Kind::Namenode, namenodes, META_PORT),
            raft: addrs(Kind::Namenode, namenodes, RAFT_PORT),
            data: addrs(Kind::Datanode, datanodes, DATA_PORT),
        }
    }

    /// Words before a command that run it in the member's namespace. `nsenter` and not `ip netns exec`, which would
    /// hide mounts as well.
    pub fn prefix(self, member: Member) -> Vec<String> {
        vec!["nsenter".to_owned(), format!("--net={}", self.namespace_path(member).display())]
    }

    /// Makes what is missing: the bridge, the member's namespace, its device. They do not outlive a restart of the
    /// machine.
    pub fn make(self, member: Member) -> Result {
        check_allowed()?;
        let bridge = self.bridge();
        if !device(&bridge).exists() {
            ip(&format!("link add {bridge} type bridge"))?;
            ip(&format!("addr add {}/24 dev {bridge}", self.last(HOST)))?;
            ip(&format!("link set {bridge} up"))?;
        }
        if self.namespace_path(member).exists() {
            return Ok(());
        }
        let (namespace, outer) = (self.namespace(member), self.outer(member));
        ip(&format!("netns add {namespace}"))?;
        let made = (|| {
            ip(&format!("link add {outer} type veth peer name eth0 netns {namespace}"))?;
            ip(&format!("link set {outer} master {bridge} up"))?;
            ip(&format!("-n {namespace} addr add {}/24 dev eth0", self.addr(member)))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            ip(&format!("-n {namespace} link set lo up"))
        })();
        // Half made, it would be taken for whole the next time.
        made.inspect_err(|_| drop(ip(&format!("netns delete {namespace}"))))
    }

    /// Takes it all away again; the processes have ended.
    pub fn remove(self, members: &[Member]) -> Result {
        for member in members {
            if self.namespace_path(*member).exists() {
                ip(&format!("netns delete {}", self.namespace(*member)))?;
            }
        }
        if device(&self.bridge()).exists() { ip(&format!("link delete {}", self.bridge())) } else { Ok(()) }
    }

    fn bridge(self) -> String {
        format!("dfs{:04x}", self.number)
    }

    fn namespace(self, member: Member) -> String {
        format!("dfs{:04x}-{}", self.number, member.name())
    }

    fn namespace_path(self, member: Member) -> PathBuf {
        Path::new(NAMESPACES).join(self.namespace(member))
    }

    /// At most 15 bytes, as the name of a device.
    fn outer(self, member: Member) -> String {
        format!("d{:04x}-{}", self.number, member.name())
    }

    fn addr(self, member: Member) -> Ipv4Addr {
        let base = match member.kind {
            Kind::Namenode => NAMENODES,
            Kind::Datanode => DATANODES,
            Kind::Mount => MOUNTS,
        };
        self.last(u8::try_from(base + member.index).unwrap_or(u8::MAX))
    }

    /// A quarter of 10.0.0.0/8, away from where most sites begin to count.
    fn last(self, last: u8) -> Ipv4Addr {
        let [high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(10, 64 + high % 64, low, last)
    }
}

fn device(name: &str) -> PathBuf {
    Path::new("/sys/class/net").join(name)
}

fn check_allowed() -> Result {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::usage("--netns needs root: it makes network namespaces").hint("leave --netns out, or use sudo"))
}

/// Runs `ip`, of iproute2.
fn ip(arguments: &str) -> Result {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("ip");
    let output = command.args(arguments.split(' ')).env("PATH", path).stdin(Stdio::null()).output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Failure::usage("ip is not installed").hint("apt install iproute2"));
        }
        output => output.map_err(|error| Failure::local(Path::new("ip"), &error))?,
    };
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::failed(format!("ip {arguments} failed"))
        .cause(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::settings::DATANODES_MAX;
    use std::collections::BTreeSet;

    #[test]
    fn everybody_has_an_address_and_the_names_of_devices_fit() {
        let network = Network { number: 0xffff };
        let mut members = Member::all(Kind::Namenode, 5);
        members.extend(Member::all(Kind::Datanode, DATANODES_MAX));
        members.extend(Member::all(Kind::Mount, 80));
        let addrs: BTreeSet<Ipv4Addr> = members.iter().map(|member| network.addr(*member)).collect();
        assert_eq!(addrs.len(), members.len());
        assert!(!addrs.contains(&network.last(HOST)) && addrs.iter().all(|addr| addr.octets()[3] < 255));
        assert!(members.iter().all(|member| network.outer(*member).len() <= 15));
    }

    #[test]
    fn networks_with_other_numbers_have_other_names() {
        let (one, other) = (Network { number: 1 }, Network { number: 2 });
        let nn1 = Member { kind: Kind::Namenode, index: 1 };
        assert_eq!(one.prefix(nn1), ["nsenter", "--net=/run/netns/dfs0001-nn1"]);
        assert_ne!((one.bridge(), one.addr(nn1)), (other.bridge(), other.addr(nn1)));
        let ports = one.ports(3, 4);
        assert_eq!(ports.meta[0].to_string(), "10.64.1.11:8020");
        assert_eq!(ports.data[3].to_string(), "10.64.1.104:9866");
    }
}

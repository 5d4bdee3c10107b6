//! UDP ports of a local cluster. HDFS users know 8020; the rest follows it.

use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use dfs_client::ClusterConfig;

use crate::error::{Failure, Result};

pub const DEFAULT_BASE: u16 = 8020;

/// Offsets from the base: namenodes at 0, their Raft plane at 10, datanodes at 20.
const RAFT_OFFSET: usize = 10;
const DATA_OFFSET: usize = 20;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ports {
    pub meta: Vec<SocketAddr>,
    pub raft: Vec<SocketAddr>,
    pub data: Vec<SocketAddr>,
}

/// Ports of one cluster lie in a block of so many.
const BLOCK: u16 = 100;

/// Above it the kernel picks ports for everybody's outgoing sockets: one of them could sit on a node's port
/// while the node is being restarted.
const END: u16 = 32_000;

/// Picks a port for everyone. With a base that was asked for, a port that is taken is an error; without,
/// the next block of ports that are all free takes its place.
pub fn pick(base: Option<u16>, namenodes: usize, datanodes: usize) -> Result<Ports> {
    if let Some(base) = base {
        return pick_from(base, namenodes, datanodes).map_err(|failure| failure.hint("--base-port N moves all ports"));
    }
    let mut picked = pick_from(DEFAULT_BASE, namenodes, datanodes);
    for base in (DEFAULT_BASE..END).step_by(BLOCK.into()).skip(1) {
        if picked.is_ok() {
            break;
        }
        picked = pick_from(base, namenodes, datanodes);
    }
    picked
}

fn pick_from(base: u16, namenodes: usize, datanodes: usize) -> Result<Ports> {
    let choose = |offset: usize, count: usize| -> Result<Vec<SocketAddr>> {
        let ports = offset..offset + count;
        ports.map(|offset| choose_one(usize::from(base) + offset)).collect()
    };
    Ok(Ports {
        meta: choose(0, namenodes)?,
        raft: choose(RAFT_OFFSET, namenodes)?,
        data: choose(DATA_OFFSET, datanodes)?,
    })
}

fn choose_one(port: usize) -> Result<SocketAddr> {
    let port = u16::try_from(port)
        .map_err(|_| Failure::usage("--base-port is too high: the ports above it are needed too"))?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    check_free(addr)?;
    Ok(addr)
}

/// A free port for one more node, above those of its kind.
pub fn pick_above(port: u16) -> Result<SocketAddr> {
    let free = (port + 1..END).map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let found = free.into_iter().find(|addr| check_free(*addr).is_ok());
    found.ok_or_else(|| Failure::failed(format!("no UDP port from {port} to {END} is free")))
}

/// A meta and a Raft address for one more namenode: the first free ones of those that are kept for namenodes.
pub fn pick_for_namenode(config: &ClusterConfig, taken: &BTreeSet<SocketAddr>) -> Result<(SocketAddr, SocketAddr)> {
    // The first datanode's port says where the block begins; without one the first namenode's does.
    let data = config.datanodes.first().map(|node| usize::from(node.addr.port()).saturating_sub(DATA_OFFSET));
    let base = data.or(config.namenodes.first().map(|node| node.addr.port().into())).unwrap_or(DEFAULT_BASE.into());
    let free = |offset: usize| {
        (base + offset..base + offset + RAFT_OFFSET)
            .find_map(|port| choose_one(port).ok().filter(|addr| !taken.contains(addr)))
    };
    let none = || Failure::failed(format!("none of the UDP ports for namenodes from {base} on is free"));
    Ok((free(0).ok_or_else(none)?, free(RAFT_OFFSET).ok_or_else(none)?))
}

/// Whether a node that is about to start will get its port.
pub fn check_free(addr: SocketAddr) -> Result {
    match UdpSocket::bind(addr) {
        Ok(_) => Ok(()),
        Err(error) => Err(taken(addr.port(), &error)),
    }
}

fn taken(port: u16, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::AddrInUse => Failure::failed(format!("UDP port {port} is taken by another program")),
        _ => Failure::io(format!("UDP port {port} cannot be used"), error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_given_out_once() {
        let ports = pick(None, 3, 4).unwrap();
        let all: BTreeSet<_> = [&ports.meta, &ports.raft, &ports.data].into_iter().flatten().collect();
        assert_eq!(all.len(), 10);
    }

    #[test]
    fn a_taken_port_is_named_if_it_was_asked_for() {
        let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let failure = pick(Some(port), 1, 1).unwrap_err();
        assert!(failure.message().contains(&port.to_string()), "{failure}");
        assert!(failure.render(false).contains("--base-port"));
        assert!(check_free(taken.local_addr().unwrap()).is_err());
    }

    #[test]
    fn a_base_too_high_is_refused() {
        assert_eq!(pick(Some(65_530), 3, 4).unwrap_err().exit, crate::error::Exit::Usage);
    }
}

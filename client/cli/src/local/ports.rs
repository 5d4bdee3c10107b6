//! UDP ports of a local cluster. HDFS users know 8020; the rest follows it.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

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

/// Picks a port for everyone. With a base that was asked for, a port that is taken is an error; without,
/// any free one takes its place.
pub fn pick(base: Option<u16>, namenodes: usize, datanodes: usize) -> Result<Ports> {
    // All sockets stay open until the last is chosen: none is given out twice.
    let mut held = Vec::new();
    let mut choose = |offset: usize, count: usize| -> Result<Vec<SocketAddr>> {
        (offset..offset + count).map(|offset| choose_one(base, offset, &mut held)).collect()
    };
    let meta = choose(0, namenodes)?;
    let raft = choose(RAFT_OFFSET, namenodes)?;
    let data = choose(DATA_OFFSET, datanodes)?;
    Ok(Ports { meta, raft, data })
}

fn choose_one(base: Option<u16>, offset: usize, held: &mut Vec<UdpSocket>) -> Result<SocketAddr> {
    let wanted = u16::try_from(usize::from(base.unwrap_or(DEFAULT_BASE)) + offset)
        .map_err(|_| Failure::usage("--base-port is too high: the ports above it are needed too"))?;
    let bound = match UdpSocket::bind((Ipv4Addr::LOCALHOST, wanted)) {
        Ok(socket) => Ok(socket),
        Err(error) if base.is_some() => return Err(taken(wanted, &error).hint("--base-port N moves all ports")),
        Err(_) => UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)),
    };
    let socket = bound.map_err(|error| Failure::io("no free UDP port", &error))?;
    let addr = socket.local_addr().map_err(|error| Failure::io("no free UDP port", &error))?;
    held.push(socket);
    Ok(addr)
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
    use std::collections::BTreeSet;

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

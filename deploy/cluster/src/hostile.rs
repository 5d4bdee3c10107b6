//! Peers that mean harm, without a certificate: whoever can send datagrams to a node's ports, and has listened to others.
//!
//! A relay listens while a client works. What it has recorded is sent again, whole, cut short or changed, among noise of
//! many shapes. The first datagrams of a client, sent again, begin handshakes that nobody ends; there is no QUIC here,
//! and none is needed for that.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::dice::Dice;

/// What is sent.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Datagram {
    /// Random bytes of any length that fits into a packet.
    Noise,
    /// Random bytes, up to as many as UDP carries.
    Oversized,
    /// The first packet of a connection in a version that nobody speaks: a server has to answer with its own ones.
    UnknownVersion,
    /// The first packet of a connection as far as it can be read without keys.
    ForgedInitial,
    /// A packet of a connection that nobody knows.
    ForgedShort,
    /// As a client has sent it.
    Replayed,
    /// The first datagram of a client, which begins a handshake.
    HalfOpen,
    /// The front part of what a client has sent.
    Truncated,
    /// One bit of it is another.
    Flipped,
}

impl Datagram {
    pub const ALL: [Datagram; 9] = [
        Datagram::Noise,
        Datagram::Oversized,
        Datagram::UnknownVersion,
        Datagram::ForgedInitial,
        Datagram::ForgedShort,
        Datagram::Replayed,
        Datagram::HalfOpen,
        Datagram::Truncated,
        Datagram::Flipped,
    ];
}

/// From RFC 9000: a client's first datagram has at least so many bytes, and servers ignore shorter ones.
const INITIAL_MIN: usize = 1200;

/// What fits into a packet of an Ethernet.
const PACKET_MAX: u64 = 1472;

/// What fits into a datagram of IPv4.
const DATAGRAM_MAX: u64 = 65_507;

/// Long header, fixed bit, type Initial.
const INITIAL: u8 = 0xc0;

/// The bytes of a datagram of this kind; what was recorded must not be empty.
fn forge(kind: Datagram, recorded: &Recording, dice: &mut Dice) -> Vec<u8> {
    match kind {
        Datagram::Noise => random(dice.between(1, PACKET_MAX), dice),
        Datagram::Oversized => random(dice.between(PACKET_MAX + 1, DATAGRAM_MAX), dice),
        Datagram::UnknownVersion => initial(0x0a1a_2a3a, dice),
        Datagram::ForgedInitial => initial(1, dice),
        Datagram::ForgedShort => {
            let mut bytes = random(dice.between(21, PACKET_MAX), dice);
            bytes[0] = 0x40 | (bytes[0] & 0x3f);
            bytes
        }
        Datagram::Replayed => dice.pick(&recorded.sent).clone(),
        Datagram::HalfOpen => dice.pick(&recorded.first).clone(),
        Datagram::Truncated => {
            let whole = dice.pick(&recorded.sent);
            whole[..dice.between(0, whole.len() as u64 - 1) as usize].to_vec()
        }
        Datagram::Flipped => {
            let mut bytes = dice.pick(&recorded.sent).clone();
            let at = dice.between(0, bytes.len() as u64 - 1) as usize;
            bytes[at] ^= 1 << dice.between(0, 7);
            bytes
        }
    }
}

/// A first packet whose header reads well and whose rest is random: numbers of the connection of 8 bytes, no token.
fn initial(version: u32, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = vec![INITIAL];
    bytes.extend(version.to_be_bytes());
    for _ in 0..2 {
        bytes.push(8);
        bytes.extend(dice.throw().to_be_bytes());
    }
    bytes.push(0);
    // The length of what follows, in a number of two bytes.
    let rest = INITIAL_MIN - bytes.len() - 2;
    bytes.extend((0x4000 | rest as u16).to_be_bytes());
    bytes.extend(random(rest as u64, dice));
    bytes
}

fn random(len: u64, dice: &mut Dice) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    blake3::Hasher::new().update(&dice.throw().to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// What clients have sent.
#[derive(Clone, Default, Debug)]
pub struct Recording {
    /// Every datagram, each once.
    pub sent: Vec<Vec<u8>>,
    /// Those among them that begin a connection.
    pub first: Vec<Vec<u8>>,
}

impl Recording {
    fn note(&mut self, datagram: &[u8]) {
        let datagram = datagram.to_vec();
        if begins_connection(&datagram) && !self.first.contains(&datagram) {
            self.first.push(datagram.clone());
        }
        if !self.sent.contains(&datagram) {
            self.sent.push(datagram);
        }
    }

    pub fn add(&mut self, other: Recording) {
        other.sent.iter().for_each(|datagram| self.note(datagram));
    }
}

fn begins_connection(datagram: &[u8]) -> bool {
    // The two bits behind the fixed one are the type, and Initial is 0.
    datagram.len() >= INITIAL_MIN && datagram[0] & 0xf0 == INITIAL
}

/// Stands between clients and nodes, and writes down what clients send.
pub struct Relay {
    /// Where a client finds the node that it takes this for.
    pub addr: SocketAddr,
    stop: Arc<AtomicBool>,
    recorded: Arc<Mutex<Recording>>,
    thread: Option<JoinHandle<()>>,
}

/// How long a thread sleeps in a call before it looks whether it should end.
const PATIENCE: Duration = Duration::from_millis(2);

impl Relay {
    /// In front of this node; in front of nobody, if it is to swallow what clients send.
    pub fn start(node: Option<SocketAddr>) -> Result<Relay> {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = front.local_addr()?;
        front.set_read_timeout(Some(PATIENCE))?;
        let (stop, recorded) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Recording::default())));
        let (stopped, notes) = (stop.clone(), recorded.clone());
        let thread = std::thread::spawn(move || {
            // A socket to the node for each client.
            let mut backs: BTreeMap<SocketAddr, UdpSocket> = BTreeMap::new();
            let mut bytes = vec![0; DATAGRAM_MAX as usize];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((len, client)) = front.recv_from(&mut bytes) {
                    if let Ok(mut notes) = notes.lock() {
                        notes.note(&bytes[..len]);
                    }
                    let Some(node) = node else { continue };
                    if !backs.contains_key(&client)
                        && let Ok(back) = connected(node)
                    {
                        backs.insert(client, back);
                    }
                    // What is lost on the way is repeated by those who speak QUIC.
                    let _ = backs.get(&client).map(|back| back.send(&bytes[..len]));
                }
                for (client, back) in &backs {
                    while let Ok(len) = back.recv(&mut bytes) {
                        let _ = front.send_to(&bytes[..len], client);
                    }
                }
            }
        });
        Ok(Relay { addr, stop, recorded, thread: Some(thread) })
    }

    /// Ends it, and gives what it has heard.
    pub fn finish(mut self) -> Result<Recording> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs")?;
        thread.join().map_err(|_| anyhow!("the relay panicked"))?;
        Ok(self.recorded.lock().map_err(|_| anyhow!("the relay panicked"))?.clone())
    }
}

impl Drop for Relay {
    /// The thread ends by itself within moments.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A socket that does not wait.
fn connected(node: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(node)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// So many sockets send in turn: the nodes see as many strangers.
const SENDERS: usize = 16;

/// Between two bursts.
const TICK: Duration = Duration::from_millis(10);

/// Sends hostile datagrams to every address until it is ended, so many a second in all.
pub struct Assault {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<AssaultReport>>,
}

/// What was sent, and what came back.
#[derive(Clone, Default, Debug)]
pub struct AssaultReport {
    pub sent: BTreeMap<Datagram, u64>,
    pub sent_bytes: u64,
    pub answers: u64,
    pub answer_bytes: u64,
    pub elapsed: Duration,
}

impl AssaultReport {
    /// Datagrams of all kinds.
    pub fn datagrams(&self) -> u64 {
        self.sent.values().sum()
    }
}

impl Assault {
    pub fn start(targets: Vec<SocketAddr>, recorded: Recording, per_second: u64, seed: u64) -> Result<Assault> {
        ensure!(!targets.is_empty(), "there is nobody to send to");
        ensure!(!recorded.first.is_empty(), "no beginning of a connection was recorded");
        let senders = (0..SENDERS)
            .map(|_| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .collect::<Result<Vec<_>>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut dice, mut report, begun) =
                (Dice::apart(seed, "assault"), AssaultReport::default(), Instant::now());
            while !stopped.load(Ordering::Relaxed) {
                // What was missed while others had the processor is not made up for: the rate is a limit.
                for _ in 0..per_second / (1000 / TICK.as_millis() as u64) {
                    let (kind, target, sender) = (*dice.pick(&Datagram::ALL), dice.pick(&targets), dice.pick(&senders));
                    let bytes = forge(kind, &recorded, &mut dice);
                    // A node that does not run answers a datagram with an error of the next call.
                    if sender.send_to(&bytes, target).is_ok() {
                        *report.sent.entry(kind).or_default() += 1;
                        report.sent_bytes += bytes.len() as u64;
                    }
                }
                report.hear(&senders);
                std::thread::sleep(TICK);
            }
            report.elapsed = begun.elapsed();
            report
        });
        Ok(Assault { stop, thread: Some(thread) })
    }

    pub fn finish(mut self) -> Result<AssaultReport> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it runs")?;
        thread.join().map_err(|_| anyhow!("the assault panicked"))
    }
}

impl Drop for Assault {
    /// The thread ends by itself within moments.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl AssaultReport {
    fn hear(&mut self, senders: &[UdpSocket]) {
        let mut bytes = [0; 2048];
        for sender in senders {
            while let Ok((len, _)) = sender.recv_from(&mut bytes) {
                self.answers += 1;
                self.answer_bytes += len as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recording() -> Recording {
        let mut recorded = Recording::default();
        recorded.note(&initial(1, &mut Dice::new(1)));
        recorded.note(&[0x41; 60]);
        recorded
    }

    #[test]
    fn first_datagrams_are_told_from_the_others_and_each_is_kept_once() {
        let mut recorded = recording();
        recorded.add(recording());
        assert_eq!((recorded.sent.len(), recorded.first.len()), (2, 1));
        assert_eq!(recorded.first[0].len(), INITIAL_MIN);
        // A handshake packet is long too, and a first one that is short is none.
        assert!(!begins_connection(&[0xe0; 1200]) && !begins_connection(&[0xc0; 1199]));
    }

    #[test]
    fn every_kind_has_its_shape() {
        let (recorded, mut dice) = (recording(), Dice::new(7));
        for _ in 0..50 {
            for kind in Datagram::ALL {
                let bytes = forge(kind, &recorded, &mut dice);
                assert!(bytes.len() as u64 <= DATAGRAM_MAX);
                let is_as_recorded = recorded.sent.contains(&bytes);
                match kind {
                    Datagram::Noise => assert!(!bytes.is_empty() && bytes.len() as u64 <= PACKET_MAX),
                    Datagram::Oversized => assert!(bytes.len() as u64 > PACKET_MAX),
                    Datagram::UnknownVersion | Datagram::ForgedInitial => assert!(begins_connection(&bytes)),
                    Datagram::ForgedShort => assert_eq!(bytes[0] & 0xc0, 0x40),
                    Datagram::Replayed => assert!(is_as_recorded),
                    Datagram::HalfOpen => assert!(is_as_recorded && begins_connection(&bytes)),
                    Datagram::Truncated | Datagram::Flipped => assert!(!is_as_recorded),
                }
            }
        }
    }

    #[test]
    fn a_relay_carries_both_ways_and_remembers_what_was_sent() {
        let node = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::start(Some(node.local_addr().unwrap())).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        for socket in [&node, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        client.send_to(b"question", relay.addr).unwrap();
        let mut bytes = [0; 100];
        let (len, from) = node.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"question");
        node.send_to(b"answer", from).unwrap();
        let (len, _) = client.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"answer");
        assert_eq!(relay.finish().unwrap().sent, [b"question".to_vec()]);
    }

    #[test]
    fn an_assault_reaches_every_address_with_every_kind() {
        let nodes: Vec<UdpSocket> = (0..2).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let targets = nodes.iter().map(|node| node.local_addr().unwrap()).collect();
        let assault = Assault::start(targets, recording(), 20_000, 1).unwrap();
        let mut bytes = vec![0; DATAGRAM_MAX as usize];
        for node in &nodes {
            node.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            for _ in 0..50 {
                let (len, from) = node.recv_from(&mut bytes).unwrap();
                node.send_to(&bytes[..len.min(10)], from).unwrap();
            }
        }
        let report = assault.finish().unwrap();
        assert!(report.datagrams() >= 100 && report.sent.len() == Datagram::ALL.len(), "{report:?}");
    }
}

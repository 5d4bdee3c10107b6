//! MooseFS from Debian's packages on this machine: one master, chunk servers, goal 3, and a mount.
//!
//! It refuses loopback addresses, so it lives in network namespaces of its own: all of it in one, with addresses on that
//! one's loopback, or each part in another, behind a bridge, as `dfs up --netns` has it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::must;

const MASTER: &str = "10.77.0.1";

/// Last bytes of addresses: of the master, of the first chunk server, of the mount.
const MASTER_HOST: usize = 1;
const CHUNK_SERVER_HOST: usize = 11;
const MOUNT_HOST: usize = 99;

/// How long its parts get to find each other.
const START: Duration = Duration::from_secs(60);

/// A running MooseFS. Dropped, it is stopped and its namespace removed; its folder stays.
pub struct MooseFs {
    network: Network,
    dir: PathBuf,
    mount: PathBuf,
    parts: Vec<Child>,
}

impl MooseFs {
    /// Starts one with its data below `dir` and mounts it on `mount`. `apart`: each part has a network of its own.
    pub fn start(dir: &Path, mount: &Path, chunk_servers: usize, apart: bool) -> Result<MooseFs> {
        fs::create_dir_all(dir)?;
        fs::create_dir_all(mount)?;
        let hosts = (0..chunk_servers).map(|number| CHUNK_SERVER_HOST + number);
        let network = Network::new([MASTER_HOST, MOUNT_HOST].into_iter().chain(hosts), apart)?;
        let mut moosefs = MooseFs { network, dir: dir.to_owned(), mount: mount.to_owned(), parts: Vec::new() };
        moosefs.start_master()?;
        for number in 0..chunk_servers {
            moosefs.start_chunk_server(number)?;
        }
        // A mount that finds no master ends.
        moosefs.wait("connect its chunk servers", || Ok(moosefs.has_chunk_servers(chunk_servers)))?;
        moosefs.start_mount()?;
        moosefs.wait("take writes", || moosefs.takes_writes())?;
        Ok(moosefs)
    }

    fn start_master(&mut self) -> Result<()> {
        let data = self.dir.join("master");
        fs::create_dir(&data)?;
        fs::copy("/var/lib/mfs/metadata.mfs.empty", data.join("metadata.mfs")).context("an empty MooseFS")?;
        fs::write(data.join("exports.cfg"), "* / rw,alldirs,admin,maproot=0:0\n")?;
        let data_path = data.display();
        let config = format!(
            "DATA_PATH = {data_path}\nEXPORTS_FILENAME = {data_path}/exports.cfg\nWORKING_USER = root\n\
             WORKING_GROUP = root\nMATOML_LISTEN_HOST = {MASTER}\nMATOCS_LISTEN_HOST = {MASTER}\n\
             MATOCL_LISTEN_HOST = {MASTER}\n"
        );
        fs::write(data.join("master.cfg"), config)?;
        let mut command = self.network.inside(MASTER_HOST, "mfsmaster");
        command.arg("-f").arg("-c").arg(data.join("master.cfg")).arg("start");
        self.spawn(command, "master.log")
    }

    fn start_chunk_server(&mut self, number: usize) -> Result<()> {
        let data = self.dir.join(format!("chunks{number}"));
        let disk = data.join("disk");
        fs::create_dir_all(&disk)?;
        fs::write(data.join("hdd.cfg"), format!("{}\n", disk.display()))?;
        let host = CHUNK_SERVER_HOST + number;
        let (data_path, addr) = (data.display(), address(host));
        let config = format!(
            "DATA_PATH = {data_path}\nHDD_CONF_FILENAME = {data_path}/hdd.cfg\nWORKING_USER = root\n\
             WORKING_GROUP = root\nMASTER_HOST = {MASTER}\nBIND_HOST = {addr}\nCSSERV_LISTEN_HOST = {addr}\n\
             HDD_LEAVE_SPACE_DEFAULT = 1GiB\n"
        );
        fs::write(data.join("chunks.cfg"), config)?;
        let mut command = self.network.inside(host, "mfschunkserver");
        command.arg("-f").arg("-c").arg(data.join("chunks.cfg")).arg("start");
        self.spawn(command, &format!("chunks{number}.log"))
    }

    fn start_mount(&mut self) -> Result<()> {
        let mut command = self.network.inside(MOUNT_HOST, "mfsmount");
        command.arg(&self.mount).args(["-H", MASTER, "-f"]);
        self.spawn(command, "mount.log")
    }

    fn spawn(&mut self, mut command: Command, log: &str) -> Result<()> {
        let log = fs::File::create(self.dir.join(log))?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.parts.push(child.with_context(|| format!("{command:?}"))?);
        Ok(())
    }

    fn has_chunk_servers(&self, chunk_servers: usize) -> bool {
        let listed = self.network.inside(MOUNT_HOST, "mfscli").args(["-H", MASTER, "-SCS", "-s", "|"]).output();
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        (0..chunk_servers).all(|number| listed.contains(&address(CHUNK_SERVER_HOST + number)))
    }

    /// Whether three copies of a file can be written.
    fn takes_writes(&self) -> Result<bool> {
        let settings = |program: &str, args: &[&str]| -> Result<bool> {
            let mut command = self.network.inside(MOUNT_HOST, program);
            Ok(command.args(args).arg(&self.mount).stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
        };
        let probe = self.mount.join("probe");
        let written = settings("mfssetgoal", &["-r", "3"])?
            && settings("mfssettrashtime", &["-r", "0"])?
            && fs::write(&probe, "probe").is_ok();
        if written {
            fs::remove_file(probe)?;
        }
        Ok(written)
    }

    /// Of the chunks of a file, how many copies the one has that has the fewest.
    pub fn fewest_copies(&self, file: &Path) -> Result<u64> {
        let output = self.network.inside(MOUNT_HOST, "mfsfileinfo").arg("-q").arg(file).output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        // "chunks with 2 copies:   16", a line for each number that occurs.
        let counts = said.lines().filter_map(|line| {
            let (copies, chunks) = line.trim().strip_prefix("chunks with ")?.split_once(':')?;
            let copies = copies.split_whitespace().next()?.parse().ok()?;
            (chunks.trim().parse::<u64>().ok()? > 0).then_some(copies)
        });
        counts.min().with_context(|| format!("mfsfileinfo says `{said}`"))
    }

    pub fn kill_chunk_server(&mut self, number: usize) -> Result<()> {
        // Behind the master, in order.
        let part = self.parts.get_mut(1 + number).context("there are not so many")?;
        part.kill()?;
        part.wait()?;
        Ok(())
    }

    fn wait(&self, what: &str, done: impl Fn() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + START;
        while !done()? {
            if Instant::now() > end {
                bail!("MooseFS did not {what} within {} s; its logs are in {}", START.as_secs(), self.dir.display());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }
}

impl Drop for MooseFs {
    fn drop(&mut self) {
        // Best effort, each on its own: what does not stop in order is killed.
        let _ = Command::new("umount").arg(&self.mount).status();
        for part in self.parts.iter_mut().rev() {
            let _ = part.kill();
            let _ = part.wait();
        }
        let _ = Command::new("umount").args(["-q", "-l"]).arg(&self.mount).status();
    }
}

fn address(host: usize) -> String {
    format!("10.77.0.{host}")
}

/// Network namespaces, gone when this is dropped.
struct Network {
    /// Of all parts, or of the bridge between them.
    name: String,
    apart: bool,
    made: Vec<String>,
}

impl Network {
    fn new(hosts: impl Iterator<Item = usize>, apart: bool) -> Result<Network> {
        let name = format!("moosefs-{}", std::process::id());
        let mut network = Network { name: name.clone(), apart, made: Vec::new() };
        network.make(name.clone())?;
        if apart {
            must(enter(&name, "ip").args(["link", "add", "switch", "type", "bridge"]))?;
            must(enter(&name, "ip").args(["link", "set", "switch", "up"]))?;
        }
        for host in hosts {
            let (inside, cidr) = (network.namespace(host), format!("{}/24", address(host)));
            if apart {
                network.make(inside.clone())?;
                let port = format!("port{host}");
                let link = ["link", "add", &port, "type", "veth", "peer", "name", "net", "netns", &inside];
                must(enter(&name, "ip").args(link))?;
                must(enter(&name, "ip").args(["link", "set", &port, "master", "switch", "up"]))?;
                must(enter(&inside, "ip").args(["link", "set", "net", "up"]))?;
            }
            let device = if apart { "net" } else { "lo" };
            must(enter(&inside, "ip").args(["addr", "add", &cidr, "dev", device]))?;
        }
        Ok(network)
    }

    fn make(&mut self, name: String) -> Result<()> {
        must(Command::new("ip").args(["netns", "add", &name]))?;
        self.made.push(name.clone());
        must(enter(&name, "ip").args(["link", "set", "lo", "up"]))
    }

    fn namespace(&self, host: usize) -> String {
        if self.apart { format!("{}-{host}", self.name) } else { self.name.clone() }
    }

    fn inside(&self, host: usize, program: &str) -> Command {
        enter(&self.namespace(host), program)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in self.made.iter().rev() {
            // Best effort, each on its own.
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

/// A command in a namespace. Not by `ip netns exec`, which hides mounts.
fn enter(namespace: &str, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/var/run/netns/{namespace}")).arg(program);
    command
}

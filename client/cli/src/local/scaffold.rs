//! Writes what a local cluster consists of: authority, certificates, configurations, start scripts.

use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use dfs_client::{ClusterConfig, MountDir, NodeAddr, TlsFiles};
use dfs_proto::msg::group::NamenodeAddr;
use dfs_proto::{ClusterId, Role};
use dfs_rpc::pki::{Authority, PkiError};

use super::images;
use super::layout::{ADMIN_ID, Kind, Layout, Member};
use super::ports::{self, Ports};
use super::settings::Settings;
use crate::error::{Failure, Result};

impl From<PkiError> for Failure {
    fn from(error: PkiError) -> Failure {
        Failure::failed("certificates could not be made").cause(error.to_string())
    }
}

/// Makes a new cluster in an empty folder; nothing is started. `cluster.toml` comes last.
pub fn create(layout: &Layout, settings: &Settings, ports: &Ports) -> Result<ClusterConfig> {
    settings.save(layout)?;
    let pki = layout.pki();
    make_private_dir(&pki)?;
    let authority = Authority::create(ClusterId(rand::random()))?;
    authority.save(&pki)?;
    authority.issue(Role::Admin, ADMIN_ID)?.save(&pki, "admin")?;

    let addrs = |kind, addrs: &[SocketAddr]| -> Vec<NodeAddr> {
        let members = Member::all(kind, addrs.len());
        members
            .iter()
            .zip(addrs)
            .map(|(member, addr)| NodeAddr { id: member.id(), name: member.name(), addr: *addr })
            .collect()
    };
    let config = ClusterConfig {
        cluster: authority.cluster(),
        replication: settings.replication,
        tls: TlsFiles { ca: pki.join("ca.pem"), cert: pki.join("admin.pem"), key: pki.join("admin.key") },
        namenodes: addrs(Kind::Namenode, &ports.meta),
        datanodes: addrs(Kind::Datanode, &ports.data),
        mounts: Vec::new(),
    };
    let peer = |(node, raft): (&NodeAddr, &SocketAddr)| NamenodeAddr {
        node: node.id,
        name: node.name.clone(),
        addr: node.addr,
        raft_addr: *raft,
    };
    let peers: Vec<NamenodeAddr> = config.namenodes.iter().zip(&ports.raft).map(peer).collect();
    for member in nodes(&config) {
        make_node(layout, settings, &authority, &config, &peers, member)?;
    }
    config.save(&layout.cluster_toml())?;
    Ok(config)
}

/// A node with a file system of its own is there to have its power cut. Its certificate and its configuration must
/// not go with it, however soon that is.
fn sync(folder: &Path) -> Result {
    let synced = fs::File::open(folder).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    synced.map_err(|error| Failure::local(folder, &error))
}

/// Makes a node's folder, certificate and configuration.
fn make_node(
    layout: &Layout,
    settings: &Settings,
    authority: &Authority,
    config: &ClusterConfig,
    peers: &[NamenodeAddr],
    member: Member,
) -> Result {
    match settings.fs {
        Some(fs) => images::make(layout, member, fs)?,
        None => make_private_dir(&layout.folder(member))?,
    }
    give_certificate(layout, authority, member)?;
    let text = match member.kind {
        Kind::Namenode => namenode_toml(config, &peers[member.index - 1], peers, member),
        _ => datanode_toml(config, member),
    };
    let path = layout.config(member);
    fs::write(&path, text).map_err(|error| Failure::local(&path, &error))?;
    if member.kind == Kind::Datanode {
        prepare_datanode(&path)?;
    }
    if settings.fs.is_some() {
        sync(&layout.folder(member))?;
    }
    Ok(())
}

/// Gives the cluster datanodes until it has `count`. Each is entered in `cluster.toml` when it is complete; their
/// numbers follow those that were ever given out, so that none is used twice.
pub fn add_datanodes(layout: &Layout, settings: &mut Settings, config: &mut ClusterConfig, count: usize) -> Result {
    let authority = Authority::load(&layout.pki())?;
    while config.datanodes.len() < count {
        let member = Member { kind: Kind::Datanode, index: config.datanodes.len() + 1 };
        let folder = layout.folder(member);
        if folder.exists() {
            return Err(Failure::failed(format!("{} is in the way of a new datanode", folder.display()))
                .cause("an earlier `dfs up` may have been cut off while it made it; cluster.toml does not name it")
                .hint(format!("rm -r {}", folder.display())));
        }
        let highest = config.datanodes.iter().chain(&config.namenodes).map(|node| node.addr.port()).max();
        let addr = ports::pick_above(highest.unwrap_or(ports::DEFAULT_BASE))?;
        let mut grown = config.clone();
        grown.datanodes.push(NodeAddr { id: member.id(), name: member.name(), addr });
        make_node(layout, settings, &authority, &grown, &[], member)?;
        settings.datanodes = grown.datanodes.len();
        settings.save(layout)?;
        grown.save(&layout.cluster_toml())?;
        *config = grown;
    }
    Ok(())
}

/// Makes the node's data folders now, because `must_exist` has it refuse an empty one from here on: a disk
/// that is not mounted must not look like a node that has lost everything.
fn prepare_datanode(config: &Path) -> Result {
    let failed = |error: anyhow::Error| Failure::failed(format!("cannot make a datanode's folders: {error:#}"));
    dfs_datanode::Config::load(config).map_err(failed).and_then(|config| dfs_datanode::prepare(&config).map_err(failed))
}

/// Takes away what `create` left when it failed half way. The folder was empty before.
pub fn discard(layout: &Layout, settings: &Settings) {
    let mut members = Member::all(Kind::Namenode, settings.namenodes);
    members.extend(Member::all(Kind::Datanode, settings.datanodes));
    for member in members {
        // Best effort: the failure that led here is what gets told, and `up` names what stays.
        if settings.fs.is_none() || images::unmount(layout, member).is_ok() {
            let _ = fs::remove_dir_all(layout.folder(member));
            let _ = fs::remove_file(layout.image(member));
        }
    }
    let _ = fs::remove_dir_all(layout.pki());
    let _ = fs::remove_file(layout.up_toml());
}

/// Gives the cluster one more mount.
pub fn add_mount(layout: &Layout, config: &mut ClusterConfig, dir: PathBuf, options: &[String]) -> Result {
    let member = Member { kind: Kind::Mount, index: config.mounts.len() + 1 };
    let folder = layout.folder(member);
    // May be there from an `up` that was cut off at this point.
    if !folder.is_dir() {
        make_private_dir(&folder)?;
    }
    give_certificate(layout, &Authority::load(&layout.pki())?, member)?;
    config.mounts.push(MountDir { name: member.name(), dir, options: options.to_vec() });
    write_mount_config(layout, config, member)?;
    config.save(&layout.cluster_toml())?;
    Ok(())
}

/// Every namenode and datanode.
pub fn nodes(config: &ClusterConfig) -> Vec<Member> {
    let mut nodes = namenodes(config);
    nodes.extend(Member::all(Kind::Datanode, config.datanodes.len()));
    nodes
}

/// Every namenode. Numbers are never used again, so there may be gaps.
pub fn namenodes(config: &ClusterConfig) -> Vec<Member> {
    config.namenodes.iter().map(|node| Member { kind: Kind::Namenode, index: node.id.0 as usize }).collect()
}

/// The processes of one kind.
pub fn members(config: &ClusterConfig, kind: Kind) -> Vec<Member> {
    match kind {
        Kind::Namenode => namenodes(config),
        Kind::Datanode => Member::all(kind, config.datanodes.len()),
        Kind::Mount => Member::all(kind, config.mounts.len()),
    }
}

/// The mount's own cluster file: the same cluster, its own certificate.
fn write_mount_config(layout: &Layout, config: &ClusterConfig, member: Member) -> Result {
    let folder = layout.folder(member);
    let tls = TlsFiles {
        ca: folder.join("ca.pem"),
        cert: folder.join(format!("{}.pem", member.name())),
        key: folder.join(format!("{}.key", member.name())),
    };
    let own = ClusterConfig { tls, mounts: Vec::new(), ..config.clone() };
    Ok(own.save(&layout.config(member))?)
}

/// Writes the script that starts `member`; again at every `up`, since this program may have moved.
pub fn write_start_script(
    layout: &Layout,
    settings: &Settings,
    config: &ClusterConfig,
    member: Member,
    log: Option<&str>,
) -> Result {
    let binary = std::env::current_exe().map_err(|error| Failure::io("cannot find this program", &error))?;
    // A binary that was replaced while it ran: the new one is under the old name.
    let binary = binary.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let config_file = layout.config(member);
    let mut command = settings.network().map_or_else(Vec::new, |network| network.prefix(member));
    command.push(binary);
    command.extend(log.map(|filter| format!("--log={filter}")));
    match member.kind {
        Kind::Namenode => command.extend(["namenode".into(), "--config".into(), text(&config_file)?]),
        Kind::Datanode => command.extend(["datanode".into(), "--config".into(), text(&config_file)?]),
        Kind::Mount => {
            let mount = config.mounts.iter().find(|mount| mount.name == member.name());
            let mount =
                mount.ok_or_else(|| Failure::failed(format!("cluster.toml names no mount {}", member.name())))?;
            command.extend(["mount".into(), "-f".into(), "--cluster".into(), text(&config_file)?]);
            command.extend(mount.options.iter().flat_map(|option| ["-o".into(), option.clone()]));
            command.push(text(&mount.dir)?);
        }
    }
    let image = settings.fs.is_some() && member.kind != Kind::Mount;
    let script = start_script(&text(&layout.dir)?, &member.name(), &command, image);
    let path = layout.start(member);
    // A new inode: a shell that is reading the old script must not meet the new text.
    let temporary = path.with_extension("start.new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o755)
        .open(&temporary)
        .and_then(|mut file| std::io::Write::write_all(&mut file, script.as_bytes()))
        .and_then(|()| fs::rename(&temporary, &path));
    written.map_err(|error| Failure::local(&path, &error))
}

fn start_script(dir: &str, name: &str, command: &[String], image: bool) -> String {
    let dir = quote(dir);
    let command: Vec<_> = command.iter().map(|word| quote(word)).collect();
    let command = command.join(" ");
    let mount = if image {
        format!("mountpoint -q {name} || mount -o loop,nosuid,nodev {name}.img {name}\n")
    } else {
        String::new()
    };
    // The inner shell writes its own number and becomes the process: the pid file is there before the
    // process does anything, and names no one else.
    format!(
        r#"#!/bin/sh
# Starts {name} as `dfs up` does. Returns when the process has been started; {name}.log tells the rest.
set -eu
dir={dir}
cd "$dir"
if [ -s {name}.pid ] && tr '\0' '\n' 2>/dev/null <"/proc/$(cat {name}.pid)/cmdline" | grep -qF "$dir/{name}/"; then
    echo "{name} runs already" >&2
    exit 0
fi
rm -f {name}.pid
{mount}unset DFS_LOG DFS_CLUSTER
ulimit -n 65536 2>/dev/null || true
setsid sh -c 'echo $$ >{name}.pid.new && mv {name}.pid.new {name}.pid && exec "$@"' sh \
    {command} </dev/null >>{name}.log 2>&1 &
tries=0
while [ ! -s {name}.pid ]; do
    tries=$((tries + 1))
    if [ $tries -gt 200 ]; then
        echo "{name} did not start, see $dir/{name}.log" >&2
        exit 1
    fi
    sleep 0.02
done
"#
    )
}

pub fn namenode_toml(config: &ClusterConfig, own: &NamenodeAddr, peers: &[NamenodeAddr], member: Member) -> String {
    let mut text = node_head(config, member, own.addr);
    let _ = writeln!(text, "raft_listen = \"{}\"", own.raft_addr);
    text.push_str(&tls_section(member));
    text.push_str(&peers_section(peers));
    text
}

/// The end of every namenode's configuration.
pub fn peers_section(peers: &[NamenodeAddr]) -> String {
    let mut text = String::new();
    for NamenodeAddr { node, name, addr, raft_addr } in peers {
        let _ = write!(
            text,
            "\n[[peers]]\nid = {node}\nname = \"{name}\"\naddr = \"{addr}\"\nraft_addr = \"{raft_addr}\"\n"
        );
    }
    text
}

fn datanode_toml(config: &ClusterConfig, member: Member) -> String {
    let mut text = node_head(config, member, config.datanodes[member.index - 1].addr);
    text.push_str("must_exist = true\n");
    text.push_str(&tls_section(member));
    text.push_str(&namenodes_section(&config.namenodes));
    text
}

/// The end of every datanode's configuration.
pub fn namenodes_section(namenodes: &[NodeAddr]) -> String {
    let mut text = String::new();
    for NodeAddr { id, name, addr } in namenodes {
        let _ = write!(text, "\n[[namenodes]]\nid = {id}\nname = \"{name}\"\naddr = \"{addr}\"\n");
    }
    text
}

/// Relative paths are meant relative to the file: the folder may be moved as a whole.
fn node_head(config: &ClusterConfig, member: Member, listen: SocketAddr) -> String {
    format!(
        "node = {}\nname = \"{}\"\ncluster = \"{}\"\ndata_dir = \"data\"\nlisten = \"{listen}\"\n",
        member.id(),
        member.name(),
        config.cluster
    )
}

fn tls_section(member: Member) -> String {
    let name = member.name();
    format!("\n[tls]\nca = \"ca.pem\"\ncert = \"{name}.pem\"\nkey = \"{name}.key\"\n")
}

pub fn give_certificate(layout: &Layout, authority: &Authority, member: Member) -> Result {
    let folder = layout.folder(member);
    let ca = folder.join("ca.pem");
    fs::write(&ca, authority.cert_pem()).map_err(|error| Failure::local(&ca, &error))?;
    Ok(authority.issue(member.role(), member.id())?.save(&folder, &member.name())?)
}

/// Keys lie in it.
pub fn make_private_dir(path: &Path) -> Result {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| Failure::local(path, &error))
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().ok_or_else(|| Failure::usage(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

/// One word for the shell, whatever is in it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::settings::Wishes;
    use std::process::Command;

    fn ports() -> Ports {
        let addrs = |base: u16, count: u16| (base..base + count).map(|port| ([127, 0, 0, 1], port).into()).collect();
        Ports { meta: addrs(8020, 3), raft: addrs(8030, 3), data: addrs(8040, 4) }
    }

    fn cluster(dir: &Path) -> (Layout, Settings, ClusterConfig) {
        let layout = Layout::of(Some(dir), Path::new("")).unwrap();
        let settings = Settings::new(&Wishes::default()).unwrap();
        let config = create(&layout, &settings, &ports()).unwrap();
        (layout, settings, config)
    }

    #[test]
    fn the_roles_read_what_up_writes() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _, config) = cluster(dir.path());
        for member in nodes(&config) {
            let path = layout.config(member);
            let tls = match member.kind {
                Kind::Namenode => {
                    let read = dfs_namenode::Config::load(&path).unwrap();
                    assert_eq!((read.node, read.peers.len()), (member.id().0, 3));
                    assert_eq!(read.cluster, config.cluster.to_string());
                    assert_eq!(read.data_dir, layout.folder(member).join("data"));
                    read.tls
                }
                _ => {
                    let read = dfs_datanode::Config::load(&path).unwrap();
                    assert_eq!((read.node, read.namenodes.len()), (member.id(), 3));
                    read.tls
                }
            };
            let identity = dfs_rpc::Tls::load(&tls).unwrap().identity();
            assert_eq!((identity.cluster, identity.role, identity.id), (config.cluster, member.role(), member.id()));
        }
    }

    #[test]
    fn the_cluster_file_is_whole_and_mounts_have_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, _, mut config) = cluster(dir.path());
        assert_eq!(ClusterConfig::load(&layout.cluster_toml()).unwrap(), config);
        add_mount(&layout, &mut config, "/mnt/x y".into(), &["writebehind".to_owned()]).unwrap();
        assert_eq!(ClusterConfig::load(&layout.cluster_toml()).unwrap().mounts, config.mounts);
        let member = Member { kind: Kind::Mount, index: 1 };
        let own = ClusterConfig::load(&layout.config(member)).unwrap();
        assert_eq!(dfs_rpc::Tls::load(&own.tls).unwrap().identity().role, Role::Client);
        assert_eq!(own.namenodes, config.namenodes);
    }

    #[test]
    fn keys_are_readable_by_the_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (layout, _, _) = cluster(dir.path());
        for key in [layout.pki().join("admin.key"), layout.pki().join("ca.key"), layout.dir.join("nn1/nn1.key")] {
            assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
        }
    }

    #[test]
    fn a_start_script_detaches_writes_the_pid_and_starts_nothing_twice() {
        let dir = tempfile::Builder::new().prefix("it's a folder ").tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let layout = Layout::of(Some(&dir), Path::new("")).unwrap();
        let member = Member { kind: Kind::Namenode, index: 1 };
        // Stands for the process: ends when the pipe that holds it open goes.
        let pipe = dir.join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let words = ["sh", "-c", "echo started; read x <pipe; echo \"$1\"", "sh", &format!("{}/nn1/x", dir.display())];
        let script = start_script(dir.to_str().unwrap(), "nn1", &words.map(str::to_owned), false);
        let path = layout.start(member);
        fs::write(&path, script).unwrap();
        let run = || Command::new("sh").arg(&path).output().unwrap();
        let first = run();
        assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
        let pid = fs::read_to_string(layout.pid(member)).unwrap();
        assert!(Path::new(&format!("/proc/{}", pid.trim())).exists());
        let second = run();
        assert!(String::from_utf8_lossy(&second.stderr).contains("runs already"));
        assert_eq!(fs::read_to_string(layout.pid(member)).unwrap(), pid);
        fs::write(&pipe, "go\n").unwrap();
        // Appending to the log, and only once.
        for _ in 0..500 {
            if fs::read_to_string(layout.log(member)).unwrap().contains("/nn1/x") {
                break;
            }
            std::thread::yield_now();
        }
        assert_eq!(fs::read_to_string(layout.log(member)).unwrap().matches("started").count(), 1);
    }

    #[test]
    fn words_reach_the_shell_as_they_are() {
        assert_eq!(quote("/a/b-1.toml"), "/a/b-1.toml");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("$x"), "'$x'");
    }
}

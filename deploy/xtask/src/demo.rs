//! `cargo xtask demo`: the main job, played on real input, with checks that can fail.

mod input;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use dfs_cluster::{Cluster, Layout, Tree, copy_file, copy_tree, digest_file};

use crate::prerequisites;
use crate::run::program;
pub use input::Input;

#[derive(clap::Args)]
pub struct Options {
    /// A dfs program that is built already
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// End after the summary instead of leaving the cluster running
    #[arg(long)]
    once: bool,
    /// Where the demo keeps its cluster, its mount and its input; made new each time
    #[arg(long, default_value = "dfs-demo")]
    dir: PathBuf,
    /// Files of the source tree to copy in, at least
    #[arg(long, default_value_t = 3000)]
    files: usize,
    /// Size of the large file, in MiB
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
}

/// Marks a folder as ours to delete.
const MARKER: &str = ".dfs-demo";

/// The longest that healing may take before the demo calls it broken.
const HEAL_DEADLINE: Duration = Duration::from_secs(180);

pub fn run(options: &Options) -> Result<()> {
    prerequisites::install()?;
    if options.program.is_none() {
        println!("building dfs (RocksDB's C++ takes ten minutes the first time)");
    }
    let program = program(options.program.as_deref())?;
    let (interrupt, interrupted) = mpsc::channel();
    ctrlc::set_handler(move || {
        // The receiver is gone only when the demo is over.
        let _ = interrupt.send(());
    })?;
    let dir = fresh_folder(&options.dir)?;
    let mount = dir.join("mnt");
    let mut show = Show::default();
    let input =
        show.step("collect the input", || Input::collect(&dir.join("input"), options.files, options.large_mib))?;
    println!(
        "    {} source files ({} MiB) and one file of {} MiB",
        input.tree.files.len(),
        input.tree.bytes >> 20,
        input.large_bytes >> 20
    );

    let layout = Layout { mounts: vec![mount.clone()], ..Layout::default() };
    let cluster =
        show.step("start 3 namenodes, 4 datanodes, a mount", || Cluster::up(&program, &dir.join("data"), layout))?;
    let played = play(&mut show, &cluster, &mount, &input, &interrupted);
    show.summary();
    match played {
        Err(error) => {
            println!("\nFAILED. The logs are in {}", cluster.dir().display());
            return Err(error);
        }
        Ok(()) => println!("\nevery check passed"),
    }
    if options.once {
        cluster.down()?;
        drop(cluster);
        std::fs::remove_dir_all(&dir)?;
        return Ok(());
    }
    banner(&program, &cluster, &mount)?;
    interrupted.recv()?;
    println!("\nstopping");
    cluster.down()?;
    println!("stopped; the data stays in {0}, `dfs up --dir {0}` brings it back", cluster.dir().display());
    Ok(())
}

fn play(
    show: &mut Show,
    cluster: &Cluster,
    mount: &Path,
    input: &Input,
    interrupted: &mpsc::Receiver<()>,
) -> Result<()> {
    let check = |interrupted: &mpsc::Receiver<()>| match interrupted.try_recv() {
        Ok(()) => bail!("interrupted"),
        Err(_) => Ok(()),
    };
    let sources = mount.join("sources");
    show.step_with_rate("copy the source tree in", input.tree.bytes, || {
        copy_tree(&input.tree_root, &sources, |files, _| progress(files, input.tree.files.len() as u64, "files"))
    })?;
    let large = mount.join("large.bin");
    show.step_with_rate("copy the large file in, with fsync", input.large_bytes, || {
        let done = AtomicU64::new(0);
        copy_file(&input.large, &large, true, |n| {
            let done = done.fetch_add(n, Ordering::Relaxed) + n;
            progress(done >> 20, input.large_bytes >> 20, "MiB");
        })
    })?;
    check(interrupted)?;

    drop_caches();
    show.step_with_rate("read all back and compare checksums", input.tree.bytes + input.large_bytes, || {
        input.expect_copies(&sources, &large)
    })?;
    check(interrupted)?;

    let victim = cluster.datanodes().pop().context("there are datanodes")?;
    show.step("wait until every chunk is sealed and whole", || cluster.wait_healthy(HEAL_DEADLINE))?;
    let killed = Instant::now();
    cluster.kill(&victim)?;
    println!("    {victim} is dead (SIGKILL)");
    show.step("heal: three verified replicas of every chunk", || {
        // Until the silence is noticed all still looks well: wait for that first, or nothing is shown.
        wait_until_noticed(cluster, &victim)?;
        println!("    silence noticed after {:.1} s", killed.elapsed().as_secs_f64());
        let status = cluster.dfs(["watch", "--until-healthy"]).status()?;
        ensure!(status.success(), "`dfs watch` ended with {status}");
        cluster.wait_healthy(HEAL_DEADLINE)?;
        println!("    healed {:.1} s after the kill", killed.elapsed().as_secs_f64());
        cluster.run(["fsck", "/"]).map(|_| ())
    })?;
    drop_caches();
    show.step_with_rate("read all back without it", input.tree.bytes + input.large_bytes, || {
        input.expect_copies(&sources, &large)
    })?;
    check(interrupted)?;

    let leader = cluster.leader(Duration::from_secs(10))?;
    let second = mount.join("large-again.bin");
    let stall =
        show.step_with_rate("copy again, and kill the leading namenode meanwhile", input.large_bytes, || {
            copy_while_killing(cluster, &leader, input, &second)
        })?;
    println!(
        "    {leader} was killed, {} leads; the copy's longest pause was {:.1} s",
        cluster.leader(Duration::from_secs(10))?,
        stall.as_secs_f64()
    );
    drop_caches();
    show.step("compare that copy", || {
        let (digest, _) = digest_file(&second)?;
        ensure!(digest == input.large_digest, "the copy made during the failover differs");
        Ok(())
    })?;

    show.step("start both again; superfluous replicas go", || {
        cluster.start(&leader)?;
        cluster.start(&victim)?;
        cluster.wait_healthy(HEAL_DEADLINE)
    })?;
    show.step("list, rename, delete", || namespace_work(mount, &sources, &large, &second, input))?;
    show.step("check the whole cluster", || cluster.run(["fsck", "/"]).map(|report| print!("{}", indent(&report))))
}

/// Copies the large file; when a fifth is through, kills the leader. Returns the longest pause.
fn copy_while_killing(cluster: &Cluster, leader: &str, input: &Input, to: &Path) -> Result<Duration> {
    let (mut done, mut killed) = (0, None);
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    copy_file(&input.large, to, true, |n| {
        done += n;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if killed.is_none() && done > input.large_bytes / 5 {
            killed = Some(cluster.kill(leader));
            println!("    {leader} is dead (SIGKILL) at {} MiB", done >> 20);
        }
        progress(done >> 20, input.large_bytes >> 20, "MiB");
    })?;
    longest = longest.max(last.elapsed());
    killed.context("the file is too small to kill anything meanwhile")??;
    Ok(longest)
}

fn namespace_work(mount: &Path, sources: &Path, large: &Path, second: &Path, input: &Input) -> Result<()> {
    use std::fs;
    let listed = fs::read_dir(mount)?.count();
    ensure!(listed == 3, "the root lists {listed} entries, not 3");
    let moved = mount.join("sources-renamed");
    fs::rename(sources, &moved)?;
    ensure!(!sources.exists(), "the old name of a renamed folder is still there");
    input.tree.expect_same(&Tree::read(&moved)?).context("after the rename")?;
    fs::rename(second, large).context("rename over an existing file")?;
    let (digest, _) = digest_file(large)?;
    ensure!(digest == input.large_digest, "the file renamed over another differs");
    fs::remove_dir_all(&moved)?;
    ensure!(fs::read_dir(mount)?.count() == 1, "the deleted folder is still listed");
    Ok(())
}

fn wait_until_noticed(cluster: &Cluster, node: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        let status = cluster.status()?;
        let nodes = status["datanodes"].as_array().cloned().unwrap_or_default();
        if nodes.iter().any(|n| n["name"] == node && n["state"] == "dead") {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("the namenodes did not notice within a minute that {node} is silent")
}

/// So that what is read back comes from the datanodes' disks and not from memory. Needs root.
fn drop_caches() {
    if std::fs::write("/proc/sys/vm/drop_caches", "3").is_err() {
        println!("    (not root: the kernel's caches stay warm)");
    }
}

/// An empty folder for this run; an earlier run's is removed, anything else is left alone.
fn fresh_folder(dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        ensure!(
            dir.join(MARKER).exists(),
            "{} exists and is not an earlier demo's; choose another by --dir",
            dir.display()
        );
        std::fs::remove_dir_all(dir).with_context(|| {
            format!("{} cannot be removed: does its cluster still run? (`dfs down --dir {0}/data`)", dir.display())
        })?;
    }
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join(MARKER), "")?;
    Ok(dir.canonicalize()?)
}

fn banner(program: &Path, cluster: &Cluster, mount: &Path) -> Result<()> {
    println!("\n{}", cluster.run(["status"])?);
    println!("The cluster runs on. Mounted at {}", mount.display());
    println!("Try, in another terminal:\n");
    println!(
        "    export DFS_CLUSTER={} PATH=$PATH:{}",
        cluster.config().display(),
        program.with_file_name("").display()
    );
    println!("    dfs ls -l /                          dfs status --watch");
    println!("    cp -r /etc {0}/ ; ls {0}", mount.display());
    println!("    kill -9 $(cat {}/dn2.pid) ; dfs watch", cluster.dir().display());
    println!("    {}/dn2.start", cluster.dir().display());
    println!("\nCtrl-C stops all of it, in order.");
    Ok(())
}

fn progress(done: u64, of: u64, unit: &str) {
    use std::io::{IsTerminal, Write};
    let mut out = std::io::stdout();
    if out.is_terminal() && (done == of || done.is_multiple_of(16)) {
        let _ = write!(out, "\r    {done} of {of} {unit}   {}", if done == of { "\r\x1b[K" } else { "" });
        let _ = out.flush();
    }
}

fn indent(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect()
}

/// Prints each step as it goes and remembers how long it took.
#[derive(Default)]
struct Show(Vec<Line>);

struct Line {
    name: &'static str,
    time: Duration,
    bytes: Option<u64>,
    passed: bool,
}

impl Show {
    fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.timed(name, None, work)
    }

    fn step_with_rate<T>(&mut self, name: &'static str, bytes: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.timed(name, Some(bytes), work)
    }

    fn timed<T>(&mut self, name: &'static str, bytes: Option<u64>, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("==> {name}");
        let start = Instant::now();
        let result = work().with_context(|| name.to_owned());
        let line = Line { name, time: start.elapsed(), bytes, passed: result.is_ok() };
        println!("    {}", line.figures());
        self.0.push(line);
        result
    }

    fn summary(&self) {
        println!("\n{:<52} {:>8}  rate", "step", "time");
        for line in &self.0 {
            println!("{:<52} {}", line.name, line.figures());
        }
    }
}

impl Line {
    fn figures(&self) -> String {
        let seconds = self.time.as_secs_f64();
        let rate = match self.bytes {
            Some(bytes) if seconds > 0.0 => format!("{:.0} MB/s", bytes as f64 / seconds / 1e6),
            _ => String::new(),
        };
        format!("{seconds:>6.1} s  {rate}{}", if self.passed { "" } else { "  FAILED" })
    }
}

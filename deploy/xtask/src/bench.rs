//! `cargo xtask bench`: the same work on the mount, by the command line, and on the disk below.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dfs_cluster::{Cluster, Layout};
use serde_json::json;

use crate::prerequisites;
use crate::run::program;

#[derive(clap::Args)]
pub struct Options {
    /// A dfs program that is built already
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where the cluster and the comparison files go; the disk that is measured
    #[arg(long, default_value = "dfs-bench")]
    dir: PathBuf,
    /// Size of the sequential file, in MiB
    #[arg(long, default_value_t = 1024)]
    large_mib: u64,
    /// Files of 4 KiB to create, stat, list and read
    #[arg(long, default_value_t = 1000)]
    files: usize,
    /// Also print the rows as one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(options: &Options) -> Result<()> {
    prerequisites::install()?;
    let program = program(options.program.as_deref())?;
    ensure!(!options.dir.exists(), "{} exists; remove it or choose another by --dir", options.dir.display());
    fs::create_dir_all(&options.dir)?;
    let dir = options.dir.canonicalize()?;
    let (mount, disk) = (dir.join("mnt"), dir.join("disk"));
    fs::create_dir_all(&disk)?;
    let layout = Layout { mounts: vec![mount.clone()], ..Layout::default() };
    let cluster = Cluster::up(&program, &dir.join("data"), layout)?;

    let raw = Rows::measure(&disk, options)?;
    let mounted = Rows::measure(&mount, options)?;
    let cli = command_line(&cluster, &disk, options)?;
    println!("\n3 namenodes, 4 datanodes, replication 3, everything on this one machine\n");
    println!("{:<40} {:>12} {:>12} {:>7}", "row", "mount", "raw disk", "ratio");
    for (row, below) in mounted.0.iter().zip(&raw.0) {
        println!("{:<40} {:>12} {:>12} {:>7.3}", row.name, row.shown(), below.shown(), row.value / below.value);
    }
    for row in &cli.0 {
        println!("{:<40} {:>12}", row.name, row.shown());
    }
    if options.json {
        println!("{}", json!({ "schema": 1, "mount": mounted.json(), "raw_disk": raw.json(), "cli": cli.json() }));
    }
    cluster.down()?;
    drop(cluster);
    fs::remove_dir_all(&dir)?;
    Ok(())
}

struct Rows(Vec<Row>);

struct Row {
    name: &'static str,
    value: f64,
    unit: &'static str,
}

impl Row {
    fn shown(&self) -> String {
        format!("{:.0} {}", self.value, self.unit)
    }
}

/// One piece of a sequential transfer.
const PIECE: usize = 1 << 20;

/// Operations of a random row.
const RANDOM_OPS: u64 = 2000;

impl Rows {
    fn measure(dir: &Path, options: &Options) -> Result<Rows> {
        let mut rows = Rows(Vec::new());
        let large = dir.join("large");
        let bytes = options.large_mib << 20;
        let piece = patterned(PIECE);
        rows.rate("sequential write + fsync", bytes, "MB/s", || {
            let file = File::create(&large)?;
            for offset in (0..bytes).step_by(PIECE) {
                file.write_all_at(&piece, offset)?;
            }
            Ok(file.sync_all()?)
        })?;
        drop_caches();
        rows.rate("sequential read, cold", bytes, "MB/s", || read_through(&large, bytes))?;
        rows.rate("sequential read, warm", bytes, "MB/s", || read_through(&large, bytes))?;
        drop_caches();
        rows.rate("random read 4 KiB, cold", RANDOM_OPS, "op/s", || {
            let file = File::open(&large)?;
            let mut buffer = [0; 4096];
            for n in 0..RANDOM_OPS {
                file.read_exact_at(&mut buffer, scattered(n, bytes))?;
            }
            Ok(())
        })?;
        rows.rate("random write 4 KiB, one fsync", RANDOM_OPS, "op/s", || {
            let file = OpenOptions::new().write(true).open(&large)?;
            for n in 0..RANDOM_OPS {
                file.write_all_at(&piece[..4096], scattered(n, bytes))?;
            }
            Ok(file.sync_all()?)
        })?;
        let synced = 200;
        rows.rate("write 4 KiB + fsync each", synced, "op/s", || {
            let file = File::create(dir.join("synced"))?;
            for n in 0..synced {
                file.write_all_at(&piece[..4096], n * 4096)?;
                file.sync_all()?;
            }
            Ok(())
        })?;
        let many = dir.join("many");
        fs::create_dir(&many)?;
        let count = options.files as u64;
        rows.rate("create + write 4 KiB + close", count, "files/s", || {
            (0..count).try_for_each(|n| Ok(fs::write(many.join(n.to_string()), &piece[..4096])?))
        })?;
        drop_caches();
        rows.rate("stat, cold", count, "op/s", || {
            (0..count).try_for_each(|n| Ok(fs::metadata(many.join(n.to_string())).map(|_| ())?))
        })?;
        rows.rate("list + stat", count, "op/s", || {
            for entry in fs::read_dir(&many)? {
                entry?.metadata()?;
            }
            Ok(())
        })?;
        rows.rate("open + read 4 KiB + close", count, "files/s", || {
            (0..count).try_for_each(|n| Ok(fs::read(many.join(n.to_string())).map(|_| ())?))
        })?;
        rows.rate("rename", count, "op/s", || {
            (0..count).try_for_each(|n| Ok(fs::rename(many.join(n.to_string()), many.join(format!("r{n}")))?))
        })?;
        rows.rate("unlink", count, "op/s", || {
            (0..count).try_for_each(|n| Ok(fs::remove_file(many.join(format!("r{n}")))?))
        })?;
        fs::remove_dir(&many)?;
        fs::remove_file(&large)?;
        Ok(rows)
    }

    /// Times `work`, which does `amount` bytes (for MB/s) or operations.
    fn rate(
        &mut self,
        name: &'static str,
        amount: u64,
        unit: &'static str,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        work().with_context(|| name.to_owned())?;
        let seconds = start.elapsed().max(Duration::from_micros(1)).as_secs_f64();
        let scale = if unit == "MB/s" { 1e6 } else { 1.0 };
        self.0.push(Row { name, value: amount as f64 / seconds / scale, unit });
        eprintln!("  {name}: {}", self.0[self.0.len() - 1].shown());
        Ok(())
    }

    fn json(&self) -> serde_json::Value {
        self.0.iter().map(|row| (row.name.to_owned(), json!({ "value": row.value, "unit": row.unit }))).collect()
    }
}

fn command_line(cluster: &Cluster, disk: &Path, options: &Options) -> Result<Rows> {
    let mut rows = Rows(Vec::new());
    let bytes = options.large_mib << 20;
    let (local, back) = (disk.join("local"), disk.join("back"));
    let piece = patterned(PIECE);
    let file = File::create(&local)?;
    for offset in (0..bytes).step_by(PIECE) {
        file.write_all_at(&piece, offset)?;
    }
    file.sync_all()?;
    let text = |path: &Path| path.to_str().map(str::to_owned).context("the folder's name is not UTF-8");
    let (local_text, back_text) = (text(&local)?, text(&back)?);
    rows.rate("dfs put, durable", bytes, "MB/s", || cluster.run(["put", &local_text, "/put"]).map(|_| ()))?;
    drop_caches();
    rows.rate("dfs get, cold", bytes, "MB/s", || cluster.run(["get", "/put", &back_text]).map(|_| ()))?;
    let commands = 20;
    rows.rate("dfs ls, one command after the other", commands, "cmd/s", || {
        (0..commands).try_for_each(|_| cluster.run(["ls", "/"]).map(|_| ()))
    })?;
    fs::remove_file(&local)?;
    fs::remove_file(&back)?;
    Ok(rows)
}

fn read_through(path: &Path, bytes: u64) -> Result<()> {
    let file = File::open(path)?;
    let mut buffer = vec![0; PIECE];
    for offset in (0..bytes).step_by(PIECE) {
        file.read_exact_at(&mut buffer, offset)?;
    }
    Ok(())
}

/// Bytes that do not compress and do not repeat within the piece.
fn patterned(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// The n-th of a fixed sequence of 4 KiB-aligned offsets below `bytes`.
fn scattered(n: u64, bytes: u64) -> u64 {
    let pages = (bytes / 4096).max(1);
    n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) % pages * 4096
}

fn drop_caches() {
    // Only root may; the rows named "cold" are then warm, on both sides alike.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

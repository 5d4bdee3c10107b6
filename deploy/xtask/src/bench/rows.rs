//! The work that is measured, the same on whatever is mounted at a folder.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// One piece of a sequential transfer.
const PIECE: usize = 1 << 20;

/// Operations of the random rows.
const RANDOM_OPS: u64 = 2000;
const SYNCED_OPS: u64 = 200;

/// Workers of the rows that do many things at once.
const WORKERS: u64 = 8;

/// What to measure, and with how much.
#[derive(Clone, Debug)]
pub struct Sizes {
    /// Of the sequential file.
    pub large_bytes: u64,
    /// Files of 4 KiB.
    pub files: u64,
    /// A folder of source code, copied, searched and unpacked. Without it these rows are left out.
    pub tree: Option<SourceTree>,
}

/// Source code on a local disk, in three shapes.
#[derive(Clone, Debug)]
pub struct SourceTree {
    pub folder: PathBuf,
    pub archive: PathBuf,
    pub repository: PathBuf,
    pub files: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    MbPerSecond,
    PerSecond,
}

impl Unit {
    fn text(self) -> &'static str {
        match self {
            Unit::MbPerSecond => "MB/s",
            Unit::PerSecond => "/s",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Row {
    pub name: &'static str,
    pub value: f64,
    pub unit: Unit,
}

impl Row {
    pub fn shown(&self) -> String {
        format!("{:.0} {}", self.value, self.unit.text())
    }
}

/// Rows in the order in which they were measured.
#[derive(Default)]
pub struct Rows(pub Vec<Row>);

impl Rows {
    /// Everything, below a fresh folder in `dir`, which is gone afterwards.
    pub fn measure(dir: &Path, sizes: &Sizes) -> Result<Rows> {
        let dir = dir.join("rows");
        fs::create_dir(&dir)?;
        let mut rows = Rows::default();
        rows.large(&dir, sizes.large_bytes)?;
        rows.small(&dir, sizes.files)?;
        rows.many_at_once(&dir, sizes.files)?;
        if let Some(tree) = &sizes.tree {
            rows.trees(&dir, tree)?;
        }
        fs::remove_dir_all(&dir)?;
        Ok(rows)
    }

    fn large(&mut self, dir: &Path, bytes: u64) -> Result<()> {
        let paths = [dir.join("large"), dir.join("large2")];
        let half = bytes / 2;
        self.rate("sequential write + fsync", bytes, Unit::MbPerSecond, || write_through(&paths[0], bytes))?;
        drop_caches();
        self.rate("sequential read, cold", bytes, Unit::MbPerSecond, || read_through(&paths[0], bytes))?;
        self.rate("sequential read, warm", bytes, Unit::MbPerSecond, || read_through(&paths[0], bytes))?;
        drop_caches();
        self.rate("random read 4 KiB, cold", RANDOM_OPS, Unit::PerSecond, || {
            let file = File::open(&paths[0])?;
            let mut buffer = [0; 4096];
            for n in 0..RANDOM_OPS {
                file.read_exact_at(&mut buffer, scattered(n, bytes))?;
            }
            Ok(())
        })?;
        let piece = patterned(4096);
        self.rate("random write 4 KiB, one fsync", RANDOM_OPS, Unit::PerSecond, || {
            let file = OpenOptions::new().write(true).open(&paths[0])?;
            for n in 0..RANDOM_OPS {
                file.write_all_at(&piece, scattered(n, bytes))?;
            }
            Ok(file.sync_all()?)
        })?;
        paths.iter().filter(|path| path.exists()).try_for_each(fs::remove_file)?;
        self.rate("2 sequential writers", bytes, Unit::MbPerSecond, || {
            at_once(2, |worker| write_through(&paths[worker as usize], half))
        })?;
        drop_caches();
        self.rate("2 sequential readers, cold", bytes, Unit::MbPerSecond, || {
            at_once(2, |worker| read_through(&paths[worker as usize], half))
        })?;
        paths.iter().try_for_each(fs::remove_file)?;
        self.rate("write 4 KiB + fsync each", SYNCED_OPS, Unit::PerSecond, || {
            let file = File::create(dir.join("synced"))?;
            for n in 0..SYNCED_OPS {
                file.write_all_at(&piece, n * 4096)?;
                file.sync_all()?;
            }
            Ok(())
        })
    }

    fn small(&mut self, dir: &Path, count: u64) -> Result<()> {
        let many = dir.join("many");
        fs::create_dir(&many)?;
        let piece = patterned(4096);
        let path = |n: u64| many.join(n.to_string());
        self.rate("create + write 4 KiB + close", count, Unit::PerSecond, || {
            (0..count).try_for_each(|n| Ok(fs::write(path(n), &piece)?))
        })?;
        drop_caches();
        self.rate("stat, cold", count, Unit::PerSecond, || {
            (0..count).try_for_each(|n| Ok(fs::metadata(path(n)).map(|_| ())?))
        })?;
        drop_caches();
        self.rate("list + stat, cold", count, Unit::PerSecond, || {
            for entry in fs::read_dir(&many)? {
                entry?.metadata()?;
            }
            Ok(())
        })?;
        drop_caches();
        self.rate("open + read 4 KiB + close, cold", count, Unit::PerSecond, || {
            (0..count).try_for_each(|n| Ok(fs::read(path(n)).map(|_| ())?))
        })?;
        self.rate("rename", count, Unit::PerSecond, || {
            (0..count).try_for_each(|n| Ok(fs::rename(path(n), many.join(format!("r{n}")))?))
        })?;
        self.rate("unlink", count, Unit::PerSecond, || {
            (0..count).try_for_each(|n| Ok(fs::remove_file(many.join(format!("r{n}")))?))
        })?;
        self.rate("mkdir", count, Unit::PerSecond, || (0..count).try_for_each(|n| Ok(fs::create_dir(path(n))?)))?;
        self.rate("rmdir", count, Unit::PerSecond, || (0..count).try_for_each(|n| Ok(fs::remove_dir(path(n))?)))?;
        Ok(fs::remove_dir(&many)?)
    }

    /// Each worker in a folder of its own.
    fn many_at_once(&mut self, dir: &Path, count: u64) -> Result<()> {
        let each = count / WORKERS;
        let total = each * WORKERS;
        let piece = patterned(4096);
        let folder = |worker: u64| dir.join(format!("worker{worker}"));
        (0..WORKERS).try_for_each(|worker| fs::create_dir(folder(worker)))?;
        let all = |work: &(dyn Fn(PathBuf) -> Result<()> + Sync)| {
            at_once(WORKERS, |worker| (0..each).try_for_each(|n| work(folder(worker).join(n.to_string()))))
        };
        self.rate("8 at once: create + write 4 KiB", total, Unit::PerSecond, || {
            all(&|path| Ok(fs::write(path, &piece)?))
        })?;
        drop_caches();
        self.rate("8 at once: stat, cold", total, Unit::PerSecond, || all(&|path| Ok(fs::metadata(path).map(drop)?)))?;
        drop_caches();
        self.rate("8 at once: open + read, cold", total, Unit::PerSecond, || {
            all(&|path| Ok(fs::read(path).map(drop)?))
        })?;
        self.rate("8 at once: rename", total, Unit::PerSecond, || {
            all(&|path| Ok(fs::rename(&path, path.with_extension("r"))?))
        })?;
        self.rate("8 at once: unlink", total, Unit::PerSecond, || {
            all(&|path| Ok(fs::remove_file(path.with_extension("r"))?))
        })?;
        self.rate("8 at once: mkdir", total, Unit::PerSecond, || all(&|path| Ok(fs::create_dir(path)?)))?;
        self.rate("8 at once: rmdir", total, Unit::PerSecond, || all(&|path| Ok(fs::remove_dir(path)?)))
    }

    fn trees(&mut self, dir: &Path, tree: &SourceTree) -> Result<()> {
        let (copy, unpacked, clone) = (dir.join("copy"), dir.join("unpacked"), dir.join("clone"));
        let quiet = |command: &mut Command| {
            let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status()?;
            // 1 from grep: nothing was found, for which everything was read.
            ensure!(matches!(status.code(), Some(0 | 1)), "{command:?}: {status}");
            Ok(())
        };
        self.rate("cp -r, files", tree.files, Unit::PerSecond, || {
            quiet(Command::new("cp").arg("-r").arg(&tree.folder).arg(&copy))
        })?;
        drop_caches();
        self.rate("grep -r, cold, files", tree.files, Unit::PerSecond, || {
            quiet(Command::new("grep").args(["-r", "no such line anywhere"]).arg(&copy))
        })?;
        fs::create_dir(&unpacked)?;
        self.rate("untar, files", tree.files, Unit::PerSecond, || {
            quiet(Command::new("tar").arg("-xf").arg(&tree.archive).arg("-C").arg(&unpacked))
        })?;
        self.rate("rm -r, files", tree.files, Unit::PerSecond, || Ok(fs::remove_dir_all(&unpacked)?))?;
        self.rate("git clone, files", tree.files, Unit::PerSecond, || {
            quiet(Command::new("git").args(["clone", "-q", "--no-hardlinks"]).arg(&tree.repository).arg(&clone))
        })
    }

    /// Times `work`, which does `amount` bytes (for MB/s) or operations.
    pub fn rate(
        &mut self,
        name: &'static str,
        amount: u64,
        unit: Unit,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let start = Instant::now();
        work().with_context(|| name.to_owned())?;
        let seconds = start.elapsed().max(Duration::from_micros(1)).as_secs_f64();
        let scale = if unit == Unit::MbPerSecond { 1e6 } else { 1.0 };
        let row = Row { name, value: amount as f64 / seconds / scale, unit };
        eprintln!("  {name}: {}", row.shown());
        self.0.push(row);
        Ok(())
    }

    pub fn json(&self) -> Value {
        self.0.iter().map(|row| (row.name.to_owned(), json!({ "value": row.value, "unit": row.unit.text() }))).collect()
    }

    /// Row by row the median of several rounds, which must have measured the same.
    pub fn median(rounds: &[Rows]) -> Rows {
        let first = rounds.first().map(|rows| &rows.0[..]).unwrap_or_default();
        let median = |(index, row): (usize, &Row)| {
            let mut values: Vec<f64> = rounds.iter().map(|rows| rows.0[index].value).collect();
            values.sort_by(f64::total_cmp);
            Row { value: values[values.len() / 2], ..row.clone() }
        };
        Rows(first.iter().enumerate().map(median).collect())
    }
}

impl SourceTree {
    /// Makes archive and repository of a folder of source code, beside it.
    pub fn of(folder: &Path, files: u64) -> Result<SourceTree> {
        let (archive, repository) = (folder.with_extension("tar"), folder.with_extension("git"));
        let mut tar = Command::new("tar");
        crate::run::must(tar.arg("-cf").arg(&archive).arg("-C").arg(folder).arg("."))?;
        crate::run::must(Command::new("cp").arg("-r").arg(folder).arg(&repository))?;
        let git = |args: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(&repository).args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"]);
            crate::run::must(command.args(args))
        };
        git(&["init", "-q"])?;
        git(&["add", "--all", "--force"])?;
        git(&["commit", "-q", "-m", "all"])?;
        Ok(SourceTree { folder: folder.to_owned(), archive, repository, files })
    }
}

/// Runs `work` on so many threads and waits for all; the first error is returned.
fn at_once(workers: u64, work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        running.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })
}

pub fn write_through(path: &Path, bytes: u64) -> Result<()> {
    let piece = patterned(PIECE);
    let file = File::create(path)?;
    for offset in (0..bytes).step_by(PIECE) {
        file.write_all_at(&piece, offset)?;
    }
    Ok(file.sync_all()?)
}

fn read_through(path: &Path, bytes: u64) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; PIECE];
    for _ in (0..bytes).step_by(PIECE) {
        file.read_exact(&mut buffer)?;
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

/// Everybody's: servers and clients share the machine. Only root may; the rows named "cold" are then warm, on all
/// sides alike.
pub fn drop_caches() {
    rustix::fs::sync();
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_taken_row_by_row() {
        let round = |a: f64, b: f64| {
            let row = |name, value| Row { name, value, unit: Unit::PerSecond };
            Rows(vec![row("a", a), row("b", b)])
        };
        let median = Rows::median(&[round(3.0, 10.0), round(1.0, 30.0), round(2.0, 20.0)]);
        assert_eq!(median.0.iter().map(|row| row.value).collect::<Vec<_>>(), [2.0, 20.0]);
    }
}

//! Files and folders that clients on several mounts move about at the same time. Afterwards each must be in exactly
//! one place of one tree.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::io::Errno;

use crate::dice::Dice;
use crate::verdict::{Invariant, Verdict};

const FILES: usize = 40;
const FOLDERS: usize = 8;
const CLIENTS_FOR_EACH_MOUNT: usize = 2;

/// Deeper than any order of the folders.
const DEPTH_MAX: usize = FOLDERS + 1;

/// What moving something may answer when others move things as well: it has gone, it would be moved into itself, its
/// new place has gone or is another's, or the kernel must look it up again first.
const EXPECTED: [Errno; 6] = [Errno::NOENT, Errno::INVAL, Errno::NOTEMPTY, Errno::EXIST, Errno::STALE, Errno::NOTDIR];

pub struct Renames {
    root: String,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

pub struct RenamesReport {
    root: String,
    /// Moves that succeeded.
    pub moves: u64,
    /// Calls that failed for a reason that moving does not explain.
    pub errors: Vec<String>,
}

impl Renames {
    /// Starts clients on all `mounts`, in the folder `root` there.
    pub fn start(mounts: &[PathBuf], root: &str, seed: u64) -> Result<Renames> {
        let first = mounts.first().context("one mount at least")?.join(root);
        fs::create_dir_all(&first)?;
        (0..FOLDERS).try_for_each(|number| fs::create_dir(first.join(folder(number))))?;
        (0..FILES).try_for_each(|number| fs::write(first.join(file(number)), file(number)))?;
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = Vec::new();
        for (mount, path) in mounts.iter().enumerate() {
            for number in 0..CLIENTS_FOR_EACH_MOUNT {
                let dice = Dice::apart(seed, &format!("mover {mount} {number}"));
                let (root, stop, done) = (path.join(root), stop.clone(), done.clone());
                clients.push(std::thread::spawn(move || move_about(&root, dice, &stop, &done)));
            }
        }
        Ok(Renames { root: root.to_owned(), stop, done, clients })
    }

    /// Moves that succeeded so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub fn finish(mut self) -> Result<RenamesReport> {
        self.stop.store(true, Ordering::Relaxed);
        let mut errors = Vec::new();
        for client in std::mem::take(&mut self.clients) {
            errors.extend(client.join().map_err(|_| anyhow!("a mover panicked"))?);
        }
        Ok(RenamesReport { root: std::mem::take(&mut self.root), moves: self.done(), errors })
    }
}

impl Drop for Renames {
    /// The threads end by themselves after the call under way.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl RenamesReport {
    /// Walks the tree on a mount. Nothing must move meanwhile.
    pub fn check(&self, mount: &Path, verdict: &mut Verdict) {
        let mut seen = BTreeMap::new();
        if let Err(error) = walk(&mount.join(&self.root), 0, &mut seen) {
            verdict.broken(Invariant::NamespaceSound, format!("{error:#}"));
            return;
        }
        for name in (0..FOLDERS).map(folder).chain((0..FILES).map(file)) {
            match seen.get(&name).map(Vec::as_slice) {
                Some([_]) => verdict.fine(Invariant::NamespaceSound, 1),
                Some(places) => verdict.broken(Invariant::NamespaceSound, format!("{name} is at {places:?}")),
                None => verdict.broken(Invariant::NamespaceSound, format!("{name} is nowhere")),
            }
        }
    }
}

fn folder(number: usize) -> String {
    format!("folder{number}")
}

fn file(number: usize) -> String {
    format!("file{number}")
}

/// Where each name was found. Fails on a file with other content, a wrong link count, a folder that is below itself.
fn walk(at: &Path, depth: usize, seen: &mut BTreeMap<String, Vec<PathBuf>>) -> Result<()> {
    anyhow::ensure!(depth <= DEPTH_MAX, "{} is below itself", at.display());
    let mut folders = 0;
    for entry in fs::read_dir(at).with_context(|| at.display().to_string())? {
        let path = entry?.path();
        let metadata = path.symlink_metadata().with_context(|| format!("{} is listed", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if metadata.is_dir() {
            folders += 1;
            walk(&path, depth + 1, seen)?;
        } else {
            let links = metadata.nlink();
            anyhow::ensure!(links == 1, "{} has {links} links and one name", path.display());
            let content = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            anyhow::ensure!(content == name, "{} holds `{content}`", path.display());
        }
        seen.entry(name).or_default().push(path);
    }
    let links = fs::metadata(at)?.nlink();
    anyhow::ensure!(links == folders + 2, "{} has {links} links and {folders} folders", at.display());
    Ok(())
}

/// The errors that moving does not explain.
fn move_about(root: &Path, mut dice: Dice, stop: &AtomicBool, done: &AtomicU64) -> Vec<String> {
    let mut errors = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // What is where is known to nobody: look, then move, while others do the same.
        let folders = folders_below(root, 0);
        let (from, to) = (dice.pick(&folders).clone(), dice.pick(&folders).clone());
        let Ok(entries) = fs::read_dir(&from) else { continue };
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        if names.is_empty() {
            continue;
        }
        let name = dice.pick(&names);
        match fs::rename(from.join(name), to.join(name)) {
            Ok(()) => {
                done.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if EXPECTED.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())) => {}
            Err(error) => {
                errors.push(format!("move {} to {}: {error}", from.join(name).display(), to.display()));
                std::thread::park_timeout(Duration::from_millis(20));
            }
        }
    }
    errors
}

fn folders_below(at: &Path, depth: usize) -> Vec<PathBuf> {
    let mut folders = vec![at.to_owned()];
    if depth < DEPTH_MAX {
        let entries = fs::read_dir(at).into_iter().flatten().flatten();
        let inside = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(inside.flat_map(|entry| folders_below(&entry.path(), depth + 1)));
    }
    folders
}

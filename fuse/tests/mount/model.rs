//! Random operations from two mounts, compared with a tree in memory.
//!
//! They are done one after the other, now by one mount and now by the other, and files are closed at once: then both
//! mounts must show what the model has, always. `DFS_TEST_MODEL_SEEDS` (as in `7,8,9`) and `DFS_TEST_MODEL_STEPS` choose
//! other runs than the fixed ones.

mod tree;

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rustix::fs::{AtFlags, CWD, RenameFlags, Timespec, Timestamps, UTIME_OMIT, renameat_with, utimensat};
use rustix::io::Errno;
use tree::{Answer, At, Id, Kind, Rename, Tree};

use crate::{names_in, on_two_mounts};

const STEPS: usize = 2000;

/// Steps between comparisons of everything.
const COMPARE_EACH: usize = 400;

/// Few, so that operations meet on the same names.
const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "ö-longer than others", "f"];

/// Beyond it no directories are made.
const DIRECTORIES_MAX: usize = 25;

const FILE_MAX: usize = 300_000;

/// The last steps, told when one goes wrong.
const TOLD: usize = 25;

/// Times that a call is made while it says ESTALE.
const PATIENCE: usize = 5;

const STALE: &str = "a `rename` that is the first call to come across it here may fail with `ESTALE` until its names are \
    looked up by another call";

#[test]
fn both_mounts_show_what_was_done_on_either() {
    let seeds = std::env::var("DFS_TEST_MODEL_SEEDS").unwrap_or("1,2".to_owned());
    let steps = std::env::var("DFS_TEST_MODEL_STEPS").map_or(STEPS, |steps| steps.parse().unwrap());
    let seeds: Vec<u64> = seeds.split(',').map(|seed| seed.trim().parse().unwrap()).collect();
    let quote = "A namespace operation that has returned is seen by every other mount at its next look-up.";
    for seed in seeds {
        let (Some((dir, other)), Some(_)) = (on_two_mounts(quote), on_two_mounts(STALE)) else { return };
        println!("seed {seed}: {steps} steps");
        let mode = fs::metadata(dir.path()).unwrap().mode() & 0o7777;
        let mut run = Run {
            seed,
            rng: StdRng::seed_from_u64(seed),
            mounts: [dir.path().to_owned(), other],
            tree: Tree::new(mode),
            done: VecDeque::new(),
        };
        for step in 1..=steps {
            run.step(step);
            if step % COMPARE_EACH == 0 || step == steps {
                run.compare();
            }
        }
    }
}

struct Run {
    seed: u64,
    rng: StdRng,
    mounts: [PathBuf; 2],
    tree: Tree,
    done: VecDeque<String>,
}

impl Run {
    fn step(&mut self, step: usize) {
        let mount = self.rng.random_range(0..2);
        let (what, real, model) = match self.rng.random_range(0..100) {
            0..12 => self.create(mount),
            12..22 => self.mkdir(mount),
            22..36 => self.write(mount),
            36..44 => self.append(mount),
            44..51 => self.truncate(mount),
            51..63 => self.rename(mount),
            63..68 => self.link(mount),
            68..71 => self.symlink(mount),
            71..77 => self.unlink(mount),
            77..81 => self.rmdir(mount),
            81..84 => self.chmod(mount),
            84..87 => self.set_mtime(mount),
            87..93 => self.read(mount),
            93..96 => self.list(mount),
            _ => self.stat(mount),
        };
        self.done.push_back(format!("{step}: mount {mount}: {what}: {model:?}"));
        if self.done.len() > TOLD {
            self.done.pop_front();
        }
        let real = real.map_err(|error| error.raw_os_error().and_then(|raw| Errno::from_raw_os_error(raw).into()));
        let model_says = model.map_err(Some);
        assert!(real == model_says, "{}the mount says {real:?}", self.told());
    }

    /// Whom to blame.
    fn told(&self) -> String {
        let steps: Vec<&str> = self.done.iter().map(String::as_str).collect();
        format!("seed {}, the last steps:\n{}\n", self.seed, steps.join("\n"))
    }

    /// Some name in some directory; mostly one that is there.
    fn some(&mut self, there: bool) -> At {
        let paths = self.tree.paths();
        let directories: Vec<Id> = paths.iter().map(|(_, id)| *id).filter(|&id| self.tree.is_directory(id)).collect();
        let parent = *directories.choose(&mut self.rng).unwrap();
        if there && self.rng.random_bool(0.9) {
            let all: Vec<At> = directories
                .iter()
                .flat_map(|&parent| self.tree.entries(parent).keys().map(move |name| At { parent, name: name.clone() }))
                .collect();
            if let Some(at) = all.choose(&mut self.rng) {
                return at.clone();
            }
        }
        At { parent, name: (*NAMES.choose(&mut self.rng).unwrap()).to_owned() }
    }

    /// As `some`, mostly a file.
    fn some_file(&mut self) -> At {
        for _ in 0..6 {
            let at = self.some(true);
            if self.tree.find(&at).is_some_and(|id| matches!(self.tree.nodes[id].kind, Kind::File(_))) {
                return at;
            }
        }
        self.some(true)
    }

    /// Where it is on a mount.
    fn path(&self, mount: usize, at: &At) -> PathBuf {
        let paths = self.tree.paths();
        let (parent, _) = paths.iter().find(|(_, id)| *id == at.parent).unwrap();
        self.mounts[mount].join(format!("{parent}/{}", at.name).trim_start_matches('/'))
    }

    fn shown(&self, at: &At) -> String {
        self.path(0, at).strip_prefix(&self.mounts[0]).unwrap().display().to_string()
    }

    fn create(&mut self, mount: usize) -> Outcome {
        let at = self.some(false);
        let path = self.path(mount, &at);
        let mode = self.rng.random_range(0..0o100) | 0o600;
        let opened = patiently(|| OpenOptions::new().write(true).create_new(true).mode(mode).open(&path));
        // Whatever the umask left of it.
        let mode = opened.as_ref().map_or(0, |file| file.metadata().unwrap().mode() & 0o7777);
        let what = format!("create {}", self.shown(&at));
        (what, opened.map(drop), self.tree.make(&at, Kind::File(Vec::new()), mode))
    }

    fn mkdir(&mut self, mount: usize) -> Outcome {
        let count = self.tree.paths().iter().filter(|(_, id)| self.tree.is_directory(*id)).count();
        if count >= DIRECTORIES_MAX {
            return self.rmdir(mount);
        }
        let at = self.some(false);
        let path = self.path(mount, &at);
        let made = patiently(|| fs::create_dir(&path));
        let mode = made.as_ref().map_or(0, |()| fs::metadata(&path).unwrap().mode() & 0o7777);
        let what = format!("mkdir {}", self.shown(&at));
        (what, made, self.tree.make(&at, Kind::Directory(Default::default()), mode))
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(1..max)];
        self.rng.fill(&mut bytes[..]);
        bytes
    }

    fn write(&mut self, mount: usize) -> Outcome {
        let at = self.some_file();
        let path = self.path(mount, &at);
        let bytes = self.bytes(60_000);
        let offset = self.rng.random_range(0..FILE_MAX - bytes.len());
        let sync = self.rng.random_bool(0.1);
        let what = format!("write {} bytes at {offset} of {}, sync {sync}", bytes.len(), self.shown(&at));
        let write = || {
            let file = no_follow().write(true).open(&path)?;
            file.write_all_at(&bytes, offset as u64)?;
            if sync { file.sync_all() } else { Ok(()) }
        };
        let real = patiently(write);
        let model = self.tree.open(&at).map(|file| {
            file.resize(file.len().max(offset + bytes.len()), 0);
            file[offset..offset + bytes.len()].copy_from_slice(&bytes);
        });
        (what, real, model)
    }

    fn append(&mut self, mount: usize) -> Outcome {
        let at = self.some_file();
        let path = self.path(mount, &at);
        let bytes = self.bytes(5000);
        let what = format!("append {} bytes to {}", bytes.len(), self.shown(&at));
        let opened = patiently(|| no_follow().append(true).open(&path));
        let real = opened.and_then(|mut file| file.write_all(&bytes));
        let model = self.tree.open(&at).map(|file| file.extend_from_slice(&bytes));
        (what, real, model)
    }

    /// To some length, or to nothing as the file is opened.
    fn truncate(&mut self, mount: usize) -> Outcome {
        let at = self.some_file();
        let path = self.path(mount, &at);
        let len = if self.rng.random_bool(0.3) { 0 } else { self.rng.random_range(0..FILE_MAX) };
        let what = format!("truncate {} to {len}", self.shown(&at));
        let real = patiently(|| match len {
            0 => no_follow().write(true).truncate(true).open(&path).map(drop),
            _ => no_follow().write(true).open(&path).and_then(|file| file.set_len(len as u64)),
        });
        let model = self.tree.open(&at).map(|file| file.resize(len, 0));
        (what, real, model)
    }

    fn rename(&mut self, mount: usize) -> Outcome {
        let from = self.some(true);
        let there = self.rng.random_bool(0.5);
        let to = self.some(there);
        let (how, flags) = *[
            (Rename::Replace, RenameFlags::empty()),
            (Rename::Replace, RenameFlags::empty()),
            (Rename::NoReplace, RenameFlags::NOREPLACE),
            (Rename::Exchange, RenameFlags::EXCHANGE),
        ]
        .choose(&mut self.rng)
        .unwrap();
        let what = format!("rename {} to {}, {how:?}", self.shown(&from), self.shown(&to));
        let (old, new) = (self.path(mount, &from), self.path(mount, &to));
        let real = patiently_at(&[&old, &new], &mut || Ok(renameat_with(CWD, &old, CWD, &new, flags)?));
        (what, real, self.tree.rename(&from, &to, how))
    }

    fn link(&mut self, mount: usize) -> Outcome {
        let (from, to) = (self.some_file(), self.some(false));
        let what = format!("link {} to {}", self.shown(&from), self.shown(&to));
        let (old, new) = (self.path(mount, &from), self.path(mount, &to));
        let real = patiently(|| fs::hard_link(&old, &new));
        (what, real, self.tree.link(&from, &to))
    }

    fn symlink(&mut self, mount: usize) -> Outcome {
        let at = self.some(false);
        let target = format!("../{}", NAMES.choose(&mut self.rng).unwrap());
        let what = format!("symlink {} to {target}", self.shown(&at));
        let path = self.path(mount, &at);
        let real = patiently(|| std::os::unix::fs::symlink(&target, &path));
        (what, real, self.tree.make(&at, Kind::Symlink(target), 0o777))
    }

    fn unlink(&mut self, mount: usize) -> Outcome {
        let at = self.some(true);
        let path = self.path(mount, &at);
        let real = patiently(|| fs::remove_file(&path));
        (format!("unlink {}", self.shown(&at)), real, self.tree.unlink(&at))
    }

    fn rmdir(&mut self, mount: usize) -> Outcome {
        let at = self.some(true);
        let path = self.path(mount, &at);
        let real = patiently(|| fs::remove_dir(&path));
        (format!("rmdir {}", self.shown(&at)), real, self.tree.rmdir(&at))
    }

    /// What is there and no symlink; the top if there is nothing.
    fn some_node(&mut self) -> (String, Id) {
        let paths = self.tree.paths();
        let nodes: Vec<_> =
            paths.into_iter().filter(|(_, id)| !matches!(self.tree.nodes[*id].kind, Kind::Symlink(_))).collect();
        nodes.choose(&mut self.rng).unwrap().clone()
    }

    fn chmod(&mut self, mount: usize) -> Outcome {
        let (path, id) = self.some_node();
        let mode = self.rng.random_range(0..0o2000) | 0o700;
        let there = on(&self.mounts[mount], &path);
        let real = patiently(|| fs::set_permissions(&there, fs::Permissions::from_mode(mode)));
        self.tree.nodes[id].mode = mode;
        (format!("chmod {mode:o} {path}"), real, Ok(()))
    }

    fn set_mtime(&mut self, mount: usize) -> Outcome {
        let (path, id) = self.some_node();
        let mtime = (self.rng.random_range(0..4_000_000_000), self.rng.random_range(0..1_000_000_000));
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 },
        };
        let there = on(&self.mounts[mount], &path);
        let real = patiently(|| Ok(utimensat(CWD, &there, &times, AtFlags::empty())?));
        self.tree.nodes[id].mtime = Some(mtime);
        (format!("set the time of {path}"), real, Ok(()))
    }

    fn read(&mut self, mount: usize) -> Outcome {
        let (path, id) = self.some_node();
        self.compare_node(mount, &path, id);
        (format!("read {path}"), Ok(()), Ok(()))
    }

    fn list(&mut self, mount: usize) -> Outcome {
        let directories: Vec<_> = self.tree.paths().into_iter().filter(|(_, id)| self.tree.is_directory(*id)).collect();
        let (path, id) = directories.choose(&mut self.rng).unwrap().clone();
        self.compare_node(mount, &path, id);
        (format!("list {path}"), Ok(()), Ok(()))
    }

    /// Of a name that need not be there.
    fn stat(&mut self, mount: usize) -> Outcome {
        let at = self.some(true);
        let path = self.path(mount, &at);
        let real = patiently(|| fs::symlink_metadata(&path)).map(drop);
        let model = self.tree.find(&at).map(drop).ok_or(Errno::NOENT);
        (format!("stat {}", self.shown(&at)), real, model)
    }

    /// Everything, on both mounts.
    fn compare(&self) {
        let nodes = self.tree.paths();
        for (path, id) in &nodes {
            for mount in 0..2 {
                self.compare_node(mount, path, *id);
            }
            let times = [0, 1].map(|mount| {
                let there = on(&self.mounts[mount], path);
                let stat = patiently(|| fs::symlink_metadata(&there)).unwrap();
                (stat.ino(), stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.ctime_nsec(), stat.blocks())
            });
            assert!(times[0] == times[1], "{}{path}: the mounts show {times:?}", self.told());
        }
    }

    /// Attributes, and bytes, names or target.
    fn compare_node(&self, mount: usize, path: &str, id: Id) {
        let node = &self.tree.nodes[id];
        let real = on(&self.mounts[mount], path);
        let wrong = |what: &str| format!("{}mount {mount}, {path}: {what}", self.told());
        let stat = patiently(|| fs::symlink_metadata(&real));
        let stat = stat.unwrap_or_else(|error| panic!("{}", wrong(&error.to_string())));
        let (size, kind) = match &node.kind {
            Kind::File(bytes) => (bytes.len(), stat.is_file()),
            Kind::Symlink(target) => (target.len(), stat.is_symlink()),
            Kind::Directory(_) => (stat.len() as usize, stat.is_dir()),
        };
        assert!(kind, "{}", wrong("its kind"));
        let seen = (stat.mode() & 0o7777, stat.nlink(), stat.len());
        let wanted = (node.mode, self.tree.links(id), size as u64);
        assert!(seen == wanted, "{}", wrong(&format!("mode, links and size are {seen:?} and should be {wanted:?}")));
        if let Some(mtime) = node.mtime {
            assert!((stat.mtime(), stat.mtime_nsec()) == mtime, "{}", wrong(&format!("mtime {mtime:?} was set")));
        }
        match &node.kind {
            Kind::File(bytes) => {
                let found = patiently(|| fs::read(&real)).unwrap();
                let at = found.iter().zip(bytes).position(|(a, b)| a != b);
                assert!(found == *bytes, "{}", wrong(&format!("{} bytes, different at {at:?}", found.len())));
            }
            Kind::Symlink(target) => assert!(fs::read_link(&real).unwrap() == Path::new(target), "{}", wrong("target")),
            Kind::Directory(entries) => {
                let found = names_in(&real);
                assert!(found.iter().eq(entries.keys().map(|name| name.as_str())), "{}", wrong(&format!("{found:?}")));
            }
        }
    }
}

/// What was done, what the mount says, what the model says.
type Outcome = (String, io::Result<()>, Answer);

/// Another mount may have moved a directory on the way: see `STALE`.
fn patiently<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    patiently_at(&[], &mut call)
}

/// As `patiently`, for calls that leave it to others to look `paths` up.
fn patiently_at<T>(paths: &[&Path], call: &mut dyn FnMut() -> io::Result<T>) -> io::Result<T> {
    let is_stale = |error: &io::Error| error.raw_os_error() == Some(Errno::STALE.raw_os_error());
    for _ in 1..PATIENCE {
        match call() {
            Err(error) if is_stale(&error) => {}
            other => return other,
        }
        for path in paths {
            // Only that the kernel has looked.
            let _ = fs::symlink_metadata(path);
        }
    }
    call()
}

fn on(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn no_follow() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}

//! `-o ro,allow_other,subdir=/projects`: what `mount` and fstab say.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dfs_client::Options;
use dfs_fuse::{Identity, MountOptions, Squash};
use rustix::mount::MountFlags;

use crate::error::{Failure, Result};

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MountWishes {
    pub hard: bool,
    pub deadline: Option<Duration>,
    no_atime: bool,
    /// Directories that this mount makes are private to it at first.
    writebehind: bool,
    /// The cluster file, in place of `--cluster`.
    pub cluster: Option<PathBuf>,
    /// Change the options of what is mounted there.
    pub remount: Option<Remount>,
    read_only: bool,
    allow_other: Option<bool>,
    suid: bool,
    dev: bool,
    noexec: bool,
    fsname: Option<String>,
    threads: Option<usize>,
    subdir: Option<PathBuf>,
    squash: Option<Squashed>,
    anonymous: (Option<u32>, Option<u32>),
}

/// Flags of the kernel to set and to clear at a remount; what is in neither stays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Remount {
    pub set: MountFlags,
    pub clear: MountFlags,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Squashed {
    Root,
    All,
}

/// Accepted because fstab lines have them: they are the default, make no difference here, or are for others to read.
const IGNORED: [&str; 20] = [
    "defaults",
    "async",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "group",
    "owner",
    "_netdev",
    "nofail",
    "diratime",
    "nodiratime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
    "noiversion",
    "iversion",
];

/// The flags that a remount can change, by their names in the mount table.
const REMOUNT: [(&str, &str, MountFlags); 4] = [
    ("ro", "rw", MountFlags::RDONLY),
    ("nosuid", "suid", MountFlags::NOSUID),
    ("nodev", "dev", MountFlags::NODEV),
    ("noexec", "exec", MountFlags::NOEXEC),
];

const KNOWN: &str = "ro, rw, cluster=FILE, subdir=DIR, allow_other, noallow_other, noatime, writebehind, dirsync, \
    root_squash, all_squash, anonuid=N, anongid=N, hard, soft, deadline=TIME, suid, dev, noexec, fsname=NAME, threads=N, remount, and those of fstab that \
    are for others";

impl MountWishes {
    /// Of several that contradict each other the last one counts, as everywhere.
    pub fn parse(options: &[String]) -> Result<MountWishes> {
        let mut wishes = MountWishes::default();
        let list: Vec<&str> = options.iter().flat_map(|list| list.split(',')).filter(|o| !o.is_empty()).collect();
        if list.contains(&"remount") {
            // mount(8) adds all that the mount table says, some of which is the kernel's own.
            wishes.remount = Some(Remount::parse(&list));
            return Ok(wishes);
        }
        let sloppy = list.contains(&"sloppy");
        for option in list {
            match wishes.take(option) {
                Err(_) if sloppy => {}
                other => other?,
            }
        }
        Ok(wishes)
    }

    fn take(&mut self, option: &str) -> Result {
        let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("ro", None) => self.read_only = true,
            ("rw", None) => self.read_only = false,
            ("allow_other", None) => self.allow_other = Some(true),
            ("allow_root" | "noallow_other", None) => self.allow_other = Some(false),
            ("suid", None) => self.suid = true,
            ("nosuid", None) => self.suid = false,
            ("dev", None) => self.dev = true,
            ("nodev", None) => self.dev = false,
            ("exec", None) => self.noexec = false,
            ("noexec", None) => self.noexec = true,
            ("hard", None) => self.hard = true,
            ("soft", None) => self.hard = false,
            ("writebehind", None) => self.writebehind = true,
            ("nowritebehind" | "dirsync" | "sync", None) => self.writebehind = false,
            ("noatime", None) => self.no_atime = true,
            ("atime" | "relatime", None) => self.no_atime = false,
            ("root_squash", None) => self.squash = Some(Squashed::Root),
            ("all_squash", None) => self.squash = Some(Squashed::All),
            ("no_root_squash" | "no_all_squash", None) => self.squash = None,
            ("anonuid", Some(id)) => self.anonymous.0 = Some(user_or_group(option, id)?),
            ("anongid", Some(id)) => self.anonymous.1 = Some(user_or_group(option, id)?),
            ("fsname", Some(name)) => self.fsname = Some(name.to_owned()),
            ("cluster", Some(file)) => self.cluster = Some(file.into()),
            ("subdir", Some(dir)) => self.subdir = Some(subdir(dir)?),
            ("threads", Some(number)) => self.threads = Some(parse(option, number)?.clamp(1, 64) as usize),
            ("deadline", Some(time)) => self.deadline = Some(deadline(option, time)?),
            ("deadline_ms", Some(number)) => self.deadline = Some(Duration::from_millis(parse(option, number)?.max(1))),
            ("uid" | "gid", Some(_)) => {
                return Err(Failure::usage(format!("-o {option} is not known"))
                    .hint("to act as one user whoever asks: all_squash,anonuid=N,anongid=N"));
            }
            ("sloppy", None) => {}
            (name, None) if IGNORED.contains(&name) => {}
            (name, _) if name.starts_with("x-") || name == "comment" => {}
            _ => return Err(Failure::usage(format!("-o {option} is not known")).hint(format!("known are {KNOWN}"))),
        }
        Ok(())
    }

    /// Whether names may be remembered whoever looked them up: where the kernel checks who may search what. It
    /// cannot where users are others to the cluster than to it.
    pub fn remember(&self) -> bool {
        self.squash.is_none()
    }

    /// Whether new directories are private at first, and what is done in them is sent a moment later.
    pub fn write_behind(&self) -> bool {
        self.remember() && self.writebehind && !self.read_only
    }

    /// Whether reading sets atime.
    pub fn atime(&self) -> bool {
        !self.no_atime && !self.read_only
    }

    /// `source` is what the mount table shows unless `fsname` was given.
    pub fn for_mount(&self, dir: &Path, source: &Path, client: &Options) -> MountOptions {
        let defaults = MountOptions::new(dir);
        // A comma would end the option by which the kernel is told.
        let source = source.to_str().filter(|source| !source.contains(',')).map(str::to_owned);
        let to = Identity { uid: self.anonymous.0.unwrap_or(NOBODY), gid: self.anonymous.1.unwrap_or(NOBODY) };
        MountOptions {
            read_only: self.read_only,
            allow_other: self.allow_other.unwrap_or(defaults.allow_other),
            suid: self.suid,
            dev: self.dev,
            exec: !self.noexec,
            subdir: self.subdir.clone().unwrap_or(defaults.subdir),
            squash: match self.squash {
                None => Squash::Off,
                Some(Squashed::Root) => Squash::Root(to),
                Some(Squashed::All) => Squash::All(to),
            },
            fsname: self.fsname.clone().or(source).unwrap_or(defaults.fsname),
            threads: self.threads.unwrap_or(defaults.threads),
            op_deadline: (!client.hard).then_some(client.op_deadline),
            mountpoint: defaults.mountpoint,
        }
    }
}

impl Remount {
    fn parse(options: &[&str]) -> Remount {
        let (mut set, mut clear) = (MountFlags::empty(), MountFlags::empty());
        for option in options {
            for (on, off, flag) in REMOUNT {
                if *option == on {
                    set.insert(flag);
                    clear.remove(flag);
                } else if *option == off {
                    clear.insert(flag);
                    set.remove(flag);
                }
            }
        }
        Remount { set, clear }
    }

    /// The flags afterwards, of a mount whose options in the mount table are `now`.
    pub fn flags(self, now: &str) -> MountFlags {
        let now: Vec<&str> = now.split(',').collect();
        (Remount::parse(&now).set & !self.clear) | self.set
    }
}

/// The user and group that own nothing, on every Linux.
const NOBODY: u32 = 65534;

/// An absolute path in the cluster that does not climb.
fn subdir(dir: &str) -> Result<PathBuf> {
    let path = Path::new("/").join(dir);
    if path.components().any(|component| component == std::path::Component::ParentDir) {
        return Err(Failure::usage(format!("-o subdir={dir}: a path without `..` is needed")));
    }
    Ok(path)
}

/// Seconds, or with a unit: `90`, `1m 30s`, `500ms`.
fn deadline(option: &str, time: &str) -> Result<Duration> {
    let seconds = time.parse().ok().map(Duration::from_secs);
    let time = seconds.or_else(|| humantime::parse_duration(time).ok()).filter(|time| !time.is_zero());
    time.ok_or_else(|| Failure::usage(format!("-o {option} is not a time")).hint("for example deadline=30s"))
}

fn user_or_group(option: &str, id: &str) -> Result<u32> {
    // The highest number means "no change" to chown.
    let id = u32::try_from(parse(option, id)?).ok().filter(|&id| id != u32::MAX);
    id.ok_or_else(|| Failure::usage(format!("-o {option} is out of range")))
}

fn parse(option: &str, number: &str) -> Result<u64> {
    number.parse().map_err(|_| Failure::usage(format!("-o {option}: `{number}` is not a number")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<MountWishes> {
        MountWishes::parse(&[text.to_owned()])
    }

    fn mounted(text: &str) -> MountOptions {
        parse(text).unwrap().for_mount(Path::new("/mnt"), Path::new("/etc/dfs/cluster.toml"), &Options::default())
    }

    #[test]
    fn options_of_fstab_and_of_fuse_are_read() {
        let wishes = parse(
            "rw,noauto,nofail,_netdev,noatime,x-systemd.automount,x-systemd.requires=a.service,allow_other,hard,\
             fsname=prod,threads=3,deadline_ms=500",
        )
        .unwrap();
        assert_eq!(wishes.allow_other, Some(true));
        assert!(wishes.hard && !wishes.read_only);
        assert_eq!((wishes.fsname.as_deref(), wishes.threads), (Some("prod"), Some(3)));
        assert_eq!(wishes.deadline, Some(Duration::from_millis(500)));
        assert_eq!(parse("").unwrap(), MountWishes::default());
        assert_eq!(parse("defaults,soft").unwrap(), MountWishes::default());
    }

    #[test]
    fn options_that_are_not_known_are_refused_unless_that_is_asked_for() {
        for bad in ["frobnicate", "threads=many", "ro=1", "fsname", "anonuid=x", "anonuid=4294967295", "deadline=soon"]
        {
            assert_eq!(parse(bad).unwrap_err().exit, crate::error::Exit::Usage, "{bad}");
        }
        assert!(parse("sloppy,frobnicate,ro").unwrap().read_only);
        assert!(parse("uid=5").unwrap_err().render(false).contains("all_squash"));
    }

    #[test]
    fn the_last_of_two_that_contradict_counts() {
        assert!(!parse("ro,rw").unwrap().read_only);
        assert!(!parse("hard,soft").unwrap().hard);
        assert_eq!(mounted("root_squash,all_squash,no_root_squash").squash, Squash::Off);
    }

    #[test]
    fn a_hard_mount_has_no_deadline() {
        let hard = Options { hard: true, ..Options::default() };
        let options = parse("hard").unwrap().for_mount(Path::new("/mnt"), Path::new("/c"), &hard);
        assert_eq!(options.op_deadline, None);
    }

    #[test]
    fn deadlines_are_seconds_or_have_a_unit() {
        assert_eq!(parse("deadline=90").unwrap().deadline, Some(Duration::from_secs(90)));
        assert_eq!(parse("deadline=1500ms").unwrap().deadline, Some(Duration::from_millis(1500)));
        assert!(parse("deadline=0").is_err());
    }

    #[test]
    fn squashing_is_that_of_nfs() {
        let nobody = Identity { uid: 65534, gid: 65534 };
        assert_eq!(mounted("root_squash").squash, Squash::Root(nobody));
        assert_eq!(mounted("all_squash,anonuid=7,anongid=8").squash, Squash::All(Identity { uid: 7, gid: 8 }));
        assert_eq!(mounted("anonuid=7").squash, Squash::Off);
    }

    #[test]
    fn a_subdir_does_not_climb() {
        assert_eq!(mounted("subdir=/a/b").subdir, Path::new("/a/b"));
        assert_eq!(mounted("subdir=a").subdir, Path::new("/a"));
        assert_eq!(mounted("").subdir, Path::new("/"));
        for climbing in ["..", "/a/../b", "a/.."] {
            assert!(parse(&format!("subdir={climbing}")).is_err());
        }
    }

    #[test]
    fn the_mount_table_names_the_cluster_file_or_what_was_asked_for() {
        assert_eq!(mounted("").fsname, "/etc/dfs/cluster.toml");
        assert_eq!(mounted("fsname=prod").fsname, "prod");
        let comma = parse("").unwrap().for_mount(Path::new("/mnt"), Path::new("/a,b"), &Options::default());
        assert_eq!(comma.fsname, "dfs");
    }

    #[test]
    fn a_remount_changes_what_it_names_and_accepts_all_that_the_mount_table_says() {
        let table = "rw,nosuid,nodev,relatime,user_id=0,group_id=0,default_permissions,allow_other";
        let remount = |more: &str| parse(&format!("{table},remount,{more}")).unwrap().remount.unwrap();
        assert_eq!(remount("ro").flags(table), MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV);
        assert_eq!(parse("remount,rw").unwrap().remount.unwrap().flags("ro,nodev"), MountFlags::NODEV);
    }
}

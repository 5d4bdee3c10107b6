//! `-o ro,allow_other,fsname=prod`: what `mount` and fstab say.

use std::path::Path;
use std::time::Duration;

use dfs_client::Options;
use dfs_fuse::MountOptions;

use crate::error::{Failure, Result};

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct MountWishes {
    pub hard: bool,
    pub deadline: Option<Duration>,
    no_atime: bool,
    read_only: bool,
    allow_other: Option<bool>,
    suid: bool,
    dev: bool,
    fsname: Option<String>,
    threads: Option<usize>,
}

/// Accepted because fstab lines have them; they are the default, or for others to read.
const IGNORED: [&str; 14] = [
    "rw", "defaults", "nosuid", "nodev", "exec", "async", "auto", "noauto", "user", "nouser", "_netdev", "nofail",
    "relatime", "soft",
];

impl MountWishes {
    pub fn parse(options: &[String]) -> Result<MountWishes> {
        let mut wishes = MountWishes::default();
        for option in options.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
            match (name, value) {
                ("ro", None) => wishes.read_only = true,
                ("allow_other", None) => wishes.allow_other = Some(true),
                ("allow_root", None) | ("noallow_other", None) => wishes.allow_other = Some(false),
                ("suid", None) => wishes.suid = true,
                ("dev", None) => wishes.dev = true,
                ("hard", None) => wishes.hard = true,
                ("noatime", None) => wishes.no_atime = true,
                ("fsname", Some(name)) => wishes.fsname = Some(name.to_owned()),
                ("threads", Some(number)) => wishes.threads = Some(parse(option, number)?.clamp(1, 64) as usize),
                ("deadline_ms", Some(number)) => {
                    wishes.deadline = Some(Duration::from_millis(parse(option, number)?.max(1)))
                }
                (name, None) if IGNORED.contains(&name) || name.starts_with("x-") => {}
                _ => {
                    let known = "ro, allow_other, suid, dev, hard, noatime, fsname=NAME, threads=N, deadline_ms=N";
                    return Err(Failure::usage(format!("-o {option} is not known")).hint(format!("known are {known}")));
                }
            }
        }
        Ok(wishes)
    }

    /// Whether reading sets atime.
    pub fn atime(&self) -> bool {
        !self.no_atime && !self.read_only
    }

    pub fn for_mount(&self, dir: &Path, client: &Options) -> MountOptions {
        let defaults = MountOptions::new(dir);
        MountOptions {
            read_only: self.read_only,
            allow_other: self.allow_other.unwrap_or(defaults.allow_other),
            suid: self.suid,
            dev: self.dev,
            fsname: self.fsname.clone().unwrap_or(defaults.fsname),
            threads: self.threads.unwrap_or(defaults.threads),
            op_deadline: (!client.hard).then_some(client.op_deadline),
            mountpoint: defaults.mountpoint,
        }
    }
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

    #[test]
    fn options_of_fstab_and_of_fuse_are_read() {
        let wishes =
            parse("rw,_netdev,x-systemd.automount,allow_other,hard,fsname=prod,threads=3,deadline_ms=500").unwrap();
        assert_eq!(wishes.allow_other, Some(true));
        assert!(wishes.hard && !wishes.read_only);
        assert_eq!((wishes.fsname.as_deref(), wishes.threads), (Some("prod"), Some(3)));
        assert_eq!(wishes.deadline, Some(Duration::from_millis(500)));
        assert_eq!(parse("").unwrap(), MountWishes::default());
    }

    #[test]
    fn options_that_are_not_known_are_refused() {
        for bad in ["frobnicate", "threads=many", "ro=1", "fsname"] {
            assert_eq!(parse(bad).unwrap_err().exit, crate::error::Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn a_hard_mount_has_no_deadline() {
        let hard = Options { hard: true, ..Options::default() };
        assert_eq!(parse("hard").unwrap().for_mount(Path::new("/mnt"), &hard).op_deadline, None);
    }
}

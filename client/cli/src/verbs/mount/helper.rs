//! Called as `mount.dfs`, this program is what mount(8) looks for when it is asked for the type `dfs`.

use std::ffi::OsString;
use std::path::Path;

use crate::error::{Exit, Failure, Result};

/// What mount(8) says of itself by its exit code, which it takes over from its helpers.
const BAD_CALL: u8 = 1;
const MOUNT_FAILED: u8 = 32;

/// Whether we were called as a mount helper: `mount.dfs`, or `mount.fuse.dfs`, which is what `mount -o remount` looks
/// for, because that is the type in the mount table.
pub fn is_called(program: Option<&OsString>) -> bool {
    let name = program.and_then(|program| Path::new(program).file_name());
    name.is_some_and(|name| name == "mount.dfs" || name == "mount.fuse.dfs")
}

/// `mount.dfs SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]` as a command line of `dfs`; `None` if there is
/// nothing to do.
///
/// The source is the cluster file if it is a path, and a mere name otherwise. It is also what the mount table shows, so
/// that `mount -a` sees that the line is mounted.
pub fn command_line(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Vec<OsString>>> {
    let (mut operands, mut options, mut verbose, mut fake) = (Vec::new(), Vec::new(), false, false);
    let mut arguments = arguments.into_iter().map(|argument| argument.into_string());
    let mut next = || arguments.next().transpose().map_err(|_| Failure::usage("an argument is not UTF-8"));
    while let Some(argument) = next()? {
        let Some(flags) = argument.strip_prefix('-').filter(|flags| !flags.is_empty()) else {
            operands.push(argument);
            continue;
        };
        for (at, flag) in flags.char_indices() {
            let mut value = || match &flags[at + 1..] {
                "" => next()?.ok_or_else(|| Failure::usage(format!("-{flag} needs a value"))),
                attached => Ok(attached.to_owned()),
            };
            match flag {
                'o' => options.push(value()?),
                // The type that was asked for is this one.
                't' => drop(value()?),
                'N' => return Err(Failure::usage("another mount namespace (-N) is not supported")),
                's' => options.push("sloppy".to_owned()),
                'v' => verbose = true,
                'f' => fake = true,
                // Nobody keeps a mount table of its own any more.
                'n' => {}
                'r' => options.push("ro".to_owned()),
                'w' => options.push("rw".to_owned()),
                _ => return Err(Failure::usage(format!("-{flag} is not known"))),
            }
            if matches!(flag, 'o' | 't') {
                break;
            }
        }
    }
    let [source, dir] = operands.as_slice() else {
        return Err(Failure::usage("mount.dfs SOURCE DIR [-sfnvrw] [-o OPTIONS]"));
    };
    if fake {
        return Ok(None);
    }
    let mut line: Vec<OsString> = vec!["dfs".into()];
    if !verbose {
        line.push("--quiet".into());
    }
    if source.contains('/') {
        line.extend(["--cluster".into(), source.into()]);
    }
    line.push("mount".into());
    // First, so that what the user said of it counts. mount(8) passes on `nosuid` and `nodev` only: what it does not name
    // is on, as for every other type.
    options.insert(0, "suid,dev,exec".to_owned());
    if !source.contains(',') && !source.is_empty() {
        options.insert(0, format!("fsname={source}"));
    }
    line.extend(["-o".into(), options.join(",").into(), "--".into(), dir.into()]);
    Ok(Some(line))
}

pub fn exit_code(exit: Exit) -> u8 {
    match exit {
        Exit::Done => 0,
        Exit::Usage => BAD_CALL,
        _ => MOUNT_FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(line: &str) -> Option<String> {
        let words = command_line(line.split_whitespace().map(OsString::from)).unwrap()?;
        Some(words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn the_names_by_which_mount_looks_for_a_helper_are_known() {
        for name in ["/sbin/mount.dfs", "mount.dfs", "/sbin/mount.fuse.dfs"] {
            assert!(is_called(Some(&name.into())), "{name}");
        }
        for name in ["/usr/bin/dfs", "dfs-mount.dfs", "mount.dfs.old"] {
            assert!(!is_called(Some(&name.into())), "{name}");
        }
        assert!(!is_called(None));
    }

    #[test]
    fn what_mount_passes_becomes_a_command_line() {
        assert_eq!(
            called("/etc/dfs/cluster.toml /mnt -o rw,_netdev,ro").unwrap(),
            "dfs --quiet --cluster /etc/dfs/cluster.toml mount -o fsname=/etc/dfs/cluster.toml,suid,dev,exec,rw,_netdev,ro -- /mnt"
        );
        assert_eq!(
            called("prod /mnt -sn -o cluster=/c.toml -t fuse.dfs -v").unwrap(),
            "dfs mount -o fsname=prod,suid,dev,exec,sloppy,cluster=/c.toml -- /mnt"
        );
        assert_eq!(called("prod /mnt -oro").unwrap(), "dfs --quiet mount -o fsname=prod,suid,dev,exec,ro -- /mnt");
        assert_eq!(called("prod /mnt -f"), None);
    }

    #[test]
    fn wrong_calls_are_refused() {
        for line in ["", "a", "a b c", "a b -o", "a b -x", "a b -N 1"] {
            assert!(command_line(line.split_whitespace().map(OsString::from)).is_err(), "{line}");
        }
    }
}

//! The command line as typed: what is common to all verbs. Each verb declares its own flags beside its code.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, ValueEnum};

use crate::verbs::Verb;

const EXAMPLES: &str = "\
Examples:
  dfs up --mount ./mnt               a cluster of 3 namenodes and 4 datanodes on this machine
  dfs put -f report.pdf src/ /docs   copy files and trees in
  dfs ls -lh /docs                   list
  dfs get /docs/src ./copy           copy out
  dfs status                         health, and what to do about it
  dfs down                           stop it; `dfs up` brings the data back
";

/// A distributed file system: mount it, or use it by these commands.
#[derive(Parser, Debug)]
#[command(name = "dfs", version, before_help = EXAMPLES, disable_help_flag = true, max_term_width = 100)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 permission, 5 try again, 6 corrupt, 130 interrupted"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// The cluster file that `dfs up` wrote
    #[arg(long, global = true, env = "DFS_CLUSTER", value_name = "FILE", default_value = "./dfs-data/cluster.toml")]
    pub cluster: PathBuf,
    /// One JSON object, or one per line where the answer is a stream
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more
    #[arg(short, long, global = true)]
    pub verbose: bool,
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub color: Color,
    /// What to log, for developers: `debug`, `dfs_client=trace,warn`
    #[arg(long, global = true, env = "DFS_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// This text
    #[arg(long, global = true, action = ArgAction::Help)]
    help: Option<bool>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Color {
    Auto,
    Always,
    Never,
}

/// `find` is typed with one dash (`-name`), as everywhere else; clap knows only two.
pub fn with_long_names(typed: Vec<OsString>) -> Vec<OsString> {
    if !typed.iter().any(|arg| arg == "find") {
        return typed;
    }
    let one_dash = |arg: &OsString| ["-name", "-type", "-size", "-maxdepth"].iter().any(|name| arg == name);
    let long = |arg: OsString| if one_dash(&arg) { [OsString::from("-"), arg].into_iter().collect() } else { arg };
    typed.into_iter().map(long).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn find_takes_its_tests_with_one_dash() {
        assert_eq!(with_long_names(words("dfs find /a -name *.rs -type f")), words("dfs find /a --name *.rs --type f"));
        assert_eq!(
            with_long_names(words("dfs --cluster x find / -size +1M")),
            words("dfs --cluster x find / --size +1M")
        );
        assert_eq!(with_long_names(words("dfs ls -name")), words("dfs ls -name"));
        assert!(Cli::try_parse_from(with_long_names(words("dfs find / -size -1M -type d"))).is_ok());
    }

    #[test]
    fn typical_lines_are_understood() {
        for line in [
            "dfs ls -lRhdtSr1a /a /b",
            "dfs --json ls /",
            "dfs put -f -p a b /dir",
            "dfs get -f /a -",
            "dfs rm -rf /a",
            "dfs tail -n 5 -f /log",
            "dfs chmod -R u+x,go-w /a",
            "dfs chown -R ana:staff /a",
            "dfs ln -s target /link",
            "dfs truncate -s 10M /a",
            "dfs setrep 2 /a --wait",
            "dfs test -d /a",
            "dfs df -h",
            "dfs du -sh /a",
            "dfs wait-healthy --timeout 30",
            "dfs namenode --config nn.toml",
            "dfs namenode leader",
            "dfs namenode snapshot",
            "dfs namenode list",
            "dfs namenode add",
            "dfs namenode add nn4",
            "dfs namenode add nn4 10.0.0.4:8020 10.0.0.4:8030 --id 4",
            "dfs namenode remove nn2",
            "dfs namenode replace nn2",
            "dfs namenode replace nn2 nn4 10.0.0.4:8020 10.0.0.4:8030 --id 4",
            "dfs namenode transfer-leader",
            "dfs namenode hash --index 7",
            "dfs namenode transfer-leader nn3",
            "dfs datanode verify file.chunk",
            "dfs datanode list",
            "dfs datanode decommission dn2 --dry-run",
            "dfs datanode decommission dn2 --cancel",
            "dfs datanode maintenance dn2 --for 30m",
            "dfs datanode remove 102",
            "dfs scrub",
            "dfs volume list",
            "dfs volume list dn1",
            "dfs volume add dn1 /mnt/disk2",
            "dfs volume drain dn1 /mnt/disk2",
            "dfs volume replace dn1 /mnt/disk2",
            "dfs scrub --now --wait dn1 dn2",
            "dfs mount -f -o allow_other ./mnt",
            "dfs up --namenodes 1 --datanodes 3 --fs xfs:400M --mount a --mount b",
            "dfs down --dir x",
            "dfs status --watch",
            "dfs fsck --files --locations /a",
        ] {
            if let Err(error) = Cli::try_parse_from(words(line)) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn wrong_lines_are_usage_errors() {
        for line in [
            "dfs",
            "dfs frobnicate",
            "dfs ls relative",
            "dfs test /a",
            "dfs namenode",
            "dfs namenode add nn4 10.0.0.4:8020",
            "dfs up --fs btrfs:1G",
        ] {
            assert!(Cli::try_parse_from(words(line)).is_err(), "{line}");
        }
    }
}

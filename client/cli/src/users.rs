//! Users and groups of this machine: who runs the command, and names for numbers.

use std::collections::HashMap;
use std::fs;
use std::sync::OnceLock;

use dfs_proto::{Caller, limits};

use crate::error::{Failure, Result};

/// The effective user, group and supplementary groups of this process.
pub fn caller() -> Caller {
    let mut groups: Vec<u32> =
        rustix::process::getgroups().unwrap_or_default().into_iter().map(|group| group.as_raw()).collect();
    groups.truncate(limits::GROUPS_MAX);
    Caller { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw(), groups }
}

/// Permission bits that new files of this process do not get.
pub fn umask() -> u16 {
    // The mask can only be read by setting it. Called before other threads make files.
    static MASK: OnceLock<u16> = OnceLock::new();
    *MASK.get_or_init(|| {
        let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        rustix::process::umask(mask);
        (mask.as_raw_mode() & 0o777) as u16
    })
}

/// `OWNER`, `OWNER:GROUP`, `:GROUP`, `OWNER:`; names or numbers.
pub fn parse_owner(text: &str) -> Result<(Option<u32>, Option<u32>)> {
    let (owner, group) = text.split_once(':').unwrap_or((text, ""));
    let uid = if owner.is_empty() { None } else { Some(id_of(users(), owner, "user")?) };
    let gid = if group.is_empty() { None } else { Some(id_of(groups(), group, "group")?) };
    if uid.is_none() && gid.is_none() {
        return Err(Failure::usage(format!("`{text}` names neither a user nor a group")));
    }
    Ok((uid, gid))
}

pub fn user_name(uid: u32) -> String {
    users().by_id.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
}

pub fn group_name(gid: u32) -> String {
    groups().by_id.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
}

/// The lines of `/etc/passwd` or `/etc/group`. Users of a directory service are given by number.
#[derive(Default)]
struct Table {
    by_id: HashMap<u32, String>,
    by_name: HashMap<String, u32>,
}

fn users() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table::parse(&fs::read_to_string("/etc/passwd").unwrap_or_default()))
}

fn groups() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table::parse(&fs::read_to_string("/etc/group").unwrap_or_default()))
}

fn id_of(table: &Table, text: &str, what: &str) -> Result<u32> {
    match table.by_name.get(text) {
        Some(id) => Ok(*id),
        None => text.parse().map_err(|_| {
            Failure::usage(format!("there is no {what} `{text}` on this machine")).hint("numbers work too")
        }),
    }
}

impl Table {
    /// Both files have the name first and the number third.
    fn parse(text: &str) -> Table {
        let mut table = Table::default();
        for line in text.lines() {
            let mut fields = line.split(':');
            if let (Some(name), _, Some(Ok(id))) = (fields.next(), fields.next(), fields.next().map(str::parse)) {
                // The first line of a number or a name counts.
                table.by_id.entry(id).or_insert_with(|| name.to_owned());
                table.by_name.entry(name.to_owned()).or_insert(id);
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(parse_owner("0:7").unwrap(), (Some(0), Some(7)));
        assert_eq!(parse_owner("12").unwrap(), (Some(12), None));
        assert_eq!(parse_owner(":12").unwrap(), (None, Some(12)));
        assert_eq!(parse_owner("12:").unwrap(), (Some(12), None));
        assert!(parse_owner("no-such-user-here").is_err());
        assert!(parse_owner(":").is_err());
    }

    #[test]
    fn the_first_line_of_a_number_gives_its_name() {
        let table = Table::parse("root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\nbroken\n");
        assert_eq!(table.by_id[&0], "root");
        assert_eq!(table.by_name["toor"], 0);
    }
}

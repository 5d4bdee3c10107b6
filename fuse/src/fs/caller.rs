//! On whose behalf a request is made.

use std::fs;

use dfs_proto::Caller;
use dfs_proto::limits::GROUPS_MAX;

/// What the kernel says about who makes a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Requester {
    pub uid: u32,
    pub gid: u32,
    /// The thread that waits for the answer; 0 when it is in another pid namespace or in the kernel.
    pub thread: u32,
}

impl Requester {
    /// Adds the supplementary groups, which FUSE does not pass on.
    ///
    /// They are read anew each time, about 20 us: a thread that gives up groups must lose them at once,
    /// and a number that another thread has taken over must not inherit them. The thread stays as it is while
    /// it waits for us. Root needs none, because permission bits do not bind it.
    pub fn caller(self) -> Caller {
        let groups = if self.uid == 0 || self.thread == 0 { Vec::new() } else { groups_of(self.thread) };
        Caller { uid: self.uid, gid: self.gid, groups }
    }
}

/// No groups where they cannot be read: that refuses too much rather than too little.
fn groups_of(thread: u32) -> Vec<u32> {
    match fs::read_to_string(format!("/proc/{thread}/status")) {
        Ok(status) => parse_groups(&status),
        Err(error) => {
            tracing::debug!(thread, %error, "supplementary groups not read");
            Vec::new()
        }
    }
}

fn parse_groups(status: &str) -> Vec<u32> {
    status
        .lines()
        .find_map(|line| line.strip_prefix("Groups:"))
        .map(|list| list.split_ascii_whitespace().filter_map(|gid| gid.parse().ok()).take(GROUPS_MAX).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_from_the_line_of_their_own() {
        let status = "Name:\tGroups: 7\nUid:\t1000\t1000\t1000\t1000\nGroups:\t4 24 1000 \nVmPeak:\t8 kB\n";
        assert_eq!(parse_groups(status), [4, 24, 1000]);
    }

    #[test]
    fn no_groups_and_no_line_are_no_groups() {
        assert_eq!(parse_groups("Groups:\t \n"), Vec::<u32>::new());
        assert_eq!(parse_groups("Name:\tinit\n"), Vec::<u32>::new());
        assert_eq!(parse_groups(""), Vec::<u32>::new());
    }

    #[test]
    fn groups_beyond_the_limit_are_cut_off() {
        let many: String = (0..GROUPS_MAX as u32 + 9).map(|gid| format!("{gid} ")).collect();
        let groups = parse_groups(&format!("Groups:\t{many}\n"));
        assert_eq!(groups, (0..GROUPS_MAX as u32).collect::<Vec<_>>());
    }

    #[test]
    fn a_thread_of_its_own_process_can_be_read() {
        let me = std::process::id();
        assert_eq!(groups_of(me), parse_groups(&fs::read_to_string("/proc/self/status").unwrap()));
    }

    #[test]
    fn a_caller_that_is_gone_has_no_groups() {
        let caller = Requester { uid: 1000, gid: 1000, thread: u32::MAX }.caller();
        assert_eq!(caller, Caller { uid: 1000, gid: 1000, groups: Vec::new() });
    }
}

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

/// Which users are somebody else to the cluster, as exports(5) of NFS has it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Squash {
    #[default]
    Off,
    /// Root becomes this user and group.
    Root(Identity),
    /// Everybody does.
    All(Identity),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

impl Squash {
    pub fn apply(self, who: Requester) -> Requester {
        // Without a thread no supplementary groups are looked for: they are those of who one was.
        let squashed = |to: Identity| Requester { uid: to.uid, gid: to.gid, thread: 0 };
        match self {
            Squash::All(to) => squashed(to),
            Squash::Root(to) if who.uid == 0 => squashed(to),
            // The group of root gives away as much as root in many trees.
            Squash::Root(to) if who.gid == 0 => Requester { gid: to.gid, ..who },
            Squash::Root(_) | Squash::Off => who,
        }
    }
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
    fn root_or_everybody_is_squashed_and_loses_all_groups() {
        let to = Identity { uid: 65534, gid: 65533 };
        let root = Requester { uid: 0, gid: 0, thread: 7 };
        let ana = Requester { uid: 1000, gid: 1000, thread: 8 };
        let nobody = Requester { uid: 65534, gid: 65533, thread: 0 };
        assert_eq!([root, ana].map(|who| Squash::Off.apply(who)), [root, ana]);
        assert_eq!([root, ana].map(|who| Squash::Root(to).apply(who)), [nobody, ana]);
        assert_eq!([root, ana].map(|who| Squash::All(to).apply(who)), [nobody, nobody]);
        assert_eq!(Squash::Root(to).apply(Requester { gid: 0, ..ana }).gid, 65533);
        assert_eq!(nobody.caller().groups, Vec::<u32>::new());
    }

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

//! On whose behalf a request is made.

use std::fs;
use std::time::Duration;

use dfs_proto::Caller;
use dfs_proto::limits::GROUPS_MAX;
use dfs_proto::msg::meta::LockSpace;

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

/// Which call asks for a lock. FUSE does not pass it on, and it decides which locks see each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockCall {
    /// flock(2): the owner is an open file.
    File,
    /// `F_SETLK` and `F_SETLKW`: the owner is a process.
    Process,
    /// `F_OFD_SETLK` and `F_OFD_SETLKW`: the owner is an open file.
    Description,
    /// The caller cannot be seen, or has a system call table of its own.
    Unknown,
}

impl LockCall {
    /// A call that is not known is taken for `fcntl`: a lock of the whole file excludes the same either way.
    pub fn space(self) -> LockSpace {
        match self {
            LockCall::File => LockSpace::Whole,
            LockCall::Process | LockCall::Description | LockCall::Unknown => LockSpace::Range,
        }
    }
}

/// flock(2) of 32-bit programs, the same number on x86 and ARM; no 64-bit call of that number locks.
const SYS_FLOCK_32: i64 = 143;

/// How often a caller is looked at that has not come to rest yet, a millisecond apart: it is about to wait for us.
const LOOKS: u32 = 50;

impl Requester {
    /// The call that the thread is in. It waits in it for our answer, so it can be seen there.
    pub async fn lock_call(self) -> LockCall {
        if self.thread == 0 {
            return LockCall::Unknown;
        }
        for _ in 0..LOOKS {
            match fs::read_to_string(format!("/proc/{}/syscall", self.thread)) {
                Ok(call) if call.starts_with("running") => tokio::time::sleep(Duration::from_millis(1)).await,
                Ok(call) => return parse_lock_call(&call),
                Err(error) => {
                    tracing::debug!(thread = self.thread, %error, "system call not read");
                    return LockCall::Unknown;
                }
            }
        }
        LockCall::Unknown
    }

    /// Whether a signal waits that the thread would act on if it were not waiting for us; SIGKILL is one.
    /// `None` if the thread cannot be seen.
    pub fn is_interrupted(self) -> Option<bool> {
        if self.thread == 0 {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.thread)).ok()?;
        Some(parse_interrupted(&status))
    }
}

fn parse_lock_call(call: &str) -> LockCall {
    let mut words = call.split_ascii_whitespace();
    let number = words.next().and_then(|word| word.parse::<i64>().ok());
    let command = words.nth(1).and_then(|word| i32::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    match (number, command) {
        (Some(libc::SYS_flock | SYS_FLOCK_32), _) => LockCall::File,
        (Some(libc::SYS_fcntl), Some(libc::F_SETLK | libc::F_SETLKW)) => LockCall::Process,
        (Some(libc::SYS_fcntl), Some(libc::F_OFD_SETLK | libc::F_OFD_SETLKW)) => LockCall::Description,
        _ => LockCall::Unknown,
    }
}

/// A signal of the whole process may be taken by another thread; it counts only if there is no other.
fn parse_interrupted(status: &str) -> bool {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mask = |name: &str| field(name).and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    let shared = if field("Threads:") == Some("1") { mask("ShdPnd:") } else { 0 };
    (mask("SigPnd:") | shared) & !mask("SigBlk:") != 0
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
    fn calls_that_lock_are_told_apart_by_their_numbers() {
        let call = |number: i64, command: i32| parse_lock_call(&format!("{number} 0x3 {command:#x} 0x0 0x1 0x2\n"));
        assert_eq!(call(libc::SYS_flock, 2), LockCall::File);
        assert_eq!(call(libc::SYS_fcntl, libc::F_SETLKW), LockCall::Process);
        assert_eq!(call(libc::SYS_fcntl, libc::F_OFD_SETLK), LockCall::Description);
        assert_eq!(call(libc::SYS_fcntl, libc::F_DUPFD), LockCall::Unknown);
        assert_eq!(parse_lock_call("-1 0x7ffe 0x7f\n"), LockCall::Unknown);
        assert_eq!(parse_lock_call(""), LockCall::Unknown);
    }

    #[test]
    fn only_signals_that_would_be_acted_on_interrupt() {
        let status = |threads: u32, own: u64, shared: u64, blocked: u64| {
            parse_interrupted(&format!(
                "Name:\tx\nThreads:\t{threads}\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n"
            ))
        };
        assert!(!status(1, 0, 0, 0));
        assert!(status(7, 1 << 8, 0, 0), "SIGKILL comes to each thread by itself");
        assert!(status(1, 0, 1 << 13, 0));
        assert!(!status(2, 0, 1 << 13, 0));
        assert!(!status(1, 1 << 13, 1 << 13, 1 << 13));
        assert_eq!(Requester { uid: 0, gid: 0, thread: 0 }.is_interrupted(), None);
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

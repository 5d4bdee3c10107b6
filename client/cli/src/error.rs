//! What a command ends with when it does not end well: the text for people, the object for `--json`,
//! and the exit code. The kind of an error alone picks the code; nobody matches on a message.

use std::fmt;
use std::io;
use std::path::Path;

use dfs_proto::ErrorKind;
use serde_json::json;

/// How a command ended, as scripts see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exit {
    Done,
    /// Also: `test` says no, `fsck` found damage, `status --check` is not OK.
    Failed,
    /// Wrong flags, wrong or missing configuration.
    Usage,
    NotFound,
    Permission,
    /// Safe to try again later.
    Temporary,
    /// Bytes are damaged and no good replica is left.
    Corrupt,
    Interrupted,
}

impl Exit {
    /// The process exit code.
    pub fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotFound => 3,
            Exit::Permission => 4,
            Exit::Temporary => 5,
            Exit::Corrupt => 6,
            Exit::Interrupted => 130,
        }
    }

    /// The exit for an error of the cluster. No wildcard arm: a new kind has to be thought about here.
    pub fn of(kind: ErrorKind) -> Exit {
        match kind {
            ErrorKind::NotFound => Exit::NotFound,
            ErrorKind::AccessDenied | ErrorKind::NotPermitted | ErrorKind::Forbidden => Exit::Permission,
            // Another try opens a new session or fetches what is out of date.
            ErrorKind::NotLeader
            | ErrorKind::Unavailable
            | ErrorKind::Timeout
            | ErrorKind::SessionExpired
            | ErrorKind::StaleEpoch
            | ErrorKind::CapabilityExpired
            | ErrorKind::BadReplica
            | ErrorKind::Private
            | ErrorKind::WouldBlock => Exit::Temporary,
            ErrorKind::Corrupt => Exit::Corrupt,
            ErrorKind::Exists
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
            | ErrorKind::NotEmpty
            | ErrorKind::InvalidArgument
            | ErrorKind::NameTooLong
            | ErrorKind::TooManyLinks
            | ErrorKind::TooManySymlinks
            | ErrorKind::FileTooLarge
            | ErrorKind::Stale
            | ErrorKind::NotSupported
            | ErrorKind::NoSpace
            | ErrorKind::Malformed
            | ErrorKind::Internal
            | ErrorKind::NoAttribute
            | ErrorKind::TooBig
            | ErrorKind::Deadlock
            | ErrorKind::NoLocks
            | ErrorKind::TooManyOpen => Exit::Failed,
        }
    }
}

/// The name of a kind in JSON.
fn kind_name(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::Exists => "exists",
        ErrorKind::NotADirectory => "not_a_directory",
        ErrorKind::IsADirectory => "is_a_directory",
        ErrorKind::NotEmpty => "not_empty",
        ErrorKind::AccessDenied => "access_denied",
        ErrorKind::NotPermitted => "not_permitted",
        ErrorKind::InvalidArgument => "invalid_argument",
        ErrorKind::NameTooLong => "name_too_long",
        ErrorKind::TooManyLinks => "too_many_links",
        ErrorKind::TooManySymlinks => "too_many_symlinks",
        ErrorKind::FileTooLarge => "file_too_large",
        ErrorKind::Stale => "stale",
        ErrorKind::NotSupported => "not_supported",
        ErrorKind::NoSpace => "no_space",
        ErrorKind::NotLeader => "not_leader",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Timeout => "timeout",
        ErrorKind::SessionExpired => "session_expired",
        ErrorKind::StaleEpoch => "stale_epoch",
        ErrorKind::CapabilityExpired => "capability_expired",
        ErrorKind::Forbidden => "forbidden",
        ErrorKind::BadReplica => "bad_replica",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Malformed => "malformed",
        ErrorKind::Internal => "internal",
        ErrorKind::Private => "private",
        ErrorKind::WouldBlock => "would_block",
        ErrorKind::Deadlock => "deadlock",
        ErrorKind::NoLocks => "no_locks",
        ErrorKind::TooManyOpen => "too_many_open",
        ErrorKind::NoAttribute => "no_attribute",
        ErrorKind::TooBig => "too_big",
    }
}

/// Why a verb failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    pub exit: Exit,
    /// Snake case, for `--json`.
    kind: &'static str,
    message: String,
    causes: Vec<String>,
    hint: Option<String>,
    /// The cluster's own kind, where the error came from there.
    wire: Option<ErrorKind>,
    /// Already told, or nothing to tell: only the exit code is left to give.
    silent: bool,
}

pub type Result<T = ()> = std::result::Result<T, Failure>;

impl Failure {
    fn new(exit: Exit, kind: &'static str, message: impl Into<String>) -> Failure {
        Failure { exit, kind, message: message.into(), causes: Vec::new(), hint: None, wire: None, silent: false }
    }

    /// Something went wrong that no other constructor names.
    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, "failed", message)
    }

    /// The command line or the configuration is wrong.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, "usage", message)
    }

    /// May go better later.
    pub fn temporary(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Temporary, "unavailable", message)
    }

    /// An error with one of the cluster's kinds.
    pub fn of(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure { hint: hint_for(kind), wire: Some(kind), ..Failure::new(Exit::of(kind), kind_name(kind), message) }
    }

    /// A local file or socket failed; `what` names it.
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Failure {
        let (exit, kind) = match error.kind() {
            io::ErrorKind::NotFound => (Exit::NotFound, "not_found"),
            io::ErrorKind::PermissionDenied => (Exit::Permission, "access_denied"),
            io::ErrorKind::AlreadyExists => (Exit::Failed, "exists"),
            _ => (Exit::Failed, "io"),
        };
        Failure::new(exit, kind, format!("{what}: {}", reason(error)))
    }

    /// As `io`, for a path of this machine.
    pub fn local(path: &Path, error: &io::Error) -> Failure {
        Failure::io(path.display(), error)
    }

    /// Writing to stdout failed. A reader that has seen enough (`| head`) is no failure at all.
    pub fn stdout(error: &io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::silent(Exit::Done),
            _ => Failure::io("standard output", error),
        }
    }

    /// Ends the command with this code and says nothing (more).
    pub fn silent(exit: Exit) -> Failure {
        Failure { silent: true, ..Failure::new(exit, "silent", "") }
    }

    pub fn interrupted() -> Failure {
        Failure { silent: true, ..Failure::new(Exit::Interrupted, "interrupted", "interrupted") }
    }

    /// Puts what it was about in front of the message, unless that names it already.
    pub fn at(mut self, what: impl fmt::Display) -> Failure {
        let what = format!("{what}: ");
        if !self.silent && !self.message.starts_with(&what) {
            self.message.insert_str(0, &what);
        }
        self
    }

    pub fn cause(mut self, cause: impl Into<String>) -> Failure {
        self.causes.push(cause.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub fn wire_kind(&self) -> Option<ErrorKind> {
        self.wire
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// `error:`, `cause:` and `hint:` lines, or one JSON object in one line; empty if silent.
    pub fn render(&self, json: bool) -> String {
        if self.silent {
            return String::new();
        }
        if json {
            let object = json!({
                "schema": 1,
                "kind": self.kind,
                "message": self.message,
                "causes": self.causes,
                "hint": self.hint,
                "retry": self.exit == Exit::Temporary,
            });
            return format!("{object}\n");
        }
        let mut text = format!("error: {}\n", self.message);
        for cause in &self.causes {
            text.push_str(&format!("cause: {cause}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }
}

/// What to do about an error of this kind, where that is not plain from the message.
fn hint_for(kind: ErrorKind) -> Option<String> {
    let hint = match kind {
        ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NotLeader => {
            "`dfs status` shows which nodes answer; the same command may be given again"
        }
        ErrorKind::Corrupt => "`dfs fsck --files` names the files that are hurt",
        ErrorKind::Forbidden => "use the cluster file whose certificate has the role that is needed (--cluster FILE)",
        ErrorKind::NoSpace => "`dfs df -h` shows the room that is left",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// The system's words for an error, without "(os error N)".
fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => text.to_owned(),
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.fmt(f)
    }
}

impl std::error::Error for Failure {}

/// Several operands: each failure is told when it happens, the rest is still done, and the command ends
/// with the code they have in common, or 1.
#[derive(Default)]
pub struct Tally {
    exit: Option<Exit>,
}

impl Tally {
    pub fn add(&mut self, exit: Exit) {
        self.exit = match self.exit {
            None => Some(exit),
            Some(seen) if seen == exit => Some(seen),
            Some(_) => Some(Exit::Failed),
        };
    }

    pub fn end(self) -> Result {
        match self.exit {
            None => Ok(()),
            Some(exit) => Err(Failure::silent(exit)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_table() {
        let table = [
            (Exit::Done, 0),
            (Exit::Failed, 1),
            (Exit::Usage, 2),
            (Exit::NotFound, 3),
            (Exit::Permission, 4),
            (Exit::Temporary, 5),
            (Exit::Corrupt, 6),
            (Exit::Interrupted, 130),
        ];
        for (exit, code) in table {
            assert_eq!(exit.code(), code);
        }
    }

    #[test]
    fn kinds_that_may_be_retried_say_so_by_their_exit_code() {
        for kind in [ErrorKind::NotLeader, ErrorKind::Unavailable, ErrorKind::Timeout] {
            assert!(kind.retryable());
            assert_eq!(Exit::of(kind), Exit::Temporary, "{kind:?}");
        }
        assert_eq!(Exit::of(ErrorKind::NotFound), Exit::NotFound);
        assert_eq!(Exit::of(ErrorKind::NotPermitted), Exit::Permission);
        assert_eq!(Exit::of(ErrorKind::Corrupt), Exit::Corrupt);
        assert_eq!(Exit::of(ErrorKind::Exists), Exit::Failed);
    }

    #[test]
    fn an_error_is_what_then_causes_then_a_hint() {
        let failure = Failure::of(ErrorKind::Timeout, "no answer in 30 s").at("/a").cause("nn1: refused");
        assert_eq!(
            failure.render(false),
            "error: /a: no answer in 30 s\ncause: nn1: refused\n\
             hint: `dfs status` shows which nodes answer; the same command may be given again\n"
        );
        let object: serde_json::Value = serde_json::from_str(&failure.render(true)).unwrap();
        assert_eq!(object["kind"], "timeout");
        assert_eq!(object["retry"], true);
        assert_eq!(object["schema"], 1);
    }

    #[test]
    fn what_it_was_about_is_named_once() {
        assert_eq!(Failure::failed("broken").at("/a").at("/a").message(), "/a: broken");
        assert_eq!(Failure::failed("broken").at("/a").at("/b").message(), "/b: /a: broken");
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        let failure = Failure::stdout(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit, Exit::Done);
        assert_eq!(failure.render(false), "");
    }

    #[test]
    fn io_errors_carry_no_number() {
        let failure = Failure::io("x", &io::Error::from_raw_os_error(2));
        assert_eq!(failure.message(), "x: no such file or directory");
        assert_eq!(failure.exit, Exit::NotFound);
    }

    #[test]
    fn operands_that_fail_differently_end_in_plain_failure() {
        let mut same = Tally::default();
        same.add(Exit::NotFound);
        same.add(Exit::NotFound);
        assert_eq!(same.end().unwrap_err().exit, Exit::NotFound);
        let mut mixed = Tally::default();
        mixed.add(Exit::NotFound);
        mixed.add(Exit::Permission);
        assert_eq!(mixed.end().unwrap_err().exit, Exit::Failed);
        assert!(Tally::default().end().is_ok());
    }
}

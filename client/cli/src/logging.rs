//! The log: warnings of a command, everything of note of a role, on stderr.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::args::{Color, Global};
use crate::error::{Failure, Result};

/// Installs the subscriber. A role's log goes to a file that others read, so its lines carry the time;
/// a command's go to somebody who sees them at once.
pub fn start(global: &Global, role: bool) -> Result {
    let default = if role { "info" } else { "warn" };
    let text = global.log.as_deref().unwrap_or(default);
    let filter = EnvFilter::try_new(text).map_err(|error| {
        Failure::usage(format!("--log `{text}`: {error}")).hint("for example --log dfs_client=debug,warn")
    })?;
    let colour = match global.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
    };
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colour);
    if role {
        lines.init()
    } else {
        lines.without_time().init()
    }
    Ok(())
}

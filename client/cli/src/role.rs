//! What namenode, datanode and mount have in common: how they are told to stop, how their failures are told.

use std::path::Path;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::{Exit, Failure, Result};

/// Cancelled by the first SIGTERM or SIGINT; the second ends the process at once.
pub fn stop_signal() -> Result<CancellationToken> {
    let failed = |error| Failure::io("cannot listen for signals", &error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let stop = CancellationToken::new();
    let first = stop.clone();
    tokio::spawn(async move {
        for last in [false, true] {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if last {
                tracing::warn!(signal = name, "stopping at once");
                std::process::exit(Exit::Interrupted.code().into());
            }
            tracing::info!(signal = name, "stopping");
            first.cancel();
        }
    });
    Ok(stop)
}

/// A role could not start or had to end; each layer of the error is a cause.
pub fn failed(what: &str, error: &anyhow::Error) -> Failure {
    error.chain().fold(Failure::failed(what), |failure, cause| failure.cause(cause.to_string()))
}

/// A configuration file that cannot be used.
pub fn bad_config(path: &Path, error: &anyhow::Error) -> Failure {
    let failure = Failure::usage(format!("cannot use the configuration {}", path.display()));
    error.chain().fold(failure, |failure, cause| failure.cause(cause.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn every_layer_of_an_error_is_told() {
        let error = Err::<(), _>(std::io::Error::other("disk on fire")).context("opening the store").unwrap_err();
        let text = failed("the namenode ended", &error).render(false);
        assert_eq!(text, "error: the namenode ended\ncause: opening the store\ncause: disk on fire\n");
    }
}

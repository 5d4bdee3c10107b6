//! `dfs`: the one binary. Roles, file verbs, administration and the local cluster, one file per verb.

mod args;
mod context;
mod error;
mod local;
mod logging;
mod output;
mod path;
mod remote;
mod role;
mod transfer;
mod units;
mod users;
mod verbs;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::args::{Cli, Global};
use crate::context::Context;
use crate::error::{Exit, Failure, Result};
use crate::verbs::Verb;
use crate::verbs::mount::helper;

fn main() -> ExitCode {
    let mut typed: Vec<_> = std::env::args_os().collect();
    let for_mount = helper::is_called(typed.first());
    if for_mount {
        match helper::command_line(typed.into_iter().skip(1)) {
            Ok(Some(line)) => typed = line,
            Ok(None) => return ExitCode::SUCCESS,
            Err(failure) => {
                output::tell(&failure.render(false));
                return ExitCode::from(helper::exit_code(failure.exit));
            }
        }
    }
    let json = typed.iter().any(|arg| arg == "--json");
    let cli = match Cli::try_parse_from(args::with_long_names(typed)) {
        Ok(cli) => cli,
        Err(error) => return refused(&error, json),
    };
    let context = Context::new(cli.global);
    let ended = prepare(&context.global, &cli.verb).and_then(|runtime| {
        // A role's store must be closed before the process ends. Other verbs may hang in a read of a terminal
        // or a pipe, which cannot be cancelled and is not worth waiting for.
        let patience = Duration::from_millis(if cli.verb.is_role() { 10_000 } else { 100 });
        let ended = runtime.block_on(run(&context, cli.verb));
        runtime.shutdown_timeout(patience);
        ended
    });
    let ended = ended.and_then(|()| context.out.flush());
    match ended {
        Ok(()) => ExitCode::from(Exit::Done.code()),
        Err(failure) => {
            // What was answered before the failure belongs before its message.
            let _ = context.out.flush();
            context.out.failure(&failure);
            ExitCode::from(if for_mount { helper::exit_code(failure.exit) } else { failure.exit.code() })
        }
    }
}

fn prepare(global: &Global, verb: &Verb) -> Result<tokio::runtime::Runtime> {
    // Only fails if a provider is installed already, and this is the only place that installs one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    logging::start(global, verb.is_role())?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start the runtime", &error))
}

/// Runs a verb until it ends or Ctrl-C is pressed. Roles stop by their own rules.
async fn run(context: &Context, verb: Verb) -> Result {
    if verb.is_role() {
        return verb.run(context).await;
    }
    let grace = verb.interrupt_grace();
    let interrupt = context.interrupt.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            interrupt.cancel();
        }
    });
    tokio::select! {
        ended = verb.run(context) => ended,
        () = async { context.interrupt.cancelled().await; tokio::time::sleep(grace).await } => Err(Failure::interrupted()),
    }
}

/// Help and versions are answers and go to stdout; everything else that clap says is a usage error.
fn refused(error: &clap::Error, json: bool) -> ExitCode {
    if !error.use_stderr() {
        let _ = error.print();
        return ExitCode::from(Exit::Done.code());
    }
    if json {
        let text = error.to_string();
        let message = text.trim_start_matches("error: ").lines().next().unwrap_or_default().to_owned();
        output::tell(&Failure::usage(message).hint("dfs --help").render(true));
    } else {
        let _ = error.print();
    }
    ExitCode::from(Exit::Usage.code())
}

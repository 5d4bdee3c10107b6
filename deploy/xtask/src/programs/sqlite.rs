//! A database whose program is killed in the middle of its work.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Place;
use super::run::{kill_group, run};

/// Times that it is killed.
const ROUNDS: u64 = 3;

/// Rows acknowledged in each round before it is.
const ROWS: u64 = 25;

/// For one row, and for a check: far more than either takes.
const DEADLINE: Duration = Duration::from_secs(60);

pub fn rollback_journal(place: &Place) -> Result<String> {
    killed_in_mid_write(place, "DELETE")
}

/// Shared memory beside the database: works on one mount.
pub fn write_ahead_log(place: &Place) -> Result<String> {
    killed_in_mid_write(place, "WAL")
}

/// After each SIGKILL the database is sound and holds every row that was acknowledged.
fn killed_in_mid_write(place: &Place, mode: &str) -> Result<String> {
    let database = place.dir.join("test.db");
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        acknowledged = insert_until_killed(&database, mode, acknowledged + 1)
            .with_context(|| format!("round {round} of journal mode {mode}"))?;
        let mut check = Command::new("sqlite3");
        check.arg(&database).arg("PRAGMA journal_mode; PRAGMA integrity_check; SELECT max(n), count(*) FROM t;");
        let said = run(&format!("sqlite-{mode}-{round}"), &place.logs, &mut check, DEADLINE)?;
        let lines: Vec<&str> = said.lines().collect();
        ensure!(lines.len() == 3 && lines[0].eq_ignore_ascii_case(mode) && lines[1] == "ok", "sqlite3 says:\n{said}");
        let numbers = lines[2].split_once('|').context("two numbers")?;
        let (last, rows): (u64, u64) = (numbers.0.parse()?, numbers.1.parse()?);
        ensure!(last == rows, "{rows} rows up to number {last}: one in between is missing");
        ensure!(last >= acknowledged, "{acknowledged} rows were acknowledged and {last} are there");
        // The one under way may have made it.
        acknowledged = last;
    }
    Ok(format!("{acknowledged} rows, {ROUNDS} kills"))
}

/// Inserts rows from number `first` on; kills the program with one under way. The last number it acknowledged.
fn insert_until_killed(database: &Path, mode: &str, first: u64) -> Result<u64> {
    let mut command = Command::new("stdbuf");
    // It would acknowledge in blocks of 4 KiB otherwise.
    command.args(["--output=L", "sqlite3", "-bail"]).arg(database).process_group(0);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("stdbuf and sqlite3")?;
    let mut statements = child.stdin.take().context("its input")?;
    let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
    let (heard, answers) = mpsc::sync_channel(64);
    let listener = std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            if heard.send(line).is_err() {
                return;
            }
        }
    });
    let worked = insert(&mut statements, &answers, mode, first);
    // With a row under way that nobody waits for.
    let under_way = worked.as_ref().map(|last| writeln!(statements, "{}", row(last + 1)));
    let killed = kill_group(&mut child);
    // A broken pipe at the very end tells no more than the answers do.
    drop(under_way);
    drop(answers);
    let _ = listener.join();
    killed?;
    worked
}

fn insert(statements: &mut ChildStdin, answers: &mpsc::Receiver<String>, mode: &str, first: u64) -> Result<u64> {
    writeln!(statements, "PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL;")?;
    writeln!(statements, "CREATE TABLE IF NOT EXISTS t(n INTEGER PRIMARY KEY, v BLOB);")?;
    let last = first + ROWS - 1;
    for number in first..=last {
        writeln!(statements, "{}", row(number))?;
        wait_for(answers, &format!("stored {number}"))?;
    }
    Ok(last)
}

fn row(number: u64) -> String {
    format!("INSERT INTO t VALUES({number}, randomblob(6000)); SELECT 'stored {number}';")
}

fn wait_for(answers: &mpsc::Receiver<String>, wanted: &str) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let line = answers.recv_timeout(left).with_context(|| format!("sqlite3 did not say `{wanted}`"))?;
        if line == wanted {
            return Ok(());
        }
    }
}

//! The way out: data on stdout, everything else on stderr, JSON where asked, colour only where it is seen.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use parking_lot::Mutex;
use serde_json::Value;

use crate::args::{Color, Global};
use crate::error::{Failure, Result, Tally};

/// Where a listing of thousands of lines is gathered before it is written to a pipe.
const BUFFER_BYTES: usize = 64 << 10;

pub struct Output {
    pub json: bool,
    pub quiet: bool,
    pub verbose: bool,
    pub stdout_is_terminal: bool,
    pub stderr_is_terminal: bool,
    colour: bool,
    stdout: Mutex<BufWriter<Stdout>>,
}

#[derive(Clone, Copy)]
pub enum Tone {
    Good,
    Warn,
    Bad,
}

impl Output {
    pub fn new(global: &Global) -> Output {
        let stdout_is_terminal = io::stdout().is_terminal();
        Output {
            json: global.json,
            quiet: global.quiet,
            verbose: global.verbose,
            stdout_is_terminal,
            stderr_is_terminal: io::stderr().is_terminal(),
            colour: colour(global.color, stdout_is_terminal, |name| std::env::var(name).ok()),
            stdout: Mutex::new(BufWriter::with_capacity(BUFFER_BYTES, io::stdout())),
        }
    }

    /// Bytes of the answer, as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result {
        let mut stdout = self.stdout.lock();
        stdout.write_all(bytes).map_err(|error| Failure::stdout(&error))
    }

    /// A line of the answer. Somebody who watches sees it at once.
    pub fn line(&self, line: impl AsRef<[u8]>) -> Result {
        let mut stdout = self.stdout.lock();
        let written = stdout.write_all(line.as_ref()).and_then(|()| stdout.write_all(b"\n"));
        let written = written.and_then(|()| if self.stdout_is_terminal { stdout.flush() } else { Ok(()) });
        written.map_err(|error| Failure::stdout(&error))
    }

    /// One JSON object in one line; the schema number goes to its top.
    pub fn object(&self, mut object: Value) -> Result {
        if let Value::Object(map) = &mut object {
            map.insert("schema".into(), 1.into());
        }
        self.line(object.to_string())
    }

    /// As `object`, written out at once: for streams that somebody follows.
    pub fn event(&self, object: Value) -> Result {
        self.object(object)?;
        self.flush()
    }

    pub fn flush(&self) -> Result {
        self.stdout.lock().flush().map_err(|error| Failure::stdout(&error))
    }

    /// A remark beside the answer, for people.
    pub fn note(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            tell(&format!("{}\n", text.as_ref()));
        }
    }

    /// A remark that only `-v` shows.
    pub fn detail(&self, text: impl AsRef<str>) {
        if self.verbose {
            tell(&format!("{}\n", text.as_ref()));
        }
    }

    pub fn warning(&self, text: impl AsRef<str>) {
        if self.quiet {
            return;
        }
        if self.json {
            tell(&format!("{}\n", serde_json::json!({"schema": 1, "kind": "warning", "message": text.as_ref()})));
        } else {
            tell(&format!("warning: {}\n", text.as_ref()));
        }
    }

    pub fn failure(&self, failure: &Failure) {
        tell(&failure.render(self.json));
    }

    /// Tells about a failed operand and goes on; a closed pipe or Ctrl-C ends the command all the same.
    pub fn keep_going(&self, tally: &mut Tally, done: Result) -> Result {
        match done {
            Ok(()) => Ok(()),
            Err(failure)
                if failure.exit == crate::error::Exit::Done || failure.exit == crate::error::Exit::Interrupted =>
            {
                Err(failure)
            }
            Err(failure) => {
                self.flush()?;
                self.failure(&failure);
                tally.add(failure.exit);
                Ok(())
            }
        }
    }

    /// A name as it is for programs, with control characters escaped for a terminal.
    pub fn name<'a>(&self, name: &'a [u8]) -> std::borrow::Cow<'a, [u8]> {
        if !self.stdout_is_terminal || !name.iter().any(|b| b.is_ascii_control() || *b >= 0x80) {
            return name.into();
        }
        let shown: String = String::from_utf8_lossy(name)
            .chars()
            .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
            .collect();
        shown.into_bytes().into()
    }

    pub fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => "32",
            Tone::Warn => "33",
            Tone::Bad => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Text beside the answer, on stderr. Where nobody listens any more (`2>&1 | head`) it is nobody's loss.
pub fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Adds `key` as text and, where the bytes are not UTF-8, `key_hex` with the exact ones.
pub fn put_bytes(object: &mut Value, key: &str, bytes: &[u8]) {
    object[key] = String::from_utf8_lossy(bytes).into();
    if std::str::from_utf8(bytes).is_err() {
        object[format!("{key}_hex")] = bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into();
    }
}

/// `--color` before `NO_COLOR` before `CLICOLOR_FORCE` before what the terminal is.
fn colour(flag: Color, terminal: bool, env: impl Fn(&str) -> Option<String>) -> bool {
    match flag {
        Color::Always => true,
        Color::Never => false,
        Color::Auto if env("NO_COLOR").is_some_and(|value| !value.is_empty()) => false,
        Color::Auto if env("CLICOLOR_FORCE").is_some_and(|value| value != "0") => true,
        Color::Auto => terminal && env("TERM").is_some_and(|term| term != "dumb"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_beats_no_color_beats_force_beats_the_terminal() {
        let env = |pairs: &'static [(&str, &str)]| {
            move |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string())
        };
        assert!(colour(Color::Always, false, env(&[("NO_COLOR", "1")])));
        assert!(!colour(Color::Auto, true, env(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")])));
        assert!(colour(Color::Auto, false, env(&[("CLICOLOR_FORCE", "1")])));
        assert!(colour(Color::Auto, true, env(&[("TERM", "xterm")])));
        assert!(!colour(Color::Auto, true, env(&[("TERM", "dumb")])));
        assert!(!colour(Color::Auto, false, env(&[("TERM", "xterm")])));
    }

    #[test]
    fn names_that_are_not_text_reach_json_exactly() {
        let mut object = serde_json::json!({});
        put_bytes(&mut object, "path", b"/a\xff");
        assert_eq!(object["path_hex"], "2f61ff");
        put_bytes(&mut object, "name", b"plain");
        assert!(object.get("name_hex").is_none());
    }
}

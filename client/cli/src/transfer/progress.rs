//! How far a copy is: a bar where somebody looks, a line every ten seconds where nobody does, one
//! closing line in any case.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::AbortHandle;

use crate::error::{Exit, Failure, Result, Tally};
use crate::output::{Output, tell};
use crate::units;

const LINE_INTERVAL: Duration = Duration::from_secs(10);

pub struct Progress {
    verb: &'static str,
    start: Instant,
    json: bool,
    quiet: bool,
    bar: ProgressBar,
    ticker: Mutex<Option<AbortHandle>>,
    found_bytes: AtomicU64,
    copied_bytes: AtomicU64,
    files: AtomicU64,
    directories: AtomicU64,
    links: AtomicU64,
    failures: AtomicU64,
    tally: Mutex<Tally>,
}

impl Progress {
    pub fn start(out: &Output, verb: &'static str) -> Arc<Progress> {
        let shown = out.stderr_is_terminal && !out.quiet && !out.json;
        let bar = ProgressBar::with_draw_target(
            Some(0),
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() },
        );
        let template = "{bar:24} {percent:>3} %  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {msg}  about {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("##-"));
        }
        let progress = Arc::new(Progress {
            verb,
            start: Instant::now(),
            json: out.json,
            quiet: out.quiet,
            bar,
            ticker: Mutex::new(None),
            found_bytes: AtomicU64::new(0),
            copied_bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
            directories: AtomicU64::new(0),
            links: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            tally: Mutex::new(Tally::default()),
        });
        let ticker = Arc::downgrade(&progress);
        let interval = if shown { Duration::from_millis(200) } else { LINE_INTERVAL };
        let handle = tokio::spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let Some(progress) = ticker.upgrade() else { return };
                if shown {
                    progress.bar.set_message(format!("{} files", units::count(progress.files.load(Ordering::Relaxed))));
                    progress.bar.tick();
                } else if !progress.quiet && !progress.json {
                    tell(&format!("{}\n", progress.line()));
                }
            }
        });
        *progress.ticker.lock() = Some(handle.abort_handle());
        progress
    }

    /// The walker has found so much more to copy.
    pub fn found(&self, bytes: u64) {
        let found = self.found_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set_length(found);
    }

    pub fn bytes(&self, bytes: u64) {
        self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bar.inc(bytes);
    }

    pub fn file(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    pub fn directory(&self) {
        self.directories.fetch_add(1, Ordering::Relaxed);
    }

    pub fn link(&self) {
        self.links.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells about a failure above the bar; the end will count it.
    pub fn failed(&self, failure: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.tally.lock().add(failure.exit);
        self.bar.suspend(|| tell(&failure.render(self.json)));
    }

    pub fn warn(&self, text: &str) {
        if !self.json {
            self.bar.suspend(|| tell(&format!("warning: {text}\n")));
        }
    }

    /// The closing line, and the exit that the failures add up to.
    pub fn end(&self, out: &Output) -> Result {
        self.stop();
        if out.json {
            let elapsed = self.start.elapsed();
            out.object(json!({
                "verb": self.verb,
                "files": self.files.load(Ordering::Relaxed),
                "directories": self.directories.load(Ordering::Relaxed),
                "symlinks": self.links.load(Ordering::Relaxed),
                "copied_bytes": self.copied_bytes.load(Ordering::Relaxed),
                "elapsed_ms": elapsed.as_millis() as u64,
                "rate_bytes_per_s": self.rate(),
                "failures": self.failures.load(Ordering::Relaxed),
            }))?;
        } else if !self.quiet {
            tell(&format!("{}\n", self.line()));
        }
        std::mem::take(&mut *self.tally.lock()).end()
    }

    /// Ends without a closing line.
    pub fn abort(&self) {
        self.tally.lock().add(Exit::Interrupted);
        self.stop();
    }

    fn stop(&self) {
        if let Some(ticker) = self.ticker.lock().take() {
            ticker.abort();
        }
        self.bar.finish_and_clear();
    }

    fn rate(&self) -> u64 {
        let secs = self.start.elapsed().as_secs_f64();
        if secs > 0.0 { (self.copied_bytes.load(Ordering::Relaxed) as f64 / secs) as u64 } else { 0 }
    }

    fn line(&self) -> String {
        let mut line = format!(
            "{}: {} in {} files, {}, {}/s",
            self.verb,
            units::human(self.copied_bytes.load(Ordering::Relaxed)),
            units::count(self.files.load(Ordering::Relaxed)),
            units::duration(self.start.elapsed()),
            units::human(self.rate()),
        );
        match self.failures.load(Ordering::Relaxed) {
            0 => {}
            failures => line.push_str(&format!(", {failures} failed")),
        }
        line
    }
}

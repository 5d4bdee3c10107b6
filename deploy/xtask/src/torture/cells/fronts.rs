//! Files of which only the front stays: each leaves a chunk behind that is mostly dead, so that what lives in it is copied
//! elsewhere. The fronts were synced, and must be right whatever died meanwhile.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use dfs_cluster::{Dice, Invariant, Verdict};

const BYTES: usize = 6 << 20;
const KEPT: usize = 200_000;

fn content(number: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice::apart(number, "front");
    let mut bytes: Vec<u8> =
        std::iter::repeat_with(|| dice.throw().to_le_bytes()).take(len / 8 + 1).flatten().collect();
    bytes.truncate(len);
    bytes
}

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("front{number}"))
}

/// Writes a file, syncs it, and cuts it to its front.
pub fn leave(folder: &Path, number: u64) -> Result<()> {
    let path = path(folder, number);
    let write = || {
        fs::create_dir_all(folder)?;
        let mut file = File::create(&path)?;
        file.write_all(&content(number, BYTES))?;
        file.sync_all()?;
        file.set_len(KEPT as u64)?;
        file.sync_all()
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Compares the fronts of these numbers. `folder` is best one of another mount: its kernel has no pages of them.
pub fn check(folder: &Path, numbers: &[u64], verdict: &mut Verdict) {
    for number in numbers {
        let path = path(folder, *number);
        match fs::read(&path) {
            Ok(bytes) if bytes == content(*number, KEPT) => verdict.fine(Invariant::AcknowledgedSurvives, 1),
            Ok(bytes) => {
                let why = format!("{}: other bytes than were synced, {} of {KEPT}", path.display(), bytes.len());
                verdict.broken(Invariant::AcknowledgedSurvives, why);
            }
            Err(error) => verdict.broken(Invariant::AcknowledgedSurvives, format!("{}: {error}", path.display())),
        }
    }
}

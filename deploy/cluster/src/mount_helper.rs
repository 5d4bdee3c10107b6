//! `mount -t dfs`: the links in `/sbin` by which mount(8) finds the program, for as long as a test needs them.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// mount(8) looks for the first when it is asked for the type `dfs`, and for the second when it remounts, because that
/// is the type in the mount table.
const LINKS: [&str; 2] = ["/sbin/mount.dfs", "/sbin/mount.fuse.dfs"];

/// Links that were made here and are removed with this. Those that somebody has installed are left alone.
pub struct MountHelper(Vec<PathBuf>);

impl MountHelper {
    /// Makes the links that are not there, or that lead nowhere. Needs root.
    pub fn install(program: &Path) -> Result<MountHelper> {
        let program = program.canonicalize().with_context(|| program.display().to_string())?;
        let mut made = MountHelper(Vec::new());
        for link in LINKS.map(Path::new) {
            if link.exists() {
                continue;
            }
            match fs::remove_file(link) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context("a dead link"),
                _ => {}
            }
            symlink(&program, link).with_context(|| link.display().to_string())?;
            made.0.push(link.to_owned());
        }
        Ok(made)
    }
}

impl Drop for MountHelper {
    fn drop(&mut self) {
        for link in &self.0 {
            if let Err(error) = fs::remove_file(link) {
                eprintln!("{}: {error}", link.display());
            }
        }
    }
}

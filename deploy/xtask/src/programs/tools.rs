//! Test suites that come from the crate registry: built once and kept beside what cargo builds.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::run::{cargo, must};

pub struct Tool {
    name: &'static str,
    version: &'static str,
}

/// POSIX behaviour of file systems, in Rust.
pub const PJDFSTEST: Tool = Tool { name: "pjdfstest", version: "0.2.2" };

/// Random operations on one file, compared with what it should hold.
pub const FSX: Tool = Tool { name: "fsx", version: "0.3.2" };

impl Tool {
    /// Where it is; it is built first if it is not there (about a minute).
    pub fn program(&self) -> Result<PathBuf> {
        // A folder for each version, so that another one is never taken for it.
        let root = tools()?.join(format!("{}-{}", self.name, self.version));
        let program = root.join("bin").join(self.name);
        // Put there by a rename at the end of the build.
        if !program.exists() {
            eprintln!("building {} {}", self.name, self.version);
            let mut install = cargo(["install", "--quiet", "--locked", "--version", self.version, self.name]);
            install.arg("--root").arg(&root).env("CARGO_TARGET_DIR", root.join("target"));
            must(&mut install)?;
            // What was built on the way is ten times as large as the program.
            std::fs::remove_dir_all(root.join("target")).context("remove what the build left")?;
        }
        Ok(program)
    }
}

/// In cargo's target folder, which outlives the checkout in CI: this program lies in `target/release`.
fn tools() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).map(Path::to_owned).context("the target folder")?;
    Ok(target.join("tools"))
}

//! Running other programs, and where the project's own are.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs a command with our own terminal; an exit code other than 0 is an error.
pub fn must(command: &mut Command) -> Result<()> {
    let line = format!("{command:?}");
    let status = command.status().with_context(|| line.clone())?;
    if !status.success() {
        bail!("{line}: {status}");
    }
    Ok(())
}

/// `cargo` in the workspace's folder.
pub fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(workspace());
    // Cargo tells us about ourselves by these. Some build scripts look at them, and would find them
    // changed, and build again, whenever cargo is run by hand in between.
    for (name, _) in std::env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|own| name.to_string_lossy().starts_with(own)) {
            command.env_remove(name);
        }
    }
    command
}

pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("xtask is two folders below the workspace").to_owned()
}

/// Where the one binary is: `ready` if given, otherwise it is built.
pub fn program(ready: Option<&Path>) -> Result<PathBuf> {
    match ready {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string()),
        None => build_dfs(),
    }
}

fn build_dfs() -> Result<PathBuf> {
    must(&mut cargo(["build", "--release", "--package", "dfs"]))?;
    built_dfs()
}

/// Where a build has left the one binary.
pub fn built_dfs() -> Result<PathBuf> {
    // This program was built by the same cargo into the same folder.
    let program = std::env::current_exe()?.with_file_name("dfs");
    if !program.exists() {
        bail!("{} is not there after the build", program.display());
    }
    Ok(program)
}

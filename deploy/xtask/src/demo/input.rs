//! Real input: the source code of the project's own dependencies, and one large file made of the Rust
//! toolchain's. Both are on any machine that has just built the project.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use dfs_cluster::{Digest, Tree, copy_tree, digest_file};

pub struct Input {
    pub tree_root: PathBuf,
    pub tree: Tree,
    pub large: PathBuf,
    pub large_digest: Digest,
    pub large_bytes: u64,
}

impl Input {
    /// Gathers at least `files` source files and a file of at least `large_mib` MiB below `dir`.
    pub fn collect(dir: &Path, files: usize, large_mib: u64) -> Result<Input> {
        let tree_root = dir.join("sources");
        fs::create_dir_all(&tree_root)?;
        let mut count = 0;
        for package in packages()? {
            if count >= files {
                break;
            }
            let name = package.file_name().context("a package's folder has a name")?;
            count += copy_tree(&package, &tree_root.join(name), |_, _| {})?.0 as usize;
        }
        ensure!(count >= files, "only {count} source files found below cargo's registry");
        let large = dir.join("large.bin");
        let large_bytes = large_file(&large, large_mib << 20)?;
        let (large_digest, _) = digest_file(&large)?;
        Ok(Input { tree: Tree::read(&tree_root)?, tree_root, large, large_digest, large_bytes })
    }

    /// Reads both copies and compares every digest.
    pub fn expect_copies(&self, tree: &Path, large: &Path) -> Result<()> {
        self.tree.expect_same(&Tree::read(tree)?)?;
        let (digest, bytes) = digest_file(large)?;
        ensure!(bytes == self.large_bytes, "{} has {bytes} bytes, not {}", large.display(), self.large_bytes);
        ensure!(digest == self.large_digest, "{} differs from its original", large.display());
        Ok(())
    }
}

/// The unpacked sources of the packages this project was built from, smallest names first.
fn packages() -> Result<Vec<PathBuf>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    let sources = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let mut packages = Vec::new();
    for registry in fs::read_dir(&sources).with_context(|| sources.display().to_string())? {
        for package in fs::read_dir(registry?.path())? {
            packages.push(package?.path());
        }
    }
    packages.sort();
    Ok(packages)
}

/// Strings the toolchain's files together, over and over, up to `bytes`.
fn large_file(path: &Path, bytes: u64) -> Result<u64> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output()?;
    let sysroot = PathBuf::from(String::from_utf8(sysroot.stdout)?.trim());
    let mut files = Vec::new();
    let mut folders = vec![sysroot.join("lib")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    let mut out = File::create(path)?;
    let mut written = 0;
    for (round, file) in (0..64).flat_map(|round| files.iter().map(move |file| (round, file))) {
        if written >= bytes {
            return Ok(bytes);
        }
        // The round goes in between, so that no two 64 MiB stretches are alike.
        let header = format!("\n{round} {}\n", file.display());
        out.write_all(&header.as_bytes()[..header.len().min((bytes - written) as usize)])?;
        written += header.len() as u64;
        written += std::io::copy(&mut File::open(file)?.take(bytes.saturating_sub(written)), &mut out)?;
    }
    bail!("the Rust toolchain below {} is too small to make a large file of", sysroot.display())
}

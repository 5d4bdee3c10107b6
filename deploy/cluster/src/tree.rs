//! Trees of files: copied as a user would, and compared byte for byte by digest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub type Digest = blake3::Hash;

/// A copy's unit: what `cp` uses on large files.
const COPY_BUFFER: usize = 1 << 20;

/// The regular files below a folder, with their digests.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Tree {
    pub files: BTreeMap<PathBuf, Digest>,
    pub bytes: u64,
}

impl Tree {
    /// Reads every file below `root`.
    pub fn read(root: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if kind.is_file() {
                    let (digest, bytes) = digest_file(&entry.path())?;
                    tree.files.insert(entry.path().strip_prefix(root)?.to_owned(), digest);
                    tree.bytes += bytes;
                }
            }
        }
        Ok(tree)
    }

    /// Fails with the first file that is missing, superfluous or different in `copy`.
    pub fn expect_same(&self, copy: &Tree) -> Result<()> {
        for (path, digest) in &self.files {
            match copy.files.get(path) {
                None => bail!("{} is missing in the copy", path.display()),
                Some(other) if other != digest => bail!("{} differs from its original", path.display()),
                Some(_) => {}
            }
        }
        match copy.files.keys().find(|path| !self.files.contains_key(*path)) {
            Some(path) => bail!("{} is in the copy only", path.display()),
            None => Ok(()),
        }
    }
}

/// Reads a file to its end: digest and length in bytes.
pub fn digest_file(path: &Path) -> Result<(Digest, u64)> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; COPY_BUFFER];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).with_context(|| format!("read {}", path.display()))?;
        if n == 0 {
            return Ok((hasher.finalize(), bytes));
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
}

/// Copies one file in large pieces, calling `progress` with the bytes of each; syncs it if asked.
pub fn copy_file(from: &Path, to: &Path, sync: bool, mut progress: impl FnMut(u64)) -> Result<u64> {
    let mut copy = || -> io::Result<u64> {
        let (mut source, mut target) = (File::open(from)?, File::create(to)?);
        let mut buffer = vec![0; COPY_BUFFER];
        let mut copied = 0;
        loop {
            let n = source.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            target.write_all(&buffer[..n])?;
            copied += n as u64;
            progress(n as u64);
        }
        if sync {
            target.sync_all()?;
        }
        Ok(copied)
    };
    copy().with_context(|| format!("copy {} to {}", from.display(), to.display()))
}

/// Copies folders and regular files below `from` to `to`, calling `progress` with files and bytes so far.
/// Returns files and bytes.
pub fn copy_tree(from: &Path, to: &Path, mut progress: impl FnMut(u64, u64)) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        fs::create_dir_all(to.join(&folder)).with_context(|| format!("mkdir {}", to.join(&folder).display()))?;
        let mut entries: Vec<_> = fs::read_dir(from.join(&folder))?.collect::<io::Result<_>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = folder.join(entry.file_name());
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                bytes += copy_file(&entry.path(), &to.join(&path), false, |_| {})?;
                files += 1;
                progress(files, bytes);
            }
        }
    }
    Ok((files, bytes))
}
